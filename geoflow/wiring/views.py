"""Rules for views: which axes are merged, and which are split again."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from operator import mul

from geoflow.wiring.entries import activation
from geoflow.wiring.labels import Label, Operand, Parameter, Segment, Value, length
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import rule

# Operations whose result may share memory with their operand.
VIEWS = frozenset(
    [
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "numpy_T", "mT", "expand"),
        *("slice", "narrow", "select", "chunk", "split", "split_with_sizes", "unbind", "getitem", "expand_as", "view_as", "type_as"),
        *("swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", "tensor_split", "reshape_as", "broadcast_to"),
        *("alias", "detach", "contiguous", "to", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    ]
)

COPIES = 4096  # a merged axis with more positions before its site is pinned


@rule("view", "reshape", "flatten", "unflatten", "squeeze", "_unsafe_view", "view_as", "reshape_as")
def view(ledger: Ledger, x: Operand, *_: object, **__: object) -> Operand:
    new = ledger.shape
    if tuple(x.shape) == new:
        return x
    if isinstance(x, Parameter) and [n for n in x.shape if n > 1] == [n for n in new if n > 1]:
        axes = iter([axis for n, axis in zip(x.shape, x.axes, strict=True) if n > 1])
        return seen(x, new, [next(axes) if n > 1 else None for n in new])
    x = activation(ledger, x)
    labels: list[Label] = []
    alone: list[Label] = []  # sites of one unit whose axis vanishes; the next positions take them in
    for old, sizes in blocks(x.shape, new):
        along = [x.labels[i] for i in old]
        if not sizes and along and not ledger.is_position(along[0]):
            alone += along
        elif alone and all(map(ledger.is_position, along)) and sizes:
            labels += reshaped(ledger, alone + along, [new[i] for i in sizes])
            alone = []
        else:
            labels += reshaped(ledger, along, [new[i] for i in sizes])
    ledger.pin(*alone)
    return Value(tuple(labels))


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the axes of two shapes in the smallest blocks with equal numbers of elements."""
    matched, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and (old[i] == 1) == (new[j] == 1):
            a, b = [i], [j]
        elif i < len(old) and (j == len(new) or old[i] == 1):
            a, b = [i], []
        else:
            a, b = [], [j]
        i, j = i + len(a), j + len(b)
        while prod(old[k] for k in a) != prod(new[k] for k in b):
            if prod(old[k] for k in a) < prod(new[k] for k in b):
                a.append(i)
                i += 1
            else:
                b.append(j)
                j += 1
        matched.append((a, b))
    return matched


def reshaped(ledger: Ledger, labels: list[Label], sizes: list[int]) -> list[Label]:
    """The labels of a block after a view.

    Every axis is split into the factors that both shapes share, and these are merged into the new axes.
    """
    if len(labels) == len(sizes) == 1:
        return labels
    if all(map(ledger.is_position, labels)):
        return [ledger.position(size) for size in sizes]
    old, new = (list(accumulate(counts, mul)) for counts in (map(length, labels), sizes))
    bounds = [1, *sorted({*old, *new})]
    if any(b % a for a, b in pairwise(bounds)):
        ledger.pin(*labels)
        return [ledger.position(size) for size in sizes]
    factors: list[Label] = []
    for label, stop in zip(labels, old, strict=True):
        start = stop // length(label)
        factors += _split(ledger, label, [b // a for a, b in pairwise(bounds) if start <= a and b <= stop])
    return _merged(ledger, factors, sizes)


def _merged(ledger: Ledger, factors: list[Label], sizes: list[int]) -> list[Label]:
    merged = []
    for size in sizes:
        if size == 1:
            merged.append(factors.pop(0) if factors and length(factors[0]) == 1 else ledger.position(1))
            continue
        along = [factors.pop(0)]
        while prod(map(length, along)) < size or (factors and length(factors[0]) == 1 and len(merged) == len(sizes) - 1):
            along.append(factors.pop(0))
        units = [i for i, label in enumerate(along) if not ledger.is_position(label)]
        before = prod(map(length, along[: units[0]])) if units else 1
        if len(along) == 1:
            merged += along
        elif len(units) != 1 or before > COPIES:
            merged.append(ledger.broken(along, size))
        else:
            after = size // before // length(along[units[0]])
            heads = _with_inside(ledger, along[units[0]], along[-1])
            label = tuple(Segment(s.site, s.size, s.repeat * after) for s in heads)
            ledger.maps.pin(*({ledger.maps.of(s) for s in label if s.site in ledger.maps.inside} - {along[-1][-1].site}))
            merged.append(label * before)
    return merged


def _split(ledger: Ledger, label: Label, sizes: list[int]) -> list[Label]:
    """Undo a merge. One of the new axes holds the units, and the others are positions."""
    if len(sizes) <= 1:
        return [label]
    for at in range(len(sizes)):
        before, after = prod(sizes[:at]), prod(sizes[at + 1 :])
        unit = label[: len(label) // before]
        copied = unit * before != label and _copies(ledger, label, before)
        if (unit * before == label or copied) and all(s.repeat % after == 0 for s in unit):
            units = tuple(Segment(s.site, s.size, s.repeat // after) for s in unit)
            axes = [units if i == at else ledger.position(size) for i, size in enumerate(sizes)]
            if copied and at == 1:
                ledger.maps.stack(axes[0][0].site, [segment.site for segment in label])
            if after > 1 and len(unit) == 1 and (at == 1 or not copied):  # the first copy stands for all while their axis is there
                axes[-1] = ledger.maps.axis(unit[0], sizes[-1]) or axes[-1]
            return axes
    if len(label) == 1:  # blocks of units move together, such as heads of attention
        for at in range(len(sizes)):
            ledger.share(label[0], prod(sizes[:at]), sizes[at], prod(sizes[at + 1 :]))
    ledger.pin(label)
    return [ledger.position(size) for size in sizes]


def _copies(ledger: Ledger, label: Label, copies: int) -> bool:
    """Whether a label is that of copies with sites of their own, such as the heads of queries, keys and values."""
    places = {(ledger.places[s.site].key, ledger.places[s.site].start, s.size, s.repeat) for s in label}
    return len(label) == copies and len(places) == 1 and all(s.site in ledger.maps.inside for s in label)


def _with_inside(ledger: Ledger, heads: Label, last: Label) -> Label:
    """The units of heads that are merged with an axis inside them: they are those of the site that the axis belongs to.

    Heads that have factors or signs of their own, as behind a gain for each head, stay, and the axis inside loses its maps.
    """
    homes = ledger.maps.homes(last)
    if len(heads) != 1 or not homes:
        return heads
    (home,) = homes
    alike = all(ledger.together(heads[0].site, home, symmetry) or not ledger.free(heads, symmetry) for symmetry in MEASURES)
    fits = alike and ledger.together(heads[0].site, home) and ledger.places[home].size == heads[0].size
    return (Segment(home, heads[0].size, heads[0].repeat),) if fits else heads


@rule("pixel_shuffle")
def pixel_shuffle(ledger: Ledger, x: Operand, factor: int) -> Value:
    """Blocks of factor^2 channels become one channel each."""
    labels = activation(ledger, x).labels
    channels = _first(ledger, labels[-3], factor**2)
    ledger.pin(*labels[-2:])
    return Value((*labels[:-3], channels, *map(ledger.position, ledger.shape[-2:])))


def _first(ledger: Ledger, label: Label, copies: int) -> Label:
    """The channels of which `copies` lie beside each other."""
    channels, places = _split(ledger, label, [length(label) // copies, copies])
    ledger.pin(places)  # these may be the units
    return channels


@rule("pixel_unshuffle")
def pixel_unshuffle(ledger: Ledger, x: Operand, factor: int) -> Value:
    """One channel becomes factor^2 channels."""
    return _per_channel(ledger, activation(ledger, x), 3, factor**2)


@rule("im2col")
def unfold(ledger: Ledger, x: Operand, kernel: Sequence[int], *_: object) -> Value:
    """Windows of an image: every channel becomes one channel for each place in the window."""
    return _per_channel(ledger, activation(ledger, x), 3, prod(kernel))


def _per_channel(ledger: Ledger, x: Value, axes: int, copies: int) -> Value:
    """Every channel becomes `copies` channels beside each other. The channels are the first of the last `axes` axes."""
    *before, channels = x.labels[: len(x.labels) - axes + 1]
    ledger.pin(*x.labels[len(before) + 1 :])
    after = ledger.shape[len(before) + 1 :]
    wide = tuple(Segment(s.site, s.size, s.repeat * copies) for s in channels)
    wide = ledger.position(length(wide)) if ledger.is_position(channels) else wide
    return Value((*before, wide, *map(ledger.position, after)))


@rule("col2im")
def fold(ledger: Ledger, x: Operand, size: Sequence[int], kernel: Sequence[int], *_: object) -> Value:
    """Windows are added into an image: the reverse of im2col."""
    *before, channels, places = activation(ledger, x).labels
    ledger.pin(places)
    channels = _first(ledger, channels, prod(kernel))
    return Value((*before, channels, *map(ledger.position, ledger.shape[len(before) + 1 :])))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ledger: Ledger, x: Operand, groups: int) -> Value:
    """Channel j of group i becomes channel i of group j."""
    x = activation(ledger, x)
    size = x.shape[1] // groups
    outer, inner = reshaped(ledger, [x.labels[1]], [groups, size])
    return Value((x.labels[0], *reshaped(ledger, [inner, outer], [x.shape[1]]), *x.labels[2:]))


def seen(x: Parameter, shape: Sequence[int], axes: Sequence[int | None]) -> Parameter:
    """A parameter with its axes in another order, or with axes of length 1 added or removed."""
    return Parameter(x.name, tuple(shape), tuple(axes), x.entry, x.learned, x.start)
