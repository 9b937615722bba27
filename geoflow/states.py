"""Find the state dict of a network in what people keep: modules, checkpoints, wrapped networks, numpy arrays."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.spec import NetworkSpec

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # what torch puts into names
COUNTER = "n_averaged"  # AveragedModel counts its networks in the state dict
DEPTH = 2  # entries of a checkpoint may hold checkpoints, such as ["state"]["model"]


@dataclass(frozen=True)
class Opened:
    """A state dict under the names of the traced network.

    `how` says where it was found. It is empty if it was given as it is.
    """

    state: Mapping
    how: str = ""


def opened(spec: NetworkSpec, given: object, entry: str | None = None) -> Opened:
    """Return the state dict that fits the spec, out of what was given.

    - A module gives its state dict.
    - A checkpoint is a dict with a state dict, or a module, in one of its entries. `entry` names it, if several fit.
    - Names may have gained prefixes: `module.` of DataParallel and AveragedModel, `_orig_mod.` of torch.compile, or one that all names
      share. They are removed if the names then are those of the spec.
    - Of tied entries one is enough, because safetensors' `save_model` keeps one.
    - numpy arrays become tensors.

    If nothing fits, the result is what comes nearest. `check_state` then names the first difference.

    Raises ValueError for what is no state dict, and if several entries fit.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 1)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> found = opened(spec, {"epoch": 3, "state_dict": torch.nn.DataParallel(network).state_dict()})
    >>> found.how
    "from the entry ['state_dict'], with 'module.weight' taken as 'weight'"
    >>> list(found.state)
    ['weight', 'bias']
    """
    given = given.state_dict() if isinstance(given, nn.Module) else given
    if not isinstance(given, Mapping):
        raise ValueError(f"This is a {type(given).__name__}, not a state dict. Pass a network, or its state_dict().")
    if entry is not None:
        return _at(spec, given, entry)
    if _fits(spec, given):
        return Opened(_whole(spec, given))
    found = {path: _renamed(spec, state) for path, state in _inside(given)}
    if not found:
        raise ValueError("This dict has keys that are no names, so it is not a state dict. Pass network.state_dict().")
    path = _best(spec, found)
    if not _fits(spec, found[path].state):
        return Opened(_whole(spec, _nearest(spec, found[path].state)))
    how = ", ".join(filter(None, [f"from the entry {path}" if path else "", found[path].how]))
    return Opened(_whole(spec, found[path].state), how)


def shapes_of(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every packed entry of the state dict.

    >>> import torch, geoflow
    >>> shapes_of(geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2)))
    {'weight': (1, 2), 'bias': (1,)}
    """
    return {t.name: (t.start + t.shape[0], *t.shape[1:]) if t.shape else () for t in spec.tensors}  # the last tensor sets the shape


def say(found: Sequence[str]) -> None:
    """Warn once of all that was opened: one line for any number of state dicts. `found` has the `how` of each.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always") as seen:
    ...     say(["", "from the entry ['model']", "from the entry ['model']"])
    >>> str(seen[0].message)
    "Read 2 of 3 state dicts from the entry ['model']."
    """
    ways = Counter(how for how in found if how)
    if ways:
        more = f" (and in {len(ways) - 1} more ways)" if len(ways) > 1 else ""
        what = f"{ways.total()} of {len(found)} state dicts" if len(found) > 1 else "the state dict"
        warnings.warn(f"Read {what} {ways.most_common(1)[0][0]}{more}.", stacklevel=3)


def _at(spec: NetworkSpec, given: Mapping, entry: str) -> Opened:
    if entry not in given:
        raise ValueError(f"There is no entry {entry!r}. Known: {', '.join(map(repr, given)) or 'none'}.")
    inner = opened(spec, given[entry])
    return Opened(inner.state, ", ".join(filter(None, [f"from the entry [{entry!r}]", inner.how])))


def _best(spec: NetworkSpec, found: Mapping[str, Opened]) -> str:
    """Return the path of the one state dict that fits, or of the one with the most known names. Raises ValueError if several fit."""
    fitting = [path for path, one in found.items() if _fits(spec, one.state)]
    if len(fitting) > 1:  # names alone do not tell a teacher from a smaller student
        shapes = shapes_of(spec)
        alike = [p for p in fitting if all(np.shape(v) == shapes.get(name, np.shape(v)) for name, v in found[p].state.items())]
        fitting = alike or fitting
    if len(fitting) > 1:
        raise ValueError(
            f"Several entries hold networks that fit the spec: {', '.join(fitting)}. Pass the one that you want, "
            "or name it with read_networks(..., entry=...)."
        )
    return fitting[0] if fitting else max(found, key=lambda path: len(_names(spec) & set(_nearest(spec, found[path].state))))


def _inside(given: Mapping, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping]]:
    """Yield everything that may be a state dict, with its path: the mapping itself, and what its entries hold."""
    if all(isinstance(name, str) for name in given):
        yield path, given
    for name, value in given.items():
        inner = value.state_dict() if isinstance(value, nn.Module) else value
        if isinstance(inner, Mapping) and depth:
            yield from _inside(inner, f"{path}[{name!r}]", depth - 1)


def _renamed(spec: NetworkSpec, state: Mapping) -> Opened:
    """Return the state dict under the spec's names, if its names differ from them by prefixes only. Else return it as it is."""
    wanted = {_bare(name): name for name in _names(spec)}
    old = [name for name in state if name != COUNTER]
    bare = {name: _bare(name) for name in old}
    if not old or len(set(bare.values())) < len(old) or len(wanted) < len(_names(spec)) or _fits(spec, state):
        return Opened(state)
    for cut in range(_shared_segments(list(bare.values())) + 1):
        names = {name: wanted.get(".".join(bare[name].split(".")[cut:])) for name in old}
        if None not in names.values() and _fits(spec, names.values()):
            how = next((f"with {name!r} taken as {new!r}" for name, new in names.items() if name != new), f"without {COUNTER!r}")
            return Opened({new: state[name] for name, new in names.items()}, how)
    return Opened(state)


def _nearest(spec: NetworkSpec, state: Mapping) -> dict:
    """Return a state dict that fits no spec without the prefix that hides most of the spec's names."""
    known = _names(spec)
    prefixes = Counter({"": 0.5})  # no prefix, unless one helps
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join((*parts[:cut], "")) for cut in range(len(parts)) if ".".join(parts[cut:]) in known)
    prefix = prefixes.most_common(1)[0][0].lstrip(".")
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _bare(name: str) -> str:
    """Return a name without what torch's wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _shared_segments(names: Sequence[str]) -> int:
    """Return how many segments all names begin with together. The last segment of a name does not count."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return next((number for number, column in enumerate(columns) if len(set(column)) > 1), min(name.count(".") for name in names))


def _names(spec: NetworkSpec) -> set[str]:
    return {tensor.name for tensor in spec.tensors} | {name for name, _ in spec.aliases} | set(spec.rest)


def _fits(spec: NetworkSpec, names: Iterable) -> bool:
    """Return whether all weights have their names here, and no name is unknown. Of tied entries one is enough."""
    found = set(names)
    return found <= _names(spec) and all(found & tied for tied in _tied(spec).values())


def _tied(spec: NetworkSpec) -> dict[str, set[str]]:
    """Return all names of each packed entry."""
    names = {tensor.name: {tensor.name} for tensor in spec.tensors}
    for name, packed in spec.aliases:
        names[packed].add(name)
    return names


def _whole(spec: NetworkSpec, state: Mapping) -> Mapping:
    """Return the state dict with all names of tied entries, and with tensors for arrays and numbers."""
    filled = {}
    for names in _tied(spec).values() if spec.aliases else ():
        if there := names & set(state):
            filled |= {name: state[min(there)] for name in names - there}
    if not filled and all(isinstance(value, Tensor) for value in state.values()):
        return state
    return {name: _tensor(value) for name, value in {**state, **filled}.items()}


def _tensor(value: object) -> object:
    return torch.tensor(value) if isinstance(value, np.ndarray | np.generic | int | float) else value
