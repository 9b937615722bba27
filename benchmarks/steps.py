"""Measure a training step of the relational transformer on large networks: CPU seconds of one thread, and memory.

python benchmarks/steps.py                        all sizes of SIZES; writes benchmarks/results/steps/cpu.json
python benchmarks/steps.py resnet18 --profile     one size, and the operations that take longest
python benchmarks/steps.py --setting key=value    other settings of `fit`, such as --setting velocity=identified

The networks have random weights around a common one. The time of a step does not depend on their values.
"""

import argparse
import ctypes
import json
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from large import resnet18
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from geoflow import pack, spec_of
from geoflow.charting import fit_chart
from geoflow.checkpoint import Progress
from geoflow.coordinates import FLOWS
from geoflow.flow import build_flow
from geoflow.training import train_step
from geoflow.velocity import VELOCITIES
from geoflow.zoo.networks import mlp

RESULTS = Path(__file__).resolve().parent / "results" / "steps" / "cpu.json"
CONFIG = {
    "flow": "geometric", "align": True, "velocity": "transformer", "coupling": "independent", "time": "uniform", "weighting": "balanced",
    "prediction": "preconditioned", "sizes": {}, "iterations": 100, "lr": 4e-3, "weight_decay": 1e-3, "ema": 0.999, "seed": 0,
}  # fmt: skip

# name: how a network is made, what it reads, and how many networks a step takes
SIZES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "40-400-400-2": (lambda: mlp(40, [400, 400], 2), lambda: torch.randn(2, 40), 2),
    "40-973-973-3": (lambda: mlp(40, [973, 973], 3), lambda: torch.randn(2, 40), 1),
    "resnet18": (resnet18, lambda: torch.randn(2, 3, 64, 64), 1),
}


class Step:
    """Take one training step of a flow at each call, exactly as `fit` does.

    The networks are not brought to canonical form, which takes no part in a step. Only their rows get norm 1.
    """

    def __init__(self, name: str, settings: dict):
        build, make_inputs, batch = SIZES[name]
        torch.manual_seed(0)
        first = build().eval()
        spec = spec_of(first, make_inputs())
        theta = pack(spec, first.state_dict())
        thetas = theta + 0.02 * torch.randn(2 * batch, len(theta)).abs()
        config = CONFIG | {"batch": batch} | settings
        chart = fit_chart(spec, FLOWS[config["flow"]], thetas)
        points = chart.manifold.projx(chart.point(thetas))
        flow = build_flow(chart.knowing_units(points) if VELOCITIES[config["velocity"]].knows_units else chart, theta, config)
        self.weights, self.batch, self.run, self.points = spec.weights, batch, Progress(flow), [points]

    def __call__(self) -> float:
        return train_step(self.run, self.points, lr=1e-3)


def held() -> int:
    """Return the bytes of memory that the process holds, without those of files."""
    pages, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (pages - shared) * resource.getpagesize()


def peak(function: Callable[[], object]) -> int:
    """Return the most memory that the process holds during a call, with all that it held before."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], held())

    ctypes.CDLL(None).malloc_trim(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return most[0]


def best(function: Callable[[], object], repeats: int) -> float:
    """Return the least CPU seconds of several calls. What other programs do only adds to them."""
    times = []
    for _ in range(repeats):
        begin = process_time()
        function()
        times.append(process_time() - begin)
    return min(times)


def profiled(step: Step) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    return record.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=45, max_name_column_width=40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="size", help=f"one or several of {', '.join(SIZES)}; default: all")
    parser.add_argument("--setting", action="append", default=[], help="name=value, an argument of fit; a value is JSON or a word")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="show the operations instead, and write nothing")
    options = parser.parse_args()
    if unknown := set(options.sizes) - set(SIZES):
        parser.error(f"unknown size {', '.join(sorted(unknown))}; known: {', '.join(SIZES)}")
    settings = dict(map(_setting, options.setting))
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.sizes or SIZES:
        step = Step(name, settings)
        step()
        if options.profile:
            print(profiled(step))
            continue
        most, seconds = peak(step), best(step, options.repeats)
        print(
            f"{name}, {step.weights:,} weights, batch {step.batch}: {seconds:.2f} CPU s a step, {most / 1e9:.2f} GB, {settings}", flush=True
        )
        row = {"weights": step.weights, "batch": step.batch, "seconds": round(seconds, 3), "gigabytes": round(most / 1e9, 3)}
        kept[" ".join([name, *options.setting])] = row | {"torch": torch.__version__}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def _setting(words: str) -> tuple[str, object]:
    name, value = words.split("=", 1)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    main()
