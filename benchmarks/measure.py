"""Measure the time and memory of functions, and the best rates of the machine."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5


def seconds(function: Callable[[], object]) -> float:
    """Return the time of one call, including the work that it queued on a GPU."""
    _wait()
    start = perf_counter()
    function()
    _wait()
    return perf_counter() - start


def alternate(*functions: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each function. They are called in turn, after one call of each that does not count."""
    for function in functions:
        function()
    times = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [median(column) for column in zip(*times, strict=True)]


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Return the most memory that tensors made during a call hold at once on a device, as the allocator counts it.

    A first call is not measured, because it makes what later calls keep. Measure a training step before it is recorded, because a CUDA
    graph holds its memory for good.
    """
    function()
    if device == "cuda":
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    changes = [(event.start_ns(), event.nbytes()) for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(change for _, change in sorted(changes)))


@dataclass(frozen=True)
class Machine:
    """Hold the best rates of the machine.

    `flops` is operations per second in a large matrix product. `bytes` is bytes per second, read and written, in a large copy.
    """

    flops: float
    bytes: float


def beside_machine(function: Callable[[], object], device: str, size: int = 2048, length: int = 2**26) -> tuple[float, Machine]:
    """Return the median seconds of a call, and the best rates of the machine.

    Both are measured in turn, because the rates of a shared machine vary.
    """
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    source = torch.randn(length, device=device)
    target = torch.empty_like(source)
    ours, product, copy = alternate(function, lambda: a @ b, lambda: target.copy_(source))
    return ours, Machine(2 * size**3 / product, 2 * source.nbytes / copy)


@dataclass(frozen=True)
class Work:
    """Hold the float operations of all matrix products, and the bytes that all operations read and write."""

    flops: int
    bytes: int

    def bound(self, machine: Machine) -> float:
        """Return the seconds that the machine needs at best, if nothing overlaps."""
        return self.flops / machine.flops + self.bytes / machine.bytes


def count(function: Callable[[], object]) -> Work:
    """Count the work of a call.

    Every operation reads its inputs and writes its outputs once. A broadcast tensor counts with the size that it has in memory.
    """
    with FlopCounterMode(display=False) as flops, _Bytes() as traffic:
        function()
    return Work(flops.get_total_flops(), traffic.total)


class _Bytes(TorchDispatchMode):
    """Add up the bytes that operations read and write."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func not in _FREE:
            self.total += sum(_bytes(part) for part in tree_leaves((args, kwargs, out)) if isinstance(part, Tensor))
        return out


# operations that reserve or view memory without reading or writing it
_FREE = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten._unsafe_view.default}


def _bytes(tensor: Tensor) -> int:
    return prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride) * tensor.itemsize


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
