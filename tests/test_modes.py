"""Work that needs gradients does not depend on the mode that the caller is in, and a zoo of copies is named."""

import pytest
import torch
from torch import nn

from geoflow import fit, log_prob, sample, spec_of, task_guidance
from geoflow.descent import descend
from geoflow.objectives import task_objective

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.fixture(scope="module")
def spec(network):
    return spec_of(network, torch.zeros(1, 4))


@pytest.fixture(scope="module")
def thetas(spec):
    return torch.randn(12, spec.weights, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_flow_is_the_same_in_every_mode(mode, spec, thetas):
    how = {"iterations": 2, "batch": 4, "progress": False}
    expected = fit(spec, thetas, torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), **how)
    with mode():
        inside = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        found = fit(spec, thetas.clone(), inside, **how)
        assert not torch.is_grad_enabled()
    assert found.losses == expected.losses
    for name, value in expected.field.state_dict().items():
        assert torch.equal(found.field.state_dict()[name], value) and not value.is_inference()


def test_copies_are_counted_once_for_a_zoo(spec, thetas):
    how = {"iterations": 1, "batch": 4, "progress": False}
    some = torch.cat([thetas, thetas[:3], thetas[:1]])
    with pytest.warns(UserWarning, match="4 of the 16 networks are copies of others, so 12 are different") as seen:
        fit(spec, some, **how)
    assert len(seen) == 1
    fit(spec, some.unique(dim=0), **how)
    with pytest.raises(ValueError, match="All 9 networks are identical"):
        fit(spec, thetas[:1].repeat(9, 1), **how)
    nearly = thetas[:1].repeat(9, 1)
    nearly[4, 0] += 1e-3
    with pytest.warns(UserWarning, match="7 of the 9 networks are copies of others, so 2 are different"):
        fit(spec, nearly, flow="euclidean", **how)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_guidance_descent_and_density_work_in_every_mode(mode, network, spec, thetas):
    x, y = torch.randn(6, 4), torch.randint(2, (6,))
    flow = fit(spec, thetas, iterations=1, batch=4, progress=False)
    guidance = task_guidance(network, x, y)
    ask = (
        lambda: sample(flow, 2, steps=2, guidance=guidance, generator=torch.Generator().manual_seed(0)),
        lambda: log_prob(flow, thetas[:2], steps=2),
        lambda: descend(spec, thetas[:2], task_objective(network, x, y), steps=2),
    )
    expected = [one() for one in ask]
    with mode():
        for one, wanted in zip(ask, expected, strict=True):
            torch.testing.assert_close(one(), wanted)
