"""Record the kernels that a function launches on a GPU once, and replay them in one launch."""

from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 2  # calls before the recording, in which libraries and optimizers set up their buffers


class Recorded:
    """A function of tensors of fixed shapes, which becomes a CUDA graph on a GPU.

    The first EAGER calls run as usual. The next one is recorded, and from then on the recording is replayed. A training step of a small
    field has a thousand kernels of a few microseconds each, which take longer to launch than to run. The function may read its arguments
    and tensors that stay where they are. It must not wait for the GPU. Each call overwrites the result of the one before. On a CPU the
    function is simply called.
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
        """Call the function on a stream of its own, as the recording does.

        Autograd stays on the stream on which it began.
        """
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
