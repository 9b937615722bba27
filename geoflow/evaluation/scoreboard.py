"""Score generated networks beside their zoo and simple baselines: how good they are, how new, and how different."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from geoflow.canonical import align
from geoflow.evaluation.advice import advice
from geoflow.evaluation.baselines import BASELINES, baseline
from geoflow.evaluation.exam import Exam
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.novelty import by_layer, nearest_runs, neighbours_of, novelty, spread
from geoflow.evaluation.plots import plot_distances, plot_loss, plot_scores, plot_weights, save_figures
from geoflow.evaluation.report import write_report
from geoflow.evaluation.ruler import Ruler, fit_ruler
from geoflow.evaluation.tables import metrics_table
from geoflow.files import whole
from geoflow.flow import Flow
from geoflow.frame import UNTURNED, metric_frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate, statistics_of
from geoflow.symmetry import apply_symmetry
from geoflow.training import fit, prepare
from geoflow.zoo.store import Zoo
from geoflow.zoo.tasks import Task

SETTINGS = ("flow", "align", "velocity", "coupling", "time", "prediction", "weighting", "lr", "weight_decay", "ema", "seed", "iterations")
Thetas = Float[Tensor, "_nets weights"]


@dataclass(frozen=True)
class Scoreboard:
    """What `scoreboard` found. `print` shows the scores, and what they mean.

    `metrics` holds all numbers, by names, and `figures` the figures.
    """

    metrics: Mapping
    figures: Mapping[str, Figure]

    def __str__(self) -> str:
        return "\n\n".join([metrics_table(self.metrics), *advice(self.metrics)])

    def write(self, folder: str | Path, config: Mapping | None = None) -> Path:
        """Write metrics.json, report.md and the figures into a folder, and return the path of the report.

        `config` says how the networks were made, and is shown at the end of the report.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / "metrics.json") as partial:
            partial.write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
        save_figures(folder / "figures", self.figures)
        return write_report(folder, self.metrics, config or {})


def scoreboard(
    network: nn.Module,
    spec: NetworkSpec,
    zoo: Zoo | Shaped[Tensor, "runs ..."],
    samples: Thetas,
    data: Task,
    flow: Flow | None = None,
    heldout: Thetas | None = None,
    *,
    seen: Shaped[Tensor, "examples ..."] | None = None,
    paths: Float[Tensor, "times nets size"] | None = None,
    generator: Generator | None = None,
    device: str | torch.device = "cpu",
) -> Scoreboard:
    """Score generated networks `samples`, the zoo that they imitate, and the baselines, on the test part of the data.

    The result holds accuracy, NLL and ECE of single networks and of ensembles, novelty and copies, and how different networks are. It
    compares with all of `BASELINES`, which are made in the flow's own canonical form. Without a flow they are made in that of
    `geoflow.fit`. The ruler that measures novelty is the same for every flow.

    - `zoo` are the networks that the flow was fitted to: a `Zoo`, or weight vectors [nets, weights] of separate training runs, or
      [runs, snapshots, weights].
    - `data` is a `Task`, for example from `own_task`.
    - `heldout` are trained networks that the flow did not see. They show how far new training runs are from the zoo.
    - `seen` are training inputs. The running statistics of the baselines are measured anew on them, as those of the samples should have
      been (see `geoflow.recalibrate`). Networks of the zoo keep theirs.
    - `paths` are points that the sampler passed through, for the figure of the weights.

    Raises ValueError for fewer than two training runs, and where `geoflow.evaluate` does.

    >>> import torch, geoflow
    >>> from geoflow.zoo.own import own_task
    >>> network, x = torch.nn.Linear(2, 2), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    >>> data = own_task(x[:20], (x[:20, 0] > 0).long(), x[20:], (x[20:, 0] > 0).long())
    >>> spec = geoflow.spec_of(network, x)
    >>> thetas = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    >>> board = scoreboard(network, spec, thetas[:20], thetas[20:], data)
    >>> board.metrics["novelty"]["ratio"] > 0.5
    True
    """
    runs = zoo.thetas if isinstance(zoo, Zoo) else zoo if zoo.ndim == 3 else zoo[:, None]
    dtype = torch.promote_types(torch.promote_types(runs.dtype, samples.dtype), torch.float32)  # half a zoo's precision would be measured
    samples, heldout = samples.to(dtype), None if heldout is None else heldout.to(dtype)
    train, run_of = runs.flatten(0, 1).to(dtype), torch.arange(len(runs)).repeat_interleave(runs.shape[1])
    generator, exam = generator or torch.Generator().manual_seed(0), Exam(network, spec, data, device)
    flow, losses = flow or _untrained(spec, train, exam.numbers), () if flow is None else flow.losses
    canonical, new = flow.canonical(train), flow.canonical(samples)
    made = {name: baseline(name, flow, canonical, len(samples), generator) for name in BASELINES}
    if seen is not None:
        made = {name: recalibrate(network, spec, one.to(device), seen.to(device)).cpu() for name, one in made.items()}
    scores = {name: exam.single(one) for name, one in {"zoo": train, "generated": samples, **made}.items()}
    some = train[torch.randperm(len(train), generator=generator)[: len(samples)]]
    found, placed, distances = _how_new(exam, train, run_of, {"generated": samples, **made}, heldout)
    metrics = exam.units() | {
        "zoo": summary(scores["zoo"]),
        "generated": summary(scores["generated"]),
        "baselines": {name: summary(scores[name]) | placed[name] for name in made},
        "ensemble": exam.ensembles("generated", samples) | exam.ensembles("zoo", some),
        "novelty": found,
        "diversity": {"zoo": exam.diversity(canonical, some), "generated": exam.diversity(new, samples)},
        "pairwise": exam.pairwise(samples, train, run_of, generator),
        **recalibrated(spec, seen),
        "parameters": spec.weights,
    }
    figures = {"scores": plot_scores(scores, outputs=exam.outputs), "distances": plot_distances(distances)}
    figures |= {"loss": plot_loss(losses)} if losses else {}
    figures |= {} if paths is None else {"weights": plot_weights(canonical, new, _in_the_order_of_their_end(flow, paths))}
    return Scoreboard(metrics, figures)


def recalibrated(spec: NetworkSpec, seen: Tensor | None) -> dict[str, int | None]:
    """Return for the record on how many examples running statistics were measured anew.

    The number is 0 if they were not measured anew, and None if the networks have none.
    """
    if not len(statistics_of(spec)):
        return {"recalibrated": None}
    return {"recalibrated": 0 if seen is None else len(seen)}


def _untrained(spec: NetworkSpec, thetas: Thetas, inputs: Tensor | None) -> Flow:
    """Return a flow with the canonical form and the coordinates that `fit` chooses by default, and without training."""
    usual = signature(fit).parameters
    config = {name: usual[name].default for name in SETTINGS} | {"sizes": {}, "batch": 1}
    return prepare(spec, thetas, config, inputs)[0]


def ruler_of(exam: Exam, train: Thetas) -> Ruler:
    """Return the ruler that measures how far networks are from the training networks. It is the same for every flow."""
    return fit_ruler(exam.spec, train, UNTURNED if exam.numbers is None else metric_frame(graph_of(exam.spec), exam.numbers))


def _how_new(
    exam: Exam, train: Thetas, run_of: Tensor, several: Mapping[str, Thetas], heldout: Thetas | None
) -> tuple[dict, dict[str, dict], dict[str, Tensor]]:
    """Measure by the ruler of the zoo how new networks are. Return three things:

    - what metrics.json says of the generated networks,
    - the novelty ratio and the spread of each baseline, where the spread of a single network is None,
    - the distances to the nearest run.
    """
    spec, ruler = exam.spec, ruler_of(exam, train)
    zoo, placed = ruler.place(train), {name: ruler.place(one) for name, one in several.items()}
    neighbours = neighbours_of(placed["generated"], zoo, None if heldout is None else ruler.place(heldout), run_of, spec)
    found = novelty(neighbours)

    def apart(networks: Thetas) -> float | None:
        return spread(networks) / spread(zoo) if len(networks) > 1 else None

    def ratio(networks: Thetas) -> float:
        return nearest_runs(networks, zoo, run_of, spec=spec)[:, 0].median().item() / found["zoo_leave_one_out"]

    others = {name: {"novelty": ratio(one), "spread": apart(one)} for name, one in placed.items() if name != "generated"}
    found |= {"spread": apart(placed["generated"]), "layers": by_layer(spec, placed["generated"], zoo, run_of)}
    return found, others, {name: distances[:, 0] for name, distances in neighbours.items()}


def _in_the_order_of_their_end(flow: Flow, paths: Float[Tensor, "times nets size"]) -> Float[Tensor, "times nets weights"]:
    """Return the weights on each path. One order of the units holds all the way: the one that makes the last network canonical."""
    thetas, graph = flow.chart.theta(paths), graph_of(flow.spec)
    ends, reference = (flow.chart.frame.turn(graph, one) for one in (thetas[-1], flow.reference))
    return apply_symmetry(flow.spec, thetas, align(flow.spec, ends, reference)[1])
