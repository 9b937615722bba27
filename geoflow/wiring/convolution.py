"""Rules for convolutions: plain, grouped, depthwise and transposed."""

from dataclasses import replace

from geoflow.wiring.entries import COMPUTED, activation, entry, record
from geoflow.wiring.labels import Label, Operand, Parameter, Part, Segment, Value, length, parts_reading, parts_writing
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.linear import add_bias
from geoflow.wiring.rules import require, rule


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    ledger: Ledger, x: Operand, weight: Operand, bias: Operand = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Value:
    return _convolve(ledger, activation(ledger, x), _kernel(weight), bias, groups, write=0)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(
    ledger: Ledger, x: Operand, weight: Operand, bias: Operand = None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Value:
    return _convolve(ledger, activation(ledger, x), _kernel(weight), bias, groups, write=1)


def _kernel(weight: Operand) -> Parameter:
    """The weight with its axes as in the entry. Views may have removed axes of length 1, and inserted others in their place."""
    weight = entry(weight, COMPUTED)
    lost = iter([axis for axis, size in enumerate(weight.entry) if size == 1 and axis not in weight.axes])
    axes = [next(lost, None) if axis is None else axis for axis in weight.axes]
    fits = axes[: len(weight.entry)] == list(range(len(weight.entry))) and not any(axes[len(weight.entry) :])
    require(fits and len(axes) >= 2, "its weight was transposed")
    return weight


def _convolve(ledger: Ledger, x: Value, weight: Parameter, bias: Operand, groups: int, write: int) -> Value:
    spatial = len(weight.shape) - 2
    channel = len(x.labels) - spatial - 1
    label = x.labels[channel]
    ledger.pin(*x.labels[channel + 1 :])
    require(len(weight.entry) > 1 or groups == length(label) > 1, "its weight is one axis of a tensor")  # which both write and read
    if groups == 1:
        written = ledger.new(weight.shape[write])
        record(ledger, weight, {write: parts_writing(written), 1 - write: parts_reading(label)}, "weight")
    elif groups == length(label):
        written = _depthwise(ledger, label, weight, ledger.shape[channel] // groups)
    else:
        written = _grouped(ledger, label, weight, groups, write)
    after = [ledger.position(size) for size in ledger.shape[channel + 1 :]]
    labels = (*x.labels[:channel], written, *after)
    add_bias(ledger, labels, channel, bias)
    return Value(labels)


def _depthwise(ledger: Ledger, label: Label, weight: Parameter, multiplier: int) -> Label:
    """Channels i * m to (i + 1) * m are made of channel i alone. This is a diagonal map: its channels are permuted with those it reads.

    The first axis of the weight has all these channels, or those that are read if the convolution is transposed.
    """
    post = ledger.like(label, "depthwise")
    written = tuple(Segment(s.site, s.size, s.repeat * multiplier) for s in post)
    rows = written if weight.shape[0] == length(written) else post
    parts = tuple(Part(a.size, a.repeat, a.site, b.site) for a, b in zip(rows, label, strict=True))
    record(ledger, weight, {0: parts}, "weight")
    return written


def _grouped(ledger: Ledger, label: Label, weight: Parameter, groups: int, write: int) -> Label:
    """Every group is a convolution of its own. Its rows of the weight read, or write if it is transposed, its part of the channels."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    read = length(label) // groups
    written: Label = ()
    for g in range(groups):
        part = ledger.new((rows, columns)[write], f"{ledger.node.name}/{g}")
        shape, fixed = (rows, *weight.entry[1:]), None if weight.fixed is None else weight.fixed[g * rows : (g + 1) * rows]
        block = replace(weight, shape=shape, axes=tuple(range(len(shape))), entry=shape, start=weight.start + g * rows, fixed=fixed)
        reads = ledger.part(label, g * read, (g + 1) * read)
        record(ledger, block, {write: parts_writing(part), 1 - write: parts_reading(reads)}, "weight")
        written += part
    return written
