"""Rules for maps that mix the units of one axis: linear layers, matrix products and embeddings."""

from collections.abc import Sequence
from string import ascii_uppercase

import torch
from torch import Tensor

from geoflow.wiring.arithmetic import add, product_labels
from geoflow.wiring.entries import COMPUTED, activation, entry, record
from geoflow.wiring.labels import Label, Operand, Parameter, Value, is_zero, length, parts_reading, parts_writing
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.maps import offset
from geoflow.wiring.rules import require, rule


@rule("linear")
def linear(ledger: Ledger, x: Operand, weight: Operand, bias: Operand = None) -> Value:
    weight = entry(weight, COMPUTED)
    require(len(weight.shape) == 2, "its weight is not a matrix")
    nothing = is_zero(x)  # such as the first state of a recurrent network
    x = activation(ledger, x)
    ledger.summed(x.labels, -1)
    label = ledger.new(weight.shape[0]) if nothing else mix(ledger, x.labels[-1], weight, read=-1, write=-2)
    add_bias(ledger, (*x.labels[:-1], label), -1, bias)
    return Value((*x.labels[:-1], label))


@rule("addmm")
def addmm(ledger: Ledger, bias: Operand, x: Operand, weight: Operand, beta: float = 1, alpha: float = 1) -> Operand:
    """Numbers that multiply all elements change no symmetry."""
    product = activation(ledger, matmul(ledger, x, weight))
    if isinstance(bias, Value) or tuple(bias.shape) != (length(product.labels[-1]),):
        return add(ledger, bias, product)
    add_bias(ledger, product.labels, -1, bias)
    return product


@rule("matmul", "mm", "bmm")
def matmul(ledger: Ledger, x: Operand, y: Operand) -> Value | Tensor:
    if isinstance(y, Parameter) and len(y.shape) == 2:
        if is_zero(x):
            return torch.zeros(ledger.shape)
        x = activation(ledger, x)
        ledger.summed(x.labels, -1)
        return Value((*x.labels[:-1], mix(ledger, x.labels[-1], y, read=0, write=1)))
    if isinstance(x, Parameter) and len(x.shape) == 2:
        y = activation(ledger, y)
        require(len(y.labels) >= 2, "a matrix of parameters times a vector")
        ledger.summed(y.labels, -2)
        return Value((*y.labels[:-2], mix(ledger, y.labels[-2], x, read=1, write=0), y.labels[-1]))
    if isinstance(y, Parameter) and len(y.shape) == 1 and y.axes == (0,):  # the result has one number for all units
        x = activation(ledger, x)
        ledger.summed(x.labels, -1)
        record(ledger, y, {0: parts_reading(x.labels[-1])}, "weight")
        return Value(x.labels[:-1])
    x, y = activation(ledger, x), activation(ledger, y)
    require(min(len(x.labels), len(y.labels)) >= 2, "a product with a vector")
    contract(ledger, x.labels[-1], y.labels[-2], x.labels[:-2], y.labels[:-2])
    ledger.summed(x.labels, -1)
    ledger.summed(y.labels, -2)
    return Value((*product_labels(ledger, y.labels[:-2], x.labels[:-2]), x.labels[-2], y.labels[-1]))


@rule("baddbmm")
def baddbmm(ledger: Ledger, offset: Operand, x: Operand, y: Operand, beta: float = 1, alpha: float = 1) -> Operand:
    return add(ledger, offset, matmul(ledger, x, y))


@rule("bilinear")
def bilinear(ledger: Ledger, x: Operand, y: Operand, weight: Operand, bias: Operand = None) -> Value:
    """The sum of weight[i, j, k] * x[j] * y[k]. The weight writes one axis and reads two."""
    weight, x, y = entry(weight, COMPUTED), activation(ledger, x), activation(ledger, y)
    require(weight.axes == (0, 1, 2), "its weight was transposed")
    written = ledger.new(weight.shape[0])
    reads = {1: parts_reading(x.labels[-1]), 2: parts_reading(y.labels[-1])}
    record(ledger, weight, {0: parts_writing(written)} | reads, "weight")
    labels = (*product_labels(ledger, x.labels[:-1], y.labels[:-1]), written)
    add_bias(ledger, labels, -1, bias)
    return Value(labels)


@rule("einsum")
def einsum(ledger: Ledger, equation: str, operands: Sequence[Operand], path: object = None) -> Value:
    """A product of two operands. Letters in both are batches or sums. A matrix of parameters is treated as in a linear layer."""
    require(len(operands) == 2, "other than two operands")
    terms, result = _letters(equation.replace(" ", ""), [len(operand.shape) for operand in operands])
    require(all(len(set(term)) == len(term) for term in terms), "a letter that stands twice in one operand")
    x, y, a, b = *operands, *terms
    if isinstance(x, Parameter):
        x, y, a, b = y, x, b, a
    x, labels = activation(ledger, x), {}
    labels |= dict(zip(a, x.labels, strict=True))
    summed = [letter for letter in b if letter in a and letter not in result]
    own = [letter for letter in b if letter not in a]
    ledger.summed(x.labels, *(axis for axis, letter in enumerate(a) if letter not in result))
    if isinstance(y, Parameter) and len(b) == 2 and len(summed) == len(own) == 1 and set(a) - set(summed) <= set(result) >= set(own):
        labels[own[0]] = mix(ledger, labels[summed[0]], y, read=b.index(summed[0]), write=b.index(own[0]))
        return Value(tuple(labels[letter] for letter in result))
    y = activation(ledger, y)
    ledger.summed(y.labels, *(axis for axis, letter in enumerate(b) if letter not in result))
    others = dict(zip(b, y.labels, strict=True))
    beside = [[of.get(letter, ()) if letter not in summed else () for letter in sorted({*a, *b})] for of in (dict(labels), others)]
    for letter, label in others.items():
        if letter in summed:
            contract(ledger, labels[letter], label, *beside)
        else:
            labels[letter] = product_labels(ledger, (label,), (labels[letter],))[0] if letter in labels else label
    alone = (set(a) | set(b)) - set(summed) - set(result)  # summed over one operand
    ledger.pin(*(labels[letter] for letter in alone), symmetries=MEASURES)
    return Value(tuple(labels[letter] for letter in result))


def _letters(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of all operands and of the result. Axes under an ellipsis get capital letters from the end of the alphabet."""
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    hidden = [rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    spare = [letter for letter in ascii_uppercase if letter not in equation][-max(hidden) :] if any(hidden) else []
    own = [letter for letter in sorted(set(left) - set(".,")) if left.count(letter) == 1]  # the result if none is given
    result = result if arrow else "..." * any(hidden) + "".join(own)
    terms = [term.replace("...", "".join(spare[len(spare) - n :])) for term, n in zip(terms, hidden, strict=True)]
    return terms, result.replace("...", "".join(spare))


@rule("embedding")
def embedding(ledger: Ledger, weight: Operand, index: Operand, *_: object) -> Value:
    weight = entry(weight, COMPUTED)
    index = activation(ledger, index)
    ledger.pin(*index.labels)
    return Value((*index.labels, mix(ledger, ledger.position(weight.shape[0]), weight, read=0, write=1)))


@rule("embedding_bag")
def embedding_bag(
    ledger: Ledger, weight: Operand, index: Operand, offsets: Operand, by_count: bool = False, mode: int = 0, sparse: bool = False,
    factors: Operand = None, *_: object,
) -> tuple[Value, ...]:  # fmt: skip
    """Sums, means or maxima of rows of a table. Its modes are 0, 1 and 2 in this order."""
    require(not any(map(ledger.is_read, (1, 2, 3))), "a read of its counts")
    for operand in (index, offsets, factors):
        ledger.pin(*activation(ledger, operand).labels if operand is not None else ())
    weight = entry(weight, COMPUTED)
    units = mix(ledger, ledger.position(weight.shape[0]), weight, read=0, write=1)
    ledger.pin(*([units] if mode == 2 else []), symmetries=("sign",))
    others = [ledger.positions(value.shape) for value in ledger.node.meta["val"][1:]]
    return Value((ledger.position(ledger.shape[0]), units)), *others


def mix(ledger: Ledger, label: Label, weight: Parameter, read: int, write: int) -> Label:
    """The new units of a weight that reads `label` along one axis and writes them along the other."""
    read, write = weight.axes[read], weight.axes[write]
    require(read is not None and write is not None, "its weight was broadcast")
    written = ledger.new(weight.entry[write])
    ledger.maps.kept |= ledger.maps.within(label)
    record(ledger, weight, {read: parts_reading(label), write: parts_writing(written)}, "weight")
    return written


def add_bias(ledger: Ledger, labels: tuple[Label, ...], axis: int, bias: Operand) -> None:
    """Add a bias along one axis. It is the same at all units of the other axes, so these are pinned for scaling and sign."""
    if bias is None or is_zero(bias):
        return
    if isinstance(bias, Value):  # the bias is computed
        after = range(axis % len(labels) + 1, len(labels))
        add(ledger, Value(labels), Value((*bias.labels, *(ledger.position(1) for _ in after))))
        return
    bias = entry(bias, "its bias is no tensor")
    require(bias.axes == (0,), "its bias is not a vector")
    ledger.pin(*(label for i, label in enumerate(labels) if i != axis % len(labels)), symmetries=MEASURES)
    record(ledger, bias, {0: parts_writing(labels[axis])}, "bias")


def contract(ledger: Ledger, a: Label, b: Label, beside_a: Sequence[Label], beside_b: Sequence[Label]) -> None:
    """A sum over products of the units of two activations. Equal signs cancel in it. Factors would not, so scaling is pinned.

    `beside_a` and `beside_b` are the axes of the product that both have. Heads must lie along them at the same place. Otherwise every head
    meets every other, and the heads have no maps of their own.
    """
    ledger.tie_against(a, b, "contraction", ("permutation", "sign"))
    for segment in (*a, *b):
        ledger.pin_site(segment.site, ("scaling",))
    places = [offset(ledger.maps, label, beside, ledger.together) for label, beside in ((a, beside_a), (b, beside_b))]
    if places[0] != places[1] or (ledger.maps.homes(a) and not places[0]):
        ledger.maps.pin(*ledger.maps.within(a))
