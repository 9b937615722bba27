"""Keep the books of one walk: which sites exist, and what ties, pins or cuts them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch.fx import Node

from geoflow.spec import SYMMETRIES, WIRES
from geoflow.wiring.classes import Classes
from geoflow.wiring.labels import Entry, Label, Segment, Value, length
from geoflow.wiring.rules import require

MEASURES = ("scaling", "sign")  # the symmetries that multiply


Share = tuple[int, int, int]


class Restart(Exception):
    """The layout of a site was refined: walk again."""


@dataclass
class Layout:
    """How sites are cut, learned from walk to walk.

    `cuts[key]`: where the units made at `key` are cut into several sites;
    `shares[key, start]`: (copies, units, repeat) of the site that starts there, if its entries move in blocks only;
    `refused`: shares that were tried and left nothing to permute.
    """

    cuts: dict[str, set[int]] = field(default_factory=dict)
    shares: dict[tuple[str, int], Share] = field(default_factory=dict)
    refused: set[tuple[str, int, Share]] = field(default_factory=set)


@dataclass(frozen=True)
class Place:
    """Where a site comes from. `key` is None where the site cannot be cut by itself; `position` means that nothing wrote it."""

    name: str
    size: int
    key: str | None = None
    start: int = 0
    position: bool = False
    share: Share | None = None
    uniform: bool = False  # positions with equal entries


class Ledger:
    """The state of one walk over the graph; what the rules talk to.

    `node` is the operation being walked, `path` its module, `scope` the part with a graph of its own that it stands in."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.places: list[Place] = []
        self.classes = {symmetry: Classes() for symmetry in SYMMETRIES}
        self.entries: dict[tuple[str, int], Entry] = {}
        self.wires: dict[tuple[int, int], str] = {}  # (source, target): one of WIRES
        self.read_off: set[int] = set()  # sites of the state dict's own entries, as they come
        self.idle: set[int] = set()  # sites that nothing writes, or nothing reads: alone they are no units
        self.constants: set[str] = set()  # entries of the state dict that the forward pass takes as they are
        self.node: Node | None = None
        self.path = self.scope = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result of the operation being walked, of the first where it has several."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, tuple | list) else value).shape)

    @property
    def operation(self) -> str:
        """Name of the operation being walked, without its namespace and overload: "relu" of aten.relu_.default too."""
        return operation(self.node)[0]

    def is_read(self, number: int) -> bool:
        """Whether anyone reads this one of the several results of the operation being walked."""
        return any(user.users for user in self.node.users if user.args[1] == number)

    # making sites

    def new(self, size: int, key: str | None = None) -> Label:
        """Units that the operation being walked writes: one free site, or several where an earlier walk found a cut."""
        key = self.scope + (key or self.node.name)
        bounds = [0, *sorted(self.layout.cuts.get(key, ())), size]
        label: list[Segment] = []
        for start, stop in pairwise(bounds):
            share = self.layout.shares.get((key, start))
            copies, units, repeat = share or (1, stop - start, 1)
            site = self._open(Place(self.path or self.node.name, units, key, start, share=share))
            label += [Segment(site, units, repeat)] * copies
        return tuple(label)

    def like(self, label: Label, kind: str) -> Label:
        """New sites with factors of their own that are permuted together with those of `label`, at the end of a wire of this kind."""
        new: dict[int, int] = {}
        for segment in label:
            if segment.site not in new:
                new[segment.site] = self._open(Place(self.path or self.node.name, segment.size))
                self.tie_sites(segment.site, new[segment.site], kind, ("permutation",))
        return tuple(Segment(new[segment.site], segment.size, segment.repeat) for segment in label)

    def position(self, size: int) -> Label:
        """An axis of positions, batch or input features: no symmetry at all."""
        name = self.node.name if self.node is not None else ""
        site = self._open(Place(name, size, position=True))
        self.pin_site(site, SYMMETRIES)
        return (Segment(site, size),)

    def uniform(self, size: int) -> Label:
        """Positions along which one entry was expanded."""
        label = self.position(size)
        self.places[label[0].site] = replace(self.places[label[0].site], uniform=True)
        return label

    def zeros(self, size: int, number: int) -> Label:
        """An axis of zeros, which move with whatever is tied to them: the `number`-th of the operation being walked."""
        label = self.new(size, f"{self.node.name}/zeros{number}")
        self.idle |= {segment.site for segment in label}
        return label

    def positions(self, shape: Iterable[int]) -> Value:
        return Value(tuple(self.position(size) for size in shape))

    def _open(self, place: Place) -> int:
        self.places.append(place)
        for classes in self.classes.values():
            classes.add()
        return len(self.places) - 1

    # tying and pinning

    def pin(self, *labels: Label, symmetries: Iterable[str] = SYMMETRIES) -> None:
        for label in labels:
            for segment in label:
                self.pin_site(segment.site, symmetries)

    def pin_site(self, site: int, symmetries: Iterable[str]) -> None:
        for symmetry in symmetries:
            self.classes[symmetry].pin(site)

    def is_position(self, label: Label) -> bool:
        return all(self.places[segment.site].position for segment in label)

    def is_uniform(self, label: Label) -> bool:
        return bool(label) and all(self.places[segment.site].uniform for segment in label)

    def free(self, label: Label, symmetry: str) -> bool:
        return any(self.classes[symmetry].free(segment.site) for segment in label)

    def tie(self, a: Label, b: Label, kind: str, symmetries: Iterable[str] = SYMMETRIES) -> None:
        """Unit i of `a` and unit i of `b` move together; a wire of this kind leads from `a` to `b`."""
        for one, other in self.align(a, b):
            self.tie_sites(one.site, other.site, kind, symmetries)

    def tie_sites(self, a: int, b: int, kind: str, symmetries: Iterable[str]) -> None:
        """As `tie`, for the units of two sites."""
        for symmetry in symmetries:
            self.classes[symmetry].tie(a, b)
        if not (self.places[a].position or self.places[b].position):
            self.wire(a, b, kind)

    def wire(self, a: int, b: int, kind: str) -> None:
        """Note a wire from site `a` to site `b`; the first relation of two sites names it."""
        assert kind in WIRES
        if a != b and (b, a) not in self.wires:
            self.wires.setdefault((a, b), kind)

    def align(self, a: Label, b: Label) -> list[tuple[Segment, Segment]]:
        """Pair the segments of two axes of one length; cut sites where this takes it, and pin them where cuts do not help."""
        require(length(a) == length(b), f"axes of {length(a)} and {length(b)} entries")
        if [(s.size, s.repeat) for s in a] == [(s.size, s.repeat) for s in b]:
            return list(zip(a, b, strict=True))
        if not (self.is_position(a) or self.is_position(b)):
            self._cut_like(a, b)
            self._cut_like(b, a)
            self._share_like(a, b)
        self.pin(a, b)
        return []

    # refining the layout

    def part(self, label: Label, start: int, stop: int) -> Label:
        """Entries start to stop of an axis."""
        if (start, stop) == (0, length(label)):
            return label
        if self.is_position(label):
            return self.position(stop - start)
        kept, offset, clean = [], 0, True
        for segment in label:
            first, last = max(start - offset, 0), min(stop - offset, segment.length)
            offset += segment.length
            if first >= last:
                continue
            if (first, last) == (0, segment.length):
                kept.append(segment)
            elif self.places[segment.site].position:
                kept += self.position(last - first)
            else:
                clean &= all(bound in (0, segment.length) or self._cut(segment, bound) for bound in (first, last))
        return tuple(kept) if clean else self.broken((label,), stop - start)

    def broken(self, labels: Iterable[Label], size: int) -> Label:
        """An axis that the table cannot say: what went into it is pinned, and its units are positions."""
        self.pin(*labels)
        return self.position(size)

    def _cut_like(self, label: Label, other: Label) -> None:
        bounds = {0}
        for segment in other:
            bounds.add(max(bounds) + segment.length)
        offset = 0
        for segment in label:
            for bound in sorted(bounds):
                if offset < bound < offset + segment.length:
                    self._cut(segment, bound - offset)
            offset += segment.length

    def _share_like(self, a: Label, b: Label) -> None:
        if [s.length for s in a] == [s.length for s in b]:
            for one, other in zip(a, b, strict=True):
                coarse, fine = (one, other) if one.repeat > other.repeat else (other, one)
                if fine.repeat == 1 < coarse.repeat:
                    self.share(fine, 1, coarse.size, coarse.repeat)

    def _cut(self, segment: Segment, entry: int) -> bool:
        """Cut the site of a segment, and every site that is permuted with it, and walk again; False if that cannot be."""
        unit, rest = divmod(entry, segment.repeat)
        origins = self._origins(segment.site)
        if rest or not origins or any(place.share for place in origins):
            return False
        for place in origins:
            self.layout.cuts.setdefault(place.key, set()).add(place.start + unit)
        raise Restart

    def share(self, segment: Segment, copies: int, units: int, repeat: int) -> None:
        """Let a site be `copies` times `units` blocks of `repeat` entries, and walk again; nothing happens where that cannot be."""
        wanted = {}
        for place in self._origins(segment.site):
            before, _, blocks = place.share or (1, 0, 1)
            wanted[place.key, place.start] = (before * copies, units, blocks * repeat)
        if wanted and segment.repeat == 1 and not any((*at, share) in self.layout.refused for at, share in wanted.items()):
            self.layout.shares |= wanted
            raise Restart

    def settle(self) -> None:
        """Make positions of the idle sites that were tied to no others."""
        root = self.classes["permutation"].root
        used = {root(site) for site in range(len(self.places)) if site not in self.idle}
        for site in self.idle:
            if root(site) not in used:
                self.pin_site(site, SYMMETRIES)
                self.places[site] = replace(self.places[site], position=True)

    def refuse(self) -> None:
        """Forget the shares whose units are pinned after all, and walk again from the start; else do nothing."""
        free = self.classes["permutation"].free
        idle = {(p.key, p.start, p.share) for site, p in enumerate(self.places) if p.share and not free(site)} - self.layout.refused
        if idle:
            self.layout.refused |= idle
            self.layout.shares.clear()
            self.layout.cuts.clear()
            raise Restart

    def _origins(self, site: int) -> list[Place]:
        """The places that make the sites permuted with this one; none if one of them cannot be refined."""
        root = self.classes["permutation"].root
        tied = [place for other, place in enumerate(self.places) if root(other) == root(site)]
        return [] if any(place.position for place in tied) else [place for place in tied if place.key is not None]


def operation(node: Node) -> tuple[str, bool]:
    """Name of an operation, and whether it works in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target.__name__, False
    name = schema.name.removeprefix("aten::")
    return (name.removesuffix("_"), name != "detach_") if name.endswith("_") else (name, False)
