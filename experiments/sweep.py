"""Make the runs of a study, and keep them in results/.

.venv/bin/python experiments/sweep.py couplings               makes the runs that are missing in runs/couplings, one after the other
.venv/bin/python experiments/sweep.py couplings 2 3           makes runs 2 and 3 only, so that several processes can share the work
.venv/bin/python experiments/sweep.py couplings --workers 4   makes four runs at a time, on a GPU or on many cores
.venv/bin/python experiments/sweep.py couplings --list        lists the commands and their numbers

The same command goes on after a stop.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from lab.folder import ROOT, read_json, today
from pages.kept import of_the_result, resolved
from pages.studies import STUDIES, Arguments
from pages.write import rebuild

from results import LOCK, keep

RUNS = ROOT / "runs"


def folder_of(study: str, arguments: Arguments) -> Path:
    """Return the folder of the run with these arguments."""
    return RUNS / study / "+".join(arguments)


def command_of(study: str, arguments: Arguments) -> list[str]:
    return [sys.executable, "experiments/run.py", "-F", str(folder_of(study, arguments)), "with", *arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("numbers", nargs="*", type=int, help="the numbers of the runs to make; default: all")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; with several, each writes output.log in its folder")
    parser.add_argument("--list", action="store_true", help="list the commands, and run none")
    options = parser.parse_args()
    runs = {number: arguments for number, (_, _, arguments) in enumerate(STUDIES[options.study].runs(), 1)}
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1.")
    if unknown := set(options.numbers) - set(runs):
        parser.error(f"{options.study} has the runs 1 to {len(runs)}, not {', '.join(map(str, sorted(unknown)))}.")
    asked = {number: runs[number] for number in options.numbers or runs}
    if options.list:
        for number, arguments in asked.items():
            print(f"{number} of {len(runs)}: run.py with", *arguments)
        return
    configs = {number: resolved(arguments) for number, arguments in asked.items()}  # Sacred resolves only one at a time
    pool = ThreadPoolExecutor(options.workers)
    try:
        aside = options.workers > 1
        made = {number: pool.submit(make, options.study, asked[number], configs[number], aside) for number in asked}
        for number, arguments in asked.items():
            print(f"{number} of {len(runs)}: run.py with", *arguments, flush=True)
            run = made[number].result()
            with LOCK:
                print("kept", keep(options.study, run))
                rebuild()
    finally:  # after a failure no further run begins
        pool.shutdown(cancel_futures=True)


def make(study: str, arguments: Arguments, config: Mapping, aside: bool) -> Path:
    """Make the run if it is not there yet, and return its folder. With `aside`, its output goes to output.log there."""
    folder = folder_of(study, arguments)
    if (made := finished(folder, config)) is not None:
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w") if aside else nullcontext() as log:
        failed = subprocess.run(command_of(study, arguments), cwd=ROOT, stdout=log, stderr=log).returncode
    if failed:
        raise SystemExit(f"The run {folder} failed: see {log.name if log else 'above'}. The same command goes on with it.")
    return finished(folder, config)


def finished(folder: Path, config: Mapping) -> Path | None:
    """Return the latest finished run of a folder that has this configuration, or None.

    The folder is named by the arguments of the run, and what they mean may have changed.
    """
    runs = sorted((path.parent for path in folder.glob("*/metrics.json")), key=lambda path: int(path.name))
    meant = of_the_result(config)
    same = (run for run in reversed(runs) if meant == of_the_result(today(read_json(run / "config.json"))))
    return next(same, None)


if __name__ == "__main__":
    main()
