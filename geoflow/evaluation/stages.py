"""Find the times of a flow, and the layers, in which the quality of networks is lost."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.evaluation.ruler import layers_of
from geoflow.flow import Flow
from geoflow.paths import geodesic
from geoflow.sampling import finish, solver_for
from geoflow.sources import noise

Thetas = Float[Tensor, "nets weights"]


@torch.inference_mode(False)  # as in `sample`
@torch.no_grad()
def brought_back(
    flow: Flow, thetas: Thetas, times: Sequence[float], generator: torch.Generator, solver: str = "midpoint", steps: int = 32
) -> dict[float, Thetas]:
    """Take networks back along their paths to each of some times, and integrate the flow to the end from there. Return the results by time.

    At time 1 a network is itself, and at time 0 it is noise alone. If networks from a time come back as good as they were, no quality is
    lost from there on. The noise is the same at all times. Networks are first brought to the flow's canonical form.

    Raises ValueError for a time outside [0, 1), an unknown solver, and a solver that does not suit this flow.

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
    step, chart = solver_for(flow, solver), flow.chart
    x_1 = chart.point(flow.canonical(thetas)).to(next(flow.field.parameters()))
    x_0 = noise(chart, len(thetas), generator).to(x_1)
    at = {t: geodesic(chart.manifold, x_0, x_1, x_1.new_full((len(x_1),), t))[0] for t in times}
    return {t: finish(flow, chart, x_t, t, step, steps).to(thetas) for t, x_t in at.items()}


def layer_by_layer(flow: Flow, thetas: Thetas, made: Thetas) -> dict[str, Thetas]:
    """Return, for each layer, networks that have this layer from `made` and all others from `thetas`.

    Their scores show how much the errors of this layer cost. Layers are those of `layers_of`. Both sets are brought to the flow's canonical
    form. The units of the second are ordered to match the first.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(9, 3), flow="euclidean", iterations=1, batch=4, progress=False)
    >>> {name: mixed.round() for name, mixed in layer_by_layer(flow, torch.zeros(1, 3), torch.ones(1, 3)).items()}
    {'linear': tensor([[1., 1., 1.]])}
    """
    first = flow.canonical(thetas)
    second, mixed = flow.canonical(made, first), {}
    for name, index in layers_of(flow.spec).items():
        mixed[name] = first.clone()
        mixed[name][:, index] = second[:, index]
    return mixed
