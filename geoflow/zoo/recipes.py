"""List the settings with which the zoos of each network and task are trained by default."""

from collections.abc import Mapping

from geoflow.choices import choose

ORIGINS = {"independent": "each run begins with its own initial weights", "shared": "all runs begin with one network"}

# network: task: origin (the first is the default): arguments of load_zoo. Learning rate, weight decay and epochs gave the lowest mean NLL
# of single networks on a validation part of the training data. The test part was not used. mlp was measured with 30-16-16-2, 64-10-10,
# 4-16-3, 13-16-3 and, on diabetes, 10-16-16-2. At 784-10-10 a decay of .1 has the lowest NLL (.207). We take .03 (.219), because less decay
# keeps the networks more different: an ensemble of 64 has accuracy .955 instead of .952.
_EVERY_RUN = {"snapshots": 1, "every": 1, "common": None, "examples": None, "init": "torch"}
_ROWS = _EVERY_RUN | {"lr": 1e-2, "weight_decay": 0.1, "schedule": "cosine"}
_PIXELS = _ROWS | {"runs": 4096, "epochs": 10, "batch": 128, "lr": 2e-2, "weight_decay": 0.03}
_PERCEPTRONS = {
    "breast_cancer": {
        "independent": _ROWS | {"runs": 512, "epochs": 20, "batch": 32, "lr": 3e-3, "weight_decay": 0.3, "snapshots": 2, "every": 2}
    },
    "digits": {"independent": _ROWS | {"runs": 2048, "epochs": 40, "batch": 32, "weight_decay": 0.15}},
    "iris": {"independent": _ROWS | {"runs": 512, "epochs": 80, "batch": 16, "snapshots": 2, "every": 4}},
    "diabetes": {"independent": _ROWS | {"runs": 512, "epochs": 20, "batch": 32, "weight_decay": 3.0, "snapshots": 2, "every": 2}},
    "wine": {"independent": _ROWS | {"runs": 512, "epochs": 40, "batch": 16, "snapshots": 2, "every": 4}},
} | {name: {"independent": _PIXELS} for name in ("mnist", "fashion", "mnist14", "fashion14")}

# In these recipes the learning rate falls with every step, down to 0. A run sees only a part of large data, so it takes seconds. The common
# training has a constant learning rate, and the runs that begin there lower it.
_STEPS = _EVERY_RUN | {"schedule": "cosine_by_step", "batch": 64, "weight_decay": 0.05, "epochs": 1}
_CNN = {"independent": _STEPS | {"runs": 1170, "epochs": 3, "lr": 5e-3, "examples": 20000}}
_RESNET = {
    "shared": _STEPS | {"runs": 288, "lr": 1e-2, "common": 4, "examples": 20000},
    "independent": _STEPS | {"runs": 576, "epochs": 3, "lr": 1e-2, "examples": 20000},
}
_VIT = {
    "shared": _STEPS | {"runs": 288, "lr": 5e-3, "common": 10, "examples": 20000},
    "independent": _STEPS | {"runs": 576, "epochs": 10, "lr": 5e-3, "examples": 20000},
}
_LARGE = ("mnist14", "fashion14", "mnist", "fashion", "cifar10")

# Of the networks of published shapes nothing was measured here. So many runs leave the flow 100, as in DeepWeightFlow.
_PUBLISHED = {"independent": _STEPS | {"runs": 114, "epochs": 30, "batch": 128, "lr": 1e-3}}
RECIPES: dict[str, dict[str, dict[str, dict]]] = {
    "mlp": _PERCEPTRONS,
    "residual_mlp": _PERCEPTRONS | {"digits": {"independent": _ROWS | {"runs": 2048, "epochs": 30, "batch": 64}}},
    "cnn": dict.fromkeys(_LARGE, _CNN)
    | {"digits": {"independent": _STEPS | {"runs": 1170, "epochs": 20, "lr": 5e-3, "weight_decay": 0.1}}},
    "resnet": dict.fromkeys(_LARGE, _RESNET)
    | {"digits": {"independent": _STEPS | {"runs": 576, "epochs": 20, "lr": 5e-3, "weight_decay": 0.1}}},
    "vit": dict.fromkeys(_LARGE, _VIT)
    | {"digits": {"independent": _STEPS | {"runs": 576, "epochs": 25, "batch": 32, "lr": 5e-3, "weight_decay": 0.1}}},
    "bert": {"sst2": {"shared": _STEPS | {"runs": 288, "lr": 1e-3, "weight_decay": 1.0, "common": 1}}},
    "resnet18": dict.fromkeys((*_LARGE, "digits"), _PUBLISHED),
    "vit_small": dict.fromkeys((*_LARGE, "digits"), _PUBLISHED),
    "bert_base": {"sst2": {"shared": _STEPS | {"runs": 114, "lr": 1e-4, "common": 1}}},
}

# For networks and data of which nothing was measured. Adam's usual rate suits most networks, and the rate falls to 0 at the end.
USUAL = {"independent": _STEPS | {"runs": 256, "lr": 3e-3, "epochs": 20}}


def zoo_defaults(network: str, task: str, origin: str | None = None) -> Mapping:
    """Return the settings of `load_zoo` for the zoos of a network on a task.

    `origin` says where the runs begin: "independent" gives each run its own initial weights, "shared" gives all runs one common start. By
    default it is the first that the recipe has. If a recipe has one origin only, the other is derived with the least change. A common start
    is then trained as long as a run. Without a common start, a run takes as long as both.

    Raises ValueError for a network or task that has no recipe.

    >>> zoo_defaults("resnet", "mnist14")["origin"], zoo_defaults("resnet", "digits")["origin"]
    ('shared', 'independent')
    """
    return _by_origin(choose(f"task of {network}", task, choose("network", network, RECIPES)), origin)


def usual_recipe(origin: str | None = None) -> Mapping:
    """Return settings of `load_zoo` for a network, or data, without a recipe of its own. They are a guess, and `origin` is as above.

    >>> usual_recipe()["epochs"], usual_recipe("shared")["common"]
    (20, 20)
    """
    return _by_origin(USUAL, origin)


def _by_origin(recipes: Mapping[str, Mapping], origin: str | None) -> Mapping:
    origin = next(iter(recipes)) if origin is None else origin
    choose("zoo.origin", origin, ORIGINS)
    if origin in recipes:
        return recipes[origin] | {"origin": origin}
    (recipe,) = recipes.values()
    changed = {"common": recipe["epochs"]} if origin == "shared" else {"common": None, "epochs": recipe["epochs"] + recipe["common"]}
    return recipe | changed | {"origin": origin}
