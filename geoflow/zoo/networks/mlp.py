"""Build multi-layer perceptrons, plain and residual."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from geoflow.choices import choose

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMS: dict[str, Callable[[int], list[nn.Module]]] = {"none": lambda width: [], "batch": lambda width: [nn.BatchNorm1d(width)]}


def mlp(features: int, hidden: Sequence[int], classes: int, activation: str = "relu", norm: str = "none") -> nn.Sequential:
    """Build a multi-layer perceptron from inputs [*batch, features] to logits [*batch, classes], with torch's default initialisation.

    `norm` names a row of NORMS, which comes after every hidden Linear. With batch norm the inputs are [batch, features].

    Raises ValueError for an activation outside ACTIVATIONS, a norm outside NORMS and a width below 1.

    >>> mlp(30, [16, 16], 2, "tanh")
    Sequential(
      (0): Linear(in_features=30, out_features=16, bias=True)
      (1): Tanh()
      (2): Linear(in_features=16, out_features=16, bias=True)
      (3): Tanh()
      (4): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    make_activation, make_norm = choose("activation", activation, ACTIVATIONS), choose("norm", norm, NORMS)
    widths = [features, *hidden, classes]
    if min(widths) < 1:
        raise ValueError(f"Widths {widths} of an mlp must all be at least 1.")
    layers: list[nn.Module] = []
    for inward, outward in pairwise(widths[:-1]):
        layers += [nn.Linear(inward, outward), *make_norm(outward), make_activation()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class ResidualMLP(nn.Module):
    """A residual perceptron from inputs [*batch, features] to logits [*batch, classes].

    `depth` pre-norm blocks add to a stream of `width` units.

    >>> import torch
    >>> ResidualMLP(64, 10, width=16, depth=2)(torch.zeros(5, 64)).shape
    torch.Size([5, 10])
    """

    def __init__(self, features: int, classes: int, width: int = 16, depth: int = 2):
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch classes"]:
        return self.head(self.norm(self.blocks(self.enter(x))))


class ResidualBlock(nn.Module):
    """x + Linear(GELU(Linear(LayerNorm(x)))), with twice as many units inside."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return x + self.down(self.act(self.up(self.norm(x))))
