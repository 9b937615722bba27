"""Rules for sums and products: skip connections, gates, learned offsets and gains."""

import torch

from geoflow.wiring.entries import activation, broadcast, record
from geoflow.wiring.labels import Label, Operand, Parameter, Part, Value, is_constant, is_zero, length, parts_scaling
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import require, rule


@rule("add", "sub", "rsub", "subtract")
def add(ledger: Ledger, x: Operand, y: Operand, alpha: float = 1) -> Operand:
    """Units that are added move together. Constants, and units that are broadcast, allow permutations only. Zeros change nothing."""
    for one, other in ((x, y), (y, x)):
        if is_zero(one) and not is_constant(other) and tuple(other.shape) == ledger.shape:
            return other
    a, b = spread(broadcast(ledger, x), broadcast(ledger, y), ledger)
    labels = []
    for one, other in zip(a, b, strict=True):
        if length(one) == length(other):
            into, added = (other, one) if ledger.is_position(one) else (one, other)
            ledger.tie(added, into, "sum")
            if isinstance(x, Value) and isinstance(y, Value) and ledger.is_position(added):  # an input is added to units
                for source, target in ledger.align(added, into):
                    ledger.wire(source.site, target.site, "sum")
            labels.append(into)
        else:
            ledger.pin(one, other, symmetries=MEASURES)
            labels.append(one if length(other) == 1 else other)
    return Value(tuple(labels))


@rule("square", "cos", "cosh", "sinc")
def even(ledger: Ledger, x: Operand) -> Value:
    """f(-x) = f(x): the operand keeps its sign, and the result has none. The result is permuted with the operand."""
    x = activation(ledger, x)
    ledger.pin(*x.labels, symmetries=("scaling",))
    result = Value(tuple(label if ledger.is_position(label) else ledger.like(label, "function") for label in x.labels))
    ledger.pin(*result.labels, symmetries=MEASURES)
    return result


@rule("mul", "multiply")
def multiply(ledger: Ledger, x: Operand, y: Operand) -> Operand:
    if is_zero(x) or is_zero(y):
        return torch.zeros(ledger.shape)
    if isinstance(x, int | float) or isinstance(y, int | float):
        return y if isinstance(x, int | float) else x
    if x is y and isinstance(x, Value):
        return even(ledger, x)
    if isinstance(x, Parameter) and isinstance(y, Value):
        x, y = y, x
    if isinstance(x, Value) and isinstance(y, Parameter):
        return gain(ledger, x, y)
    a, b = spread(broadcast(ledger, x), broadcast(ledger, y), ledger)
    return Value(product_labels(ledger, a, b))


@rule("div", "divide", "true_divide")
def divide(ledger: Ledger, x: Operand, y: Operand, rounding_mode: str | None = None) -> Value:
    require(rounding_mode is None, "division with rounding")
    if not is_constant(y):
        y = broadcast(ledger, y)
        ledger.pin(*y.labels, symmetries=MEASURES)
    elif isinstance(y, int | float):
        return x
    a, b = spread(broadcast(ledger, x), broadcast(ledger, y), ledger)
    return Value(product_labels(ledger, a, b))


@rule("addcmul")
def add_product(ledger: Ledger, x: Operand, y: Operand, z: Operand, value: float = 1) -> Operand:
    return add(ledger, x, multiply(ledger, y, z))


@rule("addcdiv")
def add_quotient(ledger: Ledger, x: Operand, y: Operand, z: Operand, value: float = 1) -> Operand:
    return add(ledger, x, divide(ledger, y, z))


@rule("maximum", "minimum")
def extremum(ledger: Ledger, x: Operand, y: Operand) -> Value:
    """The larger or smaller of two operands. With zeros it is ReLU."""
    result = activation(ledger, add(ledger, x, y))
    ledger.pin(*result.labels, symmetries=("sign",))
    return result


@rule("greater", "greater_equal", "less", "less_equal", "not_equal", "arctan2")
@rule("where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or")
@rule("bitwise_xor", "__and__", "__or__", "__xor__", "atan2", "fmod", "remainder", "floor_divide", "logaddexp", "xlogy")
def together(ledger: Ledger, *operands: Operand) -> Value:
    """Any function of corresponding elements. The units of all operands are permuted together; scales and signs are pinned."""
    result = Value(())
    for operand in operands:
        value = broadcast(ledger, operand)
        ledger.pin(*value.labels, symmetries=MEASURES)
        result = Value(product_labels(ledger, value.labels, result.labels))
    return result


def gain(ledger: Ledger, x: Value, weight: Parameter, kind: str = "gain") -> Value:
    """A learned factor for each unit. The new units have scales and signs of their own, and are permuted with those that they read."""
    pad = len(x.labels) - len(weight.shape)
    fits = pad >= 0 and all(n in (1, m) for n, m in zip(weight.shape, x.shape[pad:], strict=True))
    if not fits:
        return Value(product_labels(ledger, *spread(x, broadcast(ledger, weight), ledger)))
    labels, along = list(x.labels), {}
    for i, (size, axis) in enumerate(zip(weight.shape, weight.axes, strict=True)):
        pre = x.labels[pad + i]
        if axis is None or (size == 1 and length(pre) != 1):
            continue
        if ledger.is_position(pre):
            along[axis] = tuple(Part(s.length, writes=s.site) for s in pre)
            ledger.maps.pin(*ledger.maps.within(pre))
            continue
        labels[pad + i] = post = ledger.like(pre, "gain")
        along[axis] = parts_scaling(post, pre)
    record(ledger, weight, along, kind)
    return Value(tuple(labels))


def spread(x: Value, y: Value, ledger: Ledger) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """The labels of two operands, with the same number of axes.

    An axis that was expanded from one element gets length 1 again.
    """
    rank = max(len(x.labels), len(y.labels))
    a, b = (
        (*(ledger.position(1) for _ in range(rank - len(v.labels))), *(ledger.position(1) if ledger.is_uniform(n) else n for n in v.labels))
        for v in (x, y)
    )
    return a, b


def product_labels(ledger: Ledger, a: tuple[Label, ...], b: tuple[Label, ...]) -> tuple[Label, ...]:
    """Units that are multiplied are permuted together. One of the two keeps its scale and sign, and the other is pinned."""
    a, b = spread(Value(a), Value(b), ledger)
    return tuple(_product(ledger, one, other) for one, other in zip(a, b, strict=True))


def _product(ledger: Ledger, a: Label, b: Label) -> Label:
    if length(a) != length(b):
        short, long = (a, b) if length(a) == 1 else (b, a)
        ledger.pin(short, symmetries=MEASURES)
        return long
    if not any(ledger.free(a, symmetry) for symmetry in MEASURES) and not ledger.is_position(b):
        a, b = b, a
    ledger.tie(b, a, "product", ("permutation",))
    ledger.pin(b, symmetries=MEASURES)
    return a
