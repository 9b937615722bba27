"""What outputs mean: the loss, the pools and the scores of classes and of real targets."""

import math
from dataclasses import fields, replace

import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.functional import cross_entropy

import geoflow
from geoflow.evaluation import predictions
from geoflow.evaluation.metrics import disagreement, ensemble_scores, evaluate, pooled_scores, scores, summary
from geoflow.outputs import OUTPUTS, RegressionScores, outputs_of
from geoflow.outputs.gaussian import FLOOR
from geoflow.population import itself
from geoflow.spec import NetworkSpec
from geoflow.zoo.networks import build_network, mlp
from geoflow.zoo.tasks import load_task, validation_task
from geoflow.zoo.train import train_zoo

GAUSSIAN = OUTPUTS["gaussian"]
NETS, EXAMPLES = 6, 40


@pytest.fixture(params=[1, 3], ids=["one target", "three targets"])
def regressors(request, generator):
    """Networks of one architecture in double precision, and examples with real targets."""
    targets = request.param
    network = mlp(4, [6], 2 * targets).double()
    spec = geoflow.spec_of(network, torch.zeros(1, 4, dtype=torch.float64))
    thetas = torch.randn(NETS, spec.weights, generator=generator, dtype=torch.float64)
    x, y = torch.randn(EXAMPLES, 4, generator=generator).double(), torch.randn(EXAMPLES, targets, generator=generator).double()
    return network, spec, thetas, x, y


@torch.no_grad()
def said(network, spec, thetas, x):
    """The predictive distribution of each network, by torch's own means: [nets, examples, targets]."""
    mean, raw = torch.stack([itself(network, geoflow.unpack(spec, theta))(x) for theta in thetas]).chunk(2, -1)
    return Normal(mean, (FLOOR + raw.exp()).sqrt())


def gap_by_hand(below):
    """The calibration error by its definition, from the cumulative probabilities of the targets."""
    levels = torch.arange(1, 20) / 20
    inside = (below > 0.5 - levels[:, None] / 2) & (below < 0.5 + levels[:, None] / 2)
    return (inside.double().mean(1) - levels).abs().mean().item()


# The loss


def test_gaussian_nll_is_that_of_torch(regressors):
    network, spec, thetas, x, y = regressors
    outputs = torch.stack([itself(network, geoflow.unpack(spec, theta))(x) for theta in thetas])
    expected = -said(network, spec, thetas, x).log_prob(y).sum(-1)
    torch.testing.assert_close(GAUSSIAN.nll(outputs, y), expected)
    torch.testing.assert_close(GAUSSIAN.nll(outputs, y.expand(NETS, *y.shape)), expected)  # targets of its own for each network
    torch.testing.assert_close(GAUSSIAN.nll(outputs[0], y), expected[0])


def test_nll_of_classes_is_cross_entropy(generator):
    logits, y = torch.randn(5, 9, 3, generator=generator), torch.randint(3, (9,), generator=generator)
    expected = torch.stack([cross_entropy(one, y, reduction="none") for one in logits])
    torch.testing.assert_close(OUTPUTS["classes"].nll(logits, y), expected)


@pytest.mark.parametrize("raw", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_no_log_variance_makes_loss_or_gradient_explode(raw):
    """The loss is at least log(2 pi FLOOR) / 2. The gradient by the raw log-variance is at most 1/2 where the error is 0."""
    outputs = torch.tensor([[0.3, raw]], requires_grad=True)
    loss = GAUSSIAN.nll(outputs, torch.tensor([[0.3]]))
    loss.backward()
    assert math.log(2 * math.pi * FLOOR) / 2 - 1e-4 <= loss.item() < math.inf
    assert 0 <= outputs.grad[0, 1] <= 0.5 and outputs.grad[0, 0] == 0


def test_the_log_variance_is_exact_in_single_precision():
    raw = torch.linspace(-40, 40, 81)
    exact = (FLOOR + raw.double().exp()).log()
    found = GAUSSIAN.prediction(torch.stack([torch.zeros_like(raw), raw], -1))[:, 1]
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


# Scores


@pytest.mark.parametrize("part", [1000, 7])
@pytest.mark.parametrize("batch", [1, 50, 2**18])
def test_scores_of_real_targets_are_those_of_one_network_after_the_other(regressors, batch, part, monkeypatch):
    monkeypatch.setattr(predictions, "PART", part)
    network, spec, thetas, x, y = regressors
    found, expected = evaluate(network, spec, thetas, x, y, batch, outputs="gaussian"), said(network, spec, thetas, x)
    for i, mean in enumerate(expected.mean):
        assert found.mse[i].item() == pytest.approx(mean_squared_error(y, mean))
        assert found.r2[i].item() == pytest.approx(r2_score(y, mean))  # for several targets both average
        assert found.nll[i].item() == pytest.approx(-expected.log_prob(y)[i].sum(-1).mean().item())
        assert found.calibration[i].item() == pytest.approx(gap_by_hand(expected.cdf(y)[i].flatten()))


def test_predictions_that_are_exactly_right_are_calibrated(generator):
    """A share of n targets has a standard error of at most 1 / (2 sqrt(n)), which is .002 for 60,000 targets."""
    mean, log_variance = torch.randn(2, 60_000, 1, generator=generator)
    y = mean + (log_variance / 2).exp() * torch.randn(60_000, 1, generator=generator)
    assert scores(torch.cat([mean, log_variance], -1), y, "gaussian").calibration < 0.006


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_calibration_of_wrong_deviations_is_known_in_closed_form(factor, generator):
    """Intervals that are `factor` times too long hold the share 2 Phi(factor z) - 1, where z is the quantile of the level."""
    y = torch.randn(60_000, 1, generator=generator)
    prediction = torch.cat([torch.zeros_like(y), torch.full_like(y, 2 * math.log(factor))], -1)
    levels, normal = torch.arange(1, 20) / 20, Normal(0, 1)
    expected = (2 * normal.cdf(factor * normal.icdf((1 + levels) / 2)) - 1 - levels).abs().mean().item()
    assert expected > 0.1
    assert scores(prediction, y, "gaussian").calibration.item() == pytest.approx(expected, abs=0.006)


def test_the_mean_of_the_targets_explains_nothing(generator):
    y = torch.randn(50, 2, generator=generator) + 5
    prediction = torch.cat([y.mean(0).expand(50, 2), torch.zeros(50, 2)], -1)
    assert scores(prediction, y, "gaussian").r2.item() == pytest.approx(0, abs=1e-5)
    assert scores(torch.cat([y, torch.zeros(50, 2)], -1), y, "gaussian").r2 == 1
    assert scores(prediction, torch.ones(50, 2), "gaussian").r2.isnan()  # nothing varies


def test_half_precision_is_summed_in_single_precision():
    prediction, y = torch.zeros(20_000, 2, dtype=torch.float16), torch.full((20_000, 1), 3.0, dtype=torch.float16)
    found = scores(prediction, y, "gaussian")
    assert found.mse.item() == 9 and found.nll.item() == pytest.approx(4.5 + math.log(2 * math.pi) / 2)


def test_a_network_without_numbers_scores_nan_and_leaves_the_others_alone():
    prediction = torch.zeros(2, 5, 2)
    prediction[1, 0, 0] = math.nan
    found = scores(prediction, torch.randn(5, 1), "gaussian")
    for field in fields(RegressionScores):
        assert getattr(found, field.name)[0].isfinite() and getattr(found, field.name)[1].isnan(), field.name


def test_the_fields_of_the_scores_are_the_columns():
    for kind in OUTPUTS.values():
        found = kind.scores(kind.sums(kind.facts(torch.zeros(3, 2).log_softmax(-1), _targets(kind)), _targets(kind)), _targets(kind))
        assert [field.name for field in fields(found)] == list(kind.columns) == list(summary(found))
        assert {*kind.main} <= {*kind.columns} and {*kind.pools} == {"linear", "log"}


def _targets(kind):
    return torch.tensor([0, 1, 0]) if kind is OUTPUTS["classes"] else torch.randn(3, 1)


# Ensembles


@pytest.mark.parametrize("batch", [1, 50, 2**18])
def test_the_linear_pool_is_the_mixture(regressors, batch):
    network, spec, thetas, x, y = regressors
    found, members = ensemble_scores(network, spec, thetas, x, y, batch, outputs="gaussian"), said(network, spec, thetas, x)
    loc, scale = (one.movedim(0, 1) for one in (members.mean, members.stddev))  # [examples, nets, targets]
    mixture = MixtureSameFamily(Categorical(logits=torch.zeros(NETS).double()), Independent(Normal(loc, scale), 1))
    assert found.nll.item() == pytest.approx(-mixture.log_prob(y).mean().item())
    assert found.mse.item() == pytest.approx(mean_squared_error(y, mixture.mean))
    assert found.r2.item() == pytest.approx(r2_score(y, mixture.mean))
    assert found.calibration.item() == pytest.approx(gap_by_hand(members.cdf(y).mean(0).flatten()))


def test_the_log_pool_is_the_normalised_product(generator):
    """By brute force: the density of the product, each member to the power 1 / members, on a fine grid."""
    predicted, y = torch.randn(4, 1, 2, generator=generator, dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    members, grid = Normal(predicted[:, 0, 0], (predicted[:, 0, 1] / 2).exp()), torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    density = members.log_prob(grid[:, None]).mean(1).exp()
    density = density / torch.trapezoid(density, grid)
    pool = GAUSSIAN.pools["log"]
    log_density, mean, below = pool.after(pool.add(pool.before(predicted, y)), 4, y)[0]
    at = (grid - y.item()).abs().argmin()
    assert log_density.exp().item() == pytest.approx(density[at].item())
    assert mean.item() == pytest.approx(torch.trapezoid(grid * density, grid).item())
    assert below.item() == pytest.approx(torch.trapezoid(density[: at + 1], grid[: at + 1]).item())


def test_an_ensemble_of_one_is_the_network_and_pools_of_several_differ(regressors):
    network, spec, thetas, x, y = regressors
    alone = evaluate(network, spec, thetas[:1], x, y, outputs="gaussian")
    for pooled in pooled_scores(network, spec, thetas[:1], x, y, outputs="gaussian").values():
        for field in fields(RegressionScores):
            torch.testing.assert_close(getattr(pooled, field.name), getattr(alone, field.name)[0])
    several = pooled_scores(network, spec, thetas, x, y, outputs="gaussian")
    assert abs(several["linear"].nll - several["log"].nll) > 1e-2


@pytest.mark.parametrize("batch", [1, 2**18])
def test_disagreement_of_real_targets_is_that_of_all_pairs(regressors, batch):
    network, spec, thetas, x, _ = regressors
    mean = said(network, spec, thetas, x).mean
    pairs = [(mean[i] - mean[j]).abs().mean().item() for i in range(NETS) for j in range(i)]
    assert disagreement(network, spec, thetas, x, batch, outputs="gaussian") == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(disagreement(network, spec, thetas[:1], x, outputs="gaussian"))


# Training and guidance


def test_diabetes_is_scaled_by_its_training_part():
    task = load_task("diabetes")
    assert task.x_train.shape == (353, 10) and task.y_test.shape == (89, 1) and task.units == 2 and task.classes == 0
    for part in (task.x_train, task.y_train):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(part.shape[1]))
    (target,) = task.targets
    raw = task.y_test * target.deviation + target.mean  # whole numbers from 25 to 346
    torch.testing.assert_close(raw, raw.round(), atol=1e-3, rtol=0)
    assert raw.min() >= 25 and raw.max() <= 346
    assert not torch.equal(task.y_test, load_task("diabetes", seed=1).y_test)
    valid = validation_task(task)
    assert len(valid.x_test) == 89 and len(valid.x_train) == 264 and valid.targets == task.targets


def test_trained_networks_know_more_than_mean_and_deviation():
    """A constant N(0, 1) has the NLL (1 + log 2 pi) / 2 = 1.42 on targets of variance 1."""
    task = validation_task(load_task("diabetes"))
    build = lambda: build_network("mlp", task, {})  # noqa: E731
    spec = geoflow.spec_of(build(), task.x_train[:2])
    states = train_zoo(build, task, runs=4, epochs=15, batch=32, lr=1e-2, weight_decay=0.1, seed=0, schedule="cosine", progress=False)
    thetas = geoflow.pack(spec, {name: value[:, 0] for name, value in states.items()})
    found = evaluate(build(), spec, thetas, task.x_test, task.y_test, outputs="gaussian")
    assert (found.nll < 1.3).all() and (found.r2 > 0.3).all()


def test_guidance_lowers_the_loss_of_real_targets(regressors):
    network, spec, thetas, x, y = (one if isinstance(one, NetworkSpec) else one.float() for one in regressors)
    flow = geoflow.fit(spec, thetas, flow="euclidean", iterations=1, batch=4, progress=False)
    draw = lambda **more: geoflow.sample(flow, 8, steps=20, generator=torch.Generator().manual_seed(0), **more)  # noqa: E731
    guided = draw(guidance=geoflow.task_guidance(network, x, y, strength=0.1, outputs="gaussian"))
    plain = draw()
    assert (guided != plain).any()
    better = [evaluate(network, spec, one, x, y, outputs="gaussian").nll.mean() for one in (guided, plain)]
    assert better[0] < better[1]


# Mistakes


def test_targets_that_do_not_fit_are_named(regressors):
    network, spec, thetas, x, y = regressors
    targets = y.shape[1]
    for wrong, words in (
        (y[:, 0], r"One target for each example is y\[:, None\]"),
        (y.long(), "real targets .* torch.int64"),
        (torch.cat([y, y], 1), f"gives {2 * targets} outputs, and y holds {2 * targets} targets .* needs {4 * targets} outputs"),
        (y.where(y > y.min(), math.nan), "holds 1 targets that are not finite"),
    ):
        for ask in (evaluate, ensemble_scores):
            with pytest.raises(ValueError, match=words):
                ask(network, spec, thetas, x, wrong, outputs="gaussian")
        with pytest.raises(ValueError, match=words):
            geoflow.task_guidance(network, x, wrong, strength=0.1, outputs="gaussian")
    with pytest.raises(ValueError, match='Real targets need outputs="gaussian"'):
        evaluate(network, spec, thetas, x, y)


def test_an_odd_number_of_outputs_is_no_gaussian(generator):
    network = mlp(4, [5], 3)
    spec = geoflow.spec_of(network, torch.zeros(1, 4))
    thetas, x = torch.randn(3, spec.weights, generator=generator), torch.randn(7, 4, generator=generator)
    with pytest.raises(ValueError, match="gives 3 outputs, which are no pairs of mean and log-variance"):
        disagreement(network, spec, thetas, x, outputs="gaussian")


@pytest.mark.parametrize(("name", "outputs"), [("diabetes", 1), ("diabetes", 4), ("iris", 2), ("iris", 4)])
def test_a_network_with_other_outputs_than_its_task_is_not_trained(name, outputs):
    task = load_task(name)
    settings = {"runs": 2, "epochs": 1, "batch": 16, "lr": 1e-2, "weight_decay": 0.0, "seed": 0, "progress": False}
    with pytest.raises(ValueError, match=f"gives {outputs} outputs, and the task {name} needs {task.units}"):
        train_zoo(lambda: mlp(task.features, [5], outputs), task, **settings)


def test_a_task_whose_targets_are_of_another_kind_is_not_trained():
    task = replace(load_task("iris"), outputs="gaussian")
    settings = {"runs": 2, "epochs": 1, "batch": 16, "lr": 1e-2, "weight_decay": 0.0, "seed": 0, "progress": False}
    with pytest.raises(ValueError, match="real targets"):
        train_zoo(lambda: mlp(4, [5], 6), task, **settings)


def test_unknown_names_list_the_rows(regressors):
    network, spec, thetas, x, y = regressors
    with pytest.raises(ValueError, match=r"Unknown outputs 'gauss'\. Known: classes, gaussian"):
        outputs_of("gauss")
    with pytest.raises(ValueError, match="Known: linear, log"):
        ensemble_scores(network, spec, thetas, x, y, pool="mean", outputs="gaussian")
