"""The flow from noise to networks: right velocities, right integration, right stops."""

import json
import math
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geoflow import FLOWS, Flow, fit, graph_of, pack, recording, sample, spec_of, task_guidance, unpack
from geoflow.canonical import balance, order_kept
from geoflow.chart import LEAST
from geoflow.charting import fit_chart
from geoflow.checkpoint import Progress
from geoflow.evaluation.metrics import evaluate
from geoflow.files import read_tensors, write_tensors
from geoflow.flow import PREDICTIONS, WEIGHTINGS, build_flow, gaussian
from geoflow.manifolds import Product
from geoflow.muon import Muon
from geoflow.paths import geodesic
from geoflow.sampling import SOLVERS, integrate
from geoflow.sources import head_start, noise
from geoflow.statistics import variances_of
from geoflow.symmetry import apply_symmetry, random_symmetry
from geoflow.training import prepare, times, train, velocity_for
from geoflow.velocity import VELOCITIES
from geoflow.velocity.message_passing import MessagePassingTransformer
from geoflow.zoo.networks import mlp
from geoflow.zoo.tasks import load_task
from tests.networks import NETWORKS, Residual

CONFIG = {"flow": "geometric", "velocity": "transformer", "coupling": "independent", "time": "uniform", "prediction": "preconditioned"}
CONFIG |= {
    "align": True,
    "weighting": "balanced",
    "sizes": {"layers": 1, "node": 16, "edge": 8, "edge_hidden": 8},
    "iterations": 6,
    "batch": 4,
    "lr": 1e-3,
    "weight_decay": 1e-3,
    "ema": 0.9,
    "seed": 0,
}


@pytest.fixture
def spec():
    return spec_of(mlp(3, [4], 2), torch.zeros(1, 3))


@pytest.fixture
def thetas(spec, generator):
    return torch.randn(20, spec.weights, generator=generator)


def randomise(field):
    """Move every parameter, the zero heads too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def test_an_ideal_denoiser_keeps_the_targets_spread(generator):
    """N(0, 1) -> N(1, 1): E[x_1 | x_t] is known, and 100 Euler steps give std 1 +- .02, mean 1 +- .02 (not .49, as anchored at x_0)."""

    def v(x, t):
        s2 = t**2 + (1 - t) ** 2
        end = 1 + t / s2 * (x - t)
        return (end - x) / (1 - t)

    x_0 = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    x_1 = integrate(v, x_0, torch.linspace(0, 1, 101, dtype=torch.float64), Product(1))
    assert x_1.std().item() == pytest.approx(1, abs=0.02)
    assert x_1.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_ideal_network_keeps_the_spread_through_sample(prediction, spec, generator):
    """Standardised Gaussian zoos in flat space: the network's ideal raw output is known for each prediction."""
    thetas = torch.randn(5000, spec.weights, generator=generator)
    chart = fit_chart(spec, FLOWS["euclidean"], thetas)

    class Ideal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))

        def forward(self, graph, x, t):
            t = t[:, None]
            s2 = t**2 + (1 - t) ** 2
            s = s2.sqrt()  # what x was divided by
            return {"preconditioned": 0 * x, "velocity": (2 * t - 1) / s * x, "endpoint": t / s * x}[prediction]

    flow = Flow(chart, Ideal(), thetas.mean(0), CONFIG | {"prediction": prediction})
    points = chart.point(sample(flow, 2000, steps=100, generator=generator))
    assert points.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize("spheres", [(), (torch.arange(3)[None],)], ids=["flat", "sphere"])
def test_the_solvers_have_their_order(solver, order, spheres):
    """The slope of log error over log step, against 512 steps of rk4, for a field that depends on place and time."""
    manifold = Product(3, spheres)
    skew = torch.tensor([[0.0, 1.0, -2.0], [-1.0, 0.0, 0.5], [2.0, -0.5, 0.0]], dtype=torch.float64)

    def v(x, t):
        return manifold.proju(x, x @ skew * torch.cos(3 * t) + torch.sin(x + t))

    x_0 = manifold.projx(torch.tensor([[0.6, -0.5, 0.8]], dtype=torch.float64))
    exact = integrate(v, x_0, torch.linspace(0, 1, 513, dtype=torch.float64), manifold, SOLVERS["rk4"])
    errors = []
    for steps in (16, 32, 64):
        x_1 = integrate(v, x_0, torch.linspace(0, 1, steps + 1, dtype=torch.float64), manifold, SOLVERS[solver])
        errors.append((x_1 - exact).norm().item())
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_is_a_tangent_velocity_with_a_finite_loss(prediction, weighting, spec, thetas):
    flow, points = prepare(spec, thetas, CONFIG | {"prediction": prediction, "weighting": weighting})
    randomise(flow.field)
    for t in (0.0, 0.5, 1.0):
        v, weight = flow.predict(flow.chart, points, torch.full((len(points),), t))
        manifold = flow.chart.manifold
        assert torch.allclose(manifold.proju(points, v), v, atol=1e-4 * max(1, v.abs().max().item()))
        assert (weight >= 0).all()
        off = manifold.proju(points, torch.ones_like(points))
        weight = weight if weighting == "balanced" else 1
        expected = (weight * (off * flow.chart.scale) ** 2).mean().item()  # of a velocity that is off by this much
        assert flow.matching_loss(points, v + off, torch.full((len(points),), t)).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sharpness_goes_on_from_the_gaussian_through_what_was_learned(prediction, spec, thetas):
    flow, points = prepare(spec, thetas, CONFIG | {"prediction": prediction})
    untrained, _ = prepare(spec, thetas, CONFIG)
    randomise(flow.field)
    chart, t = flow.chart, torch.tensor(0.4)
    learned, gaussian_zoo = flow.velocity(chart)(points, t), untrained.velocity(chart)(points, t)
    assert torch.allclose(flow.velocity(chart, 0.5)(points, t), learned + 0.5 * (learned - gaussian_zoo), atol=1e-4)
    assert torch.equal(untrained.velocity(chart, 2.0)(points, t), gaussian_zoo)
    plain, sharp = (sample(flow, 3, steps=2, sharpness=s, generator=torch.Generator().manual_seed(0)) for s in (0.0, 0.5))
    assert not torch.allclose(plain, sharp)


@pytest.mark.parametrize(("flow", "units"), [("geometric", 6), ("geometric_polar", 7)])  # 4 hidden, 2 outputs, their log-norm
def test_every_unit_counts_the_same(flow, units, spec, thetas, generator):
    """A network that predicts 0 has the same loss on each: what the Gaussian leaves open of its weights, whatever their number and size."""
    flow, points = prepare(spec, thetas, CONFIG | {"flow": flow})
    chart, t = flow.chart, torch.rand(len(points), generator=generator)
    _, weight = flow.predict(chart, points, t)
    rest = gaussian(points, t, chart)[2]
    shares = torch.zeros(len(points), units).index_add_(1, chart.graph.unit_of, weight * rest**2)
    assert torch.allclose(shares, torch.tensor(chart.graph.size / units).expand_as(shares), rtol=1e-4)


@pytest.mark.parametrize(("time", "mean"), [("uniform", 1 / 2), ("beta", 1 / 3)])
def test_the_times_have_their_mean(time, mean, generator):
    t = times(time, 100_000, generator)
    assert t.min() >= 0 and t.max() < 1
    assert t.mean().item() == pytest.approx(mean, abs=1e-4)
    quantile = {"uniform": lambda t: t, "beta": lambda t: 1 - (1 - t) ** 2}[time]
    shares = quantile(times(time, 16, generator)) * 16
    assert torch.equal(shares.floor(), torch.arange(16.0))  # one from each sixteenth of the distribution


def test_a_flow_from_before_wires_draws_the_networks_that_it_drew():
    """Its table has additions alone, its field no messages along wires; the samples were kept when it was made."""
    data = Path(__file__).parent / "data"
    read = Flow.load(data / "flow-before-wires.safetensors")
    block = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4))
    layers = [torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), Residual(block), torch.nn.Linear(4, 2)]
    today = spec_of(torch.nn.Sequential(*layers), torch.zeros(2, 5))
    for spec in (None, today):  # traced anew it has wires, and it is the same network
        drawn = sample(read, 3, spec=spec, steps=4, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(drawn, load_file(data / "samples-before-wires.safetensors")["thetas"], atol=1e-6)


@pytest.mark.parametrize("flow", ["euclidean", "geometric"])
@pytest.mark.parametrize("spread", [0.1, 0.01])
def test_an_untrained_field_that_knows_units_draws_the_gaussian_of_every_coordinate(flow, spread, generator):
    """A zoo around one start, each coordinate with a spread of its own: its means and spreads come back, on spheres too."""
    network = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    spec = spec_of(network, torch.zeros(1, 9))
    start, spreads = torch.randn(spec.weights, generator=generator), spread * (0.2 + torch.rand(spec.weights, generator=generator))
    thetas = start + spreads * torch.randn(400, spec.weights, generator=generator)
    untrained, points = prepare(spec, thetas, CONFIG | {"flow": flow, "velocity": "identified", "sizes": {}})
    new = untrained.chart.point(sample(untrained, 400, generator=generator))
    assert (new.mean(0) - points.mean(0)).abs().mean() < 0.2 * points.std(0).mean()
    ratio = new.std(0) / points.std(0)
    assert 0.9 < ratio.median() < 1.1 and ((ratio > 0.75) & (ratio < 1.33)).double().mean() > 0.9


def test_the_moments_of_every_coordinate_are_kept(spec, thetas, tmp_path):
    made, _ = prepare(spec, thetas, CONFIG | {"velocity": "identified", "sizes": {}})
    made.save(tmp_path / "flow.safetensors")
    read = Flow.load(tmp_path / "flow.safetensors")
    assert read.chart.own is not None and torch.equal(read.chart.own, made.chart.own)
    assert prepare(spec, thetas, CONFIG)[0].chart.own is None  # an equivariant field cannot use them


def test_what_never_varied_is_not_taken_for_impossible(spec, thetas):
    """A bias that is 0 in all networks keeps a spread above 0, so that its errors stay finite in the loss."""
    stuck = thetas.clone()
    stuck[:, unpack(spec, torch.arange(spec.weights).double())["0.bias"].long()] = 0.0
    flow, points = prepare(spec, stuck, CONFIG | {"flow": "euclidean", "velocity": "identified", "sizes": {}})
    assert flow.chart.own[1].min() == pytest.approx(LEAST)
    assert flow.matching_loss(points, torch.zeros_like(points), torch.full((len(points),), 0.5)).isfinite()


def test_snapshots_of_independent_runs_have_no_common_order(generator):
    """Neighbours in such a zoo are of one run, and say nothing of the others."""
    spec = spec_of(mlp(4, [9], 2), torch.zeros(1, 4))
    runs = torch.randn(20, 1, spec.weights, generator=generator)
    thetas = (runs + 0.05 * torch.randn(20, 32, spec.weights, generator=generator)).flatten(0, 1)
    assert order_kept(spec, thetas) < 0.3 and velocity_for(spec, thetas)[0] == "transformer"
    assert order_kept(spec, thetas[:32]) == 1.0


def test_the_reason_for_a_field_follows_the_case(generator):
    spec, alone = spec_of(mlp(4, [9], 2), torch.zeros(1, 4)), spec_of(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    velocity, reason = velocity_for(alone, torch.randn(8, alone.weights, generator=generator))
    assert (velocity, "no units of these networks are exchangeable" in reason) == ("identified", True)
    same = torch.randn(1, spec.weights, generator=generator) + 0.01 * torch.randn(8, spec.weights, generator=generator)
    assert velocity_for(spec, same)[0] == "identified"
    assert velocity_for(spec, same, "equivariant_ot")[0] == "transformer"


def test_a_training_goes_on_whether_its_field_was_asked_for_or_found(spec, thetas, tmp_path):
    common = {"iterations": 2, "batch": 4, "progress": False, "checkpoint": tmp_path / "training.safetensors"}
    found = fit(spec, thetas, **common)
    assert fit(spec, thetas, velocity=found.config["velocity"], **common).losses == found.losses


def test_a_table_without_the_wires_of_a_group_is_refused(generator):
    spec = spec_of(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"share the permutation group 0, and no wires .*Add a Wire"):
        fit(replace(spec, wires=()), torch.randn(9, spec.weights, generator=generator), iterations=1, batch=4, progress=False)


@pytest.mark.parametrize(("apart", "velocity"), [(0.1, "identified"), (None, "transformer")])
def test_the_field_is_chosen_by_the_order_of_the_units(apart, velocity, generator):
    """Networks around one start have their units in one order; independent ones do not."""
    spec = spec_of(mlp(4, [9], 2), torch.zeros(1, 4))
    start, noise = (torch.randn(n, spec.weights, generator=generator) for n in (1, 20))
    thetas = noise if apart is None else start + apart * noise
    flow, _ = prepare(spec, thetas, CONFIG | {"velocity": "auto", "sizes": {}})
    assert flow.config["velocity"] == velocity
    assert re.match(rf"velocity={velocity}: \d+% of the units keep their place", flow.config["reason"])


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("velocity", ["transformer", "mlp"])
def test_a_flow_is_saved_and_read_to_the_last_bit(flow, velocity, spec, thetas, tmp_path):
    trained = fit(spec, thetas, flow=flow, velocity=velocity, iterations=2, batch=4, progress=False)
    trained.save(tmp_path / "flow.safetensors")
    read = Flow.load(tmp_path / "flow.safetensors")
    first, second = (sample(f, 3, steps=2, generator=torch.Generator().manual_seed(1)) for f in (trained, read))
    assert torch.equal(first, second)
    assert read.spec == trained.spec and read.losses == pytest.approx(trained.losses)


@pytest.mark.parametrize("coupling", ["independent", "ot", "equivariant_ot"])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(coupling, spec, thetas, tmp_path):
    config = CONFIG | {"coupling": coupling}
    whole = train(*prepare(spec, thetas, config), progress=False)
    flow, points = prepare(spec, thetas, config)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _train_until(4, flow, points, path)
    assert len(read_tensors(path)[0]["losses"]) == 3
    resumed = train(*prepare(spec, thetas, config), checkpoint=path, every=3, progress=False)
    assert resumed.losses == whole.losses
    assert len(read_tensors(path)[0]["losses"]) == 6
    damaged, metadata = read_tensors(path)  # what is read is what goes on: other losses in the file are the losses of the result
    write_tensors(path, damaged | {"losses": damaged["losses"][:5] * 0}, metadata)
    assert train(*prepare(spec, thetas, config), checkpoint=path, progress=False).losses[:5] == [0.0] * 5
    for a, b in zip(whole.field.state_dict().values(), resumed.field.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def _train_until(iteration, flow, points, path):
    """Train with checkpoints every 3 iterations and be interrupted in the middle of a later one."""
    step = Progress.step

    def interrupted(self, *batch):
        loss = step(self, *batch)
        if self.iteration == iteration:
            raise KeyboardInterrupt
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", interrupted)
        train(flow, points, path, every=3, progress=False)


def test_a_step_is_muon_s_on_hidden_matrices_and_adamw_s_on_the_rest(spec, thetas, generator):
    flow, points = prepare(spec, thetas, CONFIG)
    together, apart = Progress(flow), replace(flow, field=deepcopy(flow.field))
    matrices = [p for name, p in apart.field.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    rest = [p for p in apart.field.parameters() if all(p is not matrix for matrix in matrices)]
    assert matrices and rest
    alone = [torch.nn.Parameter(matrix.detach()[None]) for matrix in matrices]  # each a stack of its own
    muon, adamw = Muon(alone, weight_decay=1e-3), torch.optim.AdamW(rest, lr=1e-2, weight_decay=1e-3)
    x, t = points[:4], torch.tensor([0.1, 0.3, 0.6, 0.9])
    for _ in range(3):
        noise = flow.chart.manifold.random(*x.shape, generator=generator)
        together.step(noise, x, t, lr=1e-2)
        apart.field.zero_grad()
        apart.matching_loss(*geodesic(flow.chart.manifold, noise, x, t), t).backward()
        torch.nn.utils.clip_grad_norm_(apart.field.parameters(), 1.0)
        for stack, matrix in zip(alone, matrices, strict=True):
            stack.grad = matrix.grad[None]
        muon.step(3e-2)
        adamw.step()
    for (name, a), b in zip(together.flow.field.named_parameters(), apart.field.parameters(), strict=True):
        told = b.grad.abs() > 1e-6  # AdamW makes whole steps of the rounding where the true gradient is 0, as in the biases of keys
        assert torch.allclose(a[told], b[told], atol=1e-4), name


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_twin_takes_the_same_steps(norm, generator):
    flow, points = prepare(*zoo_of(mlp(3, [4], 2, norm=norm), generator), CONFIG)
    field, twin = Progress(flow), Progress(replace(flow, field=MessagePassingTransformer(deepcopy(flow.field))))
    for _ in range(3):
        noise, t = flow.chart.manifold.random(*points[:4].shape, generator=generator), torch.tensor([0.1, 0.3, 0.6, 0.9])
        assert twin.step(noise, points[:4], t, lr=1e-3) == pytest.approx(field.step(noise, points[:4], t, lr=1e-3), rel=1e-4)


def zoo_of(network, generator):
    """The table of a network that reads 3 numbers, and 20 random networks with variances above 0."""
    spec = spec_of(network, torch.zeros(2, 3))
    return spec, with_variances(spec, torch.randn(20, spec.weights, generator=generator))


def with_variances(spec, thetas):
    variances = variances_of(spec)
    return thetas.index_copy(1, variances, thetas[:, variances].abs())


def test_a_checkpoint_of_another_training_is_refused(spec, thetas, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    train(*prepare(spec, thetas, CONFIG), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="another training"):
        train(*prepare(spec, thetas, CONFIG | {"lr": 5e-4}), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="another training"):
        train(*prepare(spec, thetas * 2, CONFIG), checkpoint=path, progress=False)
    flow, points = prepare(spec, thetas, CONFIG)  # as if the canonical form had changed since
    with pytest.raises(ValueError, match="another training"):
        train(flow, points.flip(1), checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="corrupt"):
        train(*prepare(spec, thetas, CONFIG), checkpoint=path, progress=False)


def test_corrupt_foreign_and_missing_flows_are_named(spec, thetas, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no flow at"):
        Flow.load(tmp_path / "none.safetensors")
    (tmp_path / "corrupt.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="corrupt"):
        Flow.load(tmp_path / "corrupt.safetensors")
    save_file({"weights": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a flow of this version"):
        Flow.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "geometri"}, "Unknown flow 'geometri'. Known: euclidean, normalized, geometric"),
        ({"velocity": "gnn"}, "Known: transformer, identified, mlp"),
        ({"coupling": "none"}, "Known: independent, ot, equivariant_ot"),
        ({"time": "late"}, "Known: uniform, beta"),
        ({"prediction": "noise"}, "Known: preconditioned, velocity, endpoint"),
        ({"weighting": "late"}, "Known: balanced, uniform"),
        ({"batch": 21}, "batch=21 is more than the 20 networks"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"ema": 2.0}, "ema from 0 to below 1"),
        ({"velocity": "mlp", "coupling": "equivariant_ot"}, "velocity=transformer"),
    ],
)
def test_wrong_options_are_answered_with_the_right_ones(options, message, spec, thetas):
    with pytest.raises(ValueError, match=message):
        fit(spec, thetas, progress=False, **{"batch": 4, "iterations": 1} | options)


def test_only_the_polar_flow_has_the_last_layer_on_a_sphere(spec, thetas):
    """Elsewhere only rows that a symmetry rescales lie on spheres."""
    charts = {name: prepare(spec, thetas, CONFIG | {"flow": name})[0].chart for name in FLOWS}
    spheres = {name: [tuple(index.shape) for index in chart.manifold.spheres] for name, chart in charts.items()}
    assert spheres == {"euclidean": [], "normalized": [], "geometric": [(4, 3)], "geometric_polar": [(4, 3), (1, 8)]}
    assert {name: chart.graph.size - spec.weights for name, chart in charts.items()} == {**dict.fromkeys(FLOWS, 0), "geometric_polar": 1}


@pytest.mark.parametrize(("flow", "then"), [("geometric_polar", "geometric"), ("euclidean", "euclidean")])
def test_flows_from_before_the_last_layer_was_flat_are_read_as_what_they_are(flow, then, spec, thetas, tmp_path):
    made, points = prepare(spec, thetas, CONFIG | {"flow": flow})
    made.save(tmp_path / "flow.safetensors")
    assert Flow.load(tmp_path / "flow.safetensors").config == made.config
    tensors, metadata = read_tensors(tmp_path / "flow.safetensors")
    config = {name: value for name, value in json.loads(metadata["config"]).items() if name not in ("align", "weighting")}
    older = {"format": "geoflow-5", "config": json.dumps(config | {"flow": then})}
    write_tensors(tmp_path / "older.safetensors", tensors, metadata | older)
    read = Flow.load(tmp_path / "older.safetensors")
    assert read.config == made.config
    assert torch.equal(read.chart.theta(points), made.chart.theta(points))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_without_alignment_the_flow_sees_the_same_networks_as_they_came(flow, activation, thetas, generator):
    spec = spec_of(mlp(3, [4], 2, activation), torch.zeros(1, 3))
    moved = apply_symmetry(spec, thetas, random_symmetry(spec, generator))
    (aligned, points), (other, own) = (prepare(spec, moved, CONFIG | {"flow": flow, "align": align}) for align in (True, False))
    as_they_came = balance(spec, moved) if FLOWS[flow].balance else moved
    assert torch.allclose(other.chart.theta(own), as_they_came, rtol=1e-3, atol=1e-4)
    assert torch.allclose(aligned.canonical(other.chart.theta(own)), aligned.chart.theta(points), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(points, own, atol=1e-2)
    with pytest.raises(ValueError, match="align=False"):
        sample(other, 2, start=0.1)


def test_wrong_zoos_are_named(spec, thetas):
    with pytest.raises(ValueError, match="at least 2 networks"):
        fit(spec, thetas[:1], batch=1, iterations=1, progress=False)
    broken = thetas.clone()
    broken[7, 0] = float("nan")
    with pytest.raises(ValueError, match=r"[Nn]etwork 7.*0\.weight"):
        fit(spec, broken, batch=4, iterations=1, progress=False)
    dead = thetas.clone()
    dead[5, :3] = 0
    with pytest.raises(ValueError, match=r"Network 5 has a dead unit at .*in all: 1\)"):
        fit(spec, dead, batch=4, iterations=1, progress=False)
    for flow in ("euclidean", "normalized"):
        fit(spec, dead, flow=flow, batch=4, iterations=1, progress=False)
    silent = thetas.clone()
    silent[2, graph_of(spec).blocks[1].index.flatten()] = 0
    with pytest.raises(ValueError, match=r"Network 2.*output layer"):
        fit(spec, silent, flow="geometric_polar", batch=4, iterations=1, progress=False)
    states = [mlp(3, [4], 2).state_dict(), mlp(3, [5], 2).state_dict()]
    with pytest.raises(ValueError, match=r"Network 1.*0\.weight.*architecture"):
        pack(spec, states)
    with pytest.raises(ValueError, match="empty"):
        pack(spec, [])


@pytest.mark.parametrize("flow", FLOWS)
def test_a_gain_of_zero_is_served_for_it_lies_on_no_sphere(flow, generator):
    layers = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    spec = spec_of(torch.nn.Sequential(*layers), torch.zeros(2, 4))
    thetas = torch.rand(20, spec.weights, generator=generator) + 0.5
    (gain,) = (start for tensor, start in zip(spec.tensors, spec.offsets, strict=True) if tensor.kind == "gain")
    thetas[5, gain + 2] = 0
    fitted = fit(spec, thetas, flow=flow, batch=4, iterations=1, progress=False)
    canonical = fitted.canonical(thetas)
    assert (canonical[5, gain : gain + 3] == 0).sum() == 1
    assert torch.allclose(fitted.chart.theta(fitted.chart.point(canonical)), canonical, atol=1e-5)


def test_a_zoo_in_double_precision_is_served(spec, thetas):
    trained = fit(spec, thetas.double(), iterations=2, batch=4, progress=False)
    assert sample(trained, 2, steps=2).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_zoo_in_half_precision_is_served_as_the_same_numbers_in_single(dtype, spec, thetas):
    half, x = thetas.to(dtype), torch.randn(30, 3).to(dtype)
    (made, points), (single, expected) = (prepare(spec, zoo, CONFIG, x.to(zoo)) for zoo in (half, half.float()))
    assert made.chart.manifold.check_point_on_manifold(points[0]) and torch.equal(points, expected)
    assert {axes.dtype for axes in (*made.chart.frame.axes.values(), *made.chart.frame.moments.values())} == {torch.float32}
    assert made.config["zoo"] == single.config["zoo"]


def test_a_diverging_training_is_stopped(spec, thetas):
    flow, points = prepare(spec, thetas, CONFIG)
    points[:] = float("inf")
    with pytest.raises(FloatingPointError, match="iteration 0"):
        train(flow, points, progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_everything_runs_on_a_gpu(norm, tmp_path):
    task = load_task("iris")
    network = mlp(4, [6], 3, norm=norm)
    spec = spec_of(network, task.x_train[:2])
    thetas = with_variances(spec, torch.randn(20, spec.weights))
    for _ in range(2):  # the second time it goes on from the checkpoint
        trained = fit(
            spec, thetas, iterations=4, batch=4, coupling="ot", device="cuda", checkpoint=tmp_path / "c.safetensors", progress=False
        )
    pull = task_guidance(network, task.x_train.cuda(), task.y_train.cuda(), 0.1)
    drawn = sample(trained, 3, steps=2, guidance=pull)
    assert drawn.is_cuda and evaluate(network, spec, drawn, task.x_train.cuda(), task.y_train.cuda()).nll.isfinite().all()
    assert MessagePassingTransformer(trained.field)(trained.chart.graph, trained.chart.point(drawn), torch.rand(3).cuda()).is_cuda
    there, points = prepare(spec, thetas.cuda(), CONFIG, task.x_train)
    assert torch.allclose(there.chart.point(there.canonical(thetas.cuda())).to(points), points, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "change",
    [{}, *({"prediction": name} for name in PREDICTIONS), *({"velocity": name, "sizes": {}} for name in VELOCITIES), {"flow": "euclidean"}],
    ids=str,
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_recorded_steps_are_the_eager_ones(change, norm, generator, monkeypatch):
    (spec, thetas), found = zoo_of(mlp(3, [4], 2, norm=norm), generator), []
    for eager in (recording.EAGER, 100):
        monkeypatch.setattr(recording, "EAGER", eager)
        untrained, points = prepare(spec, thetas, CONFIG | {"iterations": 12, "lr": 1e-3} | change)
        found.append(train(untrained.to("cuda"), points.cuda(), progress=False).losses)
    assert found[0] == pytest.approx(found[1], rel=1e-3) and found[0][-1] != found[0][0]


@pytest.mark.parametrize(("count", "steps"), [(0, 5), (5, 0)])
def test_sampling_needs_something_to_do(count, steps, spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG)
    with pytest.raises(ValueError, match="at least one"):
        sample(flow, count, steps=steps)


@pytest.mark.parametrize("sharpness", [-1.0, float("nan"), float("inf")])
def test_sharpness_is_a_number_of_at_least_zero(sharpness, spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG)
    with pytest.raises(ValueError, match="must be a number of at least 0"):
        sample(flow, 1, steps=1, sharpness=sharpness)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("start", [0.1, 0.6])
def test_a_head_start_has_the_law_of_noised_networks_unit_by_unit(flow, start, spec, generator):
    """Of a zoo that is narrow around a centre with a value of its own for every weight."""
    thetas = torch.linspace(-2, 2, spec.weights) + 0.01 * torch.randn(4000, spec.weights, generator=generator)
    made, points = prepare(spec, thetas, CONFIG | {"flow": flow})
    x_0 = noise(made.chart, len(points), generator)
    found = head_start(made.chart, made.reference, noise(made.chart, len(points), generator), start)
    expected = geodesic(made.chart.manifold, x_0, points, torch.full((len(points),), start))[0]
    narrow = slice(None, spec.weights)  # the log-norm of all outputs is in units of its own spread, which the centre has none of
    assert torch.allclose(found.mean(0)[narrow], expected.mean(0)[narrow], atol=0.06)
    assert torch.allclose(found.std(0)[narrow], expected.std(0)[narrow], atol=0.06)
    assert (found.mean(0) - expected.mean(0).roll(1)).abs().max() > 0.1  # which coordinate is which can be told
    assert made.chart.manifold.check_point_on_manifold(found[0])


def test_the_later_the_start_the_nearer_are_the_networks_to_the_aligned_zoo(spec, generator):
    thetas = torch.linspace(-2, 2, spec.weights) + 0.05 * torch.randn(20, spec.weights, generator=generator)
    flow, points = prepare(spec, thetas, CONFIG)
    randomise(flow.field)

    def distance(start):
        drawn = flow.chart.point(sample(flow, 64, steps=4, start=start, generator=torch.Generator().manual_seed(0)))
        return (drawn.mean(0) - flow.chart.manifold.projx(points.mean(0))).norm().item()

    far, near, there = map(distance, (0.0, 0.5, 0.99))
    assert far > near > there and there < 0.2 * far


@pytest.mark.parametrize("start", [-0.1, 1.0, float("nan")])
def test_a_start_is_a_time_before_the_end(start, spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG)
    with pytest.raises(ValueError, match="must be a time from 0 to below 1"):
        sample(flow, 1, steps=1, start=start)


def test_a_start_needs_an_aligned_zoo_of_the_same_units(spec, thetas, tmp_path):
    flow, _ = prepare(spec, thetas, CONFIG)
    other = spec_of(mlp(3, [6], 2), torch.zeros(1, 3))
    assert sample(flow, 2, steps=1, spec=other).shape == (2, other.weights)
    with pytest.raises(ValueError, match="another architecture has other units"):
        sample(flow, 2, steps=1, spec=other, start=0.2)
    flow.save(tmp_path / "flow.safetensors")
    again, twin = Flow.load(tmp_path / "flow.safetensors"), torch.Generator()
    first, second = (sample(one, 2, steps=1, spec=spec, start=0.2, generator=twin.manual_seed(1)) for one in (flow, again))
    assert torch.equal(first, second)


def test_an_unknown_solver_is_answered_with_the_known(spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG)
    with pytest.raises(ValueError, match="euler, midpoint, heun, rk4"):
        sample(flow, 1, solver="eular")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_that_looks_at_the_end_serves_no_predicted_endpoint(solver, spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG | {"prediction": "endpoint"})
    if solver in ("euler", "midpoint"):
        assert sample(flow, 2, steps=2, solver=solver).shape == (2, spec.weights)
    else:
        with pytest.raises(ValueError, match=f"solver='{solver}' looks at t = 1.*Choose euler or midpoint"):
            sample(flow, 2, steps=2, solver=solver)


def test_sampling_in_inference_mode_leaves_a_flow_that_can_be_trained(spec, thetas, tmp_path):
    prepare(spec, thetas, CONFIG)[0].save(tmp_path / "flow.safetensors")
    flow = Flow.load(tmp_path / "flow.safetensors")
    with torch.inference_mode():
        drawn = sample(flow, 2, steps=2)
    x_t = flow.chart.point(flow.canonical(drawn))
    flow.matching_loss(x_t, torch.ones_like(x_t), torch.full((2,), 0.5)).backward()
    assert any(parameter.grad is not None for parameter in flow.field.parameters())


def test_batches_of_sampling_do_not_change_the_samples(spec, thetas):
    flow, _ = prepare(spec, thetas, CONFIG)
    randomise(flow.field)
    first, second = (sample(flow, 7, steps=3, batch=b, generator=torch.Generator().manual_seed(0)) for b in (7, 2))
    assert torch.allclose(first, second, atol=1e-5)


def test_making_a_field_leaves_the_generators_of_every_device_as_they_are(spec, thetas, monkeypatch):
    chart = prepare(spec, thetas, CONFIG)[0].chart
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(5)
    seeded.clear()
    before = torch.get_rng_state()
    build_flow(chart, thetas[0], CONFIG)
    assert torch.equal(torch.get_rng_state(), before) and not seeded


def test_the_seed_decides_the_field(spec, thetas):
    chart = prepare(spec, thetas, CONFIG)[0].chart
    a, b, c = (build_flow(chart, thetas[0], CONFIG | {"seed": seed}).field.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.filterwarnings("ignore:.*does not read them")  # heads that only training uses
@pytest.mark.parametrize(
    "name", ["cnn", "resnet", "cnn depthwise", "cnn grouped", "group norm", "swiglu", "attention", "tied", "lazy", "free", "repeated"]
)
@pytest.mark.parametrize("flow", ["euclidean", "geometric", "geometric_polar"])
def test_any_network_comes_out_whole(name, flow):
    """Twelve fresh networks in, state dicts out that load strictly and compute finite numbers."""
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    networks = [make() for _ in range(12)]
    spec = spec_of(networks[0], example())
    zoo = pack(spec, [network.state_dict() for network in networks])
    trained = fit(spec, zoo, flow=flow, sizes=CONFIG["sizes"], iterations=2, batch=4, progress=False)
    for theta in sample(trained, 2, steps=2):
        networks[0].load_state_dict(unpack(spec, theta), strict=True)
        x = example()
        output = networks[0].eval()(*(x if isinstance(x, tuple) else (x,)))
        assert output.isfinite().all()
