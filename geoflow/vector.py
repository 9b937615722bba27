"""Turn state dicts into weight vectors and back."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.spec import NetworkSpec, TensorSpec

State = Mapping[str, Tensor]


def pack(spec: NetworkSpec, state: State | Sequence[State]) -> Float[Tensor, "*batch weights"]:
    """Turn state dicts into weight vectors. The tensors of a state dict are laid one after the other, in the order of the spec.

    One state dict gives a vector [weights]. A sequence of state dicts gives a zoo [nets, weights]. The entries of one state dict may be
    stacked along leading axes, as `torch.func.stack_module_state` stacks them. These axes come first in the result.

    Raises ValueError if an entry is missing, is unknown, has a wrong shape, or is not finite. It also raises ValueError if tied entries
    differ, or if a constant of the forward pass differs from that of the traced network. The message names the entry, and the network.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> geoflow.pack(spec, network.state_dict()).shape
    torch.Size([23])
    """
    if isinstance(state, Mapping):
        check_state(spec, state)
        return torch.cat([_part(tensor, state[tensor.name]) for tensor in spec.tensors], -1)
    if len(state) == 0:
        raise ValueError("The zoo is empty: pack needs at least one state dict.")
    thetas = []
    for index, one in enumerate(state):
        if not isinstance(one, Mapping):
            raise ValueError(f"Network {index} of the zoo is a {type(one).__name__}, not a state dict: pass network.state_dict().")
        try:
            thetas.append(pack(spec, one))
        except ValueError as error:
            raise ValueError(f"Network {index} of the zoo: {error}") from error
    return torch.stack(thetas)


def unpack(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> dict[str, Tensor]:
    """Turn weight vectors back into a state dict, complete for `load_state_dict(strict=True)`.

    Leading axes of `theta` become leading axes of every entry. Entries outside the weight vector have the values of the traced network.

    Raises ValueError if the vectors have another length than the spec.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> state = geoflow.unpack(spec, torch.zeros(5, spec.weights))
    >>> {name: tuple(entry.shape) for name, entry in state.items()}
    {'0.weight': (5, 3, 4), '0.bias': (5, 3), '2.weight': (5, 2, 3), '2.bias': (5, 2)}
    """
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"A weight vector of length {theta.shape[-1]} does not fit this spec. Its networks have {spec.weights} weights.")
    batch, state = theta.shape[:-1], {}
    for tensor, part in zip(spec.tensors, theta.split([tensor.numel for tensor in spec.tensors], -1), strict=True):
        part = part.reshape((*batch, *tensor.shape))
        state[tensor.name] = torch.cat([state[tensor.name], part], len(batch)) if tensor.start else part
    rest = {name: value.to(theta if value.is_floating_point() else theta.device) for name, value in spec.rest.items()}
    rest = {name: value.expand((*batch, *value.shape)).clone() for name, value in rest.items()}
    tied = {name: state[packed] for name, packed in spec.aliases}
    return state | tied | rest


def check_state(spec: NetworkSpec, state: State) -> None:
    """Raise ValueError if a state dict is of another architecture, or if it holds NaN or Inf.

    The entries may be stacked along leading axes.
    """
    shapes = {t.name: (t.start + t.shape[0], *t.shape[1:]) if t.shape else () for t in spec.tensors}  # the last tensor sets the shape
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"entry {name!r} is missing; the architecture is not the one that was traced.")
        found = tuple(state[name].shape)
        if found[len(found) - len(shape) :] != shape or len(found) < len(shape):
            raise ValueError(f"{name!r} has shape {found}, the traced network {shape}: two architectures.")
        finite = state[name].isfinite()
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
    if foreign := set(state) - set(shapes) - set(spec.rest) - {name for name, _ in spec.aliases}:
        raise ValueError(f"entries {sorted(foreign)} are unknown to the traced network.")


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
