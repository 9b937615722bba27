"""Many networks at once give what each gives alone, gradients included."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from geoflow import pack, spec_of, unpack
from geoflow.examples import in_precision
from geoflow.population import Rims, WideProducts, itself, run
from geoflow.wiring.calls import tensors_in
from geoflow.wiring.check import outputs_of
from tests.keeping import Keeping
from tests.networks import NETWORKS, Written


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap has no rule of its own for recurrent cells and fused attention
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_it_does_alone(name, generator):
    make, example = NETWORKS[name]
    network, x = make().double().eval(), in_precision(example(), torch.float64)
    spec = spec_of(network, x)
    thetas = pack(spec, network.state_dict()) + 0.1 * torch.rand(3, spec.weights, generator=generator, dtype=torch.float64)
    together = run(network, unpack(spec, thetas), x, read=lambda returned: tensors_in(returned)[0])
    alone = torch.stack([outputs_of(network, spec, theta, x) for theta in thetas])
    assert torch.allclose(together.flatten(1), alone, atol=1e-9)


def test_what_a_forward_pass_leaves_on_modules_ends_with_it(generator):
    """A table of the weights of earlier networks, or of the number of them, would be met by the later."""
    network, x = Keeping("forward").eval(), torch.randn(6, 5, generator=generator)
    spec = spec_of(Keeping(), x)
    for nets in (3, 3, 2):
        states = unpack(spec, torch.randn(nets, spec.weights, generator=generator))
        alone = [itself(network, {name: value[i] for name, value in states.items()})(x) for i in range(nets)]
        torch.testing.assert_close(run(network, states, x), torch.stack(alone))
        assert network.kept == {}


def numbers_of_units(s, x):
    return s.a(x) * (s.a.weight > 0).nonzero().shape[0]


def counted_in_place(s, x):
    return torch.zeros(len(x), 3).add_(s.a(x))


@pytest.mark.parametrize("forward", [numbers_of_units, counted_in_place])
def test_networks_run_one_by_one_where_vmap_refuses(forward, generator):
    network, x = Written(forward, a=nn.Linear(5, 3)), torch.randn(6, 5, generator=generator)
    states = {"a.weight": torch.randn(4, 3, 5, generator=generator), "a.bias": torch.randn(4, 3, generator=generator)}
    alone = [itself(network, {name: value[i] for name, value in states.items()})(x) for i in range(4)]
    torch.testing.assert_close(run(network, states, x), torch.stack(alone))


def test_a_network_that_draws_random_numbers_is_not_run(generator):
    network = Written(lambda s, x: s.a(x) + torch.rand(3), a=nn.Linear(5, 3))
    states = {"a.weight": torch.randn(4, 3, 5, generator=generator), "a.bias": torch.randn(4, 3, generator=generator)}
    with pytest.raises(RuntimeError, match="random operation"):
        run(network, states, torch.randn(6, 5, generator=generator))


class Gated(nn.Module):
    """A recurrent layer, which vmap does not know, and a table."""

    def __init__(self):
        super().__init__()
        self.gru, self.table = nn.GRU(5, 5, batch_first=True), Keeping("forward")

    def forward(self, x):
        return self.table(self.gru(x)[0][:, -1])


def test_networks_that_run_one_after_the_other_keep_no_table_of_each_other(generator):
    network, x = Gated().eval(), torch.randn(6, 3, 5, generator=generator)
    states = {name: torch.randn(3, *value.shape, generator=generator) for name, value in network.state_dict().items()}
    alone = [itself(network, {name: value[i] for name, value in states.items()})(x) for i in range(3)]
    torch.testing.assert_close(run(network, states, x), torch.stack(alone))


def test_a_network_itself_is_loaded_and_in_evaluation_mode_and_leaves_the_callers_alone(generator):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: torch.rand_like(value.double()) if value.is_floating_point() else value for name, value in before.items()}
    twin = itself(network, state)
    assert all(torch.equal(value, state[name]) for name, value in twin.state_dict().items())  # in double precision, as the state
    assert not any(module.training for module in twin.modules()) and all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_through_the_one_product(bias, generator):
    network = nn.Sequential(nn.Linear(4, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2, bias=bias)).double()
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    states = {name: torch.randn(3, *p.shape, generator=generator).double().requires_grad_() for name, p in network.named_parameters()}
    together = torch.autograd.grad(run(network, states, x).square().sum(), states.values())
    ones = [functional_call(network, {name: value[i] for name, value in states.items()}, (x,)) for i in range(3)]
    alone = torch.autograd.grad(torch.stack(ones).square().sum(), states.values())
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(together, alone, strict=True))


class Joined(nn.Module):
    """Views two axes of a linear layer's output as one."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.first(x.view(len(x), 2, 4)).relu().view(len(x), 6))


@pytest.mark.parametrize("own", [True, False])
def test_a_module_may_view_its_last_axes_as_one(own, generator):
    network = Joined()
    states = {name: torch.randn(3, *p.shape, generator=generator) for name, p in network.named_parameters()}
    x = torch.randn(3, 5, 8, generator=generator)
    with WideProducts():
        together = vmap(lambda state, x: functional_call(network, state, (x,)), in_dims=(0, 0 if own else None))(states, x if own else x[0])
    alone = [functional_call(network, {n: v[i] for n, v in states.items()}, (x[i if own else 0],)) for i in range(3)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (5, 6, 4), (4,)])
@pytest.mark.parametrize("bias", [True, False])
def test_networks_with_inputs_of_their_own_answer_as_alone(shape, bias, generator):
    network = nn.Sequential(nn.Linear(4, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2, bias=bias)).double()
    states = {name: torch.randn(3, *p.shape, generator=generator).double() for name, p in network.named_parameters()}
    x = torch.randn(3, *shape, generator=generator).double()
    with WideProducts():
        together = vmap(lambda state, x: functional_call(network, state, (x,)))(states, x)
    alone = torch.stack([functional_call(network, {name: value[i] for name, value in states.items()}, (x[i],)) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-12)


def test_one_input_makes_one_product_of_all_networks(generator):
    """The shape of the product says so: 3 networks of 4 units are 12 rows."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                seen.append(tuple(out.shape))
            return out

    with Watch():
        run(nn.Linear(5, 4), {"weight": torch.randn(3, 4, 5, generator=generator), "bias": torch.randn(3, 4)}, torch.randn(7, 5))
    assert seen == [(12, 7)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("varying", [0, 1, 5, 8])
def test_inputs_that_are_the_same_in_all_examples_count_too(varying, bias, generator):
    network = nn.Linear(8, 3, bias=bias).double()
    x = torch.ones(6, 1).double() * torch.randn(8, generator=generator).double()
    where = torch.randperm(8, generator=generator)[:varying]
    x[:, where] = torch.randn(6, varying, generator=generator).double()
    states = {name: torch.randn(4, *p.shape, generator=generator).double() for name, p in network.named_parameters()}
    alone = torch.stack([functional_call(network, {name: value[i] for name, value in states.items()}, (x,)) for i in range(4)])
    with torch.no_grad():
        assert torch.allclose(run(network, states, x), alone, atol=1e-12)
        assert torch.allclose(run(network, states, x[:1]), alone[:, :1], atol=1e-12)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_number_that_is_none_reaches_the_outputs_of_its_examples(wrong, generator):
    x = torch.zeros(6, 8)
    x[2, 5] = wrong
    states = {"weight": torch.randn(4, 3, 8, generator=generator), "bias": torch.randn(4, 3, generator=generator)}
    with torch.no_grad():
        finite = run(nn.Linear(8, 3), states, x).isfinite().all(-1)
    assert finite[:, 2].logical_not().all() and finite[:, [0, 1, 3, 4, 5]].all()


def test_with_gradients_every_example_has_its_own(generator):
    x = torch.ones(5, 8, requires_grad=True)
    states = {"weight": torch.randn(4, 3, 8, generator=generator), "bias": torch.randn(4, 3, generator=generator)}
    (gradient,) = torch.autograd.grad(run(nn.Linear(8, 3), states, x).sum(), x)
    assert torch.allclose(gradient, states["weight"].sum((0, 1)).expand(5, 8), atol=1e-5)


def test_the_rim_of_examples_is_looked_for_once_and_forgotten_with_them(generator):
    looked, rims = [], Rims()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            looked.extend([func] * (func is torch.ops.aten.amax.default))
            return func(*args, **(kwargs or {}))

    x = torch.zeros(6, 8)
    x[:, :3] = torch.randn(6, 3, generator=generator)
    for _ in range(3):
        states = {"weight": torch.randn(4, 3, 8, generator=generator), "bias": torch.randn(4, 3, generator=generator)}
        with torch.no_grad(), Watch():
            found = run(nn.Linear(8, 3), states, x, rims)
        assert torch.allclose(found, torch.einsum("nui,ei->neu", states["weight"], x) + states["bias"][:, None], atol=1e-5)
    assert len(looked) == len(rims._found) == 1
    del x
    assert not rims._found
