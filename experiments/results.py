"""Keep the figures of finished runs in results/, and rebuild the tables from them.

python experiments/results.py main_job runs/1 runs/2    keeps these runs' figures for results/main_job.md, and rebuilds all tables
python experiments/results.py                           rebuilds all tables
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).resolve().parents[1] / "results"
BEATEN = ("mean_network", "interpolation", "gaussian", "pca_gaussian")  # whose NLL generated digits networks must be below

# title: (its value in metrics.json, format)
COLUMNS: dict[str, tuple[Callable[[dict], float], str]] = {
    "zoo accuracy": (lambda m: m["zoo"]["accuracy"]["mean"], ".4f"),
    "accuracy": (lambda m: m["generated"]["accuracy"]["mean"], ".4f"),
    "its std": (lambda m: m["generated"]["accuracy"]["std"], ".3f"),
    "zoo NLL": (lambda m: m["zoo"]["nll"]["mean"], ".4f"),
    "NLL": (lambda m: m["generated"]["nll"]["mean"], ".4f"),
    "NLL / zoo": (lambda m: m["generated"]["nll"]["mean"] / m["zoo"]["nll"]["mean"], ".3f"),
    "ECE": (lambda m: m["generated"]["ece"]["mean"], ".3f"),
    "ensemble accuracy": (lambda m: small_ensemble(m, "generated")["accuracy"], ".3f"),
    "zoo ensemble": (lambda m: small_ensemble(m, "zoo")["accuracy"], ".3f"),
    "mean network NLL": (lambda m: m["baselines"]["mean_network"]["nll"]["mean"], ".3f"),
    "noised NLL": (lambda m: m["baselines"]["noised"]["nll"]["mean"], ".3f"),
    "novelty": (lambda m: m["novelty"]["ratio"], ".3f"),
    "minutes": (lambda m: sum(m["time"].values()) / 60, ".1f"),
}


@dataclass(frozen=True)
class Page:
    """A table in results/: what it says above it, the tasks it is for, and which demands a run of its own falls short of."""

    text: str
    tasks: tuple[str, ...]
    missed: Callable[[Mapping], list[str]]


def small_ensemble(metrics: Mapping, name: str) -> Mapping:
    """The scores of the ensemble of 64 networks, or of all where no more were drawn or the run is older than that figure."""
    return metrics["ensemble"].get(f"{name}_64", metrics["ensemble"][name])


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


def missed_of_mnist(metrics: Mapping) -> list[str]:
    """What issue 4 asks of 784-10-10 on MNIST."""
    new, ensemble, zoo = metrics["generated"], small_ensemble(metrics, "generated"), small_ensemble(metrics, "zoo")
    found = _short(new["accuracy"]["mean"], 0.92, "accuracy") + _over(new["nll"]["mean"], 0.30, "NLL")
    found += _over(new["accuracy"]["std"], 0.02, "std") + _outside(metrics["novelty"]["ratio"], 0.8, 1.3, "novelty")
    found += _short(ensemble["accuracy"], max(0.955, zoo["accuracy"] - 0.005), "ensemble accuracy")
    return found + _over(ensemble["ece"], new["ece"]["mean"], "ensemble ECE")


PAGES: dict[str, Page] = {
    "main_job": Page("The main job, measured: breast cancer and digits.", ("breast_cancer", "digits"), missed_of_the_main_job),
    "mnist": Page("MNIST, 784-10-10: single generated networks without fine-tuning.", ("mnist",), missed_of_mnist),
}


def keep(name: str, run: Path) -> Path:
    """Copy what a table needs of a run folder: metrics, configuration, and where it ran."""
    metrics, config, record = (_read(run / part) for part in ("metrics.json", "config.json", "run.json"))
    info = _read(run / "info.json") if (run / "info.json").exists() else {}
    if metrics["task"] not in PAGES[name].tasks:
        raise SystemExit(f"{run} is a run of {metrics['task']}; the table {name} is for {', '.join(PAGES[name].tasks)}.")
    host = record["host"]
    ran = {"cpu": host.get("cpu"), "gpus": host.get("gpus"), "python": host["python_version"], "os": host["os"]} | info
    ran |= {"commit": [source["commit"] for source in record["experiment"]["repositories"]][:1], "started": record["start_time"]}
    path = RESULTS / name / f"{metrics['task']}-{metrics['flow']}-{metrics['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "config": config, "ran": ran}, indent=1) + "\n", encoding="utf-8")
    return path


def table(rows: list[dict], missed: Callable[[Mapping], list[str]]) -> str:
    """The Markdown table of kept runs, with the mean over seeds below each task, flow and size of ensembles."""
    titles = ["task", "flow", "ensembles of", "seed", *COLUMNS, "threads", "commit", "missed"]
    lines = [titles, ["---"] * len(titles)]
    groups = defaultdict(list)
    for row in rows:
        m = row["metrics"]
        groups[m["task"], m["flow"], str(small_ensemble(m, "generated")["n"])].append(row)
    for names, group in sorted(groups.items()):
        for row in sorted(group, key=lambda row: row["metrics"]["seed"]):
            m, ran = row["metrics"], row["ran"]
            where = [str(ran.get("threads", "?")), "".join(ran["commit"])[:7], ", ".join(missed(m)) or "-"]
            lines.append([*names, str(m["seed"]), *(format(value(m), form) for value, form in COLUMNS.values()), *where])
        if len(group) > 1:
            means = [format(mean(value(row["metrics"]) for row in group), form) for value, form in COLUMNS.values()]
            lines.append([*names, "mean", *means, "", "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(name: str) -> str:
    """The page results/<name>.md, from its kept runs alone."""
    rows = [_read(path) for path in sorted((RESULTS / name).glob("*.json"))]
    machines = sorted({f"{row['ran']['cpu']}, {row['ran']['os'][1]}, Python {row['ran']['python']}" for row in rows})
    counts = sorted({row["config"]["count"] for row in rows})
    return f"""# {PAGES[name].text}

{" or ".join(map(str, counts))} generated networks a run, on the test part that neither zoo, scaler nor flow has seen; one line per seed,
which chooses split, zoo, flow and samples. Minutes are those of the whole run after the imports. *missed* names the demands of its issue
that a run falls short of. Machines: {"; ".join(machines)}.
Rebuilt by `make results` from {name}/*.json.

{table(rows, PAGES[name].missed)}
"""


def rebuild() -> list[Path]:
    """Write every page that has runs."""
    paths = [RESULTS / f"{name}.md" for name in PAGES if (RESULTS / name).is_dir()]
    for path in paths:
        path.write_text(page(path.stem), encoding="utf-8")
    return paths


def _short(value: float, least: float, name: str) -> list[str]:
    return [] if value >= least else [f"{name} < {least:.4f}"]


def _over(value: float, most: float, name: str) -> list[str]:
    return [] if value <= most else [f"{name} > {most:.4f}"]


def _outside(value: float, least: float, most: float, name: str) -> list[str]:
    return [] if least <= value <= most else [name]


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(PAGES), help="the table that the runs belong to")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    options = parser.parse_args()
    for run in options.runs:
        print("kept", keep(options.name, run))
    for path in rebuild():
        print("written", path)


if __name__ == "__main__":
    main()
