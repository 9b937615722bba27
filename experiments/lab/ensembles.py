"""Measure ensembles of generated networks beside ensembles of their zoo."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from geoflow.evaluation.exam import SMALL, Exam
from geoflow.evaluation.growing import SIZES, scores_by_size
from geoflow.evaluation.posterior import answers, graded
from geoflow.evaluation.posterior_plots import plot_ensembles, plot_outside, plot_reliability, plot_selective
from geoflow.evaluation.records import numbers_record, outside_record, reliability_record, scores_record, selective_record
from geoflow.zoo.store import Zoo

Thetas = Float[Tensor, "nets weights"]


def measure(exam: Exam, kinds: Mapping[str, Thetas], others: Mapping[str, Shaped[Tensor, "examples ..."]]) -> dict:
    """Return what posterior.json says of ensembles of each kind of networks.

    `others` holds inputs of other tasks. Reliability, selective prediction and histograms are known of classes. They are those of ensembles
    of SMALL networks, or of as many as every kind has.
    """
    shown = max(size for size in SIZES if size <= min(SMALL, *map(len, kinds.values())))
    nothing = {"reliability": {}, "selective": {}, "outside": {}}
    return {"outputs": exam.outputs, "shown": shown} | nothing | MEASURES[exam.outputs](exam, kinds, others, shown)


def _of_classes(exam: Exam, kinds: Mapping[str, Thetas], others: Mapping[str, Tensor], shown: int) -> dict:
    network, spec, device = exam.network, exam.spec, exam.device
    found = {kind: graded(network, spec, thetas.to(device), exam.x, exam.y) for kind, thetas in kinds.items()}

    def outside(x: Tensor) -> dict:
        met = {kind: answers(network, spec, thetas.to(device), x.to(device)) for kind, thetas in kinds.items()}
        return {kind: outside_record(met[kind], found[kind], shown) for kind in kinds}

    return {
        "ensembles": {kind: scores_record(one) for kind, one in found.items()},
        "reliability": {kind: reliability_record(one, shown) for kind, one in found.items()},
        "selective": {kind: selective_record(one, shown) for kind, one in found.items()},
        "outside": {other: outside(x) for other, x in others.items()},
    }


def _of_numbers(exam: Exam, kinds: Mapping[str, Thetas], others: Mapping[str, Tensor], shown: int) -> dict:
    def scored(thetas: Thetas) -> dict:
        thetas = thetas.to(exam.device)
        return numbers_record(scores_by_size(exam.network, exam.spec, thetas, exam.x, exam.y, outputs=exam.outputs))

    return {"ensembles": {kind: scored(thetas) for kind, thetas in kinds.items()}}


MEASURES = {"classes": _of_classes, "gaussian": _of_numbers}  # by the kind of outputs


def figures_of(found: Mapping, title: str) -> dict[str, Figure]:
    """Draw what `measure` returned. `found` also names the `task`."""
    shown = found["shown"]
    made = {"ensembles": plot_ensembles(found["ensembles"], f"{title}: ensembles by their size", found.get("outputs", "classes"))}
    if found["reliability"]:
        made["reliability"] = plot_reliability(found["reliability"], f"{title}: reliability of ensembles of {shown}")
    if found["selective"]:
        made["selective"] = plot_selective(found["selective"], f"{title}: accuracy of ensembles of {shown} where they are sure")
    for other, one in found["outside"].items():
        made[f"outside_{other}"] = plot_outside(one, found["task"], other, shown, f"{title}: networks of {found['task']} meet {other}")
    return made


def deep_ensemble(zoo: Zoo, count: int, generator: torch.Generator) -> Thetas:
    """Return the last snapshots of at most `count` runs in a random order. They are trained networks that share no run."""
    return zoo.thetas[torch.randperm(zoo.runs, generator=generator)[:count], -1]
