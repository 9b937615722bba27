"""Measure a zoo larger than memory, from checkpoints on disk to new networks on disk: time for each network, and peak memory.

python benchmarks/large.py                                   6 networks of ResNet-18, 11.2 million weights each
python benchmarks/large.py --network vit_small --nets 4      ViT-S/16
python benchmarks/large.py --network bert_base --nets 3      BERT-base
python benchmarks/large.py --folder /a/disk --dtype float16  elsewhere, in half precision

The networks have random weights around a common one, and are deleted at the end. The disk must hold six times the zoo.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import nn

from geoflow import fit, sample, spec_of
from geoflow.files import write_tensors
from geoflow.peak import peak_memory
from geoflow.zoo.large import add_networks
from geoflow.zoo.networks.published import PLACES, WORDS, bert_base, resnet18, vit_small

CLASSES = 10


# name: how a network is made, and what it reads
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "resnet18": (lambda: resnet18((3, 64, 64), CLASSES), lambda: torch.randn(4, 3, 64, 64)),
    "vit_small": (lambda: vit_small((3, 224, 224), CLASSES), lambda: torch.randn(2, 3, 224, 224)),
    "bert_base": (lambda: bert_base(WORDS, PLACES, CLASSES), lambda: torch.randint(WORDS, (8, 128))),
}


@contextmanager
def measured(what: str, nets: int) -> Iterator[None]:
    """Print the time of a step for each network, and the most memory that the process has held in it."""
    wall, work = perf_counter(), process_time()
    with peak_memory() as peak:
        yield
    times = f"{(process_time() - work) / nets:.2f} s of CPU, {(perf_counter() - wall) / nets:.2f} s on the clock for each network"
    print(f"{what}: {times}; peak {peak.held / 1e9:.2f} GB", flush=True)


def write_checkpoints(folder: Path, build: Callable[[], nn.Module], nets: int) -> int:
    """Write networks that differ by noise from one, and return the bytes of one of them."""
    network = build()
    for number in range(nets):
        state = {name: value + 0.02 * torch.randn_like(value).abs() if value.is_floating_point() else value
                 for name, value in network.state_dict().items()}  # fmt: skip
        write_tensors(folder / f"seed{number}.safetensors", state, {})
    return (folder / "seed0.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--nets", type=int, default=6, help="networks of the zoo, and new networks")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32", help="how a weight is stored")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files are made")
    options = parser.parse_args()
    (build, make_inputs), nets = NETWORKS[options.network], options.nets
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs, inputs = Path(folder) / "runs", make_inputs()
        runs.mkdir()
        with measured("tracing", 1):
            spec = spec_of(build().eval(), inputs[:2])
        size = write_checkpoints(runs, build, nets)
        print(f"{nets} networks of {spec.weights:,} weights, {size / 1e9:.2f} GB each as checkpoints")
        with measured("adding them to a zoo", nets):
            zoo = add_networks(Path(folder) / "zoo.safetensors", runs, spec, dtype=getattr(torch, options.dtype), progress=False)
        with measured("canonical form, chart, points and components", nets):
            flow = fit(spec, zoo.thetas, inputs, latent="pca", iterations=1, batch=2, progress=False)
        with measured("the same again, with all files kept", nets):
            fit(spec, zoo.thetas, inputs, latent="pca", iterations=1, batch=2, progress=False)
        with measured("drawing networks into a file", nets):
            sample(flow, nets, steps=2, into=Path(folder) / "new.safetensors")


if __name__ == "__main__":
    main()
