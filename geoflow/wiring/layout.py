"""Say where sites come from, and how they are cut from one walk to the next."""

from dataclasses import dataclass, field

Share = tuple[int, int, int]


@dataclass
class Layout:
    """How sites are cut. A walk adds the cuts that it finds missing, and the next walk begins with them.

    `cuts[key]` are the units at which the vector made at `key` is cut into several sites. `shares[key, start]` is set for a site whose
    elements move in blocks only. It is (copies, units, repeat) of that site. `refused` are shares that left nothing to permute.
    """

    cuts: dict[str, set[int]] = field(default_factory=dict)
    shares: dict[tuple[str, int], Share] = field(default_factory=dict)
    refused: set[tuple[str, int, Share]] = field(default_factory=set)


@dataclass(frozen=True)
class Place:
    """Where a site comes from. `key` is None if the site cannot be cut by itself. Nothing writes a `position`."""

    name: str
    size: int
    key: str | None = None
    start: int = 0
    position: bool = False
    share: Share | None = None
    uniform: bool = False  # positions whose elements are all equal
