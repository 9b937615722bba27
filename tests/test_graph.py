"""The graph holds every scalar once and moves with the symmetries."""

import pytest
import torch

from geoflow import apply_symmetry, graph_of, pack, random_symmetry, spec_of, to_pyg, unpack
from geoflow.graph import site_starts
from geoflow.pyg import EDGE_TYPES
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
    places = torch.cat([*(p.index.flatten() for p in (*graph.blocks, *graph.features, *graph.diagonals)), graph.scalars])
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
    for feature in graph.of_units:
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


def test_wires_are_edges_of_their_own_type():
    """One for each unit, in the direction of the data, with the gain that lies on it."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    torch.nn.init.normal_(network[1].weight)
    spec = spec_of(network, torch.zeros(2, 4))
    data = to_pyg(spec, pack(spec, network.state_dict()))
    wires = data.edge_type == EDGE_TYPES["norm"]
    starts, (before, behind) = site_starts(spec), [n for n, site in enumerate(spec.sites) if site.role == "hidden"]
    units = torch.arange(3)
    assert torch.equal(data.edge_index[:, wires], torch.stack([units + starts[before], units + starts[behind]]))
    assert torch.equal(data.edge_attr[wires, 0], network[1].weight)
    assert int((data.edge_type == 0).sum()) == 4 * 3 + 3 * 2


def test_a_zero_weight_keeps_its_edge_and_a_masked_one_loses_it():
    make, example = NETWORKS["mlp"]
    spec = spec_of(make(), example())
    theta = torch.zeros(spec.weights)
    mask = torch.ones(spec.weights, dtype=torch.bool)
    mask[graph_of(spec).blocks[0].index[0, 0]] = False
    assert to_pyg(spec, theta).num_edges - to_pyg(spec, theta, mask).num_edges == 1


def test_a_graph_is_made_of_one_network():
    make, example = NETWORKS["mlp"]
    spec = spec_of(make(), example())
    with pytest.raises(ValueError, match=f"one network of {spec.weights} weights"):
        to_pyg(spec, torch.zeros(spec.weights - 1))


def test_a_unit_and_what_it_alone_is_made_into_are_one_unit():
    """Gains, biases and kernels behind a unit belong to it; what a sum makes of two units does not."""
    normed = [torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 3, 3, groups=3)]
    spec = spec_of(torch.nn.Sequential(*normed, torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1)), torch.zeros(2, 1, 7, 7))
    units = unpack(spec, graph_of(spec).unit_of[None].float())
    first = units["0.weight"][0, :, 0, 0, 0]
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "2.bias"):
        assert torch.equal(units[name][0].flatten(1)[:, 0] if units[name].ndim > 2 else units[name][0], first), name
    assert not torch.isin(units["4.weight"], first).any()


def test_wires_through_a_site_without_tensors_close_no_circle_of_one_unit():
    class Circle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.out = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
            self.first, self.second = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)

        def forward(self, x):
            x = self.enter(x).abs()
            return self.out((x + self.second(self.first(x.abs()))).abs())

    graph = graph_of(spec_of(Circle(), torch.zeros(2, 5)))
    assert graph.units == 4 + 2


def test_all_pieces_of_a_tensor_lie_on_wires_of_its_kind():
    class Repeated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.norm, self.out = torch.nn.Linear(5, 4), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.norm(self.enter(x).relu().repeat(1, 2)))

    graph = graph_of(spec_of(Repeated(), torch.zeros(2, 5)))
    assert [diagonal.wire for diagonal in graph.diagonals] == ["norm", "norm"]


def test_every_coordinate_belongs_to_the_unit_that_it_feeds():
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.PReLU(), torch.nn.Linear(3, 2))
    spec = spec_of(network, torch.zeros(1, 4))
    units = unpack(spec, graph_of(spec).unit_of[None].float())
    hidden, output = units["0.bias"][0], units["2.bias"][0]
    assert torch.equal(units["0.weight"][0], hidden[:, None].expand(3, 4))
    assert torch.equal(units["2.weight"][0], output[:, None].expand(2, 3))
    assert {*hidden.tolist(), *output.tolist(), units["1.weight"].item()} == {*map(float, range(6))}  # inputs own nothing, the slope itself
