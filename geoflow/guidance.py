"""Bend a flow towards networks that solve a task: add the tangent gradient of a loss to its velocity."""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from geoflow.chart import Chart
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

        def loss(point: Tensor) -> Tensor:
            state = unpack(chart.spec, chart.theta(point))
            state |= {name: state[name].detach() for name in fixed}
            return cross_entropy(functional_call(network, state, (x,)), y)

        def bend(point: Float[Tensor, "nets size"], t: Tensor) -> Float[Tensor, "nets size"]:
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(vmap(loss)(point).sum(), point)
            return -strength * chart.manifold.egrad2rgrad(point.detach(), gradient)

        return bend

    return on
