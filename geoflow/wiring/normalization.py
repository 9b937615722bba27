"""Rules for normalisation layers: permutations pass, scales end here, and so do signs if a mean over units is subtracted."""

from collections.abc import Sequence

from geoflow.wiring.entries import activation, entry, record
from geoflow.wiring.labels import Label, Operand, Part, Value, is_zero, parts_scaling, parts_writing
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import rule


@rule("batch_norm")
def batch_norm(ledger: Ledger, x, weight, bias, mean, variance, training: bool, momentum=None, eps=None, cudnn=None) -> Value:
    """The small eps in the variance makes the scale before a norm only nearly a symmetry. So that scale is pinned. Signs pass."""
    return _by_channel(ledger, activation(ledger, x), weight, bias, mean, variance)


@rule("instance_norm")
def instance_norm(ledger: Ledger, x, weight, bias, mean, variance, use_input_stats: bool, momentum=None, eps=None, cudnn=None) -> Value:
    return _by_channel(ledger, activation(ledger, x), weight, bias, *((None, None) if use_input_stats else (mean, variance)))


def _by_channel(ledger: Ledger, x: Value, weight: Operand, bias: Operand, mean: Operand, variance: Operand) -> Value:
    pre = x.labels[1]
    ledger.pin(pre, symmetries=("scaling",))
    ledger.pin(x.labels[0], *x.labels[2:], symmetries=MEASURES)
    for operand, kind, degree in ((mean, "running_mean", 1), (variance, "running_var", 2)):
        if operand is not None:
            record(ledger, entry(operand, "its running statistics are computed"), {0: parts_writing(pre)}, kind, degree)
    return _affine(ledger, x, (1,), weight, bias)


@rule("layer_norm", "rms_norm")
def layer_norm(ledger: Ledger, x, shape: Sequence[int], weight=None, bias=None, *_: object) -> Value:
    """A root mean square does not depend on signs, but a mean does."""
    x = activation(ledger, x)
    ledger.pin(*x.labels, symmetries=("scaling",) if ledger.operation == "rms_norm" else MEASURES)
    rank = len(x.labels)
    if ledger.operation == "rms_norm":
        bias = None
    return _affine(ledger, x, range(rank - len(shape), rank), weight, bias)


@rule("group_norm")
def group_norm(ledger: Ledger, x, groups: int, weight=None, bias=None, *_: object) -> Value:
    """Channels are permuted within their group only."""
    x = activation(ledger, x)
    ledger.pin(*x.labels, symmetries=MEASURES)
    size = x.shape[1] // groups
    parts = [ledger.part(x.labels[1], g * size, (g + 1) * size) for g in range(groups)] if size > 1 else [x.labels[1]]
    label: Label = tuple(segment for part in parts for segment in part)
    return _affine(ledger, Value((x.labels[0], label, *x.labels[2:])), (1,), weight, bias)


def _affine(ledger: Ledger, x: Value, axes: Sequence[int], weight: Operand, bias: Operand) -> Value:
    """Gain and bias along some axes. Behind a gain, the units have scales and signs of their own."""
    weight, bias = (None if p is None else entry(p, "its gain or bias is computed") for p in (weight, None if is_zero(bias) else bias))
    labels = list(x.labels)
    units = [axis for axis in axes if not ledger.is_position(labels[axis])]
    along: dict[int, tuple[Part, ...]] = {}
    for i, axis in enumerate(axes):
        along[i] = parts_writing(labels[axis])
        if axis in units and weight is not None:
            labels[axis] = post = ledger.like(labels[axis], "norm")
            along[i] = parts_scaling(post, x.labels[axis])
    if weight is not None:
        record(ledger, weight, along, "gain")
    if bias is not None:
        record(ledger, bias, {i: parts_writing(labels[axis]) for i, axis in enumerate(axes)}, "bias")
    return Value(tuple(labels))
