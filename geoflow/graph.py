"""Describe a network as a graph: units are nodes, and weights are edges."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.parts import in_sequence
from geoflow.spec import ONE_UNIT, NetworkSpec, Piece, check_edges, unit_axes


@dataclass(frozen=True, eq=False)
class Block:
    """All edges from the units of one site to the units of another that one tensor holds.

    `target` and `source` are indices of sites. `index` [target units, source units, features] holds the places of the edges' weights in
    the weight vector. `key` is the role of the edges, as kind:target<source:features. Other architectures use the same roles.
    """

    target: int
    source: int
    key: str
    index: Int[Tensor, "target source features"]


@dataclass(frozen=True, eq=False)
class NodeFeature:
    """The numbers that one tensor holds for every unit of a site, such as biases.

    `index` [units, features] holds their places in the weight vector. `key` is the role of the tensor, as kind:site:features.
    """

    site: int
    key: str
    index: Int[Tensor, "units features"]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """One edge from each unit of a site to the same unit of another site: a wire of the table, of the kind `wire`.

    If a diagonal tensor such as a gain lies on the wire, `index` and `key` are those of a NodeFeature of the target. Else both are empty.
    """

    target: int
    source: int
    wire: str
    key: str
    index: Int[Tensor, "units features"]


@dataclass(frozen=True, eq=False)
class Graph:
    """The graph of a network. Every weight belongs to it exactly once.

    The graph holds no weights. Each `index` holds places in the weight vector, so one graph serves all networks of the spec.

    - `blocks` are the edges between all units of two sites, and `diagonals` are the edges from unit to unit.
    - `features` are the numbers that belong to single units.
    - `scalars` are the places of weights that belong to no unit, such as a PReLU slope that all units share. The coordinates that a chart
      appends to the weight vector are scalars too.
    - `unseen` are the coordinates that this graph leaves out (see `leading`).

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> graph.size, graph.units, graph.depth
    (23, 5, (0.0, 0.5, 1.0))
    """

    spec: NetworkSpec
    blocks: tuple[Block, ...]
    features: tuple[NodeFeature, ...]
    diagonals: tuple[Diagonal, ...]
    scalars: Int[Tensor, " scalars"]
    unseen: Int[Tensor, " unseen"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @cached_property
    def of_units(self) -> tuple[NodeFeature, ...]:
        """The features of nodes, and those of diagonals. The features of a diagonal belong to its target."""
        loaded = [diagonal for diagonal in self.diagonals if diagonal.key]
        return (*self.features, *(NodeFeature(diagonal.target, diagonal.key, diagonal.index) for diagonal in loaded))

    @cached_property
    def parts(self) -> tuple[Block | NodeFeature, ...]:
        """The blocks and the features of units. Together they hold all coordinates except scalars and unseen ones."""
        return (*self.blocks, *self.of_units)

    @cached_property
    def entries(self) -> Int[Tensor, " size"]:
        """All coordinates, in the order of the parts, the scalars and the unseen ones."""
        return torch.cat([*(part.index.flatten() for part in self.parts), self.scalars, self.unseen])

    @cached_property
    def order(self) -> Int[Tensor, " size"]:
        """The place of each coordinate in `entries`."""
        return self.entries.argsort()

    @cached_property
    def sequence(self) -> tuple[int, ...] | None:
        """The order of the parts, the scalars and the unseen coordinates in the vector. It is None if one of them has gaps."""
        indices = [*(part.index for part in self.parts), *(rest for rest in (self.scalars, self.unseen) if len(rest))]
        return in_sequence(indices)

    @cached_property
    def size(self) -> int:
        """The length of the vectors that this graph describes."""
        return sum(part.index.numel() for part in self.parts) + len(self.scalars) + len(self.unseen)

    @cached_property
    def unit_of(self) -> Int[Tensor, " size"]:
        """The number of the unit that each coordinate belongs to, from 0. An edge belongs to its target, and a scalar is a unit of its own.

        Two units that a wire of ONE_UNIT joins, such as a unit and its normalised value, count as one. So a gain is not a unit of its own.
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
        """The number of units that `unit_of` distinguishes."""
        return int(self.unit_of.max()) + 1

    @cached_property
    def places(self) -> Float[Tensor, "sites 3"]:
        """For each site its depth, whether it is an input, and whether it is an output."""
        return torch.tensor([[depth, s.role == "input", s.role == "output"] for depth, s in zip(self.depth, self.spec.sites, strict=True)])

    @cached_property
    def widths(self) -> Float[Tensor, "sites 1"]:
        """For each site a number that tells its width: twice the inverse root of its number of units. It is bounded for wide sites."""
        return 2 * torch.tensor([[float(site.size)] for site in self.spec.sites]).rsqrt()

    @cached_property
    def depth(self) -> tuple[float, ...]:
        """The depth of each site from 0 to 1: its longest distance from the inputs, divided by the largest of these distances."""
        steps = [0] * len(self.spec.sites)
        edges = [(b.source, b.target) for b in self.blocks] + [tuple(sorted((w.source, w.target))) for w in self.spec.wires]
        for _ in self.spec.sites:  # a layer that is used twice closes a cycle, so the sweeps are bounded
            for source, target in edges:
                if source < target:
                    steps[target] = max(steps[target], steps[source] + 1)
        longest = max(1, *steps)
        return tuple(step / longest for step in steps)


def _root(site: int, before: dict[int, int]) -> int:
    """The first site of a chain in which each site is computed from the one before. `before` maps a site to the one before it."""
    passed = {site}
    while site in before:
        site = before[site]
        assert site not in passed, "a chain of sites leads back to its start"
        passed.add(site)
    return site


@lru_cache(maxsize=64)
def _layout(spec: NetworkSpec) -> tuple[tuple[Block, ...], tuple[NodeFeature, ...], tuple[Diagonal, ...], Tensor]:
    blocks, features, diagonals, scalars = [], [], [], []
    wires, loaded = {(wire.source, wire.target): wire.kind for wire in spec.wires}, set()
    check_edges(spec)
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        flat = torch.arange(offset, offset + tensor.numel).reshape(tensor.shape)
        for pieces, part in _rectangles(tensor.axes, flat):
            sited = unit_axes(spec, pieces)
            fixed = {axis: spec.sites[pieces[axis].owner].role == "input" for axis in sited}
            if len(sited) == 2 and all(fixed.values()):  # the states of inputs do not change, so one axis is enough
                sited = sited[:1]
            if not sited:
                scalars.append(part.flatten())
            elif len(sited) == 1:
                piece, site = pieces[sited[0]], pieces[sited[0]].owner
                index = _units_first(part, pieces, sited)
                key = f"{tensor.kind}:{spec.sites[site].role}:{index.shape[-1]}"
                if None in (piece.writes, piece.reads):
                    features.append(NodeFeature(site, key, index))
                else:  # tables of older files have no wire here, nor do units that no symmetry moves
                    ends = piece.reads, piece.writes
                    kind = wires.get(ends, "depthwise" if tensor.kind == "weight" else "gain")
                    diagonals.append(Diagonal(site, piece.reads, kind, key, index))
                    loaded.add(ends)
            else:
                sited.sort(key=lambda axis: (fixed[axis], pieces[axis].writes is None))  # inputs are never targets
                target, source = (pieces[a].owner for a in sited)
                index = _units_first(part, pieces, sited)
                roles = f"{spec.sites[target].role}<{spec.sites[source].role}"
                blocks.append(Block(target, source, f"{tensor.kind}:{roles}:{index.shape[-1]}", index))
    nothing = {site: torch.zeros(spec.sites[site].size, 0, dtype=torch.long) for _, site in wires}
    left = {ends: kind for ends, kind in wires.items() if ends not in loaded}
    bare = [Diagonal(target, source, kind, "", nothing[target]) for (source, target), kind in left.items()]
    empty = torch.zeros(0, dtype=torch.long)
    return tuple(blocks), tuple(features), (*diagonals, *bare), torch.cat([empty, *scalars])


def graph_of(spec: NetworkSpec, extras: int = 0) -> Graph:
    """The graph of a network. It depends on the table alone. `extras` is a number of further coordinates, which become scalars.

    Raises ValueError if a tensor connects more than two sites whose units can move.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> [tuple(block.index.shape) for block in graph.blocks]
    [(3, 4, 1), (2, 3, 1)]
    """
    *parts, scalars = _layout(spec)
    return Graph(spec, *parts, torch.cat([scalars, torch.arange(spec.weights, spec.weights + extras)]))


def pinned_sites(graph: Graph) -> dict[str, int]:
    """The indices of the sites whose units cannot be permuted, by names such as "input0" that all networks for a task share."""
    counts: dict[str, int] = {}
    named = {}
    for number, site in enumerate(graph.spec.sites):
        if site.permutation is None:
            counts[site.role] = counts.get(site.role, -1) + 1
            named[f"{site.role}{counts[site.role]}"] = number
    return named


@lru_cache(maxsize=64)
def plain_inputs(graph: Graph) -> dict[str, list[Block]]:
    """The inputs that only blocks of weights read, as {name: blocks}. They have no gain of their own, and no wire to another site."""
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
    """The graph with only the weights on the first `units` units of each plain input. The weights on further units are `unseen`.

    In the spec of the result, such an input has the size `units`.
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
    """Every combination of one piece per axis, with the part of the tensor that it covers."""
    for chosen in product(*(range(len(axis)) for axis in axes)):
        part = flat
        for dim, (axis, k) in enumerate(zip(axes, chosen, strict=True)):
            start = sum(piece.size * piece.repeat for piece in axis[:k])
            part = part.narrow(dim, start, axis[k].size * axis[k].repeat)
        yield [axis[k] for axis, k in zip(axes, chosen, strict=True)], part


def _units_first(part: Tensor, pieces: list[Piece], sited: list[int]) -> Tensor:
    """The tensor as [units of each axis in `sited`, features]. All other axes become features."""
    split = part.reshape([n for piece in pieces for n in (piece.size, piece.repeat)])
    front = [2 * axis for axis in sited]
    back = [dim for dim in range(split.ndim) if dim not in front]
    return split.permute(*front, *back).flatten(len(front)) if back else split.permute(*front).unsqueeze(-1)


def moving_sites(graph: Graph) -> list[int]:
    """The indices of all sites except inputs. A field changes the states of their units, and stores them site after site."""
    return [index for index, site in enumerate(graph.spec.sites) if site.role != "input"]


def moving_units(graph: Graph) -> list[int]:
    """The number of units of each of the `moving_sites`."""
    return [graph.spec.sites[index].size for index in moving_sites(graph)]


def moving_starts(graph: Graph) -> dict[int, int]:
    """The number of the first unit of each of the `moving_sites`, as {site: number}. Units of inputs are not counted."""
    return dict(zip(moving_sites(graph), accumulate(moving_units(graph), initial=0), strict=False))


def site_starts(spec: NetworkSpec) -> list[int]:
    """The number of each site's first node, and last the number of all nodes."""
    starts = [0]
    for site in spec.sites:
        starts.append(starts[-1] + site.size)
    return starts
