"""Measure the workloads of the speed table, print them, and write benchmarks/results/<machine>.json.

python benchmarks/bench.py                         measures all workloads, on the GPU if there is one
python benchmarks/bench.py machine --device cpu    measures the workload "machine", on the CPU
"""

import argparse
import json
import platform
import re
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from workloads import WORKLOADS

RESULTS = Path(__file__).resolve().parent / "results"


def table(rows: list[dict]) -> str:
    """Write the rows as a table in Markdown."""
    lines = ["| workload | against | ours | other | unit | ratio | must | holds |", "|" + "---|" * 8]
    for row in rows:
        numbers = f"{row['ours']:.4g} | {row['other']:.4g} | {row['unit']} | {row['ratio']:.3g}"
        lines.append(f"| {row['workload']} | {row['against']} | {numbers} | {row['must']} | {'yes' if row['holds'] else 'NO'} |")
    return "\n".join(lines)


def described(device: str) -> dict[str, str | int]:
    """Describe the machine that was measured."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    names = {"cpu": processor[1] if processor else platform.processor() or platform.machine()}
    names |= {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return names | {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}


def commit() -> str | None:
    """Return the short commit of the checkout, with a + if files have changed since. Return None outside git."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=RESULTS.parent, capture_output=True, text=True)
    return found.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"one or several of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(sorted(unknown))}; known: {', '.join(WORKLOADS)}")
    where = described(options.device)
    path = RESULTS / (re.sub(r"\W+", "-", f"{where.get('gpu', where['cpu'])}-{where['threads']}-threads").strip("-").lower() + ".json")
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    for name in options.workloads or WORKLOADS:
        when = {"date": datetime.now(UTC).date().isoformat(), "commit": commit()}
        rows = [asdict(row) | {"holds": row.holds, "name": name} | when for row in WORKLOADS[name](options.device)]
        print(table(rows), flush=True)
        kept = [row for row in kept if row["name"] != name] + rows
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": where, "rows": kept}, indent=1) + "\n")
    print("", table(sorted(kept, key=lambda row: list(WORKLOADS).index(row["name"]))), f"Written to {path}", sep="\n")


if __name__ == "__main__":
    main()
