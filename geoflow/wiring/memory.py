"""Say what an operation in place changes: its operand, and what shares memory with it."""

from itertools import pairwise

from torch import Tensor
from torch.fx import Node

from geoflow.wiring.entries import activation
from geoflow.wiring.labels import Operand, Parameter, Value, is_plain
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.nodes import operation, path_of
from geoflow.wiring.rules import require, rule
from geoflow.wiring.shapes import cat, cut, expand, filled
from geoflow.wiring.views import VIEWS, view


def overwrite(ledger: Ledger, node: Node, found: dict[Node, object]) -> None:
    """Let the result of an operation in place replace its operand.

    If the operand is a slice or a view of another value, the result replaces these elements there. Raises ValueError if memory that
    changed is read later under another name.
    """
    changed = node.args[0]
    if isinstance(found[changed], Tensor) and isinstance(found[node], Tensor):  # a constant was changed in its memory
        kept = [other for other in node.graph.find_nodes(op="placeholder") if _share(found[other], found[changed])]
        if not kept:
            return
        where = f"{node.name!r} at {path_of(node)!r}"
        raise ValueError(f"{where} changes {kept[0].name!r}, so later calls differ. Use its out-of-place form.")
    chain = [changed]  # the operand, what it is a slice or a view of, and so on
    while chain[-1].op == "call_function" and (operation(chain[-1])[0] == "view" or operation(chain[-1])[1] or _is_slice(chain[-1])):
        chain.append(chain[-1].args[0])
    family = [changed]
    for member in family:
        up = [member.args[0]] if member.op == "call_function" and _views(member) else []
        down = [user for user in member.users if user < node and _views(user)]
        family += [other for other in up + down if other not in family]
    shared = any(user > node for member in family if member not in chain for user in member.users)
    given = any(member.op == "placeholder" and (member is changed or isinstance(found[member], Parameter)) for member in family)
    if shared or given:
        raise ValueError(f"{node.name!r} at {path_of(node)!r} changes {changed.name!r}, which others read. Use its out-of-place form.")
    for member in chain if len(chain) > 1 else ():
        ledger.maps.pin(*(site for label in getattr(found[member], "labels", ()) for site in ledger.maps.within(label)))
    found[changed] = found[node]
    for part, whole in pairwise(chain):
        found[whole] = _scattered(ledger, found[whole], found[part], part) if _is_slice(part) else _viewed(ledger, found[part], whole)


def _is_slice(node: Node) -> bool:
    """Whether a node is x[a:b] along one axis."""
    return node.op == "call_function" and operation(node)[0] == "slice" and len(node.args) <= 4


def _scattered(ledger: Ledger, whole: Operand, part: Operand, node: Node) -> Value:
    """A value with another part in the place of the slice `node`."""
    axis, start, stop = (*node.args[1:], *(0, None, None)[len(node.args) - 1 :])
    axis %= len(whole.shape)
    start, stop, _ = slice(start, stop).indices(whole.shape[axis])
    rest = ((0, start), (stop, whole.shape[axis]))
    before, after = (whole.narrow(axis, a, b - a) if isinstance(whole, Tensor) else cut(ledger, whole, axis, a, b) for a, b in rest)
    at, ledger.node = ledger.node, node.args[0]  # the result has the shape of the whole
    ledger.scope += f"{at.name}/"
    try:
        return activation(ledger, cat(ledger, [one for one in (before, part, after) if one.shape[axis]], axis))
    finally:
        ledger.node = at


def _viewed(ledger: Ledger, part: Operand, node: Node) -> Operand:
    """A value with the shape of `node`, of which it was a view."""
    at, ledger.node = ledger.node, node
    try:
        return view(ledger, activation(ledger, part))
    finally:
        ledger.node = at


@rule("zero")
def zero(ledger: Ledger, x: Operand) -> Tensor:
    return fill(ledger, x, 0)


@rule("fill")
def fill(ledger: Ledger, x: Operand, number: Operand) -> Tensor:
    require(is_plain(number), "a number that is computed")
    return filled(ledger, number)


@rule("copy")
def copy(ledger: Ledger, x: Operand, source: Operand, *_: object) -> Operand:
    return expand(ledger, source)


def _share(one: object, other: Tensor) -> bool:
    """Whether two values lie in the same memory."""
    return isinstance(one, Tensor) and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0


def _views(node: Node) -> bool:
    """Whether the result of a node may share memory with its first operand."""
    schema = getattr(node.target, "_schema", None)
    shares = schema is not None and any(result.alias_info is not None for result in schema.returns)
    return node.op == "call_function" and (shares or operation(node)[0] in VIEWS)
