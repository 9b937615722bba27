"""Turn state dicts into weight vectors and back."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.spec import NetworkSpec, TensorSpec

State = Mapping[str, Tensor]


def pack(spec: NetworkSpec, state: State | Sequence[State]) -> Float[Tensor, "*batch weights"]:
    """Lay the tensors of a state dict one after the other, in the order of the spec.

    Leading axes of the entries (as of `torch.func.stack_module_state`) are kept; a sequence of state dicts gives [nets, weights].

    Raises ValueError naming the entry (and the network of a zoo) if one is missing, unknown, of a wrong shape, or not finite,
    or if a constant of the forward pass is not the traced network's.

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
    """The state dict of a weight vector, complete for `load_state_dict(strict=True)`; leading axes are kept."""
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"A weight vector of {theta.shape[-1]} entries does not fit a network of {spec.weights} weights.")
    batch, state = theta.shape[:-1], {}
    for tensor, part in zip(spec.tensors, theta.split([tensor.numel for tensor in spec.tensors], -1), strict=True):
        part = part.reshape((*batch, *tensor.shape))
        state[tensor.name] = torch.cat([state[tensor.name], part], len(batch)) if tensor.start else part
    rest = {name: value.to(theta if value.is_floating_point() else theta.device) for name, value in spec.rest.items()}
    rest = {name: value.expand((*batch, *value.shape)).clone() for name, value in rest.items()}
    tied = {name: state[packed] for name, packed in spec.aliases}
    return state | tied | rest


def check_state(spec: NetworkSpec, state: State) -> None:
    """Raise ValueError where a state dict, or one stacked along leading axes, is not of this architecture or holds NaN or Inf."""
    shapes = {t.name: (t.start + t.shape[0], *t.shape[1:]) if t.shape else () for t in spec.tensors}  # the last part of an entry is its end
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
            raise ValueError(f"{name!r} and {packed!r} are one tensor in the traced network, and differ here.")
    for name in spec.constants:
        if name in state and not _is_constant(state[name], spec.rest[name]):
            raise ValueError(
                f"{name!r} is a constant of the forward pass, which no weight vector holds, and is not the traced network's here. "
                "Networks of one zoo share their constants; what each has of its own is a parameter."
            )
    if foreign := set(state) - set(shapes) - set(spec.rest) - {name for name, _ in spec.aliases}:
        raise ValueError(f"entries {sorted(foreign)} are unknown to the traced network.")


def _is_constant(found: Tensor, traced: Tensor) -> bool:
    """Whether an entry, or each of those stacked along leading axes, is the traced one in the coarser of their two precisions."""
    shaped = found.ndim >= traced.ndim and found.shape[found.ndim - traced.ndim :] == traced.shape
    if not shaped or (found.dtype != traced.dtype and not (found.is_floating_point() and traced.is_floating_point())):
        return False
    traced = traced.to(found.device)
    return bool(((found == traced.to(found)) | (found.to(traced) == traced) | (found.isnan() & traced.isnan())).all())


def _part(tensor: TensorSpec, value: Tensor) -> Tensor:
    """The entries [*batch, numel] of a tensor's rows."""
    batch = value.ndim - len(tensor.shape)
    rows = value.narrow(batch, tensor.start, tensor.shape[0]) if tensor.shape else value
    return rows.reshape((*value.shape[:batch], tensor.numel))
