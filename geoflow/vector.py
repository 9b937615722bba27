"""Turn state dicts into weight vectors and back."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.spec import NetworkSpec, TensorSpec
from geoflow.states import opened, say, shapes_of

State = Mapping[str, Tensor]


def pack(spec: NetworkSpec, state: Mapping | nn.Module | Iterable[Mapping | nn.Module]) -> Float[Tensor, "*batch weights"]:
    """Turn state dicts into weight vectors. The tensors of a state dict are laid one after the other, in the order of the spec.

    One state dict, or one module, gives a vector [weights]. Several of them, in any iterable, give a zoo [nets, weights]. The entries of
    one state dict may be stacked along leading axes, as `torch.func.stack_module_state` stacks them. These axes come first in the result.
    Entries may be numpy arrays.

    Checkpoints that hold a state dict, and state dicts whose names have prefixes, are opened if the names then fit (see
    `geoflow.states.opened`). One warning says so. Another one names entries that differ from those of the traced network, if a weight
    vector does not hold them, because the forward pass does not read them.

    Raises ValueError if an entry is missing, is unknown, has a wrong shape, or is not finite. It also raises ValueError if tied entries
    differ, or if a constant of the forward pass differs from that of the traced network. The message names the entry, and the network.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> geoflow.pack(spec, network.state_dict()).shape
    torch.Size([23])
    >>> geoflow.pack(spec, (network for _ in range(5))).shape
    torch.Size([5, 23])
    """
    if isinstance(state, Mapping | nn.Module):
        theta, how, lost = packed(spec, state)
        say([how])
        say_lost(lost)
        return theta
    if isinstance(state, str | bytes | PathLike) or not isinstance(state, Iterable):
        cure = "Read files with geoflow.read_networks." if isinstance(state, str | PathLike) else "Pass networks, or their state dicts."
        raise ValueError(f"pack takes networks and state dicts, not a {type(state).__name__}. {cure}")
    found = []
    for index, one in enumerate(state):
        try:
            found.append(packed(spec, one))
        except ValueError as error:
            raise ValueError(f"Network {index} of the zoo: {error}") from error
    if not found:
        raise ValueError("The zoo is empty: pack needs at least one state dict.")
    thetas, ways, lost = zip(*found, strict=True)
    say(ways)
    say_lost(next(filter(None, lost), []))
    return torch.stack(thetas)


def packed(spec: NetworkSpec, given: object, entry: str | None = None) -> tuple[Float[Tensor, "*batch weights"], str, list[str]]:
    """Return the weight vector of one network, how its state dict was found (see `opened`), and which entries the vector does not hold."""
    found = opened(spec, given, entry)
    check_state(spec, found.state)
    theta = torch.cat([_part(tensor, found.state[tensor.name]) for tensor in spec.tensors], -1)
    return theta, found.how, _lost(spec, found.state)


def say_lost(names: Sequence[str]) -> None:
    """Warn that entries differ from those of the traced network, and that a weight vector does not hold them."""
    if names:
        more = f" and {len(names) - 1} more entries" if len(names) > 1 else ""
        warnings.warn(
            f"{names[0]!r}{more} of the state dict differ from those of the traced network, and its forward pass in evaluation mode does "
            "not read them. A weight vector does not hold them: unpack gives those of the traced network.",
            stacklevel=3,
        )


def unpack(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> dict[str, Tensor]:
    """Turn weight vectors back into a state dict, complete for `load_state_dict(strict=True)`.

    Leading axes of `theta` become leading axes of every entry. Entries outside the weight vector have the values of the traced network.
    Each entry has memory of its own, so a saved network is as large as one network. Tied entries share theirs, as in a state dict.

    Raises ValueError if the vectors have another length than the spec.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> state = geoflow.unpack(spec, torch.zeros(5, spec.weights))
    >>> {name: tuple(entry.shape) for name, entry in state.items()}
    {'0.weight': (5, 3, 4), '0.bias': (5, 3), '2.weight': (5, 2, 3), '2.bias': (5, 2)}
    """
    return _state(spec, theta, _own)


def seen(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> dict[str, Tensor]:
    """Return the same state dict, but let its entries share the memory of the weight vectors."""
    return _state(spec, theta, lambda part: part)


def _state(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"], kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"A weight vector of length {theta.shape[-1]} does not fit this spec. Its networks have {spec.weights} weights.")
    batch, parts = theta.shape[:-1], {}
    for tensor, part in zip(spec.tensors, theta.split([tensor.numel for tensor in spec.tensors], -1), strict=True):
        parts.setdefault(tensor.name, []).append(part.reshape((*batch, *tensor.shape)))
    state = {name: torch.cat(some, len(batch)) if len(some) > 1 else kept(some[0]) for name, some in parts.items()}
    rest = {name: value.to(theta if value.is_floating_point() else theta.device) for name, value in spec.rest.items()}
    rest = {name: value.expand((*batch, *value.shape)).clone() for name, value in rest.items()}
    tied = {name: state[packed] for name, packed in spec.aliases}
    return with_metadata(state | tied | rest, spec.metadata)


def with_metadata(state: Mapping[str, Tensor], metadata: Mapping[str, Mapping]) -> dict[str, Tensor]:
    """Return a state dict with what torch keeps beside it: the version of each module."""
    state = OrderedDict(state)  # a dict has no attributes
    if metadata:
        state._metadata = OrderedDict(metadata)
    return state


def metadata_of(state: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return what torch keeps beside a state dict: the version of each module. It is empty if there is nothing."""
    return {path: dict(about) for path, about in getattr(state, "_metadata", {}).items()}


def _own(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)


def check_form(spec: NetworkSpec, state: Mapping) -> None:
    """Raise ValueError if a state dict is of another architecture, as far as names, shapes and kinds of numbers tell. None is read.

    The entries may be stacked along leading axes.
    """
    shapes = shapes_of(spec)
    foreign = set(state) - set(shapes) - set(spec.rest) - {name for name, _ in spec.aliases}
    if wrong := [name for name in state if name not in foreign and not isinstance(state[name], Tensor)]:
        raise ValueError(f"{wrong[0]!r} is a {type(state[wrong[0]]).__name__}, not a tensor.")
    for name, shape in shapes.items():
        if name not in state:
            instead = f" Unknown to it: {min(foreign)!r}." if foreign else ""
            raise ValueError(f"entry {name!r} is missing; the architecture is not the one that was traced.{instead}")
        found = tuple(state[name].shape)
        if found[len(found) - len(shape) :] != shape or len(found) < len(shape):
            raise ValueError(f"{name!r} has shape {found}, the traced network {shape}: two architectures.")
        if not state[name].is_floating_point():
            raise ValueError(f"{name!r} holds {state[name].dtype}, not decimal numbers. Convert it, for example by float().")
    if foreign:
        raise ValueError(f"entries {sorted(foreign)} are unknown to the traced network.")


def check_state(spec: NetworkSpec, state: Mapping) -> None:
    """Raise ValueError as `check_form` does, and if a state dict holds NaN or Inf, or other ties and constants than the traced network."""
    check_form(spec, state)
    for name, shape in shapes_of(spec).items():
        found, finite = tuple(state[name].shape), state[name].isfinite()
        if not finite.all():
            where = (~finite).nonzero()[0, : len(found) - len(shape)].tolist()
            of = f" of network {where[0] if len(where) == 1 else tuple(where)}" if where else ""
            raise ValueError(f"{name!r}{of} holds NaN or Inf. Remove this network, or train it again.")
    for name, packed in spec.aliases:
        if name not in state or not torch.equal(state[name], state[packed]):
            raise ValueError(
                f"{name!r} and {packed!r} are one tensor in the traced network, but not here. "
                "Give both the same values, or trace a network in which they are not tied."
            )
    for name in spec.constants:
        if name in state and not _is_constant(state[name], spec.rest[name]):
            raise ValueError(
                f"{name!r} is a constant of the forward pass and differs from that of the traced network. A weight vector cannot hold it. "
                "All networks of a zoo must share their constants. Make it a parameter if every network has its own."
            )


def _lost(spec: NetworkSpec, state: Mapping) -> list[str]:
    """The real entries that a weight vector does not hold and that differ from those of the traced network. Counters are left out."""
    rest = {name: value for name, value in spec.rest.items() if name not in spec.constants and value.is_floating_point()}
    return [name for name, traced in rest.items() if name in state and not _is_constant(state[name], traced)]


def _is_constant(found: Tensor, traced: Tensor) -> bool:
    """Whether an entry equals the traced one. Both are compared in the coarser of their two precisions.

    An entry that is stacked along leading axes must equal the traced one at every index.
    """
    shaped = found.ndim >= traced.ndim and found.shape[found.ndim - traced.ndim :] == traced.shape
    if not shaped or (found.dtype != traced.dtype and not (found.is_floating_point() and traced.is_floating_point())):
        return False
    traced = traced.to(found.device)
    return bool(((found == traced.to(found)) | (found.to(traced) == traced) | (found.isnan() & traced.isnan())).all())


def _part(tensor: TensorSpec, value: Tensor) -> Tensor:
    """The elements of a tensor's rows: [`*batch`, numel]."""
    batch = value.ndim - len(tensor.shape)
    rows = value.narrow(batch, tensor.start, tensor.shape[0]) if tensor.shape else value
    return rows.reshape((*value.shape[:batch], tensor.numel))
