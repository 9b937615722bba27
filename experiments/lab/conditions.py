"""Say what a flow is told of every network of a zoo, and what it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from geoflow.evaluation.metrics import evaluate
from geoflow.flow import Flow
from geoflow.spec import NetworkSpec
from geoflow.zoo.tasks import Task
from lab.architectures import tasks_of

Thetas = Float[Tensor, "nets weights"]


@dataclass(frozen=True)
class Condition:
    """A row of CONDITIONS.

    `of_zoo` gives the conditions of networks `thetas` that were trained for `task`, one of the flow's `tasks`. `asked` gives the condition
    for `count` new networks. If nothing is asked for, `share` [count] from 0 to 1 chooses among those of the zoo.
    """

    of_zoo: Callable[[nn.Module, NetworkSpec, Task, Thetas, list[str], str], Tensor]
    asked: Callable[[Flow, Mapping, Float[Tensor, " count"]], Tensor]


def training_nll(network: nn.Module, spec: NetworkSpec, task: Task, thetas: Thetas, device: str) -> Float[Tensor, " nets"]:
    """Return the NLL of every network on the training data."""
    x, y = task.x_train.to(device), task.y_train.to(device)
    return evaluate(network, spec, thetas.to(device), x, y, outputs=task.outputs).nll.cpu()


def _nll_of_zoo(
    network: nn.Module, spec: NetworkSpec, task: Task, thetas: Thetas, tasks: list[str], device: str
) -> Float[Tensor, "nets 1"]:
    found = training_nll(network, spec, task, thetas, device)
    if (least := found.min().item()) <= 0:
        raise ValueError(f"condition=nll needs the logarithm of the NLL, but a network of the zoo has {least:.3g} on training data.")
    return found.log()[:, None]


def _nll_asked(flow: Flow, config: Mapping, share: Tensor) -> Float[Tensor, "count 1"]:
    if config["ask"] is None:
        return flow.conditions.at(share)
    return torch.full((len(share), 1), float(config["ask"])).log()


def _task_of_zoo(network: nn.Module, spec: NetworkSpec, task: Task, thetas: Thetas, tasks: list[str], device: str) -> Int[Tensor, " nets"]:
    return torch.full((len(thetas),), tasks.index(task.name))


def _task_asked(flow: Flow, config: Mapping, share: Tensor) -> Int[Tensor, " count"]:
    tasks = tasks_of(flow.config)
    if config["task"] not in tasks:
        raise ValueError(f"The flow was told of the tasks {', '.join(tasks)}, and not of {config['task']}. Fit a flow to it.")
    return torch.full((len(share),), tasks.index(config["task"]))


# what the flow is told: how; the others are left out
CONDITIONS: dict[str, Condition] = {"nll": Condition(_nll_of_zoo, _nll_asked), "task": Condition(_task_of_zoo, _task_asked)}


def asked_of(flow: Flow, config: Mapping, generator: torch.Generator) -> Tensor | None:
    """Return the condition for the new networks of a configuration. Return None for a flow without conditions.

    Without `ask` the conditions are spread as those of the zoo.
    """
    if flow.conditions is None:
        return None
    return CONDITIONS[flow.config["condition"]].asked(flow, config, torch.rand(config["count"], generator=generator))


def extrapolates(flow: Flow, config: Mapping) -> bool:
    """Return whether a configuration asks for numbers outside the range that the flow saw."""
    if flow.conditions is None or config["ask"] is None:
        return False
    asked = CONDITIONS[flow.config["condition"]].asked(flow, config, torch.zeros(1))
    return bool(flow.conditions.outside(asked).any())
