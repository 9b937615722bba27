"""Bring a zoo in a file to canonical form, network by network, into a second file."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.appending import THETAS, appending_networks, small_tensors, words_of
from geoflow.canonical import Canonical, check_zoo
from geoflow.canonical.gathering import gathered
from geoflow.canonical.matching import match_units, part_of, parts_of
from geoflow.canonical.products import balance as balanced
from geoflow.files import read_tensors, write_tensors
from geoflow.fingerprints import digest_of, fingerprint
from geoflow.frame import UNTURNED, Frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Stored, mapped, stored
from geoflow.symmetry import Symmetry, apply_symmetry

REFERENCE = "reference"


def canonicalize_large(
    spec: NetworkSpec,
    zoo: Stored,
    path: str | Path,
    reference: Float[Tensor, " weights"] | None = None,
    balance: bool = True,
    frame: Frame = UNTURNED,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Canonical:
    """Do what `canonicalize` does for a zoo in a file, and write the networks to the file `path`.

    Only a few networks are in memory at once, and the results are those of `canonicalize`. `dtype` is the precision that the networks are
    written in, by default that of the zoo. All else is computed in single precision, or in that of the zoo if it is higher.

    After an interruption the same call goes on. The orders that were found are kept beside `path` until all networks are written. A file
    that is finished is opened.

    Raises ValueError as `canonicalize` does, and for a file at `path` that belongs to another zoo or another canonical form. Raises OSError
    if the disk is full. What was written before is kept.

    >>> import tempfile, torch, geoflow
    >>> from geoflow.files import write_tensors
    >>> spec = geoflow.spec_of(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> thetas = torch.randn(6, spec.weights, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/zoo.safetensors", {"thetas": thetas}, {})
    ...     made = canonicalize_large(spec, stored(f"{folder}/zoo.safetensors"), f"{folder}/canonical.safetensors", progress=False)
    ...     print(made.theta[:].allclose(geoflow.canonicalize(spec, thetas).theta, atol=1e-6))
    True
    """
    path, dtype = Path(path), zoo.dtype if dtype is None else dtype
    form = {"zoo": zoo.mark(), "balance": balance, "frame": digest_of(frame.axes), "dtype": str(dtype)}
    words = {"canonical": json.dumps(form | {"reference": None if reference is None else fingerprint(reference)})}
    if path.exists() and words_of(path)[0] == {"spec": spec.to_json(), **words} and len(words_of(path)[1]) == len(zoo):
        return Canonical(stored(path, THETAS), small_tensors(path, REFERENCE)[REFERENCE])
    check_zoo(spec, zoo)
    graph = graph_of(spec) if frame.axes else None
    turn, back = ((lambda x: x),) * 2 if graph is None else (lambda x: frame.turn(graph, x), lambda x: frame.turn_back(graph, x))

    def scaled(theta: Tensor) -> Tensor:
        theta = turn(theta.to(torch.promote_types(theta.dtype, torch.float32)))
        return balanced(spec, theta) if balance else theta

    kept = path.with_name(f"{path.name}.{digest_of(words | {'spec': spec.to_json()})[:8]}.steps")
    rows, steps = mapped(zoo, scaled), Steps(kept, progress)
    common, symmetry = steps.found(spec, rows, None if reference is None else turn(reference))
    beside = {REFERENCE: back(common) if reference is None else reference}
    with appending_networks(path, spec, dtype, words, beside, len(zoo)) as file:
        parts = [slice(max(part.start, len(file)), min(part.stop, len(zoo))) for part in parts_of(spec, len(zoo))]
        for part in tqdm(parts, desc="write canonical networks", disable=not progress):
            if part.start < part.stop:
                file.add(back(apply_symmetry(spec, rows[part], part_of(symmetry, part))))
    shutil.rmtree(steps.folder, ignore_errors=True)
    return Canonical(stored(path, THETAS), beside[REFERENCE])


def match_by_parts(spec: NetworkSpec, rows: Networks, reference: Float[Tensor, " weights"]) -> Symmetry:
    """Return what `match_units` does, for networks in memory or in a file. Only a few are read at a time."""
    return _symmetry(_joined([_flat(match_units(spec, rows[part], reference)) for part in parts_of(spec, len(rows))]))


class Steps:
    """Keep the symmetries that are found in a folder, so that they need not be found again after an interruption.

    The search for a centre is the same each time. So a symmetry is known by the number of the search and by its first network. Each zoo
    needs a folder of its own.
    """

    def __init__(self, folder: Path, progress: bool):
        self.folder, self.progress, self.searches = folder, progress, 0

    def found(self, spec: NetworkSpec, rows: Networks, reference: Float[Tensor, " weights"] | None) -> tuple[Tensor, Symmetry]:
        """Return the common centre, or the reference that is given, and the symmetry that aligns the networks to it."""
        path = self.folder / "found.safetensors"
        if not path.exists():
            common, symmetry = (
                gathered(spec, rows, match=self.match) if reference is None else (reference, self.match(spec, rows, reference))
            )
            write_tensors(path, {**_flat(symmetry), "common": common}, {})
        tensors = read_tensors(path)[0]
        return tensors.pop("common"), _symmetry(tensors)

    def match(self, spec: NetworkSpec, rows: Networks, reference: Float[Tensor, " weights"]) -> Symmetry:
        """Return what `match_units` does, for a few networks at a time."""
        self.searches += 1
        found = []
        for part in tqdm(parts_of(spec, len(rows)), desc=f"align, search {self.searches}", disable=not self.progress):
            path = self.folder / f"{self.searches}-{part.start}.safetensors"
            if not path.exists():
                write_tensors(path, _flat(match_units(spec, rows[part], reference)), {})
            found.append(read_tensors(path)[0])
        return _symmetry(_joined(found))


def _flat(symmetry: Symmetry) -> dict[str, Tensor]:
    return {f"{field.name}.{group}": value for field in fields(Symmetry) for group, value in getattr(symmetry, field.name).items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _symmetry(tensors: Mapping[str, Tensor]) -> Symmetry:
    found = {field.name: {} for field in fields(Symmetry)}
    for name, value in tensors.items():
        kind, group = name.split(".")
        found[kind][int(group)] = value
    return Symmetry(**found)
