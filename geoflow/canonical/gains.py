"""Compute what every unit of a network gains at every place of a reference, without moving the network."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geoflow.canonical.places import Node, Place, Window, rows
from geoflow.spec import NetworkSpec
from geoflow.symmetry import Groups

Axis = tuple[Tensor, Tensor]  # the old element at each new place of an axis, and its sign, both [nets, entries]
View = tuple[Place, Window]
Turn = tuple[str, int]  # ("linear", group)
# [nets, old, new], by the sign group that may flip them; None: no group, or two groups.
# By groups of linear maps: the sum of (vector in the reference) (vector)^T over all vectors of a head, [nets, old, new, width, width].
Gains = dict[int | Turn | None, Tensor]


@dataclass
class State:
    """The symmetry of each network so far: the old unit at each new place, and the sign of each old unit. All are [nets, units].

    `linear` holds the rotation of each old head, [nets, heads, width, width].
    """

    permutations: Groups
    signs: Groups
    linear: Groups = field(default_factory=dict)

    def take(self, nets: Tensor) -> "State":
        return State(*({group: value[nets] for group, value in table.items()} for table in (self.permutations, self.signs, self.linear)))

    def put(self, nets: Tensor, other: "State") -> None:
        for mine, its in ((self.permutations, other.permutations), (self.signs, other.signs)):
            for group, value in its.items():
                mine[group][nets] = value

    def turn(self, nets: Tensor, rotations: Groups) -> None:
        """Turn heads of the networks `nets` further."""
        for group, rotation in rotations.items():
            self.linear[group][nets] = rotation @ self.linear[group][nets]


@dataclass
class _Kept:
    """The gains of a node for all networks, and the order of the other axes of each place for which they hold."""

    gains: Gains = field(default_factory=dict)
    axes: dict[Place, dict[int, Axis]] = field(default_factory=dict)


class Overlaps:
    """The inner products of the units of some networks with those of a reference, C[i, j] for unit i at place j.

    The products at a place depend on the order along the other axes of its tensor. They are kept where they need no more memory than the
    tensors themselves. If the units along another axis moved since, only the elements that changed are multiplied again.

    Rotations of heads are done in a copy of the tensors (see `turn`), so that only orders and signs are left to the state.

    Products are computed in `precision`, that of the networks but at least single, and added in `dtype`.
    """

    def __init__(self, spec: NetworkSpec, theta: Tensor, reference: Tensor, places: Iterable[Place], touched: set[int], dtype: torch.dtype):
        self.spec, self.nets, self.dtype, self.precision = spec, len(theta), dtype, torch.promote_types(theta.dtype, torch.float32)
        self.parts, self.goal = (_cut(spec, x.to(self.precision), touched) for x in (theta, reference))
        self.mapped: dict[int, list[Place]] = {}
        for place in places:
            if place.linear is not None and place.tensor in self.parts:
                self.mapped.setdefault(place.tensor, []).append(place)
        self.parts |= {tensor: self.parts[tensor].clone() for tensor in self.mapped}
        self.stretches: dict[tuple[int, int], list[Place]] = {}
        for place in places:
            self.stretches.setdefault((place.tensor, place.axis), []).append(place)
        self._kept: dict[tuple, _Kept] = {}

    def gains(self, state: State, node: Node, views: Iterable[View], nets: Tensor) -> Gains:
        """What each unit of a node would add to the objective at each place, with the rest of the network fixed.

        `state` is that of the networks `nets`.
        """
        kept, fresh = self._kept.setdefault((node.permutation, node.signs), _Kept()), {}
        keeps = node.units**2 <= sum(self.spec.tensors[tensor].numel for tensor in node.touched)
        for place, window in views:
            if place.linear is not None:
                key = ("linear", place.linear)
                moved = {axis: _at(moved, window.get(axis)) for axis, moved in self._other_axes(state, place).items()}
                product = self._outer(self._seen(place, moved, nets, window), place, nets, window)
                fresh[key] = fresh[key] + product if key in fresh else product
                continue
            free = place.signs & node.signs
            key = next(iter(free)) if len(free) == 1 else None
            fixed, axes = place.signs - {key}, self._other_axes(state, place)
            if keeps and not window and not fixed and place.tensor not in self.mapped:
                self._update(kept, key, place, axes, nets)
                continue
            old = self._seen(place, {axis: _at(axes[axis], window.get(axis)) for axis in axes}, nets, window)
            product = self._product(old, place, nets, window)
            for sign in fixed:
                product = product * state.signs[sign][..., None]
            fresh[key] = fresh.get(key, 0) + product
        for key, gain in kept.gains.items():
            gain = gain if len(nets) == self.nets else gain[nets]
            fresh[key] = fresh[key] + gain if key in fresh else gain
        return fresh

    def objective(self, state: State, node: Node, nets: Tensor) -> tuple[Tensor, Tensor]:
        """The inner product of a node's tensors with the reference, and the sum of its terms' absolute values, both [nets]."""
        total, size = (torch.zeros(len(nets), dtype=self.dtype, device=nets.device) for _ in range(2))
        for tensor in node.touched:
            part = self._of(self.parts[tensor], nets)
            for axis in range(part.ndim - 1):
                if (moved := self._axis(state, tensor, axis)) is not None:
                    part = _gather(part, axis, moved)
            terms = (part * self._goal(tensor, nets)).to(self.dtype).flatten(1)
            total, size = total + terms.sum(1), size + terms.abs().sum(1)
        return total, size

    def turn(self, nets: Tensor, rotations: Groups) -> None:
        """Turn the vectors of the old heads of the networks `nets`."""
        for tensor, places in self.mapped.items() if len(nets) else ():
            for place in (place for place in places if place.linear in rotations):
                rotation = rotations[place.linear].to(self.precision)
                along = self.parts[tensor].movedim(1 + place.axis, 1).narrow(1, place.start, place.units * place.repeat)
                part = along[nets]
                turned = rotation @ _columns(part.reshape(*part.shape[:2], -1), place)
                along[nets] = _entries(turned, place).reshape(part.shape)

    def _outer(self, old: Tensor, place: Place, nets: Tensor, window: Window) -> Tensor:
        """The products of the vectors of each old head with those of each head of the reference, [nets, old, new, width, width]."""
        both = (old, rows(self._goal(place.tensor, nets), place, window))
        mine, goal = (_columns(x.reshape(-1, place.units * place.repeat, x.shape[-1] // place.repeat), place) for x in both)
        heads, width = mine.shape[1:3]
        products = mine.flatten(1, 2) @ goal.flatten(1, 2).mT
        return products.unflatten(2, (heads, width)).unflatten(1, (heads, width)).permute(0, 1, 3, 4, 2).to(self.dtype)

    def _update(self, kept: _Kept, key: int | None, place: Place, axes: dict[int, Axis], nets: Tensor) -> None:
        """Bring the kept gains of a place up to date."""
        if place not in kept.axes:  # all networks come to a node together the first time
            product = self._product(self._seen(place, axes, nets, {}), place, nets, {})
            kept.gains[key] = kept.gains[key] + product if key in kept.gains else product
            kept.axes[place] = axes
            return
        before = {axis: tuple(self._of(x, nets) for x in was) for axis, was in kept.axes[place].items()}
        changed = {axis: _changed(now, before[axis]) for axis, now in axes.items()}
        changed = {axis: entries for axis, entries in changed.items() if len(entries)}
        if not changed:
            return
        window = changed if len(changed) == 1 else {}
        new, old = (self._seen(place, {a: _at(some[a], window.get(a)) for a in axes}, nets, window) for some in (axes, before))
        product = self._product(new.sub_(old), place, nets, window)
        if len(nets) == self.nets:
            kept.gains[key] += product
            kept.axes[place] = axes
        else:
            kept.gains[key][nets] += product
            for axis, now in axes.items():
                for mine, its in zip(kept.axes[place][axis], now, strict=True):
                    mine[nets] = its

    def _seen(self, place: Place, axes: dict[int, Axis], nets: Tensor, window: Window) -> Tensor:
        """The elements of each unit of a place, [nets, units, elements]. The units are in the old order, all else is in the new order.

        `axes` holds the elements in the window along the axes that move. Axes that do not move are cut here.
        """
        part = self._of(self.parts[place.tensor], nets)
        for axis, entries in axes.items():
            part = _gather(part, axis, entries)
        return rows(part, place, {axis: entries for axis, entries in window.items() if axis not in axes})

    def _product(self, old: Tensor, place: Place, nets: Tensor, window: Window) -> Tensor:
        return (old @ rows(self._goal(place.tensor, nets), place, window).mT).to(self.dtype)

    def _other_axes(self, state: State, place: Place) -> dict[int, Axis]:
        axes = {axis: self._axis(state, place.tensor, axis) for axis in range(place.rank) if axis != place.axis}
        return {axis: moved for axis, moved in axes.items() if moved is not None}

    def _axis(self, state: State, tensor: int, axis: int) -> Axis | None:
        """Where the elements along an axis come from, or None if nothing moves them."""
        stretches = self.stretches[tensor, axis]
        if not any(place.permutation is not None or place.signs for place in stretches):
            return None
        one = next(iter((*state.permutations.values(), *state.signs.values())))
        entries, signs = [], []
        for place in stretches:
            order = torch.arange(place.units, device=one.device).expand(len(one), -1)
            order = order if place.permutation is None else state.permutations[place.permutation]
            within = torch.arange(place.repeat, device=one.device) + place.start
            entries.append((order[..., None] * place.repeat + within).flatten(1))
            sign = torch.ones(order.shape, dtype=self.parts[tensor].dtype, device=one.device)
            for group in place.signs:
                sign = sign * state.signs[group].gather(1, order).to(sign)
            signs.append(sign.repeat_interleave(place.repeat, 1))
        return torch.cat(entries, 1), torch.cat(signs, 1)

    def _of(self, x: Tensor, nets: Tensor) -> Tensor:
        return x if len(nets) == self.nets else x[nets]

    def _goal(self, tensor: int, nets: Tensor) -> Tensor:
        goal = self.goal[tensor]
        return goal if goal.ndim == len(self.spec.tensors[tensor].shape) else self._of(goal, nets)


def _columns(part: Tensor, place: Place) -> Tensor:
    """The vectors of each head as columns: [nets, entries, rest] -> [nets, heads, width, copies * rest]."""
    if not place.inner:
        return part.reshape(len(part), 1, place.units, -1)
    return part.unflatten(1, (place.units, place.repeat // place.inner, place.inner)).transpose(2, 3).flatten(3)


def _entries(columns: Tensor, place: Place) -> Tensor:
    """The entries of a stretch in their order, from the vectors of each head."""
    return columns.unflatten(3, (place.repeat // place.inner, -1)).transpose(2, 3) if place.inner else columns


def _cut(spec: NetworkSpec, theta: Tensor, chosen: set[int]) -> dict[int, Tensor]:
    """The chosen tensors by number, in their shapes."""
    cuts = theta.split([tensor.numel for tensor in spec.tensors], -1)
    return {i: cuts[i].reshape(*theta.shape[:-1], *spec.tensors[i].shape) for i in sorted(chosen)}


def _at(axis: Axis, entries: Tensor | None) -> Axis:
    return axis if entries is None else tuple(x[:, entries] for x in axis)


def _changed(now: Axis, before: Axis) -> Tensor:
    """The places of an axis at which any network has another element, or another sign, than before."""
    return sum((a != b).any(0) for a, b in zip(now, before, strict=True)).nonzero().squeeze(1)


def _gather(part: Tensor, axis: int, moved: Axis) -> Tensor:
    """Take the given elements along an axis of tensors [nets, `*shape`], and multiply them by their signs."""
    entries, signs = moved
    if len(part) == 1:  # many times as fast
        part = part.index_select(1 + axis, entries[0])
    else:
        part = part.movedim(1 + axis, 1)[torch.arange(len(part), device=part.device)[:, None], entries].movedim(1, 1 + axis)
    if (signs == 1).all():
        return part
    return part * signs.reshape(len(signs), *[1] * axis, -1, *[1] * (part.ndim - axis - 2))
