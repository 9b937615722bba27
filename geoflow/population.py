"""Run many networks of one architecture at once."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

MOST = 0.9  # of the inputs vary: where more do, choosing them costs more than it saves


def run(network: nn.Module, states: Mapping[str, Tensor], x: Shaped[Tensor, "examples ..."]) -> Float[Tensor, "nets examples ..."]:
    """The outputs of all networks whose state dicts are stacked in `states` [nets, ...]; of `network` the forward pass alone matters.

    >>> import torch
    >>> states = {"weight": torch.randn(5, 2, 3), "bias": torch.randn(5, 2)}
    >>> run(torch.nn.Linear(3, 2), states, torch.randn(7, 3)).shape
    torch.Size([5, 7, 2])
    """

    def outputs(state: dict[str, Tensor]) -> Tensor:
        return functional_call(network, state, (x,), tie_weights=False)  # a state dict holds tied weights under each of their names

    if any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in network.modules()):  # vmap knows no recurrent layers
        nets = len(next(iter(states.values())))
        return torch.stack([outputs({name: value[net] for name, value in states.items()}) for net in range(nets)])
    with WideProducts():
        return vmap(outputs)(dict(states))


class WideProducts(TorchFunctionMode):
    """Linear layers under vmap as wide matrix products, their outputs laid out units first, examples last.

    vmap's own rule makes one narrow product [examples, inputs] @ [inputs, units] for each network. Here networks on a common input share
    one product, [nets * units, inputs] @ [inputs, examples]; those with inputs of their own keep the long axis of examples inmost. Outputs
    with more axes than examples and units come in the usual order.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    """`linear` with a rule of its own for vmap; gradients go through the operations of the rule."""

    @staticmethod
    def forward(input, weight, bias):
        return linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, input, weight, bias):
        if in_dims[1] is None or (bias is not None and in_dims[2] is None):
            return vmap(linear, in_dims)(input, weight, bias), 0
        weight = weight.movedim(in_dims[1], 0)
        bias = None if bias is None else bias.movedim(in_dims[2], 0).unsqueeze(-1)
        if in_dims[0] is None:
            shape = input.shape[:-1]
            products = _product(weight.flatten(0, 1), input.reshape(-1, input.shape[-1])).unflatten(0, weight.shape[:2])
            products = products if bias is None else products.add_(bias)  # addmm would first write the bias to every example
        else:
            input = input.movedim(in_dims[0], 0)
            shape, examples = input.shape[1:-1], input.reshape(len(input), -1, input.shape[-1]).mT
            products = weight @ examples if bias is None else torch.baddbmm(bias, weight, examples)
        outputs = products.view(*weight.shape[:2], *shape).movedim(1, -1)
        return outputs if len(shape) < 2 else outputs.contiguous(), 0  # so that a module may view its last axes as one


def _product(weight: Float[Tensor, "rows inputs"], x: Float[Tensor, "examples inputs"]) -> Float[Tensor, "rows examples"]:
    """weight @ x.T; without gradients, what is the same in all examples, as the rim of images is, is multiplied once."""
    if torch.is_grad_enabled() or not x.numel():
        return weight @ x.T
    varies = x.amax(0) != x.amin(0)
    if varies.sum() > MOST * len(varies):
        return weight @ x.T
    columns = varies.nonzero().squeeze(1)
    products = weight.index_select(1, columns) @ x.index_select(1, columns).T
    return products.add_((weight @ x[0].masked_fill(varies, 0)).unsqueeze(1))
