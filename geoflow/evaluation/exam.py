"""Score networks of one architecture on the test part of a task: single ones, and ensembles of them."""

from dataclasses import asdict
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from geoflow.evaluation.diversity import pairwise
from geoflow.evaluation.metrics import RegressionScores, Scores, disagreement, evaluate, pooled_scores, summary
from geoflow.evaluation.novelty import spread
from geoflow.flow import Flow
from geoflow.spec import NetworkSpec
from geoflow.statistics import statistics_of
from geoflow.stored import Rows
from geoflow.zoo.tasks import Task

SMALL = 64  # networks in an ensemble, the number that the literature reports
Thetas = Float[Tensor, "_nets weights"] | Rows


class Exam:
    """Score networks of one architecture on the test part of a task, on one device."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, task: Task, device: str | torch.device = "cpu"):
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
        return {"distance": spread(canonical, learned), "disagreement": different}

    def pairwise(self, thetas: Thetas, zoo: Thetas, run_of: Tensor, generator: Generator) -> dict[str, dict]:
        """Return how different pairs of generated and trained networks are, in the measures of the literature."""
        several = (some.to(self.device) for some in (thetas, zoo))
        return pairwise(self.network, self.spec, *several, run_of, self.x, self.y, generator, self.outputs)

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
