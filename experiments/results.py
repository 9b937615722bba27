"""Keep the figures of finished runs in results/, and rebuild the table from them.

python experiments/results.py runs/1 runs/2    keeps these runs' figures and rebuilds results/main_job.md
python experiments/results.py                  rebuilds it
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).resolve().parents[1] / "results"
BOUNDS = {  # what issue 2 asks of each task and flow: (accuracy of single networks at least, their NLL at most), from the zoo's own
    ("breast_cancer", "geometric"): (lambda zoo: zoo["accuracy"]["mean"] - 0.01, lambda zoo: 1.2 * zoo["nll"]["mean"]),
    ("breast_cancer", "euclidean"): (lambda zoo: zoo["accuracy"]["mean"] - 0.01, lambda zoo: 1.4 * zoo["nll"]["mean"]),
    ("breast_cancer", "normalized"): (lambda zoo: zoo["accuracy"]["mean"] - 0.01, lambda zoo: 1.4 * zoo["nll"]["mean"]),
    ("digits", "geometric"): (lambda zoo: 0.94, lambda zoo: 0.20),
}
NOVELTY = (0.7, 1.5)
BEATEN = ("mean_network", "interpolation", "gaussian", "pca_gaussian")  # whose NLL generated digits networks must be below

PAGE = """# The main job, measured

256 generated networks a run, on the test part that neither zoo, scaler nor flow has seen; one line per seed, which chooses split,
zoo, flow and samples. Rebuilt by `python experiments/results.py` from main_job/*.json; *missed* names the demands of issue 2 that a run
falls short of. Minutes are those of the whole run after the imports. Machines: {machines}.

{table}
"""


def keep(run: Path) -> Path:
    """Copy what the table needs of a run folder: metrics, configuration, and where it ran."""
    metrics, config, record = (_read(run / name) for name in ("metrics.json", "config.json", "run.json"))
    info = _read(run / "info.json") if (run / "info.json").exists() else {}
    host = record["host"]
    ran = {"cpu": host.get("cpu"), "gpus": host.get("gpus"), "python": host["python_version"], "os": host["os"]} | info
    ran |= {"commit": [source["commit"] for source in record["experiment"]["repositories"]][:1], "started": record["start_time"]}
    path = RESULTS / "main_job" / f"{metrics['task']}-{metrics['flow']}-{metrics['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "config": config, "ran": ran}, indent=1) + "\n", encoding="utf-8")
    return path


def failures(metrics: dict) -> list[str]:
    """Which of the issue's demands a run does not meet."""
    zoo, generated = metrics["zoo"], metrics["generated"]
    least, most = (bound(zoo) for bound in BOUNDS[metrics["task"], metrics["flow"]])
    found = [] if generated["accuracy"]["mean"] >= least else [f"accuracy < {least:.4f}"]
    found += [] if generated["nll"]["mean"] <= most else [f"NLL > {most:.4f}"]
    found += [] if NOVELTY[0] <= metrics["novelty"]["ratio"] <= NOVELTY[1] else ["novelty"]
    if metrics["task"] == "digits":
        found += [] if metrics["ensemble"]["generated"]["accuracy"] >= zoo["accuracy"]["mean"] else ["ensemble"]
        found += [f"NLL > {name}" for name in BEATEN if generated["nll"]["mean"] >= metrics["baselines"][name]["nll"]["mean"]]
    return found


def table(rows: list[dict]) -> str:
    """The Markdown table of kept runs, with the mean over seeds below each task and flow."""
    lines = [
        "| task | flow | seed | zoo accuracy | accuracy | zoo NLL | NLL | NLL / zoo | ECE | ensemble accuracy | mean network NLL | novelty "
        "| minutes | threads | commit | missed |",
        "|" + "---|" * 16,
    ]
    groups = defaultdict(list)
    for row in rows:
        groups[row["metrics"]["task"], row["metrics"]["flow"]].append(row)
    for (task, flow), group in sorted(groups.items()):
        for row in sorted(group, key=lambda row: row["metrics"]["seed"]):
            m = row["metrics"]
            numbers = _numbers(m)
            where = f"{row['ran'].get('threads', '?')} | {''.join(row['ran']['commit'])[:7]}"
            lines.append(f"| {task} | {flow} | {m['seed']} | {_cells(numbers)} | {where} | {', '.join(failures(m)) or '-'} |")
        if len(group) > 1:
            means = [mean(column) for column in zip(*(_numbers(row["metrics"]) for row in group), strict=True)]
            lines.append(f"| {task} | {flow} | mean | {_cells(means)} | | | |")
    return "\n".join(lines)


def _numbers(m: dict) -> list[float]:
    zoo, new = m["zoo"], m["generated"]
    nll = [zoo["nll"]["mean"], new["nll"]["mean"], new["nll"]["mean"] / zoo["nll"]["mean"]]
    rest = [m["ensemble"]["generated"]["accuracy"], m["baselines"]["mean_network"]["nll"]["mean"], m["novelty"]["ratio"]]
    return [zoo["accuracy"]["mean"], new["accuracy"]["mean"], *nll, new["ece"]["mean"], *rest, sum(m["time"].values()) / 60]


def _cells(numbers: list[float]) -> str:
    return " | ".join([f"{number:.4f}" for number in numbers[:4]] + [f"{number:.3f}" for number in numbers[4:9]] + [f"{numbers[9]:.1f}"])


def rebuild() -> str:
    """The page results/main_job.md, from the kept runs alone."""
    rows = [_read(path) for path in sorted((RESULTS / "main_job").glob("*.json"))]
    machines = sorted({f"{row['ran']['cpu']}, {row['ran']['os'][1]}, Python {row['ran']['python']}" for row in rows})
    return PAGE.format(machines="; ".join(machines), table=table(rows))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for run in sys.argv[1:]:
        print("kept", keep(Path(run)))
    (RESULTS / "main_job.md").write_text(rebuild(), encoding="utf-8")
    print("written", RESULTS / "main_job.md")
