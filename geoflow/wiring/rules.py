"""Keep the table of rules: what each ATen operation does to the units of its arguments."""

from collections.abc import Callable

Rule = Callable[..., object]
RULES: dict[str, Rule] = {}


CURE = "Register one with @rule, or pass a spec."


class NoRule(Exception):
    """No rule covers this use of an operation. The first argument says what is not covered, and the second what helps."""

    def __init__(self, reason: str, cure: str = CURE) -> None:
        super().__init__(reason)
        self.cure = cure


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a function `(ledger, *arguments) -> value` as the rule of some ATen operations.

    Operations are named as "relu" or "aten.relu". The arguments are those of the traced call. An activation comes as a Value, an entry of
    the state dict as a Parameter, and a constant as it is.

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
    """Raise NoRule with a reason unless a condition holds. A rule calls it to refuse a use of its operation that it does not cover.

    `spec_of` turns NoRule into a ValueError that names the operation and the module.

    >>> from geoflow.wiring.rules import require
    >>> require(2 < 1, "more than one input")
    Traceback (most recent call last):
    geoflow.wiring.rules.NoRule: more than one input
    """
    if not condition:
        raise NoRule(reason)
