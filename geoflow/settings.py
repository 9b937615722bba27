"""Check the settings of a flow before it is trained."""

import math
from collections.abc import Mapping, Sequence

import torch

from geoflow.batches import TIMES
from geoflow.checkpoint import COPIES, OPTIMIZERS
from geoflow.choices import choose
from geoflow.choosing import AUTO, IN_COMPONENTS
from geoflow.conditions import DROPOUT
from geoflow.coordinates import FLOWS
from geoflow.couplings import COUPLINGS
from geoflow.flow import PLAIN
from geoflow.graph import Graph
from geoflow.latent import LATENTS, NONE
from geoflow.latent.pca import check_components
from geoflow.memory import check_free
from geoflow.targets import PREDICTIONS, WEIGHTINGS
from geoflow.velocity import RECOMPUTE, VELOCITIES, check_dropout, check_latent, check_recompute, complete_sizes, count_parameters

# arguments of `fit` that name a row of a table
CHOICES: dict[str, Mapping] = {
    "flow": FLOWS,
    "velocity": VELOCITIES | {AUTO: None},
    "coupling": COUPLINGS,
    "time": TIMES,
    "prediction": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "latent": LATENTS,
    "optimizer": OPTIMIZERS,
    "recompute": RECOMPUTE,
}


def check_config(config: Mapping) -> None:
    """Raise ValueError if the named arguments of `fit` hold an unknown name or contradict each other."""
    config = PLAIN | dict(config)
    for option, table in CHOICES.items():
        choose(option, config[option], table)
    check_latent_options(config)
    if config["velocity"] != AUTO:
        complete_sizes(config["velocity"], config["sizes"])
        check_recompute(config["velocity"], config["recompute"])
    if not isinstance(config["align"], bool):
        raise ValueError(f"align={config['align']} must be True or False.")
    for option in ("iterations", "batch"):
        if config[option] < 1:
            raise ValueError(f"{option}={config[option]} must be at least 1.")
    if not (config["lr"] > 0 and config["weight_decay"] >= 0 and 0 <= config["ema"] < 1):
        numbers = {name: config[name] for name in ("lr", "weight_decay", "ema")}
        raise ValueError(f"{numbers}: lr must be above 0, weight_decay at least 0, ema from 0 to below 1.")
    if not 0 <= config.get("condition_dropout", DROPOUT) < 1:
        raise ValueError(f"condition_dropout={config['condition_dropout']} must be a share from 0 to below 1.")
    if config["coupling"] == "equivariant_ot" and config["velocity"] != AUTO and VELOCITIES[config["velocity"]].knows_units:
        raise ValueError(
            f"coupling=equivariant_ot reorders the units of the noise, and velocity={config['velocity']} tells units by their place. "
            "Choose velocity=transformer, or coupling=independent or ot."
        )


def check_latent_options(config: Mapping) -> None:
    """Raise ValueError for components without a latent space, for a field that reads units there, and for impossible noise."""
    velocity = IN_COMPONENTS[0] if config["velocity"] == AUTO and config["latent"] != NONE else config["velocity"]
    check_components(config["components"])
    if config["components"] is not None and config["latent"] == NONE:
        raise ValueError(f"components={config['components']} serves latent=pca, and latent=none has all coordinates. Leave it out.")
    if velocity != AUTO:
        check_latent(velocity, config["latent"])
    check_dropout(velocity, config["dropout"])
    if not (0 < config["spread"] < math.inf and 0 <= config["jitter"] < math.inf):
        raise ValueError(f"spread={config['spread']} must be above 0, and jitter={config['jitter']} at least 0.")
    if config["pool"] is not None and (not isinstance(config["pool"], int) or config["pool"] < 1):
        raise ValueError(f"pool={config['pool']} must be a whole number of at least 1, or None for new noise in every step.")


def check_memory(config: Mapping, graphs: Sequence[Graph], device: str | torch.device = "cpu") -> None:
    """Raise ValueError if the field's parameters, with all that training keeps of each, do not fit into the memory of the device.

    `graphs` are those that the field reads. The field itself is made on the CPU.
    """
    velocity, sizes = config["velocity"], complete_sizes(config["velocity"], config["sizes"])
    parameters, size = count_parameters(graphs, velocity, sizes), max(graph.size for graph in graphs)
    words = " ".join(f"sizes.{name}={value}" for name, value in sizes.items())
    what = f"velocity={velocity} with {words} has {parameters:,} parameters for networks of {size:,} coordinates. Training it"
    cure = "Choose smaller sizes."
    if not VELOCITIES[velocity].reads_units:
        cure = (
            "Choose latent=pca, where the field has the size of the zoo and not that of its networks, or velocity=transformer, whose size "
            "does not grow with them."
        )
    each = parameters * torch.get_default_dtype().itemsize
    check_free(COPIES * each, what, cure, device)
    if torch.device(device).type != "cpu":
        check_free(each, f"{what.removesuffix('Training it')}Making it", cure)
