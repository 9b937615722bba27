"""Find the tensor of outputs in what a network returns."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

Output = str | int | Callable[[Any], Tensor] | None  # which entry of a returned dict, tuple or dataclass holds the outputs
Read = Callable[[Any], Float[Tensor, "_examples _units"]]
USUAL = "logits"


def reader(returned: Any, examples: int, output: Output = None, who: str = "The network") -> Read:
    """Return the function that takes the outputs [examples, units] out of what a network returns. `returned` is one such result.

    `output` names the entry of a dict, a dataclass or a named tuple, or gives the place in a tuple. It may also be a function. Without it,
    the one entry that has the form [examples, units] is taken, or the one that is called "logits" among several. Outputs [examples] are one
    unit.

    Raises ValueError if there is no such entry, or if it is not clear which one is meant. The message lists the entries.

    >>> import torch
    >>> read = reader({"logits": torch.zeros(5, 3), "hidden": torch.zeros(5, 8), "loss": None}, 5)
    >>> read({"logits": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    if output is None:
        output = None if isinstance(returned, Tensor) else _only(returned, examples, who)
    elif not callable(output) and output not in (known := _entries(returned)):
        raise ValueError(f"{who} returns no entry {output!r}: {_listed(known)}")

    def read(result: Any) -> Float[Tensor, "_examples _units"]:
        found = result if output is None else output(result) if callable(output) else _entries(result)[output]
        if isinstance(found, Tensor) and found.is_floating_point():
            if found.ndim == 1:
                return found.unsqueeze(-1)
            if found.ndim == 2:
                return found
        raise ValueError(f"{who} gives {_form(found)}, not a tensor of outputs [examples, units].")

    read(returned)
    return read


def _only(returned: Any, examples: int, who: str) -> str | int:
    entries = _entries(returned)
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor) and value.is_floating_point()}
    fitting = [name for name, value in tensors.items() if value.ndim == 2 and len(value) == examples]
    fitting = fitting or [name for name, value in tensors.items() if value.shape == (examples,)]
    names = {id(entries[name]): name for name in reversed(fitting)}  # a named tuple has two names for each entry
    if len(names) == 1:
        return fitting[0]
    if USUAL in fitting:
        return USUAL
    if not fitting:
        raise ValueError(f"{who} gives {_form(returned)} without a tensor of outputs [examples, units]: {_listed(entries)}")
    several = f"{who} gives {_form(returned)} with several tensors [examples, units]. Choose one by output=."
    raise ValueError(f"{several} For {examples} examples: {_listed(entries)}")


def _entries(returned: Any) -> dict[str | int, Any]:
    """Return the entries of a dict, a dataclass, a tuple or a list. Those of a named tuple come under their names and their places."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if is_dataclass(returned):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, tuple | list):
        return dict(zip(getattr(returned, "_fields", ()), returned, strict=False)) | dict(enumerate(returned))
    return {}


def _listed(entries: Mapping) -> str:
    return (
        f"its entries are {', '.join(f'{name!r} ({_form(value)})' for name, value in entries.items())}."
        if entries
        else "it has no entries."
    )


def _form(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
