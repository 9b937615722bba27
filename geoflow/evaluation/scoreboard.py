"""Score generated networks beside their zoo and simple baselines: how good they are, how new, and how different."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from geoflow.evaluation.advice import advice
from geoflow.evaluation.baselines import BASELINES
from geoflow.evaluation.exam import Exam
from geoflow.evaluation.keeping import IN_MEMORY, Keeper
from geoflow.evaluation.measuring import Measuring
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import plot_distances, plot_loss, plot_scores, plot_weights, save_figures
from geoflow.evaluation.report import write_report
from geoflow.evaluation.tables import metrics_table
from geoflow.files import whole
from geoflow.flow import Flow
from geoflow.spec import NetworkSpec
from geoflow.statistics import statistics_of
from geoflow.stored import Networks, Rows, Stored, picked
from geoflow.training import fit, prepare
from geoflow.zoo.large import LargeZoo
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
    zoo: Zoo | LargeZoo | Shaped[Tensor, "runs ..."],
    samples: Thetas | Stored,
    data: Task,
    flow: Flow | None = None,
    heldout: Thetas | Stored | None = None,
    *,
    seen: Shaped[Tensor, "examples ..."] | None = None,
    paths: Float[Tensor, "times nets size"] | None = None,
    generator: Generator | None = None,
    device: str | torch.device = "cpu",
    keep: Keeper = IN_MEMORY,
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
    - `keep=InFiles(folder)` scores networks that are larger than memory. The zoo, `samples` and `heldout` then lie in files, as `open_zoo`
      and `sample(into=...)` give them. The flow has `latent="pca"`, and `paths` are those of all samples. After an interruption the same
      call goes on. The distance of sorted weights is left out.

    Raises ValueError for fewer than two training runs, for networks in files without such a `keep`, and where `geoflow.evaluate` does.

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
    train, run_of = _networks_of(zoo)
    check_place([train, samples, *([] if heldout is None else [heldout])], keep, flow)
    if isinstance(train, Tensor):
        dtype = torch.promote_types(torch.promote_types(train.dtype, samples.dtype), torch.float32)  # half a zoo's would be measured
        train, samples, heldout = (None if some is None else some.to(dtype) for some in (train, samples, heldout))
    generator, exam = generator or torch.Generator().manual_seed(0), Exam(network, spec, data, device)
    flow, losses = flow or _untrained(spec, train, exam.numbers), () if flow is None else flow.losses
    canonical, new = keep.canonical(flow, "zoo", train), keep.canonical(flow, "generated", samples)
    about = {"zoo": train, "run_of": run_of, "samples": samples, "heldout": heldout, "seen": seen, "x": exam.x, "y": exam.y}
    measure = Measuring(exam, train, run_of, keep, about)
    found, distances = measure.novelty(samples, heldout)
    scores, placed = {"zoo": measure.scores("zoo", train), "generated": measure.scores("generated", samples)}, {}
    for name, drawn in keep.generators(list(BASELINES), generator).items():
        scores[name], placed[name] = measure.baseline(name, flow, canonical, len(samples), drawn, seen, found["zoo_leave_one_out"])
    some = picked(train, torch.randperm(len(train), generator=generator)[: len(samples)])
    metrics = exam.units() | {
        "zoo": summary(scores["zoo"]),
        "generated": summary(scores["generated"]),
        "baselines": {name: summary(scores[name]) | placed[name] for name in BASELINES},
        "ensemble": exam.ensembles("generated", samples) | exam.ensembles("zoo", some),
        "novelty": found,
        "diversity": {"zoo": exam.diversity(canonical, some), "generated": exam.diversity(new, samples)},
        "pairwise": exam.pairwise(samples, train, run_of, generator),
        **recalibrated(spec, seen),
        "parameters": spec.weights,
    }
    figures = {"scores": plot_scores(scores, outputs=exam.outputs), "distances": plot_distances(distances)}
    figures |= {"loss": plot_loss(losses)} if losses else {}
    figures |= {} if paths is None else {"weights": plot_weights(*keep.shown(flow, canonical, new, paths))}
    return Scoreboard(metrics, figures)


def check_place(several: Sequence[Tensor | Rows], keep: Keeper, flow: Flow | None) -> None:
    """Raise ValueError if some networks lie in files and others in memory, or if there is no folder for what is made of files."""
    inside = [isinstance(networks, Rows) for networks in several]
    if any(inside) and not (all(inside) and keep is not IN_MEMORY and flow is not None):
        raise ValueError(
            "Networks in files are scored beside a zoo in a file, with the flow that was fitted to it and a folder for what is made on the "
            "way: keep=InFiles(folder). If all of them fit into memory, pass thetas[:]."
        )
    if keep is not IN_MEMORY and not all(inside):
        raise ValueError("keep=InFiles(folder) scores networks in files. For networks in memory leave keep out.")


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


def _networks_of(zoo: Zoo | LargeZoo | Tensor) -> tuple[Networks, Tensor]:
    """Return the networks of a zoo, and the run of each."""
    if isinstance(zoo, LargeZoo):
        return zoo.thetas, zoo.run_of
    runs = zoo.thetas if isinstance(zoo, Zoo) else zoo if zoo.ndim == 3 else zoo[:, None]
    return runs.flatten(0, 1), torch.arange(len(runs)).repeat_interleave(runs.shape[1])
