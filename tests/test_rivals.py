"""Other ways to get an ensemble: SWAG, a Laplace approximation, and a sampler."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import geoflow
from geoflow.evaluation.records import pooled_record
from geoflow.zoo.networks import mlp
from geoflow.zoo.recipes import zoo_defaults
from geoflow.zoo.tasks import Task, load_task

needs_packages = pytest.mark.skipif(find_spec("laplace") is None or find_spec("posteriors") is None, reason="the extra baselines")

pytestmark = pytest.mark.usefixtures("experiments_on_path")


@pytest.fixture
def setting():
    """Small networks for iris, trained shortly."""
    from rivals.methods import NOT_OF_A_RUN, Setting

    task, build = load_task("iris"), partial(mlp, 4, [5], 3)
    recipe = {name: value for name, value in zoo_defaults("mlp", "iris").items() if name not in NOT_OF_A_RUN}
    return Setting(build, geoflow.spec_of(build(), task.x_train[:2]), task, recipe | {"epochs": 20}, "cpu")


# SWAG


@pytest.fixture
def snapshots(generator):
    """Thirty snapshots of four weights, which move together."""
    mixing = torch.randn(4, 4, generator=generator)
    return (torch.randn(30, 4, generator=generator) @ mixing + 2).double()


def test_networks_of_swag_have_its_mean_and_covariance(snapshots, generator):
    from rivals.swag import draw_swag, fit_swag

    swag = fit_swag(snapshots, rank=10)
    drawn = draw_swag(swag, 10**5, generator)
    covariance = (snapshots.var(0, unbiased=False).diag() + swag.deviations.T @ swag.deviations / 9) / 2
    # a mean of 1e5 draws is off by .003 deviations, a covariance by .5 % of the largest
    torch.testing.assert_close(drawn.mean(0), snapshots.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), covariance, atol=0.03 * covariance.abs().max().item(), rtol=0)


def test_deviations_are_from_the_running_mean(snapshots):
    from rivals.swag import fit_swag

    swag = fit_swag(snapshots, rank=7)
    for number, deviation in zip(range(24, 31), swag.deviations, strict=True):
        torch.testing.assert_close(deviation, snapshots[number - 1] - snapshots[:number].mean(0))
    assert fit_swag(snapshots, rank=100).deviations.shape == snapshots.shape


def test_the_mean_is_that_of_torch(setting):
    from rivals.methods import trained
    from rivals.swag import fit_swag

    states = trained(setting, 1, 0, snapshots=5)[0]
    network = setting.build()
    averaged = AveragedModel(network)
    for theta in states:
        network.load_state_dict(geoflow.unpack(setting.spec, theta))
        averaged.update_parameters(network)
    torch.testing.assert_close(fit_swag(states).mean, geoflow.pack(setting.spec, averaged.module.state_dict()))


@pytest.mark.parametrize(("count", "rank"), [(1, 20), (5, 1)])
def test_too_little_for_a_covariance_is_refused(snapshots, count, rank):
    from rivals.swag import fit_swag

    with pytest.raises(ValueError, match=f"not {count} snapshots and rank {rank}"):
        fit_swag(snapshots[:count], rank)


# All ways


@pytest.mark.parametrize("name", ["single network", "deep ensemble of 16", "SWAG"])
def test_a_way_gives_log_probabilities_by_its_seed(setting, name):
    from rivals.methods import RIVALS

    way = RIVALS[name].way
    said = way(setting, seed=1)
    assert said.shape == ({"single network": 1, "deep ensemble of 16": 16}.get(name, 64), 30, 3)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(said.shape[:2]))
    assert torch.equal(way(setting, seed=1), said) and not torch.equal(way(setting, seed=2), said)
    assert (said.mean(0).argmax(-1) == setting.task.y_test).float().mean() > 0.8


@pytest.mark.parametrize("name", ["single network", "SWAG", pytest.param("SGHMC", marks=needs_packages)])
def test_a_way_gives_predictions_of_real_targets(name):
    from rivals.methods import NOT_OF_A_RUN, RIVALS, Setting, sghmc

    task = load_task("diabetes")
    build = partial(mlp, task.features, [5], classes=2)
    recipe = {option: value for option, value in zoo_defaults("mlp", "diabetes").items() if option not in NOT_OF_A_RUN} | {"epochs": 5}
    setting = Setting(build, geoflow.spec_of(build(), task.x_train[:2]), task, recipe, "cpu")
    said = sghmc(setting, 0, burn_in=2, thin=1, count=4) if name == "SGHMC" else RIVALS[name].way(setting, seed=0)
    assert said.shape[1:] == (len(task.x_test), 2) and said.isfinite().all()
    found = pooled_record(said, task.y_test, "linear", task.outputs)
    assert found["mse"] < 1.2 and RIVALS[name].outputs == ("classes", "gaussian"), "about the variance of the targets, or less"


def test_swag_stays_near_the_run_that_it_began_with(setting):
    """Its networks are nearer to each other than those of a deep ensemble."""
    from rivals.methods import RIVALS

    def spread(name):
        return RIVALS[name].way(setting, seed=0).exp().var(0).mean()

    assert 0 < spread("SWAG") < spread("deep ensemble of 16")


def test_batch_norm_of_swag_is_measured_anew(setting):
    from dataclasses import replace

    from rivals.methods import _measured

    build = partial(mlp, 4, [5], 3, norm="batch")
    setting = replace(setting, build=build, spec=geoflow.spec_of(build(), setting.task.x_train[:2]))
    theta = geoflow.pack(setting.spec, build().state_dict())[None]
    measured = geoflow.unpack(setting.spec, _measured(setting, theta, 0)[0])
    (mean,) = [value for name, value in measured.items() if "running_mean" in name]
    first = nn.functional.linear(setting.task.x_train, measured["0.weight"], measured["0.bias"])
    torch.testing.assert_close(mean, first.mean(0), rtol=1e-4, atol=1e-5)


def test_seconds_are_those_of_the_work():
    from rivals.methods import timed

    def work(size):
        return timed(lambda: torch.randn(size, size) @ torch.randn(size, size), "cpu")

    (small, little), (large, much) = work(50), work(1500)
    assert small.shape == (50, 50) and large.shape == (1500, 1500) and 0 <= little < much


def test_a_missing_package_is_said_with_its_cure():
    from rivals.packages import imported

    with pytest.raises(ImportError, match=r'The package no_such_package is missing .* pip install -e "\.\[baselines\]"'):
        imported("no_such_package")


@needs_packages
def test_a_laplace_approximation_knows_that_it_does_not_know_its_last_layer(setting):
    from rivals.methods import RIVALS, single

    said, alone = RIVALS["last-layer Laplace"].way(setting, seed=0), single(setting, 1, 0)
    assert said.shape == alone.shape == (1, 30, 3)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(1, 30))
    assert said.exp().amax(-1).mean() < alone.exp().amax(-1).mean()
    assert (said.argmax(-1) == alone.argmax(-1)).float().mean() > 0.9


@needs_packages
def test_a_chain_begins_at_the_trained_network_and_leaves_it(setting):
    from rivals.methods import sghmc, single

    said, alone = sghmc(setting, 0, burn_in=2, thin=1, count=20), single(setting, 1, 0)
    assert said.shape == (20, 30, 3) and said.isfinite().all()
    apart = (said.exp() - alone.exp()).abs().mean((1, 2))
    assert 0 < apart[0] < apart[-5:].mean()


@needs_packages
def test_a_chain_that_diverges_is_said(setting):
    from rivals.methods import sghmc

    with pytest.raises(FloatingPointError, match=r"diverged with lr=1000\.0 in epoch \d\. Lower it"):
        sghmc(setting, 0, burn_in=5, thin=1, count=2, lr=1000.0)


@needs_packages
def test_the_sampler_has_the_posterior_of_a_logistic_regression(generator):
    """With one weight for each of two classes, mean and deviation of their difference follow from a sum over a grid."""
    from rivals.packages import sghmc_samples

    x = torch.randn(40, 1, generator=generator)
    y = (torch.rand(40, generator=generator) < (1.5 * x[:, 0]).sigmoid()).long()
    task, network = Task("logistic", x, y, x, y, ("0", "1")), nn.Linear(1, 2, bias=False)
    spec = geoflow.spec_of(network, x[:2])
    how = {"batch": 40, "lr": 0.3, "precision": 2.0, "friction": 1.0, "burn_in": 200, "thin": 10, "count": 300}
    samples = sghmc_samples(network, spec, torch.zeros(2), task, generator=generator, **how)
    difference = samples[:, 1] - samples[:, 0]
    grid = torch.linspace(-5, 8, 4001, dtype=torch.float64)  # the difference has the prior variance 2 / precision
    log_density = -nn.functional.softplus(-(2 * y - 1).double() * grid[:, None] * x[:, 0]).sum(1) - grid.square() / 2 / (2 / 2.0)
    density = log_density.softmax(0)
    mean = (density * grid).sum()
    deviation = (density * (grid - mean).square()).sum().sqrt()
    # 300 samples that hang together a little: the mean is known to a tenth of a deviation, the deviation to a tenth of itself
    assert difference.mean().item() == pytest.approx(mean.item(), abs=0.3 * deviation.item())
    assert difference.std().item() == pytest.approx(deviation.item(), rel=0.25)
