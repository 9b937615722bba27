"""Complete the options that a user left open, before anything is computed."""

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

from sacred.utils import SacredInterrupt

from geoflow import training
from geoflow.velocity import complete_sizes
from lab.allowed import BACK, BATCH, COUNTS, DENSITY, ELSEWHERE, FITTED, FURTHER, MANY, OF_THE_MAIN_JOB, ONLY, SAMPLER, SAMPLING
from lab.architectures import NETWORK, architectures_of, network_options, network_settings, own_label, whole_network, with_defaults
from lab.checks import InputError, check, check_condition, check_of_density, seen_runs
from lab.folder import described, sampled_with, samples_file
from lab.own import changed_files, is_function
from lab.reading import READ, check_read, counted, is_read

FULL = "Make room, and do the same again: it goes on from there"


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
    except OSError as error:
        cure = "" if error.errno not in (errno.ENOSPC, errno.EDQUOT) or FULL in str(error) else f". What was written is kept. {FULL}"
        raise InputError(f"{error}{cure}") from error
    except (ValueError, FloatingPointError) as error:
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
    check_read(config)
    asked = {name: value for name, value in config.items() if value != defaults[name]}
    if command == "main" and "checkpoint" in asked:
        raise InputError(f"checkpoint serves the commands {', '.join(FURTHER)}; the main job fits a flow of its own.")
    further = command in FURTHER
    for name, commands in ONLY.items():
        if name in asked and command not in (*commands, "print_config"):
            raise InputError(f"{name} serves the command{'s' * (len(commands) > 1)} {' and '.join(commands)}, and changes nothing here.")
    own = _of_the_checkpoint(config, command, asked) if further else with_defaults(config)
    own |= counted({**config, **own}) if not further and is_read(config) else {}
    sampler = SAMPLER | (sampled_with(config["checkpoint"], _inherited(command)) if further else {})
    sampler |= {"count": COUNTS.get(command, MANY)} | (BACK if command == "density" else {})
    own |= {name: value if config[name] is None else config[name] for name, value in sampler.items()}
    if command == "sharpen" and not own["sharpness"]:
        raise InputError("sharpen goes up from 0 to the sharpness that you give, such as sharpness=2.")
    if command == "polish" and not config["polish"]:
        raise InputError("polish goes up from 0 to the number of steps that you give, such as polish=64.")
    if command == "widths" and is_function(own["network"]):
        raise InputError(f"{own['network']} builds networks of one size. For another, use transfer with network=... of another function.")
    if command == "posterior" and config["count"] == 1:
        raise InputError("posterior compares ensembles, and count=1 makes none. Draw at least 2 networks; powers of two use them all.")
    check({**config, **own})
    check_condition({**config, **own}, command)
    check_of_density({**config, **own}, command)
    if not further and config["batch"] is None:
        own |= {"batch": min(BATCH, seen_runs({**config, **own}) * own["snapshots"])}
    settings = flow_settings({**config, **own})
    training.check_config(settings)
    if settings["velocity"] == training.AUTO:  # the main job sees the zoo, and chooses
        return own
    training.check_serves(settings["velocity"], len(architectures_of(settings)))
    return own | {"sizes": complete_sizes(settings["velocity"], settings["sizes"])}


def _inherited(command: str) -> list[str]:
    """Return the options of the sampler that a command takes over from the run of its flow."""
    if command == "density":
        return []
    return [name for name in SAMPLER if not (name == "start" and command in ELSEWHERE)]  # a start leads to the flow's own units


def zoo_settings(config: Mapping) -> dict:
    """Return the arguments of `train_zoo` that a completed configuration holds, except the seed."""
    recipe = {name: value for name, value in config["zoo"].items() if name not in ("seed", *READ)}
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
    for path in changed_files(made_for):
        print(f"{path} has changed since the flow of {config['checkpoint']} was fitted. Its networks may mean something else now.")
    architectures = architectures_of(made_for)
    first = next(iter(architectures.values()))
    task, name = (first[option] if config[option] is None else config[option] for option in ("task", "network"))
    options = network_options(config if name != made_for["network"] else {**first, **network_options(config)})
    network = network_settings(whole_network(name, task, options))
    if [*architectures_of(network).values()] != [network]:
        raise InputError(f"{command} makes networks of one architecture at a time. Name one of {', '.join(architectures) or 'them'}.")
    label = own_label(made_for, network)
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
