"""Measure how well networks predict: accuracy, likelihood and calibration."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from geoflow.canonical import check_zoo
from geoflow.choices import choose
from geoflow.population import Rims, run
from geoflow.spec import NetworkSpec
from geoflow.vector import State, check_state, unpack

ECE_BINS = 15
PART = 1000  # examples in work at once: with a few hundred networks their activations fit the cache


@dataclass(frozen=True)
class Scores:
    """Accuracy in [0, 1], mean negative log-likelihood in nats and expected calibration error in [0, 1] of every network."""

    accuracy: Float[Tensor, "*nets"]
    nll: Float[Tensor, "*nets"]
    ece: Float[Tensor, "*nets"]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
) -> Scores:
    """The scores of every network on the examples (x, y). Of `network` only the forward pass in evaluation mode matters, not its weights.

    Examples are taken in parts, as by a loader; `batch` bounds how many pairs of a network and an example are in work at once (at least one
    network with one part).

    Raises ValueError if there is no network or no example, for weights that are not finite or not of this network, and for labels that are
    not one class index for each example.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> theta = geoflow.pack(spec, {"weight": 9 * torch.eye(2), "bias": torch.zeros(2)})
    >>> evaluate(network, spec, theta[None], torch.eye(2), torch.tensor([0, 1])).accuracy
    tensor([1.])
    """
    predictors = _predictors(network, spec, thetas, x, y, batch)
    order = y.argsort()  # examples of one class are alike: more inputs are the same in a whole part, and `run` multiplies them once
    parts = list(zip(x[order].split(PART), y[order].split(PART), strict=True))
    sums = [sum(_sums(predict(x_part), y_part) for x_part, y_part in parts) for predict in predictors]
    return _scores(torch.cat(sums), len(x))


@torch.no_grad()
def ensemble_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
    pool: str = "linear",
) -> Scores:
    """The scores [] of all networks together, pooled as POOLS names it: their average probabilities, or their average log-probabilities.

    linear is the posterior predictive, p(y|x) = mean_k softmax(f_k(x))_y, which is less sure than its members the more they differ; log is
    p(y|x) = softmax(mean_k f_k(x))_y, as sure as its members are on average.
    Source: Genest and Zidek, Combining probability distributions, 1986 (linear and logarithmic opinion pools).
    """
    choose("pool", pool, POOLS)
    return pooled_scores(network, spec, thetas, x, y, batch, (pool,))[pool]


@torch.no_grad()
def pooled_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2 * 10**5,
    pools: Sequence[str] = ("linear", "log"),
) -> dict[str, Scores]:
    """What `ensemble_scores` gives for each of several pools, from one run of the networks."""
    found: dict[str, list[Tensor]] = {pool: [] for pool in pools}
    for predict in _predictors(network, spec, thetas, x, y, batch):
        parts = [{pool: POOLS[pool][0](log_probs) for pool in pools} for log_probs in map(predict, x.split(PART))]
        for pool in pools:
            found[pool].append(torch.cat([part[pool] for part in parts]))
    return {pool: scores(POOLS[pool][1](POOLS[pool][0](torch.stack(found[pool])), len(thetas)), y) for pool in pools}


# how the log-probabilities [nets, examples, classes] of some networks, or what some have come to, are gathered; and made those of one
POOLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "linear": (lambda some: some.logsumexp(0), lambda gathered, nets: gathered - log(nets)),
    "log": (lambda some: some.sum(0), lambda gathered, nets: (gathered / nets).log_softmax(-1)),
}


@torch.no_grad()
def disagreement(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    batch: int = 2 * 10**5,
) -> float:
    """How often two different networks predict different classes: the share of examples, averaged over all pairs. NaN for one network."""
    votes = 0
    for predict in _predictors(network, spec, thetas, x, torch.zeros(len(x), dtype=torch.long), batch):
        log_probs = torch.cat([predict(part) for part in x.split(PART)], 1)
        votes = votes + one_hot(log_probs.argmax(-1), log_probs.shape[-1]).sum(0)
    pairs = len(thetas) * (len(thetas) - 1)
    return 1 - (votes * (votes - 1)).sum(-1).double().mean().item() / pairs if pairs else float("nan")


def scores(log_probs: Float[Tensor, "*nets examples classes"], y: Int[Tensor, " examples"]) -> Scores:
    """The scores of log-probabilities of the classes; of classes with equal probabilities the first is predicted."""
    return _scores(_sums(log_probs, y), len(y))


def ece(
    confidence: Float[Tensor, "*nets examples"], correct: Bool[Tensor, "*nets examples"], bins: int = ECE_BINS
) -> Float[Tensor, "*nets"]:
    """Expected calibration error: sum over bins of equal width of (share of examples) * |accuracy - mean confidence|.

    `confidence` is the probability of the class that is predicted; a bin (a, b] holds the examples that have it there.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 2.

    >>> ece(torch.tensor([.9, .9]), torch.tensor([True, False]))  # one bin: |1/2 - .9|
    tensor(0.4000)
    """
    return _gaps(confidence, correct, bins).abs().sum(-1) / confidence.shape[-1]


def _gaps(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> Float[Tensor, "*nets bins"]:
    """By bin of the confidence, the sum of (correct - confidence)."""
    index = (confidence * bins).ceil_().long().sub_(1).clamp_(0, bins - 1)  # clamp: rounding at 0 and 1, and NaN
    gap = correct.to(confidence.dtype) - confidence
    return torch.zeros(*gap.shape[:-1], bins, dtype=gap.dtype, device=gap.device).scatter_add(-1, index, gap)


def _sums(log_probs: Float[Tensor, "*nets examples classes"], y: Int[Tensor, " examples"]) -> Float[Tensor, "*nets sums"]:
    """What scores are made of, summed over examples: correct answers, negative log-likelihoods, and the gaps of every bin."""
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))  # the sums would leave half precision
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < log_probs.shape[-1]:
        raise ValueError(f"y holds classes {int(y.min())} to {int(y.max())}; the network tells {log_probs.shape[-1]} apart, from 0 on.")
    nll = -log_probs.gather(-1, y.expand(log_probs.shape[:-1]).unsqueeze(-1)).sum((-1, -2))
    best, classes = log_probs.amax(-1, keepdim=True), log_probs.shape[-1]
    # argmax, which takes 20 times as long where examples are inmost; the first of equal classes has the highest rank
    below, rank = log_probs - best, torch.arange(classes, 0, -1, dtype=log_probs.dtype, device=y.device)
    predicted = classes - torch.add(rank, below, alpha=1e30, out=below).amax(-1)
    correct = predicted == y
    return torch.cat([correct.sum(-1, keepdim=True), nll.unsqueeze(-1), _gaps(best.squeeze(-1).exp(), correct)], -1)


def _scores(sums: Float[Tensor, "*nets sums"], examples: int) -> Scores:
    accuracy, nll, gaps = (sums / examples).split([1, 1, ECE_BINS], -1)
    return Scores(accuracy.squeeze(-1), nll.squeeze(-1), gaps.abs().sum(-1))


def summary(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over networks of each score; one network has standard deviation 0.

    >>> summary(Scores(torch.tensor([.5, 1.]), torch.tensor([1., 1.]), torch.tensor([0., 0.])))["accuracy"]["mean"]
    0.75
    """
    columns = {field.name: getattr(scores, field.name).double().flatten() for field in fields(Scores)}
    return {name: {"mean": v.mean().item(), "std": v.std().item() if len(v) > 1 else 0.0} for name, v in columns.items()}


def _predictors(network, spec, thetas, x, y, batch) -> Iterator[Callable[[Tensor], Float[Tensor, "nets examples classes"]]]:
    """For one chunk of the networks after the other, the function that gives their log-probabilities on a part of the examples."""
    if thetas.ndim != 2:
        raise ValueError(f"thetas must be [nets, weights], not {tuple(thetas.shape)}; one network is theta[None].")
    if len(thetas) == 0:
        raise ValueError("There is no network to evaluate: thetas is empty.")
    if len(x) == 0:
        raise ValueError("There is no example to evaluate on: x is empty.")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"y must hold one class index for each of the {len(x)} examples, not {tuple(y.shape)} of {y.dtype}.")
    check_zoo(spec, thetas, "population")
    check_state(spec, network.state_dict())
    network = deepcopy(network).to(thetas.device).eval()  # the caller's keeps its mode
    chunks = thetas.split(max(1, batch // min(PART, len(x))))
    rims = Rims()  # for all chunks: they meet the same examples
    states = ({name: value.contiguous() for name, value in unpack(spec, chunk).items()} for chunk in chunks)
    return (partial(_log_probabilities, network, some, rims) for some in states)


def _log_probabilities(network: nn.Module, states: State, rims: Rims, x: Tensor) -> Float[Tensor, "nets examples classes"]:
    logits = run(network, states, x, rims).movedim(-1, 1).contiguous()  # examples inmost: sums over classes take whole rows at once
    return logits.log_softmax(1).movedim(1, -1)
