"""Measure whether networks know when they are wrong."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from geoflow.outputs.classes import ECE_BINS


@dataclass(frozen=True)
class Bins:
    """The bins of a reliability diagram: the share of examples in each, their mean confidence and their accuracy. NaN if it is empty."""

    share: Float[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]


def selective(confidence: Float[Tensor, "groups examples"], correct: Bool[Tensor, "groups examples"]) -> Float[Tensor, "groups examples"]:
    """Return the accuracy on the k examples of highest confidence, for k = 1, 2 and so on up to all.

    Examples of equal confidence count with their mean accuracy, so their order does not matter. The mean over k is the area under the
    curve of accuracy over coverage. Source: El-Yaniv and Wiener 2010, On the foundations of noise-free selective classification.

    >>> selective(torch.tensor([[.9, .6, .8]]), torch.tensor([[True, False, True]]))
    tensor([[1.0000, 1.0000, 0.6667]])
    """
    order = confidence.argsort(1, descending=True)
    confidence, gained = confidence.gather(1, order), correct.gather(1, order).to(confidence.dtype)
    new = torch.ones_like(order)
    new[:, 1:] = confidence[:, 1:] != confidence[:, :-1]
    tie = new.cumsum(1) - 1
    sums, counts = (torch.zeros_like(gained).scatter_add_(1, tie, values) for values in (gained, torch.ones_like(gained)))
    shared = (sums / counts).gather(1, tie)
    return shared.cumsum(1) / torch.arange(1, shared.shape[1] + 1, dtype=shared.dtype, device=shared.device)


def reliability(confidence: Float[Tensor, "groups examples"], correct: Bool[Tensor, "groups examples"], bins: int = ECE_BINS) -> Bins:
    """Return share, mean confidence and accuracy in bins of the confidence, over the examples of all ensembles together.

    A bin (a, b] holds the examples whose confidence lies in it, as in `ece`. Source: Niculescu-Mizil and Caruana 2005, Predicting good
    probabilities with supervised learning.

    >>> reliability(torch.tensor([[.2, .3, .9]]), torch.tensor([[True, False, True]]), bins=2).accuracy
    tensor([0.5000, 1.0000])
    """
    confidence, correct = confidence.flatten(), correct.flatten()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    counts, sums, right = (
        torch.zeros(bins, dtype=confidence.dtype, device=confidence.device).index_add_(0, index, values.to(confidence.dtype))
        for values in (torch.ones_like(confidence), confidence, correct)
    )
    return Bins(counts / len(confidence), sums / counts, right / counts)


def auroc(outside: Float[Tensor, "groups others"], inside: Float[Tensor, "groups examples"]) -> Float[Tensor, " groups"]:
    """Return how often an example from outside has a higher score than one from inside: the area under the ROC curve. Ties count half.

    Source: Hendrycks and Gimpel 2017, A baseline for detecting misclassified and out-of-distribution examples.

    >>> auroc(torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 2.0]]))
    tensor([0.8750])
    """
    labels = np.repeat([1, 0], [outside.shape[1], inside.shape[1]])
    both = torch.cat([outside, inside], 1).cpu().numpy()
    return torch.tensor([roc_auc_score(labels, one) for one in both], dtype=inside.dtype)
