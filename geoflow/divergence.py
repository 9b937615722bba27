"""Compute the divergence of a field on a product of spheres and flat space, exactly or by random probes."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from geoflow.constants import beside
from geoflow.manifolds import Product

Field = Callable[[Tensor, Tensor], Tensor]  # (x [nets, size], t []) -> tangent vectors [nets, size]
Measured = tuple[Tensor, Tensor]  # velocities [nets, size], and divergences [probes, nets]
Divergence = Callable[[Field, Tensor, Tensor], Measured]


def exact(manifold: Product, rows: int) -> Divergence:
    """Return the function (v, x, t) -> (v(x, t), its divergence [1, nets]), for tangent fields that treat every network by itself.

    The divergence is the trace of the derivative over an orthonormal basis e_i of the tangent space at x:

        div v = sum over i of <e_i, D v(x) e_i>

    Here D is the derivative in the surrounding space. A tangent field may be continued off the spheres in any way, because a tangent e_i
    does not see it. For each network the cost is one forward pass, and one backward pass for each dimension of the manifold. Passes are
    made for `rows` networks at once. If there are fewer, several directions share a pass.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0, 2.0]])  # a circle, and a line
    >>> manifold = Product(3, (torch.tensor([[0, 1]]),))
    >>> exact(manifold, 8)(lambda x, t: manifold.proju(x, x * x.new_tensor([1.0, 3.0, 5.0])), x, torch.tensor(0.0))[1]  # 3 - 1 + 5
    tensor([[7.]])
    """
    last = dimension(manifold)

    def measure(v: Field, x: Float[Tensor, "nets size"], t: Tensor) -> Measured:
        ways = min(max(1, rows // len(x)), last)
        parts = (tangent_basis(manifold, x, torch.arange(first, min(first + ways, last))) for first in range(0, last, ways))
        value, along = _along(v, x, t, parts, ways)
        return value, along.sum(0, keepdim=True)

    return measure


def estimated(manifold: Product, rows: int, probes: int, generator: torch.Generator, fresh: bool = True) -> Divergence:
    """Return the function (v, x, t) -> (v(x, t), independent unbiased estimates of its divergence [probes, nets]).

    A probe e is a random sign in each coordinate, projected on the tangent space at x. Then E[e e^T] is that projection, so

        E <e, D v(x) e> = div v

    All networks share the signs, so no estimate depends on the networks beside it. With `fresh`, each call draws new signs, and the errors
    of many calls cancel. Without it all calls share their signs, and the estimate is as smooth in x and t as the divergence. The cost is
    one forward pass, and one backward pass for each probe.

    Sources: Hutchinson 1990; for flows Grathwohl et al., FFJORD, 2019.

    >>> import torch
    >>> line = Product(1)
    >>> estimated(line, 8, 2, torch.Generator())(lambda x, t: 3 * x, torch.ones(1, 1), torch.tensor(0.0))[1]
    tensor([[3.],
            [3.]])
    """

    def draw() -> Float[Tensor, "probes 1 size"]:
        return torch.randint(0, 2, (probes, 1, manifold.size), generator=generator) * 2.0 - 1

    kept = None if fresh else draw()

    def measure(v: Field, x: Float[Tensor, "nets size"], t: Tensor) -> Measured:
        signs, ways = (draw() if kept is None else kept).to(x), min(max(1, rows // len(x)), probes)
        return _along(v, x, t, (manifold.proju(x.expand(len(some), *x.shape), some) for some in signs.split(ways)), ways)

    return measure


def _along(v: Field, x: Float[Tensor, "nets size"], t: Tensor, parts: Iterator[Float[Tensor, "_ways nets size"]], ways: int) -> Measured:
    """Return v(x, t), and <e, D v(x) e> for each direction e and network. A part holds at most `ways` directions at every x.

    The networks are copied `ways` times. One forward pass of the copies serves the backward passes of all parts.
    """
    copies, found = x.detach().repeat(ways, 1).requires_grad_(), []
    with torch.enable_grad():
        value = v(copies, t)
    for directions in parts:
        padded = value.new_zeros(ways, *x.shape)
        padded[: len(directions)] = directions
        (pulled,) = torch.autograd.grad(value, copies, padded.flatten(0, 1), retain_graph=True)
        found.append((pulled.view_as(padded) * padded).sum(-1)[: len(directions)])
    return value.detach()[: len(x)], torch.cat(found)


def dimension(manifold: Product) -> int:
    """Return the dimension of the manifold. A sphere has one less than it has coordinates.

    >>> dimension(Product(5, (torch.tensor([[0, 1, 2]]),)))
    4
    """
    return manifold.size - sum(len(index) for index in manifold.spheres)


def tangent_basis(manifold: Product, x: Float[Tensor, "nets size"], which: Int[Tensor, " ways"]) -> Float[Tensor, "ways nets size"]:
    """Return vectors of an orthonormal basis of the tangent space at each x, by their numbers from 0 to `dimension` - 1.

    In flat space they are unit vectors. On a sphere with w = x + sign(x_1) e_1 the reflection 1 - 2 w w^T / |w|^2 takes the first axis to x
    or -x. So it takes the other axes to a basis of the tangent space.

    >>> sphere = Product(3, (torch.arange(3)[None],))
    >>> tangent_basis(sphere, torch.tensor([[0.0, 0.6, 0.8]]), torch.arange(2))
    tensor([[[-0.6000,  0.6400, -0.4800]],
    <BLANKLINE>
            [[-0.8000, -0.4800,  0.3600]]])
    """
    sphere, first = (beside(one, x) for one in _layout(manifold))
    axes = (~first).nonzero().squeeze(1)[which.to(x.device)]
    w = torch.where(sphere < 0, 0.0, x + torch.where(first, torch.where(x < 0, -1.0, 1.0), 0.0).to(x))
    squared = torch.where(sphere < 0, 1.0, manifold.cosines(w, w))
    reflected = (2 * w / squared)[:, axes].T[..., None] * w * (sphere == sphere[axes, None, None])
    return one_hot(axes, manifold.size).to(x)[:, None] - reflected


@lru_cache(maxsize=16)
def _layout(manifold: Product) -> tuple[Int[Tensor, " size"], Bool[Tensor, " size"]]:
    """Return for each coordinate the number of its sphere, or -1, and whether it is the first of a sphere."""
    sphere, first, number = torch.full((manifold.size,), -1), torch.zeros(manifold.size, dtype=torch.bool), 0
    for index in manifold.spheres:
        sphere[index] = number + torch.arange(len(index))[:, None]
        first[index[:, 0]] = True
        number += len(index)
    return sphere, first
