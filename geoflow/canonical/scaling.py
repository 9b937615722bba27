"""Choose the scale of every unit so that its incoming weights have norm 1."""

from graphlib import TopologicalSorter

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from geoflow.spec import NetworkSpec, Piece, TensorSpec
from geoflow.symmetry import Groups, rescale

EDGES = ("weight", "gain", "parameter")


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
    factors = {}
    for group, index in incoming(spec).items():
        norm = _norms(theta, index)
        factors[group] = torch.where(_alive(norm), 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0)
        theta = rescale(spec, theta, {group: factors[group]})
    return theta, factors


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
    """
    groups = spec.groups("scaling")
    ends = np.concatenate([[0], np.cumsum(list(groups.values()), dtype=int)])
    tensors = [(offset, *_entries(spec, tensor, dict(zip(groups, ends.tolist(), strict=False)))) for tensor, offset in _candidates(spec)]
    numbered = [(np.searchsorted(ends, w, "right") - 1, np.searchsorted(ends, r, "right") - 1) for _, w, r, _ in tensors]
    closing, order = _order(len(groups), numbered)
    fed, loose = [np.empty((2, 0), int)], [np.empty((2, 0), int)]
    for (offset, writes, _, edge), (writer, readers) in zip(tensors, numbered, strict=True):
        back = closing[writer, readers].any(0)
        for found, chosen in ((fed, edge & ~back), (loose, ~edge)):
            entry = (chosen & (writes >= 0)).nonzero()[0]
            found.append(np.stack([writes[entry], entry + offset]))
    fed, loose = np.concatenate(fed, 1), np.concatenate(loose, 1)
    rows = {}
    for number in order:
        start, end = ends[number], ends[number + 1]
        for unit, entry in (fed, loose):
            mine = (unit >= start) & (unit < end)
            if mine.any():
                entries = entry[mine][np.lexsort((entry[mine], unit[mine]))]
                rows[list(groups)[number]] = torch.from_numpy(entries.reshape(end - start, -1))
                break
    return rows


def _candidates(spec: NetworkSpec) -> list[tuple[TensorSpec, int]]:
    pairs = zip(spec.tensors, spec.offsets, strict=True)
    return [(tensor, offset) for tensor, offset in pairs if tensor.kind in EDGES and tensor.learned and tensor.degree == 1 and tensor.axes]


def _entries(spec: NetworkSpec, tensor: TensorSpec, first: dict[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each element of a tensor: its scaled unit, the other scaled units that it meets (-1: none), and whether it reads any site.

    An element belongs to the unit of its first axis that writes. It meets the units that it reads. If it reads any, it also meets the units
    that its further axes write. The units that it meets are scaled first.
    """
    axes = [_axis_units(spec, axis, first) for axis in tensor.axes]
    grids = [np.broadcast_arrays(*np.ix_(*(axis[row] for axis in axes))) for row in range(3)]
    writes, reads, edge = (np.stack([grid.ravel() for grid in grids[row]]) for row in range(3))
    first_writing, edge = (writes >= 0).argmax(0)[None], edge.any(0)
    owner = np.take_along_axis(writes, first_writing, 0)[0]
    further = np.where(edge & (np.arange(len(writes))[:, None] != first_writing), writes, -1)
    met = np.concatenate([reads, further])
    return owner, met[(met >= 0).any(1)], edge


def _axis_units(spec: NetworkSpec, axis: tuple[Piece, ...], first: dict[int, int]) -> tuple[np.ndarray, ...]:
    return (
        np.concatenate([_units(spec, piece, piece.writes, first) for piece in axis]),
        np.concatenate([_units(spec, piece, piece.reads, first) for piece in axis]),
        np.concatenate([np.full(piece.size * piece.repeat, int(piece.reads is not None)) for piece in axis]),
    )


def _units(spec: NetworkSpec, piece: Piece, site: int | None, first: dict[int, int]) -> np.ndarray:
    group = spec.group_of(site, "scaling")
    return np.repeat(np.arange(piece.size) + first[group] if group is not None else np.full(piece.size, -1), piece.repeat)


def _order(count: int, numbered: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[int]]:
    """Which (written, read) pairs of groups close a cycle, and the order of the groups without these pairs.

    Groups are numbered in the order of the trace.
    """
    feeds = np.zeros((count + 1, count + 1), bool)  # the last row and column stand for pinned sites, whose number is -1
    for writer, readers in numbered:
        feeds[writer, readers] = True
    inner = feeds[:count, :count]
    cycle = connected_components(inner, connection="strong")[1] if count else np.empty(0, int)
    closing = np.zeros_like(feeds)
    closing[:count, :count] = (cycle[:, None] == cycle) & np.tri(count, dtype=bool).T
    forward = inner & ~closing[:count, :count]
    return closing, list(TopologicalSorter({i: row.nonzero()[0].tolist() for i, row in enumerate(forward)}).static_order())


def _norms(theta: Tensor, index: Tensor) -> Tensor:
    return torch.linalg.vector_norm(theta[..., index.to(theta.device)], dim=-1)


def _alive(norm: Tensor) -> Tensor:
    """True where a norm has an inverse: not below the smallest normal number. NaN is checked elsewhere."""
    return ~(norm < torch.finfo(norm.dtype).tiny)
