"""Give labelled examples to guide or train networks with: some to learn from, some to choose settings by, and the test part."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from geoflow.evaluation.exam import Exam
from geoflow.evaluation.metrics import summary
from geoflow.flow import Flow
from geoflow.objectives import Objective, task_objective
from geoflow.randomness import randomness, seed_global
from geoflow.spec import NetworkSpec
from geoflow.vector import pack
from geoflow.zoo.tasks import Task
from lab.checks import device_of
from lab.collect import network_for
from lab.draw import reopen

SHARE, MOST = 0.2, 5000  # share of the labelled examples to choose settings by, and the most of them


@dataclass(frozen=True)
class Labelled:
    """Hold a saved flow, a network for the task, and the parts of its data.

    The training part of `task` has only the examples to learn from. `valid` scores on examples to choose settings by, and `test` on the
    test part.
    """

    flow: Flow
    network: nn.Module
    spec: NetworkSpec
    task: Task
    valid: Exam
    test: Exam
    batch: int
    device: str

    def objective(self, generator: torch.Generator) -> Objective:
        """Return the loss on batches of the examples to learn from. `generator` draws them."""
        x, y = self.task.x_train.to(self.device), self.task.y_train.to(self.device)
        return task_objective(self.network, x, y, self.task.outputs, self.batch, generator)


def labelled(config: Mapping) -> Labelled:
    """Open the flow of a checkpoint, and divide the labelled examples of the task.

    Raises ValueError if more examples are asked for than the task has, or so few that none are left to choose by.
    """
    flow, network, spec, task = reopen(config)
    device, guiding, every = device_of(config["device"]), config["guiding"], len(task.x_train)
    count = guiding["examples"] or every
    if not 5 <= count <= every:
        raise ValueError(f"guiding.examples={count} must be 5 or more, and at most the {every} training examples of {task.name}.")
    some = torch.randperm(every, generator=randomness(config["seed"], "labels"))[:count]
    valid, learn = some.split([kept := min(MOST, max(1, round(SHARE * count))), count - kept])

    def examined(part: Tensor) -> Exam:
        return Exam(network, spec, replace(task, x_test=task.x_train[part], y_test=task.y_train[part]), device)

    to_learn = replace(task, x_train=task.x_train[learn], y_train=task.y_train[learn])
    batch = min(guiding["batch"], len(learn))
    return Labelled(flow, network, spec, to_learn, examined(valid), Exam(network, spec, task, device), batch, device)


def fresh_networks(task: Task, config: Mapping, spec: NetworkSpec, count: int) -> Tensor:
    """Return untrained networks, initialised as torch does it."""
    with torch.random.fork_rng(devices=[]):
        seed_global(randomness(config["seed"], "fresh").initial_seed() % 2**32)
        return torch.stack([pack(spec, network_for(task, config).state_dict()) for _ in range(count)])


def nll_of(exam: Exam, thetas: Tensor) -> float:
    """Return the mean NLL of networks. It is infinite if one is not finite."""
    found = summary(exam.single(thetas))["nll"]["mean"]
    return found if found == found else float("inf")


def by_kind(rows: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return the means of the scores, under the kind of each row."""
    kinds = {"unguided": "unguided", "guided": "guided", "Adam": "trained by Adam"}
    means = {name: {score: value["mean"] for score, value in one.items()} for name, one in rows.items()}
    return {name: {next(kind for begin, kind in kinds.items() if name.startswith(begin)): one} for name, one in means.items()}
