"""Run the ablations, one change each to a flow on digits, and keep them for results/ablations.

python experiments/ablations.py             runs all that runs/ablations lacks, one after the other; stopped, it goes on where it was
python experiments/ablations.py --seed 1    the same with another seed
"""

import argparse
import subprocess
import sys
from pathlib import Path

from results import keep, rebuild

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "ablations"
BASE = ("digits", "iterations=2000")
CHANGES: tuple[tuple[str, ...], ...] = (
    (),
    ("metric=weights",),
    ("prediction=velocity",),
    ("prediction=endpoint",),
    ("time=beta",),
    ("coupling=ot",),
    ("coupling=equivariant_ot",),
    ("velocity=identified",),
    ("velocity=mlp",),
    ("flow=euclidean",),
    ("flow=normalized",),
    ("sizes.node=32",),
    ("sizes.node=128",),
    ("sizes.components=16",),
    ("sharpness=0.0",),
    *((f"runs={runs}", "batch=24") for runs in (32, 128, 512)),  # an eighth of the runs is held out
    ("batch=24",),
    ("runs=4096",),
)


def folder_of(change: tuple[str, ...], seed: int) -> Path:
    """The folder of the one run with this change."""
    return RUNS / f"{'+'.join(change) or 'base'}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    for number, change in enumerate(CHANGES, 1):
        folder = folder_of(change, seed)
        if not (done := sorted(folder.glob("*/metrics.json"))):
            command = [sys.executable, "experiments/run.py", "-F", str(folder), "with", *BASE, *change, f"seed={seed}"]
            print(f"{number} of {len(CHANGES)}:", *command[4:], flush=True)
            subprocess.run(command, cwd=ROOT, check=True)
            done = sorted(folder.glob("*/metrics.json"))
        print("kept", keep("ablations", done[-1].parent))
    for path in rebuild():
        print("written", path)


if __name__ == "__main__":
    main()
