"""Guidance and descent: right gradients, the same flow without a pull, and a stop where losses grow."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from geoflow import FLOWS, guide, sample, spec_of, task_guidance
from geoflow.descent import descend
from geoflow.evaluation.metrics import evaluate
from geoflow.guidance import PLACES, SCHEDULES, UNITS, Diverged, Losses, through_endpoint
from geoflow.objectives import losses, of_outputs, task_objective
from geoflow.sampling import SOLVERS
from geoflow.training import prepare
from geoflow.vector import pack, unpack
from geoflow.zoo.networks import mlp
from geoflow.zoo.tasks import load_task
from tests.networks import Written
from tests.test_flow import CONFIG, randomise


def iris_flow(generator, flow="geometric", dtype=torch.float32):
    """A flow whose field is random, and 10 networks of its zoo."""
    task = load_task("iris")
    network = mlp(4, [6], 3).to(dtype)
    spec = spec_of(network, task.x_train[:2].to(dtype))
    thetas = torch.randn(40, spec.weights, generator=generator, dtype=dtype)
    untrained, points = prepare(spec, thetas, CONFIG | {"flow": flow})
    randomise(untrained.field)
    return untrained, network, task, points


def drawn(flow, steps=20, seed=3, **more):
    return sample(flow, 20, steps=steps, generator=torch.Generator().manual_seed(seed), **more)


def nll(network, flow, thetas, task):
    return evaluate(network, flow.spec, thetas, task.x_train, task.y_train).nll


@pytest.mark.parametrize("flow", FLOWS)
def test_guidance_lowers_the_loss(flow, generator):
    """The same noise: the stronger the pull, the lower the loss of what comes out."""
    untrained, network, task, _ = iris_flow(generator, flow)
    found = []
    for strength in (0.0, 1.0, 10.0):
        pull = task_guidance(network, task.x_train, task.y_train, strength, unit="loss")
        found.append(nll(network, untrained, drawn(untrained, 40, guidance=pull), task).mean().item())
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize(("at", "unit", "schedule", "yields"), list(itertools.product(PLACES, UNITS, SCHEDULES, (False, True))))
def test_every_kind_of_guidance_helps(at, unit, schedule, yields, generator):
    untrained, network, task, _ = iris_flow(generator)
    pull = task_guidance(
        network, task.x_train, task.y_train, {"loss": 5.0}.get(unit, 0.5), at=at, unit=unit, schedule=schedule, yields=yields, repeats=2
    )
    unguided, guided = nll(network, untrained, drawn(untrained), task), nll(network, untrained, drawn(untrained, guidance=pull), task)
    assert (guided < unguided).float().mean() >= 0.9, (guided, unguided)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_no_strength_changes_nothing(solver, repeats, generator):
    """Up to rounding, which a step of length h on a sphere brings in twice. A pull that yields changes the flow."""
    untrained, network, task, _ = iris_flow(generator)
    pull = task_guidance(network, task.x_train, task.y_train, 0.0, repeats=repeats)
    yields = task_guidance(network, task.x_train, task.y_train, 0.0, repeats=repeats, yields=True)
    plain = drawn(untrained, solver=solver)
    assert torch.allclose(drawn(untrained, solver=solver, guidance=pull), plain, atol=2e-4)
    assert not torch.allclose(drawn(untrained, solver=solver, guidance=yields), plain, atol=1e-2)


def test_a_pull_by_the_loss_is_the_formula(generator):
    """One Euler step of the thesis: x <- exp_x(h (v - strength * gradient)), written out."""
    untrained, network, task, points = iris_flow(generator, dtype=torch.float64)
    chart, x, h = untrained.chart, points[:5].double(), torch.tensor(0.1, dtype=torch.float64)
    untrained.field.double()
    objective = task_objective(network, task.x_train.double(), task.y_train)
    v = untrained.velocity(chart)
    step = guide(objective, 0.7, unit="loss")(chart, SOLVERS["euler"])
    moved = step(v, x, torch.tensor(0.5, dtype=torch.float64), h, chart.manifold)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(objective, chart.spec, chart.theta(point)).sum(), point)
    by_hand = chart.manifold.expmap(x, h * (v(x, torch.tensor(0.5)) - 0.7 * chart.manifold.proju(x, gradient)))
    assert torch.allclose(moved, by_hand, atol=1e-9)


@pytest.mark.parametrize("place", ["itself", "through"])
def test_the_gradient_is_the_riemannian_one(place, generator):
    """Against central differences of the loss along geodesics, in float64."""
    untrained, network, task, points = iris_flow(generator, dtype=torch.float64)
    untrained.field.double()
    chart, t = untrained.chart, torch.tensor(0.4, dtype=torch.float64)
    points = chart.manifold.projx(points[:1].double())
    x, y, v = task.x_train.double(), task.y_train, untrained.velocity(chart)
    loss = Losses(task_objective(network, x, y), chart)

    def end(point):
        return point if place == "itself" else chart.manifold.expmap(point, (1 - t) * v(point, t))

    gradient = loss(points) if place == "itself" else through_endpoint(loss, v, points, t, v(points, t), chart.manifold)
    assert torch.allclose(chart.manifold.proju(points, gradient), gradient, atol=1e-12)
    direction = chart.manifold.proju(points, torch.randn(1, points.shape[1], generator=generator, dtype=torch.float64))
    step = 1e-5
    with torch.no_grad():
        ends = [chart.theta(end(chart.manifold.expmap(points, sign * step * direction))) for sign in (1, -1)]
    ahead, behind = (evaluate(network, chart.spec, one, x, y).nll.item() for one in ends)
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 2 / step, rel=1e-5)


def test_a_flow_that_yields_never_works_against_the_objective(generator):
    """Coordinates that would raise the loss stand still. All others move as without guidance."""
    untrained, network, task, points = iris_flow(generator, "euclidean")
    chart, x, h = untrained.chart, points[:5], torch.tensor(0.1)
    objective, v = task_objective(network, task.x_train, task.y_train), untrained.velocity(chart)
    with torch.no_grad():
        moved = guide(objective, 0.0, yields=True)(chart, SOLVERS["euler"])(v, x, torch.tensor(0.5), h, chart.manifold) - x
        flown = h * v(x, torch.tensor(0.5))
    against = flown * Losses(objective, chart)(x) > 0
    assert 0.1 < against.float().mean() < 0.9
    assert torch.allclose(moved, torch.where(against, 0.0, flown), atol=1e-6)


def test_units_give_gradients_the_length_of_the_velocity(generator):
    untrained, _, _, points = iris_flow(generator)
    chart, speed = untrained.chart, torch.randn(5, untrained.chart.graph.size, generator=generator)
    gradient = chart.manifold.proju(points[:5], torch.randn(5, chart.graph.size, generator=generator))
    unit = UNITS["velocity"](chart)
    for scale in (1e-3, 1.0, 1e3):
        assert torch.allclose(unit.lengths(unit(points[:5], scale * gradient, speed)), unit.lengths(speed), rtol=1e-4)
    mean = UNITS["average"](chart)
    assert torch.allclose(mean(points[:5], gradient, speed), unit(points[:5], gradient, speed), rtol=1e-3)
    assert (mean.lengths(mean(points[:5], -gradient, speed)) < 0.2 * mean.lengths(speed)).all()  # two contradicting gradients


def test_an_objective_of_outputs_and_of_a_task_agree(generator):
    untrained, network, task, _ = iris_flow(generator)
    thetas = drawn(untrained, 2)
    own = of_outputs(network, task.x_train, lambda logits: torch.stack([cross_entropy(one, task.y_train) for one in logits]))
    whole = task_objective(network, task.x_train, task.y_train)
    expected = nll(network, untrained, thetas, task)
    for objective in (own, whole):
        assert torch.allclose(losses(objective, untrained.spec, thetas), expected, rtol=1e-5)
    some = task_objective(network, task.x_train, task.y_train, batch=30, generator=torch.Generator().manual_seed(0))
    found = torch.stack([losses(some, untrained.spec, thetas) for _ in range(400)])
    error = found.std(0) / 20  # of a mean of 400
    assert ((found.mean(0) - expected).abs() < 4 * error).all() and (found.std(0) > 0).all()


@pytest.mark.parametrize("form", [lambda h, y: {"hidden": h[None], "logits": y}, lambda h, y: (y, h.sum()), lambda h, y: [None, y]])
def test_outputs_may_lie_in_what_a_network_returns(form, generator):
    plain, x, y = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)), torch.randn(8, 3), torch.arange(8) % 2
    network = Written(lambda s, x: form(h := s.a(x).tanh(), s.o(h)), a=plain[0], o=plain[2])
    states = {name: value.expand(4, *value.shape) for name, value in network.state_dict().items()}
    expected = torch.nn.functional.cross_entropy(plain(x), y)
    torch.testing.assert_close(task_objective(network, x, y)(states), expected.detach().expand(4))


@pytest.mark.parametrize("unit", ["loss", "velocity"])
def test_guidance_that_diverges_stops_and_keeps_what_was_made(unit, generator):
    """Of three batches the last one diverges."""
    untrained, network, task, _ = iris_flow(generator)
    calls, steps = [], 4
    objective = task_objective(network, task.x_train, task.y_train)

    def late(states):
        calls.append(len(calls))
        return objective(states) * (1.0 if len(calls) <= 2 * steps else 1000.0 ** (len(calls) - 2 * steps))

    with pytest.raises(Diverged, match=r"Guidance diverged at t = 0\.\d+: the loss of a network went from .* Lower guidance") as caught:
        sample(untrained, 6, steps=steps, batch=2, guidance=guide(late, 0.1, unit=unit), generator=torch.Generator().manual_seed(3))
    calls.clear()
    whole = sample(untrained, 4, steps=steps, batch=2, guidance=guide(late, 0.1, unit=unit), generator=torch.Generator().manual_seed(3))
    assert caught.value.thetas.shape == (4, untrained.spec.weights) and len(whole) == 4
    assert isinstance(caught.value, FloatingPointError)


def test_a_huge_strength_is_no_success(generator):
    untrained, network, task, _ = iris_flow(generator)
    with pytest.raises(Diverged):
        drawn(untrained, guidance=task_guidance(network, task.x_train, task.y_train, 1e6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"strength": -1.0}, "strength=-1.0 must be a number of at least 0"),
        ({"strength": float("inf")}, "must be a number"),
        ({"repeats": 0}, "repeats=0 a whole number of at least 1"),
        ({"at": "end"}, "Unknown at 'end'. Known: point, endpoint, through."),
        ({"unit": "adam"}, "Unknown unit 'adam'. Known: loss, velocity, average."),
        ({"schedule": "late"}, "Unknown schedule 'late'. Known: constant, falling, rising."),
    ],
)
def test_what_guide_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        guide(lambda states: states["bias"].sum(1), **wrong)


def test_a_batch_of_guidance_fits_its_examples():
    task = load_task("iris")
    with pytest.raises(ValueError, match="batch=500 examples cannot be drawn from 120"):
        task_objective(mlp(4, [6], 3), task.x_train, task.y_train, batch=500)


def test_descent_is_adam_on_each_network(generator):
    """Beside torch's Adam on the module itself."""
    task, network = load_task("iris"), mlp(4, [6], 3)
    spec = spec_of(network, task.x_train[:2])
    thetas = torch.randn(3, spec.weights, generator=generator)
    seen = []
    trained = descend(
        spec, thetas, task_objective(network, task.x_train, task.y_train), 20, 0.05, falling=False, watch=lambda step, _: seen.append(step)
    )
    assert seen == list(range(21))
    for theta, found in zip(thetas, trained, strict=True):
        alone = mlp(4, [6], 3)
        alone.load_state_dict(unpack(spec, theta))
        optimizer = torch.optim.Adam(alone.parameters(), 0.05)
        for _ in range(20):
            optimizer.zero_grad()
            cross_entropy(alone(task.x_train), task.y_train).backward()
            optimizer.step()
        assert torch.allclose(pack(spec, alone.state_dict()), found, atol=1e-4)


def test_descent_falls_and_refuses(generator):
    spec = spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    at = []
    descend(
        spec, torch.zeros(1, 3), lambda states: states["bias"].sum(1), 10, 0.1, watch=lambda step, theta: at.append(theta[0, -1].item())
    )
    moves = -torch.tensor(at).diff()
    assert (moves.diff() < 0).all() and moves[0] == pytest.approx(0.1, rel=1e-3) and moves[-1] < 0.01
    with pytest.raises(FloatingPointError, match=r"In step 1 the loss of the networks \[1\] is not finite"):
        descend(spec, torch.tensor([[0.0, 0, 1], [0, 0, -1]]), lambda states: states["bias"].log().sum(1), 3)
    with pytest.raises(ValueError, match="steps=-1"):
        descend(spec, torch.zeros(1, 3), lambda states: states["bias"].sum(1), -1)
    assert torch.equal(descend(spec, torch.ones(1, 3), lambda states: states["bias"].sum(1), 0), torch.ones(1, 3))


def test_guidance_leaves_the_network_and_the_flow_as_they_are(generator):
    """Dropout and batch norm are in evaluation mode for the gradient, and counters stay."""
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(6, 3)
    )
    task = load_task("iris")
    spec = spec_of(network, task.x_train[:2])
    thetas = torch.randn(20, spec.weights, generator=generator).abs()
    untrained, _ = prepare(spec, thetas, CONFIG)
    sample(untrained, 3, steps=2, guidance=task_guidance(network, task.x_train, task.y_train, 0.1))
    assert network.training and network[1].num_batches_tracked == 0 and spec.rest["1.num_batches_tracked"] == 0
