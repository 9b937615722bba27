"""Keep a zoo that is larger than memory in one file, and add networks to it one by one."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from geoflow.appending import THETAS, appending, small_tensors, words_of
from geoflow.files import file_digest, under
from geoflow.spec import NetworkSpec
from geoflow.states import say
from geoflow.stored import Stored, stored
from geoflow.vector import say_lost
from geoflow.zoo.files import Source, check_files, network_files, read_network


@dataclass(frozen=True)
class LargeZoo:
    """A zoo in a file. Its networks are read when they are used.

    `thetas` stands for the weight vectors [nets, weights] (see `geoflow.stored.Rows`), and `spec` is the table that they are packed by.
    `networks` says of each which file it was made from: `path`, the sha256 of its bytes, and when it was `modified` last. `snapshots`
    networks in a row belong to one training run.
    """

    thetas: Stored
    spec: NetworkSpec
    networks: Sequence[Mapping]
    snapshots: int = 1

    @property
    def run_of(self) -> Tensor:
        """The run of each network."""
        return torch.arange(len(self.thetas)) // self.snapshots

    @property
    def configuration(self) -> Mapping:
        """What tells this zoo from another (see `Stored.mark`)."""
        return {"networks": self.thetas.mark()}


def open_zoo(path: str | Path, spec: NetworkSpec | None = None) -> LargeZoo:
    """Open a zoo in a file without reading it: one that `add_networks` made, that a flow drew, or one of the experiments' cache.

    Raises FileNotFoundError if there is no file. Raises ValueError if the file is cut short or holds no zoo, and if its networks are others
    than those of `spec`.

    >>> import tempfile, torch, geoflow
    >>> network = torch.nn.Linear(2, 1)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for seed in range(3):
    ...         torch.save(network.state_dict(), f"{folder}/seed{seed}.pt")
    ...     made = add_networks(f"{folder}/zoo.safetensors", folder, spec, progress=False)
    ...     zoo = open_zoo(f"{folder}/zoo.safetensors", spec)
    ...     zoo.thetas.shape, zoo.thetas[1].shape, Path(zoo.networks[1]["path"]).name
    ((3, 3), torch.Size([3]), 'seed1.pt')
    """
    thetas = stored(path, THETAS)
    words, networks = words_of(path)
    if "spec" not in words:
        raise ValueError(f"{path} has no table of its networks, so it is no zoo. Make one by add_networks.")
    found = NetworkSpec.from_json(words["spec"], _rest(path))
    if thetas.shape[1] != found.weights:
        raise ValueError(f"{path} has networks of {thetas.shape[1]} weights, and its table says {found.weights}. Make it again.")
    if spec is not None and (difference := _difference(found, spec)):
        raise ValueError(f"{path} holds networks of another architecture: {difference}. Name another file, or trace that network.")
    return LargeZoo(thetas, found if spec is None else spec, networks)


def add_networks(
    path: str | Path,
    source: Source,
    spec: NetworkSpec,
    *,
    entry: str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> LargeZoo:
    """Add files of trained networks to the zoo in a file, and make it if there is none. Return the zoo, opened.

    Only one network is in memory at a time, and the file is a whole zoo after each. Files that the zoo has already are passed over, so
    after an interruption the same call goes on. Copies of such files are passed over too, with a warning. `source` and `entry` are those
    of `read_networks`. `dtype` is the precision of a zoo that is made. By default it is that of the first network.

    Raises what `read_networks` and `open_zoo` raise, and ValueError for a network of a wider precision than the zoo, or a file that changed
    since it was added. A file of another network is named before any is read (see `check_files`). Raises OSError if the disk is full.
    Networks that were added before an error are kept.
    """
    path, ways, lost, copies = Path(path), [], [], []
    files = [file for file in network_files(source) if not _belongs(file, path)]
    zoo = open_zoo(path, spec) if path.exists() else None
    if new := _new(zoo.networks if zoo else (), files, path):
        check_files(new, spec, entry, progress)
    made = dtype or (zoo.thetas.dtype if zoo else read_network(files[0], spec, entry)[0].dtype)
    if zoo and made != zoo.thetas.dtype:
        raise ValueError(f"{path} holds networks in {zoo.thetas.dtype}, not in {dtype}. Leave dtype out, or make another zoo.")
    words, rest = (words_of(path)[0], _rest(path)) if zoo else ({"spec": spec.to_json()}, spec.rest)
    beside = {f"rest.{name}": value for name, value in rest.items()}
    with appending(path, THETAS, spec.weights, made, words, beside, len(files)) as rows:
        digests = {one.get("sha256") for one in rows.about}
        for file in tqdm(_new(rows.about, files, path), desc="add networks", unit="network", disable=not progress):
            if (digest := file_digest(file)) in digests:
                copies.append(file)
                continue
            theta, how, left = read_network(file, spec, entry)
            if dtype is None and (wide := torch.promote_types(theta.dtype, made)) != made:
                raise ValueError(f"{file} holds a network in {theta.dtype}, and {path} has {made}. Make the zoo with dtype={wide}.")
            try:
                rows.add(theta[None], [_mark(file) | {"sha256": digest}])
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            digests.add(digest)
            ways.append(how)
            lost = lost or left
    if copies:
        some = f"{len(copies)} files, such as {copies[0]}"
        warnings.warn(f"{some}, were passed over: they hold the same bytes as files that the zoo has.", stacklevel=2)
    say(ways)
    say_lost(lost)
    return open_zoo(path, spec)


def _new(networks: Sequence[Mapping], files: Sequence[Path], zoo: Path) -> list[Path]:
    """Return the files that a zoo does not have yet, of which `networks` tells. Raises ValueError if one changed since it was added."""
    known = {one["path"]: one for one in networks if "path" in one}
    for file in files:
        now = _mark(file)
        if (then := known.get(now["path"], now)) != then | now:
            raise ValueError(f"{file} has changed since it was added to {zoo}. Make that zoo again, or name the file otherwise.")
    return list({path: file for file in files if (path := str(file.resolve())) not in known}.values())


def _belongs(file: Path, zoo: Path) -> bool:
    """Return whether a file is the zoo, or one that `fit` has written beside it."""
    ours = file.name.startswith(f"{zoo.stem}.") and file.name.endswith((".canonical.safetensors", ".points.safetensors"))
    return file.resolve() == zoo.resolve() or ours


def _mark(file: Path) -> dict:
    about = file.stat()
    return {"path": str(file.resolve()), "bytes": about.st_size, "modified": about.st_mtime_ns}


def _rest(path: str | Path) -> dict[str, Tensor]:
    return under("rest.", small_tensors(path, "rest."))


def _difference(one: NetworkSpec, other: NetworkSpec) -> str:
    """Return the first entry that lies elsewhere in the weight vectors of two tables, or nothing."""
    places = [[(tensor.name, tensor.shape, tensor.start) for tensor in spec.tensors] for spec in (one, other)]
    for (name, shape, start), wanted in zip_longest(*places, fillvalue=("nothing", (), 0)):
        if (name, shape, start) != wanted:
            return f"{name!r} of shape {list(shape)} stands where the traced network has {wanted[0]!r} of shape {list(wanted[1])}"
    return ""
