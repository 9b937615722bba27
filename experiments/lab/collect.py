"""Fetch what a run begins with: its data, a network, and the zoo."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.wiring import spec_of
from geoflow.zoo.networks import NETWORKS, build_network, together
from geoflow.zoo.outside import others_of, outside_inputs
from geoflow.zoo.store import Zoo, load_zoo, split_runs
from geoflow.zoo.tasks import Task, load_task, validation_task
from lab.architectures import network_options
from lab.folder import ROOT, config_of, configured
from lab.options import device_of, zoo_settings

FEW = 16  # training networks to compare with


@dataclass(frozen=True)
class Collected:
    """Hold what a run begins with. The flow sees the runs in `fitted`, and not those in `heldout`."""

    task: Task
    network: nn.Module
    spec: NetworkSpec
    fitted: Zoo
    heldout: Zoo


def collect(config: Mapping, device: str) -> Collected:
    """Return the data, the network and the zoo of a completed configuration. A zoo that is not in the cache is trained."""
    task = task_for(config["task"], config["seed"], config["part"], config["network"])
    if config["zoo"]["batch"] > len(task.x_train):
        raise ValueError(f"zoo.batch={config['zoo']['batch']} is more than the {len(task.x_train)} training examples of {task.name}.")
    network = network_for(task, config)
    spec, build = spec_of(network, task.x_train[:2]), partial(network_for, task, config)
    at_once = together(config["network"], task, config["zoo"]["batch"], device)
    settings, seed, shown = zoo_settings(config), config["zoo"]["seed"], at_terminal()
    zoo = load_zoo(cache_of(config), build, spec, task, settings, seed, device, progress=shown, together=at_once)
    return Collected(task, network, spec, *split_runs(zoo, config["heldout"], randomness(config["seed"], "split")))


def training_networks(config: Mapping, spec: NetworkSpec, count: int) -> Tensor | None:
    """Return the first networks of the zoo of a checkpoint, at most FEW. They are trained if the cache does not hold them.

    Return None if they have another architecture than `spec`, or if the checkpoint has no run folder that says how they were trained.
    """
    if not configured(config["checkpoint"]):
        return None
    few = dict(config_of(config["checkpoint"])) | {"runs": min(FEW, max(2, count)), "heldout": 0.5, "cache": config["cache"]}
    found = collect(few, device_of(config["device"]))
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
    task = load_task(name, seed, form=NETWORKS[network].form)
    return validation_task(task, seed=seed) if part == "validation" else task


def outside_of(task: Task, seed: int) -> dict[str, Float[Tensor, "examples ..."]]:
    """Return the test inputs of other tasks, by their names, in the form and the scale that the networks of this task read."""
    return {other: outside_inputs(task.name, other, seed, form=task.form) for other in others_of(task.name)}


def network_for(task: Task, config: Mapping) -> nn.Module:
    return build_network(config["network"], task, network_options(config))
