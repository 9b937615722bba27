"""Keep finished runs in results/, and rebuild its pages and the table of the README from them.

python experiments/results.py main_job runs/1 runs/2    keeps these runs for results/main_job, and rebuilds all pages
python experiments/results.py mnist runs/5 --flow       keeps the trained flow too, so that anyone can sample at once
python experiments/results.py mnist runs/6              what `curve`, `sharpen` or `transfer` found, beside the run of their flow
python experiments/results.py                           rebuilds all pages
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from folder import ROOT, read_json, setting, today, write_json
from headline import headline, inserted
from pages import figures, name_of, page, read_runs
from studies import PAGES

from geoflow.evaluation.plots import save_figures

RESULTS, README = ROOT / "results", ROOT / "README.md"
LOCK = FileLock(ROOT / ".results.lock")  # several sweeps keep their runs one after the other
# what a page needs of a run, by the command that it was
FOUND = {"main": "metrics.json", "curve": "curve.json", "sharpen": "sharpness.json", "transfer": "metrics.json"}
LARGEST = 8 * 10**6  # bytes of a flow that is kept


def keep(name: str, run: Path, flow: bool = False) -> Path:
    """Copy what a page needs of a run folder: metrics, configuration, where it ran; or what was found of a flow."""
    command = read_json(run / "run.json")["command"] if (run / "run.json").exists() else None
    if command not in FOUND or not (run / FOUND[command]).exists():
        raise SystemExit(f"{run} holds no finished run of the main job, nor of {', '.join(list(FOUND)[1:])}.")
    if command != "main":
        return keep_beside(name, run, command)
    metrics, config, ran = read_json(run / "metrics.json"), read_json(run / "config.json"), where_it_ran(run)
    _check(name, run, config)
    folder = RESULTS / name / name_of(config)
    if folder.exists() and read_json(folder / "ran.json")["started"] != ran["started"]:
        shutil.rmtree(folder)  # what was found of the flow that this run takes the place of
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in {"config": config, "ran": ran, "metrics": metrics}.items():  # a page reads a folder once it has metrics
        write_json(folder / f"{part}.json", content)
    if flow:
        trained = run / "flow.safetensors"
        if (size := trained.stat().st_size) > LARGEST:
            raise SystemExit(f"{trained} has {size / 1e6:.1f} MB; results/ keeps flows of at most {LARGEST / 1e6:.0f} MB.")
        shutil.copy(trained, folder / "flow.safetensors")
    return folder


def keep_beside(name: str, run: Path, command: str) -> Path:
    """Copy what a further command found of a flow beside the kept run that it comes from."""
    config = read_json(run / "config.json")
    source = Path(config["checkpoint"])
    made = (source if source.is_dir() else source.parent) / "config.json"
    if not made.exists():
        raise SystemExit(f"{made} is missing: whose flow drew the networks of {run}?")
    _check(name, run, read_json(made))
    folder = RESULTS / name / name_of(read_json(made))
    if not folder.exists():
        raise SystemExit(f"Keep {made.parent} first, the run whose flow drew the networks of {run}.")
    found, file = read_json(run / FOUND[command]) | {"ran": where_it_ran(run)}, FOUND[command]
    if command == "transfer":
        found |= {option: config[option] for option in ("hidden", "count", "solver", "steps", "start", "sharpness", "guidance", "seed")}
        file = f"transfer-{config['task']}-{'-'.join(map(str, config['hidden']))}.json"
    write_json(folder / file, found)
    return folder


def where_it_ran(run: Path) -> dict:
    """Machine, device, commit and start of a run."""
    record = read_json(run / "run.json")
    host, info = record["host"], read_json(run / "info.json") if (run / "info.json").exists() else {}
    ran = {"cpu": host.get("cpu"), "gpus": host.get("gpus"), "python": host["python_version"], "os": host["os"]} | info
    commits = [source["commit"] for source in record["experiment"]["repositories"]][:1]  # of runs before they wrote it into info.json
    return {"commit": commits} | ran | {"started": record["start_time"]}


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
    config = today(config)
    for option, value in tasks[config["task"]].items():
        if (found := setting(config, option)) != value:
            raise SystemExit(f"{run} has {option}={found}; the page {name} is for {option}={value}.")
    if config["part"] != "test":
        raise SystemExit(f"{run} was scored on the {config['part']} part; results/ is for the test part.")


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
