"""Compute one layer of the relational transformer: messages, then new nodes, then new edges.

A node is a unit with state n_i, and an edge is a weight with state e_ij. A layer has h heads and two directions. In the direction
row, a target looks at its sources. In the direction column, a source looks at its targets. For every block by itself, a layer computes

    l_ij = q_i . k_j / sqrt(width of a head) + b . e_ij              logits, a_ij = softmax_j l_ij
    m_i  = sum_j a_ij v_j  +  1/sqrt(n) sum_j (g . e_ij) u_j         attention, and the network's own signed sum
    n_i <- n_i + O [m_row, m_column, m_within]
    n_i <- n_i + sum_k A_k n_j                                       over the wires of each kind k, see `WireMessages`
    n_i <- n_i + MLP(n_i)
    e_ij <- e_ij + MLP(e_ij, l_ij, n_i, n_j)                         the logits give the bilinear n_i . n_j to the edges

Sources: Diao & Loynd, Relational Attention, 2023; Kofinas et al., Neural graphs, 2024. The signed sum, the logits as edge features and
the messages along wires are additions. The first two let one layer project a row of weights on a learned basis, and write a row back.
The third pairs the incoming weights of a unit with its outgoing weights where a normalisation lies between them. The incoming weights
belong to the site before the normalisation, the outgoing weights to the site behind it.

Units of one site also attend to each other (m_within). Input units have no weights of their own. Their states are learned and do not
change from layer to layer, so that wide inputs cost little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from geoflow.graph import Graph, moving_sites, moving_units
from geoflow.velocity.edges import edge_update, exchange
from geoflow.velocity.wires import WireMessages

# the parts of a node's projection, each with all heads: as a target, as a source, and within its site
TARGET = ("q", "key to sources", "value to sources", "signed value to sources")
SOURCE = ("key to targets", "q as a source", "value to targets", "signed value to targets")
WITHIN = ("q within", "key within", "value within")


class Layer(nn.Module):
    """The parameters of one layer.

    `node`, `edge`, `edge_hidden` and `heads` are sizes as in `TransformerSizes`. `wires` are the kinds of wires that graphs may have.
    """

    def __init__(self, node: int, edge: int, edge_hidden: int, heads: int, wires: Sequence[str] = ()):
        super().__init__()
        self.heads, self.edge_hidden = heads, edge_hidden
        self.norm, self.norm_mlp, self.norm_edge = (nn.LayerNorm(node) for _ in range(3))
        self.project = nn.Linear(node, (len(TARGET) + len(SOURCE) + len(WITHIN)) * node)
        self.edge_bias = nn.Parameter(torch.randn(4 * heads, edge) / math.sqrt(edge))
        self.out = nn.Linear(5 * node, node)
        self.time = nn.Linear(node, 2 * node + edge_hidden)
        self.mlp = nn.Sequential(nn.Linear(node, 2 * node), nn.SiLU(), nn.Linear(2 * node, node))
        self.edge_ends = nn.Linear(node, 2 * edge_hidden)  # of a target, of a source
        self.edge_mix = nn.Parameter(torch.randn(edge_hidden, edge + 2 * heads) / math.sqrt(edge + 2 * heads))
        self.edge_back = nn.Parameter(torch.randn(edge, edge_hidden) / math.sqrt(edge_hidden) / 4)
        self.wires = WireMessages(node, wires) if wires else None

    def forward(
        self, graph: Graph, nodes: Float[Tensor, "nets units node"], inputs: dict[int, Tensor], edges: list[Tensor], time: Tensor
    ) -> tuple[Float[Tensor, "nets units node"], list[Tensor]]:
        """The new states of the moving units and of the edges. The states of input units, `inputs` by site, do not change."""
        shift, scale, edge_time = self.time(time)[:, None].split([nodes.shape[-1], nodes.shape[-1], self.edge_hidden], -1)
        normed = torch.addcmul(shift, self.norm(nodes), 1 + scale)
        messages, logits = self._listen(graph, normed, inputs, edges)
        nodes = nodes + self.out(messages.permute(1, 2, 0, 3).flatten(2))
        if self.wires is not None:
            nodes = nodes + self.wires(graph, nodes)
        nodes = nodes + self.mlp(self.norm_mlp(nodes))
        return nodes, self._change_edges(graph, self.norm_edge(nodes), inputs, edges, logits, edge_time)

    def _listen(self, graph: Graph, normed: Tensor, inputs: dict[int, Tensor], edges: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The messages to all moving units [5 * heads, nets, units, width], and for each block the logits of both directions."""
        said = self._project(graph, normed)
        sources = {site: source for site, (_, source, _) in said.items()} | {i: self._as_source(self.norm(n)) for i, n in inputs.items()}
        heard, logits = {site: Heard() for site in said}, []
        for block, edge in zip(graph.blocks, edges, strict=True):
            listening = block.source not in inputs
            pair, to_target, to_source = exchange(edge, self.edge_bias, said[block.target][0], sources[block.source], listening)
            logits.append(pair)
            heard[block.target].row.append(to_target)
            if listening:
                heard[block.source].column.append(to_source)
        return torch.cat([self._messages(heard[site], within) for site, (_, _, within) in said.items()], 2), logits

    def _change_edges(self, graph, normed, inputs, edges, logits, edge_time) -> list[Tensor]:
        ends = self.edge_ends(normed).split(moving_units(graph), 1)
        ends = {site: end.chunk(2, -1) for site, end in zip(moving_sites(graph), ends, strict=True)}
        sources = {site: source for site, (_, source) in ends.items()} | {i: self._source_end(self.norm_edge(n)) for i, n in inputs.items()}
        return [
            edge_update(edge, pair, ends[block.target][0] + edge_time, sources[block.source], self.edge_mix, self.edge_back)
            for block, edge, pair in zip(graph.blocks, edges, logits, strict=True)
        ]

    def _project(self, graph: Graph, normed: Tensor) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """For each site, what its units say as targets, as sources, and within the site.

        Each of the three is [parts * heads, nets, units, width of a head].
        """
        parts = self._heads_first(self.project(normed)).split(moving_units(graph), 2)
        cuts = [len(part) * self.heads for part in (TARGET, SOURCE, WITHIN)]
        return {site: part.split(cuts) for site, part in zip(moving_sites(graph), parts, strict=True)}

    def _as_source(self, normed: Tensor) -> Tensor:
        first, last = (len(part) * normed.shape[-1] for part in (TARGET, TARGET + SOURCE))
        return self._heads_first(linear(normed, self.project.weight[first:last], self.project.bias[first:last]))

    def _source_end(self, normed: Tensor) -> Tensor:
        return linear(normed, self.edge_ends.weight[self.edge_hidden :], self.edge_ends.bias[self.edge_hidden :])

    def _heads_first(self, states: Tensor) -> Tensor:
        """[nets, units, parts * heads * width] -> [parts * heads, nets, units, width]."""
        width = self.project.in_features // self.heads
        return states.unflatten(-1, (-1, width)).permute(2, 0, 1, 3).contiguous()

    def _messages(self, heard: "Heard", within: Tensor) -> Tensor:
        """The messages to the units of one site: along rows, along columns, and within the site."""
        q, k, v = within.chunk(3)
        inside = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        silence = torch.cat([torch.zeros_like(inside)] * 2) if not (heard.row and heard.column) else None
        return torch.cat([sum(kind[1:], kind[0]) if kind else silence for kind in (heard.row, heard.column)] + [inside])


@dataclass
class Heard:
    """The messages to one site, one tensor [2 * heads, nets, units, width] from each block: along rows and along columns."""

    row: list[Tensor] = field(default_factory=list)
    column: list[Tensor] = field(default_factory=list)
