"""Take the network and the data of a run from files of the user: `network=my_networks.py:build task=my_data.npz`."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.earlier import still_describes
from geoflow.files import file_digest
from geoflow.outputs.reading import reader
from geoflow.spec import NetworkSpec
from geoflow.states import shapes_of
from geoflow.zoo.builders import answer, builder_of
from geoflow.zoo.networks import NETWORKS, Network, build_network, check_reads, options_of
from geoflow.zoo.own import read_task
from geoflow.zoo.recipes import usual_recipe, zoo_defaults
from geoflow.zoo.tasks import TASKS, Task, load_task

EXAMPLES = 2  # in the batch that a network is tried with
NEEDS = {  # kind of outputs: what a network for it gives
    "classes": "it has {count} classes, by the largest number in y. The array names may name more.",
    "gaussian": "a mean and a log-variance for each of its {count} real targets. If y holds classes, write whole numbers.",
}


def is_data(task: object) -> bool:
    """Return whether task=... names a file. No row of TASKS has a dot or a slash in its name."""
    return isinstance(task, str) and ("." in task or os.sep in task)


def is_function(network: object) -> bool:
    """Return whether network=... names a function in a file, such as my_networks.py:build."""
    return isinstance(network, str) and (":" in network or "." in network or os.sep in network)


def absolute(path: str) -> str:
    """Return a path, or a pattern of paths, that means the same in every folder."""
    return os.path.abspath(Path(path).expanduser())


def in_every_folder(updates: Mapping) -> dict:
    """Return options as the user gave them, with absolute paths in place of those that hold in the current folder only."""
    found = {name: absolute(updates[name]) for name, own in (("task", is_data), ("network", is_function)) if own(updates.get(name))}
    zoo = updates.get("zoo")
    if isinstance(zoo, Mapping) and isinstance(zoo.get("folder"), str):
        found["zoo"] = {**zoo, "folder": absolute(zoo["folder"])}
    return {**updates, **found}


def row_of(network: str) -> Network:
    """Return the row of NETWORKS. A function of the user is a row without options."""
    if not is_function(network):
        return choose("network", network, NETWORKS)
    return Network("any", lambda task: builder_of(network)(), {}, "", vmapped=0, crowd=1)


def usual_task(network: str) -> str:
    """Return the task of a network where the user names none. Raises ValueError for a function of the user."""
    if is_function(network):
        raise ValueError(f"network={network} needs data: task=my_data.npz, or one of {', '.join(TASKS)}.")
    return row_of(network).task


def check_pair(network: str, task: str) -> None:
    """Raise ValueError for an unknown network or task, and for data in another form than the network reads, as far as names tell."""
    if not is_data(task):
        choose("task", task, TASKS)
    row = row_of(network)
    if not (is_data(task) or is_function(network)):
        check_reads(network, task)
    if is_data(task) and row.form == "tokens" and not row.words:
        raise ValueError(f"network={network} reads words of a vocabulary, and task={task} has none. Choose network=my_networks.py:build.")


def complete_options(network: str, given: Mapping) -> dict:
    """Return all options of a network: the given ones, and defaults for the others. A function of the user has none."""
    if not is_function(network):
        return options_of(network, given)
    if given:
        named = " ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"network={network} is a function without arguments, so {named} would change nothing. Write another function.")
    return {}


def recipe_for(network: str, task: str, origin: str | None) -> Mapping:
    """Return how a zoo is trained by default: by the recipe of the network and the task, or by the usual one."""
    return usual_recipe(origin) if unmeasured(network, task) else zoo_defaults(network, task, origin)


def unmeasured(network: str, task: str) -> bool:
    """Return whether a network has no recipe of its own for a task, because one of them is the user's."""
    return is_function(network) or is_data(task)


def task_of(task: str, network: str, seed: int) -> Task:
    """Return the data in the form that the network reads. A function of the user reads the first form that its network takes.

    Raises ValueError if the network does not take the examples, or gives another number of outputs than the targets need.
    """
    if not is_function(network):
        form = row_of(network).form
        return read_task(task, form) if is_data(task) else load_task(task, seed, form=form)
    if is_data(task):
        check_fits(network, found := read_task(task))
        return found
    refused = []
    for form in TASKS[task].forms:
        try:
            check_fits(network, found := load_task(task, seed, form=form))
            return found
        except ValueError as error:
            refused.append(str(error))
    raise ValueError(" ".join(refused))


def check_fits(reference: str, task: Task) -> None:
    """Raise ValueError if the network of a function does not take the examples of a task, or has other outputs than it needs."""
    builder = builder_of(reference)
    who, network = f"network={builder}", builder()
    for name, part in (("x_train", task.x_train), ("x_test", task.x_test)):
        x = _extremes(part)
        try:
            returned = answer(network, x, who)
            units = reader(returned, len(x), who=who)(returned).shape[1]
        except ValueError as error:
            raise ValueError(f"{error} The data are {name} of {task.name}.") from error
    if not task.accepts(units):
        needs = NEEDS[task.outputs].format(count=task.classes or len(task.targets))
        raise ValueError(f"{who} gives {units} outputs, and {task.name} needs {task.units}: {needs}")


def _extremes(x: Shaped[Tensor, "examples ..."]) -> Shaped[Tensor, "some ..."]:
    """Return EXAMPLES examples. Of tokens, they hold the least and the greatest number."""
    if x.is_floating_point():
        return x[:EXAMPLES]
    rows = x.flatten(1)
    return x[torch.stack([rows.amin(1).argmin(), rows.amax(1).argmax()])]


def check_trains(reference: str, task: Task) -> None:
    """Raise ValueError if the outputs are no tensor [examples, units], as the training of a zoo takes them."""
    builder = builder_of(reference)
    returned = answer(builder(), task.x_train[:EXAMPLES], str(builder))
    if not isinstance(returned, Tensor) or returned.ndim != 2:
        form = list(returned.shape) if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
        raise ValueError(
            f"network={builder} gives {form} for {EXAMPLES} examples, and a zoo is trained on outputs [examples, units]. Return these, or "
            "train the networks yourself and name their folder: zoo.folder=..."
        )


def network_of(network: str, task: Task, options: Mapping) -> nn.Module:
    """Return a new network for a task."""
    return builder_of(network)() if is_function(network) else build_network(network, task, options)


def source_of(network: str) -> str:
    """Return what tells a network from another of the same print: the digest of its file, and its function. It is empty for NETWORKS."""
    return f"{(builder := builder_of(network)).digest}:{builder.name}" if is_function(network) else ""


def title_of(task: object) -> object:
    """Return what reports call a task: the name of a file without its folder."""
    return Path(task).name if is_data(task) else task


def files_of(config: Mapping) -> dict:
    """Return what a flow records of the user's files: the sha256 of each, under "files". It is empty where there are none."""
    paths = [config["task"]] if is_data(config["task"]) else []
    if is_function(config["network"]):
        paths.append(config["network"].rpartition(":")[0])
    return {"files": {path: file_digest(path) for path in paths}} if paths else {}


def changed_files(made_for: Mapping) -> list[str]:
    """Return the files that differ from those that a flow was fitted with. Those that are gone are left out: not all commands need them."""
    return [path for path, digest in made_for.get("files", {}).items() if Path(path).is_file() and file_digest(path) != digest]


def check_table(network: str, found: NetworkSpec, fitted: NetworkSpec) -> None:
    """Raise ValueError if a function now builds another network than that which a flow was fitted to."""
    if still_describes(fitted, found):
        return
    now, then = shapes_of(found), shapes_of(fitted)
    first = next((name for name in {**then, **now} if now.get(name) != then.get(name)), None)
    what = "its layers are joined in another way" if first is None else f"{first!r} has shape {now.get(first)}, and had {then.get(first)}"
    raise ValueError(
        f"{network} no longer builds the network that the flow was fitted to: {what}. Restore the file, or write a new function beside the "
        "old one and use transfer."
    )
