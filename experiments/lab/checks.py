"""Refuse options that make no sense, in one line that says what to do."""

from collections.abc import Mapping

import torch
from sacred.utils import SacredError

from geoflow.choices import choose
from geoflow.density import ADAPTIVE
from geoflow.latent.pca import check_components
from geoflow.sampling import SOLVERS
from lab.allowed import CHOICES, FURTHER, GROUP_CHOICES, GROUP_NUMBERS, LEFT_OPEN, NUMBERS, Number
from lab.architectures import architectures_of
from lab.own import is_data, is_function

OF_FILES = {"task": is_data, "network": is_function}  # options that name a row of a table or a file: whether a value names a file


class InputError(SacredError):
    """Report a mistake that the user can correct, in one line. Only --debug shows the traceback."""

    __module__ = "builtins"  # Python then writes "InputError: ..." without the name of this file

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


def device_of(name: str) -> str:
    """Return where to compute: "cpu" or "cuda"."""
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise InputError("device=cuda is asked for, but torch finds no GPU here. Choose device=auto or device=cpu.")
    return "cuda" if gpu and name != "cpu" else "cpu"


def device_name(device: str) -> str:
    """Return the name of the device for the record of a run. A GPU has its own name there."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def check(config: Mapping) -> None:
    """Raise ValueError or InputError for a value that an option may not have."""
    for architecture in architectures_of(config).values():
        _check_architecture({**config, **architecture})
    for option in ("widths", "depths"):
        if not _whole_numbers(config[option]) or not config[option]:
            raise InputError(f"{option}={config[option]} must be a list of whole numbers of at least 1, such as {option}=[1,2].")
    device_of(config["device"])
    for group in ("guiding", "tuning"):
        _check_group(config, group)
    if config["runs"] is not None:
        if config["zoo"]["folder"] is None:
            _check_group(config, "zoo")
            _check_training(config)
        _check_runs(config)


def check_condition(config: Mapping, command: str) -> None:
    """Raise InputError for a condition that the architectures, the tasks or the command do not allow."""
    tasks = {one["task"] for one in architectures_of(config).values()}
    if command in FURTHER:
        if config["ask"] is not None and config["condition"] != "nll":
            raise InputError(f"ask={config['ask']} serves flows with condition=nll, and this one has condition={config['condition']}.")
        return
    if config["ask"] is not None and command == "main":
        raise InputError("ask serves the commands on a saved flow; the main job draws networks as the zoo has them, and at five levels.")
    if (len(tasks) > 1) != (config["condition"] == "task"):
        raise InputError(
            f"{len(tasks)} task{'s' * (len(tasks) > 1)} and condition={config['condition']} do not go together. A flow for several tasks "
            "is told which one, as task=mnist,fashion condition=task."
        )
    if config["condition"] == "nll" and len(architectures_of(config)) > 1:
        raise InputError("condition=nll serves one architecture, because the losses of several are not comparable. Choose one.")


def _check_architecture(config: Mapping) -> None:
    for option, table in CHOICES.items():
        own = OF_FILES.get(option, lambda value: False)(config[option])
        if not own and not (config[option] is None and option in LEFT_OPEN):
            choose(option, str(config[option]), dict.fromkeys(table))
    for option, number in NUMBERS.items():
        check_number(option, config[option], number)
    hidden = config["hidden"]
    if hidden is not None and not _whole_numbers(hidden):
        raise InputError(
            f"hidden={hidden} must be a list of widths of at least 1, such as hidden=[16,16], or a list of such lists for several "
            "architectures."
        )


def _whole_numbers(value: object) -> bool:
    """Whether a value is a list of whole numbers of at least 1."""
    return isinstance(value, list | tuple) and all(type(n) is int and n >= 1 for n in value)


def _check_group(config: Mapping, group: str) -> None:
    for option, table in GROUP_CHOICES[group].items():
        if config[group][option] not in table:
            choose(f"{group}.{option}", str(config[group][option]), dict.fromkeys(map(str, table)))
    for option, number in GROUP_NUMBERS[group].items():
        check_number(f"{group}.{option}", config[group][option], number)


def check_of_density(config: Mapping, command: str) -> None:
    """Raise InputError if another command is given what only density can use."""
    if command not in {"main", *FURTHER} - {"density"}:
        return
    if config["solver"] in ADAPTIVE:
        raise InputError(f"solver={config['solver']} serves the command density only. To draw networks choose {', '.join(SOLVERS)}.")
    if config["probes"] is not None:
        raise InputError(f"probes={config['probes']} serves the command density only. Leave it out.")


def _check_training(config: Mapping) -> None:
    """Refuse a recipe that no run of a zoo can follow."""
    snapshots, zoo = config["snapshots"], config["zoo"]
    if zoo["origin"] == "independent" and zoo["common"] is not None:
        raise InputError(
            f"zoo.common={zoo['common']} says how long a shared start is trained, and with zoo.origin=independent runs share none. "
            "Leave it out, or choose zoo.origin=shared."
        )
    if zoo["examples"] is not None and zoo["examples"] < zoo["batch"]:
        raise InputError(
            f"zoo.examples={zoo['examples']} fill no batch of zoo.batch={zoo['batch']}. Draw more examples or choose a smaller batch."
        )
    if (snapshots - 1) * zoo["every"] >= zoo["epochs"]:
        every, epochs = zoo["every"], zoo["epochs"]
        raise InputError(
            f"snapshots={snapshots} every zoo.every={every} epochs do not fit into zoo.epochs={epochs}. Train longer or keep fewer."
        )


def _check_runs(config: Mapping) -> None:
    """Refuse a zoo that leaves the flow too few networks."""
    runs, snapshots, kept = config["runs"], config["snapshots"], seen_runs(config)
    if kept < 2 or kept * snapshots < 3:
        raise InputError(
            f"runs={runs} with heldout={config['heldout']} leave {kept} to fit the flow on. That is too few to compare: "
            + ("train more runs." if config["zoo"]["folder"] is None else f"zoo.folder={config['zoo']['folder']} needs more networks.")
        )
    if config["batch"] is not None and kept * snapshots < config["batch"]:
        raise InputError(
            f"batch={config['batch']} is more than the {kept * snapshots} networks that the flow is fitted to "
            f"({kept} of {runs} runs, {snapshots} snapshots each). Choose a smaller batch or more runs."
        )
    if config["latent"] != "none":
        check_components(config["components"], kept * snapshots)


def seen_runs(config: Mapping) -> int:
    """Return how many runs of the zoo the flow is fitted to."""
    return config["runs"] - max(1, round(config["heldout"] * config["runs"]))


def check_number(option: str, value: object, number: Number) -> None:
    """Raise InputError if a value is no number of this kind."""
    kind, fits, words = number
    if value is None and option in LEFT_OPEN:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise InputError(f"{option}={value} must be {words}.")
