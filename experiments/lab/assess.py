"""Measure how good and how new the networks of a run are."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor, nn

from geoflow.canonical import align
from geoflow.evaluation.baselines import BASELINES, baseline
from geoflow.evaluation.diversity import pairwise
from geoflow.evaluation.metrics import RegressionScores, Scores, disagreement, evaluate, pooled_scores, summary
from geoflow.evaluation.novelty import by_layer, nearest_runs, neighbours_of, novelty, spread
from geoflow.evaluation.plots import plot_distances, plot_loss, plot_scores, plot_weights
from geoflow.evaluation.ruler import fit_ruler
from geoflow.flow import Flow
from geoflow.frame import UNTURNED, metric_frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate, statistics_of
from geoflow.symmetry import apply_symmetry
from geoflow.zoo.store import Zoo
from geoflow.zoo.tasks import Task
from lab.draw import recalibrated

SMALL = 64  # networks in an ensemble, the number that the literature reports
Thetas = Float[Tensor, "nets weights"]


class Exam:
    """Score networks of one architecture on the test part of a task, on one device."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, task: Task, device: str):
        self.network, self.spec, self.device, self.numbers = network, spec, device, task.numbers
        self.x, self.y, self.outputs = task.x_test.to(device), task.y_test.to(device), task.outputs
        self.targets = [asdict(target) for target in task.targets]

    def units(self) -> dict:
        """Return what metrics.json says of the scores' units: the kind of outputs and the real targets, or nothing for classes."""
        return {"outputs": self.outputs, "targets": self.targets} if self.targets else {}

    def single(self, thetas: Thetas) -> Scores | RegressionScores:
        """Return the scores of every network."""
        return evaluate(self.network, self.spec, thetas.to(self.device), self.x, self.y, outputs=self.outputs)

    def ensembles(self, name: str, thetas: Thetas) -> dict[str, dict[str, float]]:
        """Return the scores of the ensemble of all networks, and of ensembles of SMALL networks if there are more than SMALL.

        The networks are divided into ensembles of SMALL, and the scores are means over these ensembles. An ensemble averages
        probabilities. The scores under "log_pool" are those of averaged log-probabilities.
        """
        found = {name: self.ensemble(thetas)}
        if len(thetas) > SMALL:
            parts = [self.ensemble(part) for part in thetas.split(SMALL) if len(part) == SMALL]
            found[f"{name}_{SMALL}"] = _mean(parts) | {"n": SMALL, "ensembles": len(parts)}
        return found

    def diversity(self, canonical: Thetas, thetas: Thetas) -> dict[str, float | None]:
        """Return how far two networks are apart in canonical weights, and in their predictions (see `disagreement`).

        Both are None for a single network. Running statistics do not count as weights.
        """
        if len(thetas) == 1:
            return {"distance": None, "disagreement": None}
        different = disagreement(self.network, self.spec, thetas.to(self.device), self.x, outputs=self.outputs)
        learned = torch.ones(self.spec.weights, dtype=torch.bool).index_fill(0, statistics_of(self.spec), False)
        return {"distance": spread(canonical[:, learned]), "disagreement": different}

    def pairwise(self, thetas: Thetas, zoo: Zoo, generator: torch.Generator) -> dict[str, dict]:
        """Return how different pairs of generated and trained networks are, in the measures of the literature."""
        several = (some.to(self.device) for some in (thetas, zoo.networks))
        return pairwise(self.network, self.spec, *several, zoo.run_of, self.x, self.y, generator, self.outputs)

    def ensemble(self, thetas: Thetas) -> dict:
        """Return the scores of all networks together, as one ensemble."""
        found = pooled_scores(self.network, self.spec, thetas.to(self.device), self.x, self.y, outputs=self.outputs)
        return {"n": len(thetas)} | _means(found["linear"]) | {"log_pool": _means(found["log"])}


def _means(scores: Scores | RegressionScores) -> dict[str, float]:
    return {name: value["mean"] for name, value in summary(scores).items()}


def _mean(parts: list[dict]) -> dict:
    """Average several records of one form, number by number."""
    return {key: _mean([part[key] for part in parts]) if isinstance(value, dict) else fmean(part[key] for part in parts)
            for key, value in parts[0].items()}  # fmt: skip


def score(exam: Exam, thetas: Thetas) -> dict:
    """Return what metrics.json says of generated networks alone."""
    return exam.units() | {
        "generated": summary(exam.single(thetas)),
        "baselines": {},
        "ensemble": exam.ensembles("generated", thetas),
    }


def spread_and_scores(exam: Exam, flow: Flow, thetas: Thetas) -> dict:
    """Score generated networks without their zoo: how good they are, and how different from each other."""
    made = exam.diversity(flow.canonical(thetas), thetas)
    return {"generated": summary(exam.single(thetas)), "ensemble": exam.ensembles("generated", thetas), "diversity": {"generated": made}}


def assess(
    exam: Exam,
    flow: Flow,
    fitted: Zoo,
    heldout: Zoo,
    thetas: Thetas,
    paths: Tensor | None,
    generator: torch.Generator,
    seen: Shaped[Tensor, "examples ..."] | None,
) -> tuple[dict, Mapping[str, Figure]]:
    """Score generated networks, the zoo that the flow was fitted to, and the baselines. Return what metrics.json says, and the figures.

    Baselines are made in the flow's own canonical form. They are aligned to its reference, and balanced if its recipe balances.

    The running statistics of the baselines are measured anew on the training inputs `seen`, as those of the generated networks were. If
    `seen` is None, neither were. The networks of the zoo always keep theirs.

    The ruler of the zoo measures how new networks are. It is the same for every flow.

    `paths` [times, nets, size] holds the points that the sampler passed through. Without it there is no figure of the weights.
    """
    train, new = (flow.canonical(networks) for networks in (fitted.networks, thetas))
    made = {name: baseline(name, flow, train, len(thetas), generator) for name in BASELINES}
    if seen is not None:
        made = {name: recalibrate(exam.network, exam.spec, one.to(exam.device), seen.to(exam.device)).cpu() for name, one in made.items()}
    scores = {name: exam.single(one) for name, one in {"zoo": fitted.networks, "generated": thetas, **made}.items()}
    some = fitted.networks[torch.randperm(len(train), generator=generator)[: len(thetas)]]
    found, placed, distances = _how_new(exam, fitted, {"generated": thetas, "heldout": heldout.networks, **made})
    metrics = exam.units() | {
        "zoo": summary(scores["zoo"]),
        "generated": summary(scores["generated"]),
        "baselines": {name: summary(scores[name]) | placed[name] for name in made},
        "ensemble": exam.ensembles("generated", thetas) | exam.ensembles("zoo", some),
        "novelty": found,
        "diversity": {
            name: exam.diversity(canonical, networks) for name, canonical, networks in (("zoo", train, some), ("generated", new, thetas))
        },
        "pairwise": exam.pairwise(thetas, fitted, generator),
        **recalibrated(exam.spec, seen),
    }
    figures = {
        "scores": plot_scores(scores, outputs=exam.outputs),
        "loss": plot_loss(flow.losses),
        "distances": plot_distances(distances),
    }
    if paths is not None:
        figures["weights"] = plot_weights(train, new, _in_the_order_of_their_end(flow, paths))
    return metrics, figures


def _how_new(exam: Exam, fitted: Zoo, several: Mapping[str, Thetas]) -> tuple[dict, dict[str, dict], dict[str, Tensor]]:
    """Measure by the ruler of the zoo how new networks are. Return three things:

    - what metrics.json says of the generated networks,
    - the novelty ratio and the spread of each baseline, where the spread of a single network is None,
    - the distances to the nearest run.
    """
    spec, run_of = exam.spec, fitted.run_of
    frame = UNTURNED if exam.numbers is None else metric_frame(graph_of(spec), exam.numbers)
    ruler = fit_ruler(spec, fitted.networks, frame)
    zoo, placed = ruler.place(fitted.networks), {name: ruler.place(one) for name, one in several.items()}
    neighbours = neighbours_of(placed["generated"], zoo, placed["heldout"], run_of, spec)
    found = novelty(neighbours)

    def apart(networks: Thetas) -> float | None:
        return spread(networks) / spread(zoo) if len(networks) > 1 else None

    def ratio(networks: Thetas) -> float:
        return nearest_runs(networks, zoo, run_of, spec=spec)[:, 0].median().item() / found["zoo_leave_one_out"]

    others = {name: {"novelty": ratio(one), "spread": apart(one)} for name, one in placed.items() if name not in ("generated", "heldout")}
    found |= {"spread": apart(placed["generated"]), "layers": by_layer(spec, placed["generated"], zoo, run_of)}
    return found, others, {name: distances[:, 0] for name, distances in neighbours.items()}


def _in_the_order_of_their_end(flow: Flow, paths: Float[Tensor, "times nets size"]) -> Float[Tensor, "times nets weights"]:
    """Return the weights on each path. One order of the units holds all the way: the one that makes the last network canonical."""
    thetas, chart = flow.chart.theta(paths), flow.chart
    ends, reference = (chart.frame.turn(chart.graph, one) for one in (thetas[-1], flow.reference))
    return apply_symmetry(flow.spec, thetas, align(flow.spec, ends, reference)[1])
