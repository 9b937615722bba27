"""Start an output layer at zero, so that a field begins as its preconditioning alone."""

from torch import nn


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
