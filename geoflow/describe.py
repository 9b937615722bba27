"""Describe a table in words: what its symmetries move, what they do not move, and why."""

from collections import deque
from collections.abc import Iterable, Iterator
from textwrap import fill

from geoflow.spec import SYMMETRIES, NetworkSpec, Piece, TensorSpec

WIDTH = 120
FIXED = {"input": "input", "output": "output", "hidden": "fixed"}  # role of a site that nothing moves: what an axis is called
REASONS = {
    "input": "an input or a position: its order and scale are given",
    "output": "order and scale of outputs have a meaning",
    "position": "a position, such as one in a kernel or in a sequence",
}


def describe(spec: NetworkSpec) -> str:
    """Return a text for people: parameters, sites, groups, tensors with what moves each axis, and entries that nothing moves, with reasons.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> print(describe(geoflow.spec_of(network, torch.zeros(1, 4))).split("\\n\\n")[0])
    23 weights in 4 tensors. Symmetries: permutation (1 group), scaling (1 group).
    """
    return "\n\n".join([_head(spec), *_groups(spec), _sites(spec), _tensors(spec), *_unmoved(spec), *_outside(spec)])


def unmoved(spec: NetworkSpec) -> dict[str, str]:
    """Return the entries of the weight vector that no symmetry moves, with the reason of each.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> unmoved(geoflow.spec_of(network, torch.zeros(1, 4)))
    {'2.bias': 'output: order and scale of outputs have a meaning'}
    """
    moved = {tensor.name for tensor in spec.tensors if any(_moves(spec, tensor, piece) for axis in tensor.axes for piece in axis)}
    found: dict[str, list[str]] = {}
    for tensor in spec.tensors:
        if tensor.name not in moved:
            found.setdefault(tensor.name, []).extend(_reason(spec, piece) for axis in tensor.axes for piece in axis)
    return {name: "; ".join(dict.fromkeys(reasons)) or "a single number, without units" for name, reasons in found.items()}


def _head(spec: NetworkSpec) -> str:
    counts = {symmetry: len(spec.groups(symmetry)) for symmetry in SYMMETRIES} | {"linear": len(spec.linear)}
    listed = ", ".join(f"{symmetry} ({count} group{'s' * (count > 1)})" for symmetry, count in counts.items() if count) or "none"
    return f"{spec.weights:,} weights in {len(spec.tensors)} tensors. Symmetries: {listed}."


def _groups(spec: NetworkSpec) -> Iterator[str]:
    """Say which sites each group moves together."""
    lines = []
    for symmetry in SYMMETRIES:
        for number, units in spec.groups(symmetry).items():
            names = [site.name for site in spec.sites if getattr(site, symmetry) == number]
            lines.append(_wrapped(f"{symmetry} {number} of {units} units: {', '.join(dict.fromkeys(names))}"))
    for number, (heads, width) in spec.linear.items():
        names = [site.name for site in spec.sites if site.linear == number]
        vectors = f"{heads} heads of width {width}, each with a matrix" if heads > 1 else f"one vector of width {width}, with a matrix"
        lines.append(_wrapped(f"linear {number} of {vectors}: {', '.join(dict.fromkeys(names))}"))
    if lines:
        yield "\n".join(["Groups, and the layers whose units each moves together:", *lines])


def _wrapped(line: str) -> str:
    return fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _sites(spec: NetworkSpec) -> str:
    rows = ([site.name or "(top)", str(site.size), site.role, _moved_by(spec, index)] for index, site in enumerate(spec.sites))
    return "\n".join(["Sites (vectors of activations):", *_aligned(rows, ["site", "units", "role", "moved by"])])


def _tensors(spec: NetworkSpec) -> str:
    rows = ([_named(tensor), " x ".join(map(str, tensor.shape)) or "1", tensor.kind, _axes(spec, tensor)] for tensor in spec.tensors)
    titles = ["tensor", "shape", "kind", "what moves each axis (p permutation, c scaling, s sign, l linear)"]
    return "\n".join(["Tensors:", *_aligned(rows, titles)])


def _unmoved(spec: NetworkSpec) -> Iterator[str]:
    if found := unmoved(spec):
        yield "\n".join(["Not moved by any symmetry:", *_aligned(([name, reason] for name, reason in found.items()), ["entry", "reason"])])


def _outside(spec: NetworkSpec) -> Iterator[str]:
    """Say which entries of the state dict no weight vector holds on its own."""
    rows = [[name, f"the same tensor as {first}"] for name, first in spec.aliases]
    rows += [[name, "constant: all networks have the values of the traced one"] for name in spec.constants]
    rows += [[name, "unread: no forward pass in evaluation mode uses it"] for name in spec.unread]
    if rows:
        yield "\n".join(["Not in the weight vector:", *_aligned(rows, ["entry", "reason"])])


def _moves(spec: NetworkSpec, tensor: TensorSpec, piece: Piece) -> bool:
    """Whether a symmetry moves the stretch. A factor that is written may cancel with the same one that is read."""
    if any(spec.group_of(site, "linear") is not None for site in (piece.writes, piece.reads)):
        return True
    for symmetry in SYMMETRIES:
        written, read = (spec.group_of(site, symmetry) for site in (piece.writes, piece.reads))
        if symmetry == "permutation" and (written, read) != (None, None):
            return True
        powers = {written: tensor.degree}
        powers[read] = powers.get(read, 0) - 1
        if any(group is not None and (power % 2 if symmetry == "sign" else power) for group, power in powers.items()):
            return True
    return False


def _moved_by(spec: NetworkSpec, index: int) -> str:
    site = spec.sites[index]
    groups = [f"{symmetry} {group}" for symmetry in (*SYMMETRIES, "linear") if (group := getattr(site, symmetry)) is not None]
    return ", ".join(groups) or f"nothing: {_why_pinned(spec, index)}"


def _axes(spec: NetworkSpec, tensor: TensorSpec) -> str:
    """Name for each axis what moves it, such as p0 c0, or why nothing does."""
    return ", ".join(" + ".join(_called(spec, piece) for piece in axis) for axis in tensor.axes) or "-"


def _called(spec: NetworkSpec, piece: Piece) -> str:
    if piece.owner is None:
        return "position"
    letters = dict(zip((*SYMMETRIES, "linear"), "pcsl", strict=True))
    site = spec.sites[piece.owner]
    groups = [f"{letter}{group}" for symmetry, letter in letters.items() if (group := getattr(site, symmetry)) is not None]
    return " ".join(groups) or FIXED[site.role]


def _reason(spec: NetworkSpec, piece: Piece) -> str:
    if piece.owner is None:
        return REASONS["position"]
    role = spec.sites[piece.owner].role
    return f"{spec.sites[piece.owner].name or 'top'}: {_why_pinned(spec, piece.owner)}" if role == "hidden" else f"{role}: {REASONS[role]}"


def _why_pinned(spec: NetworkSpec, index: int) -> str:
    """Say why no symmetry moves the units of a site, as far as the table knows: by its role, or by the way along wires to such a site."""
    if (role := spec.sites[index].role) != "hidden":
        return REASONS[role]
    for end, kind in _along_wires(spec, index):
        if spec.sites[end].role != "hidden":
            return f"tied to the {spec.sites[end].role} by a wire ({kind})"
    return "an operation of the forward pass tells its units apart, as one along the units does"


def _along_wires(spec: NetworkSpec, index: int) -> Iterator[tuple[int, str]]:
    """Yield the sites that wires lead to, the nearest first, with the kind of the last wire."""
    queue, seen = deque([index]), {index}
    while queue:
        here = queue.popleft()
        for wire in spec.wires:
            if here in (wire.source, wire.target) and (there := wire.target if here == wire.source else wire.source) not in seen:
                yield there, wire.kind
                seen.add(there)
                queue.append(there)


def _named(tensor: TensorSpec) -> str:
    return f"{tensor.name}[{tensor.start}:]" if tensor.start else tensor.name


def _aligned(rows: Iterable[list[str]], titles: list[str]) -> list[str]:
    rows = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
