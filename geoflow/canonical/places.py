"""Find where the units of each group lie in the tensors, and in which order groups are matched."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geoflow.linear import acts
from geoflow.spec import NetworkSpec, Piece


@dataclass(frozen=True)
class Place:
    """A stretch of one axis of a tensor: `units` units of one permutation group, with `repeat` elements each.

    `signs` are the sign groups that flip its elements. `rank` is the number of axes of the tensor. `linear` is the group of linear maps
    that multiply its vectors. These are of `inner` elements in each unit, or of all units if `inner` is 0.
    """

    tensor: int
    axis: int
    rank: int
    start: int
    units: int
    repeat: int
    permutation: int | None
    signs: frozenset[int]
    learned: bool
    linear: int | None = None
    inner: int = 0


@dataclass(frozen=True)
class Node:
    """What one step of the alignment decides: the order of a permutation group, the signs of its units, and how heads are turned.

    `permutation` is None if the order is already decided, or if the group has signs or linear maps only.
    """

    permutation: int | None
    signs: frozenset[int]
    units: int
    places: tuple[Place, ...]
    linear: frozenset[int] = frozenset()

    @property
    def touched(self) -> set[int]:
        """The learned tensors that the node moves."""
        return {place.tensor for place in self.places if place.learned}

    @property
    def quadratic(self) -> bool:
        """True if a learned tensor has this node on two axes, or if two of its signs flip elements along one axis."""
        learned = [place for place in self.places if place.learned]
        axes = {(place.tensor, place.axis) for place in learned}
        return len({tensor for tensor, _ in axes}) < len(axes) or any(len(place.signs & self.signs) > 1 for place in learned)

    def signs_alone(self, signs: frozenset[int]) -> "Node":
        """A node for some of the signs of these units. It leaves the order as it is."""
        return replace(
            self, permutation=None, signs=signs, linear=frozenset(), places=tuple(place for place in self.places if place.signs & signs)
        )

    def maps_alone(self, maps: frozenset[int]) -> "Node":
        """A node for some of the linear maps of these heads. It leaves the order as it is."""
        places = tuple(place for place in self.places if place.linear in maps)
        return replace(self, permutation=None, signs=frozenset(), linear=maps, places=places)


Window = dict[int, Tensor]  # other axis: the indices that are known; a missing axis is known as a whole


def places_of(spec: NetworkSpec) -> list[Place]:
    """Every stretch of every axis of the tensors."""
    found = []
    for number, tensor in enumerate(spec.tensors):
        for along, axis in enumerate(tensor.axes):
            start = 0
            for piece in axis:
                owner = spec.group_of(piece.owner, "permutation")
                signs = _signs(spec, piece, tensor.degree)
                site = None if piece.owner is None else spec.sites[piece.owner]
                maps = () if site is None or not acts(site, piece.repeat) else (site.linear, site.inner)
                found.append(Place(number, along, len(tensor.axes), start, piece.size, piece.repeat, owner, signs, tensor.learned, *maps))
                start += piece.size * piece.repeat
    return found


def _signs(spec: NetworkSpec, piece: Piece, degree: int) -> frozenset[int]:
    """The sign groups that flip an element an odd number of times."""
    written = {spec.group_of(piece.writes, "sign")} if degree % 2 else set()
    return frozenset((written ^ {spec.group_of(piece.reads, "sign")}) - {None})


def nodes_of(spec: NetworkSpec, places: Iterable[Place]) -> list[Node]:
    """One node for each permutation group with the signs of its units and the linear maps of its heads.

    Then one follows for each group of signs, and of linear maps, without permutations.
    """
    homes = {site.sign: site.permutation for site in spec.sites if site.sign is not None}
    heads = [(g, frozenset(s for s, home in homes.items() if home == g), n) for g, n in spec.groups("permutation").items()]
    heads += [(None, frozenset({s}), n) for s, n in spec.groups("sign").items() if homes[s] is None]
    maps = {site.linear: site.permutation for site in spec.sites if site.linear is not None}
    nodes = [
        Node(
            group,
            signs,
            units,
            tuple(p for p in places if (p.permutation == group if group is not None else p.signs & signs)),
            frozenset(g for g, home in maps.items() if home == group is not None),
        )
        for group, signs, units in heads
    ]
    alone = [(g, heads) for g, (heads, _) in spec.linear.items() if maps[g] is None]
    return nodes + [Node(None, frozenset(), n, tuple(p for p in places if p.linear == g), frozenset({g})) for g, n in alone]


def outwards(nodes: list[Node], places: Iterable[Place]) -> Iterator[tuple[Node, list[tuple[Place, Window]]]]:
    """The nodes from the best known to the least known. Each comes with the places whose other axes are pinned or known by then.

    A unit is known by the number of its elements at these places. This number depends on the spec and not on weights. Nodes next to the
    inputs come first. Units may have several signs, such as those before and after a learned gain. Signs that no place decides by then come
    later as a node of their own. So do linear maps, if too few vectors are known to decide a rotation.
    """
    axes: dict[tuple[int, int], list[Place]] = {}
    for place in places:
        axes.setdefault((place.tensor, place.axis), []).append(place)
    left, known, signs, maps = list(nodes), set(), set(), set()
    while left:
        open_places = [[p for p in node.places if p.learned and len(p.signs - signs) <= 1] for node in left]
        views = [[(p, w) for p in found if (w := _window(p, axes, known, signs, maps)) is not None] for found in open_places]
        counts = [sum(_entries(place, window, axes) for place, window in view) for view in views]
        turned = [_turned(node, view, axes) for node, view in zip(left, views, strict=True)]
        counts = [
            count if node.permutation is not None or node.signs or maps else 0
            for node, count, maps in zip(left, counts, turned, strict=True)
        ]
        best = counts.index(max(counts))
        node, view = left[best], views[best]
        rotations = turned[best] if max(counts) else node.linear
        yield replace(node, linear=rotations) if rotations < node.linear else node, view
        told = node.signs & frozenset().union(*(place.signs for place, _ in view)) if view else node.signs  # no later place decides them
        known |= {node.permutation}
        maps |= rotations
        signs |= told
        left[best : best + 1] = [node.signs_alone(node.signs - told)] if told < node.signs else []
        left += [node.maps_alone(node.linear - rotations)] if rotations < node.linear else []


def _turned(node: Node, view: list, axes: dict) -> frozenset[int]:
    """The linear maps of a node for which at least as many vectors are known as these are wide. Biases do not count: they may be zero."""
    seen: dict[int, int] = {}
    widths: dict[int, int] = {}
    for place, window in view:
        if place.linear in node.linear and place.rank > 1:
            entries = _entries(place, window, axes) // (place.inner or 1)  # all entries of one unit belong to vectors of its head
            seen[place.linear] = seen.get(place.linear, 0) + entries
            widths[place.linear] = place.inner or place.units
    return frozenset(g for g, count in seen.items() if count >= widths[g])


def _window(place: Place, axes: dict, known: set, signs: set, maps: set) -> Window | None:
    window = {}
    for axis in range(place.rank):
        stretches = axes[place.tensor, axis]
        seen = [p for p in stretches if p.permutation in {None, *known} and p.signs <= signs and p.linear in {None, *maps}]
        if axis == place.axis or len(seen) == len(stretches):
            continue
        if not seen:
            return None
        window[axis] = torch.cat([torch.arange(p.start, p.start + p.units * p.repeat) for p in seen])
    return window


def _entries(place: Place, window: Window, axes: dict) -> int:
    count = place.repeat
    for axis in set(range(place.rank)) - {place.axis}:
        count *= len(window[axis]) if axis in window else sum(p.units * p.repeat for p in axes[place.tensor, axis])
    return count


def rows(part: Tensor, place: Place, window: Window) -> Tensor:
    """The elements of each unit of a place: [`*batch`, `*shape`] -> [`*batch`, units, elements]."""
    batch = part.ndim - place.rank
    for axis, entries in window.items():
        part = part.index_select(batch + axis, entries.to(part.device))
    part = part.movedim(batch + place.axis, batch).narrow(batch, place.start, place.units * place.repeat)
    return part.reshape(*part.shape[:batch], place.units, -1)
