"""Find where along a flow, and in which layers, the quality of networks is lost."""

from collections.abc import Sequence
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.choices import choose
from geoflow.evaluation.ruler import layers_of
from geoflow.flow import Flow
from geoflow.paths import geodesic
from geoflow.sampling import SOLVERS, integrate
from geoflow.sources import noise

Thetas = Float[Tensor, "nets weights"]


@torch.no_grad()
def brought_back(
    flow: Flow, thetas: Thetas, times: Sequence[float], generator: torch.Generator, solver: str = "midpoint", steps: int = 32
) -> dict[float, Thetas]:
    """What the flow makes of networks that are taken back on their paths to each of some times, and integrated to the end from there.

    At time 1 a network is itself, at time 0 it is noise alone. A time from which networks come back as good as they were is not where
    quality is lost. All times have the same noise.

    Raises ValueError for a time outside [0, 1) and an unknown solver.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> zoo = torch.randn(40, spec.weights)
    >>> flow = geoflow.fit(spec, zoo, iterations=2, batch=8, progress=False)
    >>> list(brought_back(flow, zoo[:5], [0.0, 0.5], torch.Generator()))
    [0.0, 0.5]
    """
    if outside := [t for t in times if not 0 <= t < 1]:
        raise ValueError(f"t={outside[0]} must be a time from 0 to below 1.")
    step, chart = choose("solver", solver, SOLVERS), flow.chart
    flow.field.eval()
    place = next(flow.field.parameters())
    x_1 = chart.point(flow.canonical(thetas)).to(place)
    x_0, v = noise(chart, len(thetas), generator).to(place), flow.velocity(chart)
    made = {}
    for t in times:
        x_t = geodesic(chart.manifold, x_0, x_1, x_1.new_full((len(x_1),), t))[0]
        grid = torch.linspace(sqrt(t), 1, steps + 1, device=place.device).square()
        made[t] = chart.theta(integrate(v, x_t, grid, chart.manifold, step)).to(thetas)
    return made


def layer_by_layer(flow: Flow, thetas: Thetas, made: Thetas) -> dict[str, Thetas]:
    """Networks in which one layer is that of `made`, and all others are those of `thetas`: how much the errors of this layer cost.

    Layers are those of `layers_of`. Both sets are brought to the flow's canonical form, the second in the order of units of the first.
    """
    first = flow.canonical(thetas)
    second, mixed = flow.canonical(made, first), {}
    for name, index in layers_of(flow.spec).items():
        mixed[name] = first.clone()
        mixed[name][:, index] = second[:, index]
    return mixed
