"""Update matrices by orthogonal steps, with the optimizer Muon."""

from collections.abc import Sequence
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
SIZE = 0.2  # root mean square of a step's entries, relative to the learning rate; AdamW's steps have the same
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # s -> a s + b s^3 + c s^5 moves singular values from (0, 1] to about 1 in 5 iterations


class Muon:
    """The optimizer Muon (Jordan et al. 2024) for stacks of matrices [matrices, rows, columns] that hold gradients.

    It has Nesterov's momentum and decoupled weight decay, and does what torch.optim.Muon does with `adjust_lr_fn="match_rms_adamw"`. There
    are two differences. It computes in the matrices' own precision instead of bfloat16. And one product serves a whole stack, because for a
    flow's small matrices separate calls would take a third of a training step.
    """

    def __init__(self, stacks: Sequence[Tensor], weight_decay: float):
        self.stacks, self.weight_decay = list(stacks), weight_decay
        self.momenta = [torch.zeros_like(stack) for stack in stacks]

    @torch.no_grad()
    def step(self, lr: float | Tensor) -> None:
        """Change all matrices by their gradients."""
        for stack, momentum in zip(self.stacks, self.momenta, strict=True):
            momentum.lerp_(stack.grad, 1 - MOMENTUM)
        ahead = [stack.grad.lerp(momentum, MOMENTUM) for stack, momentum in zip(self.stacks, self.momenta, strict=True)]
        for stack, update in zip(self.stacks, orthogonal(ahead), strict=True):
            stack.mul_(1 - lr * self.weight_decay).sub_(update.mul_(lr * (SIZE * sqrt(max(stack.shape[1:])))))


def orthogonal(stacks: Sequence[Float[Tensor, "_matrices _rows _columns"]]) -> list[Tensor]:
    """Return approximately the orthogonal matrices U V^T for matrices U S V^T.

    Singular values come out between .68 and 1.21 if they were above a 500th of their matrix's norm, and lower otherwise. The Newton-Schulz
    iteration is x <- P x with P = a + b G + c G^2 and G = x x^T. P commutes with G, so the iteration runs on the small square matrix G.
    Squares of one size are computed together, whatever stacks they come from.

    >>> x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((torch.linalg.svdvals(orthogonal([x])[0]) - 1).abs().max() < 0.33)
    True
    """
    wide = [x.mT if x.shape[1] > x.shape[2] else x for x in stacks]
    wide = [x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7) for x in wide]
    found: list[Tensor] = [*stacks]
    for side in sorted({x.shape[1] for x in wide}):
        alike = [number for number, x in enumerate(wide) if x.shape[1] == side]
        factors = _factors(torch.cat([wide[number] @ wide[number].mT for number in alike]))
        for number, factor in zip(alike, factors.split([len(wide[number]) for number in alike]), strict=True):
            x = factor @ wide[number]
            found[number] = x if x.shape == stacks[number].shape else x.mT
    return found


def _factors(gram: Float[Tensor, "matrices side side"]) -> Float[Tensor, "matrices side side"]:
    """Return the product of all iterations' factors P, which multiplies the matrices from the left."""
    (a, b, c), whole = QUINTIC, None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        whole = factor if whole is None else factor @ whole
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return whole
