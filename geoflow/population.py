"""Run many networks of one architecture at once."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from geoflow.canonical.matching import check_zoo
from geoflow.spec import NetworkSpec
from geoflow.vector import check_state

MOST = 0.9  # of the inputs vary: where more do, choosing them costs more than it saves


def run(
    network: nn.Module, states: Mapping[str, Tensor], x: Shaped[Tensor, "examples ..."], rims: "Rims | None" = None
) -> Float[Tensor, "nets examples ..."]:
    """The outputs of all networks whose state dicts are stacked in `states` [nets, ...]; of `network` the forward pass alone matters.

    What the forward pass leaves on modules, such as a table of its weights, ends with this call. A table that a module makes before, in
    eval() or in an earlier pass of the caller's, is that of the module's own weights: compare with `itself` where that may be.

    `rims` remembers what is the same in all examples of x: give it again where more networks run on this very x.

    >>> import torch
    >>> states = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)}
    >>> run(torch.nn.Linear(3, 2), states, torch.randn(7, 3)).shape
    torch.Size([5, 7, 2])
    """

    def outputs(state: dict[str, Tensor]) -> Tensor:
        fresh = deepcopy(network, {id(entry): entry for entry in network.state_dict(keep_vars=True).values()})
        return functional_call(fresh, state, (x,), tie_weights=False)  # a state dict holds tied weights under each of their names

    if any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in network.modules()):  # vmap knows no recurrent layers
        nets = len(next(iter(states.values())))
        return torch.stack([outputs({name: value[net] for name, value in states.items()}) for net in range(nets)])
    with WideProducts(rims), sdpa_kernel(SDPBackend.MATH):  # vmap would call the fused attention once for every network
        return vmap(outputs)(dict(states))


def faster_together(network: nn.Module, x: Shaped[Tensor, "examples ..."]) -> bool:
    """Whether `run` is faster than one network after the other: on a GPU always, on a CPU where only linear layers read rows of numbers.

    Their products join to wide ones. All else is slower under vmap. Milliseconds per network for 1,000 examples on one thread of a CPU,
    together and alone: vit 629 and 179, bert 300 and 69, cnn 114 and 49, resnet 112 and 69, residual_mlp 5 and 3; 1,000 mlps together
    take a quarter of the time.
    """
    learned = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    rows = x.ndim == 2 and x.is_floating_point()
    return x.device.type != "cpu" or (rows and all(isinstance(module, nn.Linear) for module in learned))


def itself(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of its own with this state dict loaded, in evaluation mode, on the device and in the precision of the state.

    Tables that modules keep of their weights are made from these: a module drops them when training begins, and so they are dropped.
    """
    twin = copy_of(network).to(next(value for value in state.values() if value.is_floating_point()))
    twin.load_state_dict(state)
    return twin.train().eval()


def copy_of(network: nn.Module) -> nn.Module:
    """A copy of the caller's network. Raises ValueError where it holds what cannot be copied."""
    try:
        return deepcopy(network)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(network).__name__} cannot be copied: {reason}. Where a module keeps a tensor made of its weights, network.train() "
            "drops it; or build the network anew."
        ) from error


def check_population(network: nn.Module, spec: NetworkSpec, thetas: Float[Tensor, "..."]) -> None:
    """Raise ValueError where there is no network, and where weights are not finite, or not of this network."""
    if thetas.ndim != 2:
        raise ValueError(f"thetas must be [nets, weights], not {tuple(thetas.shape)}; one network is theta[None].")
    if len(thetas) == 0:
        raise ValueError("There is no network to evaluate: thetas is empty.")
    check_zoo(spec, thetas, "population")
    check_state(spec, network.state_dict())


class WideProducts(TorchFunctionMode):
    """Linear layers under vmap as wide matrix products, their outputs laid out units first, examples last.

    vmap's own rule makes one narrow product [examples, inputs] @ [inputs, units] for each network. Here networks on a common input share
    one product, [nets * units, inputs] @ [inputs, examples]; those with inputs of their own keep the long axis of examples inmost. Outputs
    with more axes than examples and units come in the usual order.
    """

    def __init__(self, rims: "Rims | None" = None):
        super().__init__()
        self._rims = Rims() if rims is None else rims

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _Linear.apply(input, weight, bias, self._rims)


class _Linear(torch.autograd.Function):
    """`linear` with a rule of its own for vmap; gradients go through the operations of the rule."""

    @staticmethod
    def forward(input, weight, bias, rims):
        return linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, input, weight, bias, rims):
        if in_dims[1] is None or (bias is not None and in_dims[2] is None):
            return vmap(linear, in_dims)(input, weight, bias), 0
        weight = weight.movedim(in_dims[1], 0)
        bias = None if bias is None else bias.movedim(in_dims[2], 0).unsqueeze(-1)
        if in_dims[0] is None:
            shape = input.shape[:-1]
            rim = None if torch.is_grad_enabled() else rims.of(input)
            products = _product(weight.flatten(0, 1), input, None if bias is None else bias.flatten(0, 1), rim)
        else:
            input = input.movedim(in_dims[0], 0)
            shape, examples = input.shape[1:-1], input.reshape(len(input), -1, input.shape[-1]).mT
            products = _plus(weight @ examples, bias)
        outputs = products.view(*weight.shape[:2], *shape).movedim(1, -1)
        return outputs if len(shape) < 2 else outputs.contiguous(), 0  # so that a module may view its last axes as one


def _product(
    weight: Float[Tensor, "rows inputs"], input: Float[Tensor, "*examples inputs"], bias: Float[Tensor, "rows 1"] | None, rim: "Rim | None"
) -> Float[Tensor, "rows all_examples"]:
    """weight @ input.T + bias; the rim of the input is multiplied once."""
    if rim is None:
        return _plus(weight @ input.reshape(-1, input.shape[-1]).T, bias)
    same = (weight @ rim.outer).unsqueeze(1)
    return _plus(weight.index_select(1, rim.columns) @ rim.inner.T, _plus(same, bias))


def _plus(products: Tensor, bias: Tensor | None) -> Tensor:
    """In place: addmm and baddbmm would first write the bias to every example."""
    return products if bias is None else products.add_(bias)


@dataclass(frozen=True)
class Rim:
    """The inputs that are the same in all examples, as the rim of images is: `outer` holds them, and 0 where the others are, which are
    the `columns` of the input with the entries `inner`."""

    columns: Int[Tensor, " columns"]
    inner: Float[Tensor, "examples columns"]
    outer: Float[Tensor, " inputs"]


class Rims:
    """The rims of inputs, looked for once as long as an input lives; it must not change meanwhile."""

    def __init__(self):
        self._found: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def of(self, input: Float[Tensor, "*examples inputs"]) -> Rim | None:
        """The rim of this input; None where it is too narrow to save anything."""
        if input not in self._found:
            self._found[input] = _rim(input.reshape(-1, input.shape[-1]))
        return self._found[input]


def _rim(x: Float[Tensor, "examples inputs"]) -> Rim | None:
    if not x.numel() or (varies := x.amax(0) != x.amin(0)).sum() > MOST * len(varies):
        return None
    columns = varies.nonzero().squeeze(1)
    return Rim(columns, x.index_select(1, columns), x[0].masked_fill(varies, 0))
