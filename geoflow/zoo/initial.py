"""Draw the initial weights of the networks of a zoo."""

from collections.abc import Callable

from torch import nn


def as_built(network: nn.Module) -> None:
    """Leave the weights that the layers of torch drew themselves."""


def he(network: nn.Module) -> None:
    """Draw the weights of linear and convolutional layers from N(0, 2 / inputs), and set their biases to 0.

    Source: He et al., Delving deep into rectifiers, 2015.

    >>> import torch
    >>> he(layer := nn.Linear(200, 500))
    >>> f"{layer.weight.std():.2f}", bool((layer.bias == 0).all())
    ('0.10', True)
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# name: how the weights of a newly built network are drawn anew
INITS: dict[str, Callable[[nn.Module], None]] = {"torch": as_built, "he": he}
