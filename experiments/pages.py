"""Make the pages of results/ from the runs kept there: a table, what falls short, and figures."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from geoflow.evaluation.plots import plot_curve, plot_summaries

BEATEN = ("mean_network", "interpolation", "gaussian", "pca_gaussian")  # whose NLL generated digits networks must be below
# what sets runs of one task and flow apart, besides the seed; a column of the table where a page has several of them
SETTINGS = ("metric", "velocity", "coupling", "prediction", "time", "runs", "iterations", "batch", "lr", "steps", "sharpness")
SHOWN = (*SETTINGS, "snapshots")
# what a kept run's folder holds: "metrics", "config", "ran", and where they were measured "curve" (over steps) and "sharpness"
Run = Mapping

# title: (its value in metrics.json, format)
COLUMNS: dict[str, tuple[Callable[[dict], float], str]] = {
    "zoo accuracy": (lambda m: m["zoo"]["accuracy"]["mean"], ".4f"),
    "accuracy": (lambda m: m["generated"]["accuracy"]["mean"], ".4f"),
    "its std": (lambda m: m["generated"]["accuracy"]["std"], ".3f"),
    "zoo NLL": (lambda m: m["zoo"]["nll"]["mean"], ".4f"),
    "NLL": (lambda m: m["generated"]["nll"]["mean"], ".4f"),
    "NLL / zoo": (lambda m: m["generated"]["nll"]["mean"] / m["zoo"]["nll"]["mean"], ".3f"),
    "ECE": (lambda m: m["generated"]["ece"]["mean"], ".3f"),
    "ensemble accuracy": (lambda m: small_ensemble(m, "generated")["accuracy"], ".4f"),
    "zoo ensemble": (lambda m: small_ensemble(m, "zoo")["accuracy"], ".4f"),
    "ensemble ECE": (lambda m: small_ensemble(m, "generated")["ece"], ".3f"),
    "log pool": (lambda m: log_pool(m, "generated")["accuracy"], ".4f"),
    "zoo log pool": (lambda m: log_pool(m, "zoo")["accuracy"], ".4f"),
    "log pool ECE": (lambda m: log_pool(m, "generated")["ece"], ".3f"),
    "mean network NLL": (lambda m: m["baselines"]["mean_network"]["nll"]["mean"], ".3f"),
    "interpolation NLL": (lambda m: m["baselines"]["interpolation"]["nll"]["mean"], ".3f"),
    "noised NLL": (lambda m: m["baselines"]["noised"]["nll"]["mean"], ".3f"),
    "novelty": (lambda m: m["novelty"]["ratio"], ".3f"),
    "distance / zoo": (lambda m: diversity(m, "distance"), ".3f"),
    "disagreement / zoo": (lambda m: diversity(m, "disagreement"), ".3f"),
    "minutes": (lambda m: sum(m["time"].values()) / 60, ".1f"),
}

BY_SHARPNESS = (
    "accuracy", "its std", "NLL", "ECE", "ensemble accuracy", "ensemble ECE", "log pool", "log pool ECE",
    "distance / zoo", "disagreement / zoo",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A table in results/: what it says above it, the tasks it is for, and which demands a run of its own falls short of."""

    text: str
    tasks: tuple[str, ...]
    missed: Callable[[Mapping], list[str]]


def small_ensemble(metrics: Mapping, name: str) -> Mapping:
    """The scores of the ensemble of 64 networks, or of all where no more were drawn or the run is older than that figure."""
    return metrics["ensemble"].get(f"{name}_64", metrics["ensemble"][name])


def log_pool(metrics: Mapping, name: str) -> Mapping:
    """The scores of the same ensemble where log-probabilities are averaged, not probabilities; NaN for a run older than that figure."""
    return small_ensemble(metrics, name).get("log_pool", defaultdict(lambda: float("nan")))


def diversity(metrics: Mapping, name: str) -> float:
    """How much two generated networks differ, in units of two of the zoo; NaN for a run older than that figure."""
    found = metrics.get("diversity")
    return found["generated"][name] / found["zoo"][name] if found else float("nan")


def missed_of_the_main_job(metrics: Mapping) -> list[str]:
    """What issue 2 asks of breast cancer and digits."""
    zoo, new, digits = metrics["zoo"], metrics["generated"], metrics["task"] == "digits"
    least = 0.94 if digits else zoo["accuracy"]["mean"] - 0.01
    most = 0.20 if digits else (1.2 if metrics["flow"] == "geometric" else 1.4) * zoo["nll"]["mean"]
    found = _short(new["accuracy"]["mean"], least, "accuracy") + _over(new["nll"]["mean"], most, "NLL")
    found += _outside(metrics["novelty"]["ratio"], 0.7, 1.5, "novelty")
    if digits:
        found += [] if small_ensemble(metrics, "generated")["accuracy"] >= zoo["accuracy"]["mean"] else ["ensemble"]
        found += [f"NLL > {name}" for name in BEATEN if new["nll"]["mean"] >= metrics["baselines"][name]["nll"]["mean"]]
    return found


def missed_of_a_split(metrics: Mapping) -> list[str]:
    """What issue 4 asks of breast cancer."""
    return _over(metrics["generated"]["nll"]["mean"], 1.05 * metrics["zoo"]["nll"]["mean"], "NLL")


def missed_of_fashion(metrics: Mapping) -> list[str]:
    """What issue 4 asks of 784-10-10 on Fashion-MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], metrics["zoo"]["accuracy"]["mean"] - 0.01, "accuracy")


def missed_of_mnist32(metrics: Mapping) -> list[str]:
    """What issue 4 asks of 784-32-32-10 on MNIST."""
    return _short(metrics["generated"]["accuracy"]["mean"], 0.96, "accuracy") + _outside(metrics["novelty"]["ratio"], 0.8, 1.3, "novelty")


def missed_of_mnist(metrics: Mapping) -> list[str]:
    """What issue 4 asks of 784-10-10 on MNIST."""
    pool = log_pool if "log_pool" in small_ensemble(metrics, "generated") else small_ensemble  # the calibrated one of the two
    new, ensemble, zoo = metrics["generated"], pool(metrics, "generated"), pool(metrics, "zoo")
    found = _short(new["accuracy"]["mean"], 0.92, "accuracy") + _over(new["nll"]["mean"], 0.30, "NLL")
    found += _over(new["accuracy"]["std"], 0.02, "std") + _outside(metrics["novelty"]["ratio"], 0.8, 1.3, "novelty")
    found += _short(ensemble["accuracy"], max(0.955, zoo["accuracy"] - 0.005), "ensemble accuracy")
    return found + _over(ensemble["ece"], new["ece"]["mean"], "ensemble ECE")


PAGES: dict[str, Page] = {
    "main_job": Page("The main job, measured: breast cancer and digits", ("breast_cancer", "digits"), missed_of_the_main_job),
    "ablations": Page("What carries it: one change each to a short training on digits (64-10-10)", ("digits",), lambda metrics: []),
    "mnist": Page("MNIST, 784-10-10: single generated networks without fine-tuning", ("mnist",), missed_of_mnist),
    "fashion": Page("Fashion-MNIST, 784-10-10: single generated networks without fine-tuning", ("fashion",), missed_of_fashion),
    "mnist32": Page("MNIST, 784-32-32-10: single generated networks without fine-tuning", ("mnist",), missed_of_mnist32),
    "zoos": Page("Where memorising ends: short trainings on zoos of MNIST, 784-10-10", ("mnist",), lambda metrics: []),
    "couplings": Page("Flows and couplings: short trainings on MNIST, 784-10-10", ("mnist",), lambda metrics: []),
    "splits": Page("Breast cancer, 30-16-16-2, over splits of the data (complete with 20)", ("breast_cancer",), missed_of_a_split),
}


def name_of(config: Mapping) -> str:
    """The name of a run's folder: task, flow, a digest of its other settings, seed. A run made anew takes the place of the old one."""
    settings = {name: config.get(name) for name in (*SETTINGS, "sizes", "zoo")}
    if zoo_seed(config) == config["seed"]:  # seeds share a name but for their number
        settings["zoo"] = {name: value for name, value in config["zoo"].items() if name != "seed"}
    others = json.dumps(settings, sort_keys=True)
    return f"{config['task']}-{config['flow']}-{hashlib.sha256(others.encode()).hexdigest()[:6]}-{config['seed']}"


def zoo_seed(config: Mapping) -> int:
    """The seed of a run's zoo: the run's own where none is named."""
    return config["zoo"].get("seed", config["seed"])


def curve_name(run: Run) -> str:
    """The name of the picture of a run's quality over steps."""
    return f"curve-{name_of(run['config'])}"


def read_runs(folder: Path) -> list[Run]:
    """The kept runs of a page."""
    return [
        {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("*.json"))}
        for run in sorted(folder.iterdir())
        if (run / "metrics.json").exists()
    ]


def page(name: str, runs: list[Run]) -> str:
    """The page results/<name>/README.md, from its kept runs alone."""
    machines = sorted({f"{run['ran']['cpu']}, {run['ran']['os'][1]}, Python {run['ran']['python']}" for run in runs})
    devices = sorted({run["ran"].get("device", "cpu") for run in runs})
    counts = sorted({run["config"]["count"] for run in runs})
    drawn = ["quality", *(curve_name(run) for run in runs if "curve" in run)]
    pictures = "\n\n".join(f"![{picture}](figures/{picture}.png)" for picture in drawn)
    return f"""# {PAGES[name].text}

{" or ".join(map(str, counts))} generated networks a run, on the test part that neither zoo, scaler nor flow has seen; one line per seed,
which chooses split, flow and samples, and the zoo unless another seed is named for it. Ensembles are of 64 networks where a run says so,
the mean of all that share none (of the first alone where `metrics.json` names no number), else of all. *ensemble* averages probabilities,
*log pool* log-probabilities (-: not measured by that run). Minutes are those of the whole run after the imports.
*missed* names the demands of its issue that a run falls short of. Device: {", ".join(devices)}; machines:
{"; ".join(machines)}. Rebuilt by `make results` from the folders beside this page, each a run with its configuration and metrics.

{table(runs, PAGES[name].missed)}

{"".join(sharpness_table(run) for run in runs if "sharpness" in run)}{pictures}
"""


def sharpness_table(run: Run) -> str:
    """What a flow's networks gain by sharpness, and how alike they become; the zoo beside them."""
    m, found = run["metrics"], run["sharpness"]
    zoo = {"generated": m["zoo"], "ensemble": {"generated": small_ensemble(m, "zoo")}, "diversity": {"generated": m["diversity"]["zoo"]}}
    lines = [["sharpness", *BY_SHARPNESS, "NLL on training data"], ["---"] * (len(BY_SHARPNESS) + 2)]
    for name, one in {**found["sharpness"], "zoo": zoo}.items():
        as_a_run = one | {"diversity": m["diversity"] | one["diversity"]}
        training = f"{one['training']['nll']['mean']:.4f}" if "training" in one else "-"
        lines.append([name, *(_number(COLUMNS[title][0](as_a_run), COLUMNS[title][1]) for title in BY_SHARPNESS), training])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""## {m["task"]}, {m["flow"]}, seed {m["seed"]}: by sharpness ({found["count"]} networks, {found["steps"]} steps)

{rows}

"""


def table(runs: list[Run], missed: Callable[[Mapping], list[str]]) -> str:
    """The Markdown table of kept runs, with the mean over seeds below each group of settings."""
    shown = _several(runs)
    titles = ["task", "flow", *shown, "ensembles of", "seed", *COLUMNS, "on", "commit", "missed"]
    lines = [titles, ["---"] * len(titles)]
    for names, group in _groups(runs, shown).items():
        for run in group:
            m, ran = run["metrics"], run["ran"]
            where = [_place(ran), "".join(ran["commit"])[:7], ", ".join(missed(m)) or "-"]
            seed = str(m["seed"]) + (f", zoo {zoo_seed(run['config'])}" if zoo_seed(run["config"]) != m["seed"] else "")
            lines.append([*names, seed, *(_number(value(m), form) for value, form in COLUMNS.values()), *where])
        if len(group) > 1:
            means = [_number(mean(value(run["metrics"]) for run in group), form) for value, form in COLUMNS.values()]
            lines.append([*names, "mean", *means, "", "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures(runs: list[Run]) -> dict[str, Figure]:
    """The pictures of a page: generated networks of every run beside zoo and baselines, and quality over steps where it was measured."""
    shown = _several(runs)
    found = {}
    for names, group in _groups(runs, shown).items():
        for run in group:
            m = run["metrics"]
            settings = [f"{name} {value}" for name, value in zip(shown, names[2:-1], strict=True) if value != "-"]
            label = ", ".join([" ".join(names[:2]), *settings, f"seed {m['seed']}"])
            found[label] = {kind: m[kind] for kind in ("zoo", "generated")} | {
                kind: m["baselines"][kind] for kind in ("mean_network", "interpolation", "noised")
            }
    pictures = {"quality": plot_summaries(found)}
    for run in runs:
        if "curve" in run:
            steps = {int(number): one for number, one in run["curve"]["steps"].items()}
            title = f"Over the steps, {run['config']['task']}, sharpness {run['curve']['sharpness']:g}, mean ± standard deviation"
            pictures[curve_name(run)] = plot_curve(steps, title)
    return pictures


def _groups(runs: list[Run], shown: list[str]) -> dict[tuple[str, ...], list[Run]]:
    """Runs that differ in nothing but their seed, by task, flow, the settings shown and the size of ensembles."""
    groups = defaultdict(list)
    for run in runs:
        m, config = run["metrics"], run["config"]
        key = (m["task"], m["flow"], *(_settings(config).get(name, "-") for name in shown), str(small_ensemble(m, "generated")["n"]))
        groups[key].append(run)
    return {key: sorted(groups[key], key=lambda run: run["metrics"]["seed"]) for key in sorted(groups)}


def _several(runs: list[Run]) -> list[str]:
    """The settings in which runs of one task differ."""
    by_task = defaultdict(list)
    for run in runs:
        by_task[run["config"]["task"]].append(_settings(run["config"]))
    names = dict.fromkeys(name for found in by_task.values() for settings in found for name in settings)
    return [name for name in names if any(len({settings.get(name) for settings in found}) > 1 for found in by_task.values())]


def _settings(config: Mapping) -> dict[str, str]:
    """The settings of a run that stand in tables, by name; sizes by their own."""
    sizes = {f"sizes.{name}": size for name, size in config.get("sizes", {}).items()}
    return {name: str(value) for name, value in ({name: config.get(name) for name in SHOWN} | sizes).items() if value is not None}


def _number(value: float, form: str) -> str:
    return "-" if isnan(value) else format(value, form)


def _place(ran: Mapping) -> str:
    """What computed a run: a GPU, or so many threads of a processor."""
    device = ran.get("device", "cpu")
    return f"{ran.get('threads', '?')} of a CPU" if device == "cpu" else device


def _short(value: float, least: float, name: str) -> list[str]:
    return [] if value >= least else [f"{name} < {least:.4f}"]


def _over(value: float, most: float, name: str) -> list[str]:
    return [] if value <= most else [f"{name} > {most:.4f}"]


def _outside(value: float, least: float, most: float, name: str) -> list[str]:
    return [] if least <= value <= most else [name]
