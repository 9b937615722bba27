"""Couplings are assignments of least cost, over the batch and over each network's orbit."""

import itertools

import pytest
import torch
from networks import mlp
from torch import nn

from geoflow.canonical import sphere_rows
from geoflow.couplings import COUPLINGS
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.symmetry import permute, random_symmetry
from geoflow.wiring import spec_of


def small(*widths: int, activation=nn.ReLU) -> NetworkSpec:
    return spec_of(mlp(*widths, activation=activation), torch.zeros(1, widths[0]))


SPECS = {
    "gelu": small(3, 3, 2, activation=nn.GELU),
    "relu": small(3, 3, 2),
    "tanh": small(3, 3, 2, activation=nn.Tanh),
    "deep": small(3, 4, 4, 2),
    "linear": small(3, 2),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
couplings = pytest.mark.parametrize("name", COUPLINGS)


def manifold_of(spec: NetworkSpec, extra: int = 1) -> Product:
    return Product(spec.weights + extra, sphere_rows(spec))


def draw(manifold: Product, n: int, seed: int) -> torch.Tensor:
    return manifold.random(n, manifold.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orbit(spec: NetworkSpec, x: torch.Tensor) -> torch.Tensor:
    """The network in every order of its units, extra coordinates as they are; signs stay, for no field is equivariant to them."""
    orders = [list(map(torch.tensor, itertools.permutations(range(n)))) for n in spec.groups("permutation").values()]
    groups = spec.groups("permutation")
    moved = [permute(spec, x[: spec.weights], dict(zip(groups, order, strict=True))) for order in itertools.product(*orders)]
    return torch.cat([torch.stack(moved), x[spec.weights :].expand(len(moved), -1)], -1)


def least(costs: torch.Tensor) -> torch.Tensor:
    """The least assignment cost, by trying all."""
    n = len(costs)
    return min(costs[range(n), order].sum() for order in itertools.permutations(range(n)))


@specs
@pytest.mark.parametrize("n", [1, 2, 4])
def test_ot_is_the_best_of_all_assignments(spec, n):
    manifold = manifold_of(spec)
    x_0, x_1 = draw(manifold, n, 0), draw(manifold, n, 1)
    costs = manifold.dist2(x_1[:, None], x_0)
    assert torch.allclose(manifold.dist2(COUPLINGS["ot"](spec, manifold, x_0, x_1), x_1).sum(), least(costs))


@pytest.mark.parametrize("name", ["gelu", "tanh", "linear"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_equivariant_ot_is_the_best_of_all_assignments_and_orders(name, n):
    spec = SPECS[name]
    manifold = Product(spec.weights + 1)
    x_0, x_1 = draw(manifold, n, 0), draw(manifold, n, 1)
    costs = torch.stack([(x_1[:, None] - orbit(spec, x)).square().sum(-1).amin(1) for x in x_0], 1)
    paired = COUPLINGS["equivariant_ot"](spec, manifold, x_0, x_1)
    assert torch.allclose(manifold.dist2(paired, x_1).sum(), least(costs))


@specs
@couplings
def test_each_noise_sample_is_used_once(spec, name):
    manifold = manifold_of(spec)
    x_0, x_1 = draw(manifold, 9, 0), draw(manifold, 9, 1)
    paired = COUPLINGS[name](spec, manifold, x_0, x_1)
    assert torch.equal(paired[:, -1].sort().values, x_0[:, -1].sort().values)  # the extra coordinate tells them apart
    origin = (paired[:, -1:] == x_0[:, -1]).int().argmax(1)
    assert torch.equal(paired.sort().values, x_0[origin].sort().values)  # up to the order of its units
    manifold.assert_check_point_on_manifold(paired)


@specs
def test_costs_only_fall(spec):
    manifold = manifold_of(spec)
    x_0, x_1 = draw(manifold, 16, 0), draw(manifold, 16, 1)
    independent, ot, equivariant = (manifold.dist2(COUPLINGS[name](spec, manifold, x_0, x_1), x_1).sum() for name in COUPLINGS)
    assert equivariant <= ot + 1e-9 and ot <= independent
    assert (equivariant < 0.95 * ot) == bool(spec.groups("permutation"))


@specs
def test_planted_partners_are_found(spec):
    """Noise that is the data in another order, of samples and of neurons; distances zero."""
    manifold, generator = manifold_of(spec), torch.Generator().manual_seed(2)
    x_1 = draw(manifold, 8, 1)
    elements = [random_symmetry(spec, generator) for _ in x_1]
    moved = [permute(spec, x[:-1], g.permutations) for x, g in zip(x_1, elements, strict=True)]
    x_0 = torch.cat([torch.stack(moved), x_1[:, -1:]], -1)[torch.randperm(8, generator=generator)]
    assert torch.equal(COUPLINGS["equivariant_ot"](spec, manifold, x_0, x_1), x_1)


@couplings
def test_precision_follows_the_input(name):
    spec = SPECS["relu"]
    manifold = manifold_of(spec, extra=0)
    x_0, x_1 = draw(manifold, 4, 0).float(), draw(manifold, 4, 1).float()
    assert COUPLINGS[name](spec, manifold, x_0, x_1).dtype == torch.float32
