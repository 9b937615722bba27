"""The canonical form keeps the function, finds what was planted, and is the same for all members of an orbit."""

import itertools
import math
from functools import cache

import pytest
import torch
from networks import NETWORKS, mlp
from torch import nn
from torch.utils._pytree import tree_map

from geoflow.canonical import align, balance, canonicalize, centre, dead_units, sphere_rows
from geoflow.canonical.gains import Overlaps, State
from geoflow.canonical.gathering import LARGE, STARTS, TRIAL
from geoflow.canonical.matching import _step, _values, match
from geoflow.canonical.places import nodes_of, places_of
from geoflow.canonical.scaling import incoming
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.symmetry import Symmetry, apply_symmetry, permute, random_symmetry
from geoflow.vector import pack
from geoflow.wiring import spec_of
from geoflow.wiring.check import draw_like, jitter, outputs_of

networks = pytest.mark.parametrize("name", NETWORKS)
ROUNDING = 1e-10  # of some ten layers in float64


@cache
def case(name: str):
    """The network in float64, its spec, an input, and a zoo of three jittered networks."""
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    network = build().double().eval()
    generator = torch.Generator().manual_seed(1)
    inputs = tree_map(lambda x: draw_like(x, generator), example())
    spec = spec_of(network, inputs)
    theta = pack(spec, network.state_dict())
    return network, spec, inputs, torch.stack([jitter(spec, theta, generator) for _ in range(3)])


def small(*widths: int, activation=nn.ReLU) -> NetworkSpec:
    return spec_of(mlp(*widths, activation=activation), torch.zeros(1, widths[0]))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(spec, theta, generator, scaling=True):
    """Every network moved by another symmetry."""
    elements = [random_symmetry(spec, generator) for _ in theta]
    elements = elements if scaling else [Symmetry(g.permutations, {}, g.signs) for g in elements]
    return torch.stack([apply_symmetry(spec, one, g) for one, g in zip(theta, elements, strict=True)])


@networks
def test_the_function_is_kept(name):
    network, spec, inputs, theta = case(name)
    canonical = canonicalize(spec, theta).theta
    for before, after in zip(theta, canonical, strict=True):
        assert (outputs_of(network, spec, before, inputs) - outputs_of(network, spec, after, inputs)).abs().max() <= ROUNDING


@networks
def test_the_form_is_constant_on_orbits_and_idempotent(name, generator):
    _, spec, _, theta = case(name)
    reference = balance(spec, theta[0])
    canonical = canonicalize(spec, theta, reference).theta
    others = torch.cat([moved(spec, theta, generator), canonical])
    assert torch.allclose(canonicalize(spec, others, reference).theta, canonical.repeat(2, 1), rtol=1e-8, atol=1e-10)


def improved(spec, theta, reference) -> torch.Tensor:
    """In which networks the order or the signs of any one group could still be improved, all the rest as it is."""
    places, everyone = places_of(spec), torch.arange(len(theta))
    nodes, better = nodes_of(spec, places), []
    for node in nodes:
        state = State(
            {g: torch.arange(n).repeat(len(theta), 1) for g, n in spec.groups("permutation").items()},
            {g: theta.new_ones(len(theta), n) for g, n in spec.groups("sign").items()},
        )
        overlaps = Overlaps(spec, theta, reference, places, node.touched, theta.dtype)
        better.append(_step(state, overlaps, node, everyone))
    return torch.stack(better).any(0) if better else torch.zeros(len(theta), dtype=torch.bool)


@pytest.mark.parametrize("spec", [small(6, 5, 2), small(3, 6, 6, 6, 6, 2), small(3, 6, 6, 6, 2, activation=nn.Tanh)], ids=str)
def test_no_group_of_an_aligned_network_can_be_improved(spec):
    theta, reference = normal(60, spec.weights), normal(spec.weights, seed=1)
    assert improved(spec, theta, reference).double().mean() > 0.9
    assert not improved(spec, align(spec, theta, reference)[0], reference).any()


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float16, torch.float32)])
def test_zoo_and_reference_may_differ_in_precision(kinds):
    spec = small(40, 5, 2)  # wide: compared by the inner products of its rows
    theta, reference = normal(4, spec.weights).to(kinds[0]), normal(spec.weights, seed=1).to(kinds[1])
    found, symmetry = align(spec, theta, reference)
    exact = align(spec, theta.double(), reference.double())[1]
    assert found.dtype == kinds[0] and torch.equal(symmetry.permutations[0], exact.permutations[0])


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_of_no_units_is_permuted_too():
    spec = small(4, 3, 0)
    theta = normal(2, spec.weights)
    assert torch.equal(permute(spec, permute(spec, theta, {0: torch.tensor([2, 0, 1])}), {0: torch.tensor([1, 2, 0])}), theta)


@networks
def test_the_planted_symmetry_is_found(name, generator):
    _, spec, _, theta = case(name)
    theta = balance(spec, theta)
    found, symmetry = align(spec, moved(spec, theta, generator, scaling=False), theta)
    assert torch.equal(found, theta)
    assert symmetry.factors == {}


@pytest.mark.parametrize("name", ["cnn two tanh", "learned gain"])
def test_signs_are_told_apart_where_units_have_several(name, generator):
    _, spec, _, _ = case(name)
    assert len(spec.groups("sign")) > len(spec.groups("permutation"))
    theta, reference = normal(40, spec.weights), normal(spec.weights, seed=1)
    others = moved(spec, theta, generator, scaling=False)
    assert torch.equal(align(spec, others, theta)[0], theta)
    assert torch.equal(align(spec, others, reference)[0], align(spec, theta, reference)[0])
    assert torch.equal(match(spec, others, reference), match(spec, theta, reference))


@networks
def test_rows_are_balanced(name, generator):
    _, spec, _, theta = case(name)
    assert incoming(spec).keys() == spec.groups("scaling").keys()
    balanced = balance(spec, theta)
    for index in incoming(spec).values():
        assert torch.allclose(balanced[:, index].norm(dim=-1), torch.ones(3, len(index), dtype=torch.float64))
    manifold = Product(spec.weights, sphere_rows(spec))
    manifold.assert_check_point_on_manifold(balanced)
    learned = theta.clone().requires_grad_()
    assert torch.autograd.grad(balance(spec, learned).square().sum(), learned)[0].isfinite().all()
    assert torch.allclose(balance(spec, balanced), balanced, rtol=1e-12, atol=1e-12)
    element = Symmetry(factors=random_symmetry(spec, generator).factors)
    assert torch.allclose(balance(spec, apply_symmetry(spec, theta, element)), balanced, rtol=1e-9, atol=1e-12)


class GainAlongTwoAxes(nn.Module):
    """A gain [tokens, features]: two tokens have a scale of their own, and so has every feature; the last token is read as it is."""

    def __init__(self):
        super().__init__()
        self.enter, self.mix, self.gain = nn.Linear(5, 6, bias=False), nn.Linear(4, 3, bias=False), nn.Parameter(torch.randn(3, 6))
        self.join, self.out = nn.Linear(2, 1, bias=False), nn.Linear(6, 2)

    def forward(self, x):
        tokens = torch.relu(torch.relu(self.mix(torch.relu(self.enter(x)).mT)).mT * self.gain)
        return self.out(tokens[:, 2] + self.join(tokens[:, :2].mT)[..., 0])


def test_a_gain_scaled_along_two_axes_is_balanced(generator):
    spec = spec_of(GainAlongTwoAxes().double(), normal(2, 4, 5))
    assert {index.shape for index in incoming(spec).values()} >= {(2, 6), (6, 1)}  # rows of the two tokens, features of the last
    theta = normal(3, spec.weights)
    balanced = balance(spec, theta)
    for index in incoming(spec).values():
        assert torch.allclose(balanced[:, index].norm(dim=-1), torch.ones((), dtype=torch.float64))
    element = Symmetry(factors=random_symmetry(spec, generator).factors)
    assert torch.allclose(balance(spec, apply_symmetry(spec, theta, element)), balanced, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
def test_residual_groups_are_balanced_at_any_gain(gain):
    """All rows that close no cycle; counting those that do, rows of norm 1 need not exist (see `incoming`)."""
    network, spec, inputs, theta = case("pre norm")
    balanced = balance(spec, gain * theta)
    assert all(torch.allclose(balanced[:, i].norm(dim=-1), torch.ones((), dtype=torch.float64)) for i in incoming(spec).values())
    for before, after in zip(gain * theta, balanced, strict=True):
        out, same = (outputs_of(network, spec, t, inputs) for t in (before, after))
        assert (out - same).abs().max() <= ROUNDING * max(1.0, float(out.abs().max()))


def test_rows_of_an_mlp_are_its_weight_rows():
    spec = small(3, 4, 4, 2)
    first, second = sphere_rows(spec)
    assert torch.equal(first, torch.arange(12).reshape(4, 3))
    assert torch.equal(second, 16 + torch.arange(16).reshape(4, 4))
    (stacked,) = sphere_rows(small(4, 4, 4, 2))
    assert stacked.shape == (8, 4)


def test_a_dead_unit_is_left_as_it_is_and_named():
    spec = small(3, 4, 2)
    theta = normal(2, spec.weights)
    theta[1, 6:9] = 0  # incoming weights of unit 2
    balanced = balance(spec, theta)
    outgoing = 12 + 4 + torch.tensor([2, 6])
    assert torch.equal(balanced[1, [6, 7, 8, 14]], theta[1, [6, 7, 8, 14]]) and torch.equal(balanced[1, outgoing], theta[1, outgoing])
    ((network, site, unit),) = dead_units(spec, theta)
    assert (network, unit) == (1, 2) and site in {s.name for s in spec.sites}
    assert dead_units(spec, theta[0]) == []


def test_a_single_entry_of_zero_is_no_dead_unit():
    spec = spec_of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 4))
    ((units, entries),) = {index.shape for index in incoming(spec).values()}
    assert (units, entries) == (3, 1) and sphere_rows(spec) == ()
    assert dead_units(spec, torch.zeros(2, spec.weights)) == []


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
@pytest.mark.parametrize("widths", [(3, 4, 2), (2, 1, 2)])
def test_one_hidden_layer_is_matched_as_by_brute_force(widths, activation):
    spec = small(*widths, activation=activation)
    theta, reference, units = normal(6, spec.weights, seed=1), normal(spec.weights, seed=2), widths[1]
    signs = itertools.product((1.0, -1.0), repeat=units) if activation is nn.Tanh else [(1.0,) * units]
    orders = [torch.tensor(order) for order in itertools.permutations(range(units))]
    group, sign = (next(iter(spec.groups(s)), None) for s in ("permutation", "sign"))
    gains = [
        apply_symmetry(
            spec,
            theta,
            Symmetry({} if group is None else {group: order}, {}, {} if sign is None else {sign: torch.tensor(s, dtype=theta.dtype)}),
        )
        @ reference
        for order, s in itertools.product(orders, list(signs))
    ]
    assert torch.allclose(align(spec, theta, reference)[0] @ reference, torch.stack(gains).amax(0))


@pytest.mark.parametrize("name", ["mlp tanh", "resnet", "cnn two tanh", "learned gain", "pre norm", "transformer"])
def test_gains_are_those_of_the_moved_networks(name, generator):
    """Also after other groups have moved, in all networks or in some, and products are kept."""
    _, spec, _, theta = case(name)
    theta, reference, places = normal(*theta.shape), normal(spec.weights, seed=1), places_of(spec)
    nodes = [node for node in nodes_of(spec, places) if not node.quadratic]
    overlaps = Overlaps(spec, theta, reference, places, set().union(*(node.touched for node in nodes)), theta.dtype)
    for nets in (torch.arange(3), torch.tensor([0, 2]), torch.arange(3), torch.tensor([1])):
        moves = [random_symmetry(spec, generator) for _ in nets]
        state = State(
            *({g: torch.stack([getattr(m, kind)[g] for m in moves]) for g in getattr(moves[0], kind)} for kind in ("permutations", "signs"))
        )
        terms = apply_symmetry(spec, theta[nets], Symmetry(state.permutations, {}, state.signs)) * reference
        for node in nodes:
            gains = overlaps.gains(state, node, [(place, {}) for place in node.places if place.learned], nets)
            expected = sum(terms[:, spec.offsets[t] : spec.offsets[t] + spec.tensors[t].numel].sum(1) for t in node.touched)
            assert torch.allclose(_values(gains, state, node).sum(1), expected, atol=1e-9)
    assert nodes


@pytest.mark.parametrize("name", ["mlp", "mlp tanh", "resnet", "pre norm", "transformer", "rnn"])
def test_no_sweep_lowers_the_objective(name):
    _, spec, _, theta = case(name)
    theta, learned = normal(*theta.shape), torch.cat([torch.full((t.numel,), float(t.learned)) for t in spec.tensors]).double()
    gains = torch.stack([align(spec, theta, theta[0], sweeps=n)[0] @ (theta[0] * learned) for n in range(5)])
    assert (gains.diff(dim=0) >= -1e-10 * gains[1:].abs()).all()
    assert torch.equal(match(spec, theta, theta[0]), align(spec, theta, theta[0], sweeps=0)[0])


def test_more_sweeps_help_deep_networks():
    spec = small(5, 8, 8, 8, 2)
    theta = normal(20, spec.weights)
    first, last = (align(spec, theta, theta[0], sweeps=n)[0][1:] @ theta[0] for n in (0, 50))
    assert (last - first).max() > 1 and last.mean() > 1.05 * first.mean()


def test_each_network_may_have_its_own_reference():
    spec = small(3, 4, 4, 2)
    theta, references = normal(6, spec.weights), normal(6, spec.weights, seed=1)
    together, _ = align(spec, theta, references)
    alone = [align(spec, one[None], reference)[0] for one, reference in zip(theta, references, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_the_returned_symmetry_is_the_one_applied():
    spec = small(3, 4, 4, 2, activation=nn.Tanh)
    theta = normal(6, spec.weights)
    aligned, symmetry = align(spec, theta, theta[0])
    assert torch.equal(apply_symmetry(spec, theta, symmetry), aligned)
    assert set(symmetry.permutations) == set(spec.groups("permutation")) and set(symmetry.signs) == set(spec.groups("sign"))
    assert not torch.equal(aligned[1:], theta[1:])


def test_the_input_is_not_touched():
    _, spec, _, theta = case("resnet")
    before = theta.clone()
    canonicalize(spec, theta)
    assert torch.equal(theta, before)


def test_the_centre_gathers_a_planted_cluster(generator):
    spec = small(6, 8, 8, 3, activation=nn.GELU)
    true = normal(spec.weights)
    zoo = moved(spec, true + 0.1 * normal(40, spec.weights, seed=1), generator, scaling=False)
    middle = centre(spec, zoo, zoo[0])
    found, _ = align(spec, middle[None], true)
    assert (found[0] - true).norm() / math.sqrt(spec.weights) < 2 * 0.1 / math.sqrt(40)
    aligned = align(spec, zoo, middle)[0]
    assert (aligned - middle).square().mean() < 1.1 * 0.01


def test_the_centre_is_at_least_as_good_as_one_network():
    spec = small(5, 8, 8, 2)
    zoo = normal(30, spec.weights)
    spread = [(align(spec, zoo, r)[0].var(0)).sum() for r in (zoo[0], centre(spec, zoo, zoo[0]))]
    assert spread[1] < spread[0]


def test_the_best_of_several_starts_goes_on(monkeypatch):
    spec = small(5, 8, 8, 2)
    zoo = normal(30, spec.weights)
    assert zoo.numel() < LARGE
    tried = torch.stack([centre(spec, zoo, zoo[start * len(zoo) // STARTS], TRIAL) for start in range(STARTS)]).square().sum(1)
    assert centre(spec, zoo).square().sum() >= tried.max() > tried[0]
    monkeypatch.setattr("geoflow.canonical.gathering.LARGE", zoo.numel() - 1)
    assert torch.equal(centre(spec, zoo), centre(spec, zoo, zoo[0], TRIAL + 20))


def test_precision_follows_the_input():
    spec = small(3, 4, 2)
    theta = normal(5, spec.weights).float()
    canonical = canonicalize(spec, theta)
    assert canonical.theta.dtype == canonical.reference.dtype == torch.float32
    assert torch.allclose(canonical.theta.double(), canonicalize(spec, theta.double()).theta, atol=1e-5)


def test_without_balance_only_order_and_sign_change():
    spec = small(3, 4, 2)
    theta = normal(5, spec.weights)
    assert torch.equal(canonicalize(spec, theta, balance=False).theta.sort().values, theta.sort().values)


def test_a_network_without_symmetries_stays():
    _, spec, _, theta = case("mlp one by one")
    assert torch.equal(align(spec, theta, theta[0])[0], theta)
    linear = small(3, 2)
    theta = normal(4, linear.weights)
    assert torch.equal(canonicalize(linear, theta).theta, theta) and sphere_rows(linear) == ()


def spoiled(value):
    theta = normal(3, small(3, 4, 2).weights)
    theta[1, 13] = value
    return theta


@pytest.mark.parametrize(
    ("theta", "words"),
    [
        (torch.zeros(0, 26), "The zoo is empty"),
        (torch.zeros(1, 26), "at least two networks, not 1"),
        (torch.zeros(2, 25), "vectors of 25 weights, the spec 26"),
        (spoiled(math.nan), "Network 1 of the zoo holds NaN or Inf in '0.bias'"),
        (spoiled(math.inf), "Network 1 of the zoo holds NaN or Inf in '0.bias'"),
    ],
)
def test_bad_zoos_are_named(theta, words):
    with pytest.raises(ValueError, match=words):
        canonicalize(small(3, 4, 2), theta)


def test_one_network_is_aligned_to_a_reference():
    spec = small(3, 4, 2, activation=nn.GELU)
    reference = normal(spec.weights)
    theta = permute(spec, reference, {0: torch.tensor([3, 0, 2, 1])})[None]
    assert torch.equal(canonicalize(spec, theta, reference).theta[0], reference)
    with pytest.raises(ValueError, match="Network 0 of the reference holds NaN"):
        align(spec, theta, reference * math.nan)
