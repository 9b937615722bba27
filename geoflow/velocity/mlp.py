"""Predict the flow's velocity with a plain MLP on the flattened weights: the second field, tied to one architecture."""

import itertools
import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.graph import Graph
from geoflow.velocity.embeddings import TimeEmbedding
from geoflow.velocity.heads import zeroed


@dataclass(frozen=True)
class MLPSizes:
    """The width h of the first and last hidden layer."""

    width: int = 512


class MLPVelocity(nn.Module):
    """v(graph, x, t) = MLP([x, time]) with widths [size + 64, h, h / 2, h, size], LayerNorm and GELU; a zero head (DeepWeightFlow, 2026).

    It knows its units by their place, so it relies on the alignment of the zoo, is not equivariant, and serves its own architecture only.
    """

    Sizes = MLPSizes
    knows_units = True
    components = sys.maxsize  # of each input it sees every weight

    def __init__(self, graph: Graph, sizes: MLPSizes = MLPSizes()):
        super().__init__()
        self.size = graph.size
        self.time = TimeEmbedding(64)
        widths = [self.size + 64, sizes.width, sizes.width // 2, sizes.width]
        first, *others = (nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU()) for a, b in itertools.pairwise(widths))
        self.first, self.layers, self.last = first, nn.Sequential(*others), zeroed(nn.Linear(sizes.width, self.size))

    def forward(self, graph: Graph, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> Float[Tensor, "nets size"]:
        """Raises ValueError for a graph of another size than the one it was built for."""
        if graph.size != self.size:
            raise ValueError(
                f"velocity=mlp was built for {self.size} coordinates and cannot serve {graph.size}: "
                "another architecture needs velocity=transformer."
            )
        return self.last(self.layers(self.first(torch.cat([x, self.time(t)], -1))))
