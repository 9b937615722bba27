"""Turn one network into a torch_geometric graph."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from geoflow.graph import Diagonal, graph_of, site_starts
from geoflow.spec import WIRES, NetworkSpec

EDGE_TYPES = {"weight": 0, **{kind: number for number, kind in enumerate(WIRES, 1)}}


def to_pyg(spec: NetworkSpec, theta: Float[Tensor, " weights"], mask: Tensor | None = None):
    """One network as a `torch_geometric.data.Data`: one node per unit, one edge per pair of joined units.

    Edges are weights or wires of some kind: EDGE_TYPES says what their `edge_type` means. `edge_attr` holds the
    entries of the tensors on them, padded with zeros to the widest. `x` has one column for each feature of a node tensor (such as a
    bias), 0 where a site has none. `edge_block` and `site` say where edges and nodes come from.
    `mask` (of theta's shape, True where a weight exists) drops the edges of pruned weights: by structure, never by value.

    Raises ValueError for more than one network.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> data = geoflow.to_pyg(spec, geoflow.pack(spec, network.state_dict()))
    >>> data.num_nodes, data.num_edges, int((data.edge_type > 0).sum())
    (12, 21, 3)
    """
    from torch_geometric.data import Data

    if tuple(theta.shape) != (spec.weights,):
        raise ValueError(f"A graph is made of one network of {spec.weights} weights, not of {tuple(theta.shape)}.")
    graph, first = graph_of(spec), site_starts(spec)
    parts = (*graph.blocks, *graph.diagonals)
    widest = max([part.index.shape[-1] for part in parts], default=1)
    ends, attributes, kinds, owners = [torch.zeros(2, 0, dtype=torch.long)], [theta.new_zeros(0, widest)], [], []
    for number, part in enumerate(parts):
        wire = isinstance(part, Diagonal)
        units = [torch.arange(len(part.index))] * 2 if wire else torch.meshgrid(*map(torch.arange, part.index.shape[:2]), indexing="ij")
        target, source = (one.to(theta.device) for one in units)
        keep = torch.ones_like(target, dtype=torch.bool)
        if mask is not None and part.index.shape[-1]:
            keep = mask[part.index].any(-1).to(theta.device)
        ends.append(torch.stack([source[keep] + first[part.source], target[keep] + first[part.target]]))
        values = theta[part.index][keep]
        attributes.append(pad(values, (0, widest - values.shape[-1])))
        kinds.append(torch.full((len(values),), EDGE_TYPES[part.wire if wire else "weight"]))
        owners.append(torch.full((len(values),), number))
    return Data(
        x=_node_features(graph, theta),
        edge_index=torch.cat(ends, 1).to(theta.device),
        edge_attr=torch.cat(attributes),
        edge_type=torch.cat([torch.zeros(0, dtype=torch.long), *kinds]).to(theta.device),
        edge_block=torch.cat([torch.zeros(0, dtype=torch.long), *owners]).to(theta.device),
        site=torch.repeat_interleave(torch.arange(len(spec.sites)), torch.tensor([s.size for s in spec.sites])).to(theta.device),
        scalars=theta[graph.scalars],
    )


def _node_features(graph, theta: Tensor) -> Float[Tensor, "nodes features"]:
    """Every feature of a node tensor in a column of its own, 0 for the units of other sites."""
    first = site_starts(graph.spec)
    x, column = theta.new_zeros(first[-1], sum(feature.index.shape[-1] for feature in graph.features) or 1), 0
    for feature in graph.features:
        width = feature.index.shape[-1]
        x[first[feature.site] : first[feature.site] + len(feature.index), column : column + width] = theta[feature.index]
        column += width
    return x
