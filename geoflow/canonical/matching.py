"""Choose the order and sign of every unit, and the rotation of every head, so that a network is nearest to a reference."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from geoflow.canonical.gains import Gains, Overlaps, State, Turn, View
from geoflow.canonical.places import Node, nodes_of, outwards, places_of
from geoflow.canonical.products import rotation_to
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Rows
from geoflow.symmetry import Groups, Symmetry, apply_symmetry

CHUNK = 2**24  # weights of the networks that are aligned at once
TURNED = {torch.float64: 1e-10, torch.float32: 1e-5}  # a smaller rotation may be the rounding of products
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}  # a smaller relative gain may be the rounding of products


def align(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, "*nets weights"], sweeps: int = 50
) -> tuple[Float[Tensor, "nets weights"], Symmetry]:
    """Reorder the units of every network to be nearest to a reference. Units whose sign is free are flipped, and heads are turned too.

    The best permutations, signs and rotations g have the greatest <reference, g theta>. Only learned weights count. Returns the aligned
    networks [nets, weights] and the symmetry g. `reference` is one vector [weights], or one vector for each network.

    The method is coordinate descent, with at most `sweeps` sweeps. If all other groups are fixed, the best order of one group is a linear
    assignment. Its gains are C[i, j] for unit j at place i. If a tensor has one group on two axes, the objective is quadratic in that
    order. Then the gain is computed along each axis, with the other axis fixed. A step is taken only if it raises the objective. A network
    is done when a sweep does not change it.

    Heads that may be turned are matched by what is left after the best rotation of each pair of heads. The gain of a pair is then the sum
    of the singular values of its products, and the rotation is that of Procrustes.

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
    symmetry = match_units(spec, theta, reference, sweeps)
    return apply_by_parts(spec, theta, symmetry, theta.new_empty(theta.shape)), symmetry


def match_units(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, "*nets weights"], sweeps: int = 50
) -> Symmetry:
    """The symmetry that `align` finds."""
    check_zoo(spec, theta)
    check_zoo(spec, reference.reshape(-1, spec.weights), "reference")
    fixed = reference.detach().cpu().to(theta.dtype)
    found = [
        _align(spec, theta[part].detach().cpu(), fixed[part] if fixed.ndim == 2 else fixed, sweeps) for part in parts_of(spec, len(theta))
    ]
    return Symmetry(
        {g: torch.cat([state.permutations[g] for state in found]).to(theta.device) for g in spec.groups("permutation")},
        signs={g: torch.cat([state.signs[g] for state in found]).to(theta) for g in spec.groups("sign")},
        linear={g: torch.cat([state.linear[g] for state in found]).to(theta.device) for g in spec.linear},
    )


def apply_by_parts(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], symmetry: Symmetry, into: Float[Tensor, "nets weights"]
) -> Float[Tensor, "nets weights"]:
    """Move a few networks at a time, and write them to `into`, which may be `theta` itself. So no second copy of a zoo is in memory."""
    for part in parts_of(spec, len(theta)):
        into[part] = apply_symmetry(spec, theta[part], part_of(symmetry, part))
    return into


def part_of(symmetry: Symmetry, nets: slice) -> Symmetry:
    """The symmetry of some of the networks. A single one has no axis of networks, because reordering is then several times as fast."""
    tables = ({g: x[nets] for g, x in t.items()} for t in (symmetry.permutations, symmetry.factors, symmetry.signs, symmetry.linear))
    return Symmetry(*({g: x[0] if len(x) == 1 else x for g, x in table.items()} for table in tables))


def parts_of(spec: NetworkSpec, nets: int) -> list[slice]:
    """Slices of so few networks that their copies are small beside a zoo."""
    some = max(1, CHUNK // max(1, spec.weights))
    return [slice(start, start + some) for start in range(0, nets, some)]


def match(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], reference: Float[Tensor, "*nets weights"]
) -> Float[Tensor, "nets weights"]:
    """The result of the first sweep of `align`, in the precision and on the device of the input. The input is not checked."""
    state = _start(spec, theta, reference, torch.promote_types(theta.dtype, torch.float32))[0]
    return apply_symmetry(spec, theta, Symmetry(state.permutations, signs=state.signs, linear=state.linear))


def check_zoo(spec: NetworkSpec, theta: Networks, name: str = "zoo", first: int = 0) -> None:
    """Raise ValueError for an empty zoo, another architecture, and NaN or Inf. `first` is the number of the first network.

    Networks in a file are read one after the other.
    """
    if len(theta) == 0:
        raise ValueError(f"The {name} is empty: at least one network is needed.")
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"The {name} has vectors of {theta.shape[-1]} weights, the spec {spec.weights}. Trace the network of the {name}.")
    if isinstance(theta, Rows):
        for net in range(len(theta)):
            check_zoo(spec, theta[net : net + 1], name, first + net)
    elif not theta.sum().isfinite() and not theta.isfinite().all():  # a sum is fast, but may itself overflow
        network, entry = (~theta.isfinite()).nonzero()[0].tolist()
        tensor = next(t for t, start in zip(spec.tensors, spec.offsets, strict=True) if start <= entry < start + t.numel)
        raise ValueError(
            f"Network {first + network} of the {name} holds NaN or Inf in {tensor.name!r}. Remove this network, or train it again."
        )


def _align(spec: NetworkSpec, theta: Tensor, reference: Tensor, sweeps: int) -> State:
    if len(theta) == 1 and torch.equal(theta.squeeze(0), reference):  # no order is nearer
        return _unmoved(spec, theta, torch.float64)
    state, overlaps, nodes, settled = _start(spec, theta, reference, torch.float64)
    stale = [torch.full((len(theta),), index not in settled) for index in range(len(nodes))]  # networks in which a node may improve
    for _ in range(sweeps):
        for index, node in enumerate(nodes):
            nets = stale[index].nonzero().squeeze(1)
            if len(nets) == 0:
                continue
            better = _step(state, overlaps, node, nets)
            stale[index][nets] = better & node.quadratic
            for other in (i for i, neighbour in enumerate(nodes) if i != index and neighbour.touched & node.touched):
                stale[other][nets] |= better
    for node in (node for node in nodes if node.linear):
        _turn_exactly(state, overlaps, node)
    return state


def _turn_exactly(state: State, overlaps: Overlaps, node: Node) -> None:
    """Turn heads by what is left. A rotation of 1e-6 gains 1e-12 of the objective, which the search takes for rounding."""
    everyone = torch.arange(len(next(iter(state.linear.values()))))
    gains = overlaps.gains(state, node, [(place, {}) for place in node.places if place.learned], everyone)
    for key in (key for key in gains if isinstance(key, tuple)):
        order = _order(state, node, len(gains[key]), gains[key].device)
        chosen = _at_places(gains[key], order)
        turned, eye = rotation_to(chosen), torch.eye(chosen.shape[-1]).to(chosen)
        found, limit = torch.linalg.svdvals(chosen), TURNED[overlaps.precision]
        moves = ((turned - eye).abs().amax((-1, -2)) > limit) & (found[..., -1] > limit * found[..., 0])  # else it is not unique
        turned = torch.where(moves[..., None, None], turned, eye)
        rotations = {key[1]: torch.empty_like(turned).scatter(1, order[..., None, None].expand_as(turned), turned)}
        state.turn(everyone, rotations)
        overlaps.turn(everyone, rotations)


def _start(spec: NetworkSpec, theta: Tensor, reference: Tensor, dtype: torch.dtype) -> tuple[State, Overlaps, list[Node], set[int]]:
    """Do the first sweep. Returns the state, the overlaps, all nodes, and the numbers of the nodes that are settled.

    Products are added in `dtype`.
    """
    places, everyone = places_of(spec), torch.arange(len(theta), device=theta.device)
    nodes = nodes_of(spec, places)
    overlaps = Overlaps(spec, theta, reference, places, set().union(*(node.touched for node in nodes)), dtype)
    state = _unmoved(spec, theta, dtype)
    steps = list(outwards(nodes, places))
    for node, views in steps:
        gains = overlaps.gains(state, node, views, everyone)
        found = _best(state, gains, node)
        rotations = {group: rotation for group, rotation in found.linear.items() if group in node.linear}
        state.put(everyone, found)
        state.turn(everyone, rotations)
        overlaps.turn(everyone, rotations)
    return state, overlaps, nodes, _settled(nodes, steps)


def _unmoved(spec: NetworkSpec, theta: Tensor, dtype: torch.dtype) -> State:
    orders = {g: torch.arange(n, device=theta.device).repeat(len(theta), 1) for g, n in spec.groups("permutation").items()}
    signs = {g: theta.new_ones(len(theta), n, dtype=dtype) for g, n in spec.groups("sign").items()}
    eyes = {g: torch.eye(width, dtype=dtype, device=theta.device) for g, (_, width) in spec.linear.items()}
    return State(orders, signs, {g: eye.repeat(len(theta), spec.linear[g][0], 1, 1) for g, eye in eyes.items()})


def _settled(nodes: list[Node], steps: list[tuple[Node, list[View]]]) -> set[int]:
    """The nodes that saw all elements of their tensors. All that they share with other nodes was matched before."""

    def whole(node: Node, views: list[View]) -> bool:
        return len(views) == sum(place.learned for place in node.places) and not any(window for _, window in views)

    return {nodes.index(node) for node, views in steps if node in nodes and not node.quadratic and whole(node, views)}


def _step(state: State, overlaps: Overlaps, node: Node, nets: Tensor) -> Tensor:
    """Improve one node in those of the networks `nets` in which that raises the objective. Returns True for these."""
    here = state.take(nets)
    gains = overlaps.gains(here, node, [(place, {}) for place in node.places if place.learned], nets)
    found = _best(here, gains, node)
    trial = State(here.permutations | found.permutations, here.signs | found.signs)
    if node.quadratic:
        before, size = overlaps.objective(here, node, nets)
        overlaps.turn(nets, found.linear)
        after, _ = overlaps.objective(trial, node, nets)
        overlaps.turn(nets, {g: rotation.mT for g, rotation in found.linear.items()})
        gain = after - before
    else:
        before, after = _values(gains, here, node), _values(gains, trial, node, found.linear)
        gain, size = (after - before).sum(1), before.abs().sum(1)
    better = gain > ROUNDING[overlaps.precision] * size
    found = found.take(better)
    state.put(nets[better], found)
    state.turn(nets[better], found.linear)
    overlaps.turn(nets[better], found.linear)
    return better


def _best(state: State, gains: Gains, node: Node) -> State:
    """The order, the signs and the rotations of one node with the greatest gain, with the rest of the network fixed."""
    found = State({}, {})
    if node.permutation is not None and gains:
        found.permutations[node.permutation] = _assign(sum(_greatest(gain, key) for key, gain in gains.items()))
    for key in (key for key in gains if isinstance(key, tuple)):
        order = _order(State(state.permutations | found.permutations, {}), node, len(gains[key]), gains[key].device)
        found.linear[key[1]] = _rotations(_at_places(gains[key], order), order)
    for key in (key for key in gains if isinstance(key, int)):
        order = _order(State(state.permutations | found.permutations, {}), node, len(gains[key]), gains[key].device)
        chosen = gains[key].take_along_dim(order[:, None], 1).squeeze(1)
        signs = torch.where(chosen < 0, -1.0, 1.0).to(state.signs[key])
        found.signs[key] = torch.empty_like(signs).scatter(1, order, signs)
    return found


def _greatest(gain: Tensor, key: int | Turn | None) -> Tensor:
    """What each unit gains at each place with the best sign, or each head with the best rotation, [nets, old, new]."""
    return gain if key is None else gain.abs() if isinstance(key, int) else torch.linalg.svdvals(gain).sum(-1)


def _at_places(overlaps: Tensor, order: Tensor) -> Tensor:
    """The products of the old head at each new place with that of the reference, [nets, places, width, width]."""
    return overlaps.take_along_dim(order[:, None, :, None, None], 1).squeeze(1)


def _rotations(chosen: Tensor, order: Tensor) -> Tensor:
    """The best rotation of each old head. It is exactly the identity if no rotation gains more than rounding.

    `chosen` holds the products at the new places.
    """
    traces, most = chosen.diagonal(dim1=-2, dim2=-1).sum(-1), torch.linalg.svdvals(chosen).sum(-1)
    same = traces >= most * (1 - ROUNDING[torch.promote_types(chosen.dtype, torch.float32)])
    turned = torch.where(same[..., None, None], torch.eye(chosen.shape[-1]).to(chosen), rotation_to(chosen))
    return torch.empty_like(turned).scatter(1, order[..., None, None].expand_as(turned), turned)


def _values(gains: Gains, state: State, node: Node, rotations: Groups = {}) -> Tensor:  # noqa: B006, never changed
    """What the units of a node add to the objective, [nets, places]. Heads are turned by `rotations` before."""
    values = 0
    for key, gain in gains.items():
        order = _order(state, node, len(gain), gain.device)
        if isinstance(key, tuple):
            chosen = _at_places(gain, order)
            turned = rotations.get(key[1])
            turned = torch.eye(chosen.shape[-1]).to(chosen) if turned is None else _placed(turned, order)
            values = values + (turned * chosen).sum((-1, -2))
            continue
        chosen = gain.take_along_dim(order[:, None], 1).squeeze(1)
        values = values + (chosen if key is None else chosen * state.signs[key].gather(1, order))
    return values


def _placed(rotations: Tensor, order: Tensor) -> Tensor:
    """The rotations of old heads at their new places."""
    return rotations.take_along_dim(order[..., None, None], 1)


def _order(state: State, node: Node, nets: int, device: torch.device) -> Tensor:
    """The order of the units of a node, [nets, units]. A node of signs alone leaves the order as it is."""
    home = node.places[0].permutation
    return torch.arange(node.units, device=device).repeat(nets, 1) if home is None else state.permutations[home]


def _assign(gains: Tensor) -> Tensor:
    """For every network the old unit at each new place, from the gains [nets, old, new].

    If every place has its greatest gain with a different unit, these units are the assignment. No other sum can be larger.
    """
    gains_here, units = gains.cpu().numpy(), np.arange(gains.shape[1])
    order = gains_here.argmax(1)
    for network in (np.sort(order, 1) != units).any(1).nonzero()[0]:
        order[network] = linear_sum_assignment(gains_here[network].T, maximize=True)[1]
    return torch.from_numpy(order).to(gains.device)
