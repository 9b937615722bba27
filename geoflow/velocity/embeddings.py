"""Embed the time of a flow, and what its field is told of a network."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.velocity.heads import zeroed


class TimeEmbedding(nn.Module):
    """Features of a time t in [0, 1]: sines and cosines at geometrically spaced frequencies, and then an MLP.

    Source: Vaswani et al., Attention is all you need, 2017.
    """

    def __init__(self, width: int, frequencies: int = 16):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, math.log10(200.0), frequencies), persistent=False)
        self.mix = nn.Sequential(nn.Linear(2 * frequencies + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, t: Float[Tensor, " nets"]) -> Float[Tensor, "nets width"]:
        angles = t[:, None] * self.frequencies
        return self.mix(torch.cat([t[:, None], angles.sin(), angles.cos()], -1))


class ConditionEmbedding(nn.Module):
    """A state for what a field is told of a network, to be added to that of the time.

    A condition is [nets, features + 1], and its last column is 1 where it is told, else 0. A condition that is not told gives 0. So does a
    new embedding.

    >>> ConditionEmbedding(2, 4)(torch.ones(3, 3))
    tensor([[0., 0., 0., 0.],
            [0., 0., 0., 0.],
            [0., 0., 0., 0.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(features, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, condition: Float[Tensor, "nets features_and_told"]) -> Float[Tensor, "nets width"]:
        return self.mix(condition[:, :-1]) * condition[:, -1:]
