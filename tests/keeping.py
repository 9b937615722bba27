"""Build networks whose modules keep tables of their weights, as LeViT does, or that look at their whole batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Keeping(nn.Module):
    """Add a table of biases to a layer. The table is computed from a parameter.

    `keep` says when the module keeps the table in evaluation mode:

    - no: never.
    - forward: from the first forward pass until training begins, in a dictionary by device, as timm's LeViT does.
    - eval: from the call of eval() on, as the first LeViT did.
    - forever: from the first forward pass on.
    """

    def __init__(self, keep: str = "no"):
        super().__init__()
        self.keep, self.kept = keep, {}
        self.first, self.last, self.biases = nn.Linear(5, 4), nn.Linear(4, 3), nn.Parameter(torch.randn(2))

    def table(self) -> Tensor:
        return self.biases[torch.tensor([0, 1, 1, 0])] * 2

    def train(self, mode: bool = True):
        super().train(mode)
        if self.keep == "forward" and mode:
            self.kept = {}
        if self.keep == "eval":
            self.kept = {} if mode else {"table": self.table().detach()}
        return self

    def forward(self, x):
        if self.keep == "no" or self.training:
            table = self.table()
        else:
            key = "table" if self.keep == "eval" else x.device
            if key not in self.kept:
                self.kept[key] = self.table()
            table = self.kept[key]
        return self.last((self.first(x) + table).relu())


class Company(nn.Module):
    """Apply a function of the whole batch, and then layers."""

    def __init__(self, mix: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.mix, self.layers = mix, nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x):
        return self.layers(self.mix(x))
