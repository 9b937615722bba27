"""Make the pages of results/ from the runs kept there: their tables, what falls short of its demands, and figures."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from folder import OLDER, read_json, today
from matplotlib.figure import Figure
from studies import PAGES
from tables import (
    BEFORE,
    SETTINGS,
    Run,
    ahead_table,
    beside_table,
    by_distance,
    by_size,
    groups,
    quality_table,
    sharpness_table,
    transfer_table,
    usual,
    zoo_seed,
)

from geoflow.evaluation.baselines import NOISE
from geoflow.evaluation.comparisons import plot_curve, plot_sizes, plot_summaries, plot_tradeoff
from geoflow.zoo.recipes import zoo_defaults
from geoflow.zoo.store import ADDED

SHOWN_BASELINES = ("mean_network", "interpolation", "noised")
# settings that name a run only where they are not these; so do those that older runs could not choose
PLAIN = {"activation": "relu", "solver": "euler", "guidance": 0.0, "heldout": 0.125, "ema": 0.999, "weight_decay": 1e-3, "count": 256}
PLAIN |= OLDER


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
