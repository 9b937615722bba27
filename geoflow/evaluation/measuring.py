"""Measure the sets of networks of a scoreboard: their scores, how new they are, and how far apart."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from geoflow.evaluation.exam import Exam
from geoflow.evaluation.keeping import IN_MEMORY, Keeper
from geoflow.evaluation.metrics import RegressionScores, Scores
from geoflow.evaluation.novelty import by_layer, nearest_runs, neighbours_of, novelty, spread
from geoflow.evaluation.ruler import Ruler, layers_of
from geoflow.flow import Flow
from geoflow.frame import UNTURNED, metric_frame
from geoflow.graph import graph_of
from geoflow.stored import Rows

Thetas = Float[Tensor, "_nets weights"] | Rows
KINDS = {frozenset(field.name for field in fields(kind)): kind for kind in (Scores, RegressionScores)}  # by the names of the scores


@dataclass(frozen=True)
class Measuring:
    """Measure sets of networks beside the zoo `train`. The ruler of the zoo is the same for every flow.

    `keep` says where networks and results are kept. `about` holds all that decides the results, beside what draws the baselines.
    """

    exam: Exam
    train: Thetas
    run_of: Tensor
    keep: Keeper
    about: Mapping

    @cached_property
    def ruler(self) -> Ruler:
        return ruler_of(self.exam, self.train, self.keep)

    @cached_property
    def zoo(self) -> Thetas:
        """The zoo on its ruler."""
        return self.keep.placed(self.ruler, "zoo", self.train)

    @cached_property
    def apart(self) -> float:
        """How far two networks of the zoo are apart."""
        return spread(self.zoo)

    def scores(self, name: str, thetas: Thetas) -> Scores | RegressionScores:
        """Return the scores of every network."""
        found = self.keep.kept(f"{name}-scores", self.about, lambda: vars(self.exam.single(thetas)))
        return KINDS[frozenset(found)](**found)

    def novelty(self, samples: Thetas, heldout: Thetas | None) -> tuple[dict, dict[str, Tensor]]:
        """Return what metrics.json says of how new generated networks are, and the distances of all networks to their nearest run."""
        keep, spec = self.keep, self.exam.spec
        new = keep.placed(self.ruler, "generated", samples)
        others = None if heldout is None else keep.placed(self.ruler, "heldout", heldout)
        neighbours = keep.kept("neighbours", self.about, lambda: neighbours_of(new, self.zoo, others, self.run_of, spec))
        layers = keep.kept("layers", self.about, lambda: _numbers(by_layer(spec, new, self.zoo, self.run_of)))
        found = novelty(neighbours) | {"spread": spread(new) / self.apart if len(new) > 1 else None}
        found |= {"layers": {name: layers[name].item() for name in layers_of(spec) if name in layers}}  # a file does not keep their order
        return found, {name: distances[:, 0] for name, distances in neighbours.items()}

    def baseline(
        self, name: str, flow: Flow, canonical: Thetas, count: int, generator: Generator, seen: Tensor | None, usual: float
    ) -> tuple[Scores | RegressionScores, dict]:
        """Return the scores of a baseline's networks, and their novelty ratio and spread. The spread of a single network is None.

        `usual` is the distance of a training network to the nearest other run.
        """

        def find() -> dict[str, Tensor]:
            made = self.keep.baseline(name, flow, canonical, count, generator)
            if seen is not None:
                made = self.keep.recalibrated(name, self.exam.network, self.exam.spec, made, seen.to(self.exam.device))
            placed = self.keep.placed(self.ruler, name, made)
            nearest = nearest_runs(placed, self.zoo, self.run_of, spec=self.exam.spec)[:, 0]
            return vars(self.exam.single(made)) | _numbers({"spread": spread(placed)}) | {"nearest": nearest}

        about = {"canonical": canonical, "recipe": repr(flow.chart.recipe), "reference": flow.reference, "drawn": generator.get_state()}
        found = dict(self.keep.kept(name, {**self.about, **about}, find))
        self.keep.drop(name)
        nearest, apart = found.pop("nearest"), found.pop("spread").item()
        place = {"novelty": nearest.median().item() / usual, "spread": apart / self.apart if len(nearest) > 1 else None}
        return KINDS[frozenset(found)](**found), place


def ruler_of(exam: Exam, train: Thetas, keep: Keeper = IN_MEMORY) -> Ruler:
    """Return the ruler that measures how far networks are from the training networks. It is the same for every flow."""
    frame = UNTURNED if exam.numbers is None else metric_frame(graph_of(exam.spec), exam.numbers)
    return keep.ruler(exam.spec, train, frame)


def _numbers(values: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
