"""Check the settings of a flow before it is trained."""

import math
from collections.abc import Mapping

from geoflow.batches import TIMES
from geoflow.checkpoint import OPTIMIZERS
from geoflow.choices import choose
from geoflow.choosing import AUTO, IN_COMPONENTS
from geoflow.conditions import DROPOUT
from geoflow.coordinates import FLOWS
from geoflow.couplings import COUPLINGS
from geoflow.flow import PLAIN
from geoflow.latent import LATENTS, NONE
from geoflow.latent.pca import check_components
from geoflow.targets import PREDICTIONS, WEIGHTINGS
from geoflow.velocity import VELOCITIES, check_dropout, check_latent, complete_sizes

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
}


def check_config(config: Mapping) -> None:
    """Raise ValueError if the named arguments of `fit` hold an unknown name or contradict each other."""
    config = PLAIN | dict(config)
    for option, table in CHOICES.items():
        choose(option, config[option], table)
    check_latent_options(config)
    if config["velocity"] != AUTO:
        complete_sizes(config["velocity"], config["sizes"])
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
