"""Flows in the principal components of a zoo, and what training may change about noise, paths, field and optimizer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from geoflow import FLOWS, Flow, evaluate, fit, guide, log_prob, sample, scoreboard, spec_of
from geoflow.batches import moved_aside, pools_of
from geoflow.checkpoint import Progress
from geoflow.latent import components
from geoflow.paths import geodesic
from geoflow.sources import noise
from geoflow.targets import gaussian
from geoflow.training import fingerprint_of_zoos, prepare, train, train_step
from geoflow.zoo.initial import INITS
from geoflow.zoo.networks import mlp
from geoflow.zoo.own import own_task
from geoflow.zoo.store import load_zoo
from geoflow.zoo.tasks import load_task
from geoflow.zoo.train import train_zoo

CONFIG = {"flow": "euclidean", "align": True, "velocity": "mlp", "coupling": "independent", "time": "uniform", "weighting": "balanced"}
CONFIG |= {"prediction": "preconditioned", "sizes": {"width": 16}, "iterations": 6, "batch": 4, "lr": 1e-3, "weight_decay": 1e-3}
CONFIG |= {"ema": 0.9, "seed": 0}
SMALL = {"iterations": 2, "batch": 4, "progress": False}


@pytest.fixture
def spec():
    return spec_of(mlp(3, [4], 2), torch.zeros(1, 3))


@pytest.fixture
def thetas(spec, generator):
    return torch.randn(12, spec.weights, generator=generator)


def draw(flow: Flow, **how) -> torch.Tensor:
    return sample(flow, 5, steps=3, generator=torch.Generator().manual_seed(1), **how)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("align", [True, False])
def test_all_components_give_back_the_zoo_on_every_chart(flow, align, spec, thetas):
    made, points = prepare(spec, thetas, CONFIG | {"flow": flow, "align": align, "latent": "pca"})
    assert points.shape == (12, 11) and points.square().mean().item() == pytest.approx(11 / 12, rel=1e-4)
    seen = made.chart.theta(points)
    plain, plain_points = prepare(spec, thetas, CONFIG | {"flow": flow, "align": align})
    assert seen.allclose(plain.chart.theta(plain_points), atol=1e-5)
    assert made.chart.point(seen).allclose(points, atol=1e-4)
    few, few_points = prepare(spec, thetas, CONFIG | {"flow": flow, "align": align, "latent": "pca", "components": 4})
    assert few_points.shape == (12, 4) and not few.chart.theta(few_points).allclose(seen, atol=1e-2)


@pytest.mark.parametrize("flow", FLOWS)
def test_every_point_becomes_a_network_of_the_chart(flow, spec, thetas, generator):
    made, _ = prepare(spec, thetas, CONFIG | {"flow": flow, "latent": "pca", "components": 4})
    theta = made.chart.theta(3 * torch.randn(2, 7, 4, generator=generator))
    assert theta.shape == (2, 7, spec.weights)
    assert made.chart.nearest(theta).allclose(theta, atol=1e-5)  # rows that should have norm 1 have it


def test_distances_between_networks_are_those_of_the_chart(spec, thetas):
    (_, latent), (plain, points) = (
        prepare(spec, thetas, CONFIG | {"flow": "geometric", "latent": "pca"}),
        prepare(spec, thetas, CONFIG | {"flow": "geometric"}),
    )
    ratio = torch.pdist(latent) / torch.pdist(points * plain.chart.scale)
    assert ratio.std() < 1e-4 * ratio.mean()


@pytest.mark.parametrize("components, count", [(None, 11), (3, 3), (0.999999, 11), (0.2, None)])
def test_a_flow_in_components_is_used_like_any_other(components, count, spec, thetas, tmp_path):
    flow = fit(spec, thetas, latent="pca", components=components, **SMALL)
    assert flow.config["velocity"] == "mlp" and "components belong to no units" in flow.config["reason"]
    assert count is None or flow.chart.graph.size == count
    flow.save(tmp_path / "flow.safetensors")
    again = Flow.load(tmp_path / "flow.safetensors")
    for how in (
        {},
        {"solver": "rk4"},
        {"sharpness": 0.5},
        {"start": 0.3},
        {"guidance": guide(lambda states: states["0.bias"].square().sum(1))},
    ):
        new = draw(flow, **how)
        assert new.shape == (5, spec.weights) and new.isfinite().all() and draw(again, **how).equal(new)


def test_it_serves_conditions_couplings_and_the_scoreboard(spec, thetas, generator):
    flow = fit(spec, thetas, latent="pca", coupling="ot", conditions=torch.arange(12) % 2, **SMALL)
    assert not draw(flow, condition=torch.tensor(1)).isnan().any()
    x, paths = torch.randn(40, 3, generator=generator), []
    data = own_task(x[:20], (x[:20, 0] > 0).long(), x[20:], (x[20:, 0] > 0).long())
    new = draw(flow, watch=paths.append)
    board = scoreboard(mlp(3, [4], 2), spec, thetas, new, data, flow, paths=torch.stack(paths))
    assert board.metrics["novelty"]["ratio"] > 0 and "weights" in board.figures
    assert evaluate(mlp(3, [4], 2), spec, new, data.x_test, data.y_test).nll.isfinite().all()


def test_a_large_zoo_goes_to_a_file_beside_the_flow(spec, thetas, tmp_path, monkeypatch):
    monkeypatch.setattr(components, "WITHIN", 100)
    flow = fit(spec, thetas, latent="pca", **SMALL)
    (tmp_path / "a").mkdir()
    flow.save(tmp_path / "a" / "flow.safetensors")
    (tmp_path / "a").rename(tmp_path / "b")  # the two stay together
    path, beside = tmp_path / "b" / "flow.safetensors", tmp_path / "b" / "flow.zoo.safetensors"
    assert beside.exists() and draw(Flow.load(path)).allclose(draw(flow), atol=1e-6)
    Flow.load(path).save(tmp_path / "elsewhere.safetensors")  # which names the file where it lies
    assert draw(Flow.load(tmp_path / "elsewhere.safetensors")).allclose(draw(flow), atol=1e-6)
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"flow\.zoo\.safetensors is not the file .* sha256 begins with"):
        Flow.load(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"flow\.zoo\.safetensors, which is gone\. Put the file there"):
        Flow.load(path)


REFUSED = [
    ({"latent": "pca", "velocity": "transformer"}, "velocity=transformer reads units and weights, .*Choose velocity=mlp, or latent=none"),
    ({"latent": "pca", "velocity": "identified"}, "velocity=identified reads units and weights"),
    ({"latent": "svd"}, "Unknown latent 'svd'. Known: none, pca"),
    ({"components": 5}, "components=5 serves latent=pca"),
    ({"latent": "pca", "components": 12}, "components=12: 12 networks have at most 11 components"),
    ({"latent": "pca", "components": 1.5}, "a share of the variance is below 1"),
    ({"latent": "pca", "coupling": "equivariant_ot"}, "coupling=equivariant_ot reorders the units"),
    ({"dropout": 0.1}, "dropout=0.1 serves velocity=mlp"),
    ({"dropout": 1.0, "velocity": "mlp"}, "dropout=1.0 must be a share"),
    ({"spread": 0.0}, "spread=0.0 must be above 0"),
    ({"jitter": -1.0}, "jitter=-1.0 at least 0"),
    ({"pool": 0}, "pool=0 must be a whole number of at least 1"),
    ({"optimizer": "sgd"}, "Unknown optimizer 'sgd'. Known: muon, adamw"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_does_not_go_together_is_refused_with_the_cure(options, said, spec, thetas):
    with pytest.raises(ValueError, match=said):
        fit(spec, thetas, **options, **SMALL)


def test_what_components_cannot_serve_is_refused_with_the_cure(spec, thetas):
    flow, wider = fit(spec, thetas, latent="pca", **SMALL), spec_of(mlp(3, [6], 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"have 26 weights, and cannot make others of 38\. .*latent=none and velocity=transformer"):
        sample(flow, 2, spec=wider)
    for measure in ("points", "weights"):
        with pytest.raises(ValueError, match=r"no density over networks: .* lie in 11 of 26 dimensions\. Fit a flow with latent=none"):
            log_prob(flow, thetas, measure=measure)
    with pytest.raises(ValueError, match="Choose velocity=transformer"):
        fit([spec, wider], [thetas, torch.randn(12, wider.weights)], latent="pca", **SMALL)


# Noise, paths, field and optimizer


@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("latent", ["none", "pca"])
def test_the_gaussian_s_velocity_leads_noise_of_any_spread_to_the_moments_of_the_zoo(spread, latent, spec, thetas, generator):
    """A new field predicts 0, so the flow is that of the Gaussian with the zoo's moments, whatever it begins with."""
    flow, _ = prepare(spec, thetas, CONFIG | {"spread": spread, "latent": latent})
    x_0 = noise(flow.chart, 4000, generator)
    assert x_0.std().item() == pytest.approx(spread, rel=0.02) and x_0.mean().abs() < 0.05 * spread
    ends = []
    sample(flow, 4000, solver="rk4", steps=40, generator=generator, watch=lambda x: ends.append(x), batch=4000)
    mean, deviation = flow.chart.moments
    assert ((ends[-1].mean(0) - mean).abs() < 0.1 * deviation).all() and (ends[-1].std(0) / deviation - 1).abs().max() < 0.1


@pytest.mark.parametrize("spread", [0.2, 1.0, 3.0])
def test_what_a_gaussian_leaves_open_is_the_deviation_of_the_rest(spread, spec, thetas, generator):
    flow, _ = prepare(spec, thetas, CONFIG | {"spread": spread})
    (mean, deviation), count = flow.chart.moments, 40_000
    x_0 = noise(flow.chart, count, generator)
    x_1 = mean + deviation * torch.randn(x_0.shape, generator=generator)
    for t in (0.1, 0.5, 0.9):
        x_t, dx_t = geodesic(flow.chart.manifold, x_0, x_1, torch.full((count,), t))
        standard, expected, rest = gaussian(x_t, torch.full((count,), t), flow.chart)
        assert (standard.std(0) - 1).abs().max() < 0.03
        assert ((dx_t - expected).std(0) / rest[0] - 1).abs().max() < 0.03
        assert ((dx_t - expected) * standard).mean(0).abs().max() < 0.03 * rest.max()  # nothing linear is left to learn


def test_on_spheres_noise_is_uniform_whatever_the_spread(spec, thetas, generator):
    flow, _ = prepare(spec, thetas, CONFIG | {"flow": "geometric", "spread": 0.1})
    x, plain = noise(flow.chart, 50, generator), replace(flow.chart, spread=1.0)
    assert flow.chart.manifold.check_point_on_manifold(x)
    assert x[:, flow.chart.flat].std() < 0.2 and noise(plain, 50, generator)[:, flow.chart.flat].std() > 0.8


def test_a_density_counts_the_spread(generator):
    spec = spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    flow, points = prepare(spec, torch.randn(30, 2, generator=generator), CONFIG | {"spread": 0.3})
    wanted = torch.distributions.Normal(*flow.chart.moments).log_prob(points[:5]).sum(1)
    assert log_prob(flow, flow.chart.theta(points[:5]), steps=64).allclose(wanted, atol=1e-3)


@pytest.fixture
def seen(monkeypatch):
    """The ends of the paths of every training step."""
    ends, step = [], Progress.step

    def watched(self, x_0, x_1, *rest):
        ends.append((x_0, x_1))
        return step(self, x_0, x_1, *rest)

    monkeypatch.setattr(Progress, "step", watched)
    return ends


@pytest.mark.parametrize(("pool", "most"), [(None, 24), (5, 5), (1, 1)])
def test_a_pool_is_all_the_noise_that_a_training_sees(pool, most, spec, thetas, seen):
    flow, points = prepare(spec, thetas, CONFIG | {"pool": pool})
    train(flow, points, progress=False)
    different = torch.cat([x_0 for x_0, _ in seen]).unique(dim=0)
    assert len(different) == most if pool in (None, 1) else 1 < len(different) <= most
    if pool:
        assert all((pools_of(flow)[0] == one).all(1).any() for one in different)


@pytest.mark.parametrize("flow", ["euclidean", "geometric"])
def test_jitter_moves_the_whole_path_and_leaves_its_velocity(flow, spec, thetas, generator):
    made, points = prepare(spec, thetas, CONFIG | {"flow": flow})
    chart, flat = made.chart, made.chart.flat
    x_0, x_1 = noise(chart, 12, generator), points
    y_0, y_1 = moved_aside(chart, (x_0, x_1), 0.01, generator)
    assert chart.manifold.check_point_on_manifold(y_0) and chart.manifold.check_point_on_manifold(y_1)
    t = torch.rand(12, generator=generator)
    (x_t, dx_t), (y_t, dy_t) = geodesic(chart.manifold, x_0, x_1, t), geodesic(chart.manifold, y_0, y_1, t)
    assert (y_t - x_t)[:, flat].allclose((y_0 - x_0)[:, flat], atol=1e-6) and dy_t[:, flat].allclose(dx_t[:, flat], atol=1e-5)
    assert ((y_0 - x_0) * chart.scale).std().item() == pytest.approx(0.01, rel=0.2)


def test_jitter_reaches_the_training(spec, thetas, seen):
    for jitter in (0.0, 0.1):
        flow, points = prepare(spec, thetas, CONFIG | {"jitter": jitter})
        train_step(Progress(flow), [points], 1e-3)
    (plain_0, plain_1), (moved_0, moved_1) = seen
    assert (moved_0 - plain_0).allclose(moved_1 - plain_1, atol=1e-6)
    assert (moved_0 - plain_0).std().item() == pytest.approx(0.1, rel=0.3)


STIRRED = {"dropout": 0.3, "jitter": 0.1, "pool": 5, "spread": 0.5, "optimizer": "adamw", "latent": "pca"}


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(spec, thetas, tmp_path):
    config, path = CONFIG | STIRRED, tmp_path / "training.safetensors"
    whole = train(*prepare(spec, thetas, config), progress=False)
    flow, points = prepare(spec, thetas, config)
    run = Progress(flow, fingerprint_of_zoos([points]))
    for _ in range(3):
        train_step(run, [points], _rate(config, run.iteration), pools=pools_of(flow))
    run.save(path)
    torch.rand(5)  # what others draw meanwhile
    resumed = train(*prepare(spec, thetas, config), checkpoint=path, progress=False)
    assert resumed.losses == whole.losses
    assert all(a.equal(b) for a, b in zip(whole.field.state_dict().values(), resumed.field.state_dict().values(), strict=True))


def _rate(config: dict, iteration: int) -> float:
    from geoflow.training import _learning_rate

    return _learning_rate(config["lr"], iteration, config["iterations"])


def test_units_are_dropped_in_training_only_and_from_the_training_s_own_random_numbers(spec, thetas):
    def trained(**options) -> Flow:
        return train(*prepare(spec, thetas, CONFIG | options), progress=False)

    state = torch.get_rng_state()
    dropped = trained(dropout=0.5)
    assert torch.get_rng_state().equal(state)
    assert trained(dropout=0.5).losses == dropped.losses != trained().losses
    assert draw(dropped).equal(draw(dropped)) and not dropped.field.training


def test_adamw_trains_everything_where_it_is_asked_to(spec, thetas, generator):
    flow, points = prepare(spec, thetas, CONFIG | {"optimizer": "adamw"})
    together, apart = Progress(flow), replace(flow, field=deepcopy(flow.field))
    adamw = torch.optim.AdamW(apart.field.parameters(), lr=1e-2, weight_decay=1e-3)
    x, t = points[:4], torch.tensor([0.1, 0.3, 0.6, 0.9])
    for _ in range(3):
        x_0 = noise(flow.chart, 4, generator)
        together.step(x_0, x, t, lr=1e-2)
        adamw.zero_grad()
        apart.matching_loss(*geodesic(flow.chart.manifold, x_0, x, t), t).backward()
        torch.nn.utils.clip_grad_norm_(apart.field.parameters(), 1.0)
        adamw.step()
    for (name, a), b in zip(together.flow.field.named_parameters(), apart.field.parameters(), strict=True):
        told = b.grad.abs() > 1e-6
        assert torch.allclose(a[told], b[told], atol=1e-4), name


def test_initial_weights_are_drawn_as_asked(tmp_path):
    task = load_task("iris")
    settings = {"epochs": 1, "batch": 40, "lr": 1e-9, "weight_decay": 0.0, "seed": 0, "progress": False}
    default, he = (train_zoo(lambda: mlp(4, [50], 3), task, runs=3, init=init, **settings) for init in INITS)
    assert he["0.weight"].std().item() == pytest.approx((2 / 4) ** 0.5, rel=0.1) and he["2.bias"].abs().max() < 1e-6
    assert default["0.weight"].abs().max() <= 0.5 + 1e-6 and default["2.bias"].abs().max() > 0.01
    with pytest.raises(ValueError, match=r"Unknown init 'zeros'\. Known: torch, he"):
        train_zoo(lambda: mlp(4, [50], 3), task, runs=3, init="zeros", **settings)
    spec, plain = spec_of(mlp(4, [5], 3), torch.zeros(1, 4)), {"runs": 2, "snapshots": 1, "every": 1, "schedule": "constant"}
    plain |= {name: settings[name] for name in ("epochs", "batch", "lr", "weight_decay")}
    for more in ({}, {"init": "torch"}, {"init": "he"}):
        load_zoo(tmp_path, lambda: mlp(4, [5], 3), spec, task, plain | more, seed=0, progress=False)
    assert len(list(tmp_path.glob("zoo-*.safetensors"))) == 2  # zoos of before are found again
