"""Say whether a table from an earlier tracing still describes a network."""

from collections.abc import Iterator

from geoflow.spec import SYMMETRIES, NetworkSpec, Piece, TensorSpec


def still_describes(earlier: NetworkSpec, spec: NetworkSpec) -> bool:
    """Return whether `earlier` describes the networks of `spec`: it lays out their weights alike, and all that it declares is true of them.

    A later version of the tracing may find more symmetries in the same network. A flow keeps the table that it was fitted with. Tables of
    one version describe the same networks only if they are equal.

    Every group of `spec` must belong to one group of `earlier`, or to none. Then a symmetry of `earlier` is a symmetry of `spec`, in which
    groups that belong together move alike. Two orders of `spec` never belong to one order of `earlier`: a sum or a product ties units, and
    without it the network is another one.

    >>> import torch
    >>> from dataclasses import replace
    >>> from geoflow.wiring import spec_of
    >>> layers = torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
    >>> spec = spec_of(torch.nn.Sequential(*layers), torch.zeros(1, 2))
    >>> less = replace(spec, sites=tuple(replace(site, scaling=None) for site in spec.sites), tracing=spec.tracing - 1)
    >>> still_describes(less, spec), still_describes(spec, less)
    (True, False)
    """
    if earlier.tracing == spec.tracing:
        return (earlier.sites, earlier.tensors, earlier.aliases) == (spec.sites, spec.tensors, spec.aliases)
    if earlier.tracing > spec.tracing or _layout(earlier) != _layout(spec):
        return False
    for symmetry in SYMMETRIES:
        pairs = {pair for old, new in zip(earlier.tensors, spec.tensors, strict=True) for pair in _pairs(earlier, old, spec, new, symmetry)}
        above = {new: old for old, new in pairs}
        if len({new for _, new in pairs}) < len(pairs) or above.get(None) is not None:
            return False
        orders = [old for old in above.values() if old is not None]
        if symmetry == "permutation" and len(set(orders)) < len(orders):
            return False
    return True


def _layout(spec: NetworkSpec) -> tuple:
    return [(t.name, t.shape, t.start, t.learned, t.degree) for t in spec.tensors], spec.aliases


def _pairs(
    earlier: NetworkSpec, old: TensorSpec, spec: NetworkSpec, new: TensorSpec, symmetry: str
) -> Iterator[tuple[int | None, int | None]]:
    """The groups of both tables that act on the same elements of a tensor."""
    for one, other in zip(old.axes, new.axes, strict=True):
        if [(p.size, p.repeat) for p in one] == [(p.size, p.repeat) for p in other]:
            for a, b in zip(one, other, strict=True):
                yield from zip(_acting(earlier, a, symmetry), _acting(spec, b, symmetry), strict=True)
        else:  # cut in another way
            yield from ((group, None) for piece in one for group in _acting(earlier, piece, symmetry))
            yield from ((None, group) for piece in other for group in _acting(spec, piece, symmetry))


def _acting(spec: NetworkSpec, piece: Piece, symmetry: str) -> tuple[int | None, ...]:
    """The groups that move the elements of a piece: one order, or one factor for writing and one for reading."""
    sites = (piece.owner,) if symmetry == "permutation" else (piece.writes, piece.reads)
    return tuple(spec.group_of(site, symmetry) for site in sites)
