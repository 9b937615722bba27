"""Measure how well networks predict: accuracy, likelihood and calibration."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from geoflow.canonical import check_zoo
from geoflow.population import run
from geoflow.spec import NetworkSpec
from geoflow.vector import check_state, unpack

ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Accuracy in [0, 1], mean negative log-likelihood in nats and expected calibration error in [0, 1] of every network."""

    accuracy: Float[Tensor, "*nets"]
    nll: Float[Tensor, "*nets"]
    ece: Float[Tensor, "*nets"]


def evaluate(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2**18,
) -> Scores:
    """The scores of every network on the examples (x, y). Of `network` only the forward pass in evaluation mode matters, not its weights.

    `batch` bounds how many pairs of a network and an example are in work at once (at least one network with all examples).

    Raises ValueError if there is no network or no example, for weights that are not finite or not of this network, and for labels that are
    not one class index for each example.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> theta = geoflow.pack(spec, {"weight": 9 * torch.eye(2), "bias": torch.zeros(2)})
    >>> evaluate(network, spec, theta[None], torch.eye(2), torch.tensor([0, 1])).accuracy
    tensor([1.])
    """
    chunks = [scores(log_probs, y) for log_probs in _log_probabilities(network, spec, thetas, x, y, batch)]
    return Scores(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields(Scores)))


def ensemble_scores(
    network: nn.Module,
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    x: Float[Tensor, "examples ..."],
    y: Int[Tensor, " examples"],
    batch: int = 2**18,
) -> Scores:
    """The scores [] of the posterior predictive: the average over networks of their PROBABILITIES, p(y|x) = mean_k softmax(f_k(x))_y."""
    sums = [log_probs.logsumexp(0) for log_probs in _log_probabilities(network, spec, thetas, x, y, batch)]
    return scores(torch.stack(sums).logsumexp(0) - log(len(thetas)), y)


def scores(log_probs: Float[Tensor, "*nets examples classes"], y: Int[Tensor, " examples"]) -> Scores:
    """The scores of log-probabilities of the classes."""
    targets = y.expand(log_probs.shape[:-1])
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1).mean(-1)
    confidence, predicted = log_probs.max(-1)
    correct = predicted == y
    return Scores(correct.to(nll.dtype).mean(-1), nll, ece(confidence.exp(), correct))


def ece(
    confidence: Float[Tensor, "*nets examples"], correct: Bool[Tensor, "*nets examples"], bins: int = ECE_BINS
) -> Float[Tensor, "*nets"]:
    """Expected calibration error: sum over bins of equal width of (share of examples) * |accuracy - mean confidence|.

    `confidence` is the probability of the class that is predicted; a bin (a, b] holds the examples that have it there.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 2.

    >>> ece(torch.tensor([.9, .9]), torch.tensor([True, False]))  # one bin: |1/2 - .9|
    tensor(0.4000)
    """
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # clamp: rounding at 0 and 1
    gap = correct.to(confidence.dtype) - confidence
    per_bin = torch.zeros(*gap.shape[:-1], bins, dtype=gap.dtype, device=gap.device).scatter_add(-1, index, gap)
    return per_bin.abs().sum(-1) / confidence.shape[-1]


def summary(scores: Scores) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over networks of each score; one network has standard deviation 0.

    >>> summary(Scores(torch.tensor([.5, 1.]), torch.tensor([1., 1.]), torch.tensor([0., 0.])))["accuracy"]["mean"]
    0.75
    """
    columns = {field.name: getattr(scores, field.name).double().flatten() for field in fields(Scores)}
    return {name: {"mean": v.mean().item(), "std": v.std().item() if len(v) > 1 else 0.0} for name, v in columns.items()}


@torch.no_grad()
def _log_probabilities(network, spec, thetas, x, y, batch) -> Iterator[Float[Tensor, "some examples classes"]]:
    """The log-probabilities of the networks, chunk after chunk."""
    if len(thetas) == 0:
        raise ValueError("There is no network to evaluate: thetas is empty.")
    if len(x) == 0:
        raise ValueError("There is no example to evaluate on: x is empty.")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"y must hold one class index for each of the {len(x)} examples, not {tuple(y.shape)} of {y.dtype}.")
    check_zoo(spec, thetas, "population")
    check_state(spec, network.state_dict())
    network = deepcopy(network).to(thetas.device).eval()  # the caller's keeps its mode

    for chunk in thetas.split(max(1, batch // len(x))):
        logits = run(network, unpack(spec, chunk), x).movedim(-1, 0).contiguous()  # classes first: sums over them take whole rows at once
        yield logits.log_softmax(0).movedim(0, -1)
