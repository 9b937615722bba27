"""Draw the noise that a flow begins with."""

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.chart import Chart


def noise(chart: Chart, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count size"]:
    """Zero-mean noise on the chart's manifold: uniform on its spheres, standard normal in its (standardised) flat coordinates.

    Where rows are balanced but flat, the noise is as long as a row: every weight has the standard deviation of the zoo's own.
    """
    return chart.manifold.random(count, chart.graph.size, generator=generator)
