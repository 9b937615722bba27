"""Pass messages along wires, between a unit and the same unit at other sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from geoflow.constants import beside
from geoflow.graph import Graph, moving_starts


class WireMessages(nn.Module):
    """The messages that every moving unit receives along its wires, with learned maps for each kind of wire:

        sum over kinds k of   1/sqrt(a) sum_j A_k n_j   +   1/sqrt(b) sum_j B_k n_j

    The first sum runs over the a wires of kind k that lead to the unit. The second sum runs over the b wires that leave it. n_j are the
    normalised states at their other ends. The result has the shape of the states, [nets, units, node].

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> WireMessages(16, ["norm"])(graph, torch.randn(5, 8, 16)).shape  # 3 units before the norm, 3 behind it, 2 outputs
    torch.Size([5, 8, 16])
    """

    def __init__(self, node: int, kinds: Sequence[str]):
        super().__init__()
        self.norm = nn.LayerNorm(node)
        self.maps = nn.ModuleDict({kind: nn.Linear(node, 2 * node, bias=False) for kind in kinds})  # A_k above B_k

    def forward(self, graph: Graph, nodes: Float[Tensor, "nets units node"]) -> Float[Tensor, "nets units node"]:
        nodes, heard = self.norm(nodes), torch.zeros_like(nodes)
        for kind, ends in wire_ends(graph).items():
            forth, back = self.maps[kind].weight.chunk(2)
            target, source = beside(ends.target, nodes), beside(ends.source, nodes)
            to_target = nodes.index_select(1, source) @ forth.T * beside(ends.to_target, nodes)
            to_source = nodes.index_select(1, target) @ back.T * beside(ends.to_source, nodes)
            heard = heard.index_add(1, target, to_target).index_add(1, source, to_source)
        return heard


@dataclass(frozen=True, eq=False)
class Ends:
    """The wires of one kind between moving units.

    `target` and `source` are the numbers of the units at their ends. `to_target` is 1/sqrt(a) for the target, and `to_source` is 1/sqrt(b)
    for the source (see `WireMessages`).
    """

    target: Int[Tensor, " wires"]
    source: Int[Tensor, " wires"]
    to_target: Float[Tensor, "wires 1"]
    to_source: Float[Tensor, "wires 1"]


@lru_cache(maxsize=64)
def wire_ends(graph: Graph) -> dict[str, Ends]:
    """The wires by kind. Wires to inputs are left out, because units of inputs are known by their place."""
    first = moving_starts(graph)
    rows: dict[str, list[Tensor]] = {}
    for diagonal in graph.diagonals:
        if {diagonal.target, diagonal.source} <= first.keys():
            unit = torch.arange(len(diagonal.index))
            rows.setdefault(diagonal.wire, []).append(torch.stack([unit + first[diagonal.target], unit + first[diagonal.source]]))
    found = {}
    for kind, parts in rows.items():
        ends = torch.cat(parts, 1)
        shares = [1 / torch.bincount(end)[end].float().sqrt()[:, None] for end in ends]
        found[kind] = Ends(*ends, *shares)
    return found
