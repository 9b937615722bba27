"""Apply the symmetries of a network to its weight vectors."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.linear import check_maps, multiply_, random_maps
from geoflow.spec import NetworkSpec, Piece, TensorSpec

Groups = dict[int, Tensor]  # group -> [*batch units]
CHUNK = 2**20  # elements reordered at once; so few fit in the processor's cache


@dataclass(frozen=True)
class Symmetry:
    """One symmetry of a network: a factor, a sign and a new place for every unit, and matrices for the vectors of heads.

    Each field maps the number of a group in the spec to a tensor [`*batch`, units]. A group that is missing is left as it is.

    - `permutations[g][i]` is the old index of the unit that moves to place i of the group g.
    - `factors[g][i]` is the positive factor of unit i, and `signs[g][i]` is its sign, +1 or -1. They act before the permutation.
    - `linear[g][h]` is an invertible matrix [width, width]. It multiplies the vectors of head h, also before the permutation.

    >>> import torch
    >>> from geoflow.symmetry import Symmetry
    >>> swap = Symmetry(permutations={0: torch.tensor([1, 0, 2])})
    >>> swap.factors, swap.signs
    ({}, {})
    """

    permutations: Groups = field(default_factory=dict)
    factors: Groups = field(default_factory=dict)
    signs: Groups = field(default_factory=dict)
    linear: Groups = field(default_factory=dict)


def random_symmetry(spec: NetworkSpec, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Symmetry:
    """Sample a random symmetry that acts on every group of the spec.

    Permutations and signs are uniform. Factors are exp(z / 2) with a standard normal z. The tensors of the result are [units] and lie on
    the CPU. Factors, signs and matrices have the given `dtype`. See `random_maps` for the matrices.

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
        random_maps(spec, generator, dtype),
    )


def apply_symmetry(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], symmetry: Symmetry) -> Float[Tensor, "*_all weights"]:
    """Apply a symmetry to weight vectors. The networks compute the same function as before.

    Leading axes of the symmetry's tensors broadcast with those of `theta`. The result has all of them.

    Raises ValueError in the cases in which `rescale`, `flip`, `transform` and `permute` do.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))
    >>> double, reverse = {0: torch.tensor([2.0, 1.0, 1.0])}, {0: torch.tensor([2, 1, 0])}
    >>> geoflow.apply_symmetry(spec, torch.ones(10), geoflow.symmetry.Symmetry(reverse, factors=double))
    tensor([1.0000, 1.0000, 2.0000, 1.0000, 1.0000, 2.0000, 1.0000, 1.0000, 0.5000,
            1.0000])
    """
    check_factors(spec, symmetry.factors)
    check_signs(spec, symmetry.signs)
    check_orders(spec, symmetry.permutations)
    check_maps(spec, symmetry.linear)
    batches = {g: matrix.flatten(-3) for g, matrix in symmetry.linear.items()}
    moved = _copy_for(theta, symmetry.factors, symmetry.signs, symmetry.permutations, batches)  # one copy, since a zoo may fill the memory
    _multiply(spec, moved, symmetry.factors, "scaling")
    _multiply(spec, moved, symmetry.signs, "sign")
    multiply_(spec, moved, symmetry.linear)
    _reorder(spec, moved, symmetry.permutations)
    return moved


def _copy_for(theta: Float[Tensor, "*_some weights"], *groups: Groups) -> Float[Tensor, "*_all weights"]:
    """A copy of weight vectors with all leading axes that some groups have."""
    batch = torch.broadcast_shapes(theta.shape[:-1], *(values.shape[:-1] for some in groups for values in some.values()))
    return theta.expand(*batch, theta.shape[-1]).clone(memory_format=torch.contiguous_format)


def permute(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], permutations: Groups) -> Float[Tensor, "*_all weights"]:
    """Reorder the units of some groups. Place i of the group g receives the old unit `permutations[g][i]`.

    An order is a tensor of indices [`*batch`, units]. Its leading axes broadcast with those of `theta`.

    Raises ValueError for a group that the spec does not declare, a group of another size, and an order that lacks a unit.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))  # 3 weights, 3 biases, 3 weights, 1 bias
    >>> geoflow.permute(spec, torch.arange(10.0), {0: torch.tensor([2, 0, 1])})
    tensor([2., 0., 1., 5., 3., 4., 8., 6., 7., 9.])
    """
    check_orders(spec, permutations)
    moved = _copy_for(theta, permutations)
    _reorder(spec, moved, permutations)
    return moved


def _reorder(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], permutations: Groups) -> None:
    """Reorder the units of weight vectors in their own memory, one tensor after the other."""
    nets = theta.view(-1, spec.weights)
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        orders = _axis_orders(spec, tensor, permutations, theta.shape[:-1], theta.device)
        part = slice(offset, offset + tensor.numel)
        some = max(1, CHUNK // max(1, tensor.numel))
        for start in range(0, len(nets), some) if orders else ():
            chunk = slice(start, start + some)
            nets[chunk, part] = _reordered(nets[chunk, part].unflatten(1, (*tensor.shape, 1)), orders, chunk).flatten(1)


def _axis_orders(spec: NetworkSpec, tensor: TensorSpec, permutations: Groups, batch: tuple[int, ...], device) -> dict[int, Tensor]:
    """For each axis that is reordered, the old elements in their new order: [elements] or [nets, elements].

    Axes are counted from 1, because axis 0 is that of the networks.
    """
    orders = {}
    for number, axis in enumerate(tensor.axes, 1):
        if {spec.group_of(piece.owner, "permutation") for piece in axis} & set(permutations):
            order = _axis_index(spec, axis, permutations).to(device)
            orders[number] = order if order.ndim == 1 else order.expand(*batch, -1).reshape(-1, order.shape[-1])
    return orders


def _reordered(part: Float[Tensor, "nets ..."], orders: dict[int, Tensor], nets: slice) -> Float[Tensor, "nets ..."]:
    """The elements of one tensor of some networks, reordered axis by axis. Whole rows move at once."""
    for axis, order in orders.items():
        if order.ndim == 1:
            part = part.index_select(axis, order)
        else:
            own = torch.arange(len(part), device=part.device)[:, None]
            part = part.movedim(axis, 1)[own, order[nets]].movedim(1, axis)
    return part


def rescale(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], factors: Groups) -> Float[Tensor, "*_all weights"]:
    """Multiply the activation of every unit by a positive factor. The weights that read a unit are divided by its factor.

    A tensor of factors is [`*batch`, units]. Its leading axes broadcast with those of `theta`.

    Raises ValueError for a group that the spec does not declare, a group of another size, and a factor that is not positive.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))  # 2 weights, 2 biases, 2 weights, 1 bias
    >>> geoflow.rescale(spec, torch.ones(7), {0: torch.tensor([2.0, 1.0])})
    tensor([2.0000, 1.0000, 2.0000, 1.0000, 0.5000, 1.0000, 1.0000])
    """
    check_factors(spec, factors)
    return _multiplied(spec, theta, factors, "scaling")


def flip(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], signs: Groups) -> Float[Tensor, "*_all weights"]:
    """Multiply the activation of every unit by a sign, +1 or -1. The weights that read a unit are multiplied by the same sign.

    A tensor of signs is [`*batch`, units]. Its leading axes broadcast with those of `theta`.

    Raises ValueError for a group that the spec does not declare, a group of another size, and a sign that is not +1 or -1.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))  # 2 weights, 2 biases, 2 weights, 1 bias
    >>> geoflow.symmetry.flip(spec, torch.ones(7), {0: torch.tensor([-1.0, 1.0])})
    tensor([-1.,  1., -1.,  1., -1.,  1.,  1.])
    """
    check_signs(spec, signs)
    return _multiplied(spec, theta, signs, "sign")


def transform(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], maps: Groups) -> Float[Tensor, "*_all weights"]:
    """Multiply the vectors of some groups of linear maps by invertible matrices. What reads the vectors is multiplied by the inverses.

    Matrices are [`*batch`, heads, width, width]. Their leading axes broadcast with those of `theta`.

    Raises ValueError for a group that the spec does not declare, a matrix of another shape, and a matrix without an inverse.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))
    >>> geoflow.symmetry.transform(spec, torch.ones(4), {0: torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])})
    tensor([3.0000, 1.0000, 0.5000, 0.5000])
    """
    return apply_symmetry(spec, theta, Symmetry(linear=maps))


def check_factors(spec: NetworkSpec, factors: Groups) -> None:
    """Raise ValueError for a group that the spec does not declare, a group of another size, and a factor that is not positive."""
    _check_groups(spec, factors, "scaling")
    for group, factor in factors.items():
        if not (factor > 0).all():
            raise ValueError(f"Every factor must be positive, but scaling group {group} has {factor.min().item():.3g}.")


def check_signs(spec: NetworkSpec, signs: Groups) -> None:
    """Raise ValueError for a group that the spec does not declare, a group of another size, and a sign that is not +1 or -1."""
    _check_groups(spec, signs, "sign")
    for group, sign in signs.items():
        if not (is_sign := sign.abs() == 1).all():
            raise ValueError(f"Every sign must be +1 or -1, but sign group {group} has {sign[~is_sign][0].item():.3g}.")


def _check_groups(spec: NetworkSpec, groups: Groups, symmetry: str) -> None:
    declared = spec.groups(symmetry)
    for group, values in groups.items():
        if values.shape[-1] != declared.get(group):
            raise ValueError(f"There is no {symmetry} group {group} of {values.shape[-1]} units. Known (group: units): {declared}.")


def check_orders(spec: NetworkSpec, permutations: Groups) -> None:
    """Raise ValueError for a group that the spec does not declare, a group of another size, and an order that lacks a unit."""
    _check_groups(spec, permutations, "permutation")
    for group, order in permutations.items():
        units = np.arange(order.shape[-1])
        found = np.sort(order.cpu().numpy(), -1)  # numpy sorts several times as fast as torch here
        wrong = (found != units).any(-1)
        if wrong.any():
            lost = np.setdiff1d(units, found[wrong][0])[0]
            raise ValueError(f"An order of permutation group {group} lists each of {len(units)} units once. Here unit {lost} is missing.")


def _axis_index(spec: NetworkSpec, axis: tuple[Piece, ...], permutations: Groups) -> Tensor:
    parts, start = [], 0
    for piece in axis:
        units = permutations.get(spec.group_of(piece.owner, "permutation"), torch.arange(piece.size)).cpu()
        entries = units[..., None] * piece.repeat + torch.arange(piece.repeat)
        parts.append(entries.flatten(-2) + start)
        start += piece.size * piece.repeat
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def _multiplied(spec: NetworkSpec, theta: Float[Tensor, "*_some weights"], groups: Groups, symmetry: str) -> Float[Tensor, "*_all weights"]:
    if not groups:
        return theta
    moved = _copy_for(theta, groups)
    _multiply(spec, moved, groups, symmetry)
    return moved


def _multiply(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], groups: Groups, symmetry: str) -> None:
    """Multiply the elements of weight vectors in their own memory (see `TensorSpec` for the formula)."""
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        sites = {site for axis in tensor.axes for piece in axis for site in (piece.writes, piece.reads)}
        if not {spec.group_of(site, symmetry) for site in sites} & set(groups):
            continue
        factor = theta.new_ones(1)
        for axis in tensor.axes:
            along = _axis_factor(spec, tensor, axis, groups, symmetry, theta)
            factor = (factor.unsqueeze(-1) * along.unsqueeze(-2)).flatten(-2)
        theta[..., offset : offset + tensor.numel] *= factor


def _axis_factor(spec: NetworkSpec, tensor: TensorSpec, axis: tuple[Piece, ...], groups: Groups, symmetry: str, like: Tensor) -> Tensor:
    parts = []
    for piece in axis:
        one = like.new_ones(piece.size)
        written = groups.get(spec.group_of(piece.writes, symmetry), one).to(like)
        read = groups.get(spec.group_of(piece.reads, symmetry), one).to(like)
        parts.append((written**tensor.degree / read).repeat_interleave(piece.repeat, -1))
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)
