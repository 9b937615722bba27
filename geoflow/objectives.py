"""Say how far networks are from what is wanted of them, as losses with gradients."""

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.outputs import outputs_of
from geoflow.outputs.reading import Output, reader
from geoflow.population import run
from geoflow.spec import NetworkSpec
from geoflow.vector import State, unpack

TRIED = 2  # examples that show what a network returns
Objective = Callable[[State], Float[Tensor, " nets"]]  # state dicts stacked along nets -> a loss for each network, in nats or other units


def of_outputs(
    network: nn.Module,
    x: Shaped[Tensor, "examples ..."],
    loss: Callable[[Float[Tensor, "nets examples ..."]], Float[Tensor, " nets"]],
) -> Objective:
    """Return the objective that is a differentiable function `loss` of the networks' outputs on the examples x.

    `network` gives the architecture. Its weights play no role.

    >>> import torch
    >>> largest = of_outputs(torch.nn.Linear(2, 1), torch.eye(2), lambda outputs: outputs.flatten(1).amax(1))
    >>> largest({"weight": torch.tensor([[[1.0, 2.0]]]), "bias": torch.zeros(1, 1)})
    tensor([2.])
    """
    network = deepcopy(network).to(x.device).eval()  # a copy, so that the caller's network keeps its mode and buffers
    return lambda states: loss(run(network, states, x))


def task_objective(
    network: nn.Module,
    x: Shaped[Tensor, "examples ..."],
    y: Shaped[Tensor, "examples ..."],
    outputs: str = "classes",
    batch: int | None = None,
    generator: torch.Generator | None = None,
    output: Output = None,
) -> Objective:
    """Return the mean negative log-likelihood of the examples (x, y), in nats. For classes this is the cross-entropy.

    With `batch`, each call takes that many random examples, which are the same for all networks. `generator` (on the CPU) draws them.
    `outputs` names what the outputs mean, a row of OUTPUTS, and `output` where they are in what the network returns (see `evaluate`).

    Raises ValueError for targets that are not of this kind, that a network with so many outputs cannot predict, or that are fewer than
    `batch`.

    >>> import torch
    >>> loss = task_objective(torch.nn.Linear(2, 2), torch.eye(2), torch.tensor([0, 1]))
    >>> loss({"weight": torch.zeros(3, 2, 2), "bias": torch.zeros(3, 2)})  # both classes are equally probable: log 2
    tensor([0.6931, 0.6931, 0.6931])
    """
    kind = outputs_of(outputs)
    network = deepcopy(network).to(x.device).eval()
    kind.check(x, y)
    if batch is not None and not 1 <= batch <= len(x):
        raise ValueError(f"{batch=} examples cannot be drawn from {len(x)}.")
    with torch.no_grad():
        returned = network(x[:TRIED])
        read = reader(returned, len(x[:TRIED]), output)
        kind.check_fit(read(returned).shape[-1], y)

    def loss(states: State) -> Float[Tensor, " nets"]:
        if batch is None or batch == len(x):
            return kind.nll(run(network, states, x, read=read), y).mean(1)
        some = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        return kind.nll(run(network, states, x[some], read=read), y[some]).mean(1)

    return loss


def losses(objective: Objective, spec: NetworkSpec, thetas: Float[Tensor, "nets weights"]) -> Float[Tensor, " nets"]:
    """Return the loss of each network. Running statistics are data, not weights, so they get no gradient.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    >>> losses(lambda states: states["bias"].square().sum(1), spec, torch.tensor([[1.0, 3.0], [1.0, 4.0]]))
    tensor([ 9., 16.])
    """
    states = unpack(spec, thetas)
    states |= {tensor.name: states[tensor.name].detach() for tensor in spec.tensors if not tensor.learned}
    return objective(states)
