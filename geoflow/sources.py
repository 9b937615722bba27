"""Draw the noise that a flow begins with."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.chart import Chart


def noise(
    chart: Chart, count: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
) -> Float[Tensor, "count size"]:
    """Zero-mean noise on the chart's manifold: uniform on its spheres, standard normal in its (standardised) flat coordinates.

    Where rows are balanced but flat, the noise is as long as a row: every weight has the standard deviation of the zoo's own.
    On another device than the `generator` (on the CPU) a generator there draws the noise, started by a number of this one.
    """
    if generator is not None and torch.device(device) != generator.device:
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return chart.manifold.random(count, chart.graph.size, generator=generator, device=device)
