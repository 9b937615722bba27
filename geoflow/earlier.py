"""Say whether a table from an earlier tracing still describes a network."""

from collections.abc import Iterator
from dataclasses import replace

from geoflow.spec import SYMMETRIES, NetworkSpec, Piece, TensorSpec


def still_describes(earlier: NetworkSpec, spec: NetworkSpec) -> bool:
    """Return whether `earlier` describes the networks of `spec`: it lays out their weights alike, and all that it declares is true of them.

    A later version of the tracing may find more symmetries in the same network. A flow keeps the table that it was fitted with. Tables of
    one version describe the same networks only if they are equal.

    Every group of `spec` must belong to one group of `earlier`, or to none. Then a symmetry of `earlier` is a symmetry of `spec`, in which
    groups that belong together move alike. Two orders of `spec` never belong to one order of `earlier`: a sum or a product ties units, and
    without it the network is another one. Linear maps contain the orders, factors and signs inside their vectors.

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
    for symmetry in (*SYMMETRIES, "linear"):
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


def _pairs(earlier: NetworkSpec, old: TensorSpec, spec: NetworkSpec, new: TensorSpec, symmetry: str) -> Iterator[tuple[object, object]]:
    """The groups of both tables that act on the same elements of a tensor."""
    for one, other in zip(old.axes, new.axes, strict=True):
        if not _alike(one, other):
            one, other = _opened(earlier, one), _opened(spec, other)
        if _alike(one, other):
            for a, b in zip(one, other, strict=True):
                before, after = _acting(earlier, a, symmetry), _containing(spec, b, symmetry)
                against = [x ^ y for x, y in zip(_against(earlier, a, symmetry), _against(spec, b, symmetry), strict=True)]
                yield from ((_turned(*old), new) for *old, new in zip(before, against, after, strict=True))
        else:  # cut in another way
            yield from ((group, None) for piece in one for group in _acting(earlier, piece, symmetry))
            yield from ((None, group) for piece in other for group in _containing(spec, piece, symmetry))


def _alike(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> bool:
    return [(p.size, p.repeat) for p in one] == [(p.size, p.repeat) for p in other]


def _opened(spec: NetworkSpec, axis: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The stretches of an axis, with heads that cannot be exchanged one beside the other. Earlier tables have the units of each head."""
    found: list[Piece] = []
    for piece in axis:
        site = None if piece.owner is None else spec.sites[piece.owner]
        if site is not None and site.inner and site.permutation is None and piece.repeat % site.inner == 0:
            found += [replace(piece, size=site.inner, repeat=1)] * (piece.size * piece.repeat // site.inner)
        else:
            found.append(piece)
    return tuple(found)


def _acting(spec: NetworkSpec, piece: Piece, symmetry: str) -> tuple[int | None, ...]:
    """The groups that move the elements of a piece: one order, or one factor for writing and one for reading."""
    sites = (piece.owner,) if symmetry == "permutation" else (piece.writes, piece.reads)
    return tuple(spec.group_of(site, symmetry) for site in sites)


def _containing(spec: NetworkSpec, piece: Piece, symmetry: str) -> tuple[object, ...]:
    """The same, with the group of linear maps where these contain the symmetry of a piece."""
    sites = (piece.owner,) if symmetry == "permutation" else (piece.writes, piece.reads)
    found = []
    for index, group in zip(sites, _acting(spec, piece, symmetry), strict=True):
        site = None if index is None else spec.sites[index]
        mapped = site is not None and site.linear is not None and symmetry != "linear"
        mapped &= group is None or not (symmetry == "permutation" and site.inner)  # heads are permuted as a whole
        found.append(("linear", site.linear) if mapped else group)
    return tuple(found)


def _turned(group: int | None, against: bool) -> object:
    return ("against", group) if against and group is not None else group


def _against(spec: NetworkSpec, piece: Piece, symmetry: str) -> tuple[bool, ...]:
    """Whether the later maps of a piece divide where others of their group multiply. One factor of both would then be no map."""
    sites = (piece.owner,) if symmetry == "permutation" else (piece.writes, piece.reads)
    return tuple(symmetry in ("scaling", "linear") and index is not None and spec.sites[index].dual for index in sites)
