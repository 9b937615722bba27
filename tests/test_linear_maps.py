"""Matrices of heads: both factors of their products are balanced, and whatever was planted is found again."""

import itertools
from dataclasses import replace

import pytest
import torch
from networks import Written, projections
from scipy.linalg import orthogonal_procrustes
from test_canonical import case, moved, normal
from test_wiring import LINEAR, traced
from torch.nn.functional import scaled_dot_product_attention

from geoflow.canonical import align, balance, balance_products, canonicalize
from geoflow.canonical.products import maps_back
from geoflow.linear import stretches, vectors
from geoflow.symmetry import apply_symmetry, random_symmetry, transform
from geoflow.vector import pack
from geoflow.wiring import spec_of
from geoflow.wiring.check import outputs_of
from geoflow.zoo.networks.transformers import Bert, ViT

mapped = pytest.mark.parametrize("name", LINEAR)


def sides(spec, theta, group):
    """All vectors of each head that the maps of a group multiply, and those that they divide, as columns."""
    parts = [[vectors(spec, theta, s) for s in stretches(spec) if s.group == group and s.dual == dual] for dual in (False, True)]
    return [torch.cat(part, -1) for part in parts]


def of_heads(heads: int, width: int = 12):
    """Attention on given inputs whose outputs are given too, so that only the heads can be moved."""

    def forward(s, x):
        q, k, v = (part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (s.q, s.k, s.v))
        return s.o(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    network = Written(forward, **projections(width)).double()
    return network, spec_of(network, torch.zeros(2, 5, width).double())


@mapped
def test_both_factors_of_a_product_are_equally_large(name):
    """Their squares are equal matrices, whose eigenvalues are the singular values of the product, formed here as a whole."""
    _, spec, _, theta = case(name)
    balanced = balance(spec, theta)
    for group, (_, width) in spec.linear.items():
        (x, y), (a, b) = (sides(spec, nets, group) for nets in (balanced, theta))
        assert torch.allclose(x @ x.mT, y @ y.mT, atol=1e-12)
        c = sides(spec, balance_products(spec, theta), group)[0]
        values = torch.linalg.svdvals(a.mT @ b)
        seen = torch.linalg.eigvalsh(c @ c.mT).flip(-1)
        count = min(width, values.shape[-1])
        assert torch.allclose(seen[..., :count], values[..., :count], atol=1e-10) and (seen[..., count:].abs() < 1e-10).all()


@mapped
def test_products_that_are_balanced_stay(name, generator):
    _, spec, _, theta = case(name)
    balanced = balance_products(spec, theta)
    assert torch.allclose(balance_products(spec, balanced), balanced, atol=1e-12)
    maps = random_symmetry(spec, generator).linear
    again = balance_products(spec, transform(spec, theta, maps))
    for group in spec.linear:  # the same up to a rotation of each head
        assert all(
            torch.allclose(a.mT @ a, b.mT @ b, atol=1e-9) for a, b in zip(*(sides(spec, t, group) for t in (again, balanced)), strict=True)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_balancing_in_half_precision_loses_no_more_than_rounding(dtype):
    """A head of 64 units has directions that count for a few percent of its product."""
    spec = of_heads(1, 64)[1]
    theta = normal(2, spec.weights).to(dtype)
    exact, found = (balance_products(spec, one).double() for one in (theta.double(), theta))
    assert (found - exact).norm() < 8 * torch.finfo(dtype).eps * exact.norm()


@mapped
def test_maps_lead_back_from_balanced_products(name):
    """Where the product has full rank. Else what was there in some direction is lost, and the map is the identity."""
    _, spec, _, theta = case(name)
    balanced = balance_products(spec, theta)
    back = maps_back(spec, theta, balanced)
    returned = transform(spec, balanced, back)
    for group, (_, width) in spec.linear.items():
        (x, y), (a, b) = (sides(spec, nets, group) for nets in (theta, returned))
        if min(x.shape[-1], y.shape[-1]) >= width:
            assert torch.allclose(a, x, atol=1e-8) and torch.allclose(b, y, atol=1e-8)
        else:
            assert torch.equal(back[group], torch.eye(width).double().expand_as(back[group]))


@pytest.mark.parametrize("kind", ["zero values", "zero queries", "twice the same row", "one direction"])
def test_heads_without_full_rank_keep_the_function_and_have_one_form(kind, generator):
    network, spec = of_heads(3)
    theta, reference = normal(2, spec.weights), normal(spec.weights, seed=1)
    start = {tensor.name: offset for tensor, offset in zip(spec.tensors, spec.offsets, strict=True)}
    q, v = (theta[:, start[f"{one}.weight"] :][:, :144].unflatten(1, (3, 4, 12)) for one in "qv")
    qb, vb = (theta[:, start[f"{one}.bias"] :][:, :12].unflatten(1, (3, 4)) for one in "qv")
    if kind == "zero values":
        v[:, 1], vb[:, 1] = 0, 0
    elif kind == "zero queries":
        q[:, 1], qb[:, 1] = 0, 0
    elif kind == "twice the same row":
        v[:, 1, 1], vb[:, 1, 1] = v[:, 1, 0], vb[:, 1, 0]
    else:
        q[:, 1], qb[:, 1] = q[:, 1, :1], qb[:, 1, :1]
    x = normal(2, 5, 12)
    found = canonicalize(spec, theta, reference).theta
    assert found.isfinite().all()
    for one, other in zip(theta, found, strict=True):
        assert torch.allclose(outputs_of(network, spec, one, x), outputs_of(network, spec, other, x), atol=1e-10)
    others = torch.cat([moved(spec, theta, generator), found])
    assert torch.allclose(canonicalize(spec, others, reference).theta, found.repeat(2, 1), atol=1e-7)


@pytest.mark.parametrize("name", [*LINEAR, "mlp tanh", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_that_was_planted_is_found(name, dtype, generator):
    """Orders of units and of heads, factors, signs and matrices."""
    _, spec, _, theta = case(name)
    goal = canonicalize(spec, theta).theta
    others = moved(spec, goal.repeat(2, 1), generator).to(dtype)
    found = torch.cat([canonicalize(spec, other[None], one.to(dtype)).theta for other, one in zip(others, goal.repeat(2, 1), strict=True)])
    assert (found.double() - goal.repeat(2, 1)).abs().max() < (1e-9 if dtype is torch.float64 else 1e-3) * goal.abs().max()


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_heads_are_matched_as_by_brute_force(heads):
    """All orders of the heads, each with the best rotations of its heads, which come from scipy."""
    _, spec = of_heads(heads)
    theta, reference = normal(3, spec.weights), normal(spec.weights, seed=1)
    found = align(spec, theta, reference)[0]
    mine, goal = ([torch.cat(sides(spec, t, g), -1) for g in spec.linear] for t in (theta, reference[None]))
    for net in range(len(theta)):
        best = -float("inf")
        for order in itertools.permutations(range(heads)):
            value = 0.0
            for x, y in zip(mine, goal, strict=True):
                for new, old in enumerate(order):
                    value += orthogonal_procrustes(x[net, old].T.numpy(), y[0, new].T.numpy())[1]
            best = max(best, value)
        kept = sum(float((torch.cat(sides(spec, found[net : net + 1], g), -1) * y).sum()) for g, y in zip(spec.linear, goal, strict=True))
        assert abs(kept - best) < 1e-9 * abs(best)


def test_the_rotations_found_are_those_applied():
    _, spec = of_heads(3)
    theta = normal(4, spec.weights)
    aligned, symmetry = align(spec, theta, theta[0])
    assert torch.allclose(apply_symmetry(spec, theta, symmetry), aligned)
    for group, (heads, width) in spec.linear.items():
        rotation = symmetry.linear[group]
        assert rotation.shape == (4, heads, width, width)
        assert torch.allclose(rotation @ rotation.mT, torch.eye(width).double().expand_as(rotation), atol=1e-12)
        assert torch.equal(rotation[0], torch.eye(width).double().expand(heads, -1, -1)) and not torch.equal(rotation[1], rotation[0])


def test_turning_heads_brings_networks_nearer_than_orders_alone():
    """What the form before linear maps left, it still leaves if the table does not know them."""
    _, spec = of_heads(3)
    blind = replace(spec, sites=tuple(replace(site, linear=None, dual=False, inner=0) for site in spec.sites))
    theta = normal(6, spec.weights)
    far, near = (
        (align(table, balance(table, theta), balance(table, theta[:1])[0])[0] - balance(table, theta[:1])).norm(dim=1)[1:]
        for table in (blind, spec)
    )
    assert (near < 0.9 * far).all()


def test_networks_of_the_zoo_have_matrices_for_every_head():
    """Each block has two groups, of queries with keys and of values with the output layer."""
    vit = spec_of(ViT((1, 8, 8), 10, width=12, depth=2, heads=3), torch.zeros(1, 1, 8, 8))
    bert = spec_of(Bert(20, 7, 2, width=12, depth=1, heads=3), torch.ones(1, 7, dtype=torch.long))
    assert list(vit.linear.values()) == [(3, 4)] * 4 and list(bert.linear.values()) == [(3, 4)] * 2
    for spec in (vit, bert):
        assert 3 in spec.groups("permutation").values() and all(site.inner == 4 for site in spec.sites if site.linear is not None)


def test_a_corrupted_dual_is_caught(generator):
    """Keys that were multiplied like queries would change every score."""
    network, spec, x = traced("shared keys")
    theta = pack(spec, network.state_dict())
    wrong = replace(spec, sites=tuple(replace(site, dual=False) for site in spec.sites))
    maps = {0: random_symmetry(spec, generator).linear[0]}
    before, right, other = (outputs_of(network, spec, t, x) for t in (theta, transform(spec, theta, maps), transform(wrong, theta, maps)))
    assert torch.allclose(before, right) and not torch.allclose(before, other, atol=1e-3)
