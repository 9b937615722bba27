"""Draw the noise that a flow begins with."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.chart import Chart
from geoflow.constants import beside
from geoflow.paths import geodesic


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


def head_start(
    chart: Chart, moments: Float[Tensor, "2 size"], x_0: Float[Tensor, "count size"], start: float, generator: torch.Generator | None = None
) -> Float[Tensor, "count size"]:
    """Points at the time `start` of the paths from noise x_0 to networks of a Gaussian with these moments, one for each coordinate.

    Of an aligned zoo the moments say which unit is which. An equivariant field has to decide that from pure noise for all units together;
    once there is as much noise as at early times, the Gaussian's networks stand for the zoo's.
    Source: truncated diffusion, Zheng et al., arXiv 2202.09671, with the Gaussian in place of a learned start.
    """
    mean, deviation = beside(moments, x_0)
    ends = chart.manifold.projx(mean + deviation * torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype).to(x_0.device))
    return geodesic(chart.manifold, x_0, ends, x_0.new_full((len(x_0),), start))[0]
