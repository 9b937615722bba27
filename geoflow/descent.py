"""Train given networks further, all at once, on any objective."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from geoflow.objectives import Objective, losses
from geoflow.spec import NetworkSpec
from geoflow.statistics import NORMS
from geoflow.vector import State


class NotFinite(FloatingPointError):
    """The loss of some `networks` is not finite in a `step`. Networks are counted from 0, and steps from 1."""

    def __init__(self, step: int, networks: Sequence[int], cure: str):
        super().__init__(f"In step {step} the loss of the networks {list(networks)} is not finite. {cure}")
        self.step, self.networks = step, networks


@torch.inference_mode(False)  # whatever mode the caller is in
def descend(
    spec: NetworkSpec,
    thetas: Float[Tensor, "nets weights"],
    objective: Objective,
    steps: int,
    lr: float = 1e-2,
    falling: bool = True,
    watch: Callable[[int, Float[Tensor, "nets weights"]], object] = lambda step, thetas: None,
) -> Float[Tensor, "nets weights"]:
    """Lower the objective of each network by `steps` steps of Adam, and return the new networks.

    The learning rate `lr` falls to 0 by a cosine, unless `falling` is False. Running statistics stay as they are. `watch` is called with
    the number of steps done and the networks, before the first step and after each. It must not change them. Source: Kingma and Ba, Adam,
    2015.

    Raises ValueError for a negative number of steps, and NotFinite that names the networks whose loss is not finite.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    >>> small = lambda states: (states["bias"] - 3).square().sum(1)
    >>> descend(spec, torch.zeros(2, 2), small, steps=200, lr=0.1).round()
    tensor([[0., 3.],
            [0., 3.]])
    """
    if steps < 0:
        raise ValueError(f"{steps=} must be at least 0.")
    thetas = thetas.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([thetas], lr)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + torch.cos(torch.tensor(torch.pi * step / max(steps, 1))).item()) / 2
    )
    watch(0, thetas.detach())
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        with torch.enable_grad():
            found = losses(objective, spec, thetas)
            if broken := (~found.isfinite()).nonzero().flatten().tolist():
                raise NotFinite(step, broken, f"Lower the learning rate {lr:g}.")
            found.sum().backward()
        optimizer.step()
        if falling:
            rates.step()
        watch(step, thetas.detach())
    return thetas.detach()


def by_batch(objective: Objective) -> Objective:
    """Return the objective with norms that use the statistics of each batch, as in training mode, and not running ones.

    Running statistics are neither read nor changed, so measure them anew afterwards (see `geoflow.recalibrate`). All else, such as dropout,
    stays in evaluation mode.

    >>> import torch
    >>> from geoflow.objectives import of_outputs
    >>> norm, x = torch.nn.BatchNorm1d(1, affine=False), torch.tensor([[1.0], [3.0]])
    >>> largest = of_outputs(norm, x, lambda outputs: outputs.flatten(1).amax(1))
    >>> states = {name: value[None] for name, value in norm.state_dict().items()}
    >>> largest(states), by_batch(largest)(states)  # the batch has mean 2 and deviation 1
    (tensor([3.0000]), tensor([1.0000]))
    """

    def found(states: State) -> Float[Tensor, " nets"]:
        with _ByBatch():
            return objective(states)

    return found


class _ByBatch(TorchFunctionMode):
    """Let every norm use the statistics of its input."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in NORMS:
            return func(*args, **(kwargs or {}))
        names, own, *_ = NORMS[func]
        given = dict(zip((own if name == "own" else name for name in names), args, strict=False)) | (kwargs or {})
        return func(**given | {"running_mean": None, "running_var": None, own: True})
