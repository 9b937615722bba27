"""Update the edges of a block in one fused step: the widest arithmetic of the relational transformer."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def edge_update(
    edge: Float[Tensor, "edge nets n m"],
    row: Float[Tensor, "heads nets n m"],
    column: Float[Tensor, "heads nets n m"],
    target: Float[Tensor, "nets n hidden"],
    source: Float[Tensor, "_nets m hidden"],
    mix: Float[Tensor, "hidden _edge_and_heads"],
    back: Float[Tensor, "edge hidden"],
) -> Float[Tensor, "edge nets n m"]:
    """edge + back relu(mix [edge, row, column] + target_i + source_j): an MLP on every edge, with what its ends and their logits say.

    `source` may be one net that stands for all. Gradients are written by hand, so that the hidden layer exists once and is
    changed in place; tests/test_velocity.py holds them against autograd.
    """
    return _EdgeUpdate.apply(edge, row, column, target, source, mix, back)


class _EdgeUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, edge, row, column, target, source, mix, back):
        by_edge, by_row, by_column = mix.split([len(edge), len(row), len(column)], 1)
        flat = [part.flatten(1) for part in (edge, row, column)]
        hidden = (by_edge @ flat[0]).addmm_(by_row, flat[1]).addmm_(by_column, flat[2])
        shaped = hidden.view(-1, *edge.shape[1:])
        shaped.add_(target.permute(2, 0, 1)[..., None]).add_(source.permute(2, 0, 1)[:, :, None]).relu_()
        ctx.save_for_backward(*flat, hidden, mix, back)
        ctx.shape, ctx.sources = edge.shape, len(source)
        return torch.addmm(flat[0], back, hidden).view(edge.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        *flat, hidden, mix, back = ctx.saved_tensors
        splits = [len(part) for part in flat]
        gradient = gradient.reshape(len(flat[0]), -1)
        inner = torch.ops.aten.threshold_backward(back.T @ gradient, hidden, 0)
        by_edge, by_row, by_column = (part.T for part in mix.split(splits, 1))
        edge = torch.addmm(gradient, by_edge, inner)
        mixing = torch.cat([inner @ part.T for part in flat], 1)
        shaped = inner.view(-1, *ctx.shape[1:])
        sources = shaped.sum(2) if ctx.sources > 1 or ctx.shape[1] == 1 else shaped.sum((1, 2)).unsqueeze(1)
        parts = [part.view(-1, *ctx.shape[1:]) for part in (edge, by_row @ inner, by_column @ inner)]
        return *parts, shaped.sum(3).permute(1, 2, 0), sources.permute(1, 2, 0), mixing, gradient @ hidden.T
