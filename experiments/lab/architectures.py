"""Complete the choice of a network and its zoo by the defaults of the network and the task."""

from collections.abc import Mapping

from geoflow.choices import choose
from geoflow.training import AUTO
from geoflow.zoo.networks import NETWORKS, check_reads, options_of
from geoflow.zoo.recipes import zoo_defaults

STANDARD = "mlp"  # the network if the user chooses none
VELOCITY_OF = {"independent": "transformer", "shared": "identified"}  # origin of a zoo: the field that suits it
OF_NETWORKS = tuple(dict.fromkeys(option for network in NETWORKS.values() for option in network.options))  # each network has some
NETWORK = ("task", "network", *OF_NETWORKS)  # the options that decide which network is made


def with_defaults(config: Mapping) -> dict:
    """Return the options that decide network, zoo, metric and velocity. Those that were left open get their defaults.

    Raises ValueError for an unknown network, task or origin, for an option that the network does not have, and for data that it cannot
    read.
    """
    name = STANDARD if config["network"] is None else str(config["network"])
    task = choose("network", name, NETWORKS).task if config["task"] is None else str(config["task"])
    network = whole_network(name, task, network_options(config))
    zoo = config["zoo"]
    default = zoo_defaults(name, task, None if zoo["origin"] is None else str(zoo["origin"])) | {"seed": config["seed"]}
    own = {option: default[option] if config[option] is None else config[option] for option in ("runs", "snapshots")}
    own |= {"zoo": {option: default[option] if value is None else value for option, value in zoo.items()}}
    own |= {"velocity": VELOCITY_OF[default["origin"]] if config["velocity"] == AUTO else config["velocity"]}
    return network | own | {"metric": _metric(name, config["metric"])}


def whole_network(name: str, task: str, options: Mapping) -> dict:
    """Return the values of the options NETWORK. The network's own options are complete, and those of other networks are None."""
    check_reads(name, task)
    return {"task": task, "network": name} | dict.fromkeys(OF_NETWORKS) | options_of(name, options)


def network_settings(config: Mapping) -> dict:
    """Return the values of the options NETWORK as plain values. An option that the network does not have is None."""
    return {name: list(value) if isinstance(value := config[name], tuple) else value for name in NETWORK}


def network_options(config: Mapping) -> dict:
    """Return the options that the network of a completed configuration has."""
    return {name: config[name] for name in OF_NETWORKS if config[name] is not None}


def _metric(network: str, asked: str | None) -> str:
    numbers = NETWORKS[network].form != "tokens"
    if asked == "inputs" and not numbers:
        raise ValueError(f"metric=inputs measures weights on numbers, and network={network} reads sentences. Choose metric=weights.")
    return asked or ("inputs" if numbers else "weights")
