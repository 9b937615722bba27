"""Rules for recurrent layers: a vector of hidden units, and gates that move with it."""

from collections.abc import Sequence

from geoflow.wiring.entries import activation, entry, record
from geoflow.wiring.labels import Label, Operand, Parameter, Value, is_zero, length, parts_reading, parts_writing
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import require, rule

# True for gates squashed to (0, 1), in the order of the rows of the weights. The others have the sign of the hidden units.
GATES = {"rnn_tanh": (False,), "rnn_relu": (False,), "lstm": (True, True, False, True), "gru": (True, True, False)}
GATES |= {f"{name}_cell": gates for name, gates in GATES.items()}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(
    ledger: Ledger,
    x: Operand,
    start: Operand | Sequence[Operand],
    weights: Sequence[Operand],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Value, ...]:
    """The units of a layer are permuted together with their gates. tanh keeps their signs, and relu their scales."""
    require(not train or dropout == 0, "dropout that is active in evaluation mode makes the network random")
    weights = [entry(weight, "its weights are computed, not entries of the state dict") for weight in weights]
    directions, per = 1 + bidirectional, 4 if biased else 2
    states = start if isinstance(start, list | tuple) else [start]
    if len(weights) != layers * directions * per:
        require(all(map(is_zero, states)) and not any(map(ledger.is_read, (1, 2))), "states of an LSTM with projections")
        per += 1
    x = activation(ledger, x)
    ledger.pin(*x.labels[:-1])
    read, hidden = x.labels[-1], []
    for layer in range(layers):
        above: Label = ()
        for direction in range(directions):
            index = layer * directions + direction
            above += _layer(ledger, read, weights[index * per : (index + 1) * per], index)
        hidden.append(above)
        read = above
    for state in states:
        _start(ledger, state, hidden, directions)
    return _results(ledger, x, hidden, directions, len(states))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(ledger: Ledger, x: Operand, start: Operand | Sequence[Operand], *weights: Operand) -> Value | tuple[Value, Value]:
    """One step of a recurrent layer. The states before and after it move together."""
    weights = [entry(weight, "its weights are computed, not entries of the state dict") for weight in weights if weight is not None]
    x = activation(ledger, x)
    ledger.pin(*x.labels[:-1])
    units = _layer(ledger, x.labels[-1], weights, 0)
    states = start if isinstance(start, list | tuple) else [start]
    for state in states:
        _start(ledger, state, [units], 1)
    after = Value((*x.labels[:-1], units))
    return (after, after) if len(states) == 2 else after


def _layer(ledger: Ledger, read: Label, weights: Sequence[Parameter], index: int) -> Label:
    """The hidden units of one layer and direction. The units of all gates are permuted with them."""
    squashed = GATES[ledger.operation]
    units = ledger.new(weights[1].shape[0] // len(squashed), f"{ledger.node.name}/{index}")
    ledger.pin(units, symmetries=("sign",) if ledger.operation.startswith("rnn_relu") else ("scaling",))
    rows: Label = ()
    for number, closed in enumerate(squashed):
        gate = ledger.like(units, f"gate {number}") if closed else units
        ledger.pin(*([gate] if closed else []), symmetries=MEASURES)
        rows += gate
    record(ledger, weights[0], {0: parts_writing(rows), 1: parts_reading(read)}, "weight")
    given = _projected(ledger, units, weights, index) if len(weights) % 2 else units
    record(ledger, weights[1], {0: parts_writing(rows), 1: parts_reading(given)}, "weight")
    for bias in weights[2 : len(weights) - len(weights) % 2]:
        record(ledger, bias, {0: parts_writing(rows)}, "bias")
    return given


def _projected(ledger: Ledger, units: Label, weights: Sequence[Parameter], index: int) -> Label:
    """The units that an LSTM gives to the next step and layer: its last weight makes them of its hidden units."""
    given = ledger.new(weights[-1].shape[0], f"{ledger.node.name}/{index}/projection")
    record(ledger, weights[-1], {0: parts_writing(given), 1: parts_reading(units)}, "weight")
    return given


def _start(ledger: Ledger, state: Operand, hidden: list[Label], directions: int) -> None:
    """Tie the layers to the state before the first step, unless it is zero."""
    if is_zero(state):
        return
    *others, label = activation(ledger, state).labels
    ledger.pin(*others)
    for above in hidden:
        size = len(above) // directions
        for one in (above[:size], above[size:]) if directions == 2 else (above,):
            if length(label) == length(one):
                ledger.tie(label, one, "recurrence")
            else:
                ledger.pin(one, symmetries=MEASURES)


def _results(ledger: Ledger, x: Value, hidden: list[Label], directions: int, states: int) -> tuple[Value, ...]:
    """All steps of the last layer, and the last states of all layers. If these states are read, they share one axis."""
    last = hidden[-1][: len(hidden[-1]) // directions]
    if any(map(ledger.is_read, range(1, states + 1))):
        for above in hidden:
            size = len(above) // directions
            for one in (above[:size], above[size:]) if directions == 2 else (above,):
                ledger.tie(last, one, "recurrence")
    steps = Value((*x.labels[:-1], hidden[-1]))
    shape = tuple(ledger.node.meta["val"][1].shape)
    state = Value((*(ledger.position(size) for size in shape[:-1]), last))
    return (steps, *[state] * states)
