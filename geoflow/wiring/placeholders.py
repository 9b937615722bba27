"""Classify the inputs of a captured graph: examples, learned entries, running statistics and constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from geoflow.wiring.copies import kept_tensors
from geoflow.wiring.labels import Parameter
from geoflow.wiring.ledger import Ledger
from geoflow.wiring.nodes import operation
from geoflow.wiring.views import VIEWS


@dataclass(frozen=True)
class Entries:
    """The state dict. `owner[name]` is the first name of a tensor. `statistics` are the names of running means and variances."""

    state: dict[str, Tensor]
    owner: dict[str, str]
    statistics: frozenset[str]


def owners(state: dict[str, Tensor]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """The first name of every tensor of the state dict, and the pairs (other name, first name) of tied tensors."""
    first: dict[tuple, str] = {}
    owner = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} of the state dict is a {type(value).__name__}. A weight vector holds tensors only: leave it out.")
        key = id(value) if value.is_meta else (value.data_ptr(), tuple(value.shape), value.stride()) if value.numel() else name
        owner[name] = first.setdefault(key, name)
    _refuse_overlaps({name: state[name] for name in first.values()})
    return owner, tuple((name, packed) for name, packed in owner.items() if name != packed)


def _refuse_overlaps(entries: Mapping[str, Tensor]) -> None:
    """Raise ValueError if learned entries lie in the same memory in another form: a network with other weights cannot be loaded."""
    places = []
    for name, value in entries.items():
        if not value.is_meta and value.numel():
            start = value.data_ptr()
            last = start + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True)) * value.element_size()
            places.append((start, last, name))
    for (_, last, one), (start, _, other) in pairwise(sorted(places)):
        if start <= last and (isinstance(entries[one], nn.Parameter) or isinstance(entries[other], nn.Parameter)):
            raise ValueError(
                f"{one!r} and {other!r} share memory in different forms, so one cannot change without the other. Use one of them in both "
                "places, in its own form, or give each its own memory."
            )


def running_statistics(program: torch.export.ExportedProgram, owner: dict[str, str]) -> frozenset[str]:
    """The entries in which a normalisation keeps its running mean and variance, also if it reads them through views.

    Every network of a zoo has its own. All other buffers, such as masks and tables of positions, are constants.
    """
    names = {spec.arg.name: owner.get(spec.target) for spec in program.graph_signature.input_specs if spec.kind is not InputKind.USER_INPUT}
    nodes = program.graph.find_nodes(op="placeholder")
    return frozenset(_statistics(program.graph_module, {node: names[node.name] for node in nodes if names.get(node.name)}))


def _statistics(module: GraphModule, names: dict[Node, str]) -> set[str]:
    found: set[str] = set()
    for node in (node for node in module.graph.nodes if node.op == "call_function"):
        given = [argument for argument in node.args if isinstance(argument, Node)]
        parts = [getattr(module, argument.target) for argument in given if argument.op == "get_attr"]
        name = operation(node)[0]
        if name in ("batch_norm", "instance_norm"):
            found |= {names[argument] for argument in node.args[3:5] if argument in names}
        elif name in VIEWS and given and given[0] in names:
            names[node] = names[given[0]]
        for part in parts:
            if isinstance(part, GraphModule):  # the inner graph of code under a mode
                inner = zip(part.graph.find_nodes(op="placeholder"), given[1:], strict=True)
                found |= _statistics(part, {node: names[outer] for node, outer in inner if outer in names})
    return found


def refuse_hidden(program: torch.export.ExportedProgram, network: nn.Module, owner: dict[str, str]) -> None:
    """Raise ValueError if the forward pass reads a tensor outside the state dict that may hide a learned parameter.

    A network may compute a tensor from its parameters once and keep it. The graph then reads what was kept, and never the parameter.
    """
    used = {node.name for node in _live(program.graph)}
    given = [spec for spec in program.graph_signature.input_specs if spec.arg.name in used and spec.target is not None]
    read = {owner[spec.target] for spec in given if spec.target in owner}
    lifted = {_memory(program.constants.get(spec.target)) for spec in given if spec.target not in owner}
    unread = [name for name, value in network.named_parameters() if value.is_floating_point() and owner.get(name) not in read]
    for path, name, kept in kept_tensors(network):
        under = [parameter for parameter in unread if parameter.startswith(path and f"{path}.")]
        if kept.is_floating_point() and _memory(kept) in lifted and (under or kept.requires_grad):
            where, lost = f"{path}.{name}" if path else name, f"and never {under[0]!r}" if under else "which is learned"
            raise ValueError(
                f"The forward pass reads {where!r}, a tensor outside the state dict, {lost}. A table cannot tell whether it was computed "
                "from weights. Delete what the network keeps between calls, or make that tensor a buffer."
            )


def _live(graph: Graph) -> set[Node]:
    """The nodes on which the outputs depend, and those which change others in place."""
    found = {node for node in graph.nodes if node.op == "output" or (node.op == "call_function" and operation(node)[1])}
    queue = list(found)
    while queue:
        new = set(queue.pop().all_input_nodes) - found
        found |= new
        queue += new
    return found


def _memory(value: object) -> tuple | None:
    return (value.data_ptr(), tuple(value.shape)) if isinstance(value, Tensor) and not value.is_meta else None


def placeholder(ledger: Ledger, spec, program: torch.export.ExportedProgram, entries: Entries) -> object:
    """The value of one input of the graph: positions for an example, a Parameter for an entry, or a constant's value."""
    if spec.kind is InputKind.USER_INPUT:
        value = ledger.node.meta.get("val")
        return ledger.positions(value.shape) if isinstance(value, Tensor) else value
    name = entries.owner.get(spec.target)
    if name is None:
        return _lifted(spec, program)
    value = entries.state[name]
    if isinstance(value, nn.Parameter) and value.is_complex() and ledger.node.users:
        cure = "Keep its real and imaginary parts as two parameters, or write the NetworkSpec by hand."
        raise ValueError(f"{name!r} is learned and has the type {value.dtype}, but a weight vector holds real numbers. {cure}")
    learned = isinstance(value, nn.Parameter) and value.is_floating_point()
    if learned or name in entries.statistics:
        shape = tuple(value.shape)
        return Parameter(name, shape, tuple(range(len(shape))), shape, learned)
    if ledger.node.users:
        ledger.constants.add(name)
        if value.is_meta:
            raise ValueError(f"{name!r} is a constant of the network, and on the meta device it has no values. Use another device.")
    return value.detach().clone()  # the walk may change it in place


def _lifted(spec, program: torch.export.ExportedProgram) -> Tensor:
    """The value of a tensor outside the state dict: a constant that the trace made an input, or a buffer that is not persistent."""
    value = program.constants[spec.target] if spec.target in program.constants else program.state_dict[spec.target]
    return value.clone() if isinstance(value, Tensor) else value
