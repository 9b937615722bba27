"""Say which tensors a network returns."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor

Example = Tensor | tuple | Mapping


def tensors_in(result: object) -> list[Tensor]:
    """The tensors that a network returns, alone or in tuples, lists, dicts and dataclasses.

    Other objects, such as a cache of keys and values, are left out. They are no outputs.
    """
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        parts = list(result.values())
    elif isinstance(result, list | tuple):
        parts = list(result)
    elif is_dataclass(result) and not isinstance(result, type):
        parts = [getattr(result, one.name) for one in fields(result)]
    else:
        parts = []
    return [tensor for part in parts for tensor in tensors_in(part)]
