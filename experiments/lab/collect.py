"""Fetch what a run begins with: its data, a network, and the zoo."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.flow import Flow
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.stored import Stored
from geoflow.training import fingerprint_of_zoos
from geoflow.wiring import spec_of
from geoflow.zoo.large import LargeZoo
from geoflow.zoo.networks import together
from geoflow.zoo.outside import others_of, outside_inputs
from geoflow.zoo.store import Zoo, load_zoo, split_of, split_runs
from geoflow.zoo.tasks import TASKS, Task, validation_task
from lab.architectures import architectures_of, network_options, network_settings, tasks_of
from lab.checks import device_of
from lab.conditions import CONDITIONS
from lab.folder import ROOT, config_of, configured, described
from lab.in_files import check_memory, copied_into_files, goes_to_files, read_into_files
from lab.options import zoo_settings
from lab.own import check_trains, is_function, network_of, source_of, task_of
from lab.reading import is_read, read_zoo_of_files

FEW = 16  # training networks to compare with


@dataclass(frozen=True)
class Collected:
    """Hold what a run begins with. The flow sees the runs in `fitted`, and not those in `heldout`."""

    task: Task
    network: nn.Module
    spec: NetworkSpec
    fitted: Zoo | LargeZoo
    heldout: Zoo | LargeZoo


def collect(config: Mapping, device: str) -> Collected:
    """Return the data, the network and the zoo of a configuration for one network. The flow does not see all runs of the zoo.

    Raises InputError if zoo and new networks need more memory than the configuration allows.
    """
    return _in_memory(config, *traced(config), device)


def collect_sparing(config: Mapping, device: str) -> Collected:
    """Return what `collect` does. A zoo that needs more memory than the configuration allows is kept in files, if the flow can use them."""
    task, network, spec = traced(config)
    if not goes_to_files(config, spec):
        return _in_memory(config, task, network, spec, device)
    kept, held = split_of(config["runs"], config["heldout"], randomness(config["seed"], "split"))
    if is_read(config):
        return Collected(task, network, spec, *read_into_files(config, spec, kept, held, cache_of(config), at_terminal()))
    zoo = zoo_of(config, task, network, spec, device)
    return Collected(task, network, spec, *copied_into_files(config, zoo, kept, held, cache_of(config), at_terminal()))


def _in_memory(config: Mapping, task: Task, network: nn.Module, spec: NetworkSpec, device: str) -> Collected:
    check_memory(config, spec)
    zoo = zoo_of(config, task, network, spec, device)
    return Collected(task, network, spec, *split_runs(zoo, config["heldout"], randomness(config["seed"], "split")))


def collect_each(config: Mapping, device: str, alone: Callable[[Mapping, str], Collected] = collect) -> dict[str, Collected]:
    """Return what `collect` gives for every architecture and task of a configuration, by its label. A single one is collected by `alone`.

    Raises ValueError if the data of two tasks differ in their inputs or classes.
    """
    several = architectures_of(config)
    one_by_one = alone if len(several) == 1 else collect
    found = {label: one_by_one({**config, **one}, device) for label, one in several.items()}
    first, *others = ({one.task.name: one.task for one in found.values()}).values()
    for other in others:
        if (other.x_train.shape[1:], other.classes) != (first.x_train.shape[1:], first.classes):
            sizes = ((one.name, list(one.x_train.shape[1:]), one.classes) for one in (first, other))
            raise ValueError(
                " and ".join(f"{name} has inputs {shape} and {classes} classes" for name, shape, classes in sizes)
                + ". One flow needs tasks of one form."
            )
    return found


@dataclass(frozen=True)
class Joined:
    """Hold what a flow is fitted to: for each table a zoo and, if the flow is told any, the conditions of its networks.

    Zoos of one table, as those of several tasks, are one zoo. `inputs` are the training inputs of all tasks, or None for tokens.
    """

    specs: list[NetworkSpec]
    zoos: list[Float[Tensor, "_nets _weights"] | Stored]
    conditions: list[Tensor] | None
    inputs: Tensor | None


def join(found: Mapping[str, Collected], config: Mapping, device: str) -> Joined:
    """Return what the flow of a configuration is fitted to, from what `collect_each` gave."""
    row, tasks, groups = CONDITIONS.get(config["condition"]), tasks_of(config), by_table(found)
    told = row and [
        torch.cat([row.of_zoo(one.network, one.spec, one.task, one.fitted.networks, tasks, device) for one in group])
        for group in groups.values()
    ]
    numbers = [task.numbers for task in {one.task.name: one.task for one in found.values()}.values()]
    return Joined(list(groups), fitted_zoos(found), told, None if numbers[0] is None else torch.cat(numbers))


def by_table(found: Mapping[str, Collected]) -> dict[NetworkSpec, list[Collected]]:
    """Return what was collected by the tables of the networks. Several tasks share one table."""
    groups: dict[NetworkSpec, list[Collected]] = {}
    for one in found.values():
        same = next((spec for spec in groups if (spec.sites, spec.tensors) == (one.spec.sites, one.spec.tensors)), one.spec)
        groups.setdefault(same, []).append(one)
    return groups


def fitted_zoos(found: Mapping[str, Collected]) -> list[Float[Tensor, "_nets _weights"] | Stored]:
    """Return the networks that a flow is fitted to, one zoo for each table. A zoo in a file stands alone."""
    return [
        group[0].fitted.thetas if isinstance(group[0].fitted, LargeZoo) else torch.cat([one.fitted.networks for one in group])
        for group in by_table(found).values()
    ]


def fitted_to(flow: Flow, found: Mapping[str, Collected]) -> bool:
    """Return whether a flow was fitted to the zoos of what `collect_each` gave."""
    return flow.config["zoo"] == fingerprint_of_zoos(fitted_zoos(found))


def made_with(config: Mapping) -> dict:
    """Return the configuration of the run that made the flow of a checkpoint. Raises FileNotFoundError without its folder."""
    return {**config_of(config["checkpoint"]), "cache": config["cache"], "memory": config["memory"]}


def collect_own(config: Mapping) -> Collected:
    """Return what the flow of a checkpoint was fitted to, for the network that `config` names."""
    made = made_with(config)
    found = collect({**made, **network_settings(config)}, device_of(config["device"]))
    if is_read(made) and described(config["checkpoint"])["zoo"] != fingerprint_of_zoos([found.fitted.networks]):
        print(another_zoo(made))
    return found


def another_zoo(made: Mapping) -> str:
    """Return what to say where the zoo of a configuration is not the one that a flow was fitted to."""
    if is_read(made):
        return f"The networks in {made['zoo']['folder']} have changed since the flow was fitted to them."
    return "The flow was fitted to another zoo of this configuration. Its networks are as good as these, but not the same."


def whole_zoo(config: Mapping, device: str) -> tuple[Task, nn.Module, NetworkSpec, Zoo]:
    """Return the data, the network, its table, and all runs of the zoo of a completed configuration for one network.

    A zoo that is neither in files nor in the cache is trained.
    """
    task, network, spec = traced(config)
    return task, network, spec, zoo_of(config, task, network, spec, device)


def traced(config: Mapping) -> tuple[Task, nn.Module, NetworkSpec]:
    """Return the data, the network and its table, of a completed configuration for one network."""
    task = task_for(config["task"], config["seed"], config["part"], config["network"])
    if not is_read(config) and config["zoo"]["batch"] > len(task.x_train):
        raise ValueError(f"zoo.batch={config['zoo']['batch']} is more than the {len(task.x_train)} training examples of {task.name}.")
    if not is_read(config) and is_function(config["network"]):
        check_trains(config["network"], task)
    network = network_for(task, config)
    return task, network, spec_of(network, task.x_train[:2])


def zoo_of(config: Mapping, task: Task, network: nn.Module, spec: NetworkSpec, device: str) -> Zoo:
    """Read the zoo of a configuration from files or from the cache, or train it."""
    if is_read(config):
        return read_zoo_of_files(config, spec)
    own, build = is_function(config["network"]), partial(network_for, task, config)
    at_once = 1 if own else together(config["network"], task, config["zoo"]["batch"], device, spec.weights)  # not all code runs by vmap
    settings, seed, how = zoo_settings(config), config["zoo"]["seed"], {"progress": at_terminal(), "source": source_of(config["network"])}
    return load_zoo(cache_of(config), build, spec, task, settings, seed, device, together=at_once, **how)


def training_networks(config: Mapping, spec: NetworkSpec, count: int) -> Tensor | None:
    """Return the first networks of the zoo of a checkpoint, at most FEW. They are trained if the cache does not hold them.

    Return None if they have another architecture than `spec`, or if the checkpoint has no run folder that says how they were trained.
    """
    if not configured(config["checkpoint"]):
        return None
    few = made_with(config) | {"runs": min(FEW, max(2, count)), "heldout": 0.5, "memory": inf}
    alike = [own for own in architectures_of(few).values() if {**network_settings(config), "task": own["task"]} == network_settings(own)]
    if not alike:
        return None
    found = collect({**few, **alike[0]}, device_of(config["device"]))
    if (found.spec.sites, found.spec.tensors) != (spec.sites, spec.tensors):
        return None
    return torch.cat([found.fitted.networks, found.heldout.networks])[:count]


def at_terminal() -> bool:
    """Return whether progress bars go to a terminal. In a file they would fill thousands of lines."""
    return sys.stderr.isatty()


def cache_of(config: Mapping) -> Path:
    """Return the folder that holds zoos and unfinished trainings."""
    return ROOT / Path(config["cache"]).expanduser()


def task_for(name: str, seed: int, part: str, network: str) -> Task:
    """Return the data in the form that the network reads, split by the seed. Networks are scored on the test part."""
    task = task_of(name, network, seed)
    return validation_task(task, seed=seed) if part == "validation" else task


def outside_of(task: Task, seed: int) -> dict[str, Float[Tensor, "examples ..."]]:
    """Return the test inputs of other tasks, by their names, in the form and the scale that the networks of this task read."""
    return {other: outside_inputs(task.name, other, seed, form=task.form) for other in (others_of(task.name) if task.name in TASKS else ())}


def network_for(task: Task, config: Mapping) -> nn.Module:
    return network_of(config["network"], task, network_options(config))
