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

    Raises ValueError naming the entry if one is missing, of a wrong shape, or not finite.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> geoflow.pack(spec, network.state_dict()).shape
    torch.Size([23])
    """
    if isinstance(state, Mapping):
        return torch.cat([_part(spec, tensor, state) for tensor in spec.tensors], -1)
    if len(state) == 0:
        raise ValueError("The zoo is empty: pack needs at least one state dict.")
    for index, one in enumerate(state):
        try:
            check_state(spec, one)
        except ValueError as error:
            raise ValueError(f"Network {index} of the zoo: {error}") from error
    return torch.stack([pack(spec, one) for one in state])


def unpack(spec: NetworkSpec, theta: Float[Tensor, "*batch weights"]) -> dict[str, Tensor]:
    """The state dict of a weight vector, complete for `load_state_dict(strict=True)`; leading axes are kept."""
    if theta.shape[-1] != spec.weights:
        raise ValueError(f"A weight vector of {theta.shape[-1]} entries does not fit a network of {spec.weights} weights.")
    batch, state = theta.shape[:-1], {}
    for tensor, part in zip(spec.tensors, theta.split([tensor.numel for tensor in spec.tensors], -1), strict=True):
        part = part.reshape((*batch, *tensor.shape))
        state[tensor.name] = torch.cat([state[tensor.name], part], len(batch)) if tensor.start else part
    rest = {name: value.to(theta.device).expand((*batch, *value.shape)) for name, value in spec.rest.items()}
    tied = {name: state[packed] for name, packed in spec.aliases}
    return state | tied | rest


def check_state(spec: NetworkSpec, state: State) -> None:
    """Raise ValueError where a state dict is not one of this spec's architecture, or holds NaN or Inf."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in spec.tensors:
        rows = (tensor.start + tensor.shape[0], *tensor.shape[1:]) if tensor.shape else ()
        shapes[tensor.name] = rows
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"entry {name!r} is missing; the architecture is not the one that was traced.")
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}, the traced network {shape}: two architectures.")
        if not state[name].isfinite().all():
            raise ValueError(f"{name!r} holds NaN or Inf. Remove this network, or train it again.")
    for name, packed in spec.aliases:
        if name not in state or not torch.equal(state[name], state[packed]):
            raise ValueError(f"{name!r} and {packed!r} are one tensor in the traced network, and differ here.")
    if foreign := set(state) - set(shapes) - set(spec.rest) - {name for name, _ in spec.aliases}:
        raise ValueError(f"entries {sorted(foreign)} are unknown to the traced network.")


def _part(spec: NetworkSpec, tensor: TensorSpec, state: State) -> Tensor:
    if tensor.name not in state:
        raise ValueError(f"The state dict has no entry {tensor.name!r}; it holds {sorted(state)}.")
    value = state[tensor.name]
    batch = value.ndim - len(tensor.shape)
    if tensor.shape:
        value = value.narrow(batch, tensor.start, tensor.shape[0])
    if batch < 0 or value.shape[batch:] != tensor.shape:
        raise ValueError(f"{tensor.name!r} has shape {tuple(value.shape)}, the spec says {tensor.shape}.")
    return value.reshape(*value.shape[:batch], tensor.numel)
