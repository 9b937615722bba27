"""Copy constant tensors to the device and the precision of their partners, once."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # constant: {(device, dtype): copy}


def beside(constant: Tensor, x: Tensor) -> Tensor:
    """A tensor that never changes, on the device of `x`. If both are floating, it also has the precision of `x`.

    The copy is kept as long as the constant lives. A copy at every step would make a GPU wait each time.

    >>> import torch
    >>> scale = torch.ones(3)
    >>> beside(scale, torch.zeros(1)) is scale, beside(scale, torch.zeros(1).double()) is beside(scale, torch.zeros(1).double())
    (True, True)
    """
    dtype = x.dtype if constant.is_floating_point() and x.is_floating_point() else constant.dtype
    if constant.device == x.device and constant.dtype == dtype:
        return constant
    copies = _COPIES.setdefault(constant, {})
    if (x.device, dtype) not in copies:
        copies[x.device, dtype] = constant.to(x.device, dtype)
    return copies[x.device, dtype]
