"""Rules for operations along positions: pooling, padding, resizing and reductions."""

from collections.abc import Sequence

from torch import Tensor

from geoflow.wiring.arithmetic import extremum
from geoflow.wiring.entries import activation
from geoflow.wiring.labels import Operand, Parameter, Value
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import rule


def along_positions(ledger: Ledger, x: Operand, spatial: int, symmetries: tuple[str, ...] = ()) -> Value:
    """An operation on the last `spatial` axes that treats every channel alike. `symmetries` are pinned."""
    x = activation(ledger, x)
    first = len(x.labels) - spatial
    ledger.pin(*x.labels[first:])
    ledger.pin(*x.labels[:first], symmetries=symmetries)
    return Value((*x.labels[:first], *(ledger.position(size) for size in ledger.shape[first:])))


def _spatial(ledger: Ledger) -> int:
    return int(next(c for c in ledger.operation if c.isdigit()))


@rule(*(f"{name}_pool{d}d" for name in ("avg", "adaptive_avg") for d in (1, 2, 3)))
@rule(*(f"upsample_{name}" for name in ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact2d", "bilinear2d")), "upsample_linear1d")
def average_pool(ledger: Ledger, x: Operand, *_: object, **__: object) -> Value:
    return along_positions(ledger, x, _spatial(ledger))


@rule(*(f"{name}_pool{d}d" for name in ("max", "adaptive_max") for d in (1, 2, 3)))
def max_pool(ledger: Ledger, x: Operand, *_: object, **__: object) -> Value | tuple[Value, Value]:
    return _with_indices(ledger, x, along_positions(ledger, x, _spatial(ledger), ("sign",)))


@rule("constant_pad_nd")
def constant_pad(ledger: Ledger, x: Operand, widths: Sequence[int], value: float = 0) -> Value:
    return pad(ledger, x, widths, value=value)


@rule("pad")
def pad(ledger: Ledger, x: Operand, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    """Padding of the units with zeros. The zeros lie beside the units as positions."""
    labels = list(activation(ledger, x).labels)
    for i, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        axis = len(labels) - 1 - i
        if before == after == 0:
            continue
        if ledger.is_position(labels[axis]) or mode != "constant" or min(before, after) < 0:
            labels[axis] = ledger.broken((labels[axis],), ledger.shape[axis])
        else:
            zeros = [ledger.position(width) if width else () for width in (before, after)]
            labels[axis] = (*zeros[0], *labels[axis], *zeros[1])
    if value:
        ledger.pin(*labels, symmetries=MEASURES)
    return Value(tuple(labels))


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "prod", "any", "all")
def reduce(ledger: Ledger, x: Operand, axes: Operand | Sequence[int] = None, *_: object, **__: object) -> Value | tuple[Value, Value]:
    """Sums and means over positions keep all symmetries. Over units they are invariant under permutations only."""
    if isinstance(axes, Value | Parameter | Tensor):  # max and min of two tensors
        return extremum(ledger, x, axes)
    x, name, rank = activation(ledger, x), ledger.operation, len(x.shape)
    axes = [axes] if isinstance(axes, int) and not isinstance(axes, bool) else axes if isinstance(axes, Sequence) else ()
    axes = {axis % rank for axis in (axes or range(rank))}
    ledger.pin(*(x.labels[axis] for axis in axes), symmetries=MEASURES)
    if name not in ("mean", "sum"):
        ledger.pin(*x.labels, symmetries=("sign",) if name in ("amax", "amin", "max", "min", "std") else MEASURES)
    kept = len(ledger.shape) == rank
    result = Value(tuple(ledger.position(1) if i in axes else label for i, label in enumerate(x.labels) if kept or i not in axes))
    return _with_indices(ledger, x, result)


def _with_indices(ledger: Ledger, x: Operand, result: Value) -> Value | tuple[Value, Value]:
    """Add the second result, if the operation has one. It holds indices, so the units are pinned if it is read."""
    if not isinstance(ledger.node.meta["val"], tuple | list):
        return result
    if ledger.is_read(1):
        ledger.pin(*activation(ledger, x).labels)
    return result, ledger.positions(ledger.shape)


@rule("linalg_vector_norm", "norm")
def norm(ledger: Ledger, x: Operand, order: object = 2, axes: int | Sequence[int] | None = None, *_: object, **__: object) -> Value:
    ledger.pin(*activation(ledger, x).labels, symmetries=("sign",))
    return reduce(ledger, activation(ledger, x), axes)
