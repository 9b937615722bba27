"""Sample the source distribution of a flow, which is called noise."""

from math import lgamma, log, pi

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.coordinates import Coordinates
from geoflow.manifolds import Product
from geoflow.paths import geodesic


def noise(
    chart: Coordinates, count: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
) -> Float[Tensor, "count size"]:
    """Sample noise on the chart's manifold: uniform on its spheres, normal in its flat coordinates.

    The noise has mean zero, and in flat coordinates the standard deviation `chart.spread`, which is usually 1. With `flow=normalized`, rows
    have norm 1 but are flat. Their noise is about as long as a row, because flat coordinates are standardised. The `generator` is usually
    on the CPU. For another device, it seeds a new generator there, which samples the noise.

    >>> import torch, geoflow
    >>> from geoflow.coordinates import FLOWS
    >>> from geoflow.charting import fit_chart
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> chart = fit_chart(spec, FLOWS["euclidean"], torch.randn(9, 3))
    >>> noise(chart, 5, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 3])
    """
    if generator is not None and torch.device(device) != generator.device:
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    x = chart.manifold.random(count, chart.graph.size, generator=generator, device=device)
    return x if chart.spread == 1 else torch.where(chart.flat.to(x.device), chart.spread * x, x)


def log_prob_of_noise(manifold: Product, x: Float[Tensor, "*batch size"], spread: float = 1.0) -> Float[Tensor, "*batch"]:
    """Return the log-density of noise at points of the manifold, in nats per unit of the manifold's volume.

    A sphere with d coordinates has the area 2 pi^(d/2) / Gamma(d/2), and the noise is uniform on it. In a flat coordinate the density is
    that of a normal with the standard deviation `spread`.

    >>> circle_and_line = Product(3, (torch.tensor([[0, 1]]),))
    >>> log_prob_of_noise(circle_and_line, torch.tensor([1.0, 0.0, 0.0]))  # -log(2 pi) - log(2 pi) / 2
    tensor(-2.7568)
    """
    areas = sum(len(index) * (log(2) + index.shape[1] / 2 * log(pi) - lgamma(index.shape[1] / 2)) for index in manifold.spheres)
    flat = torch.ones(manifold.size, dtype=torch.bool)
    for index in manifold.spheres:
        flat[index] = False
    normal = x[..., flat.to(x.device)] / spread
    return -0.5 * (normal.square().sum(-1) + normal.shape[-1] * log(2 * pi * spread**2)) - areas


def head_start(
    chart: Coordinates, reference: Float[Tensor, " weights"], x_0: Float[Tensor, "count size"], start: float
) -> Float[Tensor, "count size"]:
    """Move noise x_0 along the paths to the centre of an aligned zoo, up to the time `start` in [0, 1).

    From pure noise, an equivariant field must decide for all units together which becomes which. These points already hint at it. At early
    times the zoo's own spread is small compared to the noise. So paths to the centre replace paths to its networks. Source: truncated
    diffusion, Zheng et al., arXiv 2202.09671, with the centre instead of a learned start.

    >>> import torch, geoflow
    >>> from geoflow.coordinates import FLOWS
    >>> from geoflow.charting import fit_chart
    >>> spec = geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    >>> zoo = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    >>> chart = fit_chart(spec, FLOWS["euclidean"], zoo)
    >>> head_start(chart, zoo.mean(0), torch.ones(1, 2), 0.25)  # the centre has the coordinates 0
    tensor([[0.7500, 0.7500]])
    """
    end = chart.point(reference[None]).to(x_0)
    return geodesic(chart.manifold, x_0, end.expand_as(x_0), x_0.new_full((len(x_0),), start))[0]
