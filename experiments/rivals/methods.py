"""Train ensembles in the ways that users take in place of a flow, and say what each of them costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.evaluation.predictions import predicted
from geoflow.outputs import OUTPUTS
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate, statistics_of
from geoflow.vector import pack, unpack
from geoflow.zoo.tasks import Task
from geoflow.zoo.train import train_zoo
from rivals.packages import laplace_log_probs, sghmc_samples
from rivals.swag import draw_swag, fit_swag

Said = Float[Tensor, "members examples units"]  # what each member predicts
MEMBERS = 64  # networks that SWAG and the sampler give
SNAPSHOTS = 30  # epochs of SWAG behind the training, one snapshot each
SEEN = 2000  # training examples that running statistics of new networks are measured on
NOT_OF_A_RUN = ("runs", "snapshots", "origin", "common")  # settings of a zoo that a single training does not have
# Chosen on the validation part of breast_cancer and digits, by the mean NLL of two or three runs; the notes list all that were tried.
LAPLACE_PRECISION = 100.0  # of the prior
SWAG_RATE = 3.0  # of the learning rate of the zoo
SGHMC = {"lr": 0.1, "precision": 3.0, "friction": 1.0, "burn_in": 50, "thin": 5}


@dataclass(frozen=True)
class Setting:
    """What all ways have in common: the network, its data, and how a run of its zoo is trained.

    `recipe` holds the arguments of `train_zoo`, without runs, snapshots and seed.
    """

    build: Callable[[], nn.Module]
    spec: NetworkSpec
    task: Task
    recipe: Mapping
    device: str


def single(setting: Setting, count: int, seed: int) -> Said:
    """Train `count` networks at once, as a zoo is trained."""
    return said_by(setting, trained(setting, count, seed)[:, -1])


def laplace(setting: Setting, seed: int) -> Said:
    """Train one network, and approximate the posterior of its last layer."""
    theta = trained(setting, 1, seed)[0, -1]
    return laplace_log_probs(setting.build(), setting.spec, theta, setting.task, setting.task.x_test, LAPLACE_PRECISION)


def swag(setting: Setting, seed: int, rate: float = SWAG_RATE) -> Said:
    """Train one network, go on at a constant learning rate, and fit a Gaussian to the snapshots of that."""
    start = unpack(setting.spec, trained(setting, 1, seed)[0, -1])
    onward = {"epochs": SNAPSHOTS, "snapshots": SNAPSHOTS, "every": 1, "schedule": "constant", "lr": rate * setting.recipe["lr"]}
    snapshots = trained(setting, 1, seed, start=start, first=1, **onward)[0]
    return said_by(setting, _measured(setting, draw_swag(fit_swag(snapshots), MEMBERS, randomness(seed, "swag")), seed))


def sghmc(setting: Setting, seed: int, **changes) -> Said:
    """Train one network, and let a sampler go on from there."""
    theta, batch = trained(setting, 1, seed)[0, -1], setting.recipe["batch"]
    how = SGHMC | {"count": MEMBERS, "batch": batch, "generator": randomness(seed, "sghmc")} | changes
    return said_by(setting, sghmc_samples(setting.build(), setting.spec, theta, setting.task, **how))


@dataclass(frozen=True)
class Rival:
    """A row of RIVALS: a function of a setting and a seed that gives what the members predict.

    `outputs` are the kinds of outputs that it serves, and `package` is the optional package that it needs.
    """

    way: Callable[..., Said]
    outputs: tuple[str, ...] = tuple(OUTPUTS)
    package: str | None = None


RIVALS = {
    "single network": Rival(partial(single, count=1)),
    "deep ensemble of 16": Rival(partial(single, count=16)),
    "deep ensemble of 64": Rival(partial(single, count=64)),
    "last-layer Laplace": Rival(laplace, ("classes",), "laplace"),
    "SWAG": Rival(swag),
    "SGHMC": Rival(sghmc, package="posteriors"),
}


def trained(setting: Setting, runs: int, seed: int, **changes) -> Float[Tensor, "runs snapshots weights"]:
    """Train runs as those of the zoo, with changes to the recipe."""
    recipe = {**setting.recipe, "snapshots": 1, **changes}
    return pack(setting.spec, train_zoo(setting.build, setting.task, runs=runs, seed=seed, device=setting.device, progress=False, **recipe))


def said_by(setting: Setting, thetas: Float[Tensor, "members weights"]) -> Said:
    """Return what each network predicts of the test inputs: log-probabilities of classes, or means and log-variances."""
    return predicted(setting.build(), setting.spec, thetas, setting.task.x_test, setting.task.outputs)


def timed(does: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    """Return what a function gives, and its seconds. On a CPU they are seconds of computing, because other programs may run beside it."""
    clock = process_time if device == "cpu" else perf_counter
    start = clock()
    found = does()
    return found, clock() - start


def _measured(setting: Setting, thetas: Float[Tensor, "members weights"], seed: int) -> Float[Tensor, "members weights"]:
    """Measure running statistics anew, where there are any, as SWAG demands it."""
    if not len(statistics_of(setting.spec)):
        return thetas
    x = setting.task.x_train[torch.randperm(len(setting.task.x_train), generator=randomness(seed, "statistics"))[:SEEN]]
    return recalibrate(setting.build(), setting.spec, thetas, x)
