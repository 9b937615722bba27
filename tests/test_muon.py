"""Muon's steps are the orthogonal factors of gradients, whatever the shapes."""

import pytest
import torch

from geoflow.muon import ITERATIONS, QUINTIC, Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 12), (2, 12, 5), (1, 1, 7), (4, 88, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_every_singular_value_goes_through_the_polynomial(shape, dtype, tolerance, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(x / x.flatten(1).norm(dim=1)[:, None, None], full_matrices=False)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(orthogonal([x.to(dtype)])[0].double(), u * s[:, None] @ v, atol=tolerance)
    assert s.min() > 0.68 and s.max() < 1.21


def test_a_matrix_of_low_rank_stays_finite(generator):
    x = torch.randn(2, 40, 1, generator=generator) @ torch.randn(2, 1, 30, generator=generator)
    values = torch.linalg.svdvals(orthogonal([x])[0])
    assert values[:, 0].min() > 0.68 and values[:, 0].max() < 1.21 and values[:, 1:].max() < 0.1
    assert not orthogonal([torch.zeros(1, 3, 3)])[0].any()


def test_stacks_of_one_gram_size_go_together_each_for_itself(generator):
    stacks = [torch.randn(count, *shape, generator=generator) for count, shape in ((2, (4, 9)), (3, (7, 4)), (1, (5, 5)))]
    for together, stack in zip(orthogonal(stacks), stacks, strict=True):
        assert together.shape == stack.shape and torch.allclose(together, orthogonal([stack])[0], atol=1e-5)


def test_it_steps_as_torch_s_does_but_for_bfloat16(generator):
    start = [torch.randn(2, *shape, generator=generator) for shape in ((6, 9), (20, 4))]
    ours = [torch.nn.Parameter(stack.clone()) for stack in start]
    theirs = [torch.nn.Parameter(matrix.clone()) for stack in start for matrix in stack]
    muon, other = Muon(ours, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradients = [torch.randn(stack.shape, generator=generator) for stack in start]
        for stack, gradient in zip(ours, gradients, strict=True):
            stack.grad = gradient
        for matrix, gradient in zip(theirs, (one for stack in gradients for one in stack), strict=True):
            matrix.grad = gradient
        muon.step(0.01)
        other.step()
    for stack, first, number in zip(ours, start, (0, 2), strict=True):
        reached = torch.stack(theirs[number : number + 2])
        assert (stack - reached).norm() < 0.02 * (reached - first).norm()
