"""Name a node of the captured graph: its operation, and the module in which it stands."""

from torch.fx import Node


def operation(node: Node) -> tuple[str, bool]:
    """The name of an operation, and whether it works in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target.__name__, False
    name = schema.name.removeprefix("aten::")
    if name.endswith("__"):  # such as __and__, and __iand__ in place
        return (name.replace("__i", "__", 1), True) if schema.is_mutable else (name, False)
    return (name.removesuffix("_"), name != "detach_") if name.endswith("_") else (name, False)


def path_of(node: Node) -> str:
    """The path of the module in which an operation stands."""
    modules = list(node.meta.get("nn_module_stack", {}).values())
    return modules[-1][0] if modules else ""
