"""Turn and stretch the weights on an input, so that the length of a row says what the row computes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.choices import choose
from geoflow.graph import Block, Graph, plain_inputs

Examples = Float[Tensor, "_examples ..."] | Int[Tensor, "_examples ..."]
WIDE = 2**13  # units of an input above which its axes are not turned: a matrix of 30,522 tokens would have 7.45 GB
RIDGE = 0.1  # share of an input unit's mean square that every axis counts at least, even where the examples never vary


@dataclass(frozen=True, eq=False)
class Frame:
    """Linear coordinates for rows of weights on an input. They are the same for every unit that reads the input, so no symmetry is lost.

    `axes` holds an invertible matrix [units, units] by the name of each input. The flow sees a row times this matrix. A vector [units]
    stands for a diagonal matrix, which stretches every unit by itself. `moments` holds, by the input and the role of its weights, their
    mean and standard deviation along each axis, [2, units, features]. Without axes nothing is turned. Both lie on the CPU, like the rest of
    a chart, whatever device a zoo is on.

    >>> import torch, geoflow
    >>> graph = geoflow.graph_of(geoflow.spec_of(torch.nn.Linear(2, 1, bias=False), torch.zeros(1, 2)))
    >>> frame = Frame({"input0": torch.tensor([[2.0, 0.0], [0.0, 1.0]])})
    >>> frame.turn(graph, torch.tensor([[3.0, 4.0]]))
    tensor([[6., 4.]])
    >>> frame.turn_back(graph, torch.tensor([[6.0, 4.0]]))
    tensor([[3., 4.]])
    """

    axes: Mapping[str, Float[Tensor, "_units _units"] | Float[Tensor, " _units"]] = field(default_factory=dict)
    moments: Mapping[str, Float[Tensor, "2 _units _features"]] = field(default_factory=dict)

    def turn(self, graph: Graph, theta: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Multiply every row of weights on an input by the input's axes."""
        return _turned(graph, theta, self.axes)

    def turn_back(self, graph: Graph, theta: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Undo `turn`."""
        return _turned(graph, theta, self._inverse)

    def log_det(self, graph: Graph) -> Float[Tensor, ""]:
        """Return log |det| of `turn`, a linear map of weight vectors."""
        logs = {name: _log_det(axes.double()) for name, axes in self.axes.items()}
        of_rows = [block.index[:, 0].numel() * logs[name] for name, block in _blocks(graph, self.axes)]
        return torch.stack(of_rows).sum() if of_rows else torch.zeros((), dtype=torch.double)

    def along(self, graph: Graph) -> Float[Tensor, "2 size"]:
        """Return the mean and standard deviation of every coordinate. Where they are unknown they are 0 and 1, as those of the noise."""
        moments = torch.stack([torch.zeros(graph.size), torch.ones(graph.size)])
        for name, block in _blocks(graph, self.axes):
            if (weights := named(name, block.key)) in self.moments:
                known = self.moments[weights].to(moments)
                moments[:, block.index] = known[:, None].expand(-1, len(block.index), -1, -1)
        return moments

    @cached_property
    def _inverse(self) -> Mapping[str, Tensor]:
        return {name: (axes.double().reciprocal() if axes.ndim == 1 else torch.linalg.inv(axes.double())).to(axes)
                for name, axes in self.axes.items()}  # fmt: skip


UNTURNED = Frame()


def metric_frame(graph: Graph, inputs: Examples | Mapping[str, Examples]) -> Frame:
    """Return the frame in which the length of a row is the root mean square of what it computes from the inputs.

        |w|^2 = E (w . x)^2 + ridge |w|^2

    Two networks are then near each other if their first layers compute nearly the same. Pixels that never vary, or vary together, no longer
    matter by themselves. The ridge is RIDGE times the mean square of an input unit.

    `inputs` are examples [examples, units] of what the networks read. They may have more axes behind the units (channels first) or before
    them (steps), or be flattened. If they could belong to several inputs, pass a dict by the inputs' names. Inputs without examples stay as
    they are.

    Whole numbers of 32 or 64 bits are tokens, of any shape. A token is a unit of the input that is 1 where the token stands, and 0
    elsewhere. Two tokens never stand at one place. So E (w . x)^2 needs only the frequency of each token, and the frame stretches every
    token by itself. Of an input with more than WIDE real units, only the mean square of each unit counts.

    Raises ValueError if no input has as many units, if it is unclear which axis or input is meant or whether numbers are tokens, and if
    examples are missing, all 0 or not finite. Tokens that the input does not have are refused too.

    >>> import torch, geoflow
    >>> graph = geoflow.graph_of(geoflow.spec_of(torch.nn.Linear(2, 1, bias=False), torch.zeros(1, 2)))
    >>> frame = metric_frame(graph, torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))  # the second unit never varies
    >>> frame.turn(graph, torch.ones(1, 2))
    tensor([[3.0741, 0.6708]])
    """
    plain = plain_inputs(graph)
    units = {name: blocks[0].index.shape[1] for name, blocks in plain.items()}
    named = isinstance(inputs, Mapping)
    given = inputs if named else dict.fromkeys(units, inputs)
    ways = {name: _by_units(examples, choose("input", name, units)) for name, examples in given.items()}
    fitting, others = [name for name in ways if ways[name]], [name for name in ways if not ways[name]]
    if others if named else not fitting:
        who, examples = (f"Input {others[0]!r} has not", given[others[0]]) if named else ("No input has", inputs)
        raise ValueError(f"{who} the shape {list(examples.shape[1:])} of these examples; units of those that can be turned: {units}.")
    if len(fitting) > 1 and not named:
        serves = " and ".join(f"{name} ({graph.spec.sites[plain[name][0].source].name})" for name in fitting)
        raise ValueError(f"These examples could be of {serves}: pass them by name, as {{{fitting[0]!r}: ...}}.")
    for name in fitting:
        if len(ways[name]) > 1:
            count = units[name]
            raise ValueError(
                f"These examples have two axes of {count} that could be the units of {name!r}: pass them as [examples * steps, {count}]."
            )
    return Frame({name: _metric(ways[name][0], units[name]) for name in fitting})


def principal_frame(graphs: Sequence[Graph], points: Sequence[Float[Tensor, "_nets _size"]], base: Frame) -> Frame:
    """Turn `base` on to the principal axes of the rows on each input, the widest first. Lengths stay as in `base`.

    Inputs of more than WIDE units are not turned.

    `points` holds for each graph the coordinates of its zoo in `base`, in units of the noise. The rows of all zoos count alike. Each row is
    centred on the mean row of its role.
    """
    axes = {}
    for name, rows in _rows_by_input(graphs, points).items():
        centred = [(part - part.mean(0)).transpose(1, 2).flatten(0, 1) for part in rows.values()]
        axes[name] = turned_on(base, name, _principal_axes(torch.cat(centred)).cpu()).to(points[0].dtype)
    return Frame(axes | unturned_axes(graphs, base))


def turned_on(base: Frame, name: str, turn: Float[Tensor, "units units"]) -> Float[Tensor, "units units"]:
    """Return the axes of an input in `base`, turned on by a rotation."""
    axes = base.axes.get(name)
    if axes is None:
        return turn
    return axes.double()[:, None] * turn if axes.ndim == 1 else axes.double() @ turn


def unturned_axes(graphs: Sequence[Graph], base: Frame) -> dict[str, Tensor]:
    """Return the axes of the inputs of more than WIDE units: those in `base`, or ones."""
    wide = {name: len(blocks[0].index[0]) for graph in graphs for name, blocks in plain_inputs(graph).items()}
    return {name: base.axes.get(name, torch.ones(units)) for name, units in wide.items() if units > WIDE}


def fit_moments(graphs: Sequence[Graph], points: Sequence[Float[Tensor, "_nets _size"]]) -> dict[str, Float[Tensor, "2 _units _features"]]:
    """Return mean and standard deviation of the coordinates along each axis of the inputs, by input and role.

    `points` holds for each graph the coordinates of its zoo, in units of the noise. The rows of all zoos count alike. A small zoo may never
    vary in some direction by chance. So one row of the mean spread is added to what was seen.
    """
    moments = {}
    for name, by_role in (_rows_by_input(graphs, points) | _rows(graphs, points, range(WIDE + 1, sys.maxsize))).items():
        for key, rows in by_role.items():
            moments[named(name, key)] = moments_of(rows.mean(0), rows.var(0, unbiased=False), len(rows)).cpu()
    return moments


def moments_of(
    mean: Float[Tensor, "units features"], variance: Float[Tensor, "units features"], count: int
) -> Float[Tensor, "2 units features"]:
    """Return the mean of rows, and their standard deviation if one more row had their mean variance."""
    return torch.stack([mean, ((count * variance + variance.mean()) / (count + 1)).sqrt()])


def of_every_input(graph: Graph, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert moments of flows that were saved by role alone. These moments counted for every input."""
    parts = [(name, block.key) for name, blocks in plain_inputs(graph).items() for block in blocks if block.key in moments]
    return {named(name, key): moments[key] for name, key in parts}


def named(name: str, key: str) -> str:
    """Return the name of the weights of one role on one input. Several inputs may share a role."""
    return f"{name} {key}"


def _rows_by_input(graphs: Sequence[Graph], points: Sequence[Tensor]) -> dict[str, dict[str, Float[Tensor, "_rows _units _features"]]]:
    """Return the rows of weights on each input of all zoos, by input and role. Inputs of more than WIDE units are left out."""
    return _rows(graphs, points, range(WIDE + 1))


def _rows(graphs: Sequence[Graph], points: Sequence[Tensor], sizes: range) -> dict[str, dict[str, Float[Tensor, "_rows _units _features"]]]:
    """Return the rows of weights on each input that has one of these sizes."""
    rows: dict[str, dict[str, list[Tensor]]] = {}
    for graph, x in zip(graphs, points, strict=True):
        for name, blocks in plain_inputs(graph).items():
            for block in blocks if blocks[0].index.shape[1] in sizes else ():
                rows.setdefault(name, {}).setdefault(block.key, []).append(x[:, block.index].flatten(0, 1))
    return {name: {key: torch.cat(parts) for key, parts in by_role.items()} for name, by_role in rows.items()}


def _principal_axes(rows: Float[Tensor, "rows units"]) -> Float[Tensor, "units units"]:
    """Return the eigenvectors of the rows' mean products, the largest eigenvalue first."""
    return _eigenvectors(rows.T.double() @ rows.double())


def centred_axes(
    products: Float[Tensor, "units units"], means: Sequence[tuple[int, Float[Tensor, "units _features"]]]
) -> Float[Tensor, "units units"]:
    """Return the principal axes of rows from the sum of their products, and from the number and the mean of the rows of each role."""
    return _eigenvectors(products - sum(count * mean @ mean.T for count, mean in means))


def _eigenvectors(products: Float[Tensor, "units units"]) -> Float[Tensor, "units units"]:
    """Return the eigenvectors of a symmetric matrix, the largest eigenvalue first.

    The largest entry of each is positive, so they are the same on every machine.
    """
    axes = torch.linalg.eigh(products)[1].flip(1)
    return axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()


def _by_units(examples: Tensor, units: int) -> list[Float[Tensor, "rows units"]] | list[Int[Tensor, " tokens"]]:
    """Return all ways to read examples as rows of `units` numbers: channels first, units last, or flattened if no axis has this size.

    Tokens are one way, as they are.
    """
    if examples.dtype in (torch.int32, torch.int64) and examples.numel():
        if examples.ndim > 1 and units in (examples.shape[1], examples.shape[-1]):
            raise ValueError(
                f"These whole numbers, {list(examples.shape)}, could be tokens or values of {units} units. Pass tokens as "
                "examples.flatten(), and values as examples.float()."
            )
        return [examples.flatten()] if examples.min() >= 0 and examples.max() < units else []
    if not (examples.numel() and examples.isfinite().all() and examples.any()):
        raise ValueError(f"These {len(examples)} examples of inputs measure nothing: there are none, all are 0, or some are NaN or Inf.")
    axes = [axis for axis in sorted({1, examples.ndim - 1}) if examples.ndim > 1 and examples.shape[axis] == units]
    if axes:
        return [examples.movedim(axis, -1).reshape(-1, units) for axis in (axes if units > 1 else axes[:1])]
    return [examples.reshape(-1, units)] if examples[0].numel() == units else []


def _metric(rows: Float[Tensor, "rows units"] | Int[Tensor, " tokens"], units: int) -> Float[Tensor, "*units"]:
    """Return the symmetric root of the rows' mean products plus the ridge. For tokens and for wide rows it is the root of the diagonal."""
    rows = rows.detach().cpu()
    if rows.ndim == 1 or units > WIDE:
        squares = rows.bincount(minlength=units) / len(rows) if rows.ndim == 1 else sum(x.double().square() for x in rows) / len(rows)
        return (squares.double() + RIDGE * squares.double().mean()).sqrt()
    rows = rows.double()
    squares = rows.T @ rows / len(rows)
    values, vectors = torch.linalg.eigh(squares + RIDGE * squares.diagonal().mean() * torch.eye(len(squares)))
    return (vectors * values.clamp_min(torch.finfo(torch.double).tiny).sqrt()) @ vectors.T


def _log_det(axes: Float[Tensor, "*units"]) -> Float[Tensor, ""]:
    return axes.abs().log().sum() if axes.ndim == 1 else torch.linalg.slogdet(axes).logabsdet


def _blocks(graph: Graph, axes: Mapping[str, Tensor]) -> Iterator[tuple[str, Block]]:
    """Iterate over the weights on inputs that have axes, with the input's name.

    Raises ValueError if an input has another size than its axes.
    """
    for name, blocks in plain_inputs(graph).items():
        for block in blocks if name in axes else ():
            if (units := block.index.shape[1]) != len(axes[name]):
                raise ValueError(
                    f"The flow was built for {len(axes[name])} units of {name!r}, not for {units}: another task needs another flow."
                )
            yield name, block


def _turned(graph: Graph, x: Tensor, axes: Mapping[str, Tensor]) -> Tensor:
    for name, block in _blocks(graph, axes):
        index, own = block.index.to(x.device), axes[name].to(x)
        turned = x[..., index] * own[:, None] if own.ndim == 1 else (x[..., index].transpose(-1, -2) @ own).transpose(-1, -2)
        x = x.index_copy(-1, index.flatten(), turned.flatten(-3))
    return x
