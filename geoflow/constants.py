"""Bring constants to the device and precision of what they meet, once."""

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # constant: {(device, dtype): copy}


def beside(constant: Tensor, x: Tensor) -> Tensor:
    """A tensor that never changes, on the device of `x` and, where both are floating, in its precision.

    The copy is remembered as long as the constant lives: a GPU that fetched it at every step would wait for it each time.

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
