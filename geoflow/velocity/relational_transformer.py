"""Predict the flow's velocity with a relational transformer on the blocks of a network's graph.

A node is a unit with state n_i, an edge a weight with state e_ij. With heads h and directions row (a target looks at its
sources) and column (a source looks at its targets), one layer computes, for every block on its own,

    l_ij = q_i . k_j / sqrt(width of a head) + b . e_ij              logits, a_ij = softmax_j l_ij
    m_i  = sum_j a_ij v_j  +  1/sqrt(n) sum_j (g . e_ij) u_j         attention, and the network's own signed sum
    n_i <- n_i + O [m_row, m_column, m_within];  n_i <- n_i + MLP(n_i)
    e_ij <- e_ij + MLP(e_ij, l_ij, n_i, n_j)                         the logits carry the bilinear n_i . n_j into the edges

after Diao & Loynd (Relational Attention, 2023) and Kofinas et al. (Neural graphs, 2024); the signed sum and the logits as
edge features are ours: with them one layer projects a row of weights on a learned basis and writes a row back. Units of one site
also attend to each other. Input units have no weights of their own; their states are learned and fixed, so that wide inputs cost little.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.graph import Block, Graph
from geoflow.spec import Site
from geoflow.velocity.edges import edge_update
from geoflow.velocity.embeddings import TimeEmbedding
from geoflow.velocity.heads import zeroed

MESSAGES = ("row", "signed row", "column", "signed column")


@dataclass(frozen=True)
class TransformerSizes:
    """Layers, widths of the states, heads; none depends on the networks that are generated."""

    layers: int = 4
    node: int = 64
    edge: int = 16
    edge_hidden: int = 32
    heads: int = 4

    def __post_init__(self):
        if self.node % self.heads:
            raise ValueError(f"sizes.node={self.node} must be a multiple of sizes.heads={self.heads}.")


class RelationalTransformer(nn.Module):
    """v(graph, x, t): [nets, weights + scalars] -> the same shape; equivariant to every permutation that the spec declares."""

    Sizes = TransformerSizes
    equivariant = True

    def __init__(self, graph: Graph, sizes: TransformerSizes = TransformerSizes()):
        super().__init__()
        w = sizes
        self.time = TimeEmbedding(w.node)
        keys = {block.key for block in graph.blocks}
        self.edge_in = nn.ModuleDict({key: nn.Linear(_width(key), w.edge) for key in sorted(keys)})
        self.edge_out = nn.ModuleDict({key: zeroed(nn.Linear(w.edge, _width(key))) for key in sorted(keys)})
        keys = {feature.key for feature in graph.features}
        self.node_in = nn.ModuleDict({key: nn.Linear(_width(key), w.node) for key in sorted(keys)})
        self.node_out = nn.ModuleDict({key: zeroed(nn.Linear(w.node, _width(key))) for key in sorted(keys)})
        self.places = nn.ParameterDict({name: nn.Parameter(torch.randn(site.size, w.node)) for name, site in pinned_sites(graph).items()})
        self.depth = nn.Linear(3, w.node)
        scalars = len(graph.scalars)
        self.scalar_in = nn.Linear(scalars, w.node) if scalars else None
        self.scalar_out = zeroed(nn.Linear(w.node, scalars)) if scalars else None
        self.layers = nn.ModuleList(Layer(w) for _ in range(w.layers))
        self.norm = nn.LayerNorm(w.node)

    def forward(self, graph: Graph, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> Float[Tensor, "nets size"]:
        self.check(graph)
        nodes, edges, time = self.embed(graph, x, t)
        for layer in self.layers:
            nodes, edges = layer(graph, nodes, edges, time)
        return self.read_out(graph, nodes, edges, x)

    def check(self, graph: Graph) -> None:
        """Raise ValueError where a graph has a role, or units of a task, that this field was not built for."""
        known = {*self.edge_in, *self.node_in}
        if unseen := sorted({part.key for part in (*graph.blocks, *graph.features)} - known):
            raise ValueError(f"The field has never seen the role {unseen[0]!r}; it knows {', '.join(sorted(known))}.")
        for name, site in pinned_sites(graph).items():
            units = len(self.places[name]) if name in self.places else 0
            if units != site.size:
                raise ValueError(
                    f"The field was built for {units} units of {name!r}, not for {site.size}: another task needs another flow."
                )
        if len(graph.scalars) != (self.scalar_in.in_features if self.scalar_in else 0):
            raise ValueError(f"The field was not built for a graph with {len(graph.scalars)} scalars.")

    def embed(self, graph, x, t):
        """States of the nodes (per site [nets or 1, units, node]), of the edges (per block [edge, nets, targets, sources]), and of time."""
        time = self.time(t)
        if self.scalar_in is not None:
            time = time + self.scalar_in(x[:, graph.scalars])
        names = {id(site): name for name, site in pinned_sites(graph).items()}
        nodes = []
        for site, depth in zip(graph.spec.sites, graph.depth, strict=True):
            place = self.depth(x.new_tensor([depth, site.role == "input", site.role == "output"]))
            if id(site) in names:
                place = place + self.places[names[id(site)]]
            nodes.append(place.expand(1, site.size, -1))
        for feature in graph.features:
            nodes[feature.site] = nodes[feature.site] + self.node_in[feature.key](x[:, feature.index])
        nodes = [n if s.role == "input" else n + time[:, None] for n, s in zip(nodes, graph.spec.sites, strict=True)]
        edges = []
        for block in graph.blocks:
            embed = self.edge_in[block.key]
            values = x[:, block.index.flatten()].reshape(len(x), -1, _width(block.key))
            values = values.permute(2, 0, 1).reshape(values.shape[-1], -1)
            edges.append((embed.weight @ values + embed.bias[:, None]).reshape(-1, len(x), *block.index.shape[:2]))
        return nodes, edges, time

    def read_out(self, graph, nodes, edges, x):
        """Every state back to the places of its weights."""
        parts = []
        nodes = [self.norm(n) for n in nodes]
        for block, edge in zip(graph.blocks, edges, strict=True):
            head = self.edge_out[block.key]
            value = head.weight @ edge.flatten(1) + head.bias[:, None]
            parts.append(value.reshape(-1, len(x), block.index[..., 0].numel()).permute(1, 2, 0).flatten(1))
        for feature in graph.features:
            parts.append(self.node_out[feature.key](nodes[feature.site]).flatten(1))
        if self.scalar_out is not None:
            outputs = [n.mean(1) for n, s in zip(nodes, graph.spec.sites, strict=True) if s.role == "output"]
            parts.append(self.scalar_out(torch.stack(outputs).mean(0)))
        return torch.cat(parts, 1)[:, graph.order]


class Layer(nn.Module):
    """One round of messages, then new nodes, then new edges."""

    def __init__(self, w: TransformerSizes):
        super().__init__()
        self.heads = w.heads
        self.norm, self.norm_mlp, self.norm_edge = (nn.LayerNorm(w.node) for _ in range(3))
        # queries, keys, values and signed values of a node as target (row) and as source (column), and within its site
        self.as_target = nn.Linear(w.node, 4 * w.node)
        self.as_source = nn.Linear(w.node, 4 * w.node)
        self.within = nn.Linear(w.node, 3 * w.node)
        self.edge_bias = nn.Parameter(torch.randn(4 * w.heads, w.edge) / math.sqrt(w.edge))
        self.out = nn.Linear(5 * w.node, w.node)
        self.time = nn.Linear(w.node, 2 * w.node + w.edge_hidden)
        self.mlp = nn.Sequential(nn.Linear(w.node, 2 * w.node), nn.SiLU(), nn.Linear(2 * w.node, w.node))
        self.edge_mix = nn.Parameter(torch.randn(w.edge_hidden, w.edge + 2 * w.heads) / math.sqrt(w.edge + 2 * w.heads))
        self.edge_target = nn.Linear(w.node, w.edge_hidden)
        self.edge_source = nn.Linear(w.node, w.edge_hidden)
        self.edge_back = nn.Parameter(torch.randn(w.edge, w.edge_hidden) / math.sqrt(w.edge_hidden) / 4)

    def forward(self, graph: Graph, nodes: list[Tensor], edges: list[Tensor], time: Tensor):
        normed = [self.norm(n) for n in nodes]
        shift, scale, edge_time = self.time(time).split([nodes[0].shape[-1]] * 2 + [self.edge_target.out_features], -1)
        normed = [
            n if s.role == "input" else n * (1 + scale[:, None]) + shift[:, None] for n, s in zip(normed, graph.spec.sites, strict=True)
        ]
        target = [self._split(self.as_target(n), 4) if s.role != "input" else None for n, s in zip(normed, graph.spec.sites, strict=True)]
        source = [self._split(self.as_source(n), 4) for n in normed]
        heard: dict[tuple[int, str], list[Tensor]] = {}
        logits = []
        for block, edge in zip(graph.blocks, edges, strict=True):
            logits.append(self._exchange(block, edge, target[block.target], source[block.source], graph, heard))
        nodes = [self._node(index, site, nodes[index], normed[index], heard) for index, site in enumerate(graph.spec.sites)]
        normed = [self.norm_edge(n) for n in nodes]
        edges = [self._edge(*part, normed, edge_time) for part in zip(graph.blocks, edges, logits, strict=True)]
        return nodes, edges

    def _exchange(self, block: Block, edge, target, source, graph, heard):
        """Messages along the rows and the columns of one block; returns both directions' logits."""
        heads, nets, n, m = self.heads, *edge.shape[1:]
        terms = (self.edge_bias @ edge.flatten(1)).reshape(-1, nets, n, m)
        bias_row, signed_row, bias_col, signed_col = terms.split(heads)
        (q, key_here, v_here, u_here), (q_there, k, v, u) = target, source
        row = _logits(bias_row, q, k)
        col = _logits(bias_col, key_here, q_there)
        said = {(block.target, "row"): _mix(row.softmax(-1), v), (block.target, "signed row"): _mix(signed_row, u / math.sqrt(m))}
        if graph.spec.sites[block.source].role != "input":
            said[block.source, "column"] = _mix(col.softmax(-2).mT, v_here)
            said[block.source, "signed column"] = _mix(signed_col.mT, u_here / math.sqrt(n))
        for key, message in said.items():
            heard.setdefault(key, []).append(message)
        return row, col

    def _node(self, index, site, node, normed, heard):
        if site.role == "input":
            return node
        q, k, v = self._split(self.within(normed), 3)
        inside = _mix(_logits(None, q, k).softmax(-1), v)
        silent = torch.zeros_like(inside)
        messages = [sum(heard[index, kind][1:], heard[index, kind][0]) if (index, kind) in heard else silent for kind in MESSAGES]
        node = node + self.out(torch.cat([_join(m) for m in (*messages, inside)], -1))
        return node + self.mlp(self.norm_mlp(node))

    def _edge(self, block, edge, logits, normed, edge_time):
        target = self.edge_target(normed[block.target]) + edge_time[:, None]
        return edge_update(edge, *logits, target, self.edge_source(normed[block.source]), self.edge_mix, self.edge_back)

    def _split(self, states: Tensor, parts: int):
        """[nets, units, parts * heads * width] -> per part [heads, nets, units, width]."""
        return states.unflatten(-1, (parts, self.heads, -1)).permute(2, 3, 0, 1, 4).unbind(0)


def _logits(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """bias + q k / sqrt(width) for [heads, nets, n, width], k also for one net that stands for all."""
    q = q / math.sqrt(q.shape[-1])
    if k.shape[1] == 1 and q.shape[1] > 1 and bias is not None:  # one product per head over all rows of all nets
        return torch.baddbmm(bias.flatten(1, 2), q.flatten(1, 2), k[:, 0].mT).view(bias.shape)
    if bias is None or q.shape[1] != k.shape[1]:
        return q @ k.mT if bias is None else q @ k.mT + bias
    return torch.baddbmm(bias.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).mT).view(bias.shape)


def _mix(coefficients: Tensor, values: Tensor) -> Tensor:
    """[heads, nets, n, m] @ [heads, nets or 1, m, width]."""
    if values.shape[1] == 1 and coefficients.shape[1] > 1:
        return (coefficients.flatten(1, 2) @ values[:, 0]).view(*coefficients.shape[:3], -1)
    return coefficients @ values


def _join(heads: Tensor) -> Tensor:
    """[heads, nets, units, width] -> [nets, units, heads * width]."""
    return heads.permute(1, 2, 0, 3).flatten(2)


def _width(key: str) -> int:
    """The number of features that a role's key ends with."""
    return int(key.rsplit(":", 1)[1])


def pinned_sites(graph: Graph) -> dict[str, Site]:
    """Sites whose units are not exchangeable, by a name that other architectures for the same task share."""
    counts: dict[str, int] = {}
    named = {}
    for site in graph.spec.sites:
        if site.permutation is None:
            counts[site.role] = counts.get(site.role, -1) + 1
            named[f"{site.role}{counts[site.role]}"] = site
    return named
