"""Keep the zoo of a run in files, where it and the new networks would fill the memory."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from geoflow.appending import appending_networks
from geoflow.flow import Flow
from geoflow.latent import NONE
from geoflow.latent.components import Components
from geoflow.spec import NetworkSpec
from geoflow.stored import Stored, stored
from geoflow.zoo.files import check_files
from geoflow.zoo.large import LargeZoo, add_networks, open_zoo
from geoflow.zoo.store import Zoo, digest
from lab.checks import InputError
from lab.reading import as_options, files_of_runs

GB = 10**9
BYTES = 4  # of a weight in memory
COPIES = 4  # files as large as the zoo: the networks, their canonical form, their points, and their places on the ruler
NEW = 8  # as large as the new networks: they, trained further, as state dicts, canonical, placed, and three of a baseline
POINTS = "flow.zoo.safetensors"  # of the zoo, in the folder of a run: the flow makes new networks from them


def size_of(config: Mapping, spec: NetworkSpec) -> float:
    """Return how many GB the zoo and the new networks of a configuration have together."""
    return (config["runs"] * config["snapshots"] + config["count"]) * spec.weights * BYTES / GB


def goes_to_files(config: Mapping, spec: NetworkSpec) -> bool:
    """Return whether the zoo of a configuration is kept in files. It says so, or what it would need."""
    if (size := size_of(config, spec)) <= config["memory"]:
        return False
    if config["latent"] == NONE or config["condition"] != "none":
        print(f"The zoo and the new networks have {size:.3g} GB, all in memory. With latent=pca and without a condition, files keep them.")
        return False
    return True


def check_memory(config: Mapping, spec: NetworkSpec) -> None:
    """Raise InputError for a large zoo that only files could keep, where all of it is needed in memory."""
    if config["latent"] != NONE and (size := size_of(config, spec)) > config["memory"]:
        raise InputError(
            f"All networks of the zoo are needed in memory here. With the new ones they have {size:.3g} GB, and memory={config['memory']} "
            f"allows less. If your machine has several times as much, give memory={size:.2g} or more."
        )


def read_into_files(
    config: Mapping, spec: NetworkSpec, kept: Tensor, held: Tensor, cache: Path, progress: bool
) -> tuple[LargeZoo, LargeZoo]:
    """Read files of networks into two zoos in files: the runs that the flow is fitted to, and those that are held out.

    All files are checked before the first is read. Raises ValueError for one that does not fit the network, with the first difference.
    """
    files, entry = files_of_runs(config), config["zoo"]["entry"]
    with as_options():
        check_files(files, spec, entry, progress)
        marks = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        folder = _folder(config, spec, cache, {"files": marks, "entry": entry})
        chosen = {name: [files[number] for number in _networks(config, runs)] for name, runs in (("zoo", kept), ("heldout", held))}
        zoos = [add_networks(folder / f"{name}.safetensors", some, spec, entry=entry, progress=progress) for name, some in chosen.items()]
        for some, zoo in zip(chosen.values(), zoos, strict=True):
            check_runs(len(some), len(zoo.thetas), config)
    fitted, heldout = (replace(zoo, snapshots=config["snapshots"]) for zoo in zoos)
    return fitted, heldout


def check_runs(files: int, networks: int, config: Mapping) -> None:
    """Raise ValueError if copies of files were passed over, so that the networks of a run no longer lie in a row."""
    if networks != files and config["snapshots"] > 1:
        raise ValueError(
            f"{files - networks} files of zoo.folder={config['zoo']['folder']} hold the same bytes as others. Then snapshots="
            f"{config['snapshots']} networks in a row are no longer one run. Remove these runs, or save their networks again."
        )


def copied_into_files(config: Mapping, zoo: Zoo, kept: Tensor, held: Tensor, cache: Path, progress: bool) -> tuple[LargeZoo, LargeZoo]:
    """Copy a zoo of the cache, network by network, into the same two zoos in files."""
    folder, found, networks = _folder(config, zoo.spec, cache, {"zoo": dict(zoo.configuration)}), [], zoo.networks
    for name, runs in (("zoo", kept), ("heldout", held)):
        path, numbers = folder / f"{name}.safetensors", _networks(config, runs)
        with appending_networks(path, zoo.spec, networks.dtype, expected=len(numbers)) as rows:
            for number in numbers[len(rows) :]:
                rows.add(networks[number][None], [{"network": number}])
        found.append(replace(open_zoo(path, zoo.spec), snapshots=config["snapshots"]))
    fitted, heldout = found
    return fitted, heldout


def with_points_beside(flow: Flow, folder: Path) -> Flow:
    """Return the flow with the points of its zoo in the folder of its run, where the disk of the cache is that of the folder.

    The file then has two names and takes no room twice. On another disk the flow goes on naming the file in the cache, and says so.
    """
    chart = flow.chart
    if not isinstance(chart, Components) or not isinstance(chart.pca.matrix, Stored):
        return flow
    try:
        os.link(chart.pca.matrix.path, folder / POINTS)
    except OSError:
        print(f"The flow makes new networks from {chart.pca.matrix.path}, which has no second name in {folder}. Keep that file.")
        return flow
    return replace(flow, chart=replace(chart, pca=replace(chart.pca, matrix=stored(folder / POINTS, chart.pca.matrix.name))))


def _folder(config: Mapping, spec: NetworkSpec, cache: Path, about: Mapping) -> Path:
    """Return the folder for the files of a zoo. Its name holds a digest of all that decides what lies in it."""
    split = {name: config[name] for name in ("runs", "snapshots", "heldout", "seed")}
    folder = cache / f"files-{digest({**about, **split, 'spec': spec.to_json()})[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    zoo, new = (count * spec.weights * BYTES / GB for count in (config["runs"] * config["snapshots"], config["count"]))
    print(
        f"{zoo:.3g} GB of networks are kept in files in {folder}, because memory={config['memory']} GB is less. They and the new ones need "
        f"up to {COPIES * zoo + NEW * new:.3g} GB of disk, and {shutil.disk_usage(folder).free / GB:.3g} GB are free."
    )
    return folder


def _networks(config: Mapping, runs: Tensor) -> list[int]:
    """Return the numbers of all networks of some runs."""
    return [run * config["snapshots"] + snapshot for run in runs.tolist() for snapshot in range(config["snapshots"])]
