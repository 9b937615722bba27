"""Measure the workloads of the speed table. Each row compares a cost with another one."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from dense import DenseTransformer
from measure import alternate, beside_machine, count, peak_bytes
from others import align_one_by_one, evaluate_one_by_one, train_one_by_one
from torch import Tensor

from geoflow import evaluate, pack, sample, spec_of, unpack
from geoflow.canonical import align
from geoflow.checkpoint import Progress
from geoflow.flow import Flow
from geoflow.spec import NetworkSpec
from geoflow.training import prepare, train_step
from geoflow.velocity.message_passing import MessagePassingTransformer
from geoflow.zoo.networks import mlp
from geoflow.zoo.tasks import load_task
from geoflow.zoo.train import train_zoo

MNIST = (784, (10,), 10)
EXACT = {"components": 784}  # the field sees all axes of the inputs, not only the first
CONFIG = {
    "flow": "geometric", "align": True, "velocity": "transformer", "coupling": "independent", "time": "uniform", "weighting": "balanced",
    "prediction": "preconditioned",
    "sizes": EXACT, "iterations": 1000, "lr": 2e-3, "weight_decay": 1e-3, "ema": 0.999, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Hold one line of the table. `must` is a comparison such as ">= 100", which `ratio` must satisfy."""

    workload: str
    against: str
    ours: float
    other: float
    unit: str
    ratio: float
    must: str

    @property
    def holds(self) -> bool:
        sign, bound = self.must.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def faster(workload: str, against: str, times: Sequence[float], unit: str, least: float) -> Row:
    """Return a row whose ratio is the other's cost divided by ours. It must be at least `least`."""
    return Row(workload, against, *times, unit, times[1] / times[0], f">= {least:g}")


def dense_training(device: str) -> Iterator[Row]:
    """Compare with the dense transformer, both at width 32. Its step takes one network, because more do not fit into memory."""
    ours = Training(MNIST, 8, device, sizes=EXACT | {"node": 32, "edge": 32, "edge_hidden": 64})
    single = Training(MNIST, 1, device)
    dense = single.instead(DenseTransformer(width=32, layers=4, heads=4).to(device))
    name, against = "training step 784-10-10, batch 8, widths 32", "dense relational transformer"
    memory = peak_bytes(ours, device), peak_bytes(dense, device)
    seconds = alternate(ours, dense)
    yield faster(name, against, (seconds[0] / 8, seconds[1]), "s per network", 100)
    yield faster(name, against, (memory[0] / 8 / 2**20, memory[1] / 2**20), "MiB per network", 50)


def twin_training(device: str) -> Iterator[Row]:
    ours, twin = Training(MNIST, 8, device), Training(MNIST, 8, device)
    twin = twin.instead(MessagePassingTransformer(twin.run.flow.field))
    yield faster("training step 784-10-10, batch 8", "torch_geometric twin", alternate(ours, twin), "s", 3)


def few_components(device: str) -> Iterator[Row]:
    """Compare the default field, which sees the first principal axes of the inputs, with one that sees all of them."""
    ours, exact = Training(MNIST, 32, device, sizes={}), Training(MNIST, 32, device)
    yield faster("training step 784-10-10, batch 32, 128 components", "all 784", alternate(ours, exact), "s", 3)


def machine_training(device: str) -> Iterator[Row]:
    """Compare the time of a step with what the machine needs at its best rates. On a GPU one batch is large enough to fill it."""
    asked = [(MNIST, 8, 0.5), ((30, (16, 16), 2), 32, 0.4), ((64, (10,), 10), 32, 0.4)]
    for architecture, batch, least in asked if device == "cpu" else [(MNIST, 8, 0.3), (MNIST, 256, 0.3)]:
        step = Training(architecture, batch, device)
        work, name = count(step), "-".join(map(str, (architecture[0], *architecture[1], architecture[2])))
        ours, best = beside_machine(step, device)
        against = (
            f"machine: {work.flops / 1e9:.2f} GFLOP at {best.flops / 1e9:.0f}/s, {work.bytes / 1e9:.2f} GB at {best.bytes / 1e9:.0f}/s"
        )
        yield faster(f"training step {name}, batch {batch}", against, (ours, work.bound(best)), "s", least)


def cost_of_size(device: str) -> Iterator[Row]:
    """Measure the slope of log cost over log edges, from 10^3 to 10^6 edges."""
    edges, seconds, memory = [], [], []
    for width in (22, 71, 224, 707):
        step = Training((width, (width,), width), 2, device)
        edges.append(2 * width**2)
        memory.append(peak_bytes(step, device))
        seconds += alternate(step)
    for cost, unit, scale in ((seconds, "s", 1), (memory, "MiB", 2**20)):
        slope = float(np.polyfit(np.log(edges), np.log(cost), 1)[0])
        name, against = f"training step, {edges[0]:,} to {edges[-1]:,} edges, batch 2", "the smallest"
        yield Row(name, against, cost[-1] / scale, cost[0] / scale, f"{unit}, ratio: slope", slope, "<= 1.1")


def sampling(device: str) -> Iterator[Row]:
    """Compare sampling 256 networks at once with one at a time.

    One network is timed: over 64 steps with the same field, over 8 with the twin, and over 1 with the dense field. The times are scaled to
    64 steps.
    """
    training = Training(MNIST, 8, device)
    flow, field = training.run.flow, training.run.flow.field
    twin = training.instead(MessagePassingTransformer(field)).run.flow
    dense = training.instead(DenseTransformer(width=32, layers=4, heads=4).to(device)).run.flow
    name, unit = "sampling 256 networks 784-10-10, 64 steps", "s per network"

    def batched():
        sample(flow, 256, steps=64, progress=True)

    others = {
        "one at a time, the same field": (lambda: sample(flow, 1, steps=64), 1),
        "one at a time, torch_geometric twin": (lambda: sample(twin, 1, steps=8), 8),
        "one at a time, dense relational transformer": (lambda: sample(dense, 1, steps=1), 64),
    }
    ours, *theirs = alternate(batched, *(one for one, _ in others.values()))
    for (against, (_, share)), other in zip(others.items(), theirs, strict=True):
        yield faster(name, against, (ours / 256, other * share), unit, 20)


def manifold(device: str) -> Iterator[Row]:
    geometric, euclidean = (Training(MNIST, 8, device, flow=flow) for flow in ("geometric", "euclidean"))
    ours, other = alternate(geometric, euclidean, repeats=9)
    yield Row("training step 784-10-10, batch 8, geometric", "euclidean", ours, other, "s", ours / other, "<= 1.15")


def zoo_training(device: str) -> Iterator[Row]:
    """Compare training 256 networks at once with training two, one after the other, in plain PyTorch."""
    task, settings = load_task("mnist"), {"batch": 64, "lr": 1e-2, "weight_decay": 0.1}

    def build():
        return mlp(784, [10], 10)

    def together():
        train_zoo(build, task, runs=256, epochs=1, seed=0, device=device, progress=True, **settings)

    def plain(loader: bool):
        train_one_by_one([build().to(device) for _ in range(2)], task, **settings, loader=loader)

    ours, *theirs = alternate(together, lambda: plain(True), lambda: plain(False))
    for against, other in zip(("DataLoader", "slices of the data"), theirs, strict=True):
        against = f"plain PyTorch, one after another, {against}"
        yield faster("zoo of 256 networks 784-10-10, one epoch of MNIST", against, (ours / 256, other / 2), "s per network", 10)


def aligning(device: str) -> Iterator[Row]:
    """Compare ways to align 1,000 networks to another one, in the precision of the zoo.

    All were trained for an epoch on a tenth of MNIST. The objective is the inner product with the reference.
    """
    task = load_task("mnist")
    tenth = replace(task, x_train=task.x_train[:6000], y_train=task.y_train[:6000])

    def build():
        return mlp(784, [32, 32], 10)

    settings = {"runs": 1001, "epochs": 1, "batch": 64, "lr": 1e-2, "weight_decay": 0.1}
    states = train_zoo(build, tenth, seed=0, progress=True, **settings)
    spec = spec_of(build(), torch.zeros(1, 784))
    thetas = pack(spec, states).flatten(0, 1)
    reference, networks = thetas[0], thetas[1:]
    arrays = [[part.numpy() for part in unpack(spec, theta).values()] for theta in (reference, *networks)]
    found = {}

    def ours():
        found["ours"] = align(spec, networks, reference)[0]

    def other():
        found["other"] = torch.from_numpy(align_one_by_one(arrays[1:], arrays[0])[1])

    name, against = "aligning 1,000 networks 784-32-32-10", "coordinate descent one by one, scipy"
    yield faster(name, against, alternate(ours, other), "s", 5)
    means = (found["ours"].double() @ reference.double()).mean().item(), found["other"].mean().item()
    yield Row(name, against, *means, "mean inner product", means[0] / means[1], ">= 0.9999")


def evaluating(device: str) -> Iterator[Row]:
    """Compare ways to score 1,000 networks. Both give accuracy, NLL and ECE of every network."""
    task, network = load_task("mnist"), mlp(784, [10], 10)
    spec, thetas = fresh(MNIST, 1000)
    states = [unpack(spec, theta) for theta in thetas[:50]]
    x, y = task.x_test.to(device), task.y_test.to(device)
    ours, other = alternate(
        lambda: evaluate(network, spec, thetas.to(device), x, y), lambda: evaluate_one_by_one(network.to(device), states, x, y)
    )
    yield faster("evaluating 1,000 networks 784-10-10 on 10,000 images", "load_state_dict and forward", (ours, other * 20), "s", 5)


WORKLOADS: dict[str, Callable[[str], Iterator[Row]]] = {
    "dense": dense_training,
    "twin": twin_training,
    "components": few_components,
    "machine": machine_training,
    "size": cost_of_size,
    "sampling": sampling,
    "manifold": manifold,
    "zoo": zoo_training,
    "align": aligning,
    "evaluate": evaluating,
}


def fresh(architecture: tuple, count: int) -> tuple[NetworkSpec, Tensor]:
    """Return the table of an MLP, and freshly initialised networks of it. The time of a step does not depend on the values of weights."""
    features, hidden, classes = architecture
    torch.manual_seed(0)
    networks = [mlp(features, hidden, classes) for _ in range(count)]
    spec = spec_of(networks[0], torch.zeros(1, features))
    return spec, pack(spec, [network.state_dict() for network in networks])


class Training:
    """Take one training step of a flow at each call, exactly as `fit` does."""

    def __init__(self, architecture: tuple, batch: int, device: str, **settings):
        spec, thetas = fresh(architecture, 2 * batch)
        flow, points = prepare(spec, thetas, CONFIG | {"batch": batch} | settings)
        self.run, self.points = Progress(flow.to(device)), points.to(device)

    def __call__(self) -> None:
        train_step(self.run, self.points, lr=1e-3)

    def instead(self, field: torch.nn.Module) -> "Training":
        """Return the same step with another field."""
        other = copy(self)
        flow = self.run.flow
        other.run = Progress(Flow(flow.chart, field, flow.reference, flow.config))
        other.run.descend = other.run.descend.function  # without a CUDA graph: some fields wait for the GPU, which cannot be recorded
        return other
