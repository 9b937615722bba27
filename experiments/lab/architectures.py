"""Complete the choice of one or several networks and their zoos by the defaults of the network and the task."""

from collections.abc import Mapping

from geoflow.choosing import AUTO, IN_COMPONENTS, SEVERAL
from geoflow.latent import NONE
from geoflow.zoo.networks import NETWORKS
from lab.own import check_pair, complete_options, is_data, is_function, recipe_for, row_of, task_of, usual_task

STANDARD = "mlp"  # the network if the user chooses none
VELOCITY_OF = {"independent": "transformer", "shared": "identified"}  # origin of a zoo: the field that suits it
OF_NETWORKS = tuple(dict.fromkeys(option for network in NETWORKS.values() for option in network.options))  # each network has some
NETWORK = ("task", "network", *OF_NETWORKS)  # the options that decide which network is made


def with_defaults(config: Mapping) -> dict:
    """Return the options that decide network, zoo, metric and velocity. Those that were left open get their defaults.

    A zoo that is read from files has no recipe, and leaves `velocity` as it is.

    Raises ValueError for an unknown network, task or origin, for an option that the network does not have, and for data that it cannot
    read. Of several tasks it refuses those whose zoos are trained in different ways.
    """
    name = STANDARD if config["network"] is None else str(config["network"])
    task = usual_task(name) if config["task"] is None else config["task"]
    network = whole_network(name, task, network_options(config))
    several = len(architectures_of(network)) > 1
    zoo, measured = config["zoo"], {"metric": _metric(name, tasks_of(network), config["metric"])}
    if zoo["folder"] is not None:
        if several:
            raise ValueError(f"zoo.folder holds networks of one kind, and {' and '.join(architectures_of(network))} are asked for.")
        return network | measured
    origin = None if zoo["origin"] is None else str(zoo["origin"])
    recipes = (dict(recipe_for(name, one, origin)) for one in tasks_of(network))
    default, *others = (dict.fromkeys([*recipe, *zoo]) | recipe | {"seed": config["seed"]} for recipe in recipes)
    given = {**{option: config[option] for option in ("runs", "snapshots")}, **zoo}
    if differ := [option for option in default if given[option] is None and any(other[option] != default[option] for other in others)]:
        raise ValueError(f"The tasks {', '.join(tasks_of(network))} have zoos of different {', '.join(differ)}. Set these options.")
    own = {option: default[option] if config[option] is None else config[option] for option in ("runs", "snapshots")}
    own |= {"zoo": {option: default[option] if value is None else value for option, value in zoo.items()}}
    fitting = SEVERAL[0] if several else VELOCITY_OF[default["origin"]] if config["latent"] == NONE else IN_COMPONENTS[0]
    own |= {"velocity": fitting if config["velocity"] == AUTO else config["velocity"]}
    return network | own | measured


def tasks_of(config: Mapping) -> list[str]:
    """Return the names of the task, or of the several tasks, of a configuration."""
    return ([] if is_data(config["task"]) else _values(_plain(config["task"]), "")) or [str(config["task"])]


def whole_network(name: str, task: str | list[str], options: Mapping) -> dict:
    """Return the values of the options NETWORK. The network's own options are complete, and those of other networks are None."""
    tasks = tasks_of({"task": task})
    if len(tasks) > 1 and (files := [one for one in tasks if is_data(one)]):
        raise ValueError(f"A flow for several tasks takes those of the library, and no file such as {files[0]}. Choose one.")
    for one in tasks:
        check_pair(name, one)
    return {"task": task, "network": name} | dict.fromkeys(OF_NETWORKS) | complete_options(name, options)


def architectures_of(config: Mapping) -> dict[str, dict]:
    """Return the options NETWORK of each architecture and task of a configuration, by labels such as hidden=[6]. A single one has "".

    An option names several architectures where it is a list of its usual values, such as hidden=[[6],[10]]. Names stand behind each other,
    as norm=none,batch. With several tasks, each has all architectures. Raises ValueError if options list different numbers of values, or
    one architecture or task twice.
    """
    defaults, plain = row_of(config["network"]).options, network_settings(config)
    listed = {option: values for option in defaults if (values := _values(plain[option], defaults[option]))}
    if len({len(values) for values in listed.values()}) > 1:
        counts = " and ".join(f"{option} lists {len(values)}" for option, values in listed.items())
        raise ValueError(f"{counts} values: options that list several architectures must list as many of them.")
    rows = [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=True)] or [{}]
    if len(tasks := tasks_of(plain)) > 1:
        rows = [{"task": task, **row} for task in tasks for row in rows]
    labels = [label_of(row) if len(rows) > 1 else "" for row in rows]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{twice[0]} is listed twice. Name it once.")
    return {label: plain | row for label, row in zip(labels, rows, strict=True)}


def own_label(made_for: Mapping, config: Mapping) -> str | None:
    """Return the label of the configuration's network among the architectures that a flow was fitted to, or None if it is none of them."""
    wanted = network_settings(config)
    return next((label for label, own in architectures_of(made_for).items() if own == wanted), None)


def label_of(options: Mapping) -> str:
    """Return options as one types them, without spaces: a name for an architecture, and for its folder."""
    return ",".join(f"{option}={value}".replace(" ", "") for option, value in options.items())


def sized_network(config: Mapping, width: int, depth: int) -> dict:
    """Return the options NETWORK of the configuration's kind of network, with this width and depth.

    Raises ValueError if this kind has no such size.
    """
    options = {**network_options(config), **row_of(config["network"]).sized(width, depth)}
    return network_settings(whole_network(config["network"], config["task"], options))


def _values(value: object, default: object) -> list:
    """Return the values that an option lists, each of the kind of its default. Return none if it is a single one."""
    if isinstance(default, str):
        return value.split(",") if isinstance(value, str) and "," in value else value if isinstance(value, list) else []
    if isinstance(default, list):
        return value if isinstance(value, list) and all(isinstance(one, list) for one in value) else []
    return value if isinstance(value, list) else []


def network_settings(config: Mapping) -> dict:
    """Return the values of the options NETWORK as plain values. An option that the network does not have is None."""
    return {name: _plain(config[name]) for name in NETWORK}


def _plain(value: object) -> object:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def network_options(config: Mapping) -> dict:
    """Return the options that the network of a completed configuration has."""
    return {name: config[name] for name in OF_NETWORKS if config[name] is not None}


def _metric(network: str, tasks: list[str], asked: str | None) -> str:
    own = is_function(network) or is_data(tasks[0])
    numbers = task_of(tasks[0], network, 0).numbers is not None if own else row_of(network).form != "tokens"
    if asked == "inputs" and not numbers:
        raise ValueError(f"metric=inputs measures weights on numbers, and network={network} reads sentences. Choose metric=weights.")
    return asked or ("inputs" if numbers else "weights")
