"""Turn the weights that read an input along the principal axes of a zoo's rows, and say how far the zoo spreads along each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.graph import Block, Graph, plain_inputs


@dataclass(frozen=True, eq=False)
class Frame:
    """Orthogonal coordinates for rows of weights on an input: the same for every unit that reads it, so no symmetry is lost.

    `axes` holds by the input's name a matrix [units, units] whose columns are the axes, the widest spread first; `moments` by the role
    of the weights their mean and standard deviation along each axis, [2, units, features]. Without axes nothing is turned.
    """

    axes: Mapping[str, Float[Tensor, "_units _units"]] = field(default_factory=dict)
    moments: Mapping[str, Float[Tensor, "2 _units _features"]] = field(default_factory=dict)

    def turn(self, graph: Graph, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Coordinates by input units to coordinates by axes: an isometry, for every row by itself."""
        for block, axes in self._turned(graph):
            x = _along(x, block, axes.to(x))
        return x

    def turn_back(self, graph: Graph, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """The inverse of `turn`."""
        for block, axes in self._turned(graph):
            x = _along(x, block, axes.to(x).T)
        return x

    def along(self, graph: Graph) -> Float[Tensor, "2 size"]:
        """Mean and standard deviation of every coordinate; 0 and 1, those of the noise, where no axes are known."""
        moments = torch.stack([torch.zeros(graph.size), torch.ones(graph.size)])
        for block, _ in self._turned(graph):
            known = self.moments[block.key].to(moments)
            moments[:, block.index] = known[:, None].expand(-1, len(block.index), -1, -1)
        return moments

    def _turned(self, graph: Graph) -> Iterator[tuple[Block, Tensor]]:
        """Raises ValueError for an input of another size than the axes have."""
        for name, blocks in plain_inputs(graph).items():
            for block in blocks if name in self.axes else ():
                axes = self.axes[name]
                if (units := block.index.shape[1]) != len(axes):
                    raise ValueError(
                        f"The flow was built for {len(axes)} units of {name!r}, not for {units}: another task needs another flow."
                    )
                if block.key in self.moments:
                    yield block, axes


def fit_frame(graph: Graph, x: Float[Tensor, "nets size"]) -> Frame:
    """The frame of a zoo whose coordinates `x` are in units of the noise.

    The axes are the principal components of all rows on an input, each centred on the mean row of its role; one row of the mean spread is
    added to what was seen, so that a direction in which a small zoo never varied is not taken for impossible.
    """
    axes, moments = {}, {}
    for name, blocks in plain_inputs(graph).items():
        rows: dict[str, list[Tensor]] = {}
        for block in blocks:
            rows.setdefault(block.key, []).append(x[:, block.index].flatten(0, 1))
        roles = {key: torch.cat(parts) for key, parts in rows.items()}  # [rows, units, features]
        centred = torch.cat([(part - part.mean(0)).transpose(1, 2).flatten(0, 1) for part in roles.values()])
        axes[name] = _principal_axes(centred)
        for key, part in roles.items():
            turned = (part.transpose(1, 2) @ axes[name]).transpose(1, 2)
            variance = turned.var(0, unbiased=False)
            moments[key] = torch.stack([turned.mean(0), ((len(part) * variance + variance.mean()) / (len(part) + 1)).sqrt()])
    return Frame(axes, moments)


def _principal_axes(rows: Float[Tensor, "rows units"]) -> Float[Tensor, "units units"]:
    """Eigenvectors of the rows' products, the largest first, each with its largest entry positive: the same on every machine."""
    axes = torch.linalg.eigh(rows.T.double() @ rows.double())[1].flip(1)
    return (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).to(rows)


def _along(x: Tensor, block: Block, axes: Tensor) -> Tensor:
    index = block.index.to(x.device)
    turned = (x[..., index].transpose(-1, -2) @ axes).transpose(-1, -2)
    return x.index_copy(-1, index.flatten(), turned.flatten(-3))
