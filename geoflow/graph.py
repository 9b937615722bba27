"""Lay a network out as a graph: units are nodes, weights are edges, each scalar exactly once."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.spec import NetworkSpec, Piece


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
class Graph:
    """The structure of a network's graph; `index` fields point into a weight vector, so any theta of this spec fits it.

    `scalars` are the weights that belong to no unit (a PReLU slope shared by all) and, behind them, `extras` further coordinates
    that a chart appends to the weight vector; `unseen` are coordinates that this view leaves out (see `leading`).
    """

    spec: NetworkSpec
    blocks: tuple[Block, ...]
    features: tuple[NodeFeature, ...]
    scalars: Int[Tensor, " scalars"]
    unseen: Int[Tensor, " unseen"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @cached_property
    def entries(self) -> Int[Tensor, " size"]:
        """The coordinates of all blocks, features, scalars and unseen ones, laid one after the other."""
        return torch.cat([*(part.index.flatten() for part in (*self.blocks, *self.features)), self.scalars, self.unseen])

    @cached_property
    def order(self) -> Int[Tensor, " size"]:
        """Where each coordinate stands among the entries."""
        return self.entries.argsort()

    @cached_property
    def size(self) -> int:
        """Length of the vectors that this graph is a view of."""
        return sum(part.index.numel() for part in (*self.blocks, *self.features)) + len(self.scalars) + len(self.unseen)

    @cached_property
    def unit_of(self) -> Int[Tensor, " size"]:
        """The unit that each coordinate belongs to, numbered from 0: an edge belongs to its target, a scalar is a unit of its own."""
        first, owner = site_starts(self.spec), torch.empty(self.size, dtype=torch.long)
        for site, index in [(block.target, block.index) for block in self.blocks] + [(part.site, part.index) for part in self.features]:
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
        edges = [(b.source, b.target) for b in self.blocks] + [(f, t) for f, t in self.spec.links]
        for _ in self.spec.sites:  # longest path; a layer that is used twice closes a cycle, so the number of sweeps is bounded
            for source, target in edges:
                if source < target:
                    steps[target] = max(steps[target], steps[source] + 1)
        longest = max(1, *steps)
        return tuple(step / longest for step in steps)


@lru_cache(maxsize=64)
def _layout(spec: NetworkSpec) -> tuple[tuple[Block, ...], tuple[NodeFeature, ...], Tensor]:
    blocks, features, scalars = [], [], []
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
                site = pieces[sited[0]].owner
                index = _units_first(part, pieces, sited)
                features.append(NodeFeature(site, f"{tensor.kind}:{spec.sites[site].role}:{index.shape[-1]}", index))
            elif len(sited) == 2:
                sited.sort(key=lambda axis: (fixed[axis], pieces[axis].writes is None))  # inputs are no targets
                target, source = (pieces[a].owner for a in sited)
                index = _units_first(part, pieces, sited)
                roles = f"{spec.sites[target].role}<{spec.sites[source].role}"
                blocks.append(Block(target, source, f"{tensor.kind}:{roles}:{index.shape[-1]}", index))
            else:
                raise ValueError(f"{tensor.name!r} joins {len(sited)} sites; a graph's edge joins two.")
    empty = torch.zeros(0, dtype=torch.long)
    return tuple(blocks), tuple(features), torch.cat([empty, *scalars])


def graph_of(spec: NetworkSpec, extras: int = 0) -> Graph:
    """The graph of a network: a view of its table, the same for every weight vector.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> [tuple(block.index.shape) for block in graph.blocks]
    [(3, 4, 1), (2, 3, 1)]
    """
    blocks, features, scalars = _layout(spec)
    return Graph(spec, blocks, features, torch.cat([scalars, torch.arange(spec.weights, spec.weights + extras)]))


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
    tied = {feature.site for feature in graph.features} | {block.target for block in graph.blocks} | {site for site, _ in graph.spec.links}
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
    return Graph(replace(graph.spec, sites=sites), blocks, graph.features, graph.scalars, unseen)


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


def to_pyg(spec: NetworkSpec, theta: Float[Tensor, " weights"], mask: Tensor | None = None):
    """One network as a `torch_geometric.data.Data`: one node per unit, one edge per pair of joined units.

    `edge_attr` is padded with zeros to the widest feature; `x` has one column per feature of a node tensor (a bias, a gain), 0 where a site
    has none; `edge_block` and `site` say where edges and nodes come from.
    `mask` (of theta's shape, True where a weight exists) drops the edges of pruned weights: by structure, never by value.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> data = geoflow.to_pyg(spec, geoflow.pack(spec, network.state_dict()))
    >>> data.num_nodes, data.num_edges
    (9, 18)
    """
    from torch_geometric.data import Data

    if tuple(theta.shape) != (spec.weights,):
        raise ValueError(f"A graph is made of one network of {spec.weights} weights, not of {tuple(theta.shape)}.")
    graph = graph_of(spec)
    first = site_starts(spec)
    widest = max([block.index.shape[-1] for block in graph.blocks], default=1)
    edges, attributes, owners = [torch.zeros(2, 0, dtype=torch.long)], [theta.new_zeros(0, widest)], [torch.zeros(0, dtype=torch.long)]
    for number, block in enumerate(graph.blocks):
        target, source = torch.meshgrid(torch.arange(block.index.shape[0]), torch.arange(block.index.shape[1]), indexing="ij")
        keep = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.cpu()[block.index].any(-1)
        edges.append(torch.stack([source[keep] + first[block.source], target[keep] + first[block.target]]))
        values = theta[block.index[keep]]
        attributes.append(torch.nn.functional.pad(values, (0, widest - values.shape[-1])))
        owners.append(torch.full((len(values),), number))
    x = theta.new_zeros(first[-1], sum(feature.index.shape[-1] for feature in graph.features) or 1)
    column = 0
    for feature in graph.features:
        rows = slice(first[feature.site], first[feature.site] + feature.index.shape[0])
        x[rows, column : column + feature.index.shape[-1]] = theta[feature.index]
        column += feature.index.shape[-1]
    site = torch.repeat_interleave(torch.arange(len(spec.sites)), torch.tensor([s.size for s in spec.sites]))
    return Data(
        x=x,
        edge_index=torch.cat(edges, 1).to(theta.device),
        edge_attr=torch.cat(attributes),
        edge_block=torch.cat(owners).to(theta.device),
        site=site.to(theta.device),
        scalars=theta[graph.scalars],
    )


def site_starts(spec: NetworkSpec) -> list[int]:
    """The number of each site's first node, and the number of nodes at the end."""
    starts = [0]
    for site in spec.sites:
        starts.append(starts[-1] + site.size)
    return starts
