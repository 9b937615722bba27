"""The manifold's maps agree with closed forms at every angle, in both precisions, and geoopt's own do not."""

import math

import geoopt
import pytest
import torch

from geoflow.manifolds import Product, Sphere
from geoflow.paths import geodesic

DTYPES = (torch.float32, torch.float64)
ANGLES = (1e-6, 1e-5, 1e-3, 0.1, 1.0, math.pi / 2, 3.0, 3.13)
CASES = {
    "euclidean": Product(6),
    "views": Product(12, (torch.arange(2, 8).reshape(2, 3), torch.arange(8, 12).reshape(2, 2))),
    "one stretch": Product(6, (torch.arange(6).reshape(2, 3),)),
    "interleaved": Product(11, (torch.arange(10).reshape(5, 2).T,)),
    "out of order": Product(9, (torch.tensor([[8, 7, 6]]), torch.tensor([[0, 2], [1, 3]]))),
}
manifolds = pytest.mark.parametrize("manifold", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
angles = pytest.mark.parametrize("angle", ANGLES)


def tolerance(dtype):
    """Fifty roundings: a map is some ten operations on vectors of a few entries."""
    return 50 * torch.finfo(dtype).eps


def pair(angle, dtype, dim=5, count=100):
    """Points at a known angle, and the unit tangent between them; rounded once, from float64."""
    generator = torch.Generator().manual_seed(dim)
    x, e = torch.linalg.qr(torch.randn(count, dim, 2, generator=generator, dtype=torch.float64))[0].unbind(-1)
    return x.to(dtype), (math.cos(angle) * x + math.sin(angle) * e).to(dtype), e.to(dtype)


@dtypes
@angles
def test_sphere_agrees_with_the_closed_form(angle, dtype):
    x, y, e = pair(angle, dtype)
    sphere, atol = Sphere(), tolerance(dtype)
    lost = atol / math.sin(angle)  # the direction of y - x, or of y + x, is known to eps / sin(angle) only
    assert (sphere.dist(x, y) - angle).abs().max() < atol
    assert (sphere.logmap(x, y) - angle * e).abs().max() < atol + angle * min(lost, 1.0)
    assert (sphere.expmap(x, angle * e) - y).abs().max() < atol
    assert (sphere.expmap(x, sphere.logmap(x, y)) - y).abs().max() < atol
    assert (sphere.logmap(x, y) * x).sum(-1).abs().max() < atol


@dtypes
@angles
def test_transport_is_an_isometry_along_the_geodesic(angle, dtype):
    x, y, e = pair(angle, dtype)
    sphere, atol = Sphere(), tolerance(dtype)
    v = sphere.proju(x, torch.roll(x, 1, -1) + e)
    moved = sphere.transp(x, y, v)
    along = math.cos(angle) * e - math.sin(angle) * x  # where the geodesic's own direction goes
    assert (sphere.inner(y, moved) - sphere.inner(x, v)).abs().max() < atol
    lost = atol / math.cos(angle / 2)  # x + y, the axis of the reflection, is known to eps / |x + y| only
    assert (moved * y).sum(-1).abs().max() < lost
    assert (sphere.transp(x, y, e) - along).abs().max() < lost
    assert (sphere.transp(y, x, moved) - v).abs().max() < atol


def test_geoopt_fails_where_ours_holds():
    broken, sound = geoopt.Sphere(), Sphere()
    x, y, e = pair(1e-5, torch.float32)
    assert broken.dist(x, y).min() > 0.014 and sound.dist(x, y).max() < 1.1e-5
    assert broken.logmap(x, y).norm(dim=-1).max() > 1e-4 and sound.logmap(x, y).norm(dim=-1).max() < 1.1e-5
    x, y, e = pair(3.14, torch.float32)
    assert broken.dist(x, y).max() < 3.13 and sound.dist(x, y).min() > 3.139
    x, y, e = pair(1.0, torch.float64)
    assert (broken.transp(x, y, e).norm(dim=-1) - 1).abs().min() > 0.1 and (sound.transp(x, y, e).norm(dim=-1) - 1).abs().max() < 1e-12
    for sphere, finite in ((broken, False), (sound, True)):
        u = torch.zeros(3, requires_grad=True)
        sphere.expmap(torch.tensor([1.0, 0.0, 0.0]), u).sum().backward()
        assert u.grad.isfinite().all() == finite


@dtypes
@pytest.mark.parametrize("map_name", ["dist", "logmap", "expmap", "transp"])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1.0, 3.13, math.pi])
def test_gradients_are_finite(angle, map_name, dtype):
    x, y, e = pair(angle, dtype)
    second = {"expmap": angle * e}.get(map_name, x.clone() if angle == 0 else -x if angle == math.pi else y)
    inputs = [x.requires_grad_(), second.detach().requires_grad_(), *([e] if map_name == "transp" else [])]
    getattr(Sphere(), map_name)(*inputs).sum().backward()
    assert inputs[0].grad.isfinite().all() and inputs[1].grad.isfinite().all()


@dtypes
def test_the_derivative_at_zero_is_the_identity(dtype):
    x, _, _ = pair(1.0, dtype, count=1)
    jacobian = torch.autograd.functional.jacobian(lambda u: Sphere().expmap(x[0], u), torch.zeros_like(x[0]))
    assert torch.allclose(jacobian, torch.eye(5, dtype=dtype))
    jacobian = torch.autograd.functional.jacobian(lambda y: Sphere().logmap(x[0], y), x[0].clone())
    assert torch.allclose(jacobian, torch.eye(5, dtype=dtype) - torch.outer(x[0], x[0]), atol=tolerance(dtype))


@dtypes
@pytest.mark.parametrize("dim", [2, 3, 7])
def test_antipodes_are_joined_by_a_great_circle(dim, dtype):
    x = torch.cat([Sphere().random(20, dim, dtype=dtype, generator=torch.Generator().manual_seed(0)), torch.eye(dim, dtype=dtype)])
    sphere, t = Sphere(), torch.linspace(0, 1, 5, dtype=dtype)[:, None]
    u = sphere.logmap(x, -x)
    x_t, dx_t = sphere.interpolate(x, -x, t)
    atol = tolerance(dtype)
    assert torch.allclose(sphere.dist(x, -x), torch.tensor(math.pi, dtype=dtype)) and torch.allclose(u.norm(dim=-1), sphere.dist(x, -x))
    assert torch.allclose(x_t[-1], -x, atol=atol) and torch.allclose(x_t.norm(dim=-1), torch.ones((), dtype=dtype))
    assert torch.allclose(sphere.transp(x, -x, u), dx_t[-1], atol=atol)


def test_a_subspace_is_kept():
    sphere = Sphere(intersection=torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
    x = sphere.random(50, 3, generator=torch.Generator().manual_seed(0))
    for y in (x.roll(1, 0), x, -x):
        assert sphere.check_point_on_manifold(sphere.expmap(x, sphere.logmap(x, y)), atol=1e-6)
        assert torch.allclose(sphere.expmap(x, sphere.logmap(x, y)), y, atol=1e-5)


@manifolds
@dtypes
def test_product_maps(manifold, dtype, generator):
    x, y, noise = (torch.randn(3, 4, manifold.size, generator=generator, dtype=dtype) for _ in range(3))
    x, y, atol = manifold.projx(x), manifold.projx(y), 10 * tolerance(dtype)
    u, v = manifold.logmap(x, y), manifold.proju(x, noise)
    for point in (x, manifold.expmap(x, v), manifold.retr(x, v), manifold.random(2, manifold.size, generator=generator)):
        manifold.assert_check_point_on_manifold(point)
    for tangent in (u, v):
        manifold.assert_check_vector_on_tangent(x, tangent)
    manifold.assert_check_vector_on_tangent(y, manifold.transp(x, y, v))
    assert torch.allclose(manifold.expmap(x, u), y, atol=atol)
    assert torch.allclose(manifold.projx(x), x, atol=atol) and torch.allclose(manifold.proju(x, v), v, atol=atol)
    assert torch.allclose(manifold.norm(x, u), manifold.dist(x, y), atol=atol)
    assert torch.allclose(manifold.inner(y, manifold.transp(x, y, u), manifold.transp(x, y, v)), manifold.inner(x, u, v), atol=atol)
    near = 1e-3 * v
    assert torch.allclose(manifold.retr(x, near), manifold.expmap(x, near), atol=1e-6)


@manifolds
def test_product_is_its_factors(manifold, generator):
    """Sphere by sphere through geoopt in float64, at angles where geoopt is exact."""
    x, y = (manifold.random(2, manifold.size, generator=generator, dtype=torch.float64) for _ in range(2))
    flat = torch.ones(manifold.size, dtype=torch.bool)
    u, squared = manifold.logmap(x, y), 0
    for row in (row for index in manifold.spheres for row in index):
        flat[row] = False
        assert torch.allclose(u[:, row], geoopt.Sphere().logmap(x[:, row], y[:, row]))
        squared = squared + geoopt.Sphere().dist2(x[:, row], y[:, row])
    assert torch.equal(u[:, flat], (y - x)[:, flat])
    assert torch.allclose(manifold.dist2(x, y), squared + (y - x)[:, flat].square().sum(-1))


@manifolds
@dtypes
def test_pairwise_is_dist2_of_all_pairs(manifold, dtype, generator):
    x, y = (manifold.random(n, manifold.size, generator=generator, dtype=dtype) for n in (5, 40))
    assert torch.allclose(manifold.pairwise(x, y), manifold.dist2(x[:, None], y), atol=3e-3 if dtype == torch.float32 else 1e-7)


@manifolds
def test_random_is_uniform_and_normal(manifold):
    x = manifold.random(20000, manifold.size, generator=torch.Generator().manual_seed(0))
    rows = [row for index in manifold.spheres for row in index]
    expected = torch.ones(manifold.size)
    for row in rows:
        expected[row] = 1 / len(row)
    assert torch.allclose(torch.cov(x.T), torch.diag(expected), atol=0.05)  # 5 standard errors of a normal's variance


@manifolds
@dtypes
def test_geodesic(manifold, dtype, generator):
    """Ends, membership, tangency, constant speed; and dx_t against forward-mode differentiation of x_t."""
    x_0, x_1 = (manifold.random(6, manifold.size, generator=generator, dtype=dtype) for _ in range(2))
    atol = tolerance(dtype) * 10
    assert torch.allclose(geodesic(manifold, x_0, x_1, torch.zeros(6, dtype=dtype))[0], x_0, atol=atol)
    assert torch.allclose(geodesic(manifold, x_0, x_1, torch.ones(6, dtype=dtype))[0], x_1, atol=atol)
    t = torch.rand(6, generator=generator, dtype=dtype)
    x_t, dx_t = geodesic(manifold, x_0, x_1, t)
    manifold.assert_check_vector_on_tangent(x_t, dx_t)
    _, slope = torch.func.jvp(lambda t: geodesic(manifold, x_0, x_1, t)[0], (t,), (torch.ones_like(t),))
    assert torch.allclose(dx_t, slope, atol=atol)
    assert torch.allclose(manifold.norm(x_t, dx_t), manifold.dist(x_0, x_1), atol=atol)
    assert torch.allclose((1 - t)[:, None] * dx_t, manifold.logmap(x_t, x_1), atol=atol)


def test_geodesic_broadcasts_and_vectorises(generator):
    manifold = CASES["interleaved"]
    x_0, x_1 = manifold.random(4, 11, generator=generator), manifold.random(11, generator=generator)
    t = torch.rand(3, 4, generator=generator)
    x_t, dx_t = geodesic(manifold, x_0, x_1, t)
    assert x_t.shape == dx_t.shape == (3, 4, 11)
    mapped = torch.func.vmap(lambda a, time: geodesic(manifold, a, x_1, time)[0])(x_0, t[0])
    assert torch.allclose(mapped, x_t[0], atol=1e-6)


@pytest.mark.parametrize(
    ("spheres", "words"),
    [
        ((torch.tensor([[0], [1]]),), "dim >= 2"),
        ((torch.tensor([[3, 4]]),), "coordinates 3 to 4 of a vector of 4"),
        ((torch.tensor([[0, 1]]), torch.tensor([[1, 2]])), "Coordinate 1 belongs to two"),
    ],
)
def test_impossible_spheres_are_named(spheres, words):
    with pytest.raises(ValueError, match=words):
        Product(4, spheres)


def test_a_vector_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match="7 coordinates is not on a product manifold of 6"):
        CASES["euclidean"].split(torch.zeros(7))
