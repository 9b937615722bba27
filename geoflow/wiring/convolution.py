"""Rules for convolutions: plain, grouped, depthwise and transposed."""

from dataclasses import replace

from geoflow.wiring.entries import activation, entry, record
from geoflow.wiring.labels import Label, Operand, Parameter, Part, Value, length, parts_reading, parts_writing
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.linear import add_bias
from geoflow.wiring.rules import require, rule


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    ledger: Ledger, x: Operand, weight: Operand, bias: Operand = None, stride=1, padding=0, dilation=1, groups: int = 1
) -> Value:
    weight = entry(weight, "its weight is computed, not an entry")
    require(weight.axes == tuple(range(len(weight.shape))), "its weight was transposed")
    return _convolve(ledger, activation(ledger, x), weight, bias, groups, write=0)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(
    ledger: Ledger, x: Operand, weight: Operand, bias: Operand = None, stride=1, padding=0, output_padding=0, groups: int = 1, dilation=1
) -> Value:
    weight = entry(weight, "its weight is computed, not an entry")
    require(weight.axes == tuple(range(len(weight.shape))), "its weight was transposed")
    require(groups == 1, "a transposed convolution in groups")
    return _convolve(ledger, activation(ledger, x), weight, bias, groups, write=1)


def _convolve(ledger: Ledger, x: Value, weight: Parameter, bias: Operand, groups: int, write: int) -> Value:
    spatial = len(weight.shape) - 2
    channel = len(x.labels) - spatial - 1
    label = x.labels[channel]
    ledger.pin(*x.labels[channel + 1 :])
    if groups == 1:
        written = ledger.new(weight.shape[write])
        record(ledger, weight, {write: parts_writing(written), 1 - write: parts_reading(label)}, "weight")
    elif groups == length(label):
        written = _depthwise(ledger, label, weight)
    else:
        written = _grouped(ledger, label, weight, groups)
    after = [ledger.position(size) for size in ledger.shape[channel + 1 :]]
    labels = (*x.labels[:channel], written, *after)
    add_bias(ledger, labels, channel, bias)
    return Value(labels)


def _depthwise(ledger: Ledger, label: Label, weight: Parameter) -> Label:
    """Channels i * m to (i + 1) * m are made of channel i alone. This is a diagonal map: its channels are permuted with those it reads."""
    multiplier = weight.shape[0] // length(label)
    post = ledger.like(label, "depthwise")
    written = tuple(type(s)(s.site, s.size, s.repeat * multiplier) for s in post)
    parts = tuple(Part(a.size, a.repeat, a.site, b.site) for a, b in zip(written, label, strict=True))
    record(ledger, weight, {0: parts}, "weight")
    return written


def _grouped(ledger: Ledger, label: Label, weight: Parameter, groups: int) -> Label:
    """Every group is a convolution of its own. Its rows of the weight read its part of the channels."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    written: Label = ()
    for g in range(groups):
        part = ledger.new(rows, f"{ledger.node.name}/{g}")
        shape, fixed = (rows, *weight.shape[1:]), None if weight.fixed is None else weight.fixed[g * rows : (g + 1) * rows]
        block = replace(weight, shape=shape, entry=shape, start=weight.start + g * rows, fixed=fixed)
        reads = ledger.part(label, g * columns, (g + 1) * columns)
        record(ledger, block, {0: parts_writing(part), 1: parts_reading(reads)}, "weight")
        written += part
    return written
