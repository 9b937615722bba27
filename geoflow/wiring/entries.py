"""Record what each entry of the state dict writes and reads."""

import torch
from torch import Tensor

from geoflow.spec import SYMMETRIES
from geoflow.wiring.labels import Entry, Label, Operand, Parameter, Part, Segment, Value, parts_writing
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.rules import NoRule

COMPUTED = "its weight is computed, not an entry of the state dict"
PLAIN = (
    "A table needs plain weights. If a parametrization computes them, such as weight_norm or spectral_norm, remove it first with "
    "torch.nn.utils.parametrize.remove_parametrizations, or with remove_weight_norm or remove_spectral_norm if torch.nn.utils made it. "
    "Otherwise pass a spec."
)


def activation(ledger: Ledger, operand: Operand) -> Value:
    """The operand as an activation. A parameter writes sites of its own, and a constant has positions only."""
    if isinstance(operand, Value):
        return operand
    if isinstance(operand, Parameter):
        return _written_by(ledger, operand)
    return ledger.positions(torch.as_tensor(operand).shape)


def broadcast(ledger: Ledger, operand: Operand) -> Value:
    """Like `activation`, for operands that torch broadcasts. An axis along which a constant's elements are equal gets length 1."""
    if isinstance(operand, Value | Parameter):
        return activation(ledger, operand)
    constant = torch.as_tensor(operand)
    for axis in range(constant.ndim):
        constant = constant.narrow(axis, 0, 1) if _alike(constant, axis) else constant
    return ledger.positions(constant.shape)


def _alike(constant: Tensor, axis: int) -> bool:
    return torch.equal(constant.narrow(axis, 0, 1).expand_as(constant), constant)


def entry(operand: Operand, reason: str) -> Parameter:
    """The operand as an entry of the state dict. A constant may stand in the place of one.

    `reason` is the message if the operand is computed instead.
    """
    if isinstance(operand, Tensor):
        shape = tuple(operand.shape)
        return Parameter("", shape, tuple(range(len(shape))), shape, False, fixed=operand)
    if not isinstance(operand, Parameter):
        raise NoRule(reason, PLAIN)
    return operand


def _written_by(ledger: Ledger, parameter: Parameter) -> Value:
    labels = []
    for size, axis in zip(parameter.shape, parameter.axes, strict=True):
        key = f"{parameter.name}[{parameter.start}:]/{axis}"
        labels.append(ledger.position(size) if axis is None or size == 1 else ledger.new(size, key))
    ledger.read_off |= {segment.site for label in labels for segment in label if not ledger.is_position((segment,))}
    along = {axis: parts_writing(label) for axis, label in zip(parameter.axes, labels, strict=True) if axis is not None}
    record(ledger, parameter, along, "parameter")
    return Value(tuple(labels))


def record(ledger: Ledger, parameter: Parameter, along: dict[int, tuple[Part, ...]], kind: str, degree: int = 1) -> None:
    """Record what each axis of an entry writes and reads. A second use of the entry is tied to the first.

    A constant does not move, so the units along its axes are pinned. Permutations pass an axis along which its elements are equal.
    """
    assert set(along) <= set(range(len(parameter.entry))), f"{parameter.name} has no axes {sorted(along)}"
    axes = tuple(along.get(axis, (Part(size),)) for axis, size in enumerate(parameter.entry))
    assert all(sum(p.size * p.repeat for p in axis) == size for axis, size in zip(axes, parameter.entry, strict=True))
    for part in (part for axis in axes for part in axis):
        ledger.maps.pin(*({part.writes, part.reads} & ledger.maps.home.keys()))  # one row for all heads
    if parameter.fixed is not None:
        for axis, parts in enumerate(axes):
            _pin_parts(ledger, parts, MEASURES if _alike(parameter.fixed, axis) else SYMMETRIES)
        return
    use = Entry(parameter, axes, kind, degree)
    first = ledger.entries.setdefault((parameter.name, parameter.start), use)
    if first is not use:
        _tie_entries(ledger, first, use)
        if ledger.idle & {site for axis in first.axes for part in axis for site in (part.writes, part.reads)}:
            ledger.entries[parameter.name, parameter.start] = use  # the first use met an idle site


def _tie_entries(ledger: Ledger, first: Entry, again: Entry) -> None:
    if first.parameter.entry != again.parameter.entry:
        raise NoRule(f"the forward pass uses overlapping slices of {first.parameter.name!r}")
    for one, other in zip(first.axes, again.axes, strict=True):
        a, b = _owners(ledger, one), _owners(ledger, other)
        if not ledger.align(a, b) or len(one) != len(other):  # units beside positions are not cut alike
            _pin_parts(ledger, (*one, *other), SYMMETRIES)
            continue
        for left, right in zip(one, other, strict=True):
            _tie_parts(ledger, left, right, first.degree == again.degree)


def _tie_parts(ledger: Ledger, left: Part, right: Part, same_degree: bool) -> None:
    pattern = [(part.writes is None, part.reads is None) for part in (left, right)]
    both = [(a, b) for a, b in ((left.writes, right.writes), (left.reads, right.reads)) if a is not None and b is not None]
    if pattern[0] == pattern[1] and same_degree:
        for a, b in both:
            ledger.tie_sites(a, b, "shared", SYMMETRIES)
            ledger.maps.tie(ledger.maps.of(left, a), ledger.maps.of(right, b))
    elif left.owner is None or right.owner is None or not same_degree or (False, False) in pattern:
        _pin_parts(ledger, (left, right), SYMMETRIES)
    else:  # one use writes, the other reads, as in a tied embedding: 1 / sign is the sign, but 1 / factor is not the factor
        ledger.tie_sites(left.owner, right.owner, "shared", ("permutation", "sign"))
        ledger.maps.pin(ledger.maps.of(left, left.owner), ledger.maps.of(right, right.owner))
        _pin_parts(ledger, (left, right), ("scaling",))


def _pin_parts(ledger: Ledger, parts: tuple[Part, ...], symmetries: tuple[str, ...]) -> None:
    for part in parts:
        for site in (part.writes, part.reads):
            if site is not None:
                ledger.pin_site(site, symmetries)
                ledger.maps.pin(ledger.maps.of(part, site))


def _owners(ledger: Ledger, parts: tuple[Part, ...]) -> Label:
    label: Label = ()
    for part in parts:
        owned = part.owner is not None
        label += (Segment(part.owner, part.size, part.repeat),) if owned else ledger.position(part.size * part.repeat)
    return label
