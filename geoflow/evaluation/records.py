"""Write what ensembles say of examples as plain numbers, for files and for figures."""

from collections.abc import Mapping
from math import isnan

import torch
from torch import Tensor

from geoflow.evaluation.posterior import Answers, Graded, mean_and_spread, scores_of
from geoflow.evaluation.reliability import auroc, reliability, selective

COVERAGES = 50  # points of a curve over the coverage
BINS = 30  # of the histograms of entropies
UNCERTAINTIES = ("entropy", "information")

Found = Mapping[str, Mapping[int, Graded]]  # by pool and size, as `graded` returns it


def scores_record(found: Found) -> dict[str, dict[str, dict]]:
    """Return by pool and size the number of ensembles, and mean and deviation of each of their scores (see `scores_of`)."""
    return {
        pool: {str(size): {"groups": len(one.correct)} | scores_of(one) for size, one in by_size.items()} for pool, by_size in found.items()
    }


def reliability_record(found: Found, size: int) -> dict[str, dict[str, list[float | None]]]:
    """Return by pool the bins of a reliability diagram for ensembles of one size. What is not known of an empty bin is None."""
    bins = {pool: reliability(by_size[size].answers.confidence, by_size[size].correct) for pool, by_size in found.items()}
    return {
        pool: {name: [None if isnan(value) else value for value in values.tolist()] for name, values in vars(of).items()}
        for pool, of in bins.items()
    }


def selective_record(found: Found, size: int) -> dict[str, dict[str, list[float]]]:
    """Return by pool the mean curve of accuracy over coverage for ensembles of one size, at COVERAGES points."""
    return {pool: _curve(by_size[size]) for pool, by_size in found.items()}


def outside_record(outside: Mapping[str, Mapping[int, Answers]], own: Found, size: int) -> dict[str, dict]:
    """Return by pool how well uncertainty tells examples from outside from our own.

    `auroc` holds the scores by size. `entropy` holds histograms of the entropies for ensembles of one size.
    """
    return {
        pool: {
            "auroc": {str(members): _told(one, own[pool][members].answers, members) for members, one in by_size.items()},
            "entropy": _histogram(by_size[size].entropy, own[pool][size].answers.entropy),
        }
        for pool, by_size in outside.items()
    }


def _curve(found: Graded) -> dict[str, list[float]]:
    curve = selective(found.answers.confidence, found.correct).mean(0)
    kept = torch.linspace(0, 1, COVERAGES + 1)[1:].mul(len(curve)).ceil().long().clamp(1, len(curve)).unique()
    return {"coverage": (kept / len(curve)).tolist(), "accuracy": curve[kept.to(curve.device) - 1].tolist()}


def _told(outside: Answers, inside: Answers, members: int) -> dict[str, dict[str, float]]:
    """Return the AUROC of each uncertainty. A single network holds no information about itself."""
    known = UNCERTAINTIES if members > 1 else UNCERTAINTIES[:1]
    return {name: mean_and_spread(auroc(getattr(outside, name), getattr(inside, name))) for name in known}


def _histogram(outside: Tensor, inside: Tensor) -> dict[str, list[float]]:
    edges = torch.linspace(0, max(outside.max().item(), inside.max().item(), 1e-6), BINS + 1)
    both = {"inside": inside, "outside": outside}
    shares = {name: torch.histogram(one.flatten().cpu(), edges).hist / one.numel() for name, one in both.items()}
    return {"edges": edges.tolist()} | {name: share.tolist() for name, share in shares.items()}
