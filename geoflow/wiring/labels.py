"""Define what a rule works with: activations and parameters, and the units along their axes."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """All `size` units of one site, with `repeat` consecutive elements for each unit. `site` is its number in the ledger."""

    site: int
    size: int
    repeat: int = 1

    @property
    def length(self) -> int:
        return self.size * self.repeat


Label = tuple[Segment, ...]  # the segments of one axis, in order


def length(label: Label) -> int:
    return sum(segment.length for segment in label)


@dataclass(frozen=True)
class Value:
    """An activation. For each axis, its label says which units lie along it.

    A label is a tuple of segments. If units i, j, ... lie along the axes and are scaled, the element (i, j, ...) is multiplied by the
    product of their factors.

    >>> from geoflow.wiring.labels import Segment, Value
    >>> Value(((Segment(site=0, size=4, repeat=2),), (Segment(site=1, size=3),))).shape
    (8, 3)
    """

    labels: tuple[Label, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of elements along each axis."""
        return tuple(map(length, self.labels))


@dataclass(frozen=True)
class Parameter:
    """An entry of the state dict as the forward pass uses it, perhaps in part, transposed, or with inserted axes of length 1.

    It consists of rows `start` onwards of the entry `name`. `shape` is its shape here, and `entry` is the shape of these rows. Axis i is
    axis `axes[i]` of the entry, or None if it was inserted. `learned` is False for running statistics. `fixed` is set if a constant stands
    in the place of an entry, such as a kernel that is not learned.

    >>> from geoflow.wiring.labels import Parameter
    >>> Parameter("0.weight", shape=(4, 3), axes=(1, 0), entry=(3, 4), learned=True).numel  # transposed
    12
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    entry: tuple[int, ...]  # the shape of these rows of the entry
    learned: bool
    start: int = 0
    fixed: Tensor | None = field(default=None, compare=False)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A Piece (see `geoflow.spec`) whose sites still have the numbers of the ledger."""

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
    """One use of rows of the state dict: what each of their axes writes and reads."""

    parameter: Parameter
    axes: tuple[tuple[Part, ...], ...]
    kind: str
    degree: int


def parts_writing(label: Label) -> tuple[Part, ...]:
    return tuple(Part(s.size, s.repeat, writes=s.site) for s in label)


def parts_reading(label: Label) -> tuple[Part, ...]:
    return tuple(Part(s.size, s.repeat, reads=s.site) for s in label)


def parts_scaling(post: Label, pre: Label) -> tuple[Part, ...]:
    """The parts of a diagonal map. Unit i of `post` is computed from unit i of `pre`."""
    return tuple(Part(a.size, a.repeat, writes=a.site, reads=b.site) for a, b in zip(post, pre, strict=True))


def is_plain(operand: object) -> bool:
    """Whether an argument is neither an activation nor an entry of the state dict."""
    return not isinstance(operand, Value | Parameter)


def is_constant(operand: Operand) -> bool:
    return is_plain(operand) and isinstance(operand, Tensor | int | float | bool)


def is_zero(operand: Operand) -> bool:
    """Whether an operand is a constant of zeros. Zeros move with any units, and a weight that reads zeros has no effect."""
    return is_constant(operand) and not torch.as_tensor(operand).any()
