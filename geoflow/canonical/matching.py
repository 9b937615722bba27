"""Choose the order and the sign of every unit so that a network is nearest to a reference."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from geoflow.canonical.places import Node, Place, Window, lone_axes, nodes_of, outwards, places_of, rows
from geoflow.spec import NetworkSpec
from geoflow.symmetry import Groups, Symmetry, apply_symmetry

CHUNK = 2**24  # weights of the networks that are aligned at once


def align(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, "*nets weights"], sweeps: int = 50
) -> tuple[Float[Tensor, "nets weights"], Symmetry]:
    """Reorder the units of every network to be nearest to a reference. Units whose sign is free are flipped too.

    The best permutations and signs g have the greatest <reference, g theta>. Only learned weights count. Returns the aligned networks
    [nets, weights] and the symmetry g. `reference` is one vector [weights], or one vector for each network.

    The method is coordinate descent, with at most `sweeps` sweeps. If all other groups are fixed, the best order of one group is a linear
    assignment. Its gains are C[i, j] for unit j at place i. If a tensor has one group on two axes, the objective is quadratic in that
    order. Then the gain is computed along each axis, with the other axis fixed. A step is taken only if it raises the objective. A network
    is done when a sweep does not change it.

    The first sweep begins at the pinned sites and goes outwards. It uses only tensors whose other axes are pinned or matched already. So
    the result does not depend on the order in which the units came: align(g theta) = align(theta) if the assignments are unique.

    Raises ValueError for an empty zoo, another architecture, and NaN or Inf. The message names the network and the tensor.

    Source: Ainsworth et al., Git Re-Basin, 2023 (weight matching).

    >>> import torch
    >>> from geoflow.wiring import spec_of
    >>> from geoflow.symmetry import permute
    >>> spec = spec_of(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> theta = torch.randn(5, spec.weights, generator=torch.Generator().manual_seed(0))
    >>> moved = permute(spec, theta, {0: torch.tensor([2, 0, 1])})
    >>> torch.equal(align(spec, moved, theta)[0], theta)
    True
    """
    check_zoo(spec, theta)
    check_zoo(spec, reference.reshape(-1, spec.weights), "reference")
    nets = max(1, CHUNK // max(1, spec.weights))
    fixed = reference.detach().cpu().to(theta.dtype)
    found = [
        _align(spec, part.detach().cpu(), fixed[start : start + nets] if fixed.ndim == 2 else fixed, sweeps)
        for start, part in zip(range(0, len(theta), nets), theta.split(nets), strict=True)
    ]
    symmetry = Symmetry(
        {g: torch.cat([permutations[g] for permutations, _ in found]).to(theta.device) for g in spec.groups("permutation")},
        signs={g: torch.cat([signs[g] for _, signs in found]).to(theta) for g in spec.groups("sign")},
    )
    return apply_symmetry(spec, theta, symmetry), symmetry


def match(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, "*nets weights"]
) -> Float[Tensor, "nets weights"]:
    """The result of the first sweep of `align`, in the precision and on the device of the input. The input is not checked."""
    state, _, nodes, _ = _start(spec, theta, reference, theta.dtype)
    return apply_symmetry(spec, theta, Symmetry(state.permutations, signs=_in_old_order(nodes, state)))


def centre(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, " weights"], rounds: int = 20
) -> Float[Tensor, " weights"]:
    """The common centre of all networks: align them to the reference, take their mean as the next reference, and repeat.

    The mean gain <reference, g theta> of a round equals the squared norm of its mean network. The rounds stop when it no longer grows.
    Returns the mean of the best round, [weights].

    Raises ValueError for fewer than two networks, because their centre would be the network itself.

    >>> import torch
    >>> from geoflow.wiring import spec_of
    >>> from geoflow.symmetry import permute
    >>> spec = spec_of(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> theta = torch.randn(spec.weights, generator=torch.Generator().manual_seed(0))
    >>> zoo = torch.stack([theta, permute(spec, theta, {0: torch.tensor([2, 0, 1])})])  # one network in two orders
    >>> torch.equal(centre(spec, zoo, theta), theta)
    True
    """
    if len(theta) < 2:
        raise ValueError(f"A common centre needs at least two networks, not {len(theta)}. Pass a reference to align to.")
    gain = -float("inf")
    for _ in range(rounds):
        mean = align(spec, theta, reference)[0].mean(0)
        grown = float(mean.double().square().sum())
        if grown <= gain * (1 + 1e-6):
            break
        gain, reference = grown, mean
    return reference


def check_zoo(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], name: str = "zoo") -> None:
    """Raise ValueError for an empty zoo, another architecture, and NaN or Inf."""
    if len(theta) == 0:
        raise ValueError(f"The {name} is empty: at least one network is needed.")
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"The {name} has vectors of {theta.shape[-1]} weights, the spec {spec.weights}. Trace the network of the {name}.")
    if not theta.sum().isfinite() and not theta.isfinite().all():  # a sum is fast, but may itself overflow
        network, entry = (~theta.isfinite()).nonzero()[0].tolist()
        tensor = next(t for t, start in zip(spec.tensors, spec.offsets, strict=True) if start <= entry < start + t.numel)
        raise ValueError(f"Network {network} of the {name} holds NaN or Inf in {tensor.name!r}. Remove this network, or train it again.")


@dataclass
class _State:
    """Networks during alignment: their learned tensors as [nets, `*shape`], and the symmetry so far.

    The signs are in the new order of the units.
    """

    parts: dict[int, Tensor]
    permutations: Groups
    signs: Groups

    def at(self, node: Node) -> "_State":
        """The tensors, orders and signs that belong to a node."""
        parts = {place.tensor: self.parts[place.tensor] for place in node.places if place.learned}
        orders = {} if node.permutation is None else {node.permutation: self.permutations[node.permutation]}
        return _State(parts, orders, {g: self.signs[g] for g in node.signs})

    def take(self, nets: Tensor) -> "_State":
        return _State(*({key: value[nets] for key, value in table.items()} for table in (self.parts, self.permutations, self.signs)))

    def put(self, nets: Tensor, other: "_State") -> None:
        for mine, its in zip((self.parts, self.permutations, self.signs), (other.parts, other.permutations, other.signs), strict=True):
            for key in its:
                mine[key][nets] = its[key]


def _align(spec: NetworkSpec, theta: Tensor, reference: Tensor, sweeps: int) -> tuple[Groups, Groups]:
    state, goal, nodes, settled = _start(spec, theta, reference, torch.float64)
    stale = [torch.full((len(theta),), index not in settled) for index in range(len(nodes))]  # networks in which a node may improve
    for _ in range(sweeps):
        for index, node in enumerate(nodes):
            nets = stale[index].nonzero().squeeze(1)
            if len(nets) == 0:
                continue
            here, aim = state.take(nets), goal if reference.ndim == 1 else {t: part[nets] for t, part in goal.items()}
            better = _step(here, aim, node)
            state.put(nets, here)
            stale[index][nets] = better & node.quadratic
            for other in (i for i, neighbour in enumerate(nodes) if i != index and neighbour.touched & node.touched):
                stale[other][nets] |= better
    return state.permutations, _in_old_order(nodes, state)


def _start(
    spec: NetworkSpec, theta: Tensor, reference: Tensor, dtype: torch.dtype
) -> tuple[_State, dict[int, Tensor], list[Node], set[int]]:
    """Do the first sweep. Returns the state, the reference's tensors, all nodes, and the numbers of the nodes that are settled.

    Elements are compared in `dtype`. The products of wide tensors are computed in the precision of the networks.
    """
    places, nets = places_of(spec), len(theta)
    nodes = nodes_of(spec, places)
    touched = set().union(*(node.touched for node in nodes))
    parts, goal = _cut(spec, theta, touched), _cut(spec, reference, touched)
    steps = list(outwards(nodes, places))
    settled = _settled(nodes, steps)
    lone = {tensor: axis for tensor, axis in lone_axes(places).items() if tensor in touched and _is_wide(spec.tensors[tensor].shape, axis)}
    for tensor, axis in lone.items():
        parts[tensor], goal[tensor] = _overlaps(parts[tensor], goal[tensor], axis)
    parts, goal = ({tensor: part.to(dtype) for tensor, part in some.items()} for some in (parts, goal))
    steps = [(node.without_axes(lone), [(place.without_axes(lone), window) for place, window in views]) for node, views in steps]
    orders = {g: torch.arange(n, device=theta.device).repeat(nets, 1) for g, n in spec.groups("permutation").items()}
    state = _State(parts, orders, {g: theta.new_ones(nets, n, dtype=dtype) for g, n in spec.groups("sign").items()})
    for node, views in steps:
        _move(state, node, *_best(state, goal, node, views))
    return state, goal, [node.without_axes(lone) for node in nodes], settled


def _settled(nodes: list[Node], steps: list[tuple[Node, list[tuple[Place, Window]]]]) -> set[int]:
    """The nodes that saw all elements of their tensors. All that they share with other nodes was matched before."""

    def whole(node: Node, views: list[tuple[Place, Window]]) -> bool:
        return len(views) == sum(place.learned for place in node.places) and not any(window for _, window in views)

    return {nodes.index(node) for node, views in steps if node in nodes and not node.quadratic and whole(node, views)}


def _is_wide(shape: tuple[int, ...], axis: int) -> bool:
    return prod(shape) > shape[axis] ** 2


def _overlaps(part: Tensor, goal: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The inner products of all units along an axis with those of the reference, and the identity: <g A, R> = <g (A R^T), 1>.

    If only the units along one axis of a tensor A move, the sweeps need no more than these products.
    """
    rank = part.ndim - 1
    dtype = torch.promote_types(part.dtype, torch.float32)
    rows, aims = (x.to(dtype).movedim(axis - rank, -rank).flatten(1 - rank) for x in (part, goal))
    products = rows @ aims.mT
    return products, torch.eye(products.shape[-1]).to(products).expand(*aims.shape[:-2], -1, -1)


def _in_old_order(nodes: list[Node], state: _State) -> Groups:
    homes = {g: node.permutation for node in nodes if node.permutation is not None for g in node.signs}
    orders = {g: state.permutations[homes[g]] if g in homes else None for g in state.signs}
    return {g: s if orders[g] is None else torch.empty_like(s).scatter(-1, orders[g], s) for g, s in state.signs.items()}


def _step(state: _State, goal: dict[int, Tensor], node: Node) -> Tensor:
    """Improve one node in the networks in which that raises the objective. Returns True for these networks."""
    order, flips = _best(state, goal, node, [(place, {}) for place in node.places if place.learned])
    trial = state.at(node)
    _move(trial, node, order, flips)
    gain = sum(((trial.parts[t] - state.parts[t]) * goal[t]).flatten(1).sum(1) for t in node.touched)
    scale = sum((state.parts[t] * goal[t]).abs().flatten(1).sum(1) for t in node.touched)
    better = gain > 1e-12 * scale  # above the rounding of float64
    state.put(better, trial.take(better))
    return better


def _best(state: _State, goal: dict[int, Tensor], node: Node, views: list[tuple[Place, Window]]) -> tuple[Tensor, Groups]:
    """The order and the signs of one node with the greatest gain, with the rest of the network fixed."""
    gains: dict[int | None, Tensor] = {}  # by the sign group that may flip them; None: no group, or two groups
    for place, window in views:
        free = place.signs & node.signs
        old, new = rows(state.parts[place.tensor], place, window), rows(goal[place.tensor], place, window)
        key = next(iter(free)) if len(free) == 1 else None
        gains[key] = gains.get(key, 0) + old @ new.transpose(-1, -2)
    order = _unmoved(state, node.units)
    if node.permutation is not None and gains:
        order = _assign(sum(gain if key is None else gain.abs() for key, gain in gains.items()))
    chosen = {key: gain.take_along_dim(order[:, None], 1).squeeze(1) for key, gain in gains.items() if key is not None}
    return order, {key: torch.where(gain < 0, -1.0, 1.0).to(gain) for key, gain in chosen.items()}


def _unmoved(state: _State, units: int) -> Tensor:
    one = next(iter((*state.parts.values(), *state.permutations.values(), *state.signs.values())))
    return torch.arange(units, device=one.device).repeat(len(one), 1)


def _move(state: _State, node: Node, order: Tensor, flips: Groups) -> None:
    """Reorder and flip the units of a node in place."""
    if node.permutation is not None:
        state.permutations[node.permutation] = state.permutations[node.permutation].gather(1, order)
        state.signs |= {g: state.signs[g].gather(1, order) for g in node.signs}
    state.signs |= {g: state.signs[g] * flip for g, flip in flips.items()}
    nets = torch.arange(len(order), device=order.device)[:, None]
    for place in (place for place in node.places if place.learned):
        part = state.parts[place.tensor].movedim(1 + place.axis, 1)
        start, end = place.start, place.start + place.units * place.repeat
        entries = (order[..., None] * place.repeat + torch.arange(place.repeat, device=order.device)).flatten(1) + start
        moved = part[nets, entries]
        for flip in (flips[g] for g in place.signs if g in flips):
            moved = moved * flip.repeat_interleave(place.repeat, 1).reshape(*moved.shape[:2], *[1] * (moved.ndim - 2))
        whole = moved if moved.shape == part.shape else torch.cat([part[:, :start], moved, part[:, end:]], 1)
        state.parts[place.tensor] = whole.movedim(1, 1 + place.axis)


def _cut(spec: NetworkSpec, theta: Tensor, chosen: set[int]) -> dict[int, Tensor]:
    """The chosen tensors by number, in their shapes."""
    cuts = theta.split([tensor.numel for tensor in spec.tensors], -1)
    return {i: cuts[i].reshape(*theta.shape[:-1], *spec.tensors[i].shape) for i in sorted(chosen)}


def _assign(gains: Tensor) -> Tensor:
    """For every network the old unit at each new place, from the gains [nets, old, new].

    If every place has its greatest gain with a different unit, these units are the assignment. No other sum can be larger.
    """
    gains_here, units = gains.cpu().numpy(), np.arange(gains.shape[1])
    order = gains_here.argmax(1)
    for network in (np.sort(order, 1) != units).any(1).nonzero()[0]:
        order[network] = linear_sum_assignment(gains_here[network].T, maximize=True)[1]
    return torch.from_numpy(order).to(gains.device)
