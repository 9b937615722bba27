"""Change matrices by orthogonal steps: the optimizer Muon, for all matrices of one shape at once."""

from collections.abc import Sequence
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
SIZE = 0.2  # root mean square of a step's entries in units of the learning rate, as of AdamW's steps
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # s -> a s + b s^3 + c s^5 brings singular values from (0, 1] to about 1 in 5 iterations


class Muon:
    """Muon (Jordan et al. 2024) with Nesterov's momentum and decoupled weight decay, on stacks of matrices [matrices, rows, columns] that
    hold gradients.

    It does what torch.optim.Muon does with `adjust_lr_fn="match_rms_adamw"`, in the matrices' own precision in place of bfloat16, and one
    product serves a whole stack: a flow's small matrices would spend a third of a training step on calls.
    """

    def __init__(self, stacks: Sequence[Tensor], weight_decay: float):
        self.stacks, self.weight_decay = list(stacks), weight_decay
        self.momenta = [torch.zeros_like(stack) for stack in stacks]

    @torch.no_grad()
    def step(self, lr: float | Tensor) -> None:
        for stack, momentum in zip(self.stacks, self.momenta, strict=True):
            momentum.lerp_(stack.grad, 1 - MOMENTUM)
        ahead = [stack.grad.lerp(momentum, MOMENTUM) for stack, momentum in zip(self.stacks, self.momenta, strict=True)]
        for stack, update in zip(self.stacks, orthogonal(ahead), strict=True):
            stack.mul_(1 - lr * self.weight_decay).sub_(update.mul_(lr * (SIZE * sqrt(max(stack.shape[1:])))))


def orthogonal(stacks: Sequence[Float[Tensor, "_matrices _rows _columns"]]) -> list[Tensor]:
    """Nearly the orthogonal matrices U V^T of matrices U S V^T: singular values between .68 and 1.21, for those that are above a 500th of
    their matrix's norm, and lower ones for others.

    The Newton-Schulz iteration x <- P x with P = a + b G + c G^2, G = x x^T, is carried out on the small square G, which P commutes with;
    squares of one size, from whatever stacks, go together.

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
    """What the iterations multiply matrices of these Gram matrices by, from the left, all together."""
    (a, b, c), whole = QUINTIC, None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        whole = factor if whole is None else factor @ whole
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    return whole
