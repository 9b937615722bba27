"""Trace and check a written list of public models with random weights, and write benchmarks/results/coverage/<machine>.json.

python benchmarks/coverage.py                    goes on with the models that have no line yet in .cache/coverage.jsonl
python benchmarks/coverage.py timm/resnet18      measures this model, again if it has a line
python benchmarks/coverage.py --family timm      goes on with the models of one family
python benchmarks/coverage.py --table            writes the table only

It needs `pip install "geoflow-weights[coverage]"`. Nothing is downloaded.
"""

import argparse
import json
import multiprocessing
import re
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from time import process_time

import torch
from bench import RESULTS, commit, described
from public_models import Model, models

import geoflow

LINES = RESULTS.parents[1] / ".cache" / "coverage.jsonl"
LIMIT = 400  # seconds of the processor that one model may take
WAIT = 3600  # seconds that one may wait for it, if others use the processor too


def measured(model: Model, answer: Connection) -> None:
    """Send what happens to one model: seconds of the processor, GB at the most, and the message of a refusal or a crash."""
    row = {"outcome": "crashed"}
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            network = model.build().eval()
        generator = torch.Generator().manual_seed(0)
        first, second = (model.example(network, batch, generator) for batch in (2, 3))
        row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        traced, row["trace_s"] = _timed(lambda: _traced(network, first))
        if isinstance(traced, str):
            row |= {"outcome": "refused", "message": traced}
        else:
            row["groups"] = {symmetry: len(traced.groups(symmetry)) for symmetry in geoflow.spec.SYMMETRIES}
            found, row["check_s"] = _timed(lambda: _checked(network, traced, (first, second), generator))
            row |= {"outcome": "wrong", "message": found} if isinstance(found, str) else {"outcome": "sound", "change": found}
    except Exception as error:
        row["message"] = f"{type(error).__name__}: {error}"
    row["gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer.send(row)


def _traced(network: torch.nn.Module, example: tuple | dict) -> geoflow.spec.NetworkSpec | str:
    """The table, or the message of a refusal. A refusal is a ValueError that spec_of raises itself."""
    try:
        return geoflow.spec_of(network, example)
    except ValueError as error:
        return str(error)


def _checked(network: torch.nn.Module, spec: geoflow.spec.NetworkSpec, examples: tuple, generator: torch.Generator) -> float | str:
    """The largest change of an output by random symmetries, or the message of a table that is wrong."""
    try:
        return max(geoflow.check_spec(network, spec, x, generator) for x in examples)
    except ValueError as error:
        return str(error)


def _timed(function: Callable[[], object]) -> tuple[object, float]:
    start = process_time()
    return function(), process_time() - start


def alone(model: Model) -> dict:
    """Measure a model in a process of its own, so that no crash and no memory of it reaches the next one."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(model, there))
    process.start()
    there.close()
    row = {"outcome": "crashed", "message": f"no answer within {WAIT} s"}
    try:
        row = here.recv() if here.poll(WAIT) else row
    except EOFError:
        row["message"] = f"the process ended without an answer, perhaps after {LIMIT} s"
    process.kill()
    process.join()
    return {"name": model.name, "family": model.family} | row | {"date": datetime.now(UTC).date().isoformat(), "commit": commit()}


def read_lines() -> dict[str, dict]:
    """The last line of every model."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def table(rows: list[dict]) -> str:
    """Write how many models of each family are traced, and why others are not, as Markdown."""
    lines = ["| family | models | traced | sound | refused | wrong or crashed | slowest trace, s | slowest check, s |", "|" + "---|" * 8]
    for family in [*dict.fromkeys(row["family"] for row in rows), "all"]:
        some = [row for row in rows if family in (row["family"], "all")]
        count = {outcome: sum(row["outcome"] == outcome for row in some) for outcome in ("sound", "refused", "wrong", "crashed")}
        traced, bad = count["sound"] + count["wrong"], count["wrong"] + count["crashed"]
        trace, check = (max((row.get(key, 0) for row in some), default=0) for key in ("trace_s", "check_s"))
        cells = (
            family,
            len(some),
            f"{traced} ({traced / len(some):.0%})",
            count["sound"],
            count["refused"],
            bad,
            f"{trace:.1f}",
            f"{check:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| model | outcome | message |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['outcome']} | {row['message']} |" for row in rows if row["outcome"] != "sound"]
    return "\n".join(lines)


def write(rows: list[dict]) -> None:
    """Write all rows as JSON, and the table of families as a page beside it."""
    where = described("cpu")
    path = RESULTS / "coverage" / (re.sub(r"\W+", "-", f"{where['cpu']}-{where['threads']}-threads").strip("-").lower() + ".json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"# Public models that geoflow traces, on one thread of {where['cpu']}\n\n{table(rows)}\n")
    print(table(rows), f"Written to {path}", sep="\n")


def declare_missing_operators() -> None:
    """Let torchvision be imported whose compiled operators need CUDA. No model of the list uses them."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declare_missing_operators.library = library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model")
    parser.add_argument("--family", default="")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = models()
    if unknown := set(options.models) - {model.name for model in everything}:
        parser.error(f"unknown model {', '.join(sorted(unknown))}")
    done = read_lines()
    some = [m for m in everything if m.name in options.models or (not options.models and m.name not in done)]
    some = [m for m in some if m.family.startswith(options.family) and not options.table]
    if some:
        declare_missing_operators()
        import timm  # noqa: F401  # once, before the processes are made
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    LINES.parent.mkdir(exist_ok=True)
    for model in some:
        row = alone(model)
        with LINES.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done[model.name] = row
        numbers = " ".join(f"{key} {row[key]:.1f}" for key in ("trace_s", "check_s", "gb") if key in row)
        print(row["name"], row["outcome"], numbers, row.get("message", "")[:160], flush=True)
    write([done[model.name] for model in everything if model.name in done])


if __name__ == "__main__":
    main()
