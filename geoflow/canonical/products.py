"""Choose the matrix of every head so that both factors of its products are equally large."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.canonical import scaling
from geoflow.linear import Stretch, put_vectors_, stretches, vectors
from geoflow.spec import NetworkSpec

CHUNK = 2**24  # weights of the networks that are balanced at once

Vectors = Float[Tensor, "nets heads width _rest"]


def balance(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
    """Rescale units until their incoming weights have norm 1 (see `scaling.balance`), and then balance all products of linear maps."""
    return balance_products(spec, scaling.balance(spec, theta))


def balance_products(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
    """Balance every group of linear maps. The function stays as it was.

    Let X hold all vectors of a head that its matrix multiplies, and Y those that it divides, as columns. The network depends on the
    products alone. They have a singular value decomposition, and each factor gets the root of the singular values:

        X^T Y = U S V^T,    X <- O sqrt(S) U^T,    Y <- O sqrt(S) V^T

    Any rotation O would do. The one is taken that leaves X and Y nearest to what they were. The product itself is never formed: X and Y are
    wide and thin, so their QR decompositions come first. A direction in which the product is zero, up to rounding, is zero in both factors.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 1))
    >>> balance_products(spec, torch.tensor([-8.0, 0.5]))
    tensor([-2.,  2.])
    """
    if not spec.linear:
        return theta
    balanced = theta.clone(memory_format=torch.contiguous_format)
    nets, some = balanced.view(-1, spec.weights), max(1, CHUNK // spec.weights)
    for start in range(0, len(nets), some):
        for group in spec.linear:
            _balance_(spec, nets[start : start + some], group)
    return balanced


def _rounding(theta: Tensor) -> float:
    """The relative rounding below which a singular value counts as zero. It is that of single precision for half precision too.

    Else directions that count for a few percent of a product would be lost.
    """
    return torch.finfo(torch.promote_types(theta.dtype, torch.float32)).eps


def maps_back(
    spec: NetworkSpec, theta: Float[Tensor, "nets weights"], balanced: Float[Tensor, "nets weights"]
) -> dict[int, Float[Tensor, "nets heads width width"]]:
    """Return the maps that lead from balanced networks back to the networks `theta` that they were made of.

    It is the identity for a head whose products vanish in some direction, because what was there is lost.
    """
    found = {}
    for group, (_, width) in spec.linear.items():
        before, after = (_sides(spec, nets, group)[1][0] for nets in (theta, balanced))
        values, squares = torch.linalg.eigvalsh(after @ after.mT), after @ after.mT
        whole = values[..., 0] > _rounding(theta) * width * values[..., -1]
        eye = torch.eye(width).to(after)
        squares = torch.where(whole[..., None, None], squares, eye)
        found[group] = torch.where(whole[..., None, None], torch.linalg.solve(squares, after @ before.mT).mT, eye)
    return found


def _sides(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], group: int) -> tuple[list[list[Stretch]], list[Vectors]]:
    """The stretches that the maps of a group multiply, and those that they divide, with the vectors of each side in double precision."""
    sides = [[s for s in stretches(spec) if s.group == group and s.dual == dual] for dual in (False, True)]
    return sides, [torch.cat([vectors(spec, theta, stretch).double() for stretch in side], -1) for side in sides]


def _balance_(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], group: int) -> None:
    """Balance one group in the memory of the weights."""
    sides, stacked = _sides(spec, theta, group)
    for side, new in zip(sides, _balanced(*stacked, _rounding(theta)), strict=True):
        counts = [vectors(spec, theta[:1], s).shape[-1] for s in side]
        for stretch, values in zip(side, new.split(counts, -1), strict=True):
            put_vectors_(spec, theta, stretch, values.to(theta))


def _balanced(x: Vectors, y: Vectors, rounding: float) -> tuple[Vectors, Vectors]:
    (q, a), (p, b) = (torch.linalg.qr(side.mT) for side in (x, y))
    u, s, vh = torch.linalg.svd(a @ b.mT, full_matrices=False)
    s = torch.where(s > rounding * x.shape[-2] * s[..., :1], s, 0.0)
    new = [s.sqrt()[..., None] * (side @ thin.mT) for side, thin in ((u.mT, q), (vh, p))]
    turn = rotation_to(x @ new[0].mT + y @ new[1].mT)
    return turn @ new[0], turn @ new[1]


def rotation_to(overlap: Float[Tensor, "*batch width rank"]) -> Float[Tensor, "*batch width rank"]:
    """Return the matrix O with orthonormal columns and the greatest sum of O * overlap (Procrustes). `rank` is at most `width`.

    If overlap = A B^T, it turns B nearest to A.
    """
    u, _, vh = torch.linalg.svd(overlap, full_matrices=False)
    return u @ vh
