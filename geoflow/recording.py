"""Record what a function asks of a GPU, and ask for all of it at once from then on."""

from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 2  # calls before the recording, in which libraries and optimizers make what they keep


class Recorded:
    """A function of tensors whose shapes stay the same; on a GPU a CUDA graph, recorded after EAGER calls and replayed from then on.

    A training step of a small field is a thousand kernels of microseconds, which take longer to launch one by one than to run. The function
    may read its arguments and tensors that stay where they are, and must not wait for the GPU; the next call overwrites its result.
    On a CPU the function is simply called.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function, self.calls = function, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        if arguments[0].device.type != "cuda":
            return self.function(*arguments)
        if self.calls < EAGER:
            self.calls += 1
            return self._aside(*arguments)
        if self.graph is None:
            self._record(*arguments)
        for own, given in zip(self.arguments, arguments, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result

    def _aside(self, *arguments: Tensor) -> Tensor:
        """A call on a stream of its own, as the recording will be: autograd keeps to the stream that it began on."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = self.function(*arguments)
        current.wait_stream(stream)
        return result

    def _record(self, *arguments: Tensor) -> None:
        self.arguments = [argument.clone() for argument in arguments]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.function(*self.arguments)
