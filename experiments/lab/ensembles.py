"""Measure ensembles of generated networks beside ensembles of their zoo."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from geoflow.evaluation.posterior import SIZES, answers, graded
from geoflow.evaluation.posterior_plots import plot_ensembles, plot_outside, plot_reliability, plot_selective
from geoflow.evaluation.records import outside_record, reliability_record, scores_record, selective_record
from geoflow.zoo.store import Zoo
from lab.assess import SMALL, Exam

Thetas = Float[Tensor, "nets weights"]


def measure(exam: Exam, kinds: Mapping[str, Thetas], others: Mapping[str, Shaped[Tensor, "examples ..."]]) -> dict:
    """Return what posterior.json says of ensembles of each kind of networks.

    `others` holds inputs of other tasks. Reliability, selective prediction and histograms are those of ensembles of SMALL networks, or of
    as many as every kind has.
    """
    shown = max(size for size in SIZES if size <= min(SMALL, *map(len, kinds.values())))
    network, spec, device = exam.network, exam.spec, exam.device
    found = {kind: graded(network, spec, thetas.to(device), exam.x, exam.y) for kind, thetas in kinds.items()}

    def outside(x: Tensor) -> dict:
        met = {kind: answers(network, spec, thetas.to(device), x.to(device)) for kind, thetas in kinds.items()}
        return {kind: outside_record(met[kind], found[kind], shown) for kind in kinds}

    return {
        "shown": shown,
        "ensembles": {kind: scores_record(one) for kind, one in found.items()},
        "reliability": {kind: reliability_record(one, shown) for kind, one in found.items()},
        "selective": {kind: selective_record(one, shown) for kind, one in found.items()},
        "outside": {other: outside(x) for other, x in others.items()},
    }


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
