"""Predict the flow's velocity with a plain MLP on the weight vector."""

import itertools
import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.graph import Graph
from geoflow.velocity.embeddings import ConditionEmbedding, TimeEmbedding
from geoflow.velocity.heads import zeroed


@dataclass(frozen=True)
class MLPSizes:
    """The sizes of an MLP field. `width` is the width h of its first and last hidden layer.

    >>> MLPSizes(width=256)
    MLPSizes(width=256)
    """

    width: int = 512


class MLPVelocity(nn.Module):
    """A field that is an MLP on the weight vector: `field(graph, x, t)` gives the velocity.

    x is [nets, size], t is [nets], and the velocity has the shape of x. The MLP reads x and 64 features of the time. Its widths are
    [size + 64, h, h / 2, h, size], with LayerNorm and GELU. In training, each hidden unit is dropped with the probability `dropout`. The
    last layer begins at zero.

    It knows units by their place in the vector. So it needs an aligned zoo, is not equivariant, and serves one architecture only.

    A call raises ValueError if the graph has another size.

    Source: DeepWeightFlow, 2026.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> graph = geoflow.graph_of(geoflow.spec_of(network, torch.zeros(1, 4)))
    >>> field = MLPVelocity(graph, MLPSizes(width=16))
    >>> field(graph, torch.zeros(5, graph.size), torch.rand(5)).shape
    torch.Size([5, 23])
    """

    Sizes = MLPSizes
    knows_units = True
    reads_units = False  # only coordinates, whatever they belong to
    drops = True
    components = sys.maxsize  # it sees the weights on all units of an input

    def __init__(self, graph: Graph, sizes: MLPSizes = MLPSizes(), features: int = 0, dropout: float = 0.0):
        super().__init__()
        self.size = graph.size
        self.time = TimeEmbedding(64)
        widths = [self.size + 64, sizes.width, sizes.width // 2, sizes.width]
        first, *others = (_hidden(a, b, dropout) for a, b in itertools.pairwise(widths))
        self.first, self.layers, self.last = first, nn.Sequential(*others), zeroed(nn.Linear(sizes.width, self.size))

        self.told = ConditionEmbedding(features, 64) if features else None

    def forward(
        self,
        graph: Graph,
        x: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> Float[Tensor, "nets size"]:
        """The velocity. Raises ValueError if the graph has another size than the one that the field was built for."""
        if graph.size != self.size:
            raise ValueError(
                f"velocity=mlp was built for {self.size} coordinates and cannot serve {graph.size}: "
                "another architecture needs velocity=transformer."
            )
        time = self.time(t) if condition is None else self.time(t) + self.told(condition)
        return self.last(self.layers(self.first(torch.cat([x, time], -1))))


def _hidden(inward: int, outward: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inward, outward), nn.LayerNorm(outward), nn.GELU(), nn.Dropout(dropout))
