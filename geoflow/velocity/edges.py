"""Compute the messages along the edges of a block, and the update of the edges.

These are the most expensive operations of the relational transformer. So each is one function with a gradient written by hand: every
large tensor exists once and is changed in place. tests/test_velocity.py compares values and gradients with autograd.

Edge tensors are channels first, [channels, nets, n, m]. Then a map over channels is one matrix product, and every head is one contiguous
matrix.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2**16  # edges whose hidden layer exists at once; more are computed tile by tile, and again for the gradient
softmax_gradient = torch.ops.aten._softmax_backward_data.out


def exchange(
    edge: Float[Tensor, "edge nets n m"],
    bias: Float[Tensor, "_four_heads edge"],
    target: Float[Tensor, "four_heads nets n width"],
    source: Float[Tensor, "four_heads _nets m width"],
    listening: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The messages between the targets (rows) and the sources (columns) of a block.

    `target` holds [q, k', v', u'], `source` holds [k, q', v, u], and `bias` @ edge gives [b, b', g, g']. Each of these has all heads.

        logits      l_ij = b_ij + q_i . k_j / sqrt(width),         l'_ij = b'_ij + k'_i . q'_j / sqrt(width)
        to targets  sum_j softmax_j(l_ij) v_j,                     sum_j g_ij u_j / sqrt(m)
        to sources  sum_i softmax_i(l'_ij) v'_i,                   sum_i g'_ij u'_i / sqrt(n)

    Returns the logits [2 heads, nets, n, m], the messages to targets [2 heads, nets, n, width], and those to sources [2 heads, nets, m,
    width]. The last are None unless the sources are `listening`. `source` may hold one net that serves all nets, if it does not listen.
    """
    logits, to_target, to_source = _Exchange.apply(edge, bias, target, source, listening)
    return logits, to_target, to_source if listening else None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, edge, bias, target, source, listening):
        (_, nets, n, m), heads = edge.shape, len(bias) // 4
        ctx.shared, ctx.listening, ctx.scale = len(source[0]) < nets, listening, 1 / math.sqrt(target.shape[-1])
        bias = torch.cat([bias[: 2 * heads], bias[2 * heads : 3 * heads] / math.sqrt(m), bias[3 * heads :] / math.sqrt(n)])
        flat, fold = edge.flatten(1), _fold(ctx.shared)
        logits = (bias[: 2 * heads] @ flat).view(-1, nets, n, m)
        fold(logits).baddbmm_(fold(target[: 2 * heads]), _fold_source(source[: 2 * heads], ctx.shared).mT, alpha=ctx.scale)
        mix = edge.new_empty(2 * heads * (1 + listening), nets, n, m)  # the coefficients: softmax and signed rows, then columns
        torch.softmax(logits[:heads], -1, out=mix[:heads])
        torch.mm(bias[2 * heads : 3 * heads], flat, out=mix[heads : 2 * heads].flatten(1))
        to_target = fold(mix[: 2 * heads]) @ _fold_source(source[2 * heads :], ctx.shared)
        to_source = None
        if listening:
            torch.softmax(logits[heads:], -2, out=mix[2 * heads : 3 * heads])
            torch.mm(bias[3 * heads :], flat, out=mix[3 * heads :].flatten(1))
            to_source = (mix[2 * heads :].mT @ target[2 * heads :]).view(-1, nets, m, target.shape[-1])
        ctx.save_for_backward(flat, bias, target, source, mix)
        return logits, to_target.view(-1, nets, n, target.shape[-1]), to_source

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logits, d_to_target, d_to_source):
        flat, bias, target, source, mix = ctx.saved_tensors
        nets, n, m = mix.shape[1:]
        heads, terms, fold = len(bias) // 4, len(bias) * (3 + ctx.listening) // 4, _fold(ctx.shared)
        d_terms = mix.new_empty(terms, nets, n, m)  # of b, b', g and, if the sources listen, g'
        d_target, d_source = torch.zeros_like(target), torch.empty_like(source)
        there = _fold_source(source[2 * heads :], ctx.shared).mT
        half = len(there) // 2
        to_target = fold(d_to_target)
        torch.bmm(to_target[half:], there[half:], out=fold(d_terms[2 * heads : 3 * heads]))
        d_row = (to_target[:half] @ there[:half]).view(heads, nets, n, m)
        softmax_gradient(d_row, mix[:heads], -1, d_row.dtype, grad_input=d_terms[:heads]).add_(d_logits[:heads])
        d_source[2 * heads :] = (fold(mix[: 2 * heads]).mT @ to_target).view(d_source[2 * heads :].shape)
        if ctx.listening:
            here, to_source = target[2 * heads :], d_to_source.mT
            torch.matmul(here[heads:], to_source[heads:], out=d_terms[3 * heads :])
            d_column, of_columns = here[:heads] @ to_source[:heads], d_terms[heads : 2 * heads]
            softmax_gradient(d_column, mix[2 * heads : 3 * heads], -2, d_column.dtype, grad_input=of_columns).add_(d_logits[heads:])
            d_target[2 * heads :] = mix[2 * heads :] @ d_to_source
        else:
            d_terms[heads : 2 * heads] = d_logits[heads:]
        pairs = fold(d_terms[: 2 * heads])
        d_target[: 2 * heads] = (pairs @ _fold_source(source[: 2 * heads], ctx.shared)).view(d_target[: 2 * heads].shape).mul_(ctx.scale)
        d_source[: 2 * heads] = (pairs.mT @ fold(target[: 2 * heads])).view(d_source[: 2 * heads].shape).mul_(ctx.scale)
        d_terms = d_terms.flatten(1)
        d_edge = bias[:terms].T @ d_terms
        d_bias = torch.zeros_like(bias)
        torch.mm(d_terms, flat.T, out=d_bias[:terms])
        d_bias[2 * heads : 3 * heads] /= math.sqrt(m)
        d_bias[3 * heads :] /= math.sqrt(n)
        return d_edge.view(-1, nets, n, m), d_bias, d_target, d_source, None


def _fold(shared: bool):
    """How to fold [groups, nets, n, ...] into a batch of matrices: one for all nets if they share their sources, else one for each net."""
    return (lambda x: x.flatten(1, 2)) if shared else (lambda x: x.flatten(0, 1))


def _fold_source(x: Tensor, shared: bool) -> Tensor:
    return x[:, 0] if shared else x.flatten(0, 1)


def edge_update(
    edge: Float[Tensor, "edge nets n m"],
    logits: Float[Tensor, "two_heads nets n m"],
    target: Float[Tensor, "nets n hidden"],
    source: Float[Tensor, "_nets m hidden"],
    mix: Float[Tensor, "hidden _edge_and_heads"],
    back: Float[Tensor, "edge hidden"],
) -> Float[Tensor, "edge nets n m"]:
    """edge + back relu(mix [edge, logits] + target_i + source_j): an MLP on every edge, which also sees its ends and its logits.

    `source` may hold one net that serves all nets.
    """
    return _EdgeUpdate.apply(edge, logits, target, source, mix, back)


class _EdgeUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, edge, logits, target, source, mix, back):
        edge, logits, target, source = (x.contiguous() for x in (edge, logits, target.permute(2, 0, 1), source.permute(2, 0, 1)))
        ctx.tiles, out, hidden = list(_tiles(edge)), torch.empty_like(edge), None
        for tile in ctx.tiles:
            hidden = _hidden(edge, logits, target, source, mix, tile)
            torch.addmm(_flat(edge, tile), back, hidden, out=_flat(out, tile))
        ctx.save_for_backward(edge, logits, target, source, mix, back, *([hidden] if len(ctx.tiles) == 1 else []))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        edge, logits, target, source, mix, back, *kept = ctx.saved_tensors
        gradient, by_edge, by_logits = gradient.contiguous(), *(part.T for part in mix.split([len(edge), len(logits)], 1))
        d_edge, d_logits, d_target = (torch.empty_like(one) for one in (edge, logits, target))
        d_source, d_mix, d_back = (torch.zeros_like(one) for one in (source, mix, back))
        for tile in ctx.tiles:
            hidden = kept[0] if kept else _hidden(edge, logits, target, source, mix, tile)
            above = _flat(gradient, tile)
            inner = back.T @ above
            torch.ops.aten.threshold_backward.grad_input(inner, hidden, 0, grad_input=inner)
            torch.addmm(above, by_edge, inner, out=_flat(d_edge, tile))
            torch.mm(by_logits, inner, out=_flat(d_logits, tile))
            d_back.addmm_(above, hidden.T)
            for d_part, part in zip(d_mix.split([len(edge), len(logits)], 1), (edge, logits), strict=True):
                d_part.addmm_(inner, _flat(part, tile).T)
            shaped = inner.view(*target[:, *tile].shape, -1)
            d_target[:, *tile] = shaped.sum(3)
            if source.shape[1] == edge.shape[1]:
                d_source[:, tile[0]] += shaped.sum(2)
            else:
                d_source += shaped.sum((1, 2)).unsqueeze(1)
        return d_edge, d_logits, d_target.permute(1, 2, 0), d_source.permute(1, 2, 0), d_mix, d_back


def _tiles(edge: Float[Tensor, "edge nets n m"]) -> Iterator[tuple[slice, slice]]:
    """Cut all edges into tiles of about TILE, each given by its nets and its targets: several whole nets, or rows of one."""
    _, nets, n, m = edge.shape
    together, rows = max(1, TILE // (n * m)), min(n, max(1, TILE // m))
    for net in range(0, nets, together):
        for row in range(0, n, rows):
            yield slice(net, net + together), slice(row, row + rows)


def _flat(x: Float[Tensor, "channels nets n m"], tile: tuple[slice, slice]) -> Float[Tensor, "channels _edges"]:
    """The edges of a tile, as a view."""
    return x[:, *tile].view(len(x), -1)


def _hidden(edge: Tensor, logits: Tensor, target: Tensor, source: Tensor, mix: Tensor, tile: tuple[slice, slice]) -> Tensor:
    """The hidden layer of the edges of a tile, [hidden, edges]."""
    nets, _ = tile
    by_edge, by_logits = mix.split([len(edge), len(logits)], 1)
    heard = source[:, nets if source.shape[1] == edge.shape[1] else slice(None)]
    hidden = torch.add(target[:, *tile, None], heard[:, :, None]).flatten(1)
    return hidden.addmm_(by_edge, _flat(edge, tile)).addmm_(by_logits, _flat(logits, tile)).relu_()
