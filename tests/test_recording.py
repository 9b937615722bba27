"""What is recorded computes the same as what is called; constants are copied once."""

import torch

from geoflow.constants import beside
from geoflow.recording import Recorded


def test_on_a_cpu_a_function_is_called():
    calls = []

    def double(x):
        calls.append(x)
        return 2 * x

    recorded = Recorded(double)
    assert [recorded(torch.tensor(float(n))).item() for n in range(5)] == [0, 2, 4, 6, 8] and len(calls) == 5


def test_a_constant_is_copied_once_for_each_precision_and_kept_as_it_is_beside_its_like():
    constant, indices = torch.arange(3.0), torch.arange(3)
    wide = beside(constant, torch.zeros(2).double())
    assert wide.dtype == torch.float64 and torch.equal(wide, constant.double())
    assert beside(constant, torch.zeros(5).double()) is wide and beside(constant, torch.zeros(1)) is constant
    assert beside(indices, torch.zeros(2).double()) is indices, "indices keep their type"
    assert beside(torch.arange(3.0), torch.zeros(2).double()) is not wide, "equal constants are not the same"
