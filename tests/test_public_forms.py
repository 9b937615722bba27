"""Hold the tracing against forms that public models have: what they keep, compute and return, and what is refused."""

from dataclasses import replace

import pytest
import torch
from networks import KeptBias, Written, learned, mlp, projections, two_heads
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from geoflow.wiring import check_spec, spec_of, trace


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def permuted(network, example):
    return sorted(spec_of(network, example).groups("permutation").values())


def bottlenecks(groups, blocks=3, width=16):
    layers = [nn.Conv2d(2, width, 1)]
    for _ in range(blocks):
        layers += [nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU()]
    return nn.Sequential(*layers)


def test_one_walk_finds_the_cuts_of_all_groups_and_blocks(monkeypatch):
    walks = []
    walk = trace._walk
    monkeypatch.setattr(trace, "_walk", lambda *given: walks.append(1) or walk(*given))
    for groups in (2, 8):
        walks.clear()
        spec = spec_of(bottlenecks(groups), torch.zeros(1, 2, 4, 4))
        assert len(walks) == 2
        assert sorted(spec.groups("permutation").values()) == [16 // groups] * (5 * groups) + [16]


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_computed_weights_are_refused_with_the_cure_that_works(norm):
    network = nn.Sequential(norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="remove_parametrizations") as refusal:
        spec_of(network, torch.zeros(2, 5))
    assert "@rule" not in str(refusal.value)
    remove_parametrizations(network[0], "weight")
    assert permuted(network, torch.zeros(2, 5)) == [4]


def test_standardised_weights_are_refused_with_the_same_cure():
    def forward(s, x):
        return s.o(torch.nn.functional.linear(x, s.w - s.w.mean(1, keepdim=True)))

    with pytest.raises(ValueError, match="A table needs plain weights"):
        spec_of(Written(forward, w=learned(4, 5), o=nn.Linear(4, 2)), torch.zeros(2, 5))


class Stale(KeptBias):
    """It never drops what it keeps."""

    def train(self, mode=True):
        return nn.Module.train(self, mode)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_learned_parameter_that_a_cache_hides_is_refused(gradients):
    fresh, called = Stale().eval(), Stale().eval()
    with torch.set_grad_enabled(gradients):
        called(torch.zeros(2, 5))
    assert "table" in {tensor.name for tensor in spec_of(fresh, torch.zeros(2, 5)).tensors}
    with pytest.raises(ValueError, match="reads 'kept', a tensor outside the state dict, and never 'table'"):
        spec_of(called, torch.zeros(2, 5))


def test_a_cache_that_training_drops_hides_nothing():
    called = KeptBias().eval()
    called(torch.ones(2, 5))
    kept = called.kept["bias"]
    spec = spec_of(called, torch.zeros(2, 5))
    assert "table" in {tensor.name for tensor in spec.tensors}
    assert check_spec(called, spec, torch.zeros(2, 5), generator()) < 1e-12
    assert called.kept["bias"] is kept and not called.training


def test_plain_tensors_outside_the_state_dict_are_constants():
    network = Written(lambda s, x: s.o(s.a(x).relu() * s.kept[0]), a=nn.Linear(5, 4), o=nn.Linear(4, 2))
    network.kept = [torch.tensor([1.0, 1.0, 2.0, 2.0])]
    assert permuted(network, torch.zeros(2, 5)) == []


def test_entries_that_the_forward_pass_never_reads_are_listed():
    def forward(s, x):
        h = s.a(x).relu()
        return (s.o(h), s.aux(h)) if s.training else s.o(h)

    network = Written(forward, a=nn.Linear(5, 4), o=nn.Linear(4, 2), aux=nn.Linear(4, 2))
    assert spec_of(network, torch.zeros(2, 5)).unread == ("aux.weight", "aux.bias")
    assert spec_of(mlp(5, 4, 2), torch.zeros(2, 5)).unread == ()


class Kept:
    def __init__(self, values):
        self.values = values


def test_units_are_pinned_in_containers_that_are_returned_and_not_in_other_objects():
    def network(wrap):
        return Written(lambda s, x: {"out": s.o(h := s.a(x).relu()), "more": wrap(h)}, a=nn.Linear(5, 4), o=nn.Linear(4, 2))

    assert permuted(network(Kept), torch.zeros(2, 5)) == [4]
    for container in (list, tuple, lambda h: {"h": h}, lambda h: [{"h": (h,)}]):
        assert (
            permuted(
                network(lambda h, container=container: container([h]) if container in (list, tuple) else container(h)), torch.zeros(2, 5)
            )
            == []
        )


def test_inputs_by_keyword_give_the_same_table():
    network = mlp(5, 4, 2)
    assert spec_of(network, {"input": torch.zeros(2, 5)}) == spec_of(network, torch.zeros(2, 5))
    spec = spec_of(network, torch.zeros(2, 5))
    assert check_spec(network, spec, {"input": torch.zeros(2, 5)}, generator()) < 1e-12


@pytest.mark.parametrize(
    ("mask", "groups"),
    [
        (torch.tensor([0.0, 1.0]).view(1, 2, 1, 1) * torch.ones(4, 4).tril(), []),  # the units within them have linear maps
        (torch.ones(1, 1, 4, 4).tril(), [2]),
        (torch.ones(1, 2, 4, 4).tril(), [2]),
        (torch.ones(4, 4).tril().bool(), [2]),
    ],
)
def test_a_mask_pins_the_heads_that_it_tells_apart_only(mask, groups):
    network = Written(lambda s, x: two_heads(s, x, s.mask), mask=mask, **projections())
    assert permuted(network, torch.zeros(2, 4, 8)) == groups
    assert list(spec_of(network, torch.zeros(2, 4, 8)).linear.values()) == [(2, 4), (2, 4)]
    assert check_spec(network, spec_of(network, torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8), generator()) < 1e-12


def test_what_is_changed_in_place_is_no_buffer_of_the_network():
    def forward(s, x):
        mask = s.mask.clone()
        mask[:2] = 0
        return s.o(s.a(x).relu() * mask)

    network = Written(forward, a=nn.Linear(5, 4), o=nn.Linear(4, 2), mask=torch.ones(4))
    assert spec_of(network, torch.zeros(2, 5)).groups("permutation") == {}
    assert network.mask.eq(1).all()

    def spoilt(s, x):
        s.mask[:2] += 1
        return s.o(s.a(x).relu() * s.mask)

    with pytest.raises(ValueError, match="changes 'b_mask', so later calls differ"):
        spec_of(Written(spoilt, a=nn.Linear(5, 4), o=nn.Linear(4, 2), mask=torch.ones(4)), torch.zeros(2, 5))
    assert network.mask.eq(1).all()


@pytest.mark.parametrize("draw", [torch.rand_like, torch.bernoulli, dropout, lambda x: dropout(torch.ones(5))])
def test_random_numbers_are_refused_also_on_inputs_and_constants_alone(draw):
    network = Written(lambda s, x: s.a(x + draw(x.sigmoid())), a=nn.Linear(5, 2))
    with pytest.raises(ValueError, match="random"):
        spec_of(network, torch.zeros(2, 5))


def test_an_index_that_is_computed_is_refused():
    network = Written(lambda s, i: s.o(s.e(i)[torch.arange(2), s.e(i).argmax(1)[:, 0]]), e=nn.Embedding(11, 6), o=nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"aten\.argmax"):
        spec_of(network, torch.tensor([[1, 2, 3], [4, 5, 6]]))


def test_tensors_of_the_default_precision_are_made_in_that_of_the_check():
    network = Written(lambda s, x: s.o(torch.baddbmm(torch.zeros(1, 1, 4), s.a(x), s.a(x).mT) @ x), a=nn.Linear(5, 6), o=nn.Linear(5, 2))
    spec = spec_of(network, torch.zeros(2, 4, 5))
    assert check_spec(network, spec, torch.zeros(2, 4, 5), generator()) < 1e-11
    assert torch.get_default_dtype() == torch.float32


def test_a_weight_that_connects_three_hidden_layers_is_refused():
    parts = {"a": nn.Linear(5, 3), "b": nn.Linear(5, 4), "m": nn.Bilinear(3, 4, 6), "o": nn.Linear(6, 2)}
    network = Written(lambda s, x: s.o(s.m(s.a(x).relu(), s.b(x).tanh())), **parts)
    with pytest.raises(ValueError, match=r"'m.weight' connects the units of 3 layers, but an edge of a graph connects two"):
        spec_of(network, torch.zeros(2, 5))


def diagonal(s, x):
    w = x.clone()
    w.diagonal().copy_(s.a(x[0]).relu())
    return s.o(w)


def diagonal_read_later(s, x):
    m = torch.zeros(4, 4)
    d = m.diagonal()
    m[:, :4] = s.a(x).relu()
    return s.o(m + d)


def old_name_of_a_result(s, x):
    h = s.a(x).relu()
    whole = h[:, :2]
    h.mul_(2)[:, :2].mul_(3)
    return s.o(h + whole.sum())


@pytest.mark.parametrize("forward", [diagonal, diagonal_read_later, old_name_of_a_result])
def test_a_change_that_reaches_memory_with_another_name_is_refused(forward):
    with pytest.raises(ValueError, match=r"which others read\. Use its out-of-place form"):
        spec_of(Written(forward, a=nn.Linear(4, 4), o=nn.Linear(4, 2)), torch.zeros(4, 4))


def test_a_change_of_a_slice_of_a_changed_result_reaches_the_first_value():
    def forward(s, x):
        h = s.a(x).relu()
        h.mul_(2)[:, :2].mul_(s.k)
        return s.o(h)

    network, x = Written(forward, a=nn.Linear(5, 4), k=learned(2), o=nn.Linear(4, 3)), torch.zeros(2, 5)
    assert permuted(network, x) == [2, 2]
    assert check_spec(network, spec_of(network, x), x, generator()) < 1e-12


def test_a_kernel_that_is_one_axis_of_a_tensor_writes_or_reads_but_not_both():
    def forward(groups, *shape):
        return lambda s, x: s.o(nn.functional.conv1d(s.a(x).relu(), s.k.view(*shape), groups=groups).relu().mean(-1))

    layers = {"a": nn.Conv1d(2, 1, 1), "k": learned(4), "o": nn.Linear(4, 2)}
    with pytest.raises(ValueError, match="its weight is one axis of a tensor"):
        spec_of(Written(forward(1, 4, 1, 1), **layers), torch.zeros(3, 2, 5))
    depthwise, x = Written(forward(4, 4, 1, 1), **layers | {"a": nn.Conv1d(2, 4, 1)}), torch.zeros(3, 2, 5)
    assert permuted(depthwise, x) == [4]
    assert check_spec(depthwise, spec_of(depthwise, x), x, generator()) < 1e-12


def test_a_tied_entry_whose_results_are_cut_is_sound():
    network = Written(lambda s, i: nn.functional.linear(s.e(i).tanh(), s.e.weight)[..., :5], e=nn.Embedding(11, 6))
    x = torch.tensor([[1, 2, 3]])
    assert permuted(network, x) == [6]
    assert check_spec(network, spec_of(network, x), x, generator()) < 1e-12


def test_an_index_of_truth_values_is_refused_by_name():
    network = Written(lambda s, x, m: s.a(x)[m], a=nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"captured|an index of truth values"):
        spec_of(network, (torch.zeros(3, 5), torch.tensor([True, False, True])))


def test_random_numbers_with_their_own_probabilities_are_refused():
    network = Written(lambda s, x: s.o(s.a(x) * torch.zeros(4).bernoulli_(torch.full((4,), 0.5))), a=nn.Linear(5, 4), o=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="random numbers"):
        spec_of(network, torch.zeros(3, 5))


def test_one_bias_for_all_units_of_a_product_pins_no_order():
    network = Written(lambda s, x: s.o(torch.addmm(s.b, x, s.w).relu()), w=learned(5, 4), b=learned(1), o=nn.Linear(4, 2))
    x = torch.zeros(3, 5)
    assert permuted(network, x) == [4]
    assert check_spec(network, spec_of(network, x), x, generator()) < 1e-12


class Cast(nn.Sequential):
    """It computes in single precision, whatever it is given."""

    def forward(self, x):
        return self[1](self[0](x.float()).relu())


def test_a_network_that_casts_its_inputs_is_checked_in_single_precision():
    network, x = Cast(nn.Linear(5, 4), nn.Linear(4, 2)), torch.zeros(3, 5)
    spec = spec_of(network, x)
    assert 1e-12 < check_spec(network, spec, x, generator()) < 1e-4
    wrong = replace(spec, sites=tuple(replace(site, sign=site.scaling) for site in spec.sites))
    with pytest.raises(ValueError, match="does not fit Cast"):
        check_spec(network, wrong, x, generator())


def test_entries_that_share_memory_in_another_form_are_refused():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    network[2].weight = nn.Parameter(network[0].weight.data.t())
    with pytest.raises(ValueError, match=r"'0\.weight' and '2.weight' share memory in different forms"):
        spec_of(network, torch.zeros(1, 4))
    rows = nn.Parameter(torch.randn(10, 4))
    parts = Written(lambda s, x: s.o(nn.functional.linear(x, s.a).relu()), a=nn.Parameter(rows.data[:6]), o=nn.Linear(6, 2))
    parts.rest = nn.Parameter(rows.data[6:])
    assert permuted(parts, torch.zeros(1, 4)) == [6]


def shared_layer(s, x):
    for _ in range(3):
        x = s.t(x)
    return s.o(x)


def twice_in_other_forms(s, x):
    return s.b(torch.cat([s.a(x).tanh(), s.c(x).tanh()], 1)) + s.b(x)


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (Written(shared_layer, t=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), o=nn.Linear(8, 3)), torch.zeros(2, 3, 8)),
        (Written(twice_in_other_forms, a=nn.Linear(6, 2), c=nn.Linear(6, 4), b=nn.Linear(6, 3)), torch.zeros(2, 6)),
    ],
)
def test_a_layer_that_is_used_again_in_another_place_is_sound(network, example):
    assert check_spec(network, spec_of(network, example), example, generator()) < 1e-12
