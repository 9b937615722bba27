"""Run many networks of one architecture at once."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from geoflow.canonical.matching import check_zoo
from geoflow.examples import Examples, arguments, leading
from geoflow.outputs.reading import Read
from geoflow.spec import NetworkSpec
from geoflow.stored import Rows
from geoflow.vector import check_state, metadata_of, with_metadata

MOST = 0.9  # if a larger share of the inputs varies, selecting them costs more than it saves


def run(
    network: nn.Module, states: Mapping[str, Tensor], x: Examples, rims: "Rims | None" = None, read: Read = lambda returned: returned
) -> Float[Tensor, "nets examples ..."]:
    """Return the outputs of all networks whose state dicts are stacked in `states` [nets, ...].

    x is a tensor [examples, ...], or several as in `geoflow.examples`. `read` takes the tensor of outputs out of what a network returns.

    Only the forward pass of `network` matters, not its weights. A module may keep a table of its weights. If the forward pass makes it, it
    ends with this call. If it was made before, by eval() or by an earlier pass of the caller's, it belongs to the module's own weights and
    gives wrong outputs. Compare with `itself` where this may happen.

    `rims` remembers which inputs are the same in all examples of x. Pass it again to run more networks on the same tensor x.

    >>> import torch
    >>> states = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)}
    >>> run(torch.nn.Linear(3, 2), states, torch.randn(7, 3)).shape
    torch.Size([5, 7, 2])
    """

    args, kwargs = arguments(network, x)

    def outputs(state: dict[str, Tensor]) -> Tensor:
        fresh = deepcopy(network, {id(entry): entry for entry in network.state_dict(keep_vars=True).values()})
        # a state dict holds tied weights under each of their names
        return read(functional_call(fresh, state, args, kwargs, tie_weights=False))

    if not any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in network.modules()):  # vmap does not support recurrent layers
        try:
            with WideProducts(rims), sdpa_kernel(SDPBackend.MATH):  # under vmap, fused attention runs once for every network
                return vmap(outputs)(dict(states))
        except RuntimeError as error:
            if "random operation" in str(error):
                raise
    # one after the other: vmap refuses some operations, such as a write into a tensor that the forward pass made itself
    nets = len(next(iter(states.values())))
    return torch.stack([outputs({name: value[net] for name, value in states.items()}) for net in range(nets)])


def faster_together(network: nn.Module, x: Examples) -> bool:
    """Return whether `run` is faster than one network after the other.

    On a GPU it always is. On a CPU it is if only linear layers read rows of numbers, because their products can be joined to wide ones. All
    else is slower under vmap. Milliseconds per network for 1,000 examples on one CPU thread, together and alone: vit 629 and 179, bert 300
    and 69, cnn 114 and 49, resnet 112 and 69, residual_mlp 5 and 3. 1,000 mlps together take a quarter of the time.
    """
    learned = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    rows = isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()
    return leading(x).device.type != "cpu" or (rows and all(isinstance(module, nn.Linear) for module in learned))


def itself(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a separate network with this state dict loaded, in evaluation mode. Device and precision are those of the state.

    Modules may keep tables of their weights and drop them when training begins. So training mode is switched on and off once.
    """
    twin = copy_of(network).to(next(value for value in state.values() if value.is_floating_point()))
    twin.load_state_dict(with_metadata(state, metadata_of(twin.state_dict())))
    return twin.train().eval()


def copy_of(network: nn.Module) -> nn.Module:
    """Return a copy of the caller's network. Raises ValueError if it holds something that cannot be copied."""
    try:
        return deepcopy(network)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"{type(network).__name__} cannot be copied: {reason}. If a module keeps a tensor made of its weights, network.train() "
            "drops it. Otherwise build the network anew."
        ) from error


def check_population(network: nn.Module, spec: NetworkSpec, thetas: Float[Tensor, "..."] | Rows) -> None:
    """Raise ValueError if there is no network, and if weights are not finite or not of this network."""
    if thetas.ndim != 2:
        raise ValueError(f"thetas must be [nets, weights], not {tuple(thetas.shape)}. Pass one network as theta[None].")
    if len(thetas) == 0:
        raise ValueError("There is no network to evaluate: thetas is empty.")
    check_zoo(spec, thetas, "population")
    check_state(spec, network.state_dict())


class WideProducts(TorchFunctionMode):
    """Run linear layers under vmap as wide matrix products, whose outputs are laid out units first, examples last.

    vmap's own rule makes one narrow product [examples, inputs] @ [inputs, units] for each network. Here all networks on a common input
    share one product, [nets * units, inputs] @ [inputs, examples]. Networks with inputs of their own keep the long axis of examples
    innermost. Outputs with more axes than examples and units come in the usual order.
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
    """`linear` with its own rule for vmap. Gradients go through the operations of the rule."""

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
        return outputs if len(shape) < 2 else outputs.contiguous(), 0  # modules may view the last axes as one


def _product(
    weight: Float[Tensor, "rows inputs"], input: Float[Tensor, "*examples inputs"], bias: Float[Tensor, "rows 1"] | None, rim: "Rim | None"
) -> Float[Tensor, "rows all_examples"]:
    """Return weight @ input.T + bias. The rim of the input is multiplied once."""
    if rim is None:
        return _plus(weight @ input.reshape(-1, input.shape[-1]).T, bias)
    same = (weight @ rim.outer).unsqueeze(1)
    return _plus(weight.index_select(1, rim.columns) @ rim.inner.T, _plus(same, bias))


def _plus(products: Tensor, bias: Tensor | None) -> Tensor:
    """Add the bias in place. addmm and baddbmm would first copy the bias to every example."""
    return products if bias is None else products.add_(bias)


@dataclass(frozen=True)
class Rim:
    """The inputs that are the same in all examples, such as the border of images.

    `outer` holds them, and 0 elsewhere. `columns` are the other inputs, and `inner` holds their entries.
    """

    columns: Int[Tensor, " columns"]
    inner: Float[Tensor, "examples columns"]
    outer: Float[Tensor, " inputs"]


class Rims:
    """A cache of the rims of input tensors. An input must not change while it is in use."""

    def __init__(self):
        self._found: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def of(self, input: Float[Tensor, "*examples inputs"]) -> Rim | None:
        """Return the rim of this input, or None if it is too narrow to save time."""
        if input not in self._found:
            self._found[input] = _rim(input.reshape(-1, input.shape[-1]))
        return self._found[input]


def _rim(x: Float[Tensor, "examples inputs"]) -> Rim | None:
    if not x.numel() or (varies := x.amax(0) != x.amin(0)).sum() > MOST * len(varies):
        return None
    columns = varies.nonzero().squeeze(1)
    return Rim(columns, x.index_select(1, columns), x[0].masked_fill(varies, 0))
