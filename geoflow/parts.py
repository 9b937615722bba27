"""Work on the coordinates of large vectors fast: part by part, in another order, or as sums over groups."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from geoflow.constants import beside

_STRETCHES = WeakTensorKeyDictionary()  # index: result of `stretch_of`
PART = 2**16  # numbers of a part; a processor's cache holds some tensors of this size, and the allocator uses their memory again


def in_parts(function: Callable[..., Tensor | tuple[Tensor, ...]], *vectors: Shaped[Tensor, "*_batch _size_or_1"]):
    """Return function(*vectors), for a function that computes each coordinate from that coordinate of its vectors alone.

    Long vectors are computed in parts. Each operation on a whole vector would ask for new memory, which is slow, and read all vectors
    anew. Vectors of one coordinate serve all parts. The result is the same, bit by bit.

    >>> a = torch.randn(2, 150_000)
    >>> in_parts(lambda a, b: a.sin() * b, a, a[:, :1]).equal(a.sin() * a[:, :1])
    True
    """
    size = max(vector.shape[-1] for vector in vectors)
    if size <= PART:
        return function(*vectors)
    count = -(-size // PART)
    cut = [vector.split(PART, -1) if vector.shape[-1] == size else [vector] * count for vector in vectors]
    found = [function(*part) for part in zip(*cut, strict=True)]
    if isinstance(found[0], Tensor):
        return torch.cat(found, -1)
    return tuple(torch.cat(one, -1) for one in zip(*found, strict=True))


def taken(x: Float[Tensor, "nets size"], index: Int[Tensor, "*_axes"]) -> Float[Tensor, "nets _chosen"]:
    """The coordinates x[:, index], flat. They are a view of x if they are consecutive.

    >>> taken(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([[1], [2]]))
    tensor([[6., 7.]])
    """
    if index not in _STRETCHES:
        _STRETCHES[index] = stretch_of(index)
    stretch = _STRETCHES[index]
    return x[:, beside(index, x).flatten()] if stretch is None else x[:, stretch]


def in_sequence(indices: Sequence[Int[Tensor, "*_axes"]]) -> tuple[int, ...] | None:
    """The order in which disjoint indices follow each other in a vector, by number. It is None if one of them has gaps.

    >>> in_sequence([torch.tensor([2, 3]), torch.tensor([0, 1])]), in_sequence([torch.tensor([0, 2]), torch.tensor([1])])
    ((1, 0), None)
    """
    stretches = [stretch_of(index) for index in indices]
    return None if None in stretches else tuple(sorted(range(len(stretches)), key=lambda number: stretches[number].start))


def stretch_of(index: Int[Tensor, "*_axes"]) -> slice | None:
    """The coordinates of an index as a slice, if they are consecutive, else None. A slice needs no copy.

    >>> stretch_of(torch.tensor([[4, 5], [6, 7]])), stretch_of(torch.tensor([4, 6]))
    (slice(4, 8, None), None)
    """
    flat = index.flatten()
    if not len(flat) or not (flat.diff() == 1).all():
        return None
    return slice(int(flat[0]), int(flat[-1]) + 1)


def sums_of(x: Float[Tensor, "nets size"], group: Int[Tensor, " size"], groups: int) -> Float[Tensor, "nets _groups"]:
    """The sums of the coordinates of each group.

    For several rows, torch's index_add takes each coordinate by itself on a CPU, and scatter_add takes all at once.

    >>> sums_of(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0, 1, 0]), 2)
    tensor([[5., 2.]])
    """
    return x.new_zeros(len(x), groups).scatter_add(1, group.expand_as(x), x)


def reordered(x: Float[Tensor, "*batch size"], order: Int[Tensor, " size"], back: Int[Tensor, " size"]) -> Float[Tensor, "*batch size"]:
    """The coordinates in another order, x[..., order]. `back` is the inverse order.

    >>> reordered(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]))
    tensor([[7., 5., 6.]])
    """
    return _Reordered.apply(x, order, back)


class _Reordered(torch.autograd.Function):
    """The gradient reads the coordinates in the order `back`. torch's own gradient of indexing would add them up instead."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, order, back):
        return x[..., order]

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, order, back = inputs
        ctx.save_for_backward(order, back)
        ctx.save_for_forward(order)

    @staticmethod
    def backward(ctx, gradient):
        order, back = ctx.saved_tensors
        return reordered(gradient, back, order), None, None

    @staticmethod
    def jvp(ctx, dx, _order, _back):
        (order,) = ctx.saved_tensors
        return dx[..., order]
