"""Measure principal components of large networks on disk: reading, memory, and writing new networks.

python benchmarks/latent.py                                  100 networks of 118 million weights in float16, 23.6 GB
python benchmarks/latent.py --weights 11800000               a tenth of it
python benchmarks/latent.py --folder /a/disk --written 10    elsewhere, and 10 new networks

The zoo is made up, and deleted at the end. The disk must hold it twice. Rows go to benchmarks/results/latent/<machine>.json.
"""

import argparse
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from bench import RESULTS, commit, described, table
from workloads import Row, faster

from geoflow.latent.pca import PART, fit_pca
from geoflow.stored import Stored, stored
from geoflow.writing import writing

PIECE = 2**24  # bytes that a plain reader or writer takes at once
MEMORY = 4e9  # bytes that all of it may take


def make_zoo(path: Path, nets: int, weights: int, dtype: torch.dtype) -> Stored:
    """Write networks that have a part in common, and otherwise nothing."""
    generator = torch.Generator().manual_seed(0)
    with writing(path, "thetas", (nets, weights), dtype) as writer:
        for first in range(0, weights, 128 * PART):
            width = min(128 * PART, weights - first)
            writer.write(torch.randn(1, width, generator=generator) + 0.1 * torch.randn(nets, width, generator=generator))
    return stored(path)


def cold(path: Path) -> None:
    """Take a file out of the memory of the system, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(path: Path) -> None:
    buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def write_plainly(path: Path, length: int) -> None:
    with path.open("wb", buffering=0) as file:
        for first in range(0, length, PIECE):
            file.write(b"\1" * min(PIECE, length - first))
        os.fsync(file.fileno())


def seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def measure(folder: Path, nets: int, weights: int, written: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Return the rows of the table. Ours and the plain way run in turn, each on a file that is not in memory."""
    zoo = make_zoo(folder / "zoo.safetensors", nets, weights, dtype)
    about = f"{nets} x {weights:,}"
    read, plain = [], []
    for _ in range(rounds):
        cold(zoo.path)
        plain.append(seconds(lambda: read_plainly(zoo.path)))
        cold(zoo.path)
        read.append(seconds(lambda: fit_pca(zoo)))
    pca = fit_pca(zoo)
    z = torch.randn(written, nets - 1, generator=torch.Generator().manual_seed(0)) * pca.variances.sqrt().float()

    def write() -> None:
        made = pca.write(folder / "new.safetensors", z)
        cold(made.path)
        made.path.unlink()

    def write_zeros() -> None:
        write_plainly(folder / "plain", written * weights * dtype.itemsize)
        (folder / "plain").unlink()

    cold(zoo.path)
    ours, other = seconds(write), seconds(write_zeros)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        faster(f"components of {about}", "reading the file once", (median(read), median(plain)), "s", 0.7),
        Row(f"{written} new networks of {about}", "writing as many bytes", ours, other, "s", ours / other, "<= 2.5"),
        Row(f"peak memory with {about}", "4 GB", most / 1e9, MEMORY / 1e9, "GB", most / MEMORY, "<= 1"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=100, help="networks of the zoo")
    parser.add_argument("--weights", type=int, default=118_000_000, help="weights of each")
    parser.add_argument("--written", type=int, default=100, help="new networks")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="how a weight is stored")
    parser.add_argument("--rounds", type=int, default=2, help="how often the file is read")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files are made")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    needed = (options.nets + options.written) * options.weights * dtype.itemsize
    if (free := shutil.disk_usage(options.folder).free) < 1.1 * needed:
        parser.error(f"{needed / 1e9:.1f} GB are needed in {options.folder}, and {free / 1e9:.1f} GB are free: choose another --folder.")
    where = described("cpu")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.nets, options.weights, options.written, dtype, options.rounds)
    when = {"date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    made = [asdict(row) | {"holds": row.holds} | when for row in rows]
    path = RESULTS / "latent" / (re.sub(r"\W+", "-", f"{where['cpu']}-{where['threads']}-threads").strip("-").lower() + ".json")
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in kept if row["workload"] not in {row["workload"] for row in made}] + made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": kept}, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in where.items()), table(made), f"Written to {path}", sep="\n")


if __name__ == "__main__":
    main()
