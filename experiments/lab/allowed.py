"""Say which values every option may have, and which commands take it."""

from collections.abc import Callable, Mapping

from geoflow import guidance, settings
from geoflow.density import ADAPTIVE
from geoflow.guidance import PLACES, UNITS
from geoflow.sampling import SOLVERS
from geoflow.zoo.initial import INITS
from geoflow.zoo.networks import NETWORKS
from geoflow.zoo.networks.mlp import ACTIVATIONS, NORMS
from geoflow.zoo.recipes import ORIGINS
from geoflow.zoo.tasks import TASKS
from geoflow.zoo.train import SCHEDULES
from lab.architectures import OF_NETWORKS
from lab.conditions import CONDITIONS

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
    "ema", "part", "condition", "condition_dropout", "latent", "components", "spread", "pool", "jitter", "dropout", "optimizer",
    "recompute",
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
BACK = {"solver": "rk4", "steps": 32, "sharpness": 0.0}  # how density follows networks back to noise
COUNTS = {"density": 64}  # networks where the user gives no count; of the other commands MANY
MANY = 256

CHOICES: dict[str, Mapping | tuple] = {
    **settings.CHOICES,
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
    "components": ((int, float), lambda n: n >= 1 if type(n) is int else 0 < n < 1, "a whole number of at least 1, or a share such as .99"),
    "spread": POSITIVE,
    "pool": COUNT,
    "jitter": NOT_NEGATIVE,
    "dropout": ((int, float), lambda n: 0 <= n < 1, "a share from 0 to below 1"),
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
    "zoo": {"origin": ORIGINS, "schedule": SCHEDULES, "init": INITS},
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
LEFT_OPEN = (
    "runs", "snapshots", "batch", "components", "pool", "ask", "probes", *OF_NETWORKS, "zoo.common", "zoo.examples", "guiding.examples",
)  # fmt: skip
