"""Copy a network without what it keeps between calls."""

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def copied(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode that has dropped what the network keeps between calls."""
    return _copied(network, {})


def fresh(network: nn.Module) -> nn.Module:
    """The same, but the copy shares the entries of the state dict with the network."""
    return _copied(network, {id(entry): entry for entry in network.state_dict(keep_vars=True).values()})


def _copied(network: nn.Module, shared: dict[int, object]) -> nn.Module:
    """Some networks keep results between calls in evaluation mode, and drop them when training begins.

    So the copy is in training mode first.
    """
    computed = {id(kept): kept.detach().clone().requires_grad_() for _, _, kept in kept_tensors(network) if not kept.is_leaf}
    twin = copy.deepcopy(network, shared | computed)  # it copies no tensor that still has the graph of its gradient
    return twin.train().eval()


def kept_tensors(network: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """The tensors that modules hold outside the state dict, each with the path of its module and its name there."""
    registered = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from ((path, name, tensor) for tensor in _inside(value) if id(tensor) not in registered)


def _inside(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _inside(part)
