"""The density of networks: divergences, closed forms, integrals that are one, and the same value for all forms of a network."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from geoflow import FLOWS, apply_symmetry, fit, log_prob, pack, permute, random_symmetry, spec_of, unpack
from geoflow.chart import Chart
from geoflow.density import ADAPTIVE, at_points, density, log_orders, times_back
from geoflow.divergence import dimension, estimated, exact, tangent_basis
from geoflow.flow import build_flow
from geoflow.manifolds import Product
from geoflow.sampling import SOLVERS, finish
from geoflow.sources import log_prob_of_noise
from geoflow.symmetry import Symmetry
from geoflow.training import prepare
from geoflow.zoo.networks import mlp
from tests.networks import NETWORKS
from tests.test_flow import CONFIG, randomise, with_variances

CONFIG = CONFIG | {"sizes": {"layers": 1, "node": 8, "edge": 4, "edge_hidden": 8, "heads": 2}}
CIRCLE, BALL, BOTH = ((2,),), ((3,),), ((3,), (2, 2))
double = partial(torch.tensor, dtype=torch.float64)


def product_of(spheres, flat: int) -> Product:
    """Spheres of the given dims, those in one tuple in one stack, with flat coordinates in between."""
    indices, start = [], flat // 2
    for dims in spheres:
        indices.append(torch.arange(start, start + sum(dims)).view(len(dims), -1))
        start += sum(dims)
    return Product(start + flat - flat // 2, indices)


MANIFOLDS = {"flat": product_of((), 3), "circle": product_of(CIRCLE, 0), "ball and line": product_of(BALL, 1), "many": product_of(BOTH, 3)}


@pytest.fixture(params=MANIFOLDS)
def manifold(request):
    return MANIFOLDS[request.param]


def some_field(manifold, generator):
    """A tangent field that bends in space and changes in time."""
    one, two = (torch.randn(manifold.size, manifold.size, generator=generator, dtype=torch.float64) for _ in range(2))
    return lambda x, t: manifold.proju(x, torch.tanh(x @ one + t) @ two)


# Divergences


def test_the_basis_is_orthonormal_and_spans_the_tangent_space(manifold, generator):
    x = manifold.random(4, manifold.size, generator=generator, dtype=torch.float64)
    basis = tangent_basis(manifold, x, torch.arange(dimension(manifold)))
    assert torch.allclose(torch.einsum("anc,bnc->nab", basis, basis), torch.eye(len(basis)).double().expand(4, -1, -1), atol=1e-12)
    u = torch.randn(4, manifold.size, generator=generator, dtype=torch.float64)
    assert torch.allclose(torch.einsum("anc,nc,anb->nb", basis, u, basis), manifold.proju(x, u), atol=1e-12)


def test_the_basis_is_exact_where_a_point_lies_on_an_axis():
    sphere = product_of(BALL, 0)
    for x in (*torch.eye(3), *-torch.eye(3)):
        basis = tangent_basis(sphere, x[None], torch.arange(2))[:, 0]
        assert torch.allclose(basis @ basis.T, torch.eye(2)) and torch.allclose(basis @ x, torch.zeros(2))


def test_the_divergence_is_that_of_geodesics_and_parallel_transport(manifold, generator):
    """Central differences of <v, e> along the geodesic of e, where e is transported with it: no derivative in the surrounding space."""
    v, h = some_field(manifold, generator), 1e-5
    x, t = manifold.random(3, manifold.size, generator=generator, dtype=torch.float64), double(0.3)
    expected = torch.zeros(3, dtype=torch.float64)
    for e in tangent_basis(manifold, x, torch.arange(dimension(manifold))):
        ends = {sign: manifold.expmap(x, sign * h * e) for sign in (1, -1)}
        ahead, behind = (manifold.inner(y, v(y, t), manifold.transp(x, y, e)) for y in ends.values())
        expected += (ahead - behind) / (2 * h)
    value, found = exact(manifold, rows=64)(v, x, t)
    assert torch.equal(value, v(x, t))
    assert torch.allclose(found[0], expected, atol=1e-8)  # h^2, and rounding over h


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 1000])
def test_neither_passes_nor_neighbours_change_a_divergence(rows, generator):
    manifold = MANIFOLDS["many"]
    x, t = manifold.random(3, manifold.size, generator=generator, dtype=torch.float64), double(0.3)
    v = some_field(manifold, generator)
    for how in (exact, lambda manifold, rows: estimated(manifold, rows, 5, torch.Generator().manual_seed(1))):
        whole, alone = (how(manifold, n)(v, part, t)[1] for n, part in ((64, x), (rows, x)))
        assert torch.allclose(whole, alone, atol=1e-12)
        assert torch.allclose(how(manifold, rows)(v, x[1:2], t)[1], whole[:, 1:2], atol=1e-12)


def test_the_trace_in_the_surrounding_space_is_another_number(generator):
    """On a sphere it would depend on how the field goes on off the sphere. Both fields here are the same on it."""
    sphere = product_of(BALL, 0)
    x, t = sphere.random(2, 3, generator=generator, dtype=torch.float64), double(0.0)
    v = some_field(sphere, generator)

    def continued(x, t):
        return v(x, t) + (x.square().sum(-1, keepdim=True) - 1) * x

    def trace(field):
        slopes = torch.func.vmap(torch.func.jacrev(lambda x: field(x[None], t)[0]))(x)
        return slopes.diagonal(dim1=1, dim2=2).sum(1)

    assert torch.allclose(trace(continued), trace(v) + 2)
    assert torch.allclose(*(exact(sphere, 8)(field, x, t)[1] for field in (v, continued)), atol=1e-12)


def test_probes_are_unbiased_and_their_spread_is_known(manifold, generator):
    v, probes = some_field(manifold, generator), 4000
    x, t = manifold.random(3, manifold.size, generator=generator, dtype=torch.float64), double(0.3)
    found = estimated(manifold, 10_000, probes, generator)(v, x, t)[1]
    error = found.std(0) / math.sqrt(probes)
    assert ((found.mean(0) - exact(manifold, 64)(v, x, t)[1][0]).abs() <= 3 * error + 1e-12).all()


def test_probes_are_fresh_or_kept(generator):
    manifold = MANIFOLDS["many"]
    x, v = manifold.random(1, manifold.size, generator=generator, dtype=torch.float64), some_field(manifold, generator)
    fresh, kept = (estimated(manifold, 8, 2, generator, fresh) for fresh in (True, False))
    assert not torch.equal(*(fresh(v, x, double(0.3))[1] for _ in range(2)))
    assert torch.equal(*(kept(v, x, double(0.3))[1] for _ in range(2)))


# Closed forms


def gaussian_flow(velocity, spread, generator, flow="euclidean"):
    """A flow that was not trained, on a zoo around one network, with points of the zoo in double precision."""
    spec = spec_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
    zoo = torch.randn(spec.weights, generator=generator) + spread * torch.randn(200, spec.weights, generator=generator)
    made, points = prepare(spec, zoo, CONFIG | {"flow": flow, "velocity": velocity})
    return made, points[:5].double()


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("velocity", ["identified", "transformer"])
def test_where_the_field_predicts_nothing_the_density_is_the_gaussian_one(velocity, spread, solver, generator):
    flow, x = gaussian_flow(velocity, spread, generator)
    mean, deviation = flow.chart.moments.double()
    expected = torch.distributions.Normal(mean, deviation).log_prob(x).sum(1)
    found = at_points(flow, x, solver=solver)
    assert torch.allclose(found.log_prob, expected, rtol=1e-3)
    assert torch.allclose(found.noise, (x - mean) / deviation, atol=1e-2)
    assert found.standard_error.eq(0).all() and found.dimension == 23


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_the_integral_has_the_order_of_the_solver(solver, order, generator):
    flow, x = gaussian_flow("identified", 1.0, generator)
    expected = torch.distributions.Normal(*flow.chart.moments.double()).log_prob(x).sum(1)
    errors = [(at_points(flow, x, solver=solver, steps=n).log_prob - expected).abs().mean() for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_a_trained_flow_has_the_density_of_its_gaussian_zoo(generator):
    """Correlated weights, which the field has to learn: the Gaussian that it starts from knows no correlation."""
    spec = spec_of(nn.Linear(2, 1), torch.zeros(1, 2))
    root = double([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.5, -0.5, 0.7]])
    zoo = (torch.randn(4000, 3, generator=generator, dtype=torch.float64) @ root.T).float()
    flow = fit(spec, zoo, flow="euclidean", velocity="mlp", sizes={"width": 64}, iterations=800, batch=256, progress=False)
    new = torch.randn(200, 3, generator=generator, dtype=torch.float64) @ root.T
    expected = torch.distributions.MultivariateNormal(double([0.0, 0, 0]), scale_tril=root).log_prob(new)
    found = density(flow, new, measure="weights").log_prob
    assert (found - expected).abs().mean() < 0.1
    without = torch.distributions.Normal(zoo.mean(0).double(), zoo.std(0).double()).log_prob(new).sum(1)
    assert (without - expected).abs().mean() > 0.5  # what the flow would say without its field


@pytest.mark.parametrize("flow", ["geometric", "euclidean"])
@pytest.mark.parametrize("velocity", ["identified", "transformer"])
def test_sharpness_changes_nothing_where_nothing_was_learned(velocity, flow, generator):
    made, x = gaussian_flow(velocity, 0.1, generator, flow)
    plain, sharp = (at_points(made, x, steps=4, probes=2, sharpness=s).log_prob for s in (0.0, 1.0))
    assert torch.allclose(plain, sharp)
    randomise(made.field)
    plain, sharp = (at_points(made, x, steps=4, probes=2, sharpness=s).log_prob for s in (0.0, 1.0))
    assert not torch.allclose(plain, sharp, rtol=1e-3)


# Integrals


def one_unit(inputs: int, weights: int):
    """The table of a network with one hidden unit, of which the first `weights` tensors are kept. The incoming weights lie on a sphere."""
    network = nn.Sequential(nn.Linear(inputs, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    spec = spec_of(network, torch.zeros(1, inputs))
    return replace(spec, tensors=spec.tensors[:weights])


def random_flow(spec, velocity="transformer", flow="geometric"):
    """A flow whose field was never trained and predicts anything but 0."""
    statistics = {role: (0.0, 1.0) for role in Chart(spec, FLOWS[flow], {}).roles}
    chart = Chart(spec, FLOWS[flow], statistics)
    made = build_flow(chart, torch.ones(spec.weights), CONFIG | {"velocity": velocity, "flow": flow})
    randomise(made.field)
    return made


def on_a_circle(n: int):
    angle = torch.arange(n).double() * 2 * math.pi / n
    return torch.stack([angle.cos(), angle.sin()], 1), torch.full((n,), 2 * math.pi / n, dtype=torch.float64)


def on_a_sphere(n: int):
    """Points with weights that integrate polynomials of degree 2 n - 1 exactly: Gauss's points in the height, even ones around."""
    import numpy

    height, share = (torch.from_numpy(one) for one in numpy.polynomial.legendre.leggauss(n))
    around, step = on_a_circle(2 * n)
    ring = (1 - height.square()).sqrt()[:, None, None] * around
    points = torch.cat([ring, height[:, None, None].expand(-1, 2 * n, 1)], 2)
    return points.flatten(0, 1), (share[:, None] * step).flatten()


def on_a_line(n: int, end: float):
    x = torch.linspace(-end, end, n, dtype=torch.float64)
    return x[:, None], torch.full((n,), float(x[1] - x[0]), dtype=torch.float64)


def times(one, other):
    """The points of a product, and their weights."""
    (a, p), (b, q) = one, other
    pairs = torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b)))
    return torch.cat([a[pairs[:, 0]], b[pairs[:, 1]]], 1), p[pairs[:, 0]] * q[pairs[:, 1]]


@pytest.mark.parametrize(
    ("inputs", "weights", "grid"),
    [
        (2, 1, on_a_circle(64)),
        (3, 1, on_a_sphere(16)),
        (2, 2, times(on_a_circle(32), on_a_line(40, 6))),
        (3, 2, times(on_a_sphere(10), on_a_line(30, 6))),
    ],
    ids=["circle", "sphere", "circle and line", "sphere and line"],
)
def test_the_density_integrates_to_one(inputs, weights, grid):
    flow, (x, share) = random_flow(one_unit(inputs, weights)), grid
    assert flow.chart.manifold.check_point_on_manifold(x[0])
    found = at_points(flow, x, steps=12).log_prob
    assert (found.exp() * share).sum().item() == pytest.approx(1, abs=1e-3)
    assert found.std() > 0.1  # it is not that of the noise
    uniform = log_prob_of_noise(flow.chart.manifold, x)
    assert (uniform.exp() * share).sum().item() == pytest.approx(1, abs=1e-6)


def test_the_integral_over_weights_is_one_too(generator):
    """A line of one weight and one bias, by measure=weights, where points are standardised and inputs stretched."""
    spec = spec_of(nn.Linear(1, 1), torch.zeros(1, 1))
    zoo = torch.randn(50, 2, generator=generator) * torch.tensor([0.2, 3.0]) + 1
    flow, _ = prepare(spec, zoo, CONFIG | {"flow": "euclidean", "velocity": "identified"}, 2 * torch.randn(99, 1, generator=generator))
    randomise(flow.field)
    x, share = times(on_a_line(48, 2.0), on_a_line(48, 30.0))
    assert (log_prob(flow, x + 1, measure="weights", steps=12).exp() * share).sum().item() == pytest.approx(1, abs=1e-3)


# Symmetries


def flow_on(name: str, flow: str, generator, velocity="transformer"):
    """A flow with a random field on networks of a case, and four of them in double precision."""
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    networks = [make() for _ in range(8)]
    spec = spec_of(networks[0], example())
    zoo = with_variances(spec, pack(spec, [network.state_dict() for network in networks]).double())
    zoo = zoo + 0.1 * torch.rand(zoo.shape, generator=generator, dtype=torch.float64)  # no weight is the same in all
    made, _ = prepare(spec, zoo, CONFIG | {"flow": flow, "velocity": velocity})
    randomise(made.field)
    return made, zoo[:4]


FORMS = ["mlp", "mlp tanh", "mlp prelu", "mlp batch norm", "cnn", "resnet", "pre norm", "attention", "concat", "gru"]


@pytest.mark.parametrize(
    ("name", "flow"),
    [(name, "geometric") for name in FORMS] + [(name, flow) for name in ("mlp tanh", "pre norm") for flow in (*FLOWS,)[1::2]],
)
def test_the_density_is_that_of_any_form_of_a_network(name, flow, generator):
    """Two steps are enough, because it holds for any number of steps."""
    made, thetas = flow_on(name, flow, generator)
    moved = apply_symmetry(made.spec, thetas, random_symmetry(made.spec, generator))
    assert not torch.allclose(moved, thetas)
    found, same = (log_prob(made, one, steps=2) for one in (thetas, moved))
    assert torch.allclose(found, same, rtol=1e-7), (found - same).abs().max()


@pytest.mark.parametrize("velocity", ["transformer", "identified"])
def test_without_balance_it_is_that_of_any_order_and_of_any_signs(velocity, generator):
    made, thetas = flow_on("mlp tanh", "euclidean", generator, velocity)
    symmetry = random_symmetry(made.spec, generator)
    moved = apply_symmetry(made.spec, thetas, Symmetry(symmetry.permutations, signs=symmetry.signs))
    assert torch.allclose(log_prob(made, thetas, steps=2), log_prob(made, moved, steps=2), rtol=1e-7)


def test_other_networks_have_another_density(generator):
    """Moving the units of one tensor alone is no symmetry."""
    made, thetas = flow_on("mlp", "geometric", generator)
    states = unpack(made.spec, thetas)
    other = pack(made.spec, states | {"2.weight": states["2.weight"].flip(1)})
    assert not torch.allclose(log_prob(made, thetas, steps=2), log_prob(made, other, steps=2), rtol=1e-4)


@pytest.mark.parametrize(("velocity", "equal"), [("transformer", True), ("identified", False)])
def test_all_orders_are_equally_probable_for_an_equivariant_field_only(velocity, equal, generator):
    """So the density of a network in any order is n! times that of its canonical form, for n exchangeable units."""
    made, thetas = flow_on("mlp gelu", "geometric", generator, velocity)
    canonical = made.canonical(thetas)
    orders = {g: torch.randperm(n, generator=generator) for g, n in made.spec.groups("permutation").items()}
    points = (made.chart.point(one) for one in (canonical, permute(made.spec, canonical, orders)))
    found, moved = (at_points(made, x, steps=4, probes=0).log_prob for x in points)
    assert torch.allclose(found, moved, rtol=1e-7) == equal
    assert log_orders(made.spec) == pytest.approx(math.log(math.factorial(4) * math.factorial(6)))


# Estimates


def test_estimates_agree_with_the_exact_density(generator):
    """Within three standard errors, and over seeds about one of them away."""
    flow, thetas = flow_on("mlp tanh", "geometric", generator)
    right, scores = density(flow, thetas, steps=8, probes=0), []
    for seed in range(6):
        found = density(flow, thetas, steps=8, probes=12, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(found.noise, right.noise) and (found.standard_error > 0).all()
        scores.append((found.log_prob - right.log_prob) / found.standard_error)
    assert torch.stack(scores).abs().max() < 3
    assert 0.5 < torch.stack(scores).square().mean().sqrt() < 1.6


def test_an_estimate_depends_on_its_generator_alone(generator):
    flow, thetas = flow_on("mlp tanh", "geometric", generator)
    how = {"steps": 3, "probes": 2}
    whole = log_prob(flow, thetas, **how)
    assert torch.equal(whole, log_prob(flow, thetas, **how))
    assert torch.allclose(whole, log_prob(flow, thetas, **how, batch=3), rtol=1e-9)
    assert torch.allclose(whole[2:3], log_prob(flow, thetas[2:3], **how), rtol=1e-9)
    assert not torch.allclose(whole, log_prob(flow, thetas, **how, generator=torch.Generator().manual_seed(5)), rtol=1e-9)


def test_the_adaptive_solver_agrees_with_many_steps(generator):
    flow = random_flow(one_unit(3, 2))
    x = flow.chart.manifold.random(5, 4, generator=generator, dtype=torch.float64)
    many, adaptive = (at_points(flow, x, solver=solver, steps=96) for solver in ("rk4", "dopri5"))
    assert torch.allclose(many.log_prob, adaptive.log_prob, rtol=1e-3)
    assert torch.allclose(many.noise, adaptive.noise, atol=1e-2)  # the field has kinks
    assert flow.chart.manifold.check_point_on_manifold(adaptive.noise[0])
    estimate = at_points(flow, x, solver="dopri5", probes=64)  # one draw for the whole way
    assert ((estimate.log_prob - adaptive.log_prob).abs() < 3 * estimate.standard_error).all()


# Points and weights


@pytest.mark.parametrize("flow", FLOWS)
def test_the_noise_leads_to_the_network(flow, generator):
    made, thetas = flow_on("mlp tanh", flow, generator)
    found = density(made, thetas, steps=32, probes=2)
    back = finish(replace(made, field=made.field.double()), made.chart, found.noise, 0.0, SOLVERS["rk4"], 32)
    assert torch.allclose(made.chart.point(back), made.chart.point(made.canonical(thetas)), atol=1e-2)


@pytest.mark.parametrize("name", ["mlp batch norm", "concat", "mlp one slope"])
def test_the_volume_is_that_of_the_map_from_weights_to_points(name, generator):
    make, example = NETWORKS[name]
    spec = spec_of(make(), example())
    zoo = with_variances(spec, torch.randn(30, spec.weights, generator=generator, dtype=torch.float64))
    made, _ = prepare(spec, zoo, CONFIG | {"flow": "euclidean"}, torch.randn(99, 5, generator=generator, dtype=torch.float64))
    for theta in zoo[:2]:
        slopes = torch.func.jacrev(made.chart.point)(theta)
        assert made.chart.log_volume(theta).item() == pytest.approx(torch.linalg.slogdet(slopes).logabsdet.item(), abs=1e-6)
    points, weights = (log_prob(made, zoo[:2], measure=measure, steps=2, probes=2) for measure in ("points", "weights"))
    assert torch.allclose(weights - points, made.chart.log_volume(zoo[:2]))


def test_times_go_back_from_the_network_to_noise():
    times = times_back(10)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all() and len(times) == 11


def test_gradients_and_the_flow_stay_as_they_were(generator):
    flow, thetas = flow_on("mlp tanh", "geometric", generator)
    flow.field.train()
    with torch.inference_mode():
        found = log_prob(flow, thetas, steps=2)
    assert not found.requires_grad and flow.field.training and all(p.requires_grad for p in flow.field.parameters())
    single = log_prob(flow, thetas.float(), steps=2)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), found, rtol=1e-3)
    assert log_prob(flow, thetas.half(), steps=2).dtype == torch.float32


# Mistakes


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda thetas: thetas[0], {}, r"thetas must be \[nets, weights\], not \(58,\). Pass one network as theta\[None\]"),
        (lambda thetas: thetas[:0], {}, "population is empty"),
        (lambda thetas: thetas[:, :5], {}, "vectors of 5 weights, the spec 58"),
        (lambda thetas: thetas * torch.tensor([[1.0], [float("nan")]]), {}, "Network 1 of the population holds NaN or Inf in '0.weight'"),
        (lambda thetas: thetas, {"probes": -1}, "probes=-1 must be 0, for the exact divergence, or a whole number from 2 on"),
        (lambda thetas: thetas, {"probes": 1}, "One probe has no standard error"),
        (lambda thetas: thetas, {"steps": 0}, "steps and batch must be whole numbers of at least one, not steps=0"),
        (lambda thetas: thetas, {"batch": 0}, "batch=0"),
        (lambda thetas: thetas, {"sharpness": -1.0}, "sharpness=-1.0 must be a number of at least 0"),
        (lambda thetas: thetas, {"solver": "rk5"}, "Unknown solver 'rk5'. Known: euler, midpoint, heun, rk4, dopri5"),
        (lambda thetas: thetas, {"measure": "volume"}, "points, weights"),
        (lambda thetas: thetas, {"measure": "weights"}, "needs flow=euclidean.*Leave measure=points"),
    ],
)
def test_mistakes_are_answered(change, options, message, generator):
    spec = spec_of(mlp(4, [8], 2), torch.zeros(1, 4))
    flow, _ = prepare(spec, torch.randn(9, 58, generator=generator), CONFIG)
    with pytest.raises(ValueError, match=message):
        log_prob(flow, change(torch.randn(2, 58, generator=generator)), **options)


def test_dead_units_are_named(generator):
    spec = spec_of(mlp(4, [8], 2), torch.zeros(1, 4))
    thetas = torch.randn(9, 58, generator=generator)
    flow, _ = prepare(spec, thetas, CONFIG)
    thetas[1, 4:8] = 0
    with pytest.raises(ValueError, match="Network 1 has a dead unit at '0'"):
        log_prob(flow, thetas)


def test_a_predicted_endpoint_has_no_density(generator):
    spec = spec_of(mlp(4, [8], 2), torch.zeros(1, 4))
    flow, points = prepare(spec, torch.randn(9, 58, generator=generator), CONFIG | {"prediction": "endpoint"})
    with pytest.raises(ValueError, match=r"A flow with prediction=endpoint has no density.*Fit a flow with prediction=preconditioned"):
        at_points(flow, points)
    flow, points = prepare(spec, torch.randn(9, 58, generator=generator), CONFIG | {"prediction": "velocity"})
    assert at_points(flow, points, steps=2).log_prob.isfinite().all()


def test_densities_that_are_not_finite_are_not_returned(generator):
    flow, x = gaussian_flow("identified", 1.0, generator)
    with pytest.raises(FloatingPointError, match=r"1 of 5 log-densities came out as NaN or Inf\. Take more steps"):
        at_points(flow, torch.cat([x[:4], 1e200 * x[:1]]), steps=2)


def test_a_missing_package_is_named(generator, monkeypatch):
    flow, x = gaussian_flow("identified", 1.0, generator)
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r'solver=dopri5 needs torchdiffeq: pip install "geoflow-weights\[density\]"'):
        at_points(flow, x, solver="dopri5")
    assert {*ADAPTIVE} == {"dopri5"}
