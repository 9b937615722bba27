"""Predict the flow's velocity with a relational transformer on a network's graph."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geoflow.constants import beside
from geoflow.graph import Graph, leading, moving_sites, moving_units, pinned_sites, plain_inputs
from geoflow.parts import reordered, taken
from geoflow.velocity.embeddings import ConditionEmbedding, TimeEmbedding
from geoflow.velocity.heads import zeroed
from geoflow.velocity.layer import Layer
from geoflow.velocity.wires import wire_ends

NOTHING = "nothing"
# how a layer runs in training: its activations are kept for the gradient, or computed again, which takes less memory and more time
RECOMPUTE: dict[str, Callable] = {
    NOTHING: lambda layer, *given: layer(*given),
    "layers": partial(checkpoint, use_reentrant=False, preserve_rng_state=False),  # a layer draws no random numbers
}


@dataclass(frozen=True)
class TransformerSizes:
    """The sizes of a relational transformer. None of them depends on the networks that are generated.

    `node` and `edge` are the widths of the states. `edge_hidden` is the hidden width of the MLP on edges. The field sees the weights on the
    first `components` units of each input, and predicts 0 for the others. These units are principal axes if the chart uses them.

    Raises ValueError if `node` is not a multiple of `heads`.

    >>> TransformerSizes(layers=2)
    TransformerSizes(layers=2, node=64, edge=16, edge_hidden=32, heads=4, components=128)
    """

    layers: int = 4
    node: int = 64
    edge: int = 16
    edge_hidden: int = 32
    heads: int = 4
    components: int = 128

    def __post_init__(self):
        if self.node % self.heads:
            raise ValueError(f"sizes.node={self.node} must be a multiple of sizes.heads={self.heads}.")


class RelationalTransformer(nn.Module):
    """A field that is a transformer on a network's graph: `field(graph, x, t)` gives the velocity.

    x is [nets, size], t is [nets], and the velocity has the shape of x. The size is the number of weights and further coordinates. A field
    with `features` above 0 may also be told a condition [nets, features + 1], whose last column is 1 where it is told.

    The field is equivariant to every permutation that the spec declares: if units are reordered, so is the velocity. It serves networks
    of other widths. A new field predicts 0. `recompute` names a row of RECOMPUTE, which counts in training only.

    A call raises ValueError if the graph has a role, a kind of wire, or a number of inputs or outputs that is new to the field.

    Sources: Diao & Loynd, Relational Attention, 2023; Kofinas et al., Neural graphs, 2024.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> field = RelationalTransformer(graph, TransformerSizes(layers=1, node=8, heads=2))
    >>> field(graph, torch.zeros(5, graph.size), torch.rand(5)).shape
    torch.Size([5, 23])
    """

    Sizes = TransformerSizes
    knows_units = False  # a field that knows units by their place is not equivariant
    reads_units = True
    drops = False

    def __init__(
        self, graph: Graph, sizes: TransformerSizes = TransformerSizes(), *others: Graph, features: int = 0, recompute: str = NOTHING
    ):
        super().__init__()
        self.recompute = recompute
        w, graphs = sizes, (graph, *others)
        self.components = w.components
        self.units = self.units_with_places(*graphs)
        graphs = tuple(leading(one, w.components) for one in graphs)
        self.time = TimeEmbedding(w.node)
        keys = {block.key for one in graphs for block in one.blocks}
        self.edge_in = nn.ModuleDict({key: nn.Linear(_width(key), w.edge) for key in sorted(keys)})
        self.edge_out = nn.ModuleDict({key: zeroed(nn.Linear(w.edge, _width(key))) for key in sorted(keys)})
        keys = {feature.key for one in graphs for feature in one.of_units}
        self.node_in = nn.ModuleDict({key: nn.Linear(_width(key), w.node) for key in sorted(keys)})
        self.node_out = nn.ModuleDict({key: zeroed(nn.Linear(w.node, _width(key))) for key in sorted(keys)})
        units = self.units_with_places(*graphs)
        self.places = nn.ParameterDict({name: nn.Parameter(torch.randn(size, w.node)) for name, size in units.items()})
        for name in {name: None for one in graphs for name in plain_inputs(one)}:  # the first axes start as directions of their own
            place, few = self.places[name], min(self.places[name].shape)
            with torch.no_grad():
                place[:few] = math.sqrt(few) * torch.eye(few, w.node)
        self.depth = nn.Linear(3, w.node)
        self.width = zeroed(nn.Linear(1, w.node)) if others else None
        scalars = _scalars(graphs)
        self.scalar_in = nn.Linear(scalars, w.node) if scalars else None
        self.scalar_out = zeroed(nn.Linear(w.node, scalars)) if scalars else None
        self.wires = sorted({kind for one in graphs for kind in wire_ends(one)})
        self.layers = nn.ModuleList(Layer(w.node, w.edge, w.edge_hidden, w.heads, self.wires) for _ in range(w.layers))
        self.norm = nn.LayerNorm(w.node)
        self.told = ConditionEmbedding(features, w.node) if features else None

    def forward(
        self,
        graph: Graph,
        x: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> Float[Tensor, "nets size"]:
        self.check(graph)
        graph = leading(graph, self.components)
        nodes, inputs, edges, time = self.embed(graph, x, t, condition)
        run = RECOMPUTE[self.recompute if self.training else NOTHING]
        for layer in self.layers:
            nodes, edges = run(layer, graph, nodes, inputs, edges, time)
        return self.read_out(graph, nodes, inputs, edges)

    @staticmethod
    def sites_with_places(graph: Graph) -> dict[str, int]:
        """The sites whose units each have a learned state, as {name: index}. These units cannot be exchanged."""
        return pinned_sites(graph)

    def units_with_places(self, *graphs: Graph) -> dict[str, int]:
        """The number of units of each of the `sites_with_places`. They are the same in all graphs that have the site."""
        return {name: graph.spec.sites[number].size for graph in graphs for name, number in self.sites_with_places(graph).items()}

    def check(self, graph: Graph) -> None:
        """Raise ValueError if a graph has a role, a kind of wire, or a number of units that the field was not built for."""
        known = {*self.edge_in, *self.node_in}
        if unseen := sorted({part.key for part in graph.parts} - known):
            raise ValueError(
                f"The field has never seen the role {unseen[0]!r}; it knows {', '.join(sorted(known))}. Such weights come with another "
                "depth or layer: fit the flow to networks that have them too."
            )
        if unseen := sorted(set(wire_ends(graph)) - set(self.wires)):
            raise ValueError(
                f"The field has never seen wires of the kind {unseen[0]!r}; it knows {', '.join(self.wires) or 'none'}. "
                "Fit the flow to networks that have them too."
            )
        for name, size in self.units_with_places(graph).items():
            units = self.units.get(name, 0)
            if units != size:
                why = "another task needs another flow" if name in pinned_sites(graph) else "velocity=transformer serves other widths"
                raise ValueError(f"The field was built for {units} units of {name!r}, not for {size}: {why}.")
        if len(graph.scalars) != (self.scalar_in.in_features if self.scalar_in else 0):
            raise ValueError(f"The field was not built for a graph with {len(graph.scalars)} scalars. Fit another flow to such networks.")

    def embed(
        self, graph: Graph, x: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, dict[int, Tensor], list[Tensor], Tensor]:
        """The first states of units, input units, edges and time.

        - moving units: [nets, units, node]
        - input units, by site: [nets or 1, units, node]
        - edges, by block: [edge, nets, targets, sources]
        - time: [nets, node]
        """
        time = self.time(t) if condition is None else self.time(t) + self.told(condition)
        if self.scalar_in is not None:
            time = time + self.scalar_in(x[:, beside(graph.scalars, x)])
        names = {number: name for name, number in self.sites_with_places(graph).items()}
        sites = []
        places = self.depth(beside(graph.places, x))
        if self.width is not None:
            places = places + self.width(beside(graph.widths, x))
        for number, (site, place) in enumerate(zip(graph.spec.sites, places, strict=True)):
            if number in names:
                place = place + self.places[names[number]]
            sites.append(place.expand(1, site.size, -1))
        for feature in graph.of_units:
            sites[feature.site] = sites[feature.site] + self.node_in[feature.key](x[:, beside(feature.index, x)])
        inputs = {index: sites[index] for index, site in enumerate(graph.spec.sites) if site.role == "input"}
        nodes = torch.cat([site.expand(len(x), -1, -1) for index, site in enumerate(sites) if index not in inputs], 1) + time[:, None]
        edges = []
        for block in graph.blocks:
            embed = self.edge_in[block.key]
            values = taken(x, block.index).reshape(-1, _width(block.key))
            states = torch.addmm(embed.bias[:, None], embed.weight, values.T)
            edges.append(states.view(-1, len(x), *block.index.shape[:2]))
        return nodes, inputs, edges, time

    def read_out(self, graph: Graph, nodes: Tensor, inputs: dict[int, Tensor], edges: list[Tensor]) -> Float[Tensor, "nets size"]:
        """The velocity: each state gives the velocities of its weights."""
        nets, parts = len(nodes), []
        sites = dict(zip(moving_sites(graph), self.norm(nodes).split(moving_units(graph), 1), strict=True))
        for block, edge in zip(graph.blocks, edges, strict=True):
            head = self.edge_out[block.key]
            parts.append(torch.addmm(head.bias, edge.flatten(1).T, head.weight.T).view(nets, -1))
        for feature in graph.of_units:
            state = sites[feature.site] if feature.site in sites else self.norm(inputs[feature.site])
            parts.append(self.node_out[feature.key](state).flatten(1))
        if self.scalar_out is not None:  # if the output is a sum or one squeezed unit, no site is the output; then scalars read all sites
            heard = [index for index, site in enumerate(graph.spec.sites) if site.role == "output"] or moving_sites(graph)
            parts.append(self.scalar_out(torch.stack([sites[index].mean(1) for index in heard]).mean(0)))
        parts.append(nodes.new_zeros(nets, len(graph.unseen)))
        if graph.sequence is not None:
            return torch.cat([parts[number] for number in graph.sequence], 1)
        return reordered(torch.cat(parts, 1), beside(graph.order, nodes), beside(graph.entries, nodes))


class IdentifiedTransformer(RelationalTransformer):
    """A relational transformer that also has a learned state for each hidden unit.

    It knows hidden units by their place in the aligned zoo. So it is not equivariant, and serves one set of widths only. An equivariant
    field sees exchangeable units in pure noise. It must first decide which of them becomes which unit of the reference.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> field = IdentifiedTransformer(graph, TransformerSizes(layers=1, node=8, heads=2))
    >>> field.units
    {'input0': 4, 'output0': 2, 'unit1': 3}
    """

    knows_units = True

    @staticmethod
    def sites_with_places(graph: Graph) -> dict[str, int]:
        hidden = {f"unit{number}": number for number, site in enumerate(graph.spec.sites) if site.permutation is not None}
        return pinned_sites(graph) | hidden


def _scalars(graphs: Sequence[Graph]) -> int:
    """The number of scalars that all graphs have. Raises ValueError if they differ in it."""
    counts = sorted({len(graph.scalars) for graph in graphs})
    if len(counts) > 1:
        raise ValueError(
            f"One architecture has {counts[0]} weights that belong to no unit, such as a slope that all units share, and another "
            f"{counts[-1]}. One flow needs the same number in each."
        )
    return counts[0]


def _width(key: str) -> int:
    """The number of features, with which a role's key ends."""
    return int(key.rsplit(":", 1)[1])
