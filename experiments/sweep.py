"""Make all runs of a page of results/, and keep them there.

python experiments/sweep.py couplings          runs all that runs/couplings lacks, one after the other; stopped, it goes on where it was
python experiments/sweep.py couplings 2 3      only the second and the third, so that several processes can share the work
python experiments/sweep.py couplings --workers 4   four at a time, where a GPU or many cores serve them
python experiments/sweep.py couplings --list   the commands and their numbers
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path

from folder import ROOT, read_json, today
from run import ex
from sacred.arg_parser import get_config_updates
from studies import PAGES

from results import LOCK, keep, rebuild

RUNS = ROOT / "runs"
FLOWS = ("geometric", "euclidean", "normalized", "geometric_polar")
COUPLINGS = ("independent", "ot", "equivariant_ot")
Arguments = tuple[str, ...]  # what stands behind `run.py with`

ABLATIONS: tuple[Arguments, ...] = (
    (),
    ("metric=weights",),
    ("prediction=velocity",),
    ("prediction=endpoint",),
    ("weighting=uniform",),
    ("time=beta",),
    ("coupling=ot",),
    ("coupling=equivariant_ot",),
    ("velocity=identified",),
    ("velocity=mlp",),
    *(("align=False", *velocity) for velocity in ((), ("velocity=identified",), ("velocity=mlp",))),
    *((f"flow={flow}",) for flow in FLOWS[1:]),
    ("sizes.node=32",),
    ("sizes.node=128",),
    ("sizes.components=16",),
    ("sharpness=0.2",),
    *((f"runs={runs}", "batch=24") for runs in (32, 128, 512)),  # an eighth of the runs is held out
    ("batch=24",),
    ("runs=4096",),
    ("runs=32", "batch=24", "iterations=8000"),  # eight times as long on the smallest zoo: where memorising begins
)


# so many independent runs; and as the thesis has them, snapshots of a few trajectories
ZOOS: tuple[Arguments, ...] = (
    *((f"runs={runs}",) for runs in (64, 256, 1024, 4096)),
    ("runs=50", "snapshots=16", "zoo.epochs=20", "zoo.schedule=constant", "zoo.lr=5e-3"),
)


CORE = ("runs=1024", "iterations=6000", "batch=64")  # what one core of a CPU does in half an hour
CORE_FASHION = ("runs=1024", "batch=64")  # in an hour
CORE_32 = ("iterations=3000",)  # of 784-32-32-10, with its zoo, in an hour and a half
SHORT = ("mnist", "runs=1024", "iterations=1200", "batch=64", "sharpness=0.0")  # in seven minutes


def _seeds(count: int, *arguments: str) -> tuple[Arguments, ...]:
    return tuple((*arguments, f"seed={seed}") for seed in range(count))


SWEEPS: dict[str, tuple[Arguments, ...]] = {
    "main_job": (*(run for flow in FLOWS for run in _seeds(3, "breast_cancer", f"flow={flow}")), *_seeds(3, "digits")),
    "splits": _seeds(20, "breast_cancer"),
    "ablations": tuple(("digits", "iterations=1000", "sharpness=0.0", *change) for change in ABLATIONS),
    "mnist": (
        *_seeds(3, "mnist", "zoo.seed=0"),
        *_seeds(3, "mnist", "zoo.seed=0", *CORE),
        ("mnist", "zoo.seed=0", *CORE, "coupling=equivariant_ot"),
    ),
    "fashion": (
        *_seeds(3, "fashion", "zoo.seed=0"),
        *_seeds(3, "fashion", "zoo.seed=0", *CORE_FASHION),
        ("fashion", "zoo.seed=0", *CORE_FASHION[1:], "runs=100"),
    ),
    "mnist32": tuple(
        run
        for training in ((), CORE_32)
        for run in (*_seeds(3, "mnist32", "zoo.seed=0", *training), ("mnist32", "zoo.seed=0", *training, "runs=100"))
    ),
    "zoos": tuple(("mnist", "iterations=3000", "batch=48", *zoo) for zoo in ZOOS),
    "couplings": (
        *((*SHORT, f"flow={flow}", f"coupling={coupling}") for flow, coupling in product(FLOWS, COUPLINGS)),
        *((*SHORT, f"flow={flow}", "zoo.seed=0", f"seed={seed}") for flow in FLOWS[:3] for seed in (1, 2)),
        *((*SHORT, "coupling=equivariant_ot", "zoo.seed=0", f"seed={seed}") for seed in (1, 2)),  # of the geometric flow
    ),
    "batch_norm": _seeds(3, "digits", "norm=batch"),
    "residual_mlp": _seeds(3, "residual_mlp"),
    "cnn": _seeds(3, "cnn14", "zoo.seed=0"),
    "resnet": _seeds(3, "resnet14", "zoo.seed=0"),
    "vit": _seeds(3, "vit14", "zoo.seed=0"),
    "bert": _seeds(3, "bert", "zoo.seed=0"),
    "independent": (
        *(("deep", "zoo.seed=0", f"network={network}", f"seed={seed}") for network in ("resnet", "vit") for seed in range(3)),
        *(("deep", f"network={network}", f"runs={runs}", "batch=24") for network in ("resnet", "vit") for runs in (64, 192)),
    ),
}
LARGE = ("mnist", "fashion", "mnist32", "resnet", "vit")  # pages that keep the trained flow of seed 0


def folder_of(page: str, arguments: Arguments) -> Path:
    """The folder of the one run with these arguments."""
    return RUNS / page / "+".join(arguments)


def command_of(page: str, arguments: Arguments) -> list[str]:
    return [sys.executable, "experiments/run.py", "-F", str(folder_of(page, arguments)), "with", *arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=[name for name in PAGES if name in SWEEPS])
    parser.add_argument("numbers", nargs="*", type=int, help="which runs; default: all")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; of several the output goes to output.log in their folders")
    parser.add_argument("--list", action="store_true", help="show the commands only")
    options = parser.parse_args()
    sweep = dict(enumerate(SWEEPS[options.page], 1))
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1.")
    if unknown := set(options.numbers) - set(sweep):
        parser.error(f"{options.page} has the runs 1 to {len(sweep)}, not {', '.join(map(str, sorted(unknown)))}.")
    asked = {number: sweep[number] for number in options.numbers or sweep}
    if options.list:
        for number, arguments in asked.items():
            print(f"{number} of {len(sweep)}: run.py with", *arguments)
        return
    configs = {number: resolved(arguments) for number, arguments in asked.items()}  # Sacred resolves one at a time
    pool = ThreadPoolExecutor(options.workers)
    try:
        aside = options.workers > 1
        made = {number: pool.submit(make, options.page, asked[number], configs[number], aside) for number in asked}
        for number, arguments in asked.items():
            print(f"{number} of {len(sweep)}: run.py with", *arguments, flush=True)
            run = made[number].result()
            with LOCK:
                print("kept", keep(options.page, run, flow=options.page in LARGE and arguments[-1] == "seed=0"))
                rebuild()
    finally:  # after a failure none begins any more
        pool.shutdown(cancel_futures=True)


def make(page: str, arguments: Arguments, config: Mapping, aside: bool) -> Path:
    """The folder of the run, made if it is not there yet; its output stays `aside`, beside it, where several run at once."""
    folder = folder_of(page, arguments)
    if (made := finished(folder, config)) is not None:
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w") if aside else nullcontext() as log:
        failed = subprocess.run(command_of(page, arguments), cwd=ROOT, stdout=log, stderr=log).returncode
    if failed:
        raise SystemExit(f"The run {folder} did not end well, see {log.name if log else 'above'}. The same command goes on with it.")
    return finished(folder, config)


def finished(folder: Path, config: Mapping) -> Path | None:
    """The latest finished run of a folder that has this configuration: what its arguments meant may have changed."""
    runs = sorted((path.parent for path in folder.glob("*/metrics.json")), key=lambda path: int(path.name))
    meant = _of_the_result(config)
    same = (run for run in reversed(runs) if meant == _of_the_result(today(read_json(run / "config.json"))))
    return next(same, None)


def resolved(arguments: Arguments) -> Mapping:
    """The whole configuration of `run.py with` these arguments, checked as that of a real run."""
    updates, named = get_config_updates(arguments)
    with redirect_stdout(StringIO()):
        return ex.run("print_config", config_updates=updates, named_configs=named, options={"--loglevel": "ERROR"}).config


def _of_the_result(config: Mapping) -> dict:
    """What a configuration says of the result, as JSON has it."""
    return json.loads(json.dumps({name: value for name, value in config.items() if name not in ("cache", "device", "every")}))


if __name__ == "__main__":
    main()
