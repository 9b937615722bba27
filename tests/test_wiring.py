"""Laws of the traced table, on every network of the list, and their negatives."""

import copy
import itertools
import json
from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import torch
from networks import NETWORKS, Apply, Residual
from torch import nn
from torch.utils._pytree import tree_map

import geoflow
from geoflow.linear import stretches
from geoflow.spec import KINDS, SYMMETRIES, WIRES, NetworkSpec, Wire
from geoflow.symmetry import Symmetry, apply_symmetry, check_orders, flip, permute, random_symmetry, rescale, transform
from geoflow.vector import check_state, pack, unpack
from geoflow.wiring import check_spec, spec_of
from geoflow.wiring.check import draw_like, jitter, moving_symmetry, outputs_of

ROUNDING = 1e-12  # relative, float64: about 1e4 units in the last place for networks of up to ten layers

# name: sizes of the groups of (permutation, scaling, sign), derived by hand
GROUPS = {
    "mlp": ([16, 16], [16, 16], []),
    "mlp one by one": ([], [1], []),  # one unit cannot be permuted
    "mlp tanh": ([4, 6], [], [4, 6]),
    "mlp gelu": ([4, 6], [], []),
    "mlp leaky": ([4, 6], [4, 6], []),
    "mlp prelu": ([4, 4], [4, 4], []),
    "mlp linear": ([4, 6], [4, 6], [4, 6]),
    "mlp softsign": ([4, 6], [], [4, 6]),
    "mlp tanhshrink": ([4, 6], [], [4, 6]),
    "mlp hardtanh": ([4, 6], [], [4, 6]),
    "mlp batch norm": ([4], [], [4, 4]),  # before and after the gain of the norm
    "mlp dropout": ([4], [4], []),
    "image mlp": ([6], [6], []),
    "cnn": ([4, 5, 6], [4, 6], [5]),
    "cnn channels last": ([4], [4], []),
    "cnn unflatten": ([3], [3], []),
    "cnn grouped": ([4, 4, 4, 2, 2, 4, 2, 2, 2], [4, 4, 4, 2, 2, 4, 2, 2, 2], []),  # a cut at 4 and 8 of the middle 12, by 6 rows
    "cnn depthwise": ([4, 3], [4, 4], [3]),  # a multiplier of 2 moves in pairs; one factor for each pair
    "cnn two tanh": ([6, 6], [], [6, 6, 6]),  # before and after the depthwise convolution: one order, two signs
    "learned gain": ([6, 6], [6], [6, 6, 6]),
    "cnn layer norm": ([4], [4], []),
    "resnet": ([4, 4, 6, 6], [4, 4, 6, 6], [4] * 3 + [6] * 3),  # every convolution has signs of its own before its norm
    "group norm": ([2, 2, 2, 4, 4], [2, 2, 2, 4, 4], [4]),
    "pre norm": ([6, 9, 8], [8, 6, 6], [6, 6]),
    "swiglu": ([6, 5], [6, 5], [6, 5]),  # the gate is pinned, the value is not
    "concat": ([3, 4], [3], [4]),
    "repeated": ([6], [6], []),
    "free": ([6, 7], [6, 7, 6], [6, 6]),
    "lazy": ([4], [4], []),
    "tied": ([6, 8], [8, 6], [6]),  # the embedding is written and read: its scale is pinned
    "mixer": ([6, 7, 8], [6], [6]),
    "attention": ([6, 3], [6], [6]),  # three heads, moved in q, k and v together
    "attention one head": ([], [], []),  # linear maps contain all orders, factors and signs of its units
    "attention multi head": ([6, 3], [6], [6]),
    "rnn": ([4, 4], [], [4, 4]),
    "rnn relu": ([4], [4], []),
    "lstm": ([4] * 4, [], [4] * 4),
    "gru": ([4], [], [4]),
    "unrolled": ([4], [], [4]),
    "gru cell": ([4], [], [4]),
    "tied autoencoder": ([4], [], []),
    "shared keys": ([2], [], []),
    "densenet": ([3, 2, 2], [3, 3, 2, 2], [3, 2, 2]),  # only the last layer meets no batch norm; signs pass a norm
    "pixel shuffle": ([2], [2], []),
    "mobile": ([4, 8, 3], [4], [4, 4, 8, 8]),  # before the three norms, and behind the last
    "split with a one": ([2], [], []),
    "mask for all heads": ([2], [], []),
    "relative bias": ([2], [], []),  # the heads of the learned table move with those of the queries
    "mask of inputs": ([8, 2], [8], [8]),
    "gather of inputs": ([6], [6], []),
    "gather of units": ([6], [6], []),
    "last token": ([6], [6], []),
    "dropout of a constant": ([4], [4], []),
    "constant in place": ([4], [4], []),
    "in place in parts": ([2, 3, 2, 2], [1, 2, 1, 2, 2, 3, 1], []),  # the bias cuts the sum, and the product cuts what it reads
    "joined bias": ([2, 2, 2], [2, 2, 2], []),
    "kernel seen through views": ([4], [4, 4], [4]),
    "product of batches": ([], [], []),
    "sum with a product": ([4], [4, 4], [4]),
    "keywords": ([4], [4], []),
    "cache among outputs": ([4], [4], []),
    "kept bias": ([4], [4], []),
    "root mean square": ([6, 8], [6, 8, 6], [6, 6, 6]),  # the stream, and behind each gain
    "rotary": ([], [], [2]),  # one sign for each pair of rotated units
    "windows": ([4], [4], []),
    "windows added": ([3], [3], []),
    "pixel unshuffle": ([4], [4], []),
    "channel shuffle": ([2, 2, 2, 2], [2, 2, 2, 2], []),
    "transposed in groups": ([2, 2, 3, 3], [2, 2, 3, 3], []),
    "transposed depthwise": ([4], [4, 4], []),
    "bilinear": ([3, 6], [3, 6], []),
    "bag of embeddings": ([6], [6], []),
    "einsum with an ellipsis": ([], [], []),
    "projected lstm": ([4, 4, 3, 3], [3, 3], [4, 4, 3, 3]),  # cells, and what is made of them
    "normed queries": ([2], [], []),
    "slopes of heads": ([], [], []),
    "talking heads": ([2, 2], [], []),  # the mixtures have an order of their own, which the values follow
    "every other copy": ([2], [], []),
    "gain of copies": ([2], [], []),
    "expanded keys": ([2], [], []),
    "low rank pair": ([6], [6], []),
    "chunked projections": ([2], [], []),
    "gain of heads": ([2], [2, 2], [2, 2]),  # before the gain and behind it
    "temperatures of heads": ([2], [2], [2]),  # of the queries, as on the temperatures
    "one key for all heads": ([], [], []),
    "between heads": ([2], [], []),
    "between heads by products": ([2], [], []),
    "one mixture of heads": ([2], [], []),
}
# name: the (heads, width) of the groups of linear maps, derived by hand; all other networks have none
LINEAR = {
    "attention": [(3, 2), (3, 2)],  # queries against keys, values against the output layer
    "attention one head": [(1, 4), (1, 6)],
    "attention multi head": [(3, 2), (3, 2)],
    "transformer": [(2, 3), (2, 3)],
    "masked encoder": [(2, 3)] * 4,
    "shared keys": [(2, 3), (2, 3)],  # the heads of queries that share a head of keys share its matrix
    "split with a one": [(2, 2)],
    "mask for all heads": [(2, 4), (2, 4)],
    "relative bias": [(2, 4), (2, 4)],
    "mask of inputs": [(2, 4), (2, 4)],
    "product of batches": [(1, 4), (1, 3)],
    "normed queries": [(2, 4)],  # of the values; the norm tells the units of queries and keys apart
    "slopes of heads": [(2, 4), (2, 4)],
    "talking heads": [(2, 4), (2, 4)],
    "expanded keys": [(2, 3), (2, 3)],
    "low rank pair": [(1, 2)],
    "chunked projections": [(2, 3), (2, 3)],
    "gain of heads": [(2, 4)],  # of queries and keys; the values keep the factors of heads
    "temperatures of heads": [(2, 4)],  # of the values, as above
    "one key for all heads": [(1, 4), (2, 4)],  # one matrix for the queries and keys of all heads
    "one mixture of heads": [(2, 4)],
    "rotary": [(1, 3)],  # of the values; positions rotate the pairs of queries and keys
    "einsum with an ellipsis": [(1, 4), (1, 3)],
}
ACTIONS = {
    "permutation": lambda spec, theta, g: permute(spec, theta, g.permutations),
    "scaling": lambda spec, theta, g: rescale(spec, theta, g.factors),
    "sign": lambda spec, theta, g: flip(spec, theta, g.signs),
}
PARTS = {"permutation": "permutations", "scaling": "factors", "sign": "signs"}


@cache
def traced(name: str) -> tuple[nn.Module, NetworkSpec, torch.Tensor]:
    build, example = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build().double().eval()
    draw = generator()
    x = tree_map(lambda given: draw_like(given, draw), example())
    return network, spec_of(network, x), x


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights_of(name: str) -> torch.Tensor:
    network, spec, _ = traced(name)
    return jitter(spec, pack(spec, network.state_dict()), generator(1))


def change(name: str, moved: torch.Tensor) -> float:
    network, spec, x = traced(name)
    before, after = (outputs_of(network, spec, theta, x) for theta in (weights_of(name), moved))
    return float((after - before).abs().max() / before.abs().max())


every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_unpack_undoes_pack(name):
    network, spec, _ = traced(name)
    state = unpack(spec, pack(spec, network.state_dict()))
    twin = copy.deepcopy(network)
    twin.load_state_dict(state, strict=True)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in twin.state_dict().items())
    check_state(spec, state)


@every_network
def test_every_scalar_is_packed_once(name):
    _, spec, _ = traced(name)
    theta = torch.arange(float(spec.weights), dtype=torch.float64)
    state = unpack(spec, theta)
    held = torch.cat([state[entry].flatten() for entry in state if entry not in spec.rest and entry not in dict(spec.aliases)])
    assert torch.equal(held.sort().values, theta)


@every_network
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_declared_symmetries_keep_the_function(name, symmetry):
    _, spec, _ = traced(name)
    for seed in range(2):
        moved = ACTIONS[symmetry](spec, weights_of(name), random_symmetry(spec, generator(seed)))
        assert change(name, moved) < ROUNDING


@every_network
def test_declared_groups_move_the_weights(name):
    _, spec, _ = traced(name)
    theta, n = weights_of(name), {symmetry: spec.groups(symmetry) for symmetry in SYMMETRIES}
    for group, size in n["permutation"].items():
        assert not torch.equal(permute(spec, theta, {group: torch.arange(size).roll(1)}), theta)
    for group, size in n["scaling"].items():
        assert not torch.equal(rescale(spec, theta, {group: torch.full((size,), 2.0)}), theta)
    for group, size in n["sign"].items():
        assert not torch.equal(flip(spec, theta, {group: -torch.ones(size)}), theta)


@pytest.mark.parametrize(
    ("symmetry", "values", "message"),
    [
        ("permutation", [0, 0, 2, 3], "permutation group 0 .* unit 1 is missing"),
        ("permutation", [0, 1, 3, 4], "permutation group 0 .* unit 2 is missing"),
        ("permutation", [[3, 2, 1, 0], [0, -1, 2, 1]], "permutation group 0 .* unit 3 is missing"),
        ("scaling", [1.0, 1.0, 0.0, 1.0], "scaling group 0 has 0"),
        ("sign", [1.0, 0.5, -1.0, 1.0], "sign group 0 has 0.5"),
        ("sign", [1.0, float("nan"), -1.0, 1.0], "sign group 0 has nan"),
        ("sign", [[1, 1, -1, 1], [1, 1, 0, 1]], "sign group 0 has 0"),
    ],
)
def test_what_is_no_symmetry_is_refused(symmetry, values, message):
    _, spec, _ = traced("mlp linear")
    element = Symmetry(**{PARTS[symmetry]: {0: torch.tensor(values)}})
    for act in (ACTIONS[symmetry], apply_symmetry):
        with pytest.raises(ValueError, match=message):
            act(spec, weights_of("mlp linear"), element)


@every_network
def test_many_networks_permuted_at_once_are_each_permuted_alone(name, monkeypatch):
    monkeypatch.setattr("geoflow.symmetry.CHUNK", 40)  # two networks at most have so few entries
    _, spec, _ = traced(name)
    theta = torch.stack([weights_of(name) + i for i in range(5)])
    own = [random_symmetry(spec, generator(seed)).permutations for seed in range(5)]
    together = permute(spec, theta, {group: torch.stack([one[group] for one in own]) for group in spec.groups("permutation")})
    assert torch.equal(together, torch.stack([permute(spec, one, orders) for one, orders in zip(theta, own, strict=True)]))


@every_network
def test_a_permutation_of_one_tensor_alone_changes_the_function(name):
    _, spec, _ = traced(name)
    theta = weights_of(name)
    for group, size in spec.groups("permutation").items():
        moved = permute(spec, theta, {group: torch.arange(size).roll(1)})
        touched = [
            i for i, t in enumerate(spec.tensors) if t.kind == "weight" and not torch.equal(*(part(spec, v, i) for v in (theta, moved)))
        ]
        for i in touched[:2]:
            alone = theta.clone()
            part(spec, alone, i).copy_(part(spec, moved, i))
            assert change(name, alone) > 1e-6


def part(spec: NetworkSpec, theta: torch.Tensor, index: int) -> torch.Tensor:
    return theta.narrow(-1, spec.offsets[index], spec.tensors[index].numel)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_those_derived_by_hand(name):
    _, spec, _ = traced(name)
    assert tuple(sorted(spec.groups(symmetry).values()) for symmetry in SYMMETRIES) == tuple(map(sorted, GROUPS[name]))


@every_network
def test_linear_groups_are_those_derived_by_hand(name):
    assert sorted(traced(name)[1].linear.values()) == sorted(LINEAR.get(name, []))


@pytest.mark.parametrize("name", LINEAR)
def test_linear_maps_keep_the_function_and_move_the_weights(name):
    """Each group alone, and not if a map multiplies what it should divide."""
    _, spec, _ = traced(name)
    theta = weights_of(name)
    for group, matrix in random_symmetry(spec, generator()).linear.items():
        moved = transform(spec, theta, {group: matrix})
        assert change(name, moved) < ROUNDING
        assert not torch.allclose(moved, theta)
        alike = replace(spec, sites=tuple(replace(site, dual=False) for site in spec.sites))
        if any(site.dual for site in spec.sites if site.linear == group):
            assert change(name, transform(alike, theta, {group: matrix})) > 1e-6
        for index in {stretch.tensor for stretch in stretches(spec) if stretch.group == group}:
            alone = theta.clone()
            part(spec, alone, index).copy_(part(spec, moved, index))
            assert change(name, alone) > 1e-6 or spec.tensors[index].kind == "bias"  # a softmax does not see a bias of keys


@pytest.mark.parametrize("name", LINEAR)
def test_linear_maps_contain_orders_factors_and_signs_inside_vectors(name):
    """So the table does not declare these by themselves, and the sites of a group have one shape."""
    _, spec, _ = traced(name)
    for site in spec.sites:
        if site.linear is not None:
            assert (site.scaling, site.sign) == (None, None) and (site.permutation is None or site.inner)
            assert spec.linear[site.linear] == (site.heads, site.width)
    assert list(spec.linear) == list(range(len(spec.linear)))
    tensors = [(stretch.tensor, stretch.axis) for stretch in stretches(spec)]
    assert len({tensor for tensor, _ in tensors}) == len(set(tensors))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({0: torch.eye(4)[None]}, None),
        ({2: torch.eye(4)[None]}, "no linear group 2"),
        ({0: torch.eye(6)[None]}, r"no linear group 0 with matrices \[1, 6, 6\]"),
        ({0: torch.zeros(1, 4, 4)}, "head 0 of group 0"),
        ({1: torch.full((3, 1, 6, 6), float("nan"))}, "head 0 of group 1"),
    ],
)
def test_a_linear_map_needs_an_inverse(maps, message):
    _, spec, _ = traced("attention one head")
    for act in (transform, lambda spec, theta, maps: apply_symmetry(spec, theta, Symmetry(linear=maps))):
        if message is None:
            assert torch.equal(act(spec, weights_of("attention one head"), maps), weights_of("attention one head"))
        else:
            with pytest.raises(ValueError, match=message):
                act(spec, weights_of("attention one head"), maps)


def test_every_network_of_a_zoo_may_have_its_own_maps():
    _, spec, _ = traced("shared keys")
    theta = torch.stack([weights_of("shared keys") + i for i in range(3)])
    own = [random_symmetry(spec, generator(seed)) for seed in range(3)]
    together = transform(spec, theta, {g: torch.stack([one.linear[g] for one in own]) for g in spec.linear})
    alone = torch.stack([transform(spec, one, move.linear) for one, move in zip(theta, own, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-14, atol=1e-14)
    assert transform(spec, theta[0], {0: torch.stack([one.linear[0] for one in own])}).shape == theta.shape


@every_network
def test_the_table_is_consistent(name):
    _, spec, _ = traced(name)
    for symmetry in SYMMETRIES:
        assert list(spec.groups(symmetry)) == list(range(len(spec.groups(symmetry))))
        assert all(spec.groups(symmetry)[getattr(s, symmetry)] == s.size for s in spec.sites if getattr(s, symmetry) is not None)
    assert all((s.permutation, s.scaling, s.sign) == (None, None, None) for s in spec.sites if s.role != "hidden")
    for tensor in spec.tensors:
        assert tuple(sum(p.size * p.repeat for p in axis) for axis in tensor.axes) == tensor.shape
        assert tensor.kind in KINDS
        for piece in (piece for axis in tensor.axes for piece in axis):
            assert all(spec.sites[site].size == piece.size for site in (piece.writes, piece.reads) if site is not None)
    for wire in spec.wires:
        assert wire.kind in WIRES and wire.source != wire.target
        assert spec.sites[wire.source].size == spec.sites[wire.target].size
    assert len({frozenset((wire.source, wire.target)) for wire in spec.wires}) == len(spec.wires)


@every_network
def test_wires_connect_every_permutation_group(name):
    """And they join no sites that are permuted apart."""
    _, spec, _ = traced(name)
    group = [site.permutation for site in spec.sites]
    assert all(group[wire.source] == group[wire.target] for wire in spec.wires)
    for number in spec.groups("permutation"):
        first, *others = (site for site, of in enumerate(group) if of == number)
        reached = {first}
        for _ in others:
            reached |= {end for wire in spec.wires if reached & {wire.source, wire.target} for end in (wire.source, wire.target)}
        assert reached == {first, *others}


@every_network
def test_a_wire_lies_under_every_diagonal_tensor(name):
    _, spec, _ = traced(name)
    wires = {(wire.source, wire.target) for wire in spec.wires}
    pieces = [piece for tensor in spec.tensors for axis in tensor.axes for piece in axis]
    assert {(piece.reads, piece.writes) for piece in pieces if None not in (piece.reads, piece.writes)} <= wires


@every_network
def test_json_round_trip(name):
    _, spec, _ = traced(name)
    assert NetworkSpec.from_json(spec.to_json(), spec.rest) == spec


def test_a_table_written_before_there_were_constants_is_read():
    _, spec, _ = traced("mlp")
    table = json.loads(spec.to_json())
    assert table.pop("constants") == []
    assert NetworkSpec.from_json(json.dumps(table), spec.rest) == spec


@every_network
def test_check_spec_agrees(name):
    network, spec, x = traced(name)
    assert check_spec(network, spec, x, generator()) < ROUNDING


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "group norm", "cnn depthwise", "attention", "lstm", "projected lstm", "tied"])
def test_check_spec_catches_a_corrupted_axis(name):
    network, spec, x = traced(name)
    for index, tensor in enumerate(spec.tensors):
        for axis, pieces in enumerate(tensor.axes):
            owners = [p.reads if p.writes is None else p.writes for p in pieces]
            if tensor.kind != "weight" or all(spec.group_of(owner, "permutation") is None for owner in owners):
                continue
            blind = tuple(replace(p, writes=None, reads=None) for p in pieces)
            wrong = replace(tensor, axes=(*tensor.axes[:axis], blind, *tensor.axes[axis + 1 :]))
            tensors = (*spec.tensors[:index], wrong, *spec.tensors[index + 1 :])
            with pytest.raises(ValueError, match="a declared symmetry changes its output by"):
                check_spec(network, replace(spec, tensors=tensors), x, generator())


def test_the_symmetry_of_a_check_moves_every_unit():
    """Units that a random order leaves in their places would hide an error in their axes."""
    for name, seed in itertools.product(("lstm", "projected lstm", "shared keys", "learned gain"), range(20)):
        spec = traced(name)[1]
        drawn = moving_symmetry(spec, generator(seed))
        check_orders(spec, drawn.permutations)
        assert all((order != torch.arange(len(order))).all() for order in drawn.permutations.values())
        assert all((signs == -1).any() for signs in drawn.signs.values())
        assert [*drawn.permutations, *drawn.factors, *drawn.signs] == [g for symmetry in SYMMETRIES for g in spec.groups(symmetry)]


def test_an_undeclared_scaling_changes_the_function():
    network, spec, x = traced("mlp gelu")
    loose = replace(spec, sites=tuple(replace(site, scaling=site.permutation) for site in spec.sites))
    with pytest.raises(ValueError, match="does not fit Sequential"):
        check_spec(network, loose, x, generator())


class Amplified(nn.Sequential):
    """Its output turns by one radian when a hidden unit changes by 1e-8, so rounding by 1e-16 is seen in the eighth digit."""

    precisions: ClassVar[set] = set()

    def forward(self, x):
        shift = torch.full((3,), 0.1)  # a tensor of its own
        self.precisions.add(shift.dtype)
        return torch.sin(1e8 * (super().forward(x) + shift))


def test_a_network_that_amplifies_rounding_is_checked_up_to_that():
    network, x = Amplified(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)), torch.zeros(4, 5)
    spec = spec_of(network, x)
    Amplified.precisions.clear()
    changes = [check_spec(network, spec, x, generator(seed)) for seed in range(10)]
    assert 1e-8 < max(changes) < 1e-4 and Amplified.precisions == {torch.float64}
    wrong = replace(spec, sites=tuple(replace(site, sign=site.scaling) for site in spec.sites))
    with pytest.raises(ValueError, match="does not fit Amplified"):
        check_spec(network, wrong, x, generator())


def test_tracing_leaves_the_network_alone():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))
    network[2].eval()
    network[0].weight.requires_grad_(False)
    network(torch.randn(2, 1, 4, 4)).sum().backward()
    calls = []
    network[0].register_forward_hook(lambda *_: calls.append(1))
    state, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    calls.clear()
    spec = spec_of(network, torch.zeros(1, 1, 4, 4))
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all((p.grad is None and g is None) or torch.equal(p.grad, g) for p, g in zip(network.parameters(), grads, strict=True))
    assert len(network[0]._forward_hooks) == 1
    assert spec.tensors[0].learned and not next(t for t in spec.tensors if t.kind == "running_var").learned
    assert all(not value.requires_grad for value in spec.rest.values())


def test_roles_names_and_repeats_of_a_cnn():
    _, spec, _ = traced("cnn")
    assert [(s.name, s.size, s.role) for s in spec.sites] == [
        *(("input", 1, "input"), ("0", 4, "hidden"), ("3", 5, "hidden"), ("6.0", 6, "hidden"), ("6.2", 2, "output")),
    ]
    flat = next(t for t in spec.tensors if t.name == "6.0.weight")
    assert [(p.size, p.repeat, p.reads) for p in flat.axes[1]] == [(5, 4, 2)]


def test_an_image_read_flat_is_one_input_site():
    _, spec, _ = traced("image mlp")
    assert [(s.size, s.role) for s in spec.sites] == [(49, "input"), (6, "hidden"), (2, "output")]


def test_an_input_read_twice_is_one_site():
    _, spec, _ = traced("repeated")
    assert [s.size for s in spec.sites if s.role == "input"] == [5]


def test_groups_of_a_convolution_are_rows_of_one_entry():
    _, spec, _ = traced("cnn grouped")
    rows = [(t.start, t.shape[0]) for t in spec.tensors if t.name == "2.weight"]
    assert rows == [(0, 6), (6, 6)]
    assert len([t for t in spec.tensors if t.name == "2.bias"]) == 1


@pytest.mark.parametrize(
    ("name", "wires"),
    [
        ("mlp", []),
        ("mlp batch norm", [("0", "norm", "1")]),
        ("mlp plain batch norm", []),
        ("pre norm", [("0", "norm", "1.branch.0"), ("1.branch.3", "sum", "0"), ("2.branch.2", "sum", "0"), ("0", "norm", "3")]),
        ("swiglu", [("1.branch.up", "product", "1.branch.up"), ("1.branch.down", "sum", "0")]),
        ("cnn depthwise", [("0", "depthwise", "2")]),
        ("learned gain", [("enter", "gain", "mul")]),
        ("attention one head", [("q", "contraction", "k")]),
        ("lstm", [("layer", f"gate {gate}", "layer") for _ in range(4) for gate in (0, 1, 3)]),
    ],
)
def test_wires_are_directed_as_the_data_flow(name, wires):
    _, spec, _ = traced(name)
    assert [(spec.sites[wire.source].name, wire.kind, spec.sites[wire.target].name) for wire in spec.wires] == wires


def test_a_table_written_before_there_were_wires_keeps_its_additions():
    _, spec, _ = traced("pre norm")
    table = json.loads(spec.to_json())
    del table["wires"]
    old = NetworkSpec.from_json(json.dumps(table | {"links": [[0, 4]]}), spec.rest)
    assert old.wires == (Wire(0, 4, "sum"),) and old.tensors == spec.tensors


def test_unused_entries_counters_and_constants_rest():
    network, spec, _ = traced("lazy")
    assert set(spec.rest) == {"steps", "mean", "unused.weight", "unused.bias"} and spec.constants == ("mean",)
    assert spec.rest["steps"].data_ptr() != network.steps.data_ptr()


def test_tied_entries_are_packed_once():
    network, spec, _ = traced("tied")
    assert spec.aliases == (("head.weight", "embedding.weight"),)
    state = dict(network.state_dict())
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(ValueError, match="one tensor in the traced network"):
        check_state(spec, state)


def test_tied_entries_that_nothing_reads_rest():
    network = Residual(nn.Linear(3, 2), Apply(lambda x: x[:, :2]))
    network.a, network.b = nn.Linear(2, 2), nn.Linear(2, 2)
    network.b.weight = network.a.weight
    spec = spec_of(network, torch.zeros(2, 3))
    assert set(unpack(spec, pack(spec, network.state_dict()))) == set(network.state_dict())


def test_leading_axes_are_kept():
    _, spec, _ = traced("resnet")
    theta = torch.stack([weights_of("resnet")] * 3).reshape(3, 1, -1)
    state = unpack(spec, theta)
    assert state["0.weight"].shape == (3, 1, 4, 3, 3, 3)
    assert torch.equal(pack(spec, state), theta)


def test_examples_of_one_and_of_many_agree():
    network, spec, _ = traced("resnet")
    assert spec_of(network, torch.zeros(1, 3, 8, 8).double()) == spec


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def overwritten(x):
    part = x.t()
    part.relu_()
    return x * 2


FAILURES = {
    "unknown operation": (Apply(torch.fft.rfft), r"No wiring rule for aten.fft_rfft at '1'.*Register one with @rule, or pass a spec"),
    "data in the flow": (Branching(), r"forward pass of Sequential cannot be captured: .*data-dependent"),
    "computed weight": (
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "No wiring rule for aten._weight_norm at '1.param",
    ),
    "orthogonal weight": (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "No wiring rule for aten"),
    "dropout that stays": (Apply(nn.functional.dropout), r"aten.dropout at '1': .*random"),
    "noise": (Apply(lambda x: x + torch.randn(4)), r"aten.randn at '1': random numbers"),
    "state that changes": (Counting(), "calls"),
    "shared memory": (Apply(overwritten), "'relu_' at '1' changes 't', which others read"),
    "quantised": (Apply(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)), "No wiring rule for aten.fake_quantize"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_errors_name_the_culprit(name):
    layer, message = FAILURES[name]
    with pytest.raises(ValueError, match=message):
        spec_of(nn.Sequential(nn.Linear(3, 4), layer), torch.zeros(2, 3))


def test_a_failed_capture_keeps_its_cause():
    with pytest.raises(ValueError) as caught:
        spec_of(Branching(), torch.zeros(2, 3))
    assert caught.value.__cause__ is not None


# Functions between two linear maps whose rules are easy to get wrong: whatever is declared must hold.
BETWEEN = {
    "scalar": lambda h: 3 * h - h / 2,
    "negative scale, then relu": lambda h: (-h).relu(),
    "shift": lambda h: (h + 1).relu(),
    "constant": lambda h: h.relu() + torch.arange(6.0).to(h),
    "uniform constant": lambda h: h.tanh() * torch.full((6,), 2.0).to(h) + torch.ones(6).to(h),
    "mask": lambda h: h.relu() * torch.tensor([1.0, 0, 1, 0, 1, 1]).to(h),
    "square": lambda h: h * h,
    "power": lambda h: h.relu() ** 2,
    "clamp": lambda h: h.clamp(-1, 1) + h.clamp(min=0),
    "absolute": lambda h: h.abs() + h,
    "norm": lambda h: h / h.norm(dim=-1, keepdim=True),
    "maximum": lambda h: torch.maximum(h, 2 * h),
    "softmax": lambda h: h.softmax(-1) + h,
    "softmax over examples": lambda h: h.softmax(0),
    "sum": lambda h: h + h.sum(-1, keepdim=True),
    "largest": lambda h: h.relu() - h.amax(-1, keepdim=True),
    "halves": lambda h: torch.cat([h[:, 3:], h[:, :3]], -1).relu(),
    "swapped halves": lambda h: torch.cat([h[:, 3:], h[:, :3]], -1).relu() + h,
    "every second": lambda h: torch.cat([h[:, ::2], h[:, 1::2]], -1).relu(),
    "thirds": lambda h: torch.cat([part.relu() if i else part.tanh() for i, part in enumerate(h.split(2, -1))], -1),
    "one unit": lambda h: h.relu() * h[:, :1].tanh(),
    "selected": lambda h: h.relu() + h.select(1, 2).unsqueeze(-1),
    "unbound": lambda h: torch.stack(h.unbind(-1), -1).relu(),
    "shuffled": lambda h: h.reshape(-1, 2, 3).transpose(1, 2).reshape(-1, 6).relu(),
    "blocks": lambda h: h.view(-1, 2, 3).relu().flatten(1),
    "blocks summed": lambda h: (h.view(-1, 2, 3) + h.view(-1, 2, 3).mean(2, keepdim=True)).flatten(1),
    "blocks and plain": lambda h: h.view(-1, 2, 3).relu().flatten(1) + h,
    "repeated": lambda h: h[:, :3].repeat(1, 2).relu(),
    "outer": lambda h: (h[:, :, None] * h[:, None, :]).sum(-1),
    "outer of parts": lambda h: (h[:, :2, None].relu() * h[:, None, 2:5].tanh()).flatten(1),
    "gram": lambda h: h @ h.mT @ h,
    "where": lambda h: torch.where(h > 0, h, 2 * h),
    "masked": lambda h: h.masked_fill(h < 0, 0.0),
    "padded": lambda h: nn.functional.pad(h[:, 1:5], (1, 1)).relu() + h,
    "padded with ones": lambda h: nn.functional.pad(h[:, 1:5], (1, 1), value=1.0).relu(),
    "in place": lambda h: h.relu_().mul_(2).add_(h),
    "flipped": lambda h: h + h.mean(0, keepdim=True),
    "standardised": lambda h: (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-5).sqrt(),
    "expanded": lambda h: h[:, None].expand(-1, 2, -1).mean(1).tanh(),
    "rolled": lambda h: h.roll(1, -1).relu() + h.flip(0),
    "rolled flat": lambda h: h.roll(1).relu(),
    "whole numbers": lambda h: (3 * h).to(torch.int64).to(h.dtype) + h.relu(),
    "einsum": lambda h: torch.einsum("ni,mi->nm", h, h) @ h,
    "einsum outer": lambda h: torch.einsum("ni,nj->nij", h.relu(), h.tanh()).mean(1),
    "einsum gate": lambda h: torch.einsum("ni,ni->ni", h, h.sigmoid()),
    "like": lambda h: torch.zeros_like(h) + h.relu() * torch.ones_like(h),
    "new": lambda h: torch.cat([h.new_zeros(4, 1), h[:, 1:]], 1),
    "beside zeros": lambda h: torch.cat([h.new_zeros(2, 6), h], 0).mean(0, keepdim=True).relu(),
    "beside ones": lambda h: torch.cat([h.new_ones(2, 6), h], 0).mean(0, keepdim=True).relu(),
    "beside numbers": lambda h: torch.cat([torch.arange(6.0)[None].to(h), h], 0).mean(0, keepdim=True).relu(),
    "broadcast constant": lambda h: h[:1].relu() * torch.ones(3, 1).to(h),
    "broadcast more": lambda h: (h[:, None] * torch.tensor([[1.0], [2.0]]).to(h)).flatten(1).unflatten(1, (2, 6)).sum(1),
    "half the parts": lambda h: torch.cat([h[:, :2], torch.cat([h, h], 1)[:, 4:8]], 1).relu(),
    "batch squeezed": lambda h: h.unsqueeze(0).squeeze(0).unsqueeze(-1).squeeze(-1).relu(),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_whatever_is_declared_holds(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU() if name == "in place" else nn.Identity(), Apply(BETWEEN[name]), nn.Linear(6, 3))
    x = torch.zeros(4, 5)
    spec = spec_of(network, x)
    for seed in range(4):
        assert check_spec(network, spec, x, generator(seed)) < 1e-11


def test_the_package_exports_the_same_functions():
    assert geoflow.spec_of is spec_of
    assert isinstance(random_symmetry(traced("mlp")[1], generator()), Symmetry)
