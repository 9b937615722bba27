"""Keep finished runs in results/, and rebuild its pages and the table of the README from them.

python experiments/results.py main_job runs/1 runs/2    keeps these runs for results/main_job, and rebuilds all pages
python experiments/results.py mnist runs/5 --flow       keeps the trained flow too, so that anyone can sample at once
python experiments/results.py mnist runs/6              what `curve`, `sharpen` or `transfer` found, beside the run of their flow
python experiments/results.py                           rebuilds all pages
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from headline import headline, inserted
from pages import PAGES, figures, name_of, page, read_runs

from geoflow.evaluation.plots import save_figures

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "results", ROOT / "README.md"
LOCK = FileLock(ROOT / ".results.lock")  # several sweeps keep their runs one after the other
FOUND = ("curve.json", "sharpness.json")  # what the commands curve and sharpen write
LARGEST = 8 * 10**6  # bytes of a flow that is kept


def keep(name: str, run: Path, flow: bool = False) -> Path:
    """Copy what a page needs of a run folder: metrics, configuration, where it ran; or what was found of a flow."""
    found = next((found for found in FOUND if (run / found).exists()), None)
    if found is None and not (run / "metrics.json").exists():
        raise SystemExit(f"{run} holds no finished run: a run of the main job writes metrics.json, others {' or '.join(FOUND)}.")
    if found or _read(run / "config.json").get("checkpoint"):
        return keep_beside(name, run, found)
    metrics, config, record = (_read(run / part) for part in ("metrics.json", "config.json", "run.json"))
    info = _read(run / "info.json") if (run / "info.json").exists() else {}
    _check(name, run, config)
    host = record["host"]
    ran = {"cpu": host.get("cpu"), "gpus": host.get("gpus"), "python": host["python_version"], "os": host["os"]} | info
    ran |= {"commit": [source["commit"] for source in record["experiment"]["repositories"]][:1], "started": record["start_time"]}
    folder = RESULTS / name / name_of(config)
    if folder.exists() and _read(folder / "ran.json")["started"] != ran["started"]:
        shutil.rmtree(folder)  # what was found of the flow that this run takes the place of
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in {"config": config, "ran": ran, "metrics": metrics}.items():  # a page reads a folder once it has metrics
        (folder / f"{part}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if flow:
        trained = run / "flow.safetensors"
        if (size := trained.stat().st_size) > LARGEST:
            raise SystemExit(f"{trained} has {size / 1e6:.1f} MB; results/ keeps flows of at most {LARGEST / 1e6:.0f} MB.")
        shutil.copy(trained, folder / "flow.safetensors")
    return folder


def keep_beside(name: str, run: Path, found: str | None) -> Path:
    """Copy what was found of a flow beside the kept run that it comes from: a file of FOUND, or the scores of a transfer."""
    config = _read(run / "config.json")
    source = Path(config["checkpoint"])
    made = (source if source.is_dir() else source.parent) / "config.json"
    if not made.exists():
        raise SystemExit(f"{made} is missing: whose flow drew the networks of {run}?")
    _check(name, run, _read(made))
    folder = RESULTS / name / name_of(_read(made))
    if not folder.exists():
        raise SystemExit(f"Keep {made.parent} first, the run whose flow drew the networks of {run}.")
    if found:
        shutil.copy(run / found, folder)
    else:
        how = {option: config[option] for option in ("hidden", "count", "solver", "steps", "start", "sharpness", "guidance", "seed")}
        file = folder / f"transfer-{config['task']}-{'-'.join(map(str, config['hidden']))}.json"
        file.write_text(json.dumps(_read(run / "metrics.json") | how, indent=1) + "\n", encoding="utf-8")
    return folder


def rebuild() -> list[Path]:
    """Write every page that has runs, and its figures; and the table of the README."""
    kept = {name: read_runs(RESULTS / name) for name in PAGES if (RESULTS / name).is_dir()}
    README.write_text(inserted(README.read_text(encoding="utf-8"), headline(kept)), encoding="utf-8")
    paths = [README]
    for name, runs in kept.items():
        folder = RESULTS / name
        pictures = figures(runs)
        (folder / "README.md").write_text(page(name, runs, pictures), encoding="utf-8")
        shutil.rmtree(folder / "figures", ignore_errors=True)
        paths += [folder / "README.md", *save_figures(folder / "figures", pictures)]
    return paths


def _check(name: str, run: Path, config: Mapping) -> None:
    """Raise SystemExit for a run that is not of the page's networks, scored on the test part."""
    tasks = PAGES[name].tasks
    if config["task"] not in tasks:
        raise SystemExit(f"{run} is a run of {config['task']}; the page {name} is for {', '.join(tasks)}.")
    if list(config["hidden"]) != tasks[config["task"]]:
        raise SystemExit(f"{run} has the hidden layers {config['hidden']}; the page {name} is for {tasks[config['task']]}.")
    if config["part"] != "test":
        raise SystemExit(f"{run} was scored on the {config['part']} part; results/ is for the test part.")


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(PAGES), help="the page that the runs belong to")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--flow", action="store_true", help="keep the trained flows as well")
    options = parser.parse_args()
    with LOCK:
        for run in options.runs:
            print("kept", keep(options.name, run, options.flow))
        for path in rebuild():
            print("written", path)


if __name__ == "__main__":
    main()
