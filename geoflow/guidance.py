"""Guide a flow towards networks that solve a task, by adding the gradient of a loss to its velocity."""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.chart import Chart
from geoflow.outputs import outputs_of
from geoflow.population import run
from geoflow.vector import unpack

Guidance = Callable[[Chart], Callable[[Tensor, Tensor], Tensor]]


def no_guidance(chart: Chart) -> Callable[[Tensor, Tensor], Tensor]:
    """Add nothing to the velocity."""
    return lambda x, t: torch.zeros(())


def task_guidance(
    network: nn.Module, x: Shaped[Tensor, "examples ..."], y: Shaped[Tensor, "examples ..."], strength: float, outputs: str = "classes"
) -> Guidance:
    """Return a guidance that lowers the mean negative log-likelihood L of the examples (x, y) under every sampled network.

    It adds this Riemannian gradient to the velocity, for all samples at once:

        -strength * grad_x L(f_theta(x))

    `network` gives the architecture that is sampled. Its weights play no role. `outputs` names what its outputs mean, a row of OUTPUTS.
    For classes, L is the mean cross-entropy. Source: Erdogan 2025, with the sign that lowers the loss.

    Raises ValueError for targets that are not of this kind, or that a network with so many outputs cannot predict.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(9, 6), flow="euclidean", iterations=1, batch=4, progress=False)
    >>> guidance = task_guidance(network, torch.eye(2), torch.tensor([0, 1]), strength=1.0)
    >>> geoflow.sample(flow, 5, steps=3, guidance=guidance).shape
    torch.Size([5, 6])
    """

    kind = outputs_of(outputs)
    network = deepcopy(network).to(x.device).eval()  # a copy, so that the caller's network keeps its mode and buffers
    kind.check(x, y)
    with torch.no_grad():
        kind.check_fit(network(x[:1]).shape[-1], y)

    def on(chart: Chart):
        fixed = {tensor.name for tensor in chart.spec.tensors if not tensor.learned}  # the statistics of batch norm get no gradient

        def loss(points: Float[Tensor, "nets size"]) -> Tensor:
            """Return the sum of the losses of all networks. Each keeps its own gradient in it."""
            states = unpack(chart.spec, chart.theta(points))
            states |= {name: states[name].detach() for name in fixed}
            return kind.nll(run(network, states, x), y).mean(1).sum()

        def bend(point: Float[Tensor, "nets size"], t: Tensor) -> Float[Tensor, "nets size"]:
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(point), point)
            return -strength * chart.manifold.egrad2rgrad(point.detach(), gradient)

        return bend

    return on
