"""Draw networks from a flow that was just trained, or saved earlier."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from geoflow.canonical import canonicalize
from geoflow.evaluation.large import recalibrate_large
from geoflow.evaluation.plots import SHOWN_PATHS
from geoflow.flow import Flow
from geoflow.guidance import Guidance, no_guidance, task_guidance
from geoflow.randomness import randomness
from geoflow.sampling import sample
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate, statistics_of
from geoflow.stored import Networks, Stored
from geoflow.wiring import spec_of
from geoflow.zoo.tasks import Task
from lab.allowed import SAMPLING
from lab.architectures import own_label
from lab.checks import device_of
from lab.collect import Collected, at_terminal, network_for, task_for
from lab.conditions import asked_of, extrapolates
from lab.folder import flow_file
from lab.own import check_table, is_function

MEASURING_EXAMPLES = 2000  # training examples that running statistics are measured on, the same ones for all networks


def generate(
    flow: Flow, network: nn.Module | None, spec: NetworkSpec, task: Task | None, config: Mapping, guidance: Guidance = no_guidance
) -> tuple[Tensor, Tensor]:
    """Return new networks [count, weights], and the points [times, nets, size] that some of them passed through.

    Without a task, running statistics stay as the flow drew them.
    """
    points = []
    thetas = _drawn(flow, spec, config, guidance, watch=lambda x: points.append(x[:SHOWN_PATHS].cpu()))
    seen = None if task is None else measuring_examples(spec, task, config, flow.config["seed"])
    if seen is not None:
        thetas = recalibrate(network, spec, thetas, seen.to(thetas.device), progress=at_terminal())
    return thetas.cpu(), torch.stack(points[: config["steps"] + 1])


def generate_in_file(
    flow: Flow, network: nn.Module, spec: NetworkSpec, task: Task, config: Mapping, guidance: Guidance, folder: Path
) -> tuple[Stored, Tensor]:
    """Return new networks in a file of the folder, and the points [times, nets, size] that they passed through.

    After an interruption the same call goes on.
    """
    points, seen, device = [], measuring_examples(spec, task, config, flow.config["seed"]), device_of(config["device"])
    thetas = _drawn(flow, spec, config, guidance, watch=lambda x: points.append(x.cpu()), into=folder / "drawn.safetensors")
    if seen is not None:
        thetas = recalibrate_large(network, spec, thetas, seen.to(device), folder / "recalibrated.safetensors", at_terminal())
    times = config["steps"] + 1
    batches = [torch.stack(points[first : first + times]) for first in range(0, len(points), times)]
    return thetas, torch.cat(batches, 1)


def _drawn(flow: Flow, spec: NetworkSpec, config: Mapping, guidance: Guidance, **how) -> Networks:
    told = asked_of(flow, config, randomness(config["seed"], "condition"))
    return sample(
        flow, config["count"], spec=spec, solver=config["solver"], steps=config["steps"], start=config["start"],
        sharpness=config["sharpness"], guidance=guidance, condition=told, condition_strength=config["condition_strength"],
        generator=randomness(config["seed"], "sample"), progress=at_terminal(), **how,
    )  # fmt: skip


def guidance_of(network: nn.Module, task: Task, config: Mapping) -> Guidance:
    """Return the guidance that the options ask for, on labelled training examples."""
    if not config["guidance"]:
        return no_guidance
    count, batch = config["guiding"]["examples"] or len(task.x_train), config["guiding"]["batch"]
    if count > len(task.x_train):
        raise ValueError(f"guiding.examples={count} is more than the {len(task.x_train)} training examples of {task.name}.")
    some = torch.randperm(len(task.x_train), generator=randomness(config["seed"], "labels"))[:count]
    x, y = (part[some].to(device_of(config["device"])) for part in (task.x_train, task.y_train))
    generator = randomness(config["seed"], "guidance")
    return task_guidance(network, x, y, config["guidance"], task.outputs, min(batch, count), generator, **way_of(config))


def way_of(config: Mapping) -> dict:
    """Return the arguments of `guide` that say how it guides."""
    return {name: value for name, value in config["guiding"].items() if name not in ("examples", "batch")}


def recalibrates(spec: NetworkSpec, config: Mapping) -> bool:
    """Return whether the networks have running statistics that are to be measured anew."""
    return config["recalibrate"] == "auto" and len(statistics_of(spec)) > 0


def measuring_examples(spec: NetworkSpec, task: Task, config: Mapping, seed: int) -> Shaped[Tensor, "examples ..."] | None:
    """Return the training inputs to measure running statistics on, chosen by the flow's seed. Return None if none are to be measured."""
    if not recalibrates(spec, config):
        return None
    some = torch.randperm(len(task.x_train), generator=randomness(seed, "recalibrate"))[:MEASURING_EXAMPLES]
    return task.x_train[some]


def load_flow(config: Mapping) -> Flow:
    """Load the saved flow of the checkpoint onto the chosen device."""
    return Flow.load(flow_file(config["checkpoint"]), device_of(config["device"]))


def reopen(config: Mapping) -> tuple[Flow, nn.Module, NetworkSpec, Task]:
    """Load a saved flow. Return it with the network that it is to make, the network's table, and the task.

    The flow never saw the test part of the task. Of several architectures, that of the network comes first.
    """
    flow = load_flow(config)
    task = task_for(config["task"], flow.config["seed"], flow.config["part"], config["network"])
    network = network_for(task, config)
    spec = spec_of(network, task.x_train[:2])
    if is_function(config["network"]) and own_label(flow.config, config) is not None:
        check_table(config["network"], spec, flow.spec)
    return flow.of(spec) if flow.knows(spec) else flow, network, spec, task


def own_flow(flow: Flow, found: Collected) -> Flow:
    """Return the flow with this architecture first. If its zoo shares the architecture with others, the centre is that of its own."""
    own = flow.of(found.spec)
    if flow.config.get("condition") != "task":
        return own
    alone = canonicalize(found.spec, found.fitted.networks, balance=own.chart.recipe.balance, frame=own.chart.frame)
    return replace(own, reference=alone.reference)


def sampling_settings(config: Mapping) -> dict:
    """Return how networks were drawn, for the record."""
    return {"sampling": {name: config[name] for name in SAMPLING if name != "count"}}


def asked_for(flow: Flow, config: Mapping) -> dict:
    """Return for the record whether networks were asked for beyond what the flow saw, if they were asked for at all."""
    return {} if config["ask"] is None else {"extrapolated": extrapolates(flow, config)}
