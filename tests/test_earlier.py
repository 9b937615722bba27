"""A table of an earlier tracing serves a network as long as all that it declares is true of it."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from geoflow import apply_symmetry, random_symmetry, sample, spec_of
from geoflow.earlier import still_describes
from geoflow.spec import SYMMETRIES, TRACING, NetworkSpec, Piece
from geoflow.training import fit
from tests.networks import NETWORKS, Residual, mlp


def spec_of_row(name):
    make, example = NETWORKS[name]
    return spec_of(make(), example())


def earlier_tracing(spec):
    return replace(spec, tracing=spec.tracing - 1)


def without(spec, symmetry):
    """The table as an earlier tracing found it, which did not know this symmetry."""
    return earlier_tracing(replace(spec, sites=tuple(replace(site, **{symmetry: None}) for site in spec.sites)))


@pytest.mark.parametrize("name", ["mlp", "mlp batch norm", "resnet", "attention", "lstm", "swiglu", "tied", "cnn grouped", "densenet"])
def test_a_table_describes_its_networks_and_still_does_if_it_declares_less(name):
    spec = spec_of_row(name)
    assert still_describes(spec, spec) and still_describes(earlier_tracing(spec), spec)
    assert not still_describes(spec, earlier_tracing(spec))
    for symmetry in SYMMETRIES:
        if spec.groups(symmetry):
            assert still_describes(without(spec, symmetry), spec)
            more, less = earlier_tracing(spec), replace(without(spec, symmetry), tracing=spec.tracing)
            assert not still_describes(more, less), "a symmetry that is not there"
            assert not still_describes(less, spec), "the table of another network, traced by the same version"


def test_its_symmetries_are_those_of_the_later_table(generator):
    """The same orders and factors act alike in both tables."""
    spec = spec_of_row("resnet")
    less = without(spec, "sign")
    assert still_describes(less, spec)
    theta, move = torch.randn(spec.weights, generator=generator, dtype=torch.float64), random_symmetry(less, generator)
    assert torch.equal(apply_symmetry(less, theta, move), apply_symmetry(spec, theta, move))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (mlp(5, 4, 4, 2), mlp(5, 4, 3, 2)),
        (mlp(5, 4, 4, 2), mlp(5, 4, 4, 2, activation=nn.Tanh)),
        (mlp(5, 4, 4, 2, activation=nn.Tanh), mlp(5, 4, 4, 2)),
    ],
)
def test_other_networks_are_not_described(earlier, later):
    one, other = (spec_of(network, torch.zeros(1, next(network.parameters()).shape[1])) for network in (earlier, later))
    for table in (one, earlier_tracing(one)):
        assert still_describes(table, one) and not still_describes(table, other)


def test_tables_of_one_version_are_those_of_two_networks():
    """A table with GELU declares less than one with ReLU. It is no earlier table of it."""
    gelu, relu = (spec_of(mlp(5, 4, 2, activation=one), torch.zeros(1, 5)) for one in (nn.GELU, nn.ReLU))
    flow = fit(gelu, torch.rand(20, gelu.weights), iterations=1, batch=8, progress=False)
    assert flow.knows(gelu) and not flow.knows(relu)
    with pytest.raises(ValueError, match="flat coordinates"):
        flow.on(relu)


def test_a_table_of_a_later_version_says_so():
    spec = spec_of(nn.Linear(2, 1), torch.zeros(1, 2))
    later = json.loads(spec.to_json()) | {"tracing": TRACING + 1}
    later["sites"][0]["unheard"] = 1
    with pytest.raises(ValueError, match=f"later version of geoflow .tracing {TRACING + 1}; this version has {TRACING}"):
        NetworkSpec.from_json(json.dumps(later), {})


def test_layers_whose_units_are_tied_are_another_network():
    """A skip connection ties the units of two layers. Without it each has an order of its own."""
    plain = [nn.Linear(5, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)]
    skip = [*plain[:2], Residual(nn.Linear(4, 4)), *plain[3:]]
    one, other = (spec_of(nn.Sequential(*layers), torch.zeros(1, 5)) for layers in (plain, skip))
    alike = replace(earlier_tracing(one), tensors=tuple(replace(a, name=b.name) for a, b in zip(one.tensors, other.tensors, strict=True)))
    assert not still_describes(alike, other)
    assert not still_describes(earlier_tracing(other), replace(alike, tracing=other.tracing))


def test_a_group_that_was_cut_since_is_no_group_any_more():
    spec = spec_of_row("mlp")
    halves = replace(spec, sites=(*spec.sites, spec.sites[1]))
    rows = replace(spec.tensors[0], axes=((Piece(8, writes=1), Piece(8, writes=len(spec.sites))), spec.tensors[0].axes[1]))
    cut = replace(halves, tensors=(rows, *spec.tensors[1:]))
    assert not still_describes(earlier_tracing(spec), cut)


def test_a_flow_draws_in_its_own_table(generator):
    """Traced anew, the network has signs before its norm, of which the saved flow knows nothing."""
    spec = spec_of_row("mlp batch norm")
    less = without(spec, "sign")
    flow = fit(less, torch.rand(20, spec.weights, generator=generator) + 0.1, iterations=2, batch=8, progress=False)
    assert flow.knows(spec) and flow.of(spec).spec is less and flow.on(spec) is flow.chart
    drawn = [sample(flow, 3, spec=one, steps=2, generator=torch.Generator().manual_seed(0)) for one in (None, less, spec)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert not fit(spec, torch.rand(20, spec.weights, generator=generator) + 0.1, iterations=1, batch=8, progress=False).knows(less)


@pytest.mark.parametrize("name", ["attention", "attention one head", "shared keys", "mask of inputs", "einsum with an ellipsis"])
def test_a_table_from_before_there_were_linear_maps_describes_its_networks(name):
    spec = spec_of_row(name)
    without_maps = replace(spec, sites=tuple(replace(site, linear=None, dual=False, inner=0) for site in spec.sites))
    assert spec.linear and still_describes(spec, spec)
    assert still_describes(earlier_tracing(without_maps), spec) and not still_describes(earlier_tracing(spec), without_maps)


def test_an_earlier_table_of_heads_that_cannot_be_exchanged_describes_them_still():
    """It has one order of units for all heads, and the later one has matrices of each head."""
    spec = spec_of_row("slopes of heads")
    units = [replace(site, size=4, linear=None, inner=0, permutation=site.linear) if site.inner else site for site in spec.sites]

    def opened(axis):
        return tuple(p for piece in axis for p in ([replace(piece, size=4, repeat=1)] * 2 if piece.repeat == 4 else [piece]))

    tensors = [replace(tensor, axes=tuple(map(opened, tensor.axes))) for tensor in spec.tensors]
    earlier = replace(spec, sites=tuple(replace(site, dual=False) for site in units), tensors=tuple(tensors))
    assert earlier.groups("permutation") == {0: 4, 1: 4}
    assert still_describes(earlier_tracing(earlier), spec) and not still_describes(earlier_tracing(spec), earlier)


def declaring(spec, symmetry, names):
    """A table in which units of some sites, in this order, have a group of their own of another symmetry than linear maps."""
    other = {"permutation": None, "scaling": None, "sign": None, symmetry: 9}
    sites = [replace(s, linear=None, dual=False, **(other if s.name in names else {})) for s in spec.sites]
    return earlier_tracing(replace(spec, sites=tuple(sites)))


def test_linear_maps_contain_what_an_earlier_table_declared_of_a_single_head():
    """Orders and signs of queries move with those of keys, and a factor of values is divided by the last layer."""
    spec = spec_of_row("attention one head")
    assert still_describes(declaring(spec, "permutation", ("q", "k")), spec)
    assert still_describes(declaring(spec, "sign", ("q", "k")), spec)
    assert still_describes(declaring(spec, "scaling", ("v",)), spec)
    assert not still_describes(declaring(spec, "scaling", ("q",)), spec)
    assert not still_describes(declaring(spec, "scaling", ("q", "k")), spec)  # it would multiply the products by its square
    assert not still_describes(declaring(spec, "permutation", ("q",)), spec)
    assert not still_describes(declaring(spec, "permutation", ("q", "k", "v")), spec)
