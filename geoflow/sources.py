"""Draw the noise that a flow begins with."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.chart import Chart
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
    chart: Chart, reference: Float[Tensor, " weights"], x_0: Float[Tensor, "count size"], start: float
) -> Float[Tensor, "count size"]:
    """Points at the time `start` of the paths from noise x_0 to the centre of an aligned zoo: a breath of what each unit is to become.

    From pure noise an equivariant field must find out for all units together which becomes which. At early times the zoo's own spread is
    small beside the noise, so that paths to the centre stand for paths to its networks.
    Source: truncated diffusion, Zheng et al., arXiv 2202.09671, with the centre in place of a learned start.
    """
    end = chart.point(reference[None]).to(x_0)
    return geodesic(chart.manifold, x_0, end.expand_as(x_0), x_0.new_full((len(x_0),), start))[0]
