"""Say what a value of the forward pass carries: which units lie along each of its axes."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """All `size` units of the site number `site`, with `repeat` consecutive entries each."""

    site: int
    size: int
    repeat: int = 1

    @property
    def length(self) -> int:
        return self.size * self.repeat


Label = tuple[Segment, ...]  # the segments of one axis, one after the other


def length(label: Label) -> int:
    return sum(segment.length for segment in label)


@dataclass(frozen=True)
class Value:
    """An activation. Its entry (i, j, ...) scales with the product of the factors of the units i, j, ..."""

    labels: tuple[Label, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(length, self.labels))


@dataclass(frozen=True)
class Parameter:
    """Rows `start` onwards of an entry of the state dict; axis i of the value is axis `axes[i]` of the entry, None if it was inserted.

    `fixed` is a constant that stands where an entry could, such as a kernel that is not learned."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    entry: tuple[int, ...]  # shape of these rows of the entry
    learned: bool
    start: int = 0
    fixed: Tensor | None = field(default=None, compare=False)

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A Piece whose sites are still numbers of the ledger."""

    size: int
    repeat: int = 1
    writes: int | None = None
    reads: int | None = None

    @property
    def owner(self) -> int | None:
        return self.reads if self.writes is None else self.writes


Operand = Value | Parameter | Tensor | int | float | bool | None


@dataclass(frozen=True)
class Entry:
    """One use of rows of the state dict: what each axis writes and reads."""

    parameter: Parameter
    axes: tuple[tuple[Part, ...], ...]
    kind: str
    degree: int


def parts_writing(label: Label) -> tuple[Part, ...]:
    return tuple(Part(s.size, s.repeat, writes=s.site) for s in label)


def parts_reading(label: Label) -> tuple[Part, ...]:
    return tuple(Part(s.size, s.repeat, reads=s.site) for s in label)


def parts_scaling(post: Label, pre: Label) -> tuple[Part, ...]:
    """Of a diagonal map: unit i of `post` is read from unit i of `pre`."""
    return tuple(Part(a.size, a.repeat, writes=a.site, reads=b.site) for a, b in zip(post, pre, strict=True))


def is_constant(operand: Operand) -> bool:
    return not isinstance(operand, Value | Parameter) and isinstance(operand, Tensor | int | float | bool)


def is_zero(operand: Operand) -> bool:
    """A constant that is zero everywhere: it moves with any units, and no weight that reads it is felt."""
    return is_constant(operand) and not torch.as_tensor(operand).any()
