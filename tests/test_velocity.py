"""The fields: equivariant, equal to their PyG twin, independent of width, depth and batch."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from geoflow import apply_symmetry, fit, graph_of, pack, permute, random_symmetry, sample, spec_of, unpack
from geoflow.charting import fit_chart
from geoflow.coordinates import FLOWS
from geoflow.symmetry import Symmetry
from geoflow.velocity import IdentifiedTransformer, MLPVelocity, RelationalTransformer, complete_sizes
from geoflow.velocity.edges import edge_update, exchange
from geoflow.velocity.message_passing import MessagePassingTransformer
from geoflow.zoo.networks import mlp
from tests.networks import NETWORKS

SMALL = RelationalTransformer.Sizes(layers=2, node=16, edge=8, edge_hidden=8, heads=4)


def randomised(graph, sizes=SMALL):
    """A transformer whose heads are not zero, so that every path counts."""
    torch.manual_seed(0)
    field = RelationalTransformer(graph, sizes)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return field


def inputs(graph, nets=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(nets, graph.size, generator=generator), torch.rand(nets, generator=generator)


@pytest.fixture(params=NETWORKS)
def graph(request):
    make, example = NETWORKS[request.param]
    return graph_of(spec_of(make(), example()), extras=1)


def test_the_velocity_moves_with_the_permutations(graph, generator):
    """v(g x) = g v(x) to 1e-5 in float32."""
    field, (x, t) = randomised(graph), inputs(graph)
    move = Symmetry(random_symmetry(graph.spec, generator).permutations)
    weights = graph.spec.weights

    def g(vector):
        return torch.cat([apply_symmetry(graph.spec, vector[:, :weights], move), vector[:, weights:]], 1)

    v = field(graph, x, t)
    assert (field(graph, g(x), t) - g(v)).abs().max() <= 1e-5 * max(1, v.abs().max())
    assert v.std() > 1e-2


def test_an_uncoupled_permutation_does_not_pass_through():
    graph = graph_of(spec_of(mlp(5, [4], 2), torch.zeros(1, 5)))
    field, (x, t) = randomised(graph), inputs(graph)
    rows = graph.blocks[0].index[..., 0]
    moved = x.clone()
    moved[:, rows] = x[:, rows.flip(0)]
    expected = field(graph, x, t)
    expected[:, rows] = expected[:, rows.flip(0)]
    assert (field(graph, moved, t) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_unit_is_the_same_unit_at_all_sites_of_its_group(name):
    """Permuting the tensors of one site alone is no symmetry where other sites share its permutation, and the field sees it."""
    make, example = NETWORKS[name]
    graph = graph_of(spec_of(make(), example()))
    field, (x, t) = randomised(graph), inputs(graph, nets=1)
    v = field(graph, x, t)
    for number in shared_sites(graph.spec):
        order = alone(graph.spec, number)
        change = (field(graph, x[:, order], t) - v[:, order]).abs().max() / v.abs().max()
        moves_nothing = torch.equal(order, torch.arange(graph.size))
        assert moves_nothing or change > 1e-3, f"a lone move of {graph.spec.sites[number]} changes the field by {change:.1g}"


def test_gates_are_told_apart():
    """Exchanging two whole gates of an LSTM is no symmetry, and the field sees it: each gate has a wire of its own kind."""
    make, example = NETWORKS["lstm"]
    spec = spec_of(make(), example())
    graph = graph_of(spec)
    field, (x, t) = randomised(graph), inputs(graph, nets=1)
    entries = unpack(spec, torch.arange(spec.weights).double())
    for name in (name for name in entries if name.startswith("layer.")):
        gates = list(entries[name].chunk(4))
        gates[0], gates[1] = gates[1], gates[0]
        entries[name] = torch.cat(gates)
    order = pack(spec, entries).long()
    v = field(graph, x, t)
    assert (field(graph, x[:, order], t) - v[:, order]).abs().max() > 1e-3 * v.abs().max()


def test_ties_that_were_never_seen_are_named():
    plain, normed = (graph_of(spec_of(network, torch.zeros(2, 5))) for network in (bare(), bare(torch.nn.LayerNorm(4))))
    field = randomised(plain)
    field.node_in.update({part.key: torch.nn.Linear(1, 16) for part in normed.of_units})  # it would know their features
    with pytest.raises(ValueError, match="never seen wires of the kind 'norm'; it knows none"):
        field(normed, *inputs(normed))


def bare(*between):
    return torch.nn.Sequential(torch.nn.Linear(5, 4), *between, torch.nn.Tanh(), torch.nn.Linear(4, 2))


def shared_sites(spec):
    """The sites whose permutation other sites share."""
    groups = [site.permutation for site in spec.sites]
    return [number for number, group in enumerate(groups) if group is not None and groups.count(group) > 1]


def alone(spec, number):
    """Where each coordinate comes from if one site's units are shifted round by one, and no other site's."""
    sites = tuple(replace(site, permutation=len(spec.sites)) if k == number else site for k, site in enumerate(spec.sites))
    shift = torch.arange(spec.sites[number].size).roll(1)
    return permute(replace(spec, sites=sites), torch.arange(spec.weights).double(), {len(spec.sites): shift}).long()


def test_the_blocks_equal_message_passing_on_pyg(graph):
    field, (x, t) = randomised(graph), inputs(graph)
    v = field(graph, x, t)
    assert (MessagePassingTransformer(field)(graph, x, t) - v).abs().max() <= 1e-5 * max(1, v.abs().max())


def test_each_network_of_a_batch_is_treated_alone():
    graph = graph_of(spec_of(mlp(5, [4, 3], 2), torch.zeros(1, 5)))
    field, (x, t) = randomised(graph), inputs(graph, nets=6)
    one_by_one = torch.cat([field(graph, x[i : i + 1], t[i : i + 1]) for i in range(6)])
    assert torch.allclose(field(graph, x, t), one_by_one, atol=1e-6)


@pytest.mark.parametrize("hidden", [[3], [40], [7, 9], [4, 4, 4, 4]])
def test_one_field_serves_every_width_and_depth(hidden):
    field = randomised(graph_of(spec_of(mlp(5, [4, 6], 2), torch.zeros(1, 5))))
    other = graph_of(spec_of(mlp(5, hidden, 2), torch.zeros(1, 5)))
    x, t = inputs(other)
    assert field(other, x, t).shape == x.shape


def test_a_role_that_was_never_seen_is_named():
    field = randomised(graph_of(spec_of(mlp(5, [4], 2), torch.zeros(1, 5))))
    other = graph_of(spec_of(mlp(5, [4, 4], 2), torch.zeros(1, 5)))
    with pytest.raises(ValueError, match="weight:hidden<hidden"):
        field(other, *inputs(other))


def test_other_inputs_than_the_tasks_are_refused():
    field = randomised(graph_of(spec_of(mlp(5, [4], 2), torch.zeros(1, 5))))
    other = graph_of(spec_of(mlp(6, [4], 2), torch.zeros(1, 6)))
    with pytest.raises(ValueError, match="5 units"):
        field(other, *inputs(other))


def test_the_mlp_serves_its_own_architecture_only():
    graph = graph_of(spec_of(mlp(5, [4], 2), torch.zeros(1, 5)))
    other = graph_of(spec_of(mlp(5, [9], 2), torch.zeros(1, 5)))
    field = MLPVelocity(graph, MLPVelocity.Sizes(16))
    assert field(graph, *inputs(graph)).shape == (3, graph.size)
    with pytest.raises(ValueError, match="velocity=transformer"):
        field(other, *inputs(other))


def test_an_identified_field_knows_its_units_and_serves_its_own_widths():
    """Units that are exchanged are other units to it, even where they carry the same numbers."""
    graph, other = (graph_of(spec_of(mlp(5, [n], 2), torch.zeros(1, 5))) for n in (4, 9))
    torch.manual_seed(0)
    field = IdentifiedTransformer(graph, SMALL)
    for head in (*field.edge_out.values(), *field.node_out.values()):
        torch.nn.init.normal_(head.weight)
    v = field(graph, torch.ones(1, graph.size), torch.tensor([0.5]))
    hidden = next(feature for feature in graph.features if feature.site == 1)
    assert v[0, hidden.index].std() > 1e-3
    with pytest.raises(ValueError, match="for 4 units of 'unit1', not for 9"):
        field(other, *inputs(other))


@pytest.mark.parametrize("velocity", ["identified", "mlp"])
def test_transfer_is_refused_by_fields_that_know_units(velocity):
    spec, wide = (spec_of(mlp(5, [n], 2), torch.zeros(1, 5)) for n in (4, 11))
    thetas = torch.randn(20, spec.weights, generator=torch.Generator().manual_seed(0))
    trained = fit(spec, thetas, velocity=velocity, iterations=2, batch=8, progress=False)
    with pytest.raises(ValueError, match="velocity=transformer"):
        sample(trained, 3, spec=wide, steps=2)


@pytest.mark.parametrize("flow", FLOWS)
def test_transfer_gives_networks_of_the_other_width(flow):
    spec, wide = (spec_of(mlp(5, [n], 2), torch.zeros(1, 5)) for n in (4, 11))
    thetas = torch.randn(20, spec.weights, generator=torch.Generator().manual_seed(0))
    trained = fit(spec, thetas, flow=flow, iterations=2, batch=8, progress=False)
    assert sample(trained, 3, spec=wide, steps=2).shape == (3, wide.weights)


@pytest.mark.parametrize(
    ("zoo", "other", "words"),
    [
        ("tanh", "relu", "knows the role 'weight:hidden<hidden:1' as flat coordinates, not on spheres.*use flow=euclidean"),
        ("relu", "tanh", "never seen flat coordinates of the role 'weight:hidden<hidden:1'.*use flow=euclidean"),
        ("tanh", "gelu", None),
    ],
)
def test_spheres_serve_networks_whose_rows_can_be_rescaled_alike(zoo, other, words):
    spec, target = (spec_of(mlp(5, [4, 4], 2, activation), torch.zeros(1, 5)) for activation in (zoo, other))
    thetas = torch.randn(20, spec.weights, generator=torch.Generator().manual_seed(0))
    trained = fit(spec, thetas, flow="geometric", iterations=2, batch=8, progress=False)
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        assert sample(trained, 3, spec=target, steps=2).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("flow", FLOWS)
def test_the_chart_goes_there_and_back(name, flow, generator):
    """theta(point(theta)) is theta; points lie on the manifold; for the normalized flow theta is balanced before."""
    from geoflow import canonicalize

    make, example = NETWORKS[name]
    network = make()
    spec = spec_of(network, example())
    thetas = torch.randn(8, spec.weights, generator=generator, dtype=torch.float64)
    for tensor, offset in zip(spec.tensors, spec.offsets, strict=True):
        if tensor.kind == "running_var":
            thetas[:, offset : offset + tensor.numel].abs_()
    canonical = canonicalize(spec, thetas, balance=FLOWS[flow].balance).theta
    chart = fit_chart(spec, FLOWS[flow], canonical)
    points = chart.point(canonical)
    assert chart.manifold._check_point_on_manifold(points)[0]
    assert torch.allclose(chart.theta(points), canonical, atol=1e-12)


@pytest.fixture
def draw(generator):
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("sources", [1, 3])
def test_the_fused_edge_update_equals_autograd(sources, draw):
    """Value and gradients in float64 against the formula, with sources of each net and sources shared by all."""
    nets, n, m, edge, heads, hidden = 3, 4, 5, 6, 2, 7
    arguments = [draw(edge, nets, n, m), draw(2 * heads, nets, n, m), draw(nets, n, hidden), draw(sources, m, hidden)]
    arguments += [draw(hidden, edge + 2 * heads), draw(edge, hidden)]
    assert torch.autograd.gradcheck(edge_update, arguments)
    e, logits, target, source, mix, back = arguments
    inner = torch.einsum("hc,cbnm->bnmh", mix, torch.cat([e, logits])) + target[:, :, None] + source[:, None]
    expected = e + torch.einsum("ch,bnmh->cbnm", back, inner.relu())
    assert torch.allclose(edge_update(*arguments), expected, atol=1e-12)


@pytest.mark.parametrize(("sources", "listening"), [(1, False), (3, False), (3, True)])
def test_the_fused_exchange_equals_autograd(sources, listening, draw):
    """The same for messages and logits; the formulas are those of its docstring."""
    nets, n, m, edge, heads, width = 3, 4, 5, 6, 2, 3
    arguments = [draw(edge, nets, n, m), draw(4 * heads, edge), draw(4 * heads, nets, n, width), draw(4 * heads, sources, m, width)]
    assert torch.autograd.gradcheck(lambda *a: tuple(out for out in exchange(*a, listening) if out is not None), arguments)
    e, bias, target, source = arguments
    b, b_back, g, g_back = torch.einsum("hc,cbnm->hbnm", bias, e).chunk(4)
    q, key_back, value_back, signed_back = target.chunk(4)
    key, q_back, value, signed = source.chunk(4)
    row, column = b + q @ key.mT / width**0.5, b_back + key_back @ q_back.mT / width**0.5
    to_target = torch.cat([row.softmax(-1) @ value, g @ signed / m**0.5])
    to_source = torch.cat([column.softmax(-2).mT @ value_back, g_back.mT @ signed_back / n**0.5])
    found = exchange(*arguments, listening)
    assert torch.allclose(found[0], torch.cat([row, column]), atol=1e-12)
    assert torch.allclose(found[1], to_target, atol=1e-12)
    assert torch.allclose(found[2], to_source, atol=1e-12) if listening else found[2] is None


@pytest.mark.parametrize(
    ("velocity", "sizes", "message"),
    [
        ("gnn", {}, "Known: transformer, identified, mlp"),
        ("transformer", {"width": 3}, "Known: layers, node, edge, edge_hidden, heads, components"),
        ("transformer", {"layers": 0}, "sizes.layers=0"),
        ("transformer", {"node": 10, "heads": 4}, "multiple"),
    ],
)
def test_wrong_sizes_are_named(velocity, sizes, message):
    with pytest.raises(ValueError, match=message):
        complete_sizes(velocity, sizes)
