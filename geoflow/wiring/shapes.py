"""Wire what only moves numbers about: transposes, slices, copies, concatenations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from geoflow.wiring.entries import activation
from geoflow.wiring.labels import Operand, Parameter, Value, length
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import require, rule
from geoflow.wiring.views import seen


@rule("permute")
def permute(ledger: Ledger, x: Operand, order: Sequence[int]) -> Operand:
    order = [axis % len(order) for axis in order]
    if isinstance(x, Parameter):
        return seen(x, [x.shape[i] for i in order], [x.axes[i] for i in order])
    x = activation(ledger, x)
    return Value(tuple(x.labels[i] for i in order))


@rule("transpose", "swapaxes")
def transpose(ledger: Ledger, x: Operand, a: int, b: int) -> Operand:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(ledger, x, order)


@rule("t", "numpy_T", "mT", "adjoint")
def reverse(ledger: Ledger, x: Operand) -> Operand:
    return permute(ledger, x, range(len(x.shape))[::-1]) if len(x.shape) <= 2 else transpose(ledger, x, -1, -2)


@rule("unsqueeze")
def unsqueeze(ledger: Ledger, x: Operand, axis: int) -> Operand:
    axis %= len(x.shape) + 1
    if isinstance(x, Parameter):
        return seen(x, [*x.shape[:axis], 1, *x.shape[axis:]], [*x.axes[:axis], None, *x.axes[axis:]])
    labels = activation(ledger, x).labels
    return Value((*labels[:axis], ledger.position(1), *labels[axis:]))


@rule("expand", "expand_as", "broadcast_to", "repeat", "tile")
def expand(ledger: Ledger, x: Operand, *_: object, **__: object) -> Operand:
    new = len(ledger.shape) - len(x.shape)
    x = activation(ledger, x)
    labels = [ledger.position(size) for size in ledger.shape[:new]]
    for label, size in zip(x.labels, ledger.shape[new:], strict=True):
        copies = size // length(label)
        if length(label) == 1 < size:
            ledger.pin(label, symmetries=MEASURES)
        labels.append(label if copies == 1 else ledger.position(size) if ledger.is_position(label) else label * copies)
    return Value(tuple(labels))


@rule("slice", "narrow")
def narrow(ledger: Ledger, x: Operand, axis: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Operand:
    size = x.shape[axis]
    if ledger.operation == "narrow":
        start, stop = start % size if start < 0 else start, start + stop
    start, stop, _ = slice(start, stop).indices(size)
    if step != 1 and (start, stop) != (0, size):
        x = cut(ledger, x, axis, start, stop)
        size, start, stop = stop - start, 0, stop - start
    if step != 1:
        x = activation(ledger, x)
        labels = list(x.labels)
        labels[axis] = ledger.broken((labels[axis],), ledger.shape[axis])
        return Value(tuple(labels))
    return cut(ledger, x, axis, start, stop)


@rule("select")
def select(ledger: Ledger, x: Operand, axis: int, index: int) -> Operand:
    axis %= len(x.shape)
    index %= x.shape[axis]
    one = cut(ledger, x, axis, index, index + 1)
    if isinstance(one, Parameter):
        one = activation(ledger, one)
    ledger.pin(one.labels[axis])
    return Value((*one.labels[:axis], *one.labels[axis + 1 :]))


@rule("unbind")
def unbind(ledger: Ledger, x: Operand, axis: int = 0) -> list[Operand]:
    return [select(ledger, x, axis, index) for index in range(x.shape[axis])]


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def split(ledger: Ledger, x: Operand, *_: object, **__: object) -> list[Operand]:
    shapes = [tuple(part.shape) for part in ledger.node.meta["val"]]
    changed = [i for i, (a, b) in enumerate(zip(x.shape, shapes[0], strict=True)) if a != b]
    parts, start, axis = [], 0, changed[0] if changed else 0
    for shape in shapes:
        parts.append(cut(ledger, x, axis, start, start + shape[axis]))
        start += shape[axis]
    return parts


def cut(ledger: Ledger, x: Operand, axis: int, start: int, stop: int) -> Operand:
    """Entries start to stop of one axis; of a parameter's first axis, its rows."""
    axis %= len(x.shape)
    if isinstance(x, Parameter) and x.axes[axis] == 0 and len(x.shape) == len(x.entry):
        shape, entry = list(x.shape), (stop - start, *x.entry[1:])
        shape[axis] = stop - start
        return Parameter(x.name, tuple(shape), x.axes, entry, x.learned, x.start + start)
    x = activation(ledger, x)
    labels = list(x.labels)
    labels[axis] = ledger.part(labels[axis], start, stop)
    return Value(tuple(labels))


@rule("flip", "roll", "cumsum", "index_select")
def shuffle(ledger: Ledger, x: Operand, *rest: object) -> Value:
    """Moves entries along axes of positions; which axes is not asked, so every axis of units that changes is pinned."""
    require(all(isinstance(leaf, int | Tensor) for leaf in tree_leaves(rest)), "an index that is computed")
    x = activation(ledger, x)
    if ledger.operation in ("cumsum", "index_select"):
        axes = {rest[0] % len(x.labels)}
    else:
        axes = {axis % len(x.labels) for axis in (rest[-1] or range(len(x.labels)))}
    return Value(tuple(ledger.broken((label,), ledger.shape[i]) if i in axes else label for i, label in enumerate(x.labels)))


@rule(*(f"{kind}_{value}" for kind in ("new",) for value in ("zeros", "ones", "full")), "zeros_like", "ones_like", "full_like")
def filled(ledger: Ledger, x: Operand, *arguments: object, **_: object) -> Tensor:
    """A constant of the shape of an activation."""
    value = {"zeros": 0.0, "ones": 1.0}.get(ledger.operation.replace("new_", "").replace("_like", ""), arguments[-1] if arguments else 0.0)
    return torch.full(ledger.shape, value)


@rule("cat", "concat", "concatenate")
def cat(ledger: Ledger, parts: Sequence[Operand], axis: int = 0) -> Value:
    parts = [activation(ledger, part) for part in parts]
    rank = len(parts[0].labels)
    require(all(len(part.labels) == rank for part in parts), "operands of different rank")
    labels = []
    for i in range(rank):
        along = [part.labels[i] for part in parts]
        if i != axis % rank:
            for other in along[1:]:
                ledger.tie(along[0], other)
            labels.append(next((label for label in along if not ledger.is_position(label)), along[0]))
        elif all(map(ledger.is_position, along)):
            labels.append(ledger.position(ledger.shape[i]))
        else:
            labels.append(tuple(segment for label in along for segment in label))
    return Value(tuple(labels))


@rule("stack")
def stack(ledger: Ledger, parts: Sequence[Operand], axis: int = 0) -> Value:
    return cat(ledger, [unsqueeze(ledger, part, axis) for part in parts], axis)


@rule("glu")
def glu(ledger: Ledger, x: Operand, axis: int = -1) -> Value:
    """The first half times the sigmoid of the second."""
    x = activation(ledger, x)
    axis %= len(x.labels)
    half = length(x.labels[axis]) // 2
    kept, gate = cut(ledger, x, axis, 0, half), cut(ledger, x, axis, half, 2 * half)
    ledger.tie(kept.labels[axis], gate.labels[axis], ("permutation",))
    ledger.pin(gate.labels[axis], symmetries=MEASURES)
    ledger.pin(*(label for i, label in enumerate(x.labels) if i != axis), symmetries=MEASURES)
    return kept
