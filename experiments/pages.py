"""Make the pages of results/ from the runs kept there: their tables, what falls short of its demands, and figures."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from folder import OLDER, read_json, today
from matplotlib.figure import Figure
from tables import (
    BEFORE,
    SETTINGS,
    UNKNOWN,
    Run,
    ahead_table,
    beside_table,
    by_distance,
    by_size,
    groups,
    log_pool,
    novelty_of,
    quality_table,
    sharpness_table,
    small_ensemble,
    transfer_table,
    usual,
    zoo_seed,
)

from geoflow.chart import FLOWS
from geoflow.evaluation.baselines import NOISE
from geoflow.evaluation.comparisons import plot_curve, plot_sizes, plot_summaries, plot_tradeoff
from geoflow.zoo.recipes import zoo_defaults
from geoflow.zoo.store import ADDED

SHOWN_BASELINES = ("mean_network", "interpolation", "noised")
# settings that name a run only where they are not these; so do those that older runs could not choose
PLAIN = {"activation": "relu", "solver": "euler", "guidance": 0.0, "heldout": 0.125, "ema": 0.999, "weight_decay": 1e-3, "count": 256}
PLAIN |= OLDER
BEATEN = ("mean_network", "rescaled_mean", "interpolation", "gaussian", "pca_gaussian")  # whose NLL generated digits networks must be below


@dataclass(frozen=True)
class Page:
    """A table in results/: its title, the tasks it is for with the hidden layers of their networks, which demands a run of its own falls
    short of, and how to read it."""

    text: str
    tasks: Mapping[str, list[int]]
    missed: Callable[[Mapping], list[str]]
    note: str


def missed_of_the_main_job(metrics: Mapping) -> list[str]:
    """What is asked of breast cancer and digits."""
    zoo, new, digits = metrics["zoo"], metrics["generated"], metrics["task"] == "digits"
    least = 0.94 if digits else zoo["accuracy"]["mean"] - 0.01
    most = 0.20 if digits else (1.2 if FLOWS[metrics["flow"]].spheres else 1.4) * zoo["nll"]["mean"]
    found = _short(new["accuracy"]["mean"], least, "accuracy") + _over(new["nll"]["mean"], most, "NLL")
    found += _outside(novelty_of(metrics, "ratio"), 0.7, 1.5, "novelty")
    if digits:
        found += [] if small_ensemble(metrics, "generated")["accuracy"] >= zoo["accuracy"]["mean"] else ["ensemble"]
        found += [f"NLL > {name}" for name in BEATEN if new["nll"]["mean"] >= metrics["baselines"].get(name, UNKNOWN)["nll"]["mean"]]
    return found


def missed_of_a_split(metrics: Mapping) -> list[str]:
    """What is asked of breast cancer."""
    return _over(metrics["generated"]["nll"]["mean"], 1.05 * metrics["zoo"]["nll"]["mean"], "NLL")


def missed_of_fashion(metrics: Mapping) -> list[str]:
    """What is asked of 784-10-10 on Fashion-MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], metrics["zoo"]["accuracy"]["mean"] - 0.01, "accuracy")


def missed_of_mnist32(metrics: Mapping) -> list[str]:
    """What is asked of 784-32-32-10 on MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], 0.96, "accuracy") + _outside(novelty_of(metrics, "ratio"), 0.8, 1.3, "novelty")


def missed_of_mnist(metrics: Mapping) -> list[str]:
    """What is asked of 784-10-10 on MNIST; of its ensembles, where both were measured, of the log pool."""
    measured = "log_pool" in small_ensemble(metrics, "generated")
    pool = log_pool if measured else small_ensemble
    new, ensemble, zoo = metrics["generated"], pool(metrics, "generated"), pool(metrics, "zoo")
    found = _short(new["accuracy"]["mean"], 0.92, "accuracy") + _over(new["nll"]["mean"], 0.30, "NLL")
    found += _over(new["accuracy"]["std"], 0.02, "std") + _outside(novelty_of(metrics, "ratio"), 0.8, 1.3, "novelty")
    found += _short(ensemble["accuracy"], max(0.955, zoo["accuracy"] - 0.005), "ensemble accuracy")
    return found + (_over(ensemble["ece"], new["ece"]["mean"], "log pool ECE") if measured else ["log pool not measured"])


NOTHING_ASKED = "Nothing is asked of these runs."
PAGES: dict[str, Page] = {
    "main_job": Page(
        "The main job, measured: breast cancer and digits", {"breast_cancer": [16, 16], "digits": [10]}, missed_of_the_main_job,
        "Asked for: novelty from .7 to 1.5; of breast cancer accuracy within .01 of the zoo and NLL at most 1.2 times the "
        "zoo's (1.4 of flat flows); of digits accuracy .94, NLL .20 and below the baselines' but noised and copied networks, an "
        "ensemble as accurate as the zoo. Settings were chosen on validation parts of splits of the same examples.",
    ),
    "ablations": Page(
        "What carries it: one change each to a short training on digits (64-10-10)", {"digits": [10]}, lambda metrics: [],
        f"{NOTHING_ASKED} One seed each: differences of accuracy below .005 may be chance (benchmarks/NOTES.md).",
    ),
    "mnist": Page(
        "MNIST, 784-10-10: single generated networks without fine-tuning", {"mnist": [10]}, missed_of_mnist,
        "Asked for: accuracy .92 with a standard deviation of at most .02, NLL .30, novelty from .8 to 1.3; of the log pool "
        "accuracy .955 and within .005 of the zoo's, ECE below the single networks'. The average of probabilities is not as "
        "well calibrated, nor is the zoo's.",
    ),
    "fashion": Page(
        "Fashion-MNIST, 784-10-10: single generated networks without fine-tuning", {"fashion": [10]}, missed_of_fashion,
        "Asked for: accuracy within .01 of the zoo.",
    ),
    "mnist32": Page(
        "MNIST, 784-32-32-10: single generated networks without fine-tuning", {"mnist": [32, 32]}, missed_of_mnist32,
        "Asked for: accuracy .96, novelty from .8 to 1.3.",
    ),
    "zoos": Page("Where memorising ends: short trainings on zoos of MNIST, 784-10-10", {"mnist": [10]}, lambda metrics: [], NOTHING_ASKED),
    "couplings": Page("Flows and couplings: short trainings on MNIST, 784-10-10", {"mnist": [10]}, lambda metrics: [], NOTHING_ASKED),
    "splits": Page(
        "Breast cancer, 30-16-16-2, over splits of the data (complete with 20)", {"breast_cancer": [16, 16]}, missed_of_a_split,
        "Asked for: NLL at most 1.05 times the zoo's. Settings were chosen on validation parts of other splits of the same 569 examples.",
    ),
}  # fmt: skip


def name_of(config: Mapping) -> str:
    """The name of a run's folder: task, flow, a digest of its other settings, seed. A run made anew takes the place of the old one."""
    config = today(config)
    plain = PLAIN | BEFORE | {"snapshots": zoo_defaults(config["network"], config["task"])["snapshots"]}
    as_plain = {name for name, value in plain.items() if config.get(name, value) == value}
    settings = {name: config.get(name) for name in (*SETTINGS, *PLAIN, "snapshots", "sizes", "zoo") if name not in as_plain}
    if zoo_seed(config) == config["seed"]:  # seeds share a name but for their number
        settings["zoo"] = {name: value for name, value in config["zoo"].items() if name != "seed"}
    settings["zoo"] = {name: value for name, value in settings["zoo"].items() if name not in ADDED or value != ADDED[name]}
    others = json.dumps(settings, sort_keys=True)
    return f"{config['task']}-{config['flow']}-{hashlib.sha256(others.encode()).hexdigest()[:6]}-{config['seed']}"


def read_runs(folder: Path) -> list[Run]:
    """The kept runs of a page, in today's words."""
    return [read_run(run) for run in sorted(folder.iterdir()) if (run / "metrics.json").exists()]


def read_run(folder: Path) -> Run:
    """What is kept of a run."""
    run = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    config = today(run["config"])
    return run | {"config": config, "metrics": run["metrics"] | {"flow": config["flow"]}}


def page(name: str, runs: list[Run], pictures: Iterable[str]) -> str:
    """The page results/<name>/README.md, from its kept runs alone; `pictures` names what `figures` drew of them."""
    machines = sorted({f"{run['ran']['cpu']}, {run['ran']['os'][1]}, Python {run['ran']['python']}" for run in runs})
    devices = sorted({run["ran"].get("device", "cpu") for run in runs})
    counts = sorted({run["config"]["count"] for run in runs})
    shown = "\n\n".join(f"![{picture}](figures/{picture}.png)" for picture in pictures)
    differing = usual(runs)
    shared = {task: ", ".join(f"{name} {value}" for name, value in most.items() if value) for task, most in differing.items()}
    alike = "; ".join(f"{task} ({values})" for task, values in shared.items() if values)
    settings = "Settings name what is not as in most runs" + (f": {alike}." if alike else ".")
    settings = settings if any(differing.values()) else "All runs have the same settings."
    return f"""# {PAGES[name].text}

{" or ".join(map(str, counts))} generated networks a run, on the test part that neither zoo, scaler nor flow has seen; one line per seed,
which chooses split, flow and samples, and the zoo unless another seed is named for it. {settings}
Ensembles are of 64 networks, the mean of all that share none (of the first alone where `metrics.json` names no number), or of all where
fewer were drawn or the run is older; *ensemble* averages probabilities, *log pool* log-probabilities (-: not measured by that run).
*novelty* is the median distance to the nearest training run in units of the zoo's own, each layer counting the same, *of a layer* the least
of one layer by itself, *copies* the share of networks that stand out to one run: are so much nearer to it than to the next ones as 1 of 100
training networks is to another run. Of networks as new as another run they are 1, 1 and .01, of copies 0, 0 and 1 (-: not measured).
*missed* names what a run falls short of. {PAGES[name].note}
Rebuilt by `make results` from the folders beside this page, each a run with its configuration and metrics.

{quality_table(runs, PAGES[name].missed)}

NLL of the baselines, made in the flow's canonical form, with the novelty of the two that copy most (where it is missing, a run is older:
interpolated pairs may be aligned to the centre of the zoo, not to each other, and not rescaled); how much two networks differ (*spread*, in
weights, and how often in what they predict); minutes of training the flow and drawing from it (of a resumed run since then).
Device: {", ".join(devices)}; machines: {"; ".join(machines)}.

{beside_table(runs)}

In how many runs the generated networks have a lower NLL than the zoo, and than each baseline (*retrieval* draws networks of the zoo as they
are, *noised* adds {NOISE:g} standard deviations of noise to them):

{ahead_table(runs)}

{"".join(transfer_table(name_of(run["config"]), run) for run in runs)}\
{"".join(sharpness_table(name_of(run["config"]), run) for run in runs if "sharpness" in run)}{shown}
"""


def figures(runs: list[Run]) -> dict[str, Figure]:
    """The pictures of a page, by name: generated networks of every run beside zoo and baselines; novelty over the size of the zoo where
    several are compared, quality against diversity and over steps where these were measured."""
    by_task: dict[str, dict[str, Run]] = {}
    for (task, flow, settings), group in groups(runs).items():
        for run in group:
            label = ", ".join([flow, *([] if settings == "-" else [settings]), f"seed {run['metrics']['seed']}"])
            by_task.setdefault(task, {})[label] = run
    pictures = {}
    for task, labelled in by_task.items():
        title = f"{task}: mean of single networks ± standard deviation"
        pictures[f"quality-{task}"] = plot_summaries({label: _summaries(run["metrics"]) for label, run in labelled.items()}, title)
        if sharpened := {label: run for label, run in labelled.items() if "sharpness" in run}:
            drawn = {label: by_distance(run) for label, run in sharpened.items()}
            zoo = next(iter(sharpened.values()))["metrics"]["zoo"]
            pictures[f"tradeoff-{task}"] = plot_tradeoff(drawn, zoo, f"{task}: quality against diversity, from sharpness 0 (hollow) on")
    for task, lines in by_size(runs).items():
        pictures[f"sizes-{task}"] = plot_sizes(lines, f"{task}: how new and how good, over the size of the zoo")
    for run in runs:
        if "curve" in run:
            steps = {int(number): one for number, one in run["curve"]["steps"].items()}
            how = BEFORE | run["curve"]
            how = f"sharpness {how['sharpness']:g}, start {how['start']:g}"
            title = f"Over the steps, {run['config']['task']}, {how}, mean ± standard deviation"
            pictures[f"curve-{name_of(run['config'])}"] = plot_curve(steps, title)
    return pictures


def _summaries(metrics: Mapping) -> dict[str, Mapping]:
    """The scores of the networks that the picture of a page shows side by side."""
    return {kind: metrics[kind] for kind in ("zoo", "generated")} | {kind: metrics["baselines"][kind] for kind in SHOWN_BASELINES}


def _short(value: float, least: float, name: str) -> list[str]:
    return [] if value >= least else [f"{name} < {least:.4f}"]


def _over(value: float, most: float, name: str) -> list[str]:
    return [] if value <= most else [f"{name} > {most:.4f}"]


def _outside(value: float, least: float, most: float, name: str) -> list[str]:
    return [f"{name} not measured"] if isnan(value) else [] if least <= value <= most else [name]
