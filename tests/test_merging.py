"""Copies of one network under a symmetry merge to the network itself, and the loss rises between networks only where they differ."""

import pytest
import torch
from torch import nn

import geoflow
from geoflow import align_to, barrier, merge, pack, random_symmetry, spec_of, unpack
from geoflow.wiring.check import jitter
from tests.networks import NETWORKS

NAMES = ["mlp", "mlp tanh", "mlp batch norm", "cnn", "cnn batch norm after flatten", "resnet", "group norm", "lstm", "attention"]


def planted(network, spec, generator, copies=3):
    """A network in double precision, and copies of it, each under a symmetry of its own."""
    theta = jitter(spec, pack(spec, network.double()), generator)
    moved = [geoflow.apply_symmetry(spec, theta, random_symmetry(spec, generator)) for _ in range(copies)]
    return theta, [unpack(spec, one) for one in moved]


def tolerance(theta) -> float:
    return 1e3 * torch.finfo(theta.dtype).eps * float(theta.abs().max())  # rounding of some hundred products and roots


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_copies_under_a_symmetry_come_back(name, generator):
    build, example = NETWORKS[name]
    network, x = build(), example()
    spec = spec_of(network, x)
    theta, copies = planted(network, spec, generator)
    own = unpack(spec, theta)
    if any(spec.groups(kind) for kind in ("permutation", "scaling", "sign")):
        assert not torch.allclose(pack(spec, copies[0]), theta, atol=1e-3)
    for copy in copies:
        assert (pack(spec, align_to(spec, copy, own)) - theta).abs().max() <= tolerance(theta)
    for weights in (None, [0, 3, 1, 0.5]):
        assert (pack(spec, merge(spec, [own, *copies], weights)) - theta).abs().max() <= tolerance(theta)
    found = pack(spec, merge(spec, copies))  # it has the form of the first of them
    assert (found - pack(spec, copies[0])).abs().max() <= tolerance(found)


@pytest.fixture
def relu(generator):
    network = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return network, spec_of(network, torch.zeros(2, 4).double())


def test_align_to_keeps_the_function_and_brings_other_networks_nearer(relu, generator):
    network, spec = relu
    x = torch.randn(20, 4, generator=generator).double()
    one, other = (unpack(spec, jitter(spec, pack(spec, network), generator)) for _ in range(2))
    aligned = align_to(spec, other, one)
    outputs = [torch.func.functional_call(network.eval(), state, x) for state in (other, aligned)]
    torch.testing.assert_close(*outputs)
    again = align_to(spec, aligned, one)
    torch.testing.assert_close(pack(spec, again), pack(spec, aligned))
    torch.testing.assert_close(pack(spec, align_to(spec, one, one)), pack(spec, one))


def test_merge_weighs_networks(generator):
    """Without hidden units there is nothing to align, so the result is the plain average."""
    spec = spec_of(nn.Linear(3, 2), torch.zeros(1, 3))
    states = [nn.Linear(3, 2) for _ in range(3)]
    thetas = pack(spec, states)
    torch.testing.assert_close(pack(spec, merge(spec, states)), thetas.mean(0))
    torch.testing.assert_close(pack(spec, merge(spec, states, [2, 0, 6])), 0.25 * thetas[0] + 0.75 * thetas[2])
    torch.testing.assert_close(pack(spec, merge(spec, states[:1])), thetas[0])
    for wrong in ([1, 1], [1, 1, -1], [0, 0, 0], [1, 1, float("nan")]):
        with pytest.raises(ValueError, match="weights must be 3 numbers"):
            merge(spec, states, wrong)
    with pytest.raises(ValueError, match="The zoo is empty"):
        merge(spec, [])


def test_the_barrier_is_that_of_the_loss_on_the_line(relu, generator):
    network, spec = relu
    x, y = torch.randn(40, 4, generator=generator).double(), torch.randint(3, (40,), generator=generator)
    one, other = (unpack(spec, 2 * jitter(spec, pack(spec, network), generator).abs()) for _ in range(2))
    found = barrier(network, spec, one, other, x, y, points=5)
    losses = []
    for t in (0, 0.25, 0.5, 0.75, 1):
        state = {name: (1 - t) * one[name] + t * other[name] if one[name].is_floating_point() else one[name] for name in one}
        losses.append(nn.functional.cross_entropy(torch.func.functional_call(network.eval(), state, x), y))
    torch.testing.assert_close(found.scores.nll, torch.stack(losses))
    assert found.height == pytest.approx(float(max(losses) - (losses[0] + losses[-1]) / 2))
    assert found.at.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_between_copies_there_is_a_barrier_until_they_are_aligned(relu, generator):
    network, spec = relu
    theta, _ = planted(network, spec, generator)
    x = 3 * torch.randn(200, 4, generator=generator).double()
    own = unpack(spec, 3 * theta)
    y = torch.func.functional_call(network.eval(), own, x).argmax(1)
    copy = unpack(spec, geoflow.apply_symmetry(spec, pack(spec, own), random_symmetry(spec, generator)))
    apart, together = (barrier(network, spec, own, state, x, y).height for state in (copy, align_to(spec, copy, own)))
    assert together == pytest.approx(0, abs=1e-9) and apart > 0.1


def test_statistics_between_the_ends_are_measured_anew_if_inputs_are_given(relu, generator):
    network, spec = relu
    x, y = torch.randn(30, 4, generator=generator).double(), torch.randint(3, (30,), generator=generator)
    one, other = (unpack(spec, jitter(spec, pack(spec, network), generator)) for _ in range(2))
    plain, anew = (barrier(network, spec, one, other, x, y, 3, inputs).scores.nll for inputs in (None, x))
    middle = torch.lerp(pack(spec, one), pack(spec, other), 0.5)[None]
    expected = geoflow.evaluate(network, spec, geoflow.recalibrate(network, spec, middle, x), x, y).nll
    torch.testing.assert_close(anew[1:2], expected)
    assert torch.equal(plain[[0, 2]], anew[[0, 2]]) and not torch.isclose(plain[1], anew[1])


def test_two_points_are_no_line(relu):
    network, spec = relu
    with pytest.raises(ValueError, match="points=2 must be at least 3"):
        barrier(network, spec, network, network, torch.zeros(2, 4), torch.zeros(2).long(), points=2)
