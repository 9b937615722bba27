"""List the networks of the experiments: what they read, their options, and how their zoos train fastest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from torch import nn

from geoflow.choices import choose
from geoflow.zoo.networks.convolutional import ResNet, cnn
from geoflow.zoo.networks.mlp import ResidualMLP, mlp
from geoflow.zoo.networks.published import PLACES, WORDS, bert_base, resnet18, vit_small
from geoflow.zoo.networks.transformers import Bert, ViT
from geoflow.zoo.tasks import FORMS, TASKS, Task

__all__ = ["NETWORKS", "Network", "build_network", "check_reads", "mlp", "options_of", "together"]

# Weights. vmap saves larger networks no time: resnet 14x14 of 236,190, batches of 64, 147 ms per run and step for 4 runs, and 64 alone.
LARGE = 2**17


@dataclass(frozen=True)
class Network:
    """A row of NETWORKS.

    `form` is the form of data that the network reads, and `make` builds it for a task. `options` holds its options with their defaults, and
    `task` is its usual task. `sized` gives the options of a network of some width and depth. A batch of one run has some count of input
    numbers. Up to `vmapped` of them, zoos train `crowd` runs at once by vmap, and beyond that one run after the other. vmap saves calls,
    but what does not fit the CPU's caches costs more. `words` is the size of the vocabulary for data that name no words, or 0 if the
    network needs data that do.
    """

    form: str
    make: Callable[..., nn.Module]
    options: Mapping[str, object]
    task: str
    vmapped: float
    crowd: int = 16
    words: int = 0
    sized: Callable[[int, int], Mapping[str, object]] = lambda width, depth: {"width": width, "depth": depth}


def _of_features(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda task, **options: make(task.features, classes=task.units, **options)


def _of_images(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda task, **options: make(tuple(task.x_train.shape[1:]), task.units, **options)


def _of_tokens(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda task, **options: make(len(task.vocabulary), task.features, task.units, **options)


def _of_texts(task: Task, **options) -> nn.Module:
    """Return a network for the words of the task, or for tokens of the published vocabulary."""
    if task.vocabulary:
        return bert_base(len(task.vocabulary), task.features, task.units, **options)
    highest = max(int(part.max()) for part in (task.x_train, task.x_test))
    if highest >= WORDS or task.features > PLACES:
        raise ValueError(
            f"network=bert_base has {WORDS} words and texts of at most {PLACES} tokens, and {task.name} has the token {highest} and texts "
            f"of {task.features}. Cut the texts, or choose network=my_networks.py:build."
        )
    return bert_base(WORDS, PLACES, task.units, **options)


def _wide(width: int, depth: int) -> dict[str, int]:
    """Networks of one depth have no such option, and are told so for others."""
    return {"width": width} if depth == 1 else {"width": width, "depth": depth}


# Milliseconds per run and step on one thread of a CPU, 16 runs by vmap / one alone, with batches of 32 and of 128:
# mlp 64-10-10 .12 / .41 and .17 / .49; residual_mlp .41 / .91 and .47 / 1.09; cnn 14x14 2.2 / 3.3 and 8.5 / 6.2; resnet 14x14 4.6 / 8.2
# and 18.6 / 22.3, 8x8 2.3 / 6.1 and 7.1 / 10.6; vit 14x14 9.2 / 8.0 and 58.6 / 23.9, 8x8 3.2 / 4.8 and 10.7 / 11.3; bert 5.8 / 4.8 and
# 21.2 / 16.2.
NETWORKS: dict[str, Network] = {
    "mlp": Network(
        "table",
        _of_features(mlp),
        {"hidden": [16, 16], "activation": "relu", "norm": "none"},
        "breast_cancer",
        vmapped=inf,
        crowd=256,
        sized=lambda width, depth: {"hidden": [width] * depth},
    ),
    "residual_mlp": Network("table", _of_features(ResidualMLP), {"width": 16, "depth": 2}, "digits", vmapped=inf, crowd=256),
    "cnn": Network("image", _of_images(cnn), {"width": 8}, "mnist14", vmapped=64 * 14 * 14, sized=_wide),
    "resnet": Network("image", _of_images(ResNet), {"width": 4, "depth": 1}, "mnist14", vmapped=inf),
    "vit": Network("image", _of_images(ViT), {"width": 16, "depth": 2}, "mnist14", vmapped=128 * 8 * 8),
    "bert": Network("tokens", _of_tokens(Bert), {"width": 16, "depth": 2}, "sst2", vmapped=0),
    "resnet18": Network("image", _of_images(resnet18), {"width": 64, "depth": 2}, "cifar10", vmapped=0, crowd=1),
    "vit_small": Network("image", _of_images(vit_small), {"width": 384, "depth": 12}, "cifar10", vmapped=0, crowd=1),
    "bert_base": Network("tokens", _of_texts, {"width": 768, "depth": 12}, "sst2", vmapped=0, crowd=1, words=WORDS),
}


def build_network(name: str, task: Task, options: Mapping) -> nn.Module:
    """Build the network `name` of NETWORKS for a task, with new initial weights.

    Options that are not given have their defaults. Raises ValueError for an unknown network, for an option that it does not have, and for
    data that it cannot read.

    >>> from geoflow.zoo.tasks import load_task
    >>> build_network("residual_mlp", load_task("iris"), {"width": 8}).head
    Linear(in_features=8, out_features=3, bias=True)
    """
    network = choose("network", name, NETWORKS)
    if task.name in TASKS:  # and no data of the user's own
        check_reads(name, task.name)
    if task.form != network.form:
        raise ValueError(
            f"network={name} reads the form {network.form!r}, and {task.name} was loaded as {task.form!r}. Load it as {network.form!r}."
        )
    complete = options_of(name, options)
    sizes = {option: size for option, size in complete.items() if option in ("width", "depth")}
    if sizes and min(sizes.values()) < 1:
        raise ValueError(f"{' and '.join(f'{option}={size}' for option, size in sizes.items())} must be at least 1.")
    return network.make(task, **complete)


def options_of(name: str, given: Mapping) -> dict:
    """Return all options of the network `name`: the given ones, and defaults for the others.

    Raises ValueError for an option that the network does not have.
    """
    options = choose("network", name, NETWORKS).options
    if foreign := [f"{option}={value}" for option, value in given.items() if option not in options]:
        raise ValueError(f"network={name} has no {', '.join(foreign)}. Its options are {', '.join(options)}.")
    return {**options, **given}


def check_reads(name: str, task: str) -> None:
    """Raise ValueError if the task has no inputs of the form that the network reads.

    Also raises it for an unknown network or task.
    """
    form, forms = choose("network", name, NETWORKS).form, choose("task", task, TASKS).forms
    if form not in forms:
        tasks = ", ".join(fitting for fitting, source in TASKS.items() if form in source.forms)
        others = ", ".join(fitting for fitting, network in NETWORKS.items() if network.form in forms)
        raise ValueError(
            f"network={name} reads {FORMS[form]}, and task={task} has none. Tasks for {name}: {tasks}. Networks for {task}: {others}."
        )


def together(name: str, task: Task, batch: int, device: str, weights: int) -> int:
    """Return how many runs of a zoo of networks with so many `weights` train fastest together. 1 means one after the other."""
    network = NETWORKS[name]
    if device != "cpu":
        return 16 * network.crowd
    return network.crowd if batch * task.x_train[0].numel() <= network.vmapped and weights <= LARGE else 1
