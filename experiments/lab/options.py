"""Check the options of a run, and complete those that were left open, before anything is computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from sacred.utils import SacredError, SacredInterrupt

from geoflow import guidance, training
from geoflow.choices import choose
from geoflow.density import ADAPTIVE
from geoflow.guidance import PLACES, UNITS
from geoflow.sampling import SOLVERS
from geoflow.velocity import complete_sizes
from geoflow.zoo.networks import NETWORKS
from geoflow.zoo.networks.mlp import ACTIVATIONS, NORMS
from geoflow.zoo.recipes import ORIGINS
from geoflow.zoo.tasks import TASKS
from geoflow.zoo.train import SCHEDULES
from lab.architectures import (
    NETWORK,
    OF_NETWORKS,
    architectures_of,
    network_options,
    network_settings,
    whole_network,
    with_defaults,
)
from lab.conditions import CONDITIONS
from lab.folder import described, sampled_with, samples_file

DEVICES = ("auto", "cpu", "cuda")
# the commands on a saved flow
FURTHER = (
    "sample", "evaluate", "transfer", "widths", "guide", "finetune", "curve", "sharpen", "stages", "density", "posterior", "rivals",
)  # fmt: skip
ELSEWHERE = ("transfer", "widths", "guide", "finetune")  # those that serve other networks and data than the flow's own
ONLY = {"yardstick": ("transfer", "widths"), "widths": ("widths",), "depths": ("widths",)}  # option: the commands that it serves
# how a flow was fitted, and which part of the data it must not see; the flow records them, and commands on a saved flow cannot change them
FITTED = (
    "flow", "metric", "align", "velocity", "coupling", "time", "prediction", "weighting", "iterations", "batch", "lr", "weight_decay",
    "ema", "part", "condition", "condition_dropout",
)  # fmt: skip
OF_THE_MAIN_JOB = ("sizes", "runs", "snapshots", "zoo", "heldout", "every")
SAMPLING = ("count", "solver", "steps", "start", "sharpness", "ask", "condition_strength", "guidance", "guiding", "recalibrate", "seed")
DENSITY = ("count", "solver", "steps", "probes", "sharpness", "seed")  # what density takes of these, and its own
BATCH = 32  # networks in a training step of the flow, if the zoo has as many
PARTS = ("test", "validation")
METRICS = ("inputs", "weights")
RECALIBRATE = ("auto", "never")
SAMPLER = {"solver": "euler", "steps": 100, "start": 0.0, "sharpness": 0.0, "condition_strength": 1.0, "recalibrate": "auto"}
TOLD = ("none", *CONDITIONS)  # what a flow may be told
BACK = {"solver": "rk4", "steps": 32}  # how density follows networks back to noise
COUNTS = {"density": 64}  # networks where the user gives no count; of the other commands MANY
MANY = 256

CHOICES: dict[str, Mapping | tuple] = {
    **training.CHOICES,
    "metric": METRICS,
    "solver": SOLVERS | ADAPTIVE,
    "task": TASKS,
    "network": NETWORKS,
    "activation": ACTIVATIONS,
    "norm": NORMS,
    "device": DEVICES,
    "part": PARTS,
    "recalibrate": RECALIBRATE,
    "condition": TOLD,
}

Number = tuple[type | tuple, Callable[[float], bool], str]
COUNT: Number = (int, lambda n: n >= 1, "a whole number of at least 1")
POSITIVE: Number = ((int, float), lambda n: 0 < n < float("inf"), "a number above 0")
NOT_NEGATIVE: Number = ((int, float), lambda n: 0 <= n < float("inf"), "a number of at least 0")
SEED: Number = (int, lambda n: 0 <= n < 2**32, "a whole number from 0 to 2^32 - 1")
SHARE: Number = (float, lambda n: 0 < n < 1, "a number between 0 and 1")
NUMBERS: dict[str, Number] = {
    "width": COUNT,
    "depth": COUNT,
    "runs": COUNT,
    "snapshots": COUNT,
    "heldout": SHARE,
    "iterations": COUNT,
    "batch": COUNT,
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "ema": ((int, float), lambda n: 0 <= n < 1, "a number from 0 to below 1"),
    "every": COUNT,
    "count": COUNT,
    "steps": COUNT,
    "start": ((int, float), lambda n: 0 <= n < 1, "a time from 0 to below 1"),
    "sharpness": NOT_NEGATIVE,
    "condition_dropout": ((int, float), lambda n: 0 <= n < 1, "a share from 0 to below 1"),
    "condition_strength": NOT_NEGATIVE,
    "ask": POSITIVE,
    "probes": (int, lambda n: n == 0 or n >= 2, "0, or a whole number of at least 2"),
    "guidance": NOT_NEGATIVE,
    "seed": SEED,
    "yardstick": (int, lambda n: n == 0 or n >= 2, "0 or a whole number of at least 2"),
}
# group of options: those that name a row of a table, and those that are numbers
GROUP_CHOICES: dict[str, dict[str, Mapping | tuple]] = {
    "zoo": {"origin": ORIGINS, "schedule": SCHEDULES},
    "guiding": {"at": PLACES, "unit": UNITS, "schedule": guidance.SCHEDULES, "yields": (False, True)},
    "tuning": {},
}
ZOO_NUMBERS: dict[str, Number] = {
    "epochs": COUNT,
    "batch": COUNT,
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "every": COUNT,
    "common": COUNT,
    "examples": COUNT,
    "seed": SEED,
}
GROUP_NUMBERS: dict[str, dict[str, Number]] = {
    "zoo": ZOO_NUMBERS,
    "guiding": {"repeats": COUNT, "examples": COUNT, "batch": COUNT},
    "tuning": {"steps": COUNT, "level": SHARE},
}
# options that may be None when they are checked
LEFT_OPEN = ("runs", "snapshots", "batch", "ask", "probes", *OF_NETWORKS, "zoo.common", "zoo.examples", "guiding.examples")


class InputError(SacredError):
    """Report a mistake that the user can correct, in one line. Only --debug shows the traceback."""

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


class Interrupted(SacredInterrupt, InputError):
    """Report that the user pressed Ctrl-C. Sacred then marks the run INTERRUPTED."""


@contextmanager
def plainly() -> Iterator[None]:
    """Show errors of the library about input, files and diverging losses in one line."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "Stopped. The same command goes on from the last checkpoint, if there was one. "
            "The option every is the number of iterations between checkpoints."
        ) from error
    except (ValueError, OSError, FloatingPointError) as error:
        raise InputError(str(error)) from error


def check_keys(updates: Iterable[str], known: Mapping) -> None:
    """Raise InputError if the key of a `key=value` is no option. The message names options with a similar name."""
    keys = {*known, *(f"{group}.{key}" for group, values in known.items() if isinstance(values, Mapping) for key in values)}
    for key in (update.partition("=")[0] for update in updates if "=" in update):
        if key not in keys:
            near = get_close_matches(key, keys, n=3)
            raise InputError(f"There is no option {key!r}. " + (f"Is it {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."))


def complete(config: Mapping, command: str, defaults: Mapping) -> dict:
    """Return the values that take the place of each None, so that config.json records all options.

    For the main job they are the task's defaults. For a command on a saved flow they are what the flow was fitted for, and how its networks
    were drawn. Raises ValueError or InputError for a wrong value. The message names the right ones.
    """
    for name in ("checkpoint", "cache"):
        if not isinstance(config[name], str) and not (name == "checkpoint" and config[name] is None):
            raise InputError(f"{name}={config[name]} must be a path, such as runs/3.")
    for name in ("zoo", "sizes", "guiding", "tuning"):
        if not isinstance(config[name], Mapping):
            raise InputError(f"{name} is a group of options, such as {name}.{next(iter(defaults[name]))}=...")
    asked = {name: value for name, value in config.items() if value != defaults[name]}
    if command == "main" and "checkpoint" in asked:
        raise InputError(f"checkpoint serves the commands {', '.join(FURTHER)}; the main job fits a flow of its own.")
    further = command in FURTHER
    for name, commands in ONLY.items():
        if name in asked and command not in (*commands, "print_config"):
            raise InputError(f"{name} serves the command{'s' * (len(commands) > 1)} {' and '.join(commands)}, and changes nothing here.")
    own = _of_the_checkpoint(config, command, asked) if further else with_defaults(config)
    sampler = SAMPLER | (sampled_with(config["checkpoint"], _inherited(command)) if further else {})
    sampler |= {"count": COUNTS.get(command, MANY)} | (BACK if command == "density" else {})
    own |= {name: value if config[name] is None else config[name] for name, value in sampler.items()}
    if command == "sharpen" and not own["sharpness"]:
        raise InputError("sharpen goes up from 0 to the sharpness that you give, such as sharpness=2.")
    if command == "posterior" and config["count"] == 1:
        raise InputError("posterior compares ensembles, and count=1 makes none. Draw at least 2 networks; powers of two use them all.")
    _check({**config, **own})
    _check_condition({**config, **own}, command)
    _check_of_density({**config, **own}, command)
    if not further and config["batch"] is None:
        own |= {"batch": min(BATCH, _seen_runs({**config, **own}) * own["snapshots"])}
    settings = flow_settings({**config, **own})
    training.check_config(settings)
    training.check_serves(settings["velocity"], len(architectures_of(settings)))
    return own | {"sizes": complete_sizes(settings["velocity"], settings["sizes"])}


def _inherited(command: str) -> list[str]:
    """Return the options of the sampler that a command takes over from the run of its flow."""
    if command == "density":
        return ["sharpness"]
    return [name for name in SAMPLER if not (name == "start" and command in ELSEWHERE)]  # a start leads to the flow's own units


def device_of(name: str) -> str:
    """Return where to compute: "cpu" or "cuda"."""
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise InputError("device=cuda is asked for, but torch finds no GPU here. Choose device=auto or device=cpu.")
    return "cuda" if gpu and name != "cpu" else "cpu"


def device_name(device: str) -> str:
    """Return the name of the device for the record of a run. A GPU has its own name there."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def zoo_settings(config: Mapping) -> dict:
    """Return the arguments of `train_zoo` that a completed configuration holds, except the seed."""
    recipe = {name: value for name, value in config["zoo"].items() if name != "seed"}
    return {"runs": config["runs"], "snapshots": config["snapshots"], **recipe}


def flow_settings(config: Mapping) -> dict:
    """Return the configuration that `prepare` takes, and what a saved flow must know of its network and its data."""
    sizes = {name: size for name, size in config["sizes"].items() if size is not None}
    return {name: config[name] for name in (*FITTED, "seed")} | network_settings(config) | {"sizes": sizes}


def _of_the_checkpoint(config: Mapping, command: str, asked: Mapping) -> dict:
    if config["checkpoint"] is None:
        raise InputError(f"{command} works on a saved flow: {command} with checkpoint=runs/3 (a run folder or a flow.safetensors).")
    made_for = described(config["checkpoint"])
    if missing := [name for name in (*NETWORK, *FITTED) if name not in made_for]:
        raise InputError(f"The flow of {config['checkpoint']} does not say its {', '.join(missing)}: experiments/run.py did not make it.")
    architectures = architectures_of(made_for)
    first = next(iter(architectures.values()))
    task, name = (first[option] if config[option] is None else config[option] for option in ("task", "network"))
    options = network_options(config if name != made_for["network"] else {**first, **network_options(config)})
    network = network_settings(whole_network(name, task, options))
    if [*architectures_of(network).values()] != [network]:
        raise InputError(f"{command} makes networks of one architecture at a time. Name one of {', '.join(architectures) or 'them'}.")
    label = next((label for label, own in architectures.items() if own == network), None)
    changed = [] if label is not None else [name for name in NETWORK if network[name] != first[name]]
    if command == "transfer" and not changed:
        raise InputError("transfer needs another network than the flow's own: hidden=[32], activation=tanh or task=fashion, for example.")
    if command not in ELSEWHERE and changed:
        own = f" ({', '.join(architectures)})" if len(architectures) > 1 else ""
        raise InputError(f"{command} serves the network that the flow was fitted to{own}; for another {' or '.join(changed)} use transfer.")
    if asked.get("start") and {*changed} - {"task"}:
        raise InputError("start leads to the zoo's centre, and another network has other units: for transfer leave start=0.")
    drawn = command == "evaluate" and samples_file(config["checkpoint"], label or "").exists()
    idle = SAMPLING if drawn else [name for name in SAMPLING if command == "density" and name not in DENSITY]
    for name in (*FITTED, *OF_THE_MAIN_JOB, *idle):
        if name in asked and not (name in made_for and asked[name] == made_for[name]):
            on_samples = "scores the saved samples" if drawn else "follows networks back to pure noise"
            what = on_samples if name in SAMPLING else "takes the flow as it was fitted"
            raise InputError(f"{command} {what}, so {_as_typed(name, asked[name])} would change nothing. Leave it out.")
    return network | {name: made_for[name] for name in FITTED}


def _as_typed(name: str, value) -> str:
    """Return an option as the user types it. A group becomes those of its options that are not None."""
    group = value if isinstance(value, Mapping) else None
    return f"{name}={value}" if group is None else " ".join(f"{name}.{key}={one}" for key, one in group.items() if one is not None)


def _check(config: Mapping) -> None:
    for architecture in architectures_of(config).values():
        _check_architecture({**config, **architecture})
    for option in ("widths", "depths"):
        if not _whole_numbers(config[option]) or not config[option]:
            raise InputError(f"{option}={config[option]} must be a list of whole numbers of at least 1, such as {option}=[1,2].")
    device_of(config["device"])
    for group in ("guiding", "tuning"):
        _check_group(config, group)
    if config["runs"] is not None:
        _check_group(config, "zoo")
        _check_zoo(config)


def _check_condition(config: Mapping, command: str) -> None:
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
        if not (config[option] is None and option in LEFT_OPEN):
            choose(option, str(config[option]), dict.fromkeys(table))
    for option, number in NUMBERS.items():
        _check_number(option, config[option], number)
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
        _check_number(f"{group}.{option}", config[group][option], number)


def _check_of_density(config: Mapping, command: str) -> None:
    """Raise InputError if another command is given what only density can use."""
    if command not in {"main", *FURTHER} - {"density"}:
        return
    if config["solver"] in ADAPTIVE:
        raise InputError(f"solver={config['solver']} serves the command density only. To draw networks choose {', '.join(SOLVERS)}.")
    if config["probes"] is not None:
        raise InputError(f"probes={config['probes']} serves the command density only. Leave it out.")


def _check_zoo(config: Mapping) -> None:
    runs, snapshots, zoo = config["runs"], config["snapshots"], config["zoo"]
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
    kept = _seen_runs(config)
    if kept < 2 or kept * snapshots < 3:
        raise InputError(
            f"runs={runs} with heldout={config['heldout']} leave {kept} to fit the flow on. That is too few to compare: train more runs."
        )
    if config["batch"] is not None and kept * snapshots < config["batch"]:
        raise InputError(
            f"batch={config['batch']} is more than the {kept * snapshots} networks that the flow is fitted to "
            f"({kept} of {runs} runs, {snapshots} snapshots each). Choose a smaller batch or more runs."
        )


def _seen_runs(config: Mapping) -> int:
    """Return how many runs of the zoo the flow is fitted to."""
    return config["runs"] - max(1, round(config["heldout"] * config["runs"]))


def _check_number(option: str, value, number: Number) -> None:
    kind, fits, words = number
    if value is None and option in LEFT_OPEN:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
        raise InputError(f"{option}={value} must be {words}.")
