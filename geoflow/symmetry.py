"""Act on weight vectors with the symmetries that the spec declares."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.spec import NetworkSpec, Piece, TensorSpec

Groups = dict[int, Tensor]  # group -> [*batch units]
CHUNK = 2**20  # entries reordered at once: they stay in the cache


@dataclass(frozen=True)
class Symmetry:
    """One element of the symmetry group: rescaled and flipped first, permuted then.

    `permutations[g][i]` is the old unit that comes to place i; `factors` are positive, `signs` are +-1. A missing group is left alone.
    """

    permutations: Groups = field(default_factory=dict)
    factors: Groups = field(default_factory=dict)
    signs: Groups = field(default_factory=dict)


def random_symmetry(spec: NetworkSpec, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Symmetry:
    """A random element of ALL declared symmetries: uniform permutations and signs, log-normal positive factors.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).double()
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4).double())
    >>> theta = geoflow.pack(spec, network.state_dict())
    >>> moved = geoflow.apply_symmetry(spec, theta, geoflow.random_symmetry(spec, torch.Generator().manual_seed(0)))
    >>> x = torch.randn(5, 4).double()
    >>> other = torch.func.functional_call(network, geoflow.unpack(spec, moved), x)
    >>> bool(torch.allclose(other, network(x), atol=1e-12))
    True
    """
    draw = {"generator": generator, "dtype": dtype}
    return Symmetry(
        {g: torch.randperm(n, generator=generator) for g, n in spec.groups("permutation").items()},
        {g: torch.randn(n, **draw).mul(0.5).exp() for g, n in spec.groups("scaling").items()},
        {g: torch.randint(0, 2, (n,), generator=generator).to(dtype) * 2 - 1 for g, n in spec.groups("sign").items()},
    )


def apply_symmetry(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], symmetry: Symmetry) -> Float[Tensor, "*batch weights"]:
    """The weights after a symmetry; the network's function stays as it was."""
    scaled = rescale(spec, theta, symmetry.factors)
    return permute(spec, flip(spec, scaled, symmetry.signs), symmetry.permutations)


def permute(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], permutations: Groups) -> Float[Tensor, "*batch weights"]:
    """Reorder units group by group: place i of group g receives the old unit `permutations[g][i]`.

    Raises ValueError for a group that the spec does not declare, one of another size, and an order that lacks a unit.
    """
    _check_groups(spec, permutations, "permutation")
    _check_orders(permutations)
    batch = torch.broadcast_shapes(theta.shape[:-1], *(order.shape[:-1] for order in permutations.values()))
    nets = theta.expand(*batch, spec.weights).reshape(-1, spec.weights)
    moved = nets.new_empty(nets.shape)
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        part = slice(offset, offset + tensor.numel)
        orders = _axis_orders(spec, tensor, permutations, batch, theta.device)
        some = max(1, CHUNK // max(1, tensor.numel))
        for start in range(0, len(nets), some):
            chunk = slice(start, start + some)
            moved[chunk, part] = _reorder(nets[chunk, part].unflatten(1, (*tensor.shape, 1)), orders, chunk).flatten(1)
    return moved.view(*batch, spec.weights)


def _axis_orders(spec: NetworkSpec, tensor: TensorSpec, permutations: Groups, batch: tuple[int, ...], device) -> dict[int, Tensor]:
    """For each axis (counted from 1) that is reordered, the old entries in their new order: [entries], or [nets, entries]."""
    orders = {}
    for number, axis in enumerate(tensor.axes, 1):
        if {spec.group_of(piece.owner, "permutation") for piece in axis} & set(permutations):
            order = _axis_index(spec, axis, permutations).to(device)
            orders[number] = order if order.ndim == 1 else order.expand(*batch, -1).reshape(-1, order.shape[-1])
    return orders


def _reorder(part: Float[Tensor, "nets ..."], orders: dict[int, Tensor], nets: slice) -> Float[Tensor, "nets ..."]:
    """Some networks' entries of one tensor, reordered axis by axis: whole rows move at once."""
    for axis, order in orders.items():
        if order.ndim == 1:
            part = part.index_select(axis, order)
        else:
            own = torch.arange(len(part), device=part.device)[:, None]
            part = part.movedim(axis, 1)[own, order[nets]].movedim(1, axis)
    return part


def rescale(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], factors: Groups) -> Float[Tensor, "*batch weights"]:
    """Multiply every unit's activation by a positive factor; what reads it is divided by the same factor.

    Raises ValueError for a group that the spec does not declare, one of another size, and a factor that is not positive.
    """
    _check_groups(spec, factors, "scaling")
    for group, factor in factors.items():
        if not (factor > 0).all():
            raise ValueError(f"Factors must be positive; scaling group {group} has {factor.min().item():.3g}.")
    return theta if not factors else theta * _factor(spec, factors, "scaling", theta)


def flip(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], signs: Groups) -> Float[Tensor, "*batch weights"]:
    """Multiply every unit's activation by +-1, and what reads it by the same sign.

    Raises ValueError for a group that the spec does not declare, one of another size, and a sign that is not +-1.
    """
    _check_groups(spec, signs, "sign")
    for group, sign in signs.items():
        if not (is_sign := sign.abs() == 1).all():
            raise ValueError(f"Signs must be +1 or -1; sign group {group} has {sign[~is_sign][0].item():.3g}.")
    return theta if not signs else theta * _factor(spec, signs, "sign", theta)


def _check_groups(spec: NetworkSpec, groups: Groups, symmetry: str) -> None:
    declared = spec.groups(symmetry)
    for group, values in groups.items():
        if values.shape[-1] != declared.get(group):
            raise ValueError(f"There is no {symmetry} group {group} of {values.shape[-1]} units; declared (group: units): {declared}.")


def _check_orders(permutations: Groups) -> None:
    for group, order in permutations.items():
        units = np.arange(order.shape[-1])
        found = np.sort(order.cpu().numpy(), -1)  # several times as fast as torch's
        wrong = (found != units).any(-1)
        if wrong.any():
            lost = np.setdiff1d(units, found[wrong][0])[0]
            raise ValueError(f"An order of permutation group {group} names each of its {len(units)} units once; unit {lost} is missing.")


def _axis_index(spec: NetworkSpec, axis: tuple[Piece, ...], permutations: Groups) -> Tensor:
    parts, start = [], 0
    for piece in axis:
        units = permutations.get(spec.group_of(piece.owner, "permutation"), torch.arange(piece.size)).cpu()
        entries = units[..., None] * piece.repeat + torch.arange(piece.repeat)
        parts.append(entries.flatten(-2) + start)
        start += piece.size * piece.repeat
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def _factor(spec: NetworkSpec, groups: Groups, symmetry: str, like: Tensor) -> Tensor:
    """What each entry of the weight vector is multiplied with: prod(written) ** degree / prod(read)."""
    parts = []
    batch = torch.broadcast_shapes(*(g.shape[:-1] for g in groups.values())) if groups else ()
    for tensor in spec.tensors:
        factor = torch.ones((*batch, 1), dtype=like.dtype, device=like.device)
        for axis in tensor.axes:
            along = _axis_factor(spec, tensor, axis, groups, symmetry, like).expand(*batch, -1)
            factor = (factor.unsqueeze(-1) * along.unsqueeze(-2)).flatten(-2)
        parts.append(factor)
    return torch.cat(parts, -1)


def _axis_factor(spec: NetworkSpec, tensor: TensorSpec, axis: tuple[Piece, ...], groups: Groups, symmetry: str, like: Tensor) -> Tensor:
    parts = []
    for piece in axis:
        one = like.new_ones(piece.size)
        written = groups.get(spec.group_of(piece.writes, symmetry), one).to(like)
        read = groups.get(spec.group_of(piece.reads, symmetry), one).to(like)
        parts.append((written**tensor.degree / read).repeat_interleave(piece.repeat, -1))
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)
