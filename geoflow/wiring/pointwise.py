"""Rules for functions of one number, such as activations: which symmetries they keep."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.utils._pytree import tree_leaves

from geoflow.wiring.arithmetic import even, together
from geoflow.wiring.entries import activation, entry, record
from geoflow.wiring.labels import Operand, Parameter, Value, parts_writing
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import RULES, require, rule

LINEAR = ("neg", "negative", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "type_as", "positive")
HOMOGENEOUS = ("relu", "leaky_relu")  # f(s x) = s f(x) for s > 0
ODD = (  # f(-x) = -f(x)
    *("tanh", "sin", "asin", "sinh", "asinh", "tan", "atan", "atanh", "erf", "special_erf", "sign", "sgn", "softshrink", "hardshrink"),
    *("trunc", "fix", "reciprocal", "arcsin", "arctan", "arcsinh", "arctanh"),
)
OTHER = (
    *("gelu", "silu", "elu", "selu", "celu", "sigmoid", "softplus", "mish", "hardswish", "hardsigmoid", "relu6", "log_sigmoid", "log1p"),
    *("exp", "expm1", "log", "sqrt", "rsqrt", "special_expit", "threshold", "clamp_max"),
    *("floor", "ceil", "round", "frac", "logical_not", "bitwise_not", "isnan", "erfc", "exp2", "log2", "log10"),
)
PINS = {LINEAR: (), HOMOGENEOUS: ("sign",), ODD: ("scaling",), OTHER: MEASURES}


def pointwise(ledger: Ledger, x: Operand, *rest: object, pins: tuple[str, ...], **named: object) -> Operand:
    """A function that is applied to every element. Permutations pass. The symmetries in `pins` do not."""
    if not pins and ledger.node.meta["val"].is_floating_point():
        return x
    if not pins:  # a cast to whole numbers
        return together(ledger, x)
    extra = tree_leaves((rest, named), is_leaf=lambda leaf: isinstance(leaf, Value | Parameter))
    require(not any(isinstance(leaf, Value | Parameter | Tensor) for leaf in extra), "a second operand that is a tensor")
    x = activation(ledger, x)
    ledger.pin(*x.labels, symmetries=pins)
    return x


def _commuting(pins: tuple[str, ...]) -> Callable[..., Operand]:
    return partial(pointwise, pins=pins)


for _names, _pins in PINS.items():
    RULES.update(dict.fromkeys(_names, _commuting(_pins)))


@rule("pow")
def power(ledger: Ledger, x: Operand, exponent: Operand) -> Operand:
    """A whole exponent makes the function even or odd."""
    if not isinstance(exponent, int | float) or exponent % 1:
        return together(ledger, x, exponent)
    return pointwise(ledger, x, pins=("scaling",)) if exponent % 2 else even(ledger, x)


@rule("abs", "absolute")
def absolute(ledger: Ledger, x: Operand) -> Value:
    """The result has the scale of the operand, but never its sign."""
    x = activation(ledger, x)
    even = Value(tuple(label if ledger.is_position(label) else ledger.like(label, "function") for label in x.labels))
    ledger.pin(*even.labels, symmetries=("sign",))
    for before, after in zip(x.labels, even.labels, strict=True):
        ledger.tie(before, after, "function", ("permutation", "scaling"))
    return even


@rule("hardtanh")
def hardtanh(ledger: Ledger, x: Operand, low: float = -1, high: float = 1) -> Operand:
    return clamp(ledger, x, low, high)


@rule("clamp", "clamp_min", "clip")
def clamp(ledger: Ledger, x: Operand, min: Operand = None, max: Operand = None) -> Operand:
    """A clamp from 0 upwards is ReLU. A clamp between opposite numbers is odd."""
    require(not any(isinstance(bound, Value | Parameter | Tensor) for bound in (min, max)), "bounds that are tensors; use torch.maximum")
    if max is None and min == 0:
        return pointwise(ledger, x, pins=("sign",))
    return pointwise(ledger, x, pins=("scaling",) if None not in (min, max) and min == -max else MEASURES)


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(ledger: Ledger, x: Operand, p: float, train: bool) -> Operand:
    require(not train or p == 0, "dropout that is active in evaluation mode makes the network random")
    return x


@rule("prelu")
def prelu(ledger: Ledger, x: Operand, slope: Operand) -> Value:
    """PReLU keeps positive factors. A slope per unit is permuted with its unit and never scaled (degree 0)."""
    slope = entry(slope, "its slope is computed, not an entry of the state dict")
    x = activation(ledger, x)
    ledger.pin(*x.labels, symmetries=("sign",))
    along = {0: parts_writing(x.labels[1])} if slope.numel > 1 else {}
    record(ledger, slope, along, "slope", degree=0)
    return x


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(ledger: Ledger, x: Operand, *_: object) -> Value:
    return pointwise(ledger, activation(ledger, x), pins=MEASURES)
