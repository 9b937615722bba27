"""Name tensors and zoos by the sha256 of their numbers."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.stored import Rows


def fingerprint(tensor: Tensor | Rows) -> str:
    """Return the sha256 of the tensor's numbers. Networks in a file have that of a tensor that holds them.

    >>> fingerprint(torch.zeros(2, 3)) == fingerprint(torch.zeros(6)) != fingerprint(torch.ones(6))
    True
    """
    found = sha256()
    for part in tensor if isinstance(tensor, Rows) else [tensor]:
        found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def fingerprint_of_zoos(zoos: Sequence[Float[Tensor, "_nets _size"] | Rows]) -> str | list[str]:
    """Return what a flow records of its zoos: the fingerprint of a single one, or a list of those of several."""
    prints = [fingerprint(zoo) for zoo in zoos]
    return prints if len(prints) > 1 else prints[0]


def digest_of(values: Mapping) -> str:
    """Return one digest of plain values and tensors by their names.

    >>> digest_of({"a": 1, "b": {"c": torch.zeros(2)}}) == digest_of({"b": {"c": torch.zeros(2)}, "a": 1})
    True
    """
    return sha256(repr(_plain(values)).encode()).hexdigest()


def _plain(value):
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(one)) for key, one in value.items())
    return (tuple(value.shape), str(value.dtype), fingerprint(value)) if isinstance(value, Tensor) else value
