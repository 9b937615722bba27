"""Look up what an ATen operation does to sites: the table of rules."""

from collections.abc import Callable

Rule = Callable[..., object]
RULES: dict[str, Rule] = {}


class NoRule(Exception):
    """This use of an operation is not covered; the message says what about it."""


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a function `(ledger, *arguments) -> value` as the rule of ATen operations, given as "relu" or "aten.relu".

    Arguments arrive as in the traced call: activations as Value, entries of the state dict as Parameter, constants as they are.

    >>> import torch, geoflow
    >>> @geoflow.wiring.rule("erfinv")  # odd, like tanh: signs pass, factors do not
    ... def erfinv(ledger, x):
    ...     ledger.pin(*x.labels, symmetries=("scaling",))
    ...     return x
    >>> class Inverse(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.erfinv(x)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), Inverse(), torch.nn.Linear(3, 2))
    >>> geoflow.spec_of(net, torch.zeros(1, 4)).groups("sign")
    {0: 3}
    """

    def register(function: Rule) -> Rule:
        for operation in operations:
            RULES[operation.removeprefix("aten.")] = function
        return function

    return register


def require(condition: bool, reason: str) -> None:
    """Raise NoRule unless the use of an operation is covered."""
    if not condition:
        raise NoRule(reason)
