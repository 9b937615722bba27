"""Compute the relational transformer by message passing on torch_geometric graphs.

This is the readable reference of the fast form in `geoflow.velocity.relational_transformer`. Both give the same numbers. Here every edge
is a row of a list. Attention is a grouped softmax and a scatter of PyG, which use torch-scatter if it is installed. Embedding and
reading out are shared with the fast form.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torch_geometric.utils import scatter, softmax

from geoflow.graph import Graph, leading, moving_sites, moving_units
from geoflow.pyg import EDGE_TYPES, to_pyg
from geoflow.velocity.layer import Layer
from geoflow.velocity.relational_transformer import RelationalTransformer


class MessagePassingTransformer(nn.Module):
    """A `RelationalTransformer` that is computed edge by edge, with the same parameters."""

    def __init__(self, transformer: RelationalTransformer):
        super().__init__()
        self.transformer = transformer

    @property
    def layers(self) -> nn.ModuleList:
        """The hidden layers. Muon trains their matrices."""
        return self.transformer.layers

    def forward(
        self,
        graph: Graph,
        x: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> Float[Tensor, "nets size"]:
        """The velocity [nets, size]. Raises ValueError if `sizes.components` leaves out units of an input."""
        if len(leading(graph, self.transformer.components).unseen):
            raise ValueError(f"MessagePassingTransformer needs all input units. Raise sizes.components={self.transformer.components}.")
        moving, inputs, blocks_of_edges, time = self.transformer.embed(graph, x, t, condition)
        sites = inputs | dict(zip(moving_sites(graph), moving.split(moving_units(graph), 1), strict=True))
        data = Batch.from_data_list([to_pyg(graph.spec, theta[: graph.spec.weights]) for theta in x.detach()])
        nodes = torch.cat([sites[site].expand(len(x), -1, -1) for site in range(len(sites))], 1).flatten(0, 1)
        edges = torch.cat([e.permute(1, 2, 3, 0).flatten(1, 2) for e in blocks_of_edges], 1).flatten(0, 1)
        for layer in self.transformer.layers:
            nodes, edges = message_passing_layer(layer, graph, data, nodes, edges, time)
        nodes = nodes.unflatten(0, (len(x), -1)).split([site.size for site in graph.spec.sites], 1)
        moving, inputs = torch.cat([nodes[site] for site in moving_sites(graph)], 1), {site: nodes[site] for site in inputs}
        edges = edges.unflatten(0, (len(x), -1)).split([b.index[..., 0].numel() for b in graph.blocks], 1)
        edges = [e.unflatten(1, b.index.shape[:2]).permute(3, 0, 1, 2) for e, b in zip(edges, graph.blocks, strict=True)]
        return self.transformer.read_out(graph, moving, inputs, edges)


def message_passing_layer(layer: Layer, graph: Graph, data: Batch, nodes: Tensor, edges: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """One layer on the nodes [all units, node] and the edges [all edges, edge] of a batch of graphs."""
    width, heads = nodes.shape[1], layer.heads
    is_input = torch.tensor([site.role == "input" for site in graph.spec.sites], device=nodes.device)[data.site]
    shift, scale, edge_time = layer.time(time).split([width, width, layer.edge_hidden], -1)
    normed = layer.norm(nodes)
    normed = torch.where(is_input[:, None], normed, normed * (1 + scale[data.batch]) + shift[data.batch])
    weight = data.edge_type == EDGE_TYPES["weight"]
    (source, target), block = data.edge_index[:, weight], data.edge_block[weight]
    q_t, k_t, v_t, u_t, k_s, q_s, v_s, u_s, *within = layer.project(normed).unflatten(-1, (11, heads, -1)).unbind(1)
    bias_row, bias_col, signed_row, signed_col = (edges @ layer.edge_bias.T).split(heads, -1)
    row = (q_t[target] * k_s[source]).sum(-1) / math.sqrt(width // heads) + bias_row
    col = (q_s[source] * k_t[target]).sum(-1) / math.sqrt(width // heads) + bias_col
    everywhere = len(nodes)
    heard = [
        _attend(row, v_s[source], target, block, everywhere),
        _signed_sum(signed_row, u_s[source], target, block, everywhere),
        _attend(col, v_t[target], source, block, everywhere),
        _signed_sum(signed_col, u_t[target], source, block, everywhere),
        _attend_within(*within, data, is_input),
    ]
    new = nodes + layer.out(torch.cat([h.flatten(1) for h in heard], -1))
    if layer.wires is not None:
        new = new + _along_wires(layer, data, layer.wires.norm(new), is_input)
    new = new + layer.mlp(layer.norm_mlp(new))
    nodes = torch.where(is_input[:, None], nodes, new)
    end_target, end_source = layer.edge_ends(layer.norm_edge(nodes)).chunk(2, -1)
    mixed = torch.cat([edges, row, col], -1) @ layer.edge_mix.T
    ends = end_target[target] + end_source[source] + edge_time[data.batch[target]]
    return nodes, edges + F.relu(mixed + ends) @ layer.edge_back.T


def _attend(logits: Tensor, values: Tensor, to: Tensor, block: Tensor, nodes: int) -> Tensor:
    """Softmax over the edges that reach a node within one block, and the weighted sum. The sums of the blocks are added."""
    group = block * nodes + to
    weights = softmax(logits, group)
    return scatter(weights[..., None] * values, to, dim_size=nodes, reduce="sum")


def _signed_sum(signs: Tensor, values: Tensor, to: Tensor, block: Tensor, nodes: int) -> Tensor:
    """The sum over a block's edges with signed coefficients, divided by the square root of their number."""
    group = block * nodes + to
    count = scatter(torch.ones_like(to, dtype=values.dtype), group, reduce="sum")[group]
    return scatter((signs / count.sqrt()[:, None])[..., None] * values, to, dim_size=nodes, reduce="sum")


def _along_wires(layer: Layer, data: Batch, nodes: Tensor, is_input: Tensor) -> Tensor:
    """The messages along the wires of each kind, in both directions, divided by the square root of their number.

    Wires that end at an input are left out.
    """
    heard = torch.zeros_like(nodes)
    for kind, ends in layer.wires.maps.items():
        forth, back = ends.weight.chunk(2)
        source, target = data.edge_index[:, data.edge_type == EDGE_TYPES[kind]]
        moving = ~(is_input[source] | is_input[target])
        source, target = source[moving], target[moving]
        for here, there, matrix in ((target, source, forth), (source, target, back)):
            count = scatter(torch.ones_like(here, dtype=nodes.dtype), here, dim_size=len(nodes), reduce="sum")[here]
            heard = heard + scatter(nodes[there] @ matrix.T / count.sqrt()[:, None], here, dim_size=len(nodes), reduce="sum")
    return heard


def _attend_within(q: Tensor, k: Tensor, v: Tensor, data: Batch, silent: Tensor) -> Tensor:
    """Attention among the units of each site of each network. Units that are `silent` receive nothing."""
    same = (data.batch[:, None] == data.batch) & (data.site[:, None] == data.site) & ~silent[:, None]
    to, other = same.nonzero(as_tuple=True)
    logits = (q[to] * k[other]).sum(-1) / math.sqrt(q.shape[-1])
    weights = softmax(logits, to, num_nodes=len(q))
    return scatter(weights[..., None] * v[other], to, dim_size=len(q), reduce="sum")
