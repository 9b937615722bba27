"""Read and write folders of networks: one state dict in each file."""

import re
from argparse import Namespace
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.files import read_tensors, write_tensors
from geoflow.spec import NetworkSpec
from geoflow.states import opened, say
from geoflow.stored import Networks
from geoflow.vector import check_form, packed, say_lost, unpack

Source = str | Path | Iterable[str | Path]

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
DIGITS = 4  # of the numbers in the names of files, or more if there are more networks
HARMLESS = [  # plain data beside state dicts, which torch's own list lacks
    Namespace,
    np.ndarray,
    np.dtype,
    *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
    *((made, f"numpy.{core}.multiarray.{made.__name__}") for core in ("core", "_core") for made in (np._core.multiarray._reconstruct,)),
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_networks(source: Source, spec: NetworkSpec, entry: str | None = None) -> Float[Tensor, "nets weights"]:
    """Read files of trained networks. Return their weight vectors, in the order of `network_files(source)`.

    `source` is a folder, a pattern such as "runs/*/best.pt", one path, or several paths. Files are read as safetensors, or by torch.load
    with `weights_only=True`, which runs no code. Only one file is in memory at a time. The result has the coarsest precision that holds
    all networks.

    Each file holds a state dict, or a checkpoint with one in an entry. What `pack` opens is opened here too, and one warning says so.
    `entry` names the entry of the checkpoint if several fit, such as "ema".

    Raises FileNotFoundError if there is no file, and ValueError for a file that is corrupt or does not fit the spec. The message names the
    file and the first difference: an entry that is missing, is unknown or has another shape.

    >>> import tempfile, torch, geoflow
    >>> network = torch.nn.Linear(2, 1)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for seed in range(3):
    ...         torch.save(network.state_dict(), f"{folder}/seed{seed}.pt")
    ...     print(geoflow.read_networks(folder, spec).shape)
    torch.Size([3, 3])
    """
    paths, thetas, ways, lost = network_files(source), torch.empty(0), [], []
    for number, path in enumerate(paths):
        theta, how, left = read_network(path, spec, entry)
        if not number:
            thetas = theta.new_empty(len(paths), spec.weights)
        thetas = thetas.to(torch.promote_types(thetas.dtype, theta.dtype))
        thetas[number] = theta
        ways.append(how)
        lost = lost or left
    say(ways)
    say_lost(lost)
    return thetas


def read_network(path: Path, spec: NetworkSpec, entry: str | None = None) -> tuple[Float[Tensor, " weights"], str, list[str]]:
    """Return the network of one file, how its state dict was found, and which entries the vector does not hold (see `packed`).

    Raises ValueError as `read_networks` does.
    """
    try:
        theta, how, left = packed(spec, _read(path), entry)
        if theta.ndim != 1:
            raise ValueError(f"its entries are stacked: they hold {tuple(theta.shape[:-1])} networks. Load the file, and use pack.")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return theta, how, left


def check_files(source: Source, spec: NetworkSpec, entry: str | None = None, progress: bool = False) -> None:
    """Raise ValueError for the first file that is corrupt or of another network, as far as its names and shapes tell.

    Weights are not read, so this takes a moment where `read_networks` takes minutes. The arguments are those of `read_networks`.

    >>> import tempfile, torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for seed, width in enumerate((2, 2, 3)):
    ...         torch.save(torch.nn.Linear(width, 1).state_dict(), f"{folder}/seed{seed}.pt")
    ...     try:
    ...         check_files(folder, spec)
    ...     except ValueError as error:
    ...         print(str(error).removeprefix(f"{folder}/"))
    seed2.pt: 'weight' has shape (1, 3), the traced network (1, 2): two architectures.
    """
    for path in tqdm(network_files(source), desc="check files", unit="file", disable=not progress):
        try:
            check_form(spec, opened(spec, _glanced(path), entry).state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def network_files(source: Source) -> list[Path]:
    """Return the files of a folder, of a pattern or of some paths. Row i of what `read_networks` returns is the network of file i.

    The files of a folder or a pattern come in the order of their names, with numbers by their value: net2 before net10. Other files of a
    folder, and hidden ones, are left out. Given paths keep their order.

    Raises FileNotFoundError if there is no file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("net10.pt", "net2.pt", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in network_files(folder)]
    ['net2.pt', 'net10.pt']
    """
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
    elif Path(source).is_dir():
        paths = _ordered(one for one in Path(source).iterdir() if one.suffix in SUFFIXES and one.name[0] != "." and one.is_file())
    elif has_magic(str(source)) and not Path(source).exists():
        paths = _ordered(path for path in map(Path, glob(str(source), recursive=True)) if path.is_file())
    else:
        paths = [Path(source)]
    if not paths:
        raise FileNotFoundError(f"There is no network in {source}: no file ends with {', '.join(SUFFIXES)}, or fits the pattern.")
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"There is no file {missing[0]} (files that are missing: {len(missing)} of {len(paths)}).")
    return paths


def write_networks(folder: str | Path, spec: NetworkSpec, thetas: Networks) -> list[Path]:
    """Write networks as network-0001.safetensors and so on, one state dict in each file, and return the paths.

    Without this library, `safetensors.torch.load_file` reads a file, and `load_state_dict` takes the result. Tied entries stand there under
    each of their names. The folder is made if there is none.

    Raises FileExistsError if the folder holds networks already: they would be overwritten, or read together with the new ones.

    >>> import tempfile, torch, geoflow
    >>> from safetensors.torch import load_file
    >>> network = torch.nn.Linear(2, 1)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = geoflow.write_networks(folder, spec, torch.randn(3, 3))
    ...     print(paths[2].name, network.load_state_dict(load_file(paths[2])))
    network-0003.safetensors <All keys matched successfully>
    """
    if thetas.ndim != 2:
        raise ValueError(f"thetas must be [nets, weights], not {tuple(thetas.shape)}. Pass one network as theta[None].")
    folder = Path(folder)
    if folder.is_dir() and (there := _ordered(path for path in folder.iterdir() if path.suffix in SUFFIXES)):
        raise FileExistsError(
            f"{folder} holds {len(there)} networks already, such as {there[0].name}. Choose another folder, or remove them."
        )
    return write_missing(folder, spec, thetas)


def write_missing(folder: Path, spec: NetworkSpec, thetas: Networks, progress: bool = False) -> list[Path]:
    """Do what `write_networks` does, and keep the files that are there already: those of the same networks, from before an interruption."""
    digits = max(DIGITS, len(str(len(thetas))))
    paths = [folder / f"network-{number:0{digits}}.safetensors" for number in range(1, len(thetas) + 1)]
    tied = {name for name, _ in spec.aliases}
    for number, path in enumerate(tqdm(paths, desc="write networks", unit="network", disable=not progress)):
        if not path.exists():
            state = unpack(spec, thetas[number].detach())
            write_tensors(path, {name: value.clone() if name in tied else value for name, value in state.items()}, {"format": "pt"})
    return paths


def _glanced(path: Path) -> object:
    """Return what a file holds, with numbers that are read when they are used. Files of torch before 1.6 are read whole."""
    if path.suffix == ".safetensors":
        return _read(path)  # it is mapped
    try:
        return _read(path, mmap=True)
    except ValueError:
        return _read(path)


def _read(path: Path, **how: bool) -> object:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, **how)
    except UnpicklingError as error:
        raise ValueError(
            f"torch.load(weights_only=True) refuses it. It is corrupt, or it holds more than tensors and plain data ({_reason(error)}). If "
            "you trust it, load it by torch.load(weights_only=False), and use geoflow.pack."
        ) from error
    except (RuntimeError, EOFError, BadZipFile, KeyError) as error:
        raise ValueError(f"it is corrupt, or no file of torch.save ({_reason(error)}). Copy or save it again.") from error


def _reason(error: Exception) -> str:
    """Return the sentence of a message that says most: what torch does not load, or else the first."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "Unsupported" in line), lines[0]).partition(". ")[0][:200]


def _ordered(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))])
