"""Handle the examples that a network reads: one tensor, several inputs, or inputs by name."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from geoflow.stored import Rows

Examples = Any  # a tensor [examples, ...], a tuple of such inputs, or a mapping of names to them; all else is the same for all examples


def arguments(network: nn.Module, x: Examples) -> tuple[tuple, dict[str, Any]]:
    """Return the positional arguments, and those by name, with which the network reads x.

    A tuple holds several inputs. A mapping holds inputs by name if the forward pass has parameters of these names. Else the mapping itself
    is the one input.

    >>> class Named(nn.Module):
    ...     def forward(self, tokens, mask=None): ...
    >>> arguments(Named(), {"tokens": 1, "mask": 2}), arguments(nn.Linear(1, 1), {"x": 1})
    (((), {'tokens': 1, 'mask': 2}), (({'x': 1},), {}))
    """
    if isinstance(x, Mapping):
        try:
            signature(network.forward).bind(**x)
        except TypeError:
            return (x,), {}
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,)), {}


def leading(x: Examples) -> Tensor:
    """Return the first tensor of x. Its first axis is that of the examples.

    Raises ValueError if there is none, or if the tensors of x hold different numbers of examples.
    """
    tensors = [leaf for leaf in tree_leaves(_plain(x)) if _counts(leaf)]
    if not tensors:
        forms = "a tensor, a tuple of tensors, or a dict of tensors by name. torch.from_numpy makes one of an array"
        raise ValueError(f"x holds no tensor [examples, ...]. Pass {forms}.")
    if len({len(tensor) for tensor in tensors}) > 1:
        counts = ", ".join(str(len(tensor)) for tensor in tensors)
        raise ValueError(f"The inputs in x hold {counts} examples. All must hold the same examples, along their first axis.")
    return tensors[0]


def rows(x: Examples, index: Int[Tensor, " some"]) -> Examples:
    """Return some of the examples.

    >>> rows({"a": torch.arange(3), "scale": 2.0}, torch.tensor([2, 0]))
    {'a': tensor([2, 0]), 'scale': 2.0}
    """
    return _mapped(lambda leaf: leaf[index.to(leaf.device)], x)


def parts_of(x: Examples, size: int) -> tuple[Examples, ...]:
    """Split the examples, in their order, into parts of `size`. The last part may be smaller.

    >>> parts_of((torch.arange(3), torch.ones(3)), 2)
    ((tensor([0, 1]), tensor([1., 1.])), (tensor([2]), tensor([1.])))
    """
    if isinstance(x, Tensor):
        return x.split(size)
    return tuple(_mapped(lambda leaf, at=at: leaf[at : at + size], x) for at in range(0, len(leading(x)), size))


def in_precision(x: Examples, dtype: torch.dtype) -> Examples:
    """Return the examples with real numbers in another precision. Whole numbers, such as tokens, stay as they are."""
    return _mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)


def precision(x: Examples, thetas: Tensor | Rows) -> torch.dtype:
    """Return the precision in which networks run on x: that of their weights, but half precision only if x has it too.

    >>> precision(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float16))
    torch.float32
    """
    real = {leaf.dtype for leaf in tree_leaves(_plain(x)) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    return thetas.dtype if real == {thetas.dtype} else torch.promote_types(thetas.dtype, torch.float32)


def _counts(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _mapped(change: Callable[[Tensor], Tensor], x: Examples) -> Examples:
    return tree_map(lambda leaf: change(leaf) if _counts(leaf) else leaf, _plain(x))


def _plain(x: Examples) -> Examples:
    """Return a mapping of any kind as a dict. torch looks into no other."""
    return dict(x) if isinstance(x, Mapping) else x
