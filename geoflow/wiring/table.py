"""Build the table of a network from the ledger of a walk."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise, product

from torch import Tensor

from geoflow.spec import ONE_UNIT, SYMMETRIES, NetworkSpec, Piece, Site, TensorSpec, Wire
from geoflow.vector import metadata_of
from geoflow.wiring.labels import Entry, Part, Value
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.mapped import mapped_by, width_inside


def table_of(ledger: Ledger, outputs: Iterable[Value], state: dict[str, Tensor], aliases: tuple[tuple[str, str], ...]) -> NetworkSpec:
    """Number the sites that tensors or outputs use, and the groups among them.

    Tensors are in the order of the state dict.
    """
    outputs = list(outputs)
    written = {s.site for value in outputs for label in value.labels for s in label if not ledger.places[s.site].position}
    number = {site: i for i, site in enumerate(sorted(_used(ledger) | written))}
    groups = {symmetry: _groups(ledger, number, symmetry) for symmetry in SYMMETRIES}
    sites, maps = [], _maps(ledger, number)
    for site in number:
        place = ledger.places[site]
        role = "output" if site in written else "input" if place.position else "hidden"
        sites.append(Site(place.name, place.size, role, *(groups[symmetry][site] for symmetry in SYMMETRIES), *maps[site]))
    moved = {index for index, site in enumerate(sites) if not site.pinned}
    used: dict[str, list[Entry]] = {name: [] for name in state}
    for (name, _), entry in ledger.entries.items():
        used[name].append(entry)
    tensors = tuple(tensor for name in state for tensor in _tensors(used[name], name, state[name], number, moved))
    packed = {tensor.name for tensor in tensors}
    tied = tuple((name, first) for name, first in aliases if first in packed)
    known = packed | {name for name, _ in tied}
    rest = {name: value.detach().clone() for name, value in state.items() if name not in known}
    constants = tuple(name for name in rest if dict(aliases).get(name, name) in ledger.constants)
    return NetworkSpec(tuple(sites), tensors, _wires(ledger, number), tied, constants, rest, metadata_of(state))


def _wires(ledger: Ledger, number: dict[int, int]) -> tuple[Wire, ...]:
    """The wires between sites of the table.

    A site that no tensor uses is left out. A wire from its source to its target replaces the two wires through it. If one of the two has a
    kind outside ONE_UNIT, so has the new wire, because its target depends on more than one unit. If the site has only sources, or only
    targets, these are joined with each other.
    """
    wires = dict(ledger.wires)
    for gone in sorted({site for ends in wires for site in ends} - set(number)):
        sources = {source: wires.pop((source, gone)) for source, target in list(wires) if target == gone}
        targets = {target: wires.pop((gone, target)) for source, target in list(wires) if source == gone}
        pairs = product(sources.items(), targets.items())
        through = [(a, b, min((out, into), key=ONE_UNIT.__contains__)) for (a, into), (b, out) in pairs]
        along = [(a, b, "shared") for ends in (sources, targets) for a, b in pairwise(ends)]
        for a, b, kind in through or along:
            if a != b and (b, a) not in wires:
                wires.setdefault((a, b), kind)
    return tuple(Wire(number[a], number[b], kind) for (a, b), kind in wires.items())


def _used(ledger: Ledger) -> set[int]:
    """The sites that a tensor writes or reads. Positions count only if a tensor reads them."""
    parts = [part for entry in ledger.entries.values() for axis in entry.axes for part in axis]
    read = {part.reads for part in parts}
    return {site for part in parts for site in (part.writes, part.reads) if site in read or _hidden(ledger, site)} - {None}


def _hidden(ledger: Ledger, site: int | None) -> bool:
    return site is not None and not ledger.places[site].position


def _groups(ledger: Ledger, number: dict[int, int], symmetry: str) -> dict[int, int | None]:
    """The numbers of the free classes, counted in the order of their first sites.

    A site of one unit has no permutation group.
    """
    classes, dense, groups = ledger.classes[symmetry], {}, {}
    for site in number:
        declared = classes.free(site) and (symmetry != "permutation" or ledger.places[site].size > 1)
        groups[site] = dense.setdefault(classes.root(site), len(dense)) if declared else None
    return groups


def _maps(ledger: Ledger, number: dict[int, int]) -> dict[int, tuple[int | None, bool, int]]:
    """For each site the number of its linear maps, whether it is dual, and the width of its heads."""
    dense, found = {}, {}
    for site in number:
        vector = None if ledger.places[site].position else mapped_by(ledger, site)
        if vector is None:
            found[site] = (None, False, 0)
        else:
            root, dual = ledger.maps.classes.root(vector)
            found[site] = (dense.setdefault(root, len(dense)), dual, width_inside(ledger, site))
    return found


def _tensors(used: list[Entry], name: str, value: Tensor, number: dict[int, int], moved: set[int]) -> list[TensorSpec]:
    """The tensors of one entry of the state dict, in the order of their rows."""
    entries = sorted(used, key=lambda e: e.parameter.start)
    learned = value.requires_grad or any(e.parameter.learned for e in entries)
    tensors, row, shape = [], 0, tuple(value.shape)
    for entry in entries:
        start, rows = entry.parameter.start, entry.parameter.entry
        if start < row:
            raise ValueError(f"The forward pass uses overlapping slices of {name!r}, which a table cannot describe. Copy the shared rows.")
        axes = tuple(tuple(_piece(part, number) for part in axis) for axis in entry.axes)
        used = TensorSpec(name, rows, axes, entry.kind, learned, entry.degree, start)
        if start > row:
            tensors.append(_untouched(used, row, start, moved))
        tensors.append(used)
        row = start + (rows[0] if rows else 0)
    if entries and shape and row < shape[0]:
        tensors.append(_untouched(tensors[-1], row, shape[0], moved))
    return tensors


def _untouched(used: TensorSpec, start: int, stop: int, moved: set[int]) -> TensorSpec:
    """Rows that the forward pass never uses. A longer input would use them, so they move like the used rows along other axes."""
    axes = [tuple(p if moved & {p.writes, p.reads} else Piece(p.size * p.repeat) for p in axis) for axis in used.axes[1:]]
    return replace(used, shape=(stop - start, *used.shape[1:]), axes=((Piece(stop - start),), *axes), start=start)


def _piece(part: Part, number: dict[int, int]) -> Piece:
    writes, reads = number.get(part.writes), number.get(part.reads)
    return Piece(part.size, part.repeat, writes, reads) if (writes, reads) != (None, None) else Piece(part.size * part.repeat)
