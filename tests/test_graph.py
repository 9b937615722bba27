"""The graph holds every scalar once and moves with the symmetries."""

import pytest
import torch

from geoflow import apply_symmetry, graph_of, pack, random_symmetry, spec_of, to_pyg
from geoflow.graph import site_starts
from tests.networks import NETWORKS


@pytest.fixture(params=NETWORKS)
def spec_and_theta(request):
    make, example = NETWORKS[request.param]
    network = make()
    spec = spec_of(network, example())
    return spec, pack(spec, network.state_dict())


def test_every_scalar_lies_in_the_graph_exactly_once(spec_and_theta):
    spec, _ = spec_and_theta
    graph = graph_of(spec, extras=3)
    places = torch.cat([*(p.index.flatten() for p in (*graph.blocks, *graph.features)), graph.scalars])
    assert torch.equal(places.sort().values, torch.arange(spec.weights + 3))
    assert graph.size == spec.weights + 3


def test_the_graph_of_a_permuted_network_is_the_relabelled_graph(spec_and_theta, generator):
    spec, theta = spec_and_theta
    symmetry = random_symmetry(spec, generator)
    moved = apply_symmetry(spec, theta, type(symmetry)(symmetry.permutations))
    order = [symmetry.permutations.get(site.permutation, torch.arange(site.size)) for site in spec.sites]
    graph = graph_of(spec)
    for block in graph.blocks:
        expected = theta[block.index][order[block.target]][:, order[block.source]]
        assert torch.equal(moved[block.index], expected)
    for feature in graph.features:
        assert torch.equal(moved[feature.index], theta[feature.index][order[feature.site]])


def test_pyg_data_has_a_node_per_unit_and_an_edge_per_pair():
    make, example = NETWORKS["mlp"]
    network = make()
    spec = spec_of(network, example())
    theta = pack(spec, network.state_dict())
    data = to_pyg(spec, theta)
    assert data.num_nodes == site_starts(spec)[-1]
    assert data.num_edges == sum(b.index.shape[0] * b.index.shape[1] for b in graph_of(spec).blocks)
    first = next(iter(network.parameters()))
    source, target = data.edge_index[:, data.edge_block == 0]
    starts = site_starts(spec)
    block = graph_of(spec).blocks[0]
    assert torch.equal(data.edge_attr[data.edge_block == 0, 0], first[target - starts[block.target], source - starts[block.source]])


def test_a_zero_weight_keeps_its_edge_and_a_masked_one_loses_it():
    make, example = NETWORKS["mlp"]
    spec = spec_of(make(), example())
    theta = torch.zeros(spec.weights)
    mask = torch.ones(spec.weights, dtype=torch.bool)
    mask[graph_of(spec).blocks[0].index[0, 0]] = False
    assert to_pyg(spec, theta).num_edges - to_pyg(spec, theta, mask).num_edges == 1
