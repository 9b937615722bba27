"""Embed the time of a flow."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
