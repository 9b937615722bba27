"""Capture a network's forward pass once, and walk its graph by the rules."""

import warnings
from functools import partial, wraps
from inspect import signature

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from geoflow.examples import arguments
from geoflow.spec import NetworkSpec, check_edges
from geoflow.wiring.calls import Example, tensors_in
from geoflow.wiring.copies import copied
from geoflow.wiring.entries import PLAIN, activation
from geoflow.wiring.labels import Parameter, Value, is_plain, length
from geoflow.wiring.layout import Layout
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.mapped import settle_maps
from geoflow.wiring.memory import overwrite
from geoflow.wiring.nodes import operation, path_of
from geoflow.wiring.placeholders import Entries, owners, placeholder, refuse_hidden, running_statistics
from geoflow.wiring.pointwise import PINS
from geoflow.wiring.rules import CURE, RULES, NoRule
from geoflow.wiring.table import table_of
from geoflow.wiring.views import VIEWS


def spec_of(network: nn.Module, example: Example) -> NetworkSpec:
    """Trace a network: read its table from the ATen graph of one forward pass.

    `example` is an input with its batch axis. A tuple holds several inputs, and a mapping holds inputs by keyword. The network itself is
    not changed, nor are its modes, buffers and gradients.

    The outputs are all tensors that the network returns, alone or in tuples, lists, dicts and dataclasses. Other objects, such as a cache
    of keys and values, are no outputs.

    Raises ValueError if the forward pass depends on its data, if it uses an operation without a rule, if the network keeps a tensor
    outside its state dict that may hide a learned parameter, or if one weight connects the units of three hidden layers. The message names
    the operation and the module, or the tensor.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> spec.groups("permutation"), spec.groups("scaling"), spec.groups("sign")
    ({0: 3}, {0: 3}, {})
    """
    state = network.state_dict(keep_vars=True)
    owner, aliases = owners(state)
    twin = copied(network)
    program = _export(twin, example)
    refuse_hidden(program, twin, owner)
    statistics = running_statistics(program, owner)
    layout = Layout()
    while True:
        ledger = Ledger(layout)
        try:
            outputs = _walk(ledger, program, Entries(state, owner, statistics))
        except Exception:
            if not ledger.refined:  # otherwise sites were pinned for the rest of this walk, and the next one decides
                raise
        if ledger.refined:
            continue
        ledger.pin(*(label for value in outputs for label in value.labels))
        ledger.settle()
        settle_maps(ledger)
        if not ledger.refuse():
            spec = table_of(ledger, outputs, state, aliases)
            check_edges(spec)
            return spec


def _export(network: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """Capture the graph of a copy of a network. The copy returns its outputs as a list of tensors from now on."""
    forward = network.forward
    network.forward = wraps(forward)(lambda *args, **kwargs: tensors_in(forward(*args, **kwargs)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.no_grad():  # a part under no_grad then has no inner graph
                return torch.export.export(network, *arguments(network, example), strict=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        what = f"The forward pass of {type(network).__name__} cannot be captured: {reason.rstrip('.')}."
        cure = "Is the example an input of it? Control flow that depends on the data cannot be traced; write the NetworkSpec by hand."
        raise ValueError(f"{what} {cure}") from error


def _walk(ledger: Ledger, program: torch.export.ExportedProgram, entries: Entries) -> list[Value]:
    found: dict[Node, object] = {}
    inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for ledger.node in program.graph.find_nodes(op="placeholder"):
        found[ledger.node] = placeholder(ledger, inputs[ledger.node.name], program, entries)
    _run(ledger, program.graph_module, found)
    specs = program.graph_signature.output_specs
    if foreign := [spec.target for spec in specs if spec.kind is not OutputKind.USER_OUTPUT]:
        raise ValueError(f"The forward pass changes {foreign}, so its output depends on earlier calls. Remove that change.")
    results = [found[node] for node in tree_leaves(program.graph.output_node().args) if isinstance(node, Node)]
    return [activation(ledger, result) for result in results if isinstance(result, Value | Parameter)]


def _run(ledger: Ledger, module: GraphModule, found: dict[Node, object], scope: str = "") -> None:
    """Walk the operations of a graph whose inputs are known."""
    for node in module.graph.nodes:
        ledger.node, ledger.path, ledger.scope = node, path_of(node), scope
        if node.op == "get_attr":
            value = getattr(module, node.target)
            found[node] = value.clone() if isinstance(value, Tensor) else value
        elif node.op == "call_function":
            inner = any(isinstance(found.get(argument), GraphModule) for argument in node.all_input_nodes)
            found[node] = _part(ledger, node, found, scope) if inner else _call(ledger, node, found)
            if operation(node)[1]:
                overwrite(ledger, node, found)


def _part(ledger: Ledger, node: Node, found: dict[Node, object], scope: str) -> object:
    """Walk the inner graph of a node as if its operations stood here.

    Code under a mode, such as autocast, has an inner graph.
    """
    arguments = [found[argument] if isinstance(argument, Node) else argument for argument in node.args]
    at = next(i for i, argument in enumerate(arguments) if isinstance(argument, GraphModule))
    inner = dict(zip(arguments[at].graph.find_nodes(op="placeholder"), arguments[at + 1 :], strict=True))
    _run(ledger, arguments[at], inner, f"{scope}{node.name}/")
    return torch.fx.map_arg(arguments[at].graph.output_node().args[0], inner.__getitem__)


def _call(ledger: Ledger, node: Node, found: dict[Node, object]) -> object:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), found.__getitem__)
    leaves = tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Value | Parameter))
    if not any(isinstance(leaf, Value | Parameter) for leaf in leaves):
        return _constant(ledger, node, args, kwargs)
    name = ledger.operation
    if name == "getitem":
        return args[0][args[1]]
    first = len(ledger.places)
    try:
        if name not in RULES:
            raise NoRule("")
        result = _apply(name, ledger, *args, **{key: value for key, value in kwargs.items() if value is not None})
        result = tree_map(partial(_told_apart, ledger), _fitted(ledger, result))
        results = tree_leaves(result, is_leaf=lambda leaf: isinstance(leaf, Value | Parameter))
        operands, results = ([leaf for leaf in some if isinstance(leaf, Value)] for some in (leaves, results))
        ledger.maps.after(name, operands, results, range(first, len(ledger.places)), ledger.together)
        return result
    except NoRule as gap:
        if all(isinstance(leaf, Value) and all(map(ledger.is_position, leaf.labels)) for leaf in leaves if not is_plain(leaf)):
            ledger.maps.after("", [leaf for leaf in leaves if isinstance(leaf, Value)], [], [], ledger.together)
            return _unmoved(ledger, node, args, kwargs)
        computed = all(isinstance(leaf, Parameter) for leaf in leaves if not is_plain(leaf))  # from weights alone
        raise ValueError(_gap(ledger, str(gap), PLAIN if computed or "parametrizations" in ledger.path else gap.cure)) from None


def _unmoved(ledger: Ledger, node: Node, args: tuple, kwargs: dict) -> object:
    """The results of any operation on inputs and constants alone: no symmetry moves them."""
    _refuse_random(ledger, node, args, kwargs)
    results = tree_leaves(node.meta["val"])
    if not all(isinstance(result, Tensor) for result in results if result is not None):
        raise ValueError(_gap(ledger, "a number that depends on the data"))
    return tree_map(lambda result: None if result is None else ledger.positions(result.shape), node.meta["val"])


def _apply(name: str, ledger: Ledger, *args: object, **kwargs: object) -> object:
    try:
        signature(RULES[name]).bind(ledger, *args, **kwargs)
    except TypeError as error:
        raise NoRule(f"arguments that its rule does not know ({error})") from None
    return RULES[name](ledger, *args, **kwargs)


def _fitted(ledger: Ledger, result: object) -> object:
    """Give a result the shape that the operation has.

    A constant of one element may have been broadcast along an axis. Any other difference in shape is an error of the rule.
    """
    if not isinstance(result, Value) or result.shape == ledger.shape:
        return result
    missing = len(ledger.shape) - len(result.shape)
    labels = [*map(ledger.position, ledger.shape[:missing]), *result.labels]
    for axis, size in enumerate(ledger.shape):
        if length(labels[axis]) == 1 != size:
            ledger.pin(labels[axis])
            labels[axis] = ledger.position(size)
    if tuple(map(length, labels)) != ledger.shape:
        raise NoRule(f"its rule gives the shape {result.shape} instead of {ledger.shape}")
    return Value(tuple(labels))


def _told_apart(ledger: Ledger, result: object) -> object:
    """Axes along which all elements were equal become positions, because most operations make the elements differ (see ALIKE)."""
    if ledger.operation in ALIKE or not isinstance(result, Value):
        return result
    return Value(tuple(ledger.position(length(label)) if ledger.is_uniform(label) else label for label in result.labels))


def _constant(ledger: Ledger, node: Node, args: tuple, kwargs: dict) -> object:
    """Compute a value that depends on no weight and no input. Views share memory and changes are made in place, as in the network."""
    _refuse_random(ledger, node, args, kwargs)
    return node.target(*args, **kwargs)


def _refuse_random(ledger: Ledger, node: Node, args: tuple, kwargs: dict) -> None:
    """Raise ValueError if an operation draws random numbers. Dropout in evaluation mode, or with probability 0, draws none."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return
    schema = node.target._schema.arguments
    usual = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given = usual | dict(zip([argument.name for argument in schema], args, strict=False)) | kwargs
    switches = (given.get(name) for name in ("train", "training", "p", "dropout_p", "dropout"))
    if not any(isinstance(switch, bool | int | float) and not switch for switch in switches):
        raise ValueError(_gap(ledger, "random numbers change the output from call to call"))


def _gap(ledger: Ledger, reason: str, cure: str = CURE) -> str:
    where = repr(ledger.path) if ledger.path else f"the top module (node {ledger.node.name!r})"
    what = f"No wiring rule for aten.{ledger.operation} at {where}"
    return f"{what}{': ' + reason if reason else ''}. {cure}"


# Operations that keep equal elements along an axis equal. The rules of sums and quotients reduce such an axis to one element themselves.
ALIKE = VIEWS | {"add", "sub", "rsub", "subtract", "div", "divide", "repeat", "tile", "square"} | {name for names in PINS for name in names}
