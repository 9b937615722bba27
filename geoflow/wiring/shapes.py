"""Rules for operations that only move elements: transposes, slices, copies and concatenations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from geoflow.wiring.entries import activation, broadcast
from geoflow.wiring.labels import Label, Operand, Parameter, Segment, Value, is_plain, is_zero, length
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


@rule("movedim", "moveaxis")
def move(ledger: Ledger, x: Operand, source: int | Sequence[int], target: int | Sequence[int]) -> Operand:
    rank = len(x.shape)
    source, target = ([axis % rank for axis in ([given] if isinstance(given, int) else given)] for given in (source, target))
    rest = iter([axis for axis in range(rank) if axis not in source])
    return permute(ledger, x, [source[target.index(axis)] if axis in target else next(rest) for axis in range(rank)])


@rule("transpose", "swapaxes", "swapdims")
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
        if length(label) == 1 < size and ledger.is_position(label):
            labels.append(ledger.uniform(size))
        else:
            labels.append(label if copies == 1 else ledger.position(size) if ledger.is_position(label) else label * copies)
    return Value(tuple(labels))


@rule("repeat_interleave")
def repeat_interleave(ledger: Ledger, x: Operand, times: Operand, axis: int | None = None, **_: object) -> Value:
    require(isinstance(times, int) and axis is not None, "repeats that are not one number along one axis")
    labels = list(activation(ledger, x).labels)
    labels[axis] = tuple(Segment(s.site, s.size, s.repeat * times) for s in labels[axis])
    ledger.maps.spread(labels[axis])
    if ledger.is_position(labels[axis]):
        labels[axis] = ledger.position(length(labels[axis]))
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
    """Elements `start` to `stop` of one axis. Along the first axis of a parameter, these are rows of the entry."""
    axis %= len(x.shape)
    if isinstance(x, Parameter) and x.axes[axis] == 0 and len(x.shape) == len(x.entry):
        shape, entry = list(x.shape), (stop - start, *x.entry[1:])
        shape[axis] = stop - start
        return Parameter(x.name, tuple(shape), x.axes, entry, x.learned, x.start + start)
    x = activation(ledger, x)
    labels = ledger.maps.chosen(x.labels, axis, start, stop)
    kept = ledger.part(labels[axis], start, stop)
    ledger.idle |= ({segment.site for segment in labels[axis]} - {segment.site for segment in kept}) & ledger.read_off
    labels[axis] = kept
    return Value(tuple(labels))


@rule("flip", "roll", "cumsum", "index_select")
def shuffle(ledger: Ledger, x: Operand, *rest: object) -> Value:
    """Moving positions changes no symmetry. Units that change places by their number are pinned."""
    for leaf in tree_leaves(rest, is_leaf=lambda leaf: not is_plain(leaf)):
        _given(ledger, leaf)
    x = activation(ledger, x)
    if ledger.operation in ("cumsum", "index_select"):
        axes = {rest[0] % len(x.labels)}
    else:
        given = rest[-1] if ledger.operation == "flip" or len(rest) == 2 else ()
        axes = {axis % len(x.labels) for axis in (given or range(len(x.labels)))}
    return Value(tuple(ledger.broken((label,), ledger.shape[i]) if i in axes else label for i, label in enumerate(x.labels)))


def _given(ledger: Ledger, place: Operand) -> Value:
    """An index that no symmetry moves, such as one of constants or inputs."""
    place = broadcast(ledger, place)
    require(all(map(ledger.is_position, place.labels)), "an index that is computed")
    return place


@rule("index")
def index(ledger: Ledger, x: Operand, places: Sequence[Operand]) -> Value:
    """x[:, i, j] with whole numbers of constants or inputs. The indexed axes become positions, and their units are pinned."""
    given = [node for node in ledger.node.args[1] if node is not None]
    require(all(node.meta["val"].dtype != torch.bool for node in given), "an index of truth values")
    given = [axis for axis, place in enumerate(places) if place is not None]
    for axis in given:
        _given(ledger, places[axis])
    labels = activation(ledger, x).labels
    ledger.pin(*(labels[axis] for axis in given))
    kept = [label for axis, label in enumerate(labels) if axis not in given]
    at = given[0] if given[-1] - given[0] == len(given) - 1 else 0
    new = ledger.shape[at : at + len(ledger.shape) - len(kept)]
    return Value((*kept[:at], *map(ledger.position, new), *kept[at:]))


@rule("gather", "take_along_dim")
def gather(ledger: Ledger, x: Operand, axis: int, places: Operand, sparse_grad: bool = False) -> Value:
    """Element i of another axis is gathered by row i of the index. Its units are free if all rows of the index are equal."""
    if ledger.operation == "take_along_dim":
        axis, places = places, axis
    labels, places = list(activation(ledger, x).labels), _given(ledger, places)
    axis %= len(labels)
    for i, (along, size) in enumerate(zip(places.labels, ledger.shape, strict=True)):
        alike = length(along) == 1 or ledger.is_uniform(along)
        if i == axis or not alike or length(labels[i]) != size:
            labels[i] = ledger.broken((labels[i],), size)
    return Value(tuple(labels))


@rule("_assert_tensor_metadata")
def remark(ledger: Ledger, *_: object, **__: object) -> None:
    """A note of the graph on a cast, which computes nothing."""


@rule("zeros_like", "new_zeros", "empty_like", "new_empty")
def zeros(ledger: Ledger, *_: object, **__: object) -> Tensor:
    return filled(ledger, 0)


@rule("ones_like", "new_ones")
def ones(ledger: Ledger, *_: object, **__: object) -> Tensor:
    return filled(ledger, 1)


@rule("full_like", "new_full")
def full(ledger: Ledger, x: Operand, *rest: object, **_: object) -> Tensor:
    require(is_plain(rest[-1]), "a number that is computed")
    return filled(ledger, rest[-1])


def filled(ledger: Ledger, number: float) -> Tensor:
    like = ledger.node.meta["val"]
    return torch.full(like.shape, number, dtype=like.dtype, device=like.device)


@rule("cat", "concat", "concatenate")
def cat(ledger: Ledger, parts: Sequence[Operand], axis: int = 0) -> Value:
    parts = [part for part in parts if tuple(part.shape) != (0,)]  # torch ignores empty parts
    values = [broadcast(ledger, part) for part in parts]
    axis %= len(parts[0].shape)
    labels = [() if i == axis else _beside(ledger, parts, values, i) for i in range(len(parts[0].shape))]
    joined = [value.labels[axis] for value in values]
    sizes = [part.shape[axis] for part in parts]
    whole = [label if length(label) == size else ledger.position(size) for label, size in zip(joined, sizes, strict=True)]
    whole = [ledger.zeros(length(label), i) if is_zero(parts[i]) else label for i, label in enumerate(whole)]
    units = not all(map(ledger.is_position, whole))
    labels[axis] = tuple(segment for label in whole for segment in label) if units else ledger.position(ledger.shape[axis])
    return Value(tuple(labels))


def _beside(ledger: Ledger, parts: Sequence[Operand], values: Sequence[Value], axis: int) -> Label:
    """The label of another axis than that of a concatenation. Its units move together. Zeros move with any units."""
    size = max(length(value.labels[axis]) for value in values)
    first: Label | None = None
    for label in (value.labels[axis] for value in values):
        if length(label) == size and first is None:
            first = label
        elif length(label) == size:
            ledger.tie(label, first, "concatenation")
            first = label if ledger.is_position(first) else first
    constants = [part for part in parts if isinstance(part, Tensor)]
    if any(constant.any() for constant in constants):
        ledger.pin(first, symmetries=MEASURES)
    return first


@rule("stack")
def stack(ledger: Ledger, parts: Sequence[Operand], axis: int = 0) -> Value:
    return cat(ledger, [unsqueeze(ledger, part, axis) for part in parts], axis)


@rule("glu")
def glu(ledger: Ledger, x: Operand, axis: int = -1) -> Value:
    """The first half times the sigmoid of the second half."""
    x = activation(ledger, x)
    axis %= len(x.labels)
    half = length(x.labels[axis]) // 2
    kept, gate = cut(ledger, x, axis, 0, half), cut(ledger, x, axis, half, 2 * half)
    ledger.tie(gate.labels[axis], kept.labels[axis], "product", ("permutation",))
    ledger.pin(gate.labels[axis], symmetries=MEASURES)
    ledger.pin(*(label for i, label in enumerate(x.labels) if i != axis), symmetries=MEASURES)
    return kept
