"""Score how well networks predict: accuracy or squared error, likelihood and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.evaluation.predictions import divided, predictors
from geoflow.examples import Examples, leading, rows
from geoflow.outputs import Pool, RegressionScores, Scores, outputs_of
from geoflow.outputs.reading import Output
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks

__all__ = ["RegressionScores", "Scores", "disagreement", "ensemble_scores", "evaluate", "pooled_scores", "scores", "summary"]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
    outputs: str = "classes",
    output: Output = None,
) -> Scores | RegressionScores:
    """Return the scores of every network on the examples (x, y).

    x holds the inputs [examples, ...]: real numbers, or whole ones such as tokens. A tuple holds several inputs. A dict holds inputs by
    name, or is itself the one input, as the forward pass has it. Real inputs are taken in the precision of the weights, and weights of half
    precision in single precision, unless the inputs have half precision too.

    Only the forward pass of `network` in evaluation mode matters, not its weights. Each network is scored as if it ran by itself. The other
    networks and examples do not change its scores, which `predictors` checks. `batch` bounds how many pairs of a network and an example are
    in work at once. It is at least one network with one part of the examples.

    With batch norm without running statistics, an answer depends on the other examples of its batch. Such a network is refused unless
    `batch_size` is given. Then examples are taken in their order, `batch_size` at a time and the rest at the end, as a loader without
    shuffling does.

    `outputs` names what the outputs of the network mean, a row of OUTPUTS. With "classes" they are logits, and y holds class indices. With
    "gaussian" they are means and log-variances, and y holds real targets [examples, targets]. The scores are then `RegressionScores`. A
    single logit tells two classes apart, and its NLL is the binary cross-entropy.

    A network may return its outputs in a dict, a dataclass or a tuple. `output` is the name or the place of the entry that holds them, or a
    function that takes them out. Without it, the only entry of the form [examples, units] is taken, or "logits" among several.

    Raises ValueError if there is no network or no example, and for weights that are not finite or not of this network. Also raises it for
    targets that are not of this kind or do not fit the outputs, and for answers that depend on the batch. It names inputs that the network
    does not take, and lists the entries if it is not clear which one holds the outputs.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> theta = geoflow.pack(spec, {"weight": 9 * torch.eye(2), "bias": torch.zeros(2)})
    >>> evaluate(network, spec, theta[None], torch.eye(2), torch.tensor([0, 1])).accuracy
    tensor([1.])
    """
    kind = outputs_of(outputs)
    chunks = predictors(network, spec, thetas, x, batch, batch_size, kind.prediction, output)
    kind.check(leading(x), y)
    if batch_size is None:
        order = kind.order(y)  # `run` multiplies inputs that are the same in a part once
        x, y = rows(x, order), y[order]
    parts = list(zip(divided(x, batch_size), divided(y, batch_size), strict=True))
    sums = [sum(kind.sums(kind.facts(predict(x_part), y_part), y_part) for x_part, y_part in parts) for predict in chunks]
    return kind.scores(torch.cat(sums), y)


@torch.no_grad()
def ensemble_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    batch: int = 2 * 10**5,
    pool: str = "linear",
    batch_size: int | None = None,
    outputs: str = "classes",
    output: Output = None,
) -> Scores | RegressionScores:
    """Return the scores [] of all networks together, as one ensemble.

    `pool` says how the members are averaged.

        linear:  p(y|x) = mean_k p_k(y|x)        log:  p(y|x) proportional to exp(mean_k log p_k(y|x))

    The linear pool averages probabilities. It is the posterior predictive, and is less sure the more its members differ. The log pool
    averages log-probabilities, and stays as sure as its members are on average. Of Gaussians, the linear pool is their mixture, and the log
    pool is the Gaussian with their mean precision. `x`, `batch_size`, `outputs` and `output` are as in `evaluate`. Source: Genest and
    Zidek, Combining probability distributions, 1986 (linear and logarithmic opinion pools).

    Raises ValueError for an unknown pool, and as `evaluate` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> ensemble_scores(network, spec, torch.zeros(5, 6), torch.eye(2), torch.tensor([0, 1])).nll  # all classes are equally probable
    tensor(0.6931)
    """
    return pooled_scores(network, spec, thetas, x, y, batch, (pool,), batch_size, outputs, output)[pool]


@torch.no_grad()
def pooled_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    batch: int = 2 * 10**5,
    pools: Sequence[str] = ("linear", "log"),
    batch_size: int | None = None,
    outputs: str = "classes",
    output: Output = None,
) -> dict[str, Scores | RegressionScores]:
    """Return what `ensemble_scores` gives for each of several pools. The networks run only once."""
    kind = outputs_of(outputs)
    chosen = {pool: choose("pool", pool, kind.pools) for pool in pools}
    chunks = predictors(network, spec, thetas, x, batch, batch_size, kind.prediction, output)
    kind.check(leading(x), y)
    added: dict[str, list[Tensor]] = {pool: [] for pool in pools}
    for predict in chunks:
        pairs = zip(divided(x, batch_size), divided(y, batch_size), strict=True)
        parts = [_added(predict(x_part), y_part, chosen) for x_part, y_part in pairs]
        for name in pools:
            added[name].append(torch.cat([part[name] for part in parts]))
    facts = {name: pool.after(pool.add(torch.stack(added[name])), len(thetas), y) for name, pool in chosen.items()}
    return {name: kind.scores(kind.sums(one, y), y) for name, one in facts.items()}


def _added(prediction: Tensor, y: Tensor, pools: Mapping[str, Pool]) -> dict[str, Tensor]:
    return {name: pool.add(pool.before(prediction, y)) for name, pool in pools.items()}


@torch.no_grad()
def disagreement(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Networks,
    x: Examples,
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
    outputs: str = "classes",
    output: Output = None,
) -> float:
    """Return how far the predictions of two different networks are apart, averaged over all pairs of networks and over examples.

    For classes this is the share of examples for which they predict different classes. For "gaussian" outputs it is the absolute difference
    of their means, in the unit of the targets. It is NaN for one network. `x`, `batch_size`, `outputs` and `output` are as in `evaluate`.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> thetas = geoflow.pack(spec, {"weight": torch.zeros(2, 2, 2), "bias": torch.eye(2)})  # each always predicts its own class
    >>> disagreement(network, spec, thetas, torch.eye(2))
    1.0
    """
    kind = outputs_of(outputs)
    chunks = predictors(network, spec, thetas, x, batch, batch_size, kind.prediction, output)
    opinions = (torch.cat([kind.opinions(predict(part)) for part in divided(x, batch_size)], 1) for predict in chunks)
    return kind.disagreement(reduce(kind.join, opinions), len(thetas))


def scores(
    prediction: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "examples ..."], outputs: str = "classes"
) -> Scores | RegressionScores:
    """Return the scores of predictions, such as log-probabilities of classes. Of classes with equal probabilities the first is predicted.

    >>> scores(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0])).accuracy
    tensor(1.)
    """
    kind = outputs_of(outputs)
    return kind.scores(kind.sums(kind.facts(prediction, y), y), y)


def summary(scores: Scores | RegressionScores) -> dict[str, dict[str, float]]:
    """Return the mean and standard deviation of each score over networks. One network has standard deviation 0.

    >>> summary(Scores(torch.tensor([.5, 1.]), torch.tensor([1., 1.]), torch.tensor([0., 0.])))["accuracy"]["mean"]
    0.75
    """
    columns = {field.name: getattr(scores, field.name).double().flatten() for field in fields(scores)}
    return {name: {"mean": v.mean().item(), "std": v.std().item() if len(v) > 1 else 0.0} for name, v in columns.items()}
