"""Large vectors are computed part by part and by views, with the same results as at once."""

import math

import pytest
import torch

from geoflow import graph_of, parts, pieces, spec_of
from geoflow.charting import fit_chart
from geoflow.coordinates import FLOWS
from geoflow.flow import build_flow
from geoflow.manifolds import Product
from geoflow.parts import in_parts, in_sequence, reordered, stretch_of, sums_of, taken
from geoflow.velocity import edges
from geoflow.zoo.networks import mlp
from tests.networks import NETWORKS
from tests.test_velocity import inputs, randomised

CONFIG = {"velocity": "transformer", "sizes": {"layers": 1, "node": 8, "heads": 2}, "seed": 0, "weighting": "balanced"}


@pytest.mark.parametrize("size", [1, 5, 6, 7, 20])
def test_parts_are_joined_to_the_whole(size, monkeypatch, generator):
    a, b, c = (
        torch.randn(2, 3, size, generator=generator),
        torch.randn(size, generator=generator),
        torch.randn(2, 3, 1, generator=generator),
    )

    def function(a, b, c):
        return a.sin() * b + c, a / c

    whole = function(a, b, c)
    monkeypatch.setattr(parts, "PART", 6)
    assert all(torch.equal(one, other) for one, other in zip(in_parts(function, a, b, c), whole, strict=True))
    assert torch.equal(in_parts(lambda a, b: a * b, a, b), a * b)


def test_stretches_are_found():
    assert stretch_of(torch.arange(3, 9).reshape(2, 3, 1)) == slice(3, 9)
    for gap in ([3, 5], [5, 4], [4, 4], []):
        assert stretch_of(torch.tensor(gap, dtype=torch.long)) is None
    x = torch.randn(2, 9)
    for index in (torch.arange(3, 9).reshape(2, 3, 1), torch.tensor([[3], [0]])):
        assert torch.equal(taken(x, index), x[:, index.flatten()])
    assert taken(x, torch.arange(3)).data_ptr() == x.data_ptr() != taken(x, torch.tensor([0, 2])).data_ptr()
    assert in_sequence([torch.arange(4, 6), torch.arange(4).reshape(2, 2)]) == (1, 0)
    assert in_sequence([torch.tensor([0, 2]), torch.tensor([1])]) is None


def test_an_order_passes_gradients_of_all_kinds(generator):
    x, order = torch.randn(3, 5, generator=generator, dtype=torch.double, requires_grad=True), torch.randperm(5, generator=generator)
    back = order.argsort()
    assert torch.equal(reordered(x, order, back), x[:, order])
    assert torch.autograd.gradcheck(lambda x: reordered(x, order, back), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: reordered(x, order, back).square(), x)
    assert torch.equal(torch.func.vmap(lambda x: reordered(x, order, back))(x), x[:, order])


def test_sums_are_those_of_index_add(generator):
    x, group = torch.randn(3, 50, generator=generator), torch.randint(4, (50,), generator=generator)
    assert torch.equal(sums_of(x, group, 4), x.new_zeros(3, 4).index_add_(1, group, x))


# spheres in a vector of 40 coordinates, and how many of these are then not views
CUT = {
    "none": ((), 0),
    "two layers of one width": ((torch.cat([torch.arange(2, 14), torch.arange(20, 32)]).reshape(8, 3),), 0),
    "gains and biases": ((torch.arange(2, 14).reshape(4, 3), torch.arange(20, 26).reshape(2, 3).T), 6),
    "one gap": ((torch.tensor([[0, 1, 3], [4, 5, 6]]),), 6),
    "many gaps": ((torch.arange(40).reshape(2, 20).T[:18],), 40),
}


@pytest.mark.parametrize(("spheres", "loose"), CUT.values(), ids=CUT)
def test_a_vector_is_cut_into_views_where_it_can_be(spheres, loose, monkeypatch, generator):
    monkeypatch.setattr(pieces, "LONG", 10**6)
    whole = Product(40, spheres)
    for name, value in (("LONG", 12), ("FEW", 3 if loose == 40 else 16)):
        monkeypatch.setattr(pieces, name, value)
    monkeypatch.setattr(parts, "PART", 7)
    cut = Product(40, spheres)
    assert sum(math.prod(shape) for shape in cut._pieces.loose) == loose
    x, y, t = cut.random(4, 40, generator=generator), cut.random(4, 40, generator=generator), torch.rand(4, generator=generator)
    assert torch.equal(cut.join(cut.split(x)), x)
    for one, other in zip(cut.interpolate(x, y, t), whole.interpolate(x, y, t), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    for name in ("dist", "cosines", "logmap", "pairwise"):
        assert torch.allclose(getattr(cut, name)(x, y), getattr(whole, name)(x, y), atol=1e-5)
    for index in spheres:
        assert torch.allclose(x[:, index].norm(dim=-1), torch.ones(4, len(index)))


@pytest.mark.parametrize("name", ["mlp tanh", "resnet", "lstm", "transformer"])
@pytest.mark.parametrize("tile", [1, 5, 40])
def test_tiles_of_edges_are_joined_to_the_whole(name, tile, monkeypatch):
    """Value and gradients of the field, whose edges are computed in one tile or in many."""
    make, example = NETWORKS[name]
    graph = graph_of(spec_of(make(), example()))
    field, (x, t) = randomised(graph), inputs(graph)

    def found():
        v = field(graph, x, t)
        return v.detach(), *torch.autograd.grad(v.square().mean(), list(field.parameters()), materialize_grads=True)

    whole = found()
    monkeypatch.setattr(edges, "TILE", tile)
    for one, other in zip(whole, found(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(1, one.abs().max().item()))


@pytest.mark.parametrize("name", ["mlp tanh", "resnet", "lstm"])
def test_a_field_reads_and_writes_views_as_it_does_by_index(name, monkeypatch):
    make, example = NETWORKS[name]
    spec = spec_of(make(), example())
    field, (x, t) = randomised(graph_of(spec)), inputs(graph_of(spec))
    found = field(graph_of(spec), x, t)
    monkeypatch.setattr(parts, "stretch_of", lambda index: None)
    monkeypatch.setattr(parts, "_STRETCHES", {})
    assert torch.equal(field(graph_of(spec), x, t), found)


@pytest.mark.parametrize("prediction", ["preconditioned", "velocity", "endpoint"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_loss_is_the_same_part_by_part(flow, prediction, monkeypatch):
    spec = spec_of(mlp(5, [4], 2), torch.zeros(1, 5))
    made = build_flow(
        fit_chart(spec, FLOWS[flow], torch.randn(20, spec.weights, generator=torch.Generator().manual_seed(0))),
        torch.zeros(spec.weights), CONFIG | {"flow": flow, "prediction": prediction},
    )  # fmt: skip
    chart = made.chart
    made.field = randomised(chart.graph)
    x, dx = (chart.manifold.random(3, chart.graph.size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    t = torch.tensor([0.2, 0.5, 0.7])

    def found():
        loss = made.matching_loss(x, dx, t)
        return loss, *torch.autograd.grad(loss, list(made.field.parameters()), materialize_grads=True)

    whole = found()
    monkeypatch.setattr(parts, "PART", 5)
    for one, other in zip(whole, found(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
