"""Run the published relational transformer on all pairs of nodes, for comparison only."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.graph import Graph, site_starts


class DenseTransformer(nn.Module):
    """Compute v(graph, x, t) as the published flows do, over all nodes x nodes. Each edge of the networks has one feature.

        q_ij = Q_n n_i + Q_e e_ij,  k_ij = K_n n_j + K_e e_ij,  v_ij = V_n n_j + V_e e_ij
        n_i <- sum_j softmax_j(q_ij . k_ij / sqrt(d)) v_ij
        e_ij <- MLP(n_i, n_j, e_ij, e_ji)

    Residuals, a norm and an MLP follow both updates. Source: Diao and Loynd, Relational attention, 2023.
    """

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.node_in, self.edge_in = nn.Linear(2, width), nn.Linear(3, width)
        self.layers = nn.ModuleList(DenseLayer(width, heads) for _ in range(layers))
        self.node_out, self.edge_out = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, graph: Graph, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> Float[Tensor, "nets size"]:
        starts = site_starts(graph.spec)
        bias, weight, joined = (x.new_zeros(len(x), starts[-1], *more) for more in ((), (starts[-1],), (starts[-1],)))
        for feature in graph.features:
            first = starts[feature.site]
            bias[:, first : first + len(feature.index)] = x[:, feature.index[:, 0]]
        for block in graph.blocks:
            rows, columns = (slice(starts[s], starts[s + 1]) for s in (block.target, block.source))
            weight[:, rows, columns] = x[:, block.index[..., 0]]
            joined[:, rows, columns] = 1
        nodes = self.node_in(torch.stack([bias, t[:, None].expand_as(bias)], -1))
        edges = self.edge_in(torch.stack([weight, joined, t[:, None, None].expand_as(weight)], -1))
        for layer in self.layers:
            nodes, edges = layer(nodes, edges)
        nodes, edges = self.node_out(nodes)[..., 0], self.edge_out(edges)[..., 0]
        parts = [edges[:, starts[b.target] : starts[b.target + 1], starts[b.source] : starts[b.source + 1]] for b in graph.blocks]
        parts += [nodes[:, starts[f.site] : starts[f.site + 1]] for f in graph.features]
        scalars = x.new_zeros(len(x), len(graph.scalars))
        return torch.cat([*(part.flatten(1) for part in parts), scalars], 1)[:, graph.order]


class DenseLayer(nn.Module):
    """Attend over all pairs of nodes, then update every pair."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.of_node, self.of_edge = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out, self.mix = nn.Linear(width, width), nn.Linear(4 * width, width)
        self.node_mlp, self.edge_mlp = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))

    def forward(self, nodes: Float[Tensor, "nets n width"], edges: Float[Tensor, "nets n n width"]):
        n = nodes.shape[1]
        q_n, k_n, v_n = self.of_node(nodes).chunk(3, -1)
        q_e, k_e, v_e = self.of_edge(edges).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q_n[:, :, None] + q_e, k_n[:, None] + k_e, v_n[:, None] + v_e))
        attention = ((q * k).sum(-1) / math.sqrt(q.shape[-1])).softmax(2)
        nodes = self.norms[0](nodes + self.out((attention[..., None] * v).sum(2).flatten(2)))
        nodes = self.norms[1](nodes + self.node_mlp(nodes))
        ends = nodes[:, :, None].expand(-1, -1, n, -1), nodes[:, None].expand(-1, n, -1, -1)
        edges = self.norms[2](edges + self.mix(torch.cat([*ends, edges, edges.transpose(1, 2)], -1)))
        return nodes, self.norms[3](edges + self.edge_mlp(edges))
