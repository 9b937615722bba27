"""Turn one network into a torch_geometric graph."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from geoflow.graph import Diagonal, graph_of, site_starts
from geoflow.spec import WIRES, NetworkSpec

EDGE_TYPES = {"weight": 0, **{kind: number for number, kind in enumerate(WIRES, 1)}}


def to_pyg(spec: NetworkSpec, theta: Float[Tensor, " weights"], mask: Tensor | None = None):
    """Turn one network into a `torch_geometric.data.Data`, with one node per unit and one edge per pair of joined units.

    - `edge_type` [edges] says whether an edge is a weight or which kind of wire it is. EDGE_TYPES lists the numbers.
    - `edge_attr` [edges, features] holds the weights on the edges, padded with zeros to the largest number of features.
    - `edge_block` [edges] is the index of the part that an edge comes from, among the blocks and then the diagonals of the graph.
    - `x` [nodes, features] has one column for each feature of a node tensor, such as a bias. It is 0 at other sites.
    - `site` [nodes] is the site of a node. `scalars` are the weights that belong to no unit.

    `mask` has the shape of `theta`. An edge is dropped if all its weights are False there. A weight of value 0 is not dropped.

    Raises ValueError if `theta` is not the weight vector of one network.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> data = geoflow.to_pyg(spec, geoflow.pack(spec, network.state_dict()))
    >>> data.num_nodes, data.num_edges, int((data.edge_type > 0).sum())
    (12, 21, 3)
    """
    from torch_geometric.data import Data

    if tuple(theta.shape) != (spec.weights,):
        raise ValueError(f"to_pyg takes one network of {spec.weights} weights, not a tensor of shape {tuple(theta.shape)}.")
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
    """One column for each feature of a node tensor, 0 for the units of other sites."""
    first = site_starts(graph.spec)
    x, column = theta.new_zeros(first[-1], sum(feature.index.shape[-1] for feature in graph.features) or 1), 0
    for feature in graph.features:
        width = feature.index.shape[-1]
        x[first[feature.site] : first[feature.site] + len(feature.index), column : column + width] = theta[feature.index]
        column += width
    return x
