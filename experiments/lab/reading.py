"""Read a zoo from files of trained networks: `zoo.folder=checkpoints`."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from geoflow.spec import NetworkSpec
from geoflow.training import fingerprint
from geoflow.zoo.files import network_files, read_networks
from geoflow.zoo.store import Zoo
from lab.allowed import COUNT
from lab.checks import InputError, check_number

READ = ("folder", "entry")  # options of the group zoo that serve a zoo of files. All others say how zoos are trained
ENTRY = "name it with read_networks(..., entry=...)"


def is_read(config: Mapping) -> bool:
    """Return whether the zoo of a configuration is read from files, and not trained."""
    return config["zoo"]["folder"] is not None


def check_read(config: Mapping) -> None:
    """Raise InputError for options that a zoo of files does not have, before anything is read."""
    zoo = config["zoo"]
    for name in READ:
        if zoo[name] is not None and not isinstance(zoo[name], str):
            raise InputError(f"zoo.{name}={zoo[name]} must be text, such as zoo.folder=checkpoints.")
    if not is_read(config):
        if zoo["entry"] is not None:
            raise InputError(f"zoo.entry={zoo['entry']} says what to read from each file of zoo.folder=..., which is missing.")
        return
    if idle := [f"zoo.{name}={value}" for name, value in zoo.items() if name not in READ and value is not None]:
        raise InputError(f"zoo.folder reads networks that are trained already, so {' '.join(idle)} would change nothing. Leave it out.")
    if config["part"] != "test":
        raise InputError(
            f"part={config['part']} scores on a share of the training data, which the networks in zoo.folder may have seen. To choose "
            "settings, put examples that they have not seen into x_test of another .npz file."
        )


def counted(config: Mapping) -> dict[str, int]:
    """Return how many runs and snapshots the zoo of files has. By default each file is a run.

    With `snapshots=2`, two files in a row belong to one run. Raises InputError if the files are too few, or do not fill the last run.
    """
    for name in ("runs", "snapshots"):
        if config[name] is not None:
            check_number(name, config[name], COUNT)
    folder, snapshots = config["zoo"]["folder"], config["snapshots"] or 1
    files = len(network_files(folder))
    if files % snapshots:
        raise InputError(f"snapshots={snapshots} of each run do not divide the {files} files of zoo.folder={folder}.")
    runs = files // snapshots if config["runs"] is None else config["runs"]
    if runs * snapshots > files:
        raise InputError(f"runs={runs} with snapshots={snapshots} need more than the {files} files of zoo.folder={folder}.")
    return {"runs": runs, "snapshots": snapshots}


def read_zoo_of_files(config: Mapping, spec: NetworkSpec) -> Zoo:
    """Read the first runs of a completed configuration. What is worth a word on how files were opened is printed.

    Raises ValueError for a file that does not fit the network, with the first difference, and InputError if files are gone.
    """
    folder, size = config["zoo"]["folder"], counted(config)
    with as_options():
        thetas = read_networks(files_of_runs(config), spec, config["zoo"]["entry"])
    return Zoo(thetas.view(*size.values(), -1), spec, {"folder": folder, "networks": fingerprint(thetas)})


def files_of_runs(config: Mapping) -> list[Path]:
    """Return the files of the first runs, as many as the configuration asks for, those of a run in a row."""
    size = counted(config)
    return network_files(config["zoo"]["folder"])[: size["runs"] * size["snapshots"]]


@contextmanager
def as_options() -> Iterator[None]:
    """Print what the library warns of while it opens files. Its errors name the options of run.py."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield
        except ValueError as error:
            raise ValueError(str(error).replace(ENTRY, "name it with zoo.entry=...")) from error
    for one in said:
        print(one.message)
