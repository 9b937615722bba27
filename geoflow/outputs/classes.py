"""Read outputs as logits of classes, and score them by accuracy, likelihood and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, one_hot

from geoflow.outputs.kind import Column, Outputs, Pool

ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """The scores of every network that tells classes apart.

    - `accuracy`: the share of examples that are classified correctly, in [0, 1].
    - `nll`: the mean negative log-likelihood, in nats.
    - `ece`: the expected calibration error, in [0, 1] (see `ece`).
    """

    accuracy: Float[Tensor, "*nets"]
    nll: Float[Tensor, "*nets"]
    ece: Float[Tensor, "*nets"]


class ClassOutputs(Outputs):
    """One logit for each class. Targets are class indices [examples], predictions log-probabilities, and these are the facts too.

    A single logit z tells two classes apart: p(1|x) = 1 / (1 + exp(-z)). The negative log-likelihood is then the binary cross-entropy.

    The pools are

        linear:  p(y|x) = mean_k softmax(f_k(x))_y        log:  p(y|x) = softmax(mean_k f_k(x))_y

    >>> kind = ClassOutputs()
    >>> log_probs, y = torch.eye(2).log(), torch.tensor([0, 0])
    >>> kind.scores(kind.sums(kind.facts(log_probs, y), y), y).accuracy
    tensor(0.5000)
    """

    columns: ClassVar[Mapping[str, Column]] = {
        "accuracy": Column("accuracy", "accuracy", higher=True, best=1.0),
        "nll": Column("NLL", "negative log-likelihood", "nats", log=True),
        "ece": Column("ECE", "expected calibration error"),
    }
    main: ClassVar[tuple[str, str]] = ("accuracy", "nll")
    pools: ClassVar[Mapping[str, Pool]] = {
        "linear": Pool(lambda log_probs, y: log_probs, lambda some: some.logsumexp(0), lambda total, nets, y: total - log(nets)),
        "log": Pool(lambda log_probs, y: log_probs, lambda some: some.sum(0), lambda total, nets, y: (total / nets).log_softmax(-1)),
    }
    apart: ClassVar[Column] = Column("disagreement", "the share of examples for which they predict different classes")
    said: ClassVar[str] = (
        "NLL is the negative log-likelihood in nats, and ECE the expected calibration error. An ensemble averages the probabilities of its "
        "networks, with *log pool* their log-probabilities."
    )

    def units(self, count: int) -> int:
        return count

    def check(self, x: Shaped[Tensor, "..."], y: Shaped[Tensor, "..."]) -> None:
        if y.shape != x.shape[:1] or y.is_floating_point():
            cure = ' Real targets need outputs="gaussian".' if y.is_floating_point() else ""
            cure += " Class indices are whole numbers: y.long()." if y.is_floating_point() and bool((y == y.round()).all()) else ""
            raise ValueError(f"y must hold one class index for each of the {len(x)} examples, not {tuple(y.shape)} of {y.dtype}.{cure}")

    def check_fit(self, units: int, y: Shaped[Tensor, "..."]) -> None:
        units = max(2, units)
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < units:
            raise ValueError(f"y holds classes {int(y.min())} to {int(y.max())}, but the network tells {units} apart, from 0 on.")

    def nll(self, outputs: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples"]:
        y = y.long().expand(outputs.shape[:-1])  # labels may come as bytes or booleans
        if outputs.shape[-1] == 1:
            logits = outputs.squeeze(-1)
            return binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")
        return cross_entropy(outputs.movedim(-1, 1), y, reduction="none")

    def prediction(self, outputs: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """Return log-probabilities of all classes. They are two for a single logit."""
        if outputs.shape[axis] == 1:
            return logsigmoid(torch.cat([-outputs, outputs], axis))
        return outputs.log_softmax(axis)

    def facts(self, prediction: Float[Tensor, "*nets examples units"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets examples facts"]:
        return prediction

    def sums(self, facts: Float[Tensor, "*nets examples facts"], y: Shaped[Tensor, "..."]) -> Float[Tensor, "*nets sums"]:
        """Return the correct answers, the negative log-likelihoods, and the gaps of every bin.

        Of classes with equal probabilities the first is predicted.
        """
        log_probs = facts.to(torch.promote_types(facts.dtype, torch.float32))  # half precision cannot hold the sums
        self.check_fit(log_probs.shape[-1], y)
        y = y.long()
        nll = -log_probs.gather(-1, y.expand(log_probs.shape[:-1]).unsqueeze(-1)).sum((-1, -2))
        best, classes = log_probs.amax(-1, keepdim=True), log_probs.shape[-1]
        # this is argmax, which takes 20 times as long if examples are innermost; the first of equal classes has the highest rank
        below, rank = log_probs - best, torch.arange(classes, 0, -1, dtype=log_probs.dtype, device=y.device)
        predicted = classes - torch.add(rank, below, alpha=1e30, out=below).amax(-1)
        correct = predicted == y
        return torch.cat([correct.sum(-1, keepdim=True), nll.unsqueeze(-1), _gaps(best.squeeze(-1).exp(), correct)], -1)

    def scores(self, sums: Float[Tensor, "*nets sums"], y: Shaped[Tensor, "..."]) -> Scores:
        accuracy, nll, gaps = (sums / len(y)).split([1, 1, ECE_BINS], -1)
        return Scores(accuracy.squeeze(-1), nll.squeeze(-1), gaps.abs().sum(-1))

    def opinions(self, prediction: Float[Tensor, "nets examples units"]) -> Int[Tensor, "parts examples opinions"]:
        """Return the votes that each class got."""
        return one_hot(prediction.argmax(-1), prediction.shape[-1]).sum(0, keepdim=True)

    def join(
        self, opinions: Shaped[Tensor, "parts examples opinions"], more: Shaped[Tensor, "more examples opinions"]
    ) -> Shaped[Tensor, "together examples opinions"]:
        return opinions + more

    def disagreement(self, opinions: Shaped[Tensor, "parts examples opinions"], nets: int) -> float:
        """Return the share of examples for which two networks predict different classes, averaged over all pairs."""
        votes, pairs = opinions.squeeze(0), nets * (nets - 1)
        return 1 - (votes * (votes - 1)).sum(-1).double().mean().item() / pairs if pairs else float("nan")

    def order(self, y: Shaped[Tensor, "examples ..."]) -> Int[Tensor, " examples"]:
        return y.argsort()  # examples of one class are alike

    def strata(self, y: np.ndarray) -> np.ndarray | None:
        return y


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
