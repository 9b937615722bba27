"""Lay a network out as a graph: units are nodes, weights are edges, each scalar exactly once."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.spec import ONE_UNIT, NetworkSpec, Piece


@dataclass(frozen=True, eq=False)
class Block:
    """All edges from the units of `source` to the units of `target` that one tensor holds: a dense rectangle of features.

    `key` says in which role, in words that other architectures share: kind:target<source:features.
    """

    target: int
    source: int
    key: str
    index: Int[Tensor, "target source features"]


@dataclass(frozen=True, eq=False)
class NodeFeature:
    """What one tensor says of every unit of a site, such as its bias; `key` is kind:site:features."""

    site: int
    key: str
    index: Int[Tensor, "units features"]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """One edge from each unit of `source` to the same unit of `target`: a wire of the table, of the kind `wire`.

    `index` and `key` are those of a NodeFeature of the target, for the diagonal tensor that lies on the wire, such as a gain. Where
    none does, there are no features and `key` is empty.
    """

    target: int
    source: int
    wire: str
    key: str
    index: Int[Tensor, "units features"]


@dataclass(frozen=True, eq=False)
class Graph:
    """The structure of a network's graph; `index` fields point into a weight vector, so any theta of this spec fits it.

    `blocks` are dense rectangles of edges, `diagonals` edges from unit to unit. `scalars` are the weights that belong to no unit (a PReLU
    slope shared by all). Behind them stand the `extras` further coordinates that a chart appends to the weight vector. `unseen` are
    coordinates that this view leaves out (see `leading`).
    """

    spec: NetworkSpec
    blocks: tuple[Block, ...]
    features: tuple[NodeFeature, ...]
    diagonals: tuple[Diagonal, ...]
    scalars: Int[Tensor, " scalars"]
    unseen: Int[Tensor, " unseen"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @cached_property
    def of_units(self) -> tuple[NodeFeature, ...]:
        """What is said of single units: the features of nodes, and those of diagonals, told of the unit that a diagonal leads to."""
        loaded = [diagonal for diagonal in self.diagonals if diagonal.key]
        return (*self.features, *(NodeFeature(diagonal.target, diagonal.key, diagonal.index) for diagonal in loaded))

    @cached_property
    def parts(self) -> tuple[Block | NodeFeature, ...]:
        """All that holds coordinates but the scalars."""
        return (*self.blocks, *self.of_units)

    @cached_property
    def entries(self) -> Int[Tensor, " size"]:
        """The coordinates of all blocks, units, scalars and unseen ones, laid one after the other."""
        return torch.cat([*(part.index.flatten() for part in self.parts), self.scalars, self.unseen])

    @cached_property
    def order(self) -> Int[Tensor, " size"]:
        """Where each coordinate stands among the entries."""
        return self.entries.argsort()

    @cached_property
    def size(self) -> int:
        """Length of the vectors that this graph is a view of."""
        return len(self.entries)

    @cached_property
    def unit_of(self) -> Int[Tensor, " size"]:
        """The unit that each coordinate belongs to, numbered from 0: an edge belongs to its target, a scalar is a unit of its own.

        A unit and what a wire of ONE_UNIT makes of it, such as its normalised self, count as one: a gain is no unit by itself.
        """
        first, owner = site_starts(self.spec), torch.empty(self.size, dtype=torch.long)
        before: dict[int, int] = {}
        for diagonal in self.diagonals:
            if diagonal.wire in ONE_UNIT:
                before.setdefault(diagonal.target, diagonal.source)
        first = [first[_root(site, before)] for site in range(len(self.spec.sites))] + first[-1:]
        for site, index in [(block.target, block.index) for block in self.blocks] + [(part.site, part.index) for part in self.of_units]:
            owner[index] = torch.arange(first[site], first[site] + len(index)).view(-1, *[1] * (index.ndim - 1)).expand(index.shape)
        owner[self.scalars] = torch.arange(len(self.scalars)) + first[-1]
        return owner.unique(return_inverse=True)[1]

    @cached_property
    def units(self) -> int:
        """How many units `unit_of` tells apart."""
        return int(self.unit_of.max()) + 1

    @cached_property
    def places(self) -> Float[Tensor, "sites 3"]:
        """Of each site its depth, and whether it is an input and an output: what any architecture says of its sites."""
        return torch.tensor([[depth, s.role == "input", s.role == "output"] for depth, s in zip(self.depth, self.spec.sites, strict=True)])

    @cached_property
    def depth(self) -> tuple[float, ...]:
        """Distance of each site from the inputs over the distance input - output, in [0, 1]: a place that any depth shares."""
        steps = [0] * len(self.spec.sites)
        edges = [(b.source, b.target) for b in self.blocks] + [tuple(sorted((w.source, w.target))) for w in self.spec.wires]
        for _ in self.spec.sites:  # longest path; a layer that is used twice closes a cycle, so the number of sweeps is bounded
            for source, target in edges:
                if source < target:
                    steps[target] = max(steps[target], steps[source] + 1)
        longest = max(1, *steps)
        return tuple(step / longest for step in steps)


def _root(site: int, before: dict[int, int]) -> int:
    """The site where a chain of sites that are made one of the other begins."""
    passed = {site}
    while site in before:
        site = before[site]
        assert site not in passed, "a site cannot be made of itself alone"
        passed.add(site)
    return site


@lru_cache(maxsize=64)
def _layout(spec: NetworkSpec) -> tuple[tuple[Block, ...], tuple[NodeFeature, ...], tuple[Diagonal, ...], Tensor]:
    blocks, features, diagonals, scalars = [], [], [], []
    wires, loaded = {(wire.source, wire.target): wire.kind for wire in spec.wires}, set()
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        flat = torch.arange(offset, offset + tensor.numel).reshape(tensor.shape)
        for pieces, part in _rectangles(tensor.axes, flat):
            sited = [axis for axis, piece in enumerate(pieces) if piece.writes is not None or piece.reads is not None]
            if len(sited) > 2:  # what nothing moves are positions
                sited = [axis for axis in sited if not spec.sites[pieces[axis].owner].pinned]
            fixed = {axis: spec.sites[pieces[axis].owner].role == "input" for axis in sited}
            if len(sited) == 2 and all(fixed.values()):  # inputs are told of, but learn nothing
                sited = sited[:1]
            if not sited:
                scalars.append(part.flatten())
            elif len(sited) == 1:
                piece, site = pieces[sited[0]], pieces[sited[0]].owner
                index = _units_first(part, pieces, sited)
                key = f"{tensor.kind}:{spec.sites[site].role}:{index.shape[-1]}"
                if None in (piece.writes, piece.reads):
                    features.append(NodeFeature(site, key, index))
                else:  # the table of older files, and of units that nothing moves, does not say which wire it lies on
                    ends = piece.reads, piece.writes
                    kind = wires.get(ends, "depthwise" if tensor.kind == "weight" else "gain")
                    diagonals.append(Diagonal(site, piece.reads, kind, key, index))
                    loaded.add(ends)
            elif len(sited) == 2:
                sited.sort(key=lambda axis: (fixed[axis], pieces[axis].writes is None))  # inputs are no targets
                target, source = (pieces[a].owner for a in sited)
                index = _units_first(part, pieces, sited)
                roles = f"{spec.sites[target].role}<{spec.sites[source].role}"
                blocks.append(Block(target, source, f"{tensor.kind}:{roles}:{index.shape[-1]}", index))
            else:
                raise ValueError(f"{tensor.name!r} joins {len(sited)} sites; a graph's edge joins two.")
    nothing = {site: torch.zeros(spec.sites[site].size, 0, dtype=torch.long) for _, site in wires}
    left = {ends: kind for ends, kind in wires.items() if ends not in loaded}
    bare = [Diagonal(target, source, kind, "", nothing[target]) for (source, target), kind in left.items()]
    empty = torch.zeros(0, dtype=torch.long)
    return tuple(blocks), tuple(features), (*diagonals, *bare), torch.cat([empty, *scalars])


def graph_of(spec: NetworkSpec, extras: int = 0) -> Graph:
    """The graph of a network: a view of its table, the same for every weight vector.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> [tuple(block.index.shape) for block in graph.blocks]
    [(3, 4, 1), (2, 3, 1)]
    """
    *parts, scalars = _layout(spec)
    return Graph(spec, *parts, torch.cat([scalars, torch.arange(spec.weights, spec.weights + extras)]))


def pinned_sites(graph: Graph) -> dict[str, int]:
    """The numbers of the sites whose units are not exchangeable, by a name that other architectures for the same task share."""
    counts: dict[str, int] = {}
    named = {}
    for number, site in enumerate(graph.spec.sites):
        if site.permutation is None:
            counts[site.role] = counts.get(site.role, -1) + 1
            named[f"{site.role}{counts[site.role]}"] = number
    return named


@lru_cache(maxsize=64)
def plain_inputs(graph: Graph) -> dict[str, list[Block]]:
    """Inputs that nothing but weights reads (no gain of their own, no residual link), by their name, with these weights."""
    tied = {feature.site for feature in graph.of_units} | {block.target for block in graph.blocks}
    tied |= {site for diagonal in graph.diagonals for site in (diagonal.source, diagonal.target)}
    found = {}
    for name, number in pinned_sites(graph).items():
        blocks = [block for block in graph.blocks if block.source == number]
        if graph.spec.sites[number].role == "input" and number not in tied and blocks:
            found[name] = blocks
    return found


@lru_cache(maxsize=64)
def leading(graph: Graph, units: int) -> Graph:
    """The view of a graph that ends each plain input after so many units; the weights on further units are `unseen`.

    Its spec counts the seen units of a site only.
    """
    cut = {block for blocks in plain_inputs(graph).values() for block in blocks if block.index.shape[1] > units}
    if not cut:
        return graph
    blocks = tuple(replace(block, index=block.index[:, :units]) if block in cut else block for block in graph.blocks)
    short = {block.source for block in cut}
    sites = tuple(replace(site, size=units) if number in short else site for number, site in enumerate(graph.spec.sites))
    unseen = torch.cat([block.index[:, units:].flatten() for block in graph.blocks if block in cut])
    return replace(graph, spec=replace(graph.spec, sites=sites), blocks=blocks, unseen=unseen)


def _rectangles(axes: tuple[tuple[Piece, ...], ...], flat: Tensor):
    """Every combination of one piece per axis, with the part of the tensor that it cuts out."""
    for chosen in product(*(range(len(axis)) for axis in axes)):
        part = flat
        for dim, (axis, k) in enumerate(zip(axes, chosen, strict=True)):
            start = sum(piece.size * piece.repeat for piece in axis[:k])
            part = part.narrow(dim, start, axis[k].size * axis[k].repeat)
        yield [axis[k] for axis, k in zip(axes, chosen, strict=True)], part


def _units_first(part: Tensor, pieces: list[Piece], sited: list[int]) -> Tensor:
    """[units of the sited axes in order, all the rest flattened]."""
    split = part.reshape([n for piece in pieces for n in (piece.size, piece.repeat)])
    front = [2 * axis for axis in sited]
    back = [dim for dim in range(split.ndim) if dim not in front]
    return split.permute(*front, *back).flatten(len(front)) if back else split.permute(*front).unsqueeze(-1)


def moving_sites(graph: Graph) -> list[int]:
    """The sites whose units have states that a field changes, which it lays one after the other: all but the inputs."""
    return [index for index, site in enumerate(graph.spec.sites) if site.role != "input"]


def moving_units(graph: Graph) -> list[int]:
    """How many units each of them has."""
    return [graph.spec.sites[index].size for index in moving_sites(graph)]


def moving_starts(graph: Graph) -> dict[int, int]:
    """Where the units of each of them begin."""
    return dict(zip(moving_sites(graph), accumulate(moving_units(graph), initial=0), strict=False))


def site_starts(spec: NetworkSpec) -> list[int]:
    """The number of each site's first node, and the number of nodes at the end."""
    starts = [0]
    for site in spec.sites:
        starts.append(starts[-1] + site.size)
    return starts
