"""Make all runs of a study of results/, and keep them there.

python experiments/sweep.py couplings          runs all that runs/couplings lacks, one after the other; stopped, it goes on where it was
python experiments/sweep.py couplings 2 3      only the second and the third, so that several processes can share the work
python experiments/sweep.py couplings --workers 4   four at a time, where a GPU or many cores serve them
python experiments/sweep.py couplings --list   the commands and their numbers
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
    """The folder of the one run with these arguments."""
    return RUNS / study / "+".join(arguments)


def command_of(study: str, arguments: Arguments) -> list[str]:
    return [sys.executable, "experiments/run.py", "-F", str(folder_of(study, arguments)), "with", *arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("numbers", nargs="*", type=int, help="which runs; default: all")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; of several the output goes to output.log in their folders")
    parser.add_argument("--list", action="store_true", help="show the commands only")
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
    configs = {number: resolved(arguments) for number, arguments in asked.items()}  # Sacred resolves one at a time
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
    finally:  # after a failure none begins any more
        pool.shutdown(cancel_futures=True)


def make(study: str, arguments: Arguments, config: Mapping, aside: bool) -> Path:
    """The folder of the run, made if it is not there yet; its output stays `aside`, beside it, where several run at once."""
    folder = folder_of(study, arguments)
    if (made := finished(folder, config)) is not None:
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w") if aside else nullcontext() as log:
        failed = subprocess.run(command_of(study, arguments), cwd=ROOT, stdout=log, stderr=log).returncode
    if failed:
        raise SystemExit(f"The run {folder} did not end well, see {log.name if log else 'above'}. The same command goes on with it.")
    return finished(folder, config)


def finished(folder: Path, config: Mapping) -> Path | None:
    """The latest finished run of a folder that has this configuration: what its arguments meant may have changed."""
    runs = sorted((path.parent for path in folder.glob("*/metrics.json")), key=lambda path: int(path.name))
    meant = of_the_result(config)
    same = (run for run in reversed(runs) if meant == of_the_result(today(read_json(run / "config.json"))))
    return next(same, None)


if __name__ == "__main__":
    main()
