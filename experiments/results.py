"""Keep finished runs in results/, and rebuild its pages and the README's table from them.

.venv/bin/python experiments/results.py main_job runs/1 runs/2    keeps these runs in results/main_job, and rebuilds all pages
.venv/bin/python experiments/results.py mnist runs/6              keeps what a command on its flow found, such as curve or posterior
.venv/bin/python experiments/results.py                           rebuilds all pages
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from lab.folder import ROOT, read_json, today, write_json
from pages.kept import folder_of, place_of
from pages.studies import STUDIES
from pages.write import rebuild

LOCK = FileLock(ROOT / ".results.lock")  # one process at a time keeps a run
# command: the file of its run that a page needs
FOUND = {
    "main": "metrics.json", "curve": "curve.json", "sharpen": "sharpness.json", "polish": "polish.json", "stages": "stages.json",
    "widths": "widths.json",
    "transfer": "metrics.json", "guide": "guide.json", "finetune": "finetune.json", "density": "density.json",
    "posterior": "posterior.json", "rivals": "rivals.json",
}  # fmt: skip


def keep(study: str, run: Path) -> Path:
    """Copy what a page needs from a run folder into results/, and return the new folder.

    These are scores, configuration and machine, and the flow if the study keeps it.
    """
    command = read_json(run / "run.json")["command"] if (run / "run.json").exists() else None
    if command not in FOUND or not (run / FOUND[command]).exists():
        raise SystemExit(f"{run} holds no finished run of the main job, nor of {', '.join(list(FOUND)[1:])}.")
    if command != "main":
        return keep_beside(study, run, command)
    config, ran = today(read_json(run / "config.json")), where_it_ran(run)
    label, seed = _place(study, run, config)
    folder = folder_of(study, label, seed)
    if folder.exists():
        shutil.rmtree(folder)  # also what further commands found of the older flow
    folder.mkdir(parents=True)
    row = STUDIES[study].rows[label]
    if row.flow and seed == row.seeds[0]:
        shutil.copy(run / "flow.safetensors", folder)
    # metrics.json comes last, because pages show the runs that have it
    for part, content in {"config": config, "ran": ran, "metrics": read_json(run / "metrics.json")}.items():
        write_json(folder / f"{part}.json", content)
    return folder


def keep_beside(study: str, run: Path, command: str) -> Path:
    """Copy what a command found of a saved flow into the folder of the kept run that made the flow."""
    config = read_json(run / "config.json")
    source = Path(config["checkpoint"])
    made = (source if source.is_dir() else source.parent) / "config.json"
    if not made.exists():
        raise SystemExit(f"{made} is missing, so it is not known which flow drew the networks of {run}.")
    folder = folder_of(study, *_place(study, run, today(read_json(made))))
    if not folder.exists():
        raise SystemExit(f"Keep {made.parent} first: its flow drew the networks of {run}.")
    found, file = read_json(run / FOUND[command]) | {"ran": where_it_ran(run)}, FOUND[command]
    if command == "transfer":
        found |= {option: config[option] for option in ("hidden", "count", "solver", "steps", "start", "sharpness", "guidance", "seed")}
        file = f"transfer-{config['task']}-{'-'.join(map(str, config['hidden']))}.json"
    if command in ("guide", "finetune"):
        file = f"{command}-{config['task']}-{found['examples']}.json"
    write_json(folder / file, found)
    return folder


def where_it_ran(run: Path) -> dict:
    """Return the machine, device, commit and start time of a run."""
    record = read_json(run / "run.json")
    host, info = record["host"], read_json(run / "info.json") if (run / "info.json").exists() else {}
    commits = [source["commit"] for source in record["experiment"]["repositories"]]  # of commands that write no info.json
    ran = {"cpu": host.get("cpu"), "gpus": host.get("gpus"), "python": host["python_version"], "os": host["os"]}
    return {"commit": "".join(commits[:1])} | ran | info | {"started": record["start_time"]}


def _place(study: str, run: Path, config: Mapping) -> tuple[str, int]:
    """Return the label and the seed of a run. Raises SystemExit if the study has no such run."""
    if (place := place_of(study, config)) is None:
        raise SystemExit(
            f"{run} is no run of the study {study}. `sweep.py {study} --list` shows its runs; experiments/pages/studies.py holds them."
        )
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=list(STUDIES), help="the study that the runs belong to")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    options = parser.parse_args()
    with LOCK:
        for run in options.runs:
            print("kept", keep(options.study, run))
        for path in rebuild():
            print("written", path)


if __name__ == "__main__":
    main()
