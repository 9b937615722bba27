"""Draw networks from a flow that was just trained, or saved earlier."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from geoflow.appending import write_networks_of
from geoflow.canonical import canonicalize
from geoflow.descent import NotFinite, by_batch, descend
from geoflow.evaluation.plots import SHOWN_PATHS
from geoflow.fingerprints import digest_of
from geoflow.flow import Flow
from geoflow.guidance import Guidance, no_guidance, task_guidance
from geoflow.latent.large import single
from geoflow.objectives import Objective, task_objective
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

FINISHING = ("polish", "guiding", "recalibrate", "seed")  # options that decide what becomes of networks once they are drawn
POLISH = 3e-3  # learning rate of the steps of Adam after sampling
POLISHED_AT_ONCE = 32  # networks that these steps train at once
Examples = tuple[Tensor, Tensor, int]  # what `labelled_examples` returns
MEASURING_EXAMPLES = 2000  # training examples that running statistics are measured on, the same ones for all networks


def generate(
    flow: Flow, network: nn.Module | None, spec: NetworkSpec, task: Task | None, config: Mapping, guidance: Guidance = no_guidance
) -> tuple[Tensor, Tensor]:
    """Return new networks [count, weights], and the points [times, nets, size] that some of them passed through.

    Without a task, running statistics stay as the flow drew them.
    """
    points = []
    thetas = _drawn(flow, spec, config, guidance, watch=lambda x: points.append(x[:SHOWN_PATHS].cpu()))
    if task is not None:
        thetas = _finishing(network, spec, task, config, flow.config["seed"])(thetas, 0)
    return thetas.cpu(), torch.stack(points[: config["steps"] + 1])


def generate_in_file(
    flow: Flow, network: nn.Module, spec: NetworkSpec, task: Task, config: Mapping, guidance: Guidance, folder: Path
) -> tuple[Stored, Tensor]:
    """Return new networks in a file of the folder, and the points [times, nets, size] that they passed through.

    After an interruption the same call goes on.
    """
    points, seed, device = [], flow.config["seed"], device_of(config["device"])
    drawn = _drawn(flow, spec, config, guidance, watch=lambda x: points.append(x.cpu()), into=folder / "drawn.safetensors")
    times = config["steps"] + 1
    paths = torch.cat([torch.stack(points[begin : begin + times]) for begin in range(0, len(points), times)], 1)
    if not config["polish"] and not recalibrates(spec, config):
        return drawn, paths

    finish = _finishing(network, spec, task, config, seed)

    def finished(number: int) -> Tensor:
        return finish(single(drawn[number])[None].to(device), number)[0]

    key = digest_of({"drawn": drawn.mark(), "x": task.x_train, "y": task.y_train, **{name: config[name] for name in FINISHING}})
    path = folder / "finished.safetensors"
    return write_networks_of(spec, path, key, len(drawn), drawn.dtype, finished, at_terminal()), paths


def _drawn(flow: Flow, spec: NetworkSpec, config: Mapping, guidance: Guidance, **how) -> Networks:
    told = asked_of(flow, config, randomness(config["seed"], "condition"))
    return sample(
        flow, config["count"], spec=spec, solver=config["solver"], steps=config["steps"], start=config["start"],
        sharpness=config["sharpness"], guidance=guidance, condition=told, condition_strength=config["condition_strength"],
        generator=randomness(config["seed"], "sample"), progress=at_terminal(), **how,
    )  # fmt: skip


def _finishing(network: nn.Module, spec: NetworkSpec, task: Task, config: Mapping, seed: int) -> Callable[[Tensor, int], Tensor]:
    """Return what becomes of drawn networks, of which the first has a number.

    They take training steps, and their running statistics are measured anew, if the options ask for these.
    """
    if not config["polish"]:
        return lambda thetas, first: measured_anew(network, spec, thetas, task, config, seed)
    examples = labelled_examples(task, config)
    return lambda thetas, first: polished(network, spec, thetas, task, examples, config, seed, first)


def measured_anew(network: nn.Module, spec: NetworkSpec, thetas: Tensor, task: Task, config: Mapping, seed: int) -> Tensor:
    """Return networks with their running statistics measured on training data, if they have any and the options ask for it."""
    seen, progress = measuring_examples(spec, task, config, seed), at_terminal() and len(thetas) > 1
    return thetas if seen is None else recalibrate(network, spec, thetas, seen.to(thetas.device), progress=progress)


def guidance_of(network: nn.Module, task: Task, config: Mapping) -> Guidance:
    """Return the guidance that the options ask for, on labelled training examples."""
    if not config["guidance"]:
        return no_guidance
    x, y, batch = labelled_examples(task, config)
    generator = randomness(config["seed"], "guidance")
    return task_guidance(network, x, y, config["guidance"], task.outputs, batch, generator, **way_of(config))


def polished(
    network: nn.Module, spec: NetworkSpec, thetas: Tensor, task: Task, examples: Examples, config: Mapping, seed: int, first: int = 0
) -> Tensor:
    """Return networks after config["polish"] steps of Adam, with a learning rate that falls from POLISH to 0.

    `examples` are those of `labelled_examples`. Running statistics are measured after the last step on the inputs that `seed` chooses, if
    at all.

    Raises FloatingPointError that names the networks whose loss is not finite. The first of those given has the number `first`.
    """
    x, y, batch = examples

    def trained(number: int, part: Tensor) -> Tensor:
        objective = task_objective(network, x, y, task.outputs, batch, randomness(config["seed"], "polish"))  # the same batches for all
        try:
            return descend(spec, part, in_training(objective, spec, config), config["polish"], POLISH)
        except NotFinite as error:
            broken = [number + one for one in error.networks]
            raise NotFinite(error.step, broken, f"Leave polish={config['polish']} out, or draw other networks.") from error

    numbers = range(first, first + len(thetas), POLISHED_AT_ONCE)
    found = torch.cat([trained(number, part) for number, part in zip(numbers, thetas.split(POLISHED_AT_ONCE), strict=True)])
    return measured_anew(network, spec, found, task, config, seed)


def in_training(objective: Objective, spec: NetworkSpec, config: Mapping) -> Objective:
    """Return the objective of training steps. Norms use the statistics of the batch if running ones are measured anew afterwards."""
    return by_batch(objective) if recalibrates(spec, config) else objective


def labelled_examples(task: Task, config: Mapping) -> Examples:
    """Return the training examples whose labels may be seen, their targets, and how many of them make a batch."""
    count, batch = config["guiding"]["examples"] or len(task.x_train), config["guiding"]["batch"]
    if count > len(task.x_train):
        raise ValueError(f"guiding.examples={count} is more than the {len(task.x_train)} training examples of {task.name}.")
    some = torch.randperm(len(task.x_train), generator=randomness(config["seed"], "labels"))[:count]
    x, y = (part[some].to(device_of(config["device"])) for part in (task.x_train, task.y_train))
    return x, y, min(batch, count)


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
