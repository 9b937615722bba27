"""Choose the scale of every unit so that its incoming weights have norm 1."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from geoflow.linear import acts
from geoflow.spec import NetworkSpec, Piece
from geoflow.symmetry import Groups, rescale

EDGES = ("weight", "gain", "parameter")
CHUNK = 2**24  # weights of the networks that are balanced at once


def balance(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
    """Rescale every unit of every scaling group so that its incoming weights have norm 1. The function stays as it was.

    `incoming` says which weights count as incoming. Biases follow their unit. Groups are taken in the order of the forward pass, so one
    sweep is exact. A unit whose incoming weights are all zero keeps its scale (see `dead_units`).

    The result has the shape of `theta`.

    Source: Erdogan, Geometric flow models over neural network weights, arXiv 2504.03710.

    >>> import torch
    >>> from geoflow.wiring import spec_of
    >>> from geoflow.vector import pack, unpack
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = spec_of(network, torch.zeros(1, 4))
    >>> balanced = unpack(spec, balance(spec, pack(spec, network.state_dict())))
    >>> bool(balanced["0.weight"].norm(dim=1).allclose(torch.ones(3)))
    True
    """
    return balance_by(spec, theta)[0]


def balance_by(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> tuple[Float[Tensor, "*batch weights"], Groups]:
    """Return what `balance` returns, and the factors [`*batch`, units] that it gave to the units of each group."""
    cells = _incoming_cells(spec)
    if not cells:
        return theta, {}
    balanced, found = theta.new_empty(theta.shape), []
    nets, some = theta.reshape(-1, spec.weights), max(1, CHUNK // spec.weights)
    for start in range(0, len(nets), some):
        part = nets[start : start + some]
        found.append(_factors(spec, part, cells))
        balanced.view(-1, spec.weights)[start : start + some] = rescale(spec, part, found[-1])
    return balanced, {g: torch.cat([factors[g] for factors in found]).view(*theta.shape[:-1], -1) for g in cells}


def _factors(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], cells: Mapping[int, list["_Cell"]]) -> Groups:
    """The factors [nets, units] of each group. Rows are scaled by the factors of the units that they read, which were found before."""
    factors = {}
    for group, own in cells.items():
        norm = torch.linalg.vector_norm(torch.cat([cell.rows(spec, _scaled(spec, theta, factors, cell)) for cell in own], -1), dim=-1)
        factors[group] = torch.where(_alive(norm), 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0)
    return factors


def _scaled(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], factors: Groups, cell: "_Cell") -> Float[Tensor, "nets numel"]:
    """The tensor of a cell in the scale so far."""
    tensor, start = spec.tensors[cell.tensor], spec.offsets[cell.tensor]
    return rescale(replace(spec, tensors=(tensor,)), theta[:, start : start + tensor.numel], factors)


def sphere_rows(spec: NetworkSpec) -> tuple[Int[Tensor, "_units _dim"], ...]:
    """The coordinates of all balanced rows, [units, dim] for each length dim of a row. They are the spheres of `geoflow.manifolds.Product`.

    A row of a single weight, such as a gain, is +1 or -1 after `balance`. It is not a sphere and is left out.
    """
    stacks: dict[int, list[Tensor]] = {}
    for index in _with_directions(spec).values():
        stacks.setdefault(index.shape[1], []).append(index)
    return tuple(torch.cat(stack) for stack in stacks.values())


def dead_units(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> list[tuple[int, str, int]]:
    """The dead units of some networks, as (network, name of the site, unit). The incoming weights of a dead unit are all zero.

    Only units of `sphere_rows` count, so a unit with a single incoming weight is never dead. Networks are numbered in the order of the
    batch.

    >>> import torch
    >>> from geoflow.wiring import spec_of
    >>> spec = spec_of(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> theta = torch.ones(5, spec.weights)
    >>> theta[2, 4:8] = 0  # the second row of the first layer
    >>> dead_units(spec, theta)
    [(2, '0', 1)]
    """
    names = {group: next(site.name for site in spec.sites if site.scaling == group) for group in spec.groups("scaling")}
    return [
        (network, names[group], unit)
        for group, index in _with_directions(spec).items()
        for network, unit in (~_alive(_norms(theta, index))).reshape(-1, len(index)).nonzero().tolist()
    ]


def _with_directions(spec: NetworkSpec) -> dict[int, Int[Tensor, "_units _dim"]]:
    return {group: index for group, index in incoming(spec).items() if index.shape[1] > 1}


def incoming(spec: NetworkSpec) -> dict[int, Int[Tensor, "_units _dim"]]:
    """The coordinates of every unit's incoming weights, [units, dim] for each scaling group, in the order of the forward pass.

    Incoming weights are learned, have degree 1, write the unit and read a site. A group behind a normalisation has none. Its gains count
    instead.

    Residual connections can close a cycle of groups. Then tensors that lead back to an earlier group do not count as incoming, because with
    them the scale might not exist. Let p be the inverse squared factors, and S the squared weights between units. Rows of norm 1 mean

        p = S p + (pinned)

    On a cycle of spectral radius >= 1 this has no positive solution, so a trained residual network may have no such scale. Without the
    closing tensors S is nilpotent. Then the scale exists, is unique, and is found in one sweep. Closing tensors follow their units.

    A tensor that linear maps divide, such as the output layer of attention, follows too. It counts only where nothing else writes the unit.
    """
    indices = {}
    for group, cells in _incoming_cells(spec).items():
        parts = [
            cell.rows(spec, torch.arange(spec.tensors[cell.tensor].numel)[None] + spec.offsets[cell.tensor]).squeeze(0) for cell in cells
        ]
        indices[group] = torch.cat(parts, 1).sort(1).values
    return indices


@dataclass(frozen=True)
class _Cell:
    """A rectangle of a tensor: one piece of each axis. All its elements write units of one group, and meet units of the same groups.

    `spans` holds the start and the end of the rectangle along each axis. Its units lie along the axis `along`. `edge` says whether the
    elements read a site. If they do, they also meet the units that their further axes write. The units that they meet are scaled first.
    """

    tensor: int
    spans: tuple[tuple[int, int], ...]
    along: int
    units: int
    writer: int
    met: frozenset[int]
    edge: bool
    mapped: bool

    def rows(self, spec: NetworkSpec, part: Tensor) -> Tensor:
        """Of the elements [nets, numel] of the tensor, those of the cell, [nets, units, dim]."""
        part = part.unflatten(1, spec.tensors[self.tensor].shape)
        for axis, (start, end) in enumerate(self.spans, 1):
            part = part.narrow(axis, start, end - start)
        return part.movedim(1 + self.along, 1).reshape(len(part), self.units, -1)


def _incoming_cells(spec: NetworkSpec) -> dict[int, list[_Cell]]:
    """The cells of every unit's incoming weights by scaling group, in the order of the forward pass."""
    groups, cells = list(spec.groups("scaling")), list(_cells(spec))
    feeds = np.zeros((len(groups), len(groups)), bool)
    for cell in cells:
        feeds[groups.index(cell.writer), [groups.index(group) for group in cell.met]] = True
    closing, order = _order(feeds)
    found = {}
    for number in order:
        mine = [cell for cell in cells if cell.writer == groups[number]]
        back = {groups[other] for other in closing[number].nonzero()[0]}
        fed, loose = [cell for cell in mine if cell.edge and not cell.met & back], [cell for cell in mine if not cell.edge]
        plain = [cell for cell in fed if not cell.mapped]
        if counted := plain or loose or fed:
            found[groups[number]] = counted
    return found


def _cells(spec: NetworkSpec) -> Iterator[_Cell]:
    """All cells that write a scaled unit. An element belongs to the unit of its first axis that writes one."""
    for number, tensor in enumerate(spec.tensors):
        if tensor.kind not in EDGES or not tensor.learned or tensor.degree != 1 or not tensor.axes:
            continue
        for stretches in product(*map(_stretches, tensor.axes)):
            pieces = [piece for piece, _ in stretches]
            writes = [spec.group_of(piece.writes, "scaling") for piece in pieces]
            along = next((axis for axis, group in enumerate(writes) if group is not None), None)
            if along is None:
                continue
            edge = any(piece.reads is not None for piece in pieces)
            met = {spec.group_of(piece.reads, "scaling") for piece in pieces} | (set(writes[along + 1 :]) if edge else set())
            spans = tuple(span for _, span in stretches)
            mapped = any(piece.owner is not None and acts(spec.sites[piece.owner], piece.repeat) for piece in pieces)
            yield _Cell(number, spans, along, pieces[along].size, writes[along], frozenset(met - {None}), edge, mapped)


def _stretches(axis: tuple[Piece, ...]) -> Iterator[tuple[Piece, tuple[int, int]]]:
    start = 0
    for piece in axis:
        end = start + piece.size * piece.repeat
        yield piece, (start, end)
        start = end


def _order(feeds: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Which (written, read) pairs of groups close a cycle, and the order of the groups without these pairs.

    Groups are numbered in the order of the trace.
    """
    cycle = connected_components(feeds, connection="strong")[1] if len(feeds) else np.empty(0, int)
    closing = (cycle[:, None] == cycle) & np.tri(len(feeds), dtype=bool).T
    forward = feeds & ~closing
    return closing, list(TopologicalSorter({i: row.nonzero()[0].tolist() for i, row in enumerate(forward)}).static_order())


def _norms(theta: Tensor, index: Tensor) -> Tensor:
    return torch.linalg.vector_norm(theta[..., index.to(theta.device)], dim=-1)


def _alive(norm: Tensor) -> Tensor:
    """True where a norm has an inverse: not below the smallest normal number. NaN is checked elsewhere."""
    return ~(norm < torch.finfo(norm.dtype).tiny)
