"""Read outputs as means and log-variances of real targets, and score them by squared error, likelihood and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, pi
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.special import ndtr

from geoflow.outputs.kind import Column, Outputs, Pool

FLOOR = 1e-4  # least variance of a target; targets have deviation 1, so none counts as known better than to a hundredth of it
LEVELS = 20  # intervals that should hold 1/20, 2/20, ... of the targets


@dataclass(frozen=True)
class RegressionScores:
    """The scores of every network that predicts real targets.

    Targets are counted in their own unit. For the tasks of a zoo it is the standard deviation of the training part.

    - `mse`: the mean squared error of the mean, in squares of that unit, averaged over targets.
    - `nll`: the mean negative log-likelihood of all targets of an example, in nats. It depends on the unit, too.
    - `r2`: 1 - squared error / squared distance from the mean of the targets, averaged over targets. 1 is perfect, and 0 is as good as that
      mean. It is NaN if a target does not vary.
    - `calibration`: how far the predictive intervals are off, in [0, 1] (see `GaussianOutputs`).
    """

    mse: Float[Tensor, "*nets"]
    nll: Float[Tensor, "*nets"]
    r2: Float[Tensor, "*nets"]
    calibration: Float[Tensor, "*nets"]


def _facts(prediction: Float[Tensor, "*nets examples units"], y: Tensor) -> Float[Tensor, "*nets examples facts"]:
    """Return the log-density at the targets, the means, and the cumulative probabilities at the targets."""
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))  # half precision cannot hold the sums
    density = _log_density(prediction, y).unsqueeze(-1)
    mean, log_variance = prediction.chunk(2, -1)
    return torch.cat([density, mean, ndtr((y - mean) * (-log_variance / 2).exp())], -1)


def _log_density(prediction: Float[Tensor, "*nets examples units"], y: Tensor) -> Float[Tensor, "*nets examples"]:
    """Return the logarithm of the joint density of all targets of an example."""
    _check_units(prediction.shape[-1], y)
    mean, log_variance = prediction.chunk(2, -1)
    z = (y - mean) * (-log_variance / 2).exp()
    return -(log_variance + z.square() + log(2 * pi)).sum(-1) / 2


def _check_units(units: int, y: Tensor) -> None:
    if units != 2 * (targets := y.shape[-1]):
        raise ValueError(
            f"The network gives {units} outputs, and y holds {targets} targets for each example. It needs {2 * targets} outputs: "
            "a mean and a log-variance for each target."
        )


def _inside(below: Float[Tensor, "*nets examples targets"]) -> Float[Tensor, "*nets levels"]:
    """Return how many targets lie inside the central interval of each level, and outside that of the level before."""
    level = (2 * below - 1).abs().flatten(-2)  # the smallest level whose interval holds the target
    index = (level.nan_to_num(0) * LEVELS).ceil().long().sub_(1).clamp_(0, LEVELS - 1)  # clamp: rounding at 0 and 1
    counted = torch.ones_like(level).where(level.isfinite(), torch.nan)
    return torch.zeros(*level.shape[:-1], LEVELS, dtype=level.dtype, device=level.device).scatter_add(-1, index, counted)


def _add_facts(some: Float[Tensor, "nets *ensembles examples facts"]) -> Float[Tensor, "*ensembles examples facts"]:
    return torch.cat([some[..., :1].logsumexp(0), some[..., 1:].sum(0)], -1)


def _mixture(total: Float[Tensor, "*ensembles examples facts"], nets: int, y: Tensor) -> Float[Tensor, "*ensembles examples facts"]:
    """Density, mean and cumulative probabilities of a mixture are the averages of its members'."""
    return torch.cat([total[..., :1] - log(nets), total[..., 1:] / nets], -1)


def _precisions(prediction: Float[Tensor, "nets examples units"], y: Tensor) -> Float[Tensor, "nets examples units"]:
    """Return the means times the precisions, and the precisions."""
    mean, log_variance = prediction.to(torch.promote_types(prediction.dtype, torch.float32)).chunk(2, -1)
    return torch.cat([mean * (-log_variance).exp(), (-log_variance).exp()], -1)


def _product(total: Float[Tensor, "*ensembles examples units"], nets: int, y: Tensor) -> Float[Tensor, "*ensembles examples facts"]:
    weighted, precision = total.chunk(2, -1)
    return _facts(torch.cat([weighted / precision, -(precision / nets).log()], -1), y)


class GaussianOutputs(Outputs):
    """For each real target a mean and a raw log-variance: first all means, then all log-variances. Targets are numbers [examples, targets].

    With the raw log-variance s of a target, its prediction is the Gaussian N(mean, FLOOR + exp(s)), so

        log variance = log(FLOOR + exp(s))

    The floor acts as an error of measurement that every target has. So no target makes the likelihood unbounded, and no gradient explodes
    when a network fits its training targets exactly. The sum is formed by logaddexp, so that no s overflows. Targets are independent of
    each other, given x. Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation using deep ensembles,
    section 2.2.1, which has a softplus and a floor of 1e-6 for the same purpose.

    The pools of members N(m_k, v_k) are

        linear:  the mixture of the members        log:  N(v mean_k(m_k / v_k), v) with 1 / v = mean_k(1 / v_k)

    The linear pool is the posterior predictive. The log pool is the normalised product of the members, each to the power 1 / members.

    `calibration` is the mean of |observed share - level| over the levels 1/20, 2/20, ..., 19/20. The observed share is that of the targets
    inside the central interval that has this probability. Targets outside have a cumulative probability F with |2 F - 1| above the level.
    Source: Kuleshov et al. 2018, Accurate uncertainties for deep learning using calibrated regression.

    >>> kind = GaussianOutputs()
    >>> outputs, y = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [3.0]])
    >>> kind.scores(kind.sums(kind.facts(kind.prediction(outputs), y), y), y).mse
    tensor(0.5000)
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "mse": Column("MSE", "mean squared error", "squared deviations"),
        "nll": Column("NLL", "negative log-likelihood", "nats"),
        "r2": Column("R²", "R²", "1 is perfect", higher=True),
        "calibration": Column("calibration", "calibration error of intervals"),
    }
    main: ClassVar[tuple[str, str]] = ("r2", "nll")
    pools: ClassVar[Mapping[str, Pool]] = {
        "linear": Pool(_facts, _add_facts, _mixture),
        "log": Pool(_precisions, lambda some: some.sum(0), _product),
    }
    apart: ClassVar[Column] = Column("difference", "the mean absolute difference of the means that they predict, in target deviations")
    said: ClassVar[str] = (
        "Each network predicts a Gaussian. MSE is the mean squared error of its mean, NLL its negative log-likelihood in nats, and R² the "
        "share of the variance that its mean explains: 1 is perfect, and 0 is as good as the mean of the targets. *Calibration* is how far "
        "the shares of targets inside its intervals are from what they should be. An ensemble predicts the mixture of its networks, with "
        "*log pool* their normalised product."
    )

    def units(self, count: int) -> int:
        return 2 * count

    def check(self, x: Shaped[Tensor, "..."], y: Shaped[Tensor, "..."]) -> None:
        if y.ndim != 2 or len(y) != len(x) or not y.is_floating_point():
            raise ValueError(
                f"y must hold a row of real targets for each of the {len(x)} examples, not {tuple(y.shape)} of {y.dtype}. "
                "One target for each example is y[:, None]."
            )
        if not y.isfinite().all():
            raise ValueError(f"y holds {int((~y.isfinite()).sum())} targets that are not finite. Leave these examples out.")

    def check_fit(self, units: int, y: Shaped[Tensor, "..."]) -> None:
        _check_units(units, y)

    def nll(self, outputs: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples"]:
        return -_log_density(self.prediction(outputs), y)

    def prediction(self, outputs: Float[Tensor, "*shape"], axis: int = -1) -> Float[Tensor, "*shape"]:
        """Return the means, and then the logarithms of the variances."""
        if (units := outputs.shape[axis]) % 2:
            raise ValueError(
                f"The network gives {units} outputs, which are no pairs of mean and log-variance. Give it two for each target."
            )
        mean, raw = outputs.chunk(2, axis)
        return torch.cat([mean, torch.logaddexp(raw, raw.new_tensor(log(FLOOR)))], axis)

    def facts(self, prediction: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples facts"]:
        return _facts(prediction, y)

    def sums(self, facts: Float[Tensor, "*nets examples facts"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets sums"]:
        """Return the negative log-likelihoods, the squared errors of each target, and how many targets come in with each interval."""
        density, mean, below = facts.split([1, y.shape[-1], y.shape[-1]], -1)
        return torch.cat([-density.sum(-2), (mean - y).square().sum(-2), _inside(below)], -1)

    def scores(self, sums: Float[Tensor, "*nets sums"], y: Shaped[Tensor, "..."]) -> RegressionScores:
        examples, targets = y.shape
        nll, errors, inside = (sums / examples).split([1, targets, LEVELS], -1)
        spread = y.double().var(0, correction=0).to(sums)
        r2 = (1 - errors / spread.where(spread > 0, torch.nan)).mean(-1)
        observed = inside.cumsum(-1)[..., :-1] / targets
        level = torch.arange(1, LEVELS, dtype=sums.dtype, device=sums.device) / LEVELS
        return RegressionScores(errors.mean(-1), nll.squeeze(-1), r2, (observed - level).abs().mean(-1))

    def opinions(self, prediction: Float[Tensor, "nets examples units"]) -> Float[Tensor, "parts examples opinions"]:
        """Return the means."""
        return prediction.chunk(2, -1)[0]

    def join(
        self, opinions: Shaped[Tensor, "parts examples opinions"], more: Shaped[Tensor, "more examples opinions"]
    ) -> Shaped[Tensor, "together examples opinions"]:
        return torch.cat([opinions, more])

    def disagreement(self, opinions: Shaped[Tensor, "parts examples opinions"], nets: int) -> float:
        """Return the mean absolute difference of the means of two networks, over all pairs, examples and targets.

        With the means in ascending order, m_1 to m_n, the sum over pairs is sum_i (2 i - n - 1) m_i.
        """
        if nets < 2:
            return float("nan")
        ascending = opinions.double().sort(0).values.flatten(1).mean(1)
        rank = torch.arange(1, nets + 1, dtype=ascending.dtype, device=ascending.device)
        return ((2 * rank - nets - 1) @ ascending).item() / (nets * (nets - 1) / 2)

    def order(self, y: Shaped[Tensor, "examples ..."]) -> Int[Tensor, " examples"]:
        return torch.arange(len(y), device=y.device)

    def strata(self, y: np.ndarray) -> np.ndarray | None:
        return None
