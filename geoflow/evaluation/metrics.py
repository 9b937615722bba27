"""Score how well networks predict: accuracy, likelihood and calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import log

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import one_hot

from geoflow.choices import choose
from geoflow.evaluation.predictions import divided, predictors
from geoflow.spec import NetworkSpec

ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """The scores of every network.

    - `accuracy`: the share of examples that are classified correctly, in [0, 1].
    - `nll`: the mean negative log-likelihood, in nats.
    - `ece`: the expected calibration error, in [0, 1] (see `ece`).
    """

    accuracy: Float[Tensor, "*nets"]
    nll: Float[Tensor, "*nets"]
    ece: Float[Tensor, "*nets"]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
) -> Scores:
    """Return the scores of every network on the examples (x, y).

    Only the forward pass of `network` in evaluation mode matters, not its weights. Each network is scored as if it ran by itself. The other
    networks and examples do not change its scores, which `predictors` checks. `batch` bounds how many pairs of a network and an example are
    in work at once. It is at least one network with one part of the examples.

    With batch norm without running statistics, an answer depends on the other examples of its batch. Such a network is refused unless
    `batch_size` is given. Then examples are taken in their order, `batch_size` at a time and the rest at the end, as a loader without
    shuffling does.

    Raises ValueError if there is no network or no example, and for weights that are not finite or not of this network. Also raises it for
    labels that are not one class index for each example, and for answers that depend on the batch.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> theta = geoflow.pack(spec, {"weight": 9 * torch.eye(2), "bias": torch.zeros(2)})
    >>> evaluate(network, spec, theta[None], torch.eye(2), torch.tensor([0, 1])).accuracy
    tensor([1.])
    """
    chunks = predictors(network, spec, thetas, x, batch, batch_size)
    check_labels(x, y)
    if batch_size is None:
        order = y.argsort()  # examples of one class are alike; `run` multiplies inputs that are the same in a part once
        x, y = x[order], y[order]
    parts = list(zip(divided(x, batch_size), divided(y, batch_size), strict=True))
    sums = [sum(_sums(predict(x_part), y_part) for x_part, y_part in parts) for predict in chunks]
    return _scores(torch.cat(sums), len(x))


@torch.no_grad()
def ensemble_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
    pool: str = "linear",
    batch_size: int | None = None,
) -> Scores:
    """Return the scores [] of all networks together, as one ensemble.

    `pool` names a row of POOLS, which says how the members are averaged.

        linear:  p(y|x) = mean_k softmax(f_k(x))_y        log:  p(y|x) = softmax(mean_k f_k(x))_y

    The linear pool averages probabilities. It is the posterior predictive, and is less sure the more its members differ. The log pool
    averages log-probabilities, and stays as sure as its members are on average. `batch_size` is as in `evaluate`. Source: Genest and Zidek,
    Combining probability distributions, 1986 (linear and logarithmic opinion pools).

    Raises ValueError for an unknown pool, and as `evaluate` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> ensemble_scores(network, spec, torch.zeros(5, 6), torch.eye(2), torch.tensor([0, 1])).nll  # all classes are equally probable
    tensor(0.6931)
    """
    choose("pool", pool, POOLS)
    return pooled_scores(network, spec, thetas, x, y, batch, (pool,), batch_size)[pool]


@torch.no_grad()
def pooled_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
    pools: Sequence[str] = ("linear", "log"),
    batch_size: int | None = None,
) -> dict[str, Scores]:
    """Return what `ensemble_scores` gives for each of several pools. The networks run only once."""
    found: dict[str, list[Tensor]] = {pool: [] for pool in pools}
    chunks = predictors(network, spec, thetas, x, batch, batch_size)
    check_labels(x, y)
    for predict in chunks:
        parts = [{pool: POOLS[pool][0](log_probs) for pool in pools} for log_probs in map(predict, divided(x, batch_size))]
        for pool in pools:
            found[pool].append(torch.cat([part[pool] for part in parts]))
    return {pool: scores(POOLS[pool][1](POOLS[pool][0](torch.stack(found[pool])), len(thetas)), y) for pool in pools}


# name: how to sum the log-probabilities [nets, examples, classes], or partial sums, of some networks; how to average the sum
POOLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "linear": (lambda some: some.logsumexp(0), lambda gathered, nets: gathered - log(nets)),
    "log": (lambda some: some.sum(0), lambda gathered, nets: (gathered / nets).log_softmax(-1)),
}


@torch.no_grad()
def disagreement(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Shaped[Tensor, "examples ..."],
    batch: int = 2 * 10**5,
    batch_size: int | None = None,
) -> float:
    """Return how often two different networks predict different classes.

    This is the share of examples, averaged over all pairs of networks. It is NaN for one network. `batch_size` is as in `evaluate`.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> thetas = geoflow.pack(spec, {"weight": torch.zeros(2, 2, 2), "bias": torch.eye(2)})  # each always predicts its own class
    >>> disagreement(network, spec, thetas, torch.eye(2))
    1.0
    """
    votes = 0
    for predict in predictors(network, spec, thetas, x, batch, batch_size):
        log_probs = torch.cat([predict(part) for part in divided(x, batch_size)], 1)
        votes = votes + one_hot(log_probs.argmax(-1), log_probs.shape[-1]).sum(0)
    pairs = len(thetas) * (len(thetas) - 1)
    return 1 - (votes * (votes - 1)).sum(-1).double().mean().item() / pairs if pairs else float("nan")


def scores(log_probs: Float[Tensor, "*nets examples classes"], y: Int[Tensor, " examples"]) -> Scores:
    """Return the scores of log-probabilities. Of classes with equal probabilities the first is predicted."""
    return _scores(_sums(log_probs, y), len(y))


def ece(
    confidence: Float[Tensor, "*nets examples"], correct: Bool[Tensor, "*nets examples"], bins: int = ECE_BINS
) -> Float[Tensor, "*nets"]:
    """Return the expected calibration error.

    It is the sum over bins of equal width of (share of examples) * |accuracy - mean confidence|. The confidence is the probability of the
    predicted class. A bin (a, b] holds the examples whose confidence lies in it. Source: Guo et al. 2017, On calibration of modern neural
    networks, section 2.

    >>> ece(torch.tensor([.9, .9]), torch.tensor([True, False]))  # one bin: |1/2 - .9|
    tensor(0.4000)
    """
    return _gaps(confidence, correct, bins).abs().sum(-1) / confidence.shape[-1]


def _gaps(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> Float[Tensor, "*nets bins"]:
    """Return the sum of (correct - confidence) in each bin of the confidence."""
    index = (confidence * bins).ceil_().long().sub_(1).clamp_(0, bins - 1)  # clamp: rounding at 0 and 1, and NaN
    gap = correct.to(confidence.dtype) - confidence
    return torch.zeros(*gap.shape[:-1], bins, dtype=gap.dtype, device=gap.device).scatter_add(-1, index, gap)


def _sums(log_probs: Float[Tensor, "*nets examples classes"], y: Int[Tensor, " examples"]) -> Float[Tensor, "*nets sums"]:
    """Return sums over examples, from which scores are made.

    They are the correct answers, the negative log-likelihoods, and the gaps of every bin.
    """
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))  # half precision cannot hold the sums
    check_classes(y, log_probs.shape[-1])
    nll = -log_probs.gather(-1, y.expand(log_probs.shape[:-1]).unsqueeze(-1)).sum((-1, -2))
    best, classes = log_probs.amax(-1, keepdim=True), log_probs.shape[-1]
    # this is argmax, which takes 20 times as long if examples are innermost; the first of equal classes has the highest rank
    below, rank = log_probs - best, torch.arange(classes, 0, -1, dtype=log_probs.dtype, device=y.device)
    predicted = classes - torch.add(rank, below, alpha=1e30, out=below).amax(-1)
    correct = predicted == y
    return torch.cat([correct.sum(-1, keepdim=True), nll.unsqueeze(-1), _gaps(best.squeeze(-1).exp(), correct)], -1)


def _scores(sums: Float[Tensor, "*nets sums"], examples: int) -> Scores:
    accuracy, nll, gaps = (sums / examples).split([1, 1, ECE_BINS], -1)
    return Scores(accuracy.squeeze(-1), nll.squeeze(-1), gaps.abs().sum(-1))


def summary(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the mean and standard deviation of each score over networks. One network has standard deviation 0.

    >>> summary(Scores(torch.tensor([.5, 1.]), torch.tensor([1., 1.]), torch.tensor([0., 0.])))["accuracy"]["mean"]
    0.75
    """
    columns = {field.name: getattr(scores, field.name).double().flatten() for field in fields(Scores)}
    return {name: {"mean": v.mean().item(), "std": v.std().item() if len(v) > 1 else 0.0} for name, v in columns.items()}


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise ValueError if y does not hold one class index for each example."""
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"y must hold one class index for each of the {len(x)} examples, not {tuple(y.shape)} of {y.dtype}.")


def check_classes(y: Int[Tensor, " examples"], classes: int) -> None:
    """Raise ValueError if y holds a class that a network with so many classes does not have."""
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"y holds classes {int(y.min())} to {int(y.max())}, but the network tells {classes} apart, from 0 on.")
