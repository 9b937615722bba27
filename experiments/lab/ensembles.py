"""Measure ensembles of generated networks beside ensembles of their zoo."""

from collections.abc import Mapping, Sequence
from math import isnan

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from geoflow.evaluation.posterior import SIZES, Answers, Graded, answers, graded, mean_and_spread, scores_of
from geoflow.evaluation.posterior_plots import plot_ensembles, plot_outside, plot_reliability, plot_selective
from geoflow.evaluation.reliability import auroc, reliability, selective
from geoflow.zoo.store import Zoo
from lab.assess import SMALL, Exam

COVERAGES = 50  # points of a curve over the coverage
BINS = 30  # of the histograms of entropies
UNCERTAINTIES = ("entropy", "information")
Thetas = Float[Tensor, "nets weights"]
Found = dict[str, dict[int, Graded]]  # by pool and size


def measure(exam: Exam, kinds: Mapping[str, Thetas], others: Mapping[str, Shaped[Tensor, "examples ..."]]) -> dict:
    """Return what posterior.json says of ensembles of each kind of networks.

    `others` holds inputs of other tasks. Reliability, selective prediction and histograms are those of ensembles of SMALL networks, or of
    as many as every kind has.
    """
    shown = max(size for size in SIZES if size <= min(SMALL, *map(len, kinds.values())))
    found = {kind: graded(exam.network, exam.spec, thetas.to(exam.device), exam.x, exam.y) for kind, thetas in kinds.items()}
    outside = {
        other: {
            kind: _outside(answers(exam.network, exam.spec, thetas.to(exam.device), x.to(exam.device)), found[kind], shown)
            for kind, thetas in kinds.items()
        }
        for other, x in others.items()
    }
    return {
        "shown": shown,
        "ensembles": {kind: _by_pool(of, _scores) for kind, of in found.items()},
        "reliability": {kind: _by_pool(of, lambda one: _bins(one[shown])) for kind, of in found.items()},
        "selective": {kind: _by_pool(of, lambda one: _curve(one[shown])) for kind, of in found.items()},
        "outside": outside,
    }  # fmt: skip


def figures_of(found: Mapping, title: str) -> dict[str, Figure]:
    """Draw what `measure` returned. `found` also names the `task`."""
    shown = found["shown"]
    made = {
        "ensembles": plot_ensembles(found["ensembles"], f"{title}: ensembles by their size"),
        "reliability": plot_reliability(found["reliability"], f"{title}: reliability of ensembles of {shown}"),
        "selective": plot_selective(found["selective"], f"{title}: accuracy of ensembles of {shown} where they are sure"),
    }
    for other, one in found["outside"].items():
        made[f"outside_{other}"] = plot_outside(one, found["task"], other, shown, f"{title}: networks of {found['task']} meet {other}")
    return made


def deep_ensemble(zoo: Zoo, count: int, generator: torch.Generator) -> Thetas:
    """Return the last snapshots of at most `count` runs in a random order. They are trained networks that share no run."""
    return zoo.thetas[torch.randperm(zoo.runs, generator=generator)[:count], -1]


def _by_pool(found: Found, does) -> dict:
    return {pool: does(by_size) for pool, by_size in found.items()}


def _scores(by_size: Mapping[int, Graded]) -> dict[str, dict]:
    return {str(size): {"groups": len(found.correct)} | scores_of(found) for size, found in by_size.items()}


def _bins(found: Graded) -> dict[str, list[float | None]]:
    """Return the bins of a reliability diagram. What is not known of an empty bin is None."""
    bins = reliability(found.answers.confidence, found.correct)
    return {name: [None if isnan(value) else value for value in values.tolist()] for name, values in vars(bins).items()}


def _curve(found: Graded) -> dict[str, list[float]]:
    """Return the mean curve of accuracy over coverage at COVERAGES points."""
    curve = selective(found.answers.confidence, found.correct).mean(0)
    kept = torch.linspace(0, 1, COVERAGES + 1)[1:].mul(len(curve)).ceil().long().clamp(1, len(curve)).unique()
    return {"coverage": (kept / len(curve)).tolist(), "accuracy": curve[kept.to(curve.device) - 1].tolist()}


def _outside(found: Mapping[str, Mapping[int, Answers]], own: Found, shown: int) -> dict:
    """Return for each pool how well the uncertainty tells the other task's examples from our own, and histograms of the entropies."""
    return {
        pool: {
            "auroc": {str(size): _told(one, own[pool][size].answers, size) for size, one in by_size.items()},
            "entropy": _histogram(by_size[shown].entropy, own[pool][shown].answers.entropy),
        }
        for pool, by_size in found.items()
    }


def _told(outside: Answers, inside: Answers, size: int) -> dict[str, dict[str, float]]:
    """Return the AUROC of each uncertainty. A single network holds no information about itself."""
    known = UNCERTAINTIES if size > 1 else UNCERTAINTIES[:1]
    return {name: mean_and_spread(auroc(getattr(outside, name), getattr(inside, name))) for name in known}


def _histogram(outside: Tensor, inside: Tensor) -> dict[str, Sequence[float]]:
    edges = torch.linspace(0, max(outside.max().item(), inside.max().item(), 1e-6), BINS + 1)
    shares = {
        name: torch.histogram(one.flatten().cpu(), edges).hist / one.numel() for name, one in (("inside", inside), ("outside", outside))
    }
    return {"edges": edges.tolist()} | {name: share.tolist() for name, share in shares.items()}
