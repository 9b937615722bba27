"""Record what one walk over the graph finds: sites, and which of their units move together."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch.fx import Node

from geoflow.spec import SYMMETRIES, WIRES
from geoflow.wiring.classes import Classes
from geoflow.wiring.labels import Entry, Label, Segment, Value, length
from geoflow.wiring.layout import Layout, Place
from geoflow.wiring.maps import Maps
from geoflow.wiring.nodes import operation
from geoflow.wiring.rules import require

MEASURES = ("scaling", "sign")  # the symmetries that multiply


class Ledger:
    """What one walk over the traced graph has found so far. Rules read it and add to it.

    Rules tie and pin units. Tied units move together. A symmetry does not move the units that are pinned for it. A label is one axis of an
    activation: a tuple of segments, each with the units of one site (see `Value`). Positions are axes that no symmetry moves, such as the
    batch, the pixels or the input features.

    `node` is the current operation, `path` its module, and `scope` the inner graph in which it stands.

    A site that has to be cut in another way is pinned for the rest of the walk. So one walk finds many cuts. `refined` are the places whose
    cuts it has changed in the layout. If there are any, what it found is of no use, and another walk follows.

    >>> from geoflow.wiring.layout import Layout
    >>> from geoflow.wiring.ledger import Ledger
    >>> ledger = Ledger(Layout())
    >>> label = ledger.position(4)
    >>> ledger.is_position(label), ledger.free(label, "permutation")
    (True, False)
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.places: list[Place] = []
        self.classes = {symmetry: Classes() for symmetry in SYMMETRIES}
        self.maps = Maps()
        self.entries: dict[tuple[str, int], Entry] = {}
        self.wires: dict[tuple[int, int], str] = {}  # (source, target): one of WIRES
        self.read_off: set[int] = set()  # sites of entries that are used as activations
        self.idle: set[int] = set()  # sites that nothing writes or nothing reads
        self.refined: dict[tuple[str, int], str] = {}  # "cut" or "share"
        self.constants: set[str] = set()  # entries that the forward pass uses but no weight vector holds
        self.node: Node | None = None
        self.path = self.scope = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the current operation's result, or of its first result."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, tuple | list) else value).shape)

    @property
    def operation(self) -> str:
        """The name of the current operation, such as "relu" for aten.relu_.default."""
        return operation(self.node)[0]

    def is_read(self, number: int) -> bool:
        """Whether a later operation reads the result `number` of the current operation."""
        return any(user.users for user in self.node.users if user.args[1] == number)

    # make sites

    def new(self, size: int, key: str | None = None) -> Label:
        """Units that the current operation writes. They are one free site, or several if an earlier walk found a cut."""
        key = self.scope + (key or self.node.name)
        bounds = [0, *sorted(self.layout.cuts.get(key, ())), size]
        label: list[Segment] = []
        for start, stop in pairwise(bounds):
            share = self.layout.shares.get((key, start))
            copies, units, repeat = share or (1, stop - start, 1)
            place = Place(self.path or self.node.name, units, key, start, share=share)
            sites = [self._open(place) for _ in range(copies if repeat > 1 else 1)]
            for site in sites if repeat > 1 else ():
                self._open_inside(site, repeat)
                self.tie_sites(sites[0], site, "concatenation", SYMMETRIES)
            label += [Segment(site, units, repeat) for site in sites] * (copies // len(sites))
        return tuple(label)

    def like(self, label: Label, kind: str) -> Label:
        """New sites, permuted together with those of `label` along wires of this kind. Their scales and signs are their own."""
        new: dict[int, int] = {}
        for segment in label:
            if segment.site not in new:
                new[segment.site] = self._open(Place(self.path or self.node.name, segment.size))
                self.maps.pin(self.maps.of(segment), new[segment.site])
                self.tie_sites(segment.site, new[segment.site], kind, ("permutation",))
        return tuple(Segment(new[segment.site], segment.size, segment.repeat) for segment in label)

    def position(self, size: int) -> Label:
        """An axis of positions. No symmetry moves it."""
        name = self.node.name if self.node is not None else ""
        site = self._open(Place(name, size, position=True))
        self.pin_site(site, SYMMETRIES)
        self.maps.pin(site)
        return (Segment(site, size),)

    def uniform(self, size: int) -> Label:
        """Positions along which all elements are equal, because one element was expanded."""
        label = self.position(size)
        self.places[label[0].site] = replace(self.places[label[0].site], uniform=True)
        return label

    def zeros(self, size: int, number: int) -> Label:
        """An axis of zeros. They move with the units that they are tied to. `number` tells apart the zeros of one operation."""
        label = self.new(size, f"{self.node.name}/zeros{number}")
        self.idle |= {segment.site for segment in label}
        return label

    def positions(self, shape: Iterable[int]) -> Value:
        return Value(tuple(self.position(size) for size in shape))

    def _open(self, place: Place) -> int:
        self.places.append(place)
        for classes in (*self.classes.values(), self.maps.classes):
            classes.add()
        return len(self.places) - 1

    def _open_inside(self, site: int, repeat: int) -> None:
        """A site for the vectors inside the units of another. Only linear maps move it."""
        inner = self._open(Place(self.places[site].name, repeat, position=True))
        self.pin_site(inner, SYMMETRIES)
        self.maps.enter(site, inner, repeat)

    # tie and pin

    def pin(self, *labels: Label, symmetries: Iterable[str] = SYMMETRIES) -> None:
        """Declare that these symmetries do not move the units of these axes. By default these are all symmetries.

        What one of them does not move, linear maps do not move either.
        """
        for label in labels:
            for segment in label:
                self.pin_site(segment.site, symmetries)
                self.maps.pin(*([self.maps.of(segment)] if symmetries else []))

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
        """Let unit i of `a` and unit i of `b` move together, and join them by a wire from `a` to `b`."""
        for one, other in self.align(a, b):
            self.tie_sites(one.site, other.site, kind, symmetries)
            ends = self.maps.of(one), self.maps.of(other)
            self.maps.tie(*ends) if tuple(symmetries) == SYMMETRIES else self.maps.pin(*ends)

    def tie_against(self, a: Label, b: Label, kind: str, symmetries: Iterable[str]) -> None:
        """Tie two axes whose products are summed: what multiplies the vector of one, divides that of the other."""
        for one, other in self.align(a, b):
            self.tie_sites(one.site, other.site, kind, symmetries)
            self.maps.tie(self.maps.of(one), self.maps.of(other), dual=True)

    def together(self, a: int, b: int, symmetry: str = "permutation") -> bool:
        """Whether a symmetry moves the units of two sites together."""
        return self.classes[symmetry].root(a) == self.classes[symmetry].root(b)

    def summed(self, labels: Sequence[Label], *axes: int) -> None:
        """A sum over some axes of an activation. If heads lie along one of them, the vectors of these heads are mixed."""
        self.maps.pin_strays([label for axis, label in enumerate(labels) if axis not in {a % len(labels) for a in axes}], self.together)

    def tie_sites(self, a: int, b: int, kind: str, symmetries: Iterable[str]) -> None:
        """Tie the units of two sites."""
        for symmetry in symmetries:
            self.classes[symmetry].tie(a, b)
        if not (self.places[a].position or self.places[b].position):
            self.wire(a, b, kind)

    def wire(self, a: int, b: int, kind: str) -> None:
        """Record a wire from the site `a` to the site `b`. If there is one already, it stays."""
        assert kind in WIRES
        if a != b and (b, a) not in self.wires:
            self.wires.setdefault((a, b), kind)

    def align(self, a: Label, b: Label) -> list[tuple[Segment, Segment]]:
        """Pair the segments of two axes of one length. If they do not match, sites are cut. If no cut helps, both axes are pinned."""
        require(length(a) == length(b), f"axes of different lengths, {length(a)} and {length(b)}")
        if [(s.size, s.repeat) for s in a] == [(s.size, s.repeat) for s in b]:
            return list(zip(a, b, strict=True))
        if self.is_position(a) or self.is_position(b):  # positions have no segments of their own
            whole, cut = (a, b) if self.is_position(a) else (b, a)
            self.maps.pin(*self.maps.within(whole))
            beside = [Segment(self.position(s.size)[0].site, s.size, s.repeat) for s in cut]
            return list(zip(beside, cut, strict=True) if whole is a else zip(cut, beside, strict=True))
        self._cut_like(a, b)
        self._cut_like(b, a)
        self._share_like(a, b)
        self.pin(a, b)
        return []

    # refine the layout

    def part(self, label: Label, start: int, stop: int) -> Label:
        """Elements `start` to `stop` of an axis. A site that reaches over an end is cut there."""
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
                clean = False
                for bound in {first, last} - {0, segment.length}:
                    self._cut(segment, bound)
        return tuple(kept) if clean else self.broken((label,), stop - start)

    def broken(self, labels: Iterable[Label], size: int) -> Label:
        """Positions in the place of axes that the table cannot describe. The axes are pinned."""
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

    def _cut(self, segment: Segment, entry: int) -> None:
        """Cut a segment's site in the next walk, and all sites permuted with it, if that is possible."""
        unit, rest = divmod(entry, segment.repeat)
        origins = self._origins(segment.site)
        if rest or any(place.share or self.refined.get((place.key, place.start)) == "share" for place in origins):
            return
        for place in origins:
            self.layout.cuts.setdefault(place.key, set()).add(place.start + unit)
            self.refined[place.key, place.start] = "cut"

    def share(self, segment: Segment, copies: int, units: int, repeat: int) -> None:
        """Cut a site into `copies` times `units` blocks of `repeat` elements that move as one, in the next walk, if that is possible."""
        wanted = {}
        for place in self._origins(segment.site):
            before, _, blocks = place.share or (1, 0, 1)
            wanted[place.key, place.start] = (before * copies, units, blocks * repeat)
        refused = any((*at, share) in self.layout.refused for at, share in wanted.items())
        fixed = any(self.places[other].position for other in self.classes["permutation"].members(segment.site))
        if wanted and segment.repeat == 1 and not (fixed or refused or wanted.keys() & self.refined.keys()):
            self.layout.shares |= wanted
            self.refined |= dict.fromkeys(wanted, "share")

    def settle(self) -> None:
        """Turn idle sites into positions unless they are tied to other sites."""
        root = self.classes["permutation"].root
        used = {root(site) for site in range(len(self.places)) if site not in self.idle}
        for site in self.idle:
            if root(site) not in used:
                self.pin_site(site, SYMMETRIES)
                self.places[site] = replace(self.places[site], position=True)

    def refuse(self) -> bool:
        """Drop the shares whose units nothing moves in the end. Returns whether there are any, so that another walk has to follow."""
        free = self.classes["permutation"].free
        shares = [(site, place) for site, place in enumerate(self.places) if place.share and not free(site)]
        mapped = {(p.key, p.start, p.share) for site, p in shares if self.maps.classes.free(self.maps.inside.get(site, site))}
        idle = {(p.key, p.start, p.share) for _, p in shares} - mapped - self.layout.refused
        if idle:
            self.layout.refused |= idle
            self.layout.shares.clear()
            self.layout.cuts.clear()
        return bool(idle)

    def _origins(self, site: int) -> list[Place]:
        """Where the sites come from that are permuted with this one, and that can be cut."""
        tied = (self.places[other] for other in self.classes["permutation"].members(site))
        return [place for place in tied if place.key is not None]
