"""Write what ensembles say of examples as plain numbers, for files and for figures."""

from collections.abc import Mapping
from math import isnan

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from geoflow.choices import choose
from geoflow.evaluation.posterior import Answers, Graded, grade, mean_and_spread, scores_of
from geoflow.evaluation.reliability import auroc, reliability, selective
from geoflow.outputs import RegressionScores, Scores, outputs_of

COVERAGES = 50  # points of a curve over the coverage
BINS = 30  # of the histograms of entropies
UNCERTAINTIES = ("entropy", "information")

Found = Mapping[str, Mapping[int, Graded]]  # by pool and size, as `graded` returns it


def scores_record(found: Found) -> dict[str, dict[str, dict]]:
    """Return by pool and size the number of ensembles, and mean and deviation of each of their scores (see `scores_of`)."""
    return {
        pool: {str(size): {"groups": len(one.correct)} | scores_of(one) for size, one in by_size.items()} for pool, by_size in found.items()
    }


def numbers_record(found: Mapping[str, Mapping[int, Scores | RegressionScores]]) -> dict[str, dict[str, dict]]:
    """Return the same of scores that `scores_by_size` found, for any kind of outputs."""
    return {
        pool: {
            str(size): {"groups": len(one.nll)} | {name: mean_and_spread(values) for name, values in vars(one).items()}
            for size, one in by_size.items()
        }
        for pool, by_size in found.items()
    }


def pooled_record(
    prediction: Float[Tensor, "members examples units"], y: Shaped[Tensor, "examples ..."], pool: str, outputs: str
) -> dict[str, float]:
    """Return the scores of one ensemble, given what its members predict. Classes also have a Brier score and an area.

    Raises ValueError for an unknown pool.

    >>> found = pooled_record(torch.tensor([[[.9, .1]], [[.5, .5]]]).log(), torch.tensor([0]), "linear", "classes")
    >>> {name: round(value, 2) for name, value in found.items()}
    {'accuracy': 1.0, 'nll': 0.36, 'ece': 0.3, 'brier': 0.18, 'area': 1.0}
    """
    kind = outputs_of(outputs)
    how = choose("pool", pool, kind.pools)
    facts = how.after(how.add(how.before(prediction, y)), len(prediction), y)
    found = {name: value.item() for name, value in vars(kind.scores(kind.sums(facts, y), y)).items()}
    if outputs == "classes":
        more = scores_of(grade(prediction, y, pool))
        found |= {name: more[name]["mean"] for name in ("brier", "area")}
    return found


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
