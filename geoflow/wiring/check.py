"""Check a table against its network: every declared symmetry must keep the output."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from geoflow.choices import choose
from geoflow.examples import arguments, in_precision
from geoflow.spec import WIRES, NetworkSpec
from geoflow.symmetry import Symmetry, apply_symmetry, random_symmetry
from geoflow.vector import pack, seen
from geoflow.wiring.calls import Example, tensors_in
from geoflow.wiring.copies import copied, fresh

# The largest relative change that rounding explains. Rounding grows over some ten layers; a wrong axis gives 1e-3 and more.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


def check_spec(network: nn.Module, spec: NetworkSpec, example: Example, generator: torch.Generator) -> float:
    """Apply a random symmetry g of all declared groups to a network, and return how much its output changes, in float64:

        max |f(g theta) - f(theta)| / max |f(theta)|

    Weights get random noise and running statistics are random, so that no zero bias and no variance of 1 hides an error. Inputs are
    standard normal with the shapes of `example`. Whole numbers in `example` are used as they are. `example` may be a tensor, a tuple of
    inputs, or a mapping of inputs by keyword. The outputs are those of `spec_of`.

    Raises ValueError if the change exceeds the rounding error of float64. The limit is that of float32 if the network itself casts to
    float32. Some networks amplify rounding. Their limit is ten times the change that the last bit of each weight makes, and at most that
    of float32. The message names the change.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> geoflow.check_spec(network, spec, torch.zeros(1, 4), torch.Generator().manual_seed(0)) < 1e-12
    True
    """
    twin = copied(network)
    inputs = tree_map(lambda x: draw_like(x, generator), example)
    theta = pack(spec, twin.state_dict())
    _drop_weights(twin)
    theta = theta.double()  # one line after the other, so that few copies of all weights are held at once
    jitter_(spec, theta, generator)
    with RoundedTo() as rounded, float64_by_default():
        before, precision = _outputs(twin, spec, theta, inputs)
        rounded.dtype = max(rounded.dtype, precision, key=lambda one: torch.finfo(one).eps)
        theta = apply_symmetry(spec, theta, moving_symmetry(spec, generator))
        after = outputs_of(twin, spec, theta.to(precision), in_precision(inputs, precision)).double()
    finite = before.isfinite()
    if not finite.any():
        raise ValueError(f"{type(network).__name__} gives no finite output for normal inputs, so its spec cannot be checked.")
    if not torch.equal(finite, after.isfinite()):
        raise ValueError(f"The spec does not fit {type(network).__name__}: a declared symmetry changes which outputs are finite.")
    before, after = before[finite], after[finite]
    error = relative_change(before, after)
    if error <= TOLERANCE.get(rounded.dtype, TOLERANCE[torch.float32]):
        return error
    change = f"a declared symmetry changes its output by {error:.2g}"
    if error <= TOLERANCE[torch.float32]:  # then the limit was that of float64
        with float64_by_default():
            nudged = outputs_of(twin, spec, last_bits_(theta, generator), inputs)[finite]
        if nudged.isfinite().all() and error <= 10 * relative_change(after, nudged):
            return error
    if rounded.dtype not in TOLERANCE:
        cure = "Check it without that cast."
        raise ValueError(f"The spec may not fit {type(network).__name__}: {change}. Its cast to {rounded.dtype} may explain that. {cure}")
    raise ValueError(f"The spec does not fit {type(network).__name__}: {change}. Correct the table, or the rule that made it.")


def relative_change(before: Tensor, after: Tensor) -> float:
    """The largest change of an entry, as a part of the largest entry."""
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-6))


def last_bits_(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Change every weight by one unit of its last bit, up or down at random, in the memory of the weights."""
    up = torch.rand(weights.shape, generator=generator) < 0.5
    return weights.mul_(1 + torch.finfo(weights.dtype).eps * (2.0 * up.double() - 1))


def _outputs(network: nn.Module, spec: NetworkSpec, theta: Tensor, inputs: object) -> tuple[Tensor, torch.dtype]:
    """The outputs in float64, or in float32 if the network casts to that and runs in no other, and the precision that it runs in."""
    try:
        return outputs_of(network, spec, theta, inputs), torch.float64
    except RuntimeError:  # such as a product of both precisions
        try:
            single = outputs_of(network, spec, theta.float(), in_precision(inputs, torch.float32))
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(f"{type(network).__name__} does not run in float64 or float32: {reason}.") from error
        return single.double(), torch.float32


def check_wires(spec: NetworkSpec) -> None:
    """Raise ValueError if the wires of a table, perhaps written by hand, do not fit its sites.

    A wire needs two sites of one size and a kind of WIRES. The sites of a permutation group must be connected by wires. Otherwise a field
    cannot tell which of their units belong together.
    """
    for wire in spec.wires:
        choose("kind of wire", wire.kind, WIRES)
        sizes = [spec.sites[end].size for end in (wire.source, wire.target)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{wire} joins {sizes[0]} units to {sizes[1]}. A wire needs two sites of one size.")
    for group in spec.groups("permutation"):
        members = {number for number, site in enumerate(spec.sites) if site.permutation == group}
        reached = {min(members)}
        while more := {end for w in spec.wires if reached & {w.source, w.target} for end in (w.source, w.target)} - reached:
            reached |= more
        if lost := members - reached:
            names = [spec.sites[number].name for number in (min(members), min(lost))]
            raise ValueError(
                f"Sites {min(members)} ({names[0]!r}) and {min(lost)} ({names[1]!r}) share the permutation group {group}, and no wires "
                "lead from one to the other. Add a Wire to the table."
            )


class RoundedTo(TorchDispatchMode):
    """Record the coarsest precision to which operations round their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given, made = (
            [leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()] for tree in (args, result)
        )
        for dtype in made:
            if any(torch.finfo(one).eps < torch.finfo(dtype).eps for one in given):
                self.dtype = max(self.dtype, dtype, key=lambda one: torch.finfo(one).eps)
        return result


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Let tensors that a network makes itself have the precision of the check."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def outputs_of(network: nn.Module, spec: NetworkSpec, theta: Tensor, example: Example) -> Tensor:
    """All floating outputs of the network with these weights in evaluation mode, in one vector.

    Each call has modules of its own, because some networks keep a tensor of their weights between calls.
    """
    args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, arguments(network, example))
    with torch.no_grad():
        result = functional_call(fresh(network), seen(spec, theta), args, kwargs)
    return torch.cat([tensor.flatten() for tensor in tensors_in(result) if tensor.is_floating_point()])


def moving_symmetry(spec: NetworkSpec, generator: torch.Generator) -> Symmetry:
    """A random symmetry that moves every unit. It also flips at least one unit of every group of signs.

    A group that stays as it is would hide every error in its axes. A random order of four units stays once in 24 times.
    """
    drawn = random_symmetry(spec, generator)
    rounds = {g: torch.empty_like(order).scatter(0, order, order.roll(1)) for g, order in drawn.permutations.items()}
    flipped = {g: signs.index_fill(0, torch.randint(len(signs), (1,), generator=generator), -1) for g, signs in drawn.signs.items()}
    return Symmetry(rounds, drawn.factors, flipped)


def _drop_weights(network: nn.Module) -> None:
    """Turn a network to float64, and let all elements of a parameter share one number.

    The calls bring weights of their own, so this saves the memory of a copy.
    """
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.new_zeros((), dtype=torch.float64).expand(parameter.shape)
    network.double()


def draw_like(x: object, generator: torch.Generator) -> object:
    if isinstance(x, Tensor) and x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x


def jitter(spec: NetworkSpec, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Weights with noise added, so that none of them is special. Variances are random and positive."""
    moved = theta.clone()
    jitter_(spec, moved, generator)
    return moved


def jitter_(spec: NetworkSpec, theta: Tensor, generator: torch.Generator) -> None:
    """The same in the memory of the weights."""
    for tensor, part in zip(spec.tensors, theta.split([tensor.numel for tensor in spec.tensors]), strict=True):
        noise = torch.randn(part.shape, generator=generator, dtype=theta.dtype)
        if tensor.kind == "running_var":
            part.copy_(noise.mul_(0.5).exp_())
        else:
            part.add_(noise, alpha=0.1)
