"""Build the small networks of the experiments."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from geoflow.choices import choose

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(features: int, hidden: Sequence[int], classes: int, activation: str = "relu") -> nn.Sequential:
    """A multi-layer perceptron from inputs [*batch, features] to logits [*batch, classes], in torch's default initialisation.

    Raises ValueError for an activation outside ACTIVATIONS and for a width below 1.

    >>> mlp(30, [16, 16], 2, "tanh")
    Sequential(
      (0): Linear(in_features=30, out_features=16, bias=True)
      (1): Tanh()
      (2): Linear(in_features=16, out_features=16, bias=True)
      (3): Tanh()
      (4): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    make_activation = choose("activation", activation, ACTIVATIONS)
    widths = [features, *hidden, classes]
    if min(widths) < 1:
        raise ValueError(f"Widths {widths} of an mlp must all be at least 1.")
    layers: list[nn.Module] = []
    for inward, outward in pairwise(widths):
        layers += [nn.Linear(inward, outward), make_activation()]
    return nn.Sequential(*layers[:-1])
