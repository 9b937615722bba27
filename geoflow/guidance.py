"""Bend a flow towards networks that solve a task: add the tangent gradient of a loss to its velocity."""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from geoflow.chart import Chart
from geoflow.population import run
from geoflow.vector import unpack

Guidance = Callable[[Chart], Callable[[Tensor, Tensor], Tensor]]


def no_guidance(chart: Chart) -> Callable[[Tensor, Tensor], Tensor]:
    """The guidance that adds nothing."""
    return lambda x, t: torch.zeros(())


def task_guidance(network: nn.Module, x: Float[Tensor, "examples ..."], y: Int[Tensor, " examples"], strength: float) -> Guidance:
    """-strength * grad_x L(f_theta(x)): the Riemannian gradient of the mean cross-entropy on examples, for all samples at once.

    `network` gives the architecture that is sampled; its weights play no role. Source: Erdogan 2025, with the sign that lowers the loss.
    """

    network = deepcopy(network).to(x.device).eval()  # the caller's keeps its mode and its buffers

    def on(chart: Chart):
        fixed = {tensor.name for tensor in chart.spec.tensors if not tensor.learned}  # a batch norm's statistics have no gradient

        def loss(points: Float[Tensor, "nets size"]) -> Tensor:
            """The sum over networks, each with its own gradient."""
            states = unpack(chart.spec, chart.theta(points))
            states |= {name: states[name].detach() for name in fixed}
            logits = run(network, states, x)
            return cross_entropy(logits.flatten(0, 1), y.repeat(len(points)), reduction="sum") / len(y)

        def bend(point: Float[Tensor, "nets size"], t: Tensor) -> Float[Tensor, "nets size"]:
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(point), point)
            return -strength * chart.manifold.egrad2rgrad(point.detach(), gradient)

        return bend

    return on
