"""Define the manifolds on which weight vectors lie: products of unit spheres and flat space."""

from collections.abc import Callable, Iterator, Sequence

import geoopt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.pieces import pieces_of

CHECK = {"atol": 1e-5, "rtol": 1e-5}  # geoopt's own tolerances


class Sphere(geoopt.Sphere):
    """The unit sphere of geoopt, with maps that are exact at every angle in both precisions and have finite gradients.

    geoopt clamps an arccosine, which in float32 bounds its distances by 0.0141 and 3.127. It also divides by |u| at u = 0. Here the angle
    is atan2(|w|, <x, y>), where w is the part of y orthogonal to x. w is computed from y -+ x, so nothing cancels at either end. One map
    is less exact: near pi, `transp` loses the digits that x and -y lose when they are added.

    Between exactly antipodal points every great circle is a shortest path. The maps take the one through the tangent vector towards the
    coordinate axis that is farthest from x. Parallel transport is then the reflection that swaps x and -y, which is an isometry.

    >>> import torch
    >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-5])
    >>> print(f"{Sphere().dist(x, y).item():.1e} {geoopt.Sphere().dist(x, y).item():.1e}")
    1.0e-05 1.4e-02
    """

    def dist(self, x: Float[Tensor, "*#a dim"], y: Float[Tensor, "*#a dim"], *, keepdim: bool = False) -> Tensor:
        """Return the angle between x and y."""
        aside, cosine = self._aside(x, y)
        angle = torch.atan2(torch.linalg.vector_norm(aside, dim=-1, keepdim=True), cosine)
        return angle if keepdim else angle.squeeze(-1)

    def expmap(self, x: Float[Tensor, "*#a dim"], u: Float[Tensor, "*#a dim"]) -> Float[Tensor, "*a dim"]:
        """Return exp_x(u) = cos|u| x + sinc|u| u."""
        angle = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        return torch.cos(angle) * x + _sinc(angle) * u

    def logmap(self, x: Float[Tensor, "*#a dim"], y: Float[Tensor, "*#a dim"]) -> Float[Tensor, "*a dim"]:
        """Return the tangent vector u at x with exp_x(u) = y and |u| <= pi."""
        aside, cosine = self._aside(x, y)
        sine = torch.linalg.vector_norm(aside, dim=-1, keepdim=True)
        apart = sine > 0
        scale = torch.where(apart, torch.atan2(sine, cosine) / torch.where(apart, sine, 1.0), 1.0)
        antipodal = ~apart & (cosine < 0)
        return scale * aside + antipodal * (torch.pi * self._detour(x))

    def transp(self, x: Float[Tensor, "*#a dim"], y: Float[Tensor, "*#a dim"], v: Float[Tensor, "*#a dim"]) -> Float[Tensor, "*a dim"]:
        """Transport v in parallel from x to y along their geodesic.

        The result is v - 2 <m, v> m, where m is the middle of the geodesic.
        """
        middle = x + y
        length = torch.linalg.vector_norm(middle, dim=-1, keepdim=True)
        apart = length > 0
        middle = middle / torch.where(apart, length, 1.0) + ~apart * self._detour(x)
        return v - 2 * (middle * v).sum(-1, keepdim=True) * middle

    def interpolate(self, x_0: Float[Tensor, "*#a dim"], x_1: Float[Tensor, "*#a dim"], t: Float[Tensor, "*#a"]) -> tuple[Tensor, Tensor]:
        """Return the point x_t = exp_{x_0}(t log_{x_0} x_1) and its velocity dx_t.

        The length of the velocity is the distance of the ends.
        """
        u, t = self.logmap(x_0, x_1), t.unsqueeze(-1)
        angle = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        cosine, sine = torch.cos(t * angle), torch.sin(t * angle)
        return cosine * x_0 + t * _sinc(t * angle) * u, cosine * u - angle * sine * x_0

    def random_uniform(self, *size: int, generator: torch.Generator | None = None, dtype=None, device=None) -> Tensor:
        """Return uniformly distributed points of the given full shape, as a plain tensor."""
        self._assert_check_shape(size, "x")
        return self.projx(torch.randn(*size, generator=generator, dtype=dtype, device=device))

    random = random_uniform

    def _aside(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of y orthogonal to x, and <x, y>.

        x is subtracted from y, or added near pi, before the projection, so nothing cancels.
        """
        cosine = (x * y).sum(-1, keepdim=True)
        return self.proju(x, y - torch.where(cosine < 0, -1, 1) * x), cosine

    def _detour(self, x: Tensor) -> Tensor:
        """Return the unit tangent vector at x towards the coordinate axis with the longest projection on the tangent space."""
        share = 1.0 if self.projector is None else self.projector.diagonal(dim1=-2, dim2=-1)
        x = x.detach()
        axis = (share - x * x).argmax(-1, keepdim=True)
        return self.projx(self.proju(x, torch.zeros_like(x).scatter(-1, axis, 1.0)))


class Product(geoopt.Manifold):
    """The manifold of vectors [*batch, size] in which some groups of coordinates are unit spheres and all other coordinates are flat.

    `spheres` holds index tensors [count, dim]. Each gives the coordinates of `count` spheres of one dimension, which are computed in one
    operation. Without spheres this is Euclidean space. Index tensors follow the device of the vectors.

    Raises ValueError for an index out of range, for a coordinate in two spheres, and for spheres with dim 1, which are only two points.

    >>> import torch
    >>> manifold = Product(5, (torch.tensor([[0, 1], [2, 3]]),))
    >>> x = manifold.random(7, 5, generator=torch.Generator().manual_seed(0))
    >>> x[:, :2].norm(dim=-1).allclose(torch.ones(7)), x.shape
    (True, torch.Size([7, 5]))
    """

    ndim = 1
    name = "Product"
    reversible = False

    def __init__(self, size: int, spheres: Sequence[Int[Tensor, "_count _dim"]] = ()):
        super().__init__()
        self.size, self.spheres, self.sphere = size, tuple(index.cpu() for index in spheres), Sphere()
        _check_spheres(size, self.spheres)
        self._pieces = pieces_of(size, self.spheres)

    def extra_repr(self) -> str:
        return f"{self.size}, spheres={[tuple(index.shape) for index in self.spheres]}"

    def split(self, x: Float[Tensor, "*batch size"]) -> list[Tensor]:
        """Split a vector into its parts: flat ones [*batch, n] and stacks of spheres [*batch, count, dim]."""
        if x.shape[-1] != self.size:
            raise ValueError(
                f"A vector of {x.shape[-1]} coordinates is not on a product manifold of {self.size}. Pass vectors [*batch, {self.size}]."
            )
        return self._pieces.split(x)

    def join(self, parts: Sequence[Tensor]) -> Float[Tensor, "*batch size"]:
        """Undo `split`."""
        return self._pieces.join(parts)

    def proju(self, x: Float[Tensor, "*#batch size"], u: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the tangent part of u at x."""
        return self._each(self.sphere.proju, lambda x, u: u.expand(torch.broadcast_shapes(x.shape, u.shape)), x, u)

    egrad2rgrad = proju

    def projx(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the nearest point of the manifold."""
        return self._each(self.sphere.projx, lambda x: x, x)

    def expmap(self, x: Float[Tensor, "*#batch size"], u: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the end of the geodesic that leaves x with velocity u, at time 1."""
        return self._each(self.sphere.expmap, torch.add, x, u)

    def retr(self, x: Float[Tensor, "*#batch size"], u: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Return projx(x + u), which agrees with expmap to second order."""
        return self._each(self.sphere.retr, torch.add, x, u)

    def logmap(self, x: Float[Tensor, "*#batch size"], y: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the velocity at x of the geodesic that reaches y at time 1."""
        return self._each(self.sphere.logmap, lambda x, y: y - x, x, y)

    def transp(self, x: Tensor, y: Tensor, v: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Transport v in parallel from x to y."""
        return self._each(self.sphere.transp, lambda x, y, v: v.expand(torch.broadcast_shapes(x.shape, y.shape, v.shape)), x, y, v)

    def interpolate(
        self, x_0: Float[Tensor, "*#batch size"], x_1: Float[Tensor, "*#batch size"], t: Float[Tensor, "*#batch"]
    ) -> tuple[Float[Tensor, "*batch size"], Float[Tensor, "*batch size"]]:
        """Return x_t on the geodesic from x_0 to x_1, and its velocity dx_t. See `Sphere` for antipodal points."""
        curve = self.sphere.interpolate
        ends = [curve(a, b, t.unsqueeze(-1)) if sphere else _straight(a, b, t) for sphere, (a, b) in self._pairs(x_0, x_1)]
        return self.join([x_t for x_t, _ in ends]), self.join([dx_t for _, dx_t in ends])

    def inner(self, x: Tensor, u: Float[Tensor, "*#batch size"], v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Return the sum of products over all coordinates. The metric is that of the surrounding space."""
        inner = (u * (u if v is None else v)).sum(-1, keepdim=keepdim)
        return inner.expand(torch.broadcast_shapes(x.shape[:-1] + (1,) * keepdim, inner.shape))

    def dist(self, x: Float[Tensor, "*#batch size"], y: Float[Tensor, "*#batch size"], *, keepdim: bool = False) -> Tensor:
        """Return the geodesic distance, which is the root of the summed squares of angles and of flat differences."""
        gaps = [self.sphere.dist(a, b) if sphere else b - a for sphere, (a, b) in self._pairs(x, y)]
        return torch.linalg.vector_norm(torch.cat(gaps, -1), dim=-1, keepdim=keepdim)

    def cosines(self, x: Float[Tensor, "*#batch size"], y: Float[Tensor, "*#batch size"]) -> Float[Tensor, "*batch size"]:
        """Return the inner product of x and y on each sphere, in each of the sphere's coordinates. Flat coordinates get 0."""
        return self._each(lambda a, b: (a * b).sum(-1, keepdim=True).expand_as(a * b), lambda a, b: torch.zeros_like(a * b), x, y)

    def pairwise(self, x: Float[Tensor, "n size"], y: Float[Tensor, "m size"]) -> Float[Tensor, "n m"]:
        """Return the squared geodesic distances of all pairs, by matrix products. Do not use it for gradients.

        Angles come from cosines here. In float32 a squared angle is exact to 1e-6, rising to 3e-3 near pi.
        """
        total = x.new_zeros(len(x), len(y))
        for sphere, (a, b) in self._pairs(x, y):
            if sphere:
                total += (a.transpose(0, 1) @ b.permute(1, 2, 0)).clamp(-1, 1).acos().square().sum(0)
            else:
                total += torch.cdist(a, b).square()
        return total

    def random(self, *size: int, generator: torch.Generator | None = None, dtype=None, device=None) -> Float[Tensor, "*batch size"]:
        """Return random points of the given full shape, as a plain tensor.

        They are uniform on the spheres and standard normal in flat coordinates.
        """
        self._assert_check_shape(size, "x")
        return self.projx(torch.randn(*size, generator=generator, dtype=dtype, device=device))

    def _pairs(self, *vectors: Tensor) -> Iterator[tuple[bool, tuple[Tensor, ...]]]:
        """Return the corresponding parts of several vectors, each with whether it is a stack of spheres."""
        parts = zip(*(self.split(vector) for vector in vectors), strict=True)
        return zip(self._pieces.curved, parts, strict=True)

    def _each(self, curved: Callable, flat: Callable, *vectors: Tensor) -> Tensor:
        return self.join([curved(*part) if sphere else flat(*part) for sphere, part in self._pairs(*vectors)])

    def _check_shape(self, shape, name):
        if tuple(shape[-1:]) != (self.size,):
            return False, f"`{name}` has shape {tuple(shape)}, its last axis should have {self.size} coordinates"
        return True, None

    def _check_point_on_manifold(self, x, *, atol=CHECK["atol"], rtol=CHECK["rtol"]):
        return self._all(self.sphere._check_point_on_manifold, x, atol=atol, rtol=rtol)

    def _check_vector_on_tangent(self, x, u, *, atol=CHECK["atol"], rtol=CHECK["rtol"]):
        return self._all(self.sphere._check_vector_on_tangent, x, u, atol=atol, rtol=rtol)

    def _all(self, check: Callable, *vectors: Tensor, **tolerance: float) -> tuple[bool, str | None]:
        for sphere, part in self._pairs(*vectors):
            ok, reason = check(*part, **tolerance) if sphere else (True, None)
            if not ok:
                return False, reason
        return True, None


def _straight(x_0: Tensor, x_1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x_t = x_0 + t.unsqueeze(-1) * (x_1 - x_0)
    return x_t, (x_1 - x_0).expand(x_t.shape)


def _sinc(angle: Tensor) -> Tensor:
    """Return sin(angle) / angle, which is smooth at 0."""
    return torch.sinc(angle / torch.pi)


def _check_spheres(size: int, spheres: Sequence[Tensor]) -> None:
    for index in spheres:
        if index.ndim != 2 or index.shape[1] < 2:
            raise ValueError(f"Spheres need an index [count, dim] with dim >= 2, not {tuple(index.shape)}. Leave single coordinates flat.")
    used = torch.cat([index.flatten() for index in spheres]) if spheres else torch.empty(0, dtype=torch.long)
    if len(used) and (used.min() < 0 or used.max() >= size):
        raise ValueError(f"Spheres use coordinates {int(used.min())} to {int(used.max())} of a vector of {size}.")
    coordinates, times = used.unique(return_counts=True)
    if (times > 1).any():
        raise ValueError(f"Coordinate {int(coordinates[times > 1][0])} belongs to two spheres. Leave it out of one.")
