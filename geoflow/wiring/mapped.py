"""Decide at the end of a walk which linear maps the table declares."""

from collections.abc import Iterator

from geoflow.spec import SYMMETRIES
from geoflow.wiring.labels import Entry, Part
from geoflow.wiring.ledger import MEASURES, Ledger

EDGES = ("weight", "gain", "parameter")


def settle_maps(ledger: Ledger) -> None:
    """Pin all maps that a table cannot declare, and the symmetries that the others contain.

    A tensor has maps along one of its axes only, because canonical form balances a map by both tensors beside it. So maps of heads go
    before maps of whole sites, such as a residual stream without a norm. Every map needs a tensor that it multiplies and one that it
    divides. And units that may be scaled need a weight of their own, without maps, that tells their scale.
    """
    classes, before = ledger.maps.classes, -1
    while before != len(classes.pinned):  # what one step pins, another may have relied on
        before = len(classes.pinned)
        for step in (_unlike, _met, _scale_told, _one_sided):
            step(ledger)
    for site in {site for entry in ledger.entries.values() for _, _, site in _parts(entry)}:
        if (mapped := mapped_by(ledger, site)) is not None:
            ledger.pin_site(site, MEASURES if site in ledger.maps.inside else SYMMETRIES)
            assert classes.free(mapped)


def mapped_by(ledger: Ledger, site: int) -> int | None:
    """The site that stands for the vectors of another, if maps move them. It is the site itself, or the inside of its units."""
    vector = ledger.maps.inside.get(site, site)
    return vector if ledger.maps.classes.free(vector) else None


def width_inside(ledger: Ledger, site: int) -> int:
    """The elements of each vector inside the units of a site. It is 0 for a site whose units are one vector."""
    inner = ledger.maps.inside.get(site)
    return 0 if inner is None else ledger.maps.widths.get(inner, ledger.maps.repeats[site])


def _parts(entry: Entry) -> Iterator[tuple[int, Part, int]]:
    """Every stretch of an entry that writes or reads a site, as (axis, stretch, site)."""
    for axis, parts in enumerate(entry.axes):
        for part in parts:
            for site in (part.writes, part.reads):
                if site is not None:
                    yield axis, part, site


def _mapped(ledger: Ledger, entry: Entry) -> dict[int, set[int]]:
    """The vectors along each axis of an entry that maps move."""
    found: dict[int, set[int]] = {}
    for axis, part, site in _parts(entry):
        vector = ledger.maps.of(part, site)
        if vector is not None and ledger.maps.classes.free(vector):
            found.setdefault(axis, set()).add(vector)
    return found


def _unlike(ledger: Ledger) -> None:
    """Pin classes whose vectors differ in heads or width, or whose heads are permuted apart, and what is no linear map."""
    shapes: dict[int, tuple] = {}
    for entry in ledger.entries.values():
        for _, part, site in _parts(entry):
            vector = mapped_by(ledger, site)
            if vector is None:
                continue
            if ledger.maps.of(part, site) is None:  # heads as units, whose factors no map contains, and which must not look like vectors
                scaled = any(ledger.classes[symmetry].free(site) for symmetry in MEASURES)
                ledger.maps.pin(*([vector] if scaled or part.repeat % width_inside(ledger, site) == 0 else []))
                continue
            width, root = width_inside(ledger, site), ledger.maps.classes.root(vector)[0]
            heads = (
                (ledger.places[site].size, width, ledger.classes["permutation"].root(site)) if width else (1, ledger.places[site].size, -1)
            )
            whole = part.repeat % width == 0 if width else True
            diagonal = None not in (part.writes, part.reads)
            if shapes.setdefault(root, heads) != heads or not whole or diagonal or entry.degree != 1:
                ledger.maps.pin(vector)


def _met(ledger: Ledger) -> None:
    """Pin maps that meet in one tensor: first those that meet themselves, then those of whole sites that meet heads, and then all."""
    for chosen in (_themselves, _beside_heads, _all):
        for entry in ledger.entries.values():
            axes = _mapped(ledger, entry)
            if len(axes) > 1:
                ledger.maps.pin(*chosen(ledger, axes))


def _themselves(ledger: Ledger, axes: dict[int, set[int]]) -> set[int]:
    """Vectors along one axis whose maps act along another one too. Queries and keys may lie along one axis."""
    roots = {axis: {ledger.maps.classes.root(one)[0] for one in found} for axis, found in axes.items()}
    twice = {root for axis, found in roots.items() for root in found if any(root in roots[other] for other in roots if other != axis)}
    return {one for one in _all(ledger, axes) if ledger.maps.classes.root(one)[0] in twice}


def _beside_heads(ledger: Ledger, axes: dict[int, set[int]]) -> set[int]:
    whole = _all(ledger, axes) - ledger.maps.home.keys()
    return whole if whole != _all(ledger, axes) else set()


def _all(ledger: Ledger, axes: dict[int, set[int]]) -> set[int]:
    return set().union(*axes.values())


def _scale_told(ledger: Ledger) -> None:
    """Pin maps along the only weights that write some units whose scale is free."""
    scaling, told, meets = ledger.classes["scaling"], set(), {}
    for entry in ledger.entries.values():
        if entry.kind not in EDGES or entry.degree != 1:
            continue
        vectors = set().union(*_mapped(ledger, entry).values(), set())
        written = {
            scaling.root(part.writes) for axis in entry.axes for part in axis if part.writes is not None and scaling.free(part.writes)
        }
        if vectors:
            for root in written:
                meets.setdefault(root, set()).update(vectors)
        else:
            told |= written
    contained = {scaling.root(site) for e in ledger.entries.values() for _, _, site in _parts(e) if mapped_by(ledger, site) is not None}
    for root in meets.keys() - told - contained:
        ledger.maps.pin(*meets[root])


def _one_sided(ledger: Ledger) -> None:
    """Pin maps that multiply tensors and divide none, or the other way round."""
    sides: dict[int, set[bool]] = {}
    for entry in ledger.entries.values():
        for _, part, site in _parts(entry):
            vector = ledger.maps.of(part, site)
            if vector is not None and ledger.maps.classes.free(vector):
                root, dual = ledger.maps.classes.root(vector)
                sides.setdefault(root, set()).add(dual ^ (part.writes is None))
    for root, found in sides.items():
        if len(found) < 2:
            ledger.maps.pin(root)
