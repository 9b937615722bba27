"""Differences of two networks in their mistakes, their predictions and their weights."""

import pytest
import torch
from scipy.spatial import distance
from scipy.stats import wasserstein_distance
from sklearn.metrics import jaccard_score
from torch import nn

import geoflow
from geoflow.canonical import balance
from geoflow.evaluation import diversity
from geoflow.evaluation.diversity import jensen_shannon, mistakes, overlap_of_mistakes, pairwise, wasserstein
from geoflow.evaluation.predictions import predicted
from geoflow.evaluation.report import _pairs
from geoflow.symmetry import apply_symmetry, random_symmetry, rescale
from geoflow.zoo.networks import mlp


@pytest.fixture
def population():
    """Twelve networks, and examples of three classes."""
    torch.manual_seed(0)
    nets = [mlp(4, [6], 3) for _ in range(12)]
    x, y = 2 * torch.randn(60, 4), torch.randint(3, (60,))
    spec = geoflow.spec_of(nets[0], x[:2])
    return nets[0], spec, 3 * geoflow.pack(spec, [net.state_dict() for net in nets]), x, y


def compare(population, generated, zoo, run_of=None, seed=0):
    network, spec, _, x, y = population
    run_of = torch.arange(len(zoo)) if run_of is None else run_of
    return pairwise(network, spec, generated, zoo, run_of, x, y, torch.Generator().manual_seed(seed))


# Each measure against another program


def test_overlaps_are_those_of_sklearn(generator):
    wrong, others = (torch.rand(n, 30, generator=generator) < 0.3 for n in (4, 5))
    others[0] = False
    wrong[0] = False
    found = overlap_of_mistakes(wrong, others)
    for i, one in enumerate(wrong):
        for j, other in enumerate(others):
            assert found[i, j].item() == pytest.approx(jaccard_score(one, other, zero_division=0.0))
    assert found[0, 0] == 0 and torch.allclose(overlap_of_mistakes(wrong, wrong).diagonal()[1:], torch.ones(3))


@pytest.mark.parametrize("entries", [1, 2**22])
def test_distances_of_predictions_are_those_of_scipy(generator, entries, monkeypatch):
    monkeypatch.setattr(diversity, "ENTRIES", entries)
    one, other = ((4 * torch.randn(n, 20, 3, generator=generator)).log_softmax(-1) for n in (3, 4))
    other[0] = one[0]
    found = jensen_shannon(one, other)
    for i, p in enumerate(one.exp().double()):
        for j, q in enumerate(other.exp().double()):
            by_scipy = distance.jensenshannon(p, q, base=2, axis=1).mean()
            assert found[i, j].item() == pytest.approx(by_scipy, abs=1e-5)
    assert found[0, 0] < 1e-5 and torch.allclose(jensen_shannon(other, one), found.T)


def test_distances_of_predictions_in_closed_form():
    """For (1, 0) and (1 - e, e) the divergence is 1 + ((1 - e) log2(1 - e) - (2 - e) log2(2 - e)) / 2."""
    for e in (1.0, 0.5, 1e-3, 1e-6):
        sure, less = (torch.tensor([[p]], dtype=torch.float64).log() for p in ([1.0, 0.0], [1 - e, e]))
        e = torch.tensor(e, dtype=torch.float64)
        divergence = 1 + (torch.xlogy(1 - e, 1 - e) - torch.xlogy(2 - e, 2 - e)) / 2 / torch.log(torch.tensor(2.0, dtype=torch.float64))
        # the difference of entropies is rounded at 1e-16, which is 1e-10 of the least divergence
        assert jensen_shannon(sure, less).item() == pytest.approx(divergence.sqrt().item(), rel=1e-8)


def test_distances_of_weights_are_those_of_scipy(generator):
    one, other = (torch.randn(n, 50, generator=generator) for n in (3, 4))
    found = wasserstein(one, other)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            assert found[i, j].item() == pytest.approx(wasserstein_distance(a, b), rel=1e-5)
    assert torch.allclose(wasserstein(one, one + 3).diagonal(), torch.full((3,), 3.0))  # a shift
    assert torch.allclose(wasserstein(one, one.flip(1)).diagonal(), torch.zeros(3), atol=1e-6)


def test_mistakes_are_those_of_each_network_alone(population):
    network, spec, thetas, x, y = population
    found = mistakes(network, spec, thetas, x, y)
    for wrong, theta in zip(found, thetas, strict=True):
        network.load_state_dict(geoflow.unpack(spec, theta))
        assert torch.equal(wrong, network(x).argmax(-1) != y)


# All pairs


def test_pairs_are_what_brute_force_finds(population):
    network, spec, thetas, x, y = population
    generated, zoo, run_of = thetas[:5], thetas[5:], torch.tensor([0, 0, 1, 1, 2, 2, 3])
    found = compare(population, generated, zoo, run_of)
    wrong, log_probs = mistakes(network, spec, thetas, x, y), predicted(network, spec, thetas, x)
    weights, runs = balance(spec, thetas), [*range(10, 15), *run_of.tolist()]
    whole = {"generated": range(5), "zoo": range(5, 12)}
    for name, one in found.items():
        kind, other = name.split("_")
        pairs = [(i, j) for i in whole[kind] for j in whole[other] if runs[i] != runs[j]]
        largest = [max(jaccard_score(wrong[i], wrong[j], zero_division=0.0) for k, j in pairs if k == i) for i in whole[kind]]
        assert one["iou"] == pytest.approx(sum(largest) / len(largest), abs=1e-6)
        assert one["against"] == max(sum(k == i for k, _ in pairs) for i in whole[kind])
        apart = [distance.jensenshannon(log_probs[i].double().exp(), log_probs[j].double().exp(), 2, axis=1).mean() for i, j in pairs]
        assert one["jensen_shannon"] == pytest.approx(sum(apart) / len(apart), abs=1e-5)
        moved = [wasserstein_distance(weights[i], weights[j]) for i, j in pairs]
        assert one["wasserstein"] == pytest.approx(sum(moved) / len(moved), rel=1e-4)


def test_a_copy_is_seen_in_mistakes_and_new_networks_are_not(population):
    *_, thetas, _, _ = population
    new, copies = (compare(population, some, thetas[6:])["generated_zoo"] for some in (thetas[:6], thetas[6:]))
    assert copies["iou"] == 1 and new["iou"] < 0.95
    assert copies["jensen_shannon"] < new["jensen_shannon"]  # the mean is over all pairs


def test_snapshots_of_one_run_are_no_pair(population):
    """They would look like copies."""
    *_, thetas, _, _ = population
    twice = thetas[6:].repeat_interleave(2, 0)
    apart = compare(population, thetas[:6], twice, torch.arange(6).repeat_interleave(2))["zoo_zoo"]
    together = compare(population, thetas[:6], twice)["zoo_zoo"]
    assert together["iou"] == 1 and apart["iou"] < 0.95
    assert apart["iou"] == pytest.approx(compare(population, thetas[:6], thetas[6:])["zoo_zoo"]["iou"])


def test_symmetries_change_no_difference(population, generator):
    _, spec, thetas, _, _ = population
    moved = torch.stack([apply_symmetry(spec, theta, random_symmetry(spec, generator=generator)) for theta in thetas])
    assert not torch.allclose(moved, thetas)
    before, after = (compare(population, some[:6], some[6:]) for some in (thetas, moved))
    for pair, one in before.items():
        assert after[pair] == pytest.approx(one, rel=1e-3)  # float32 outputs and norms are rounded
    (group,) = spec.groups("scaling")
    scaled = rescale(spec, thetas, {group: torch.full((6,), 5.0)})
    assert wasserstein(scaled, thetas).diagonal().min() > 0.1, "without balance, a scale would be a difference"


def test_running_statistics_are_no_weights():
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    spec = geoflow.spec_of(network, torch.zeros(2, 4))
    theta = geoflow.pack(spec, network.state_dict())
    network[1].running_var += 7
    other = geoflow.pack(spec, network.state_dict())
    first, second = (diversity._learned(spec, one[None]) for one in (theta, other))
    assert not torch.equal(theta, other) and torch.equal(first, second)


def test_work_is_bounded(population, monkeypatch):
    _, spec, thetas, _, _ = population
    seen = []
    for measure in ("overlap_of_mistakes", "jensen_shannon", "wasserstein"):
        whole = getattr(diversity, measure)
        monkeypatch.setattr(diversity, measure, lambda a, b, whole=whole: (seen.append((a.shape, b.shape)), whole(a, b))[1])
    monkeypatch.setattr(diversity, "NETWORKS", 3)
    monkeypatch.setattr(diversity, "EXAMPLES", 20)
    compare(population, thetas[:5], thetas[5:])
    overlaps = [shapes for shapes in seen if shapes[0][1] == 20 and len(shapes[0]) == 2]
    assert overlaps == [((3, 20), (5, 20)), ((3, 20), (7, 20)), ((3, 20), (7, 20))], "all others, so that no copy is missed"
    assert ((3, 20, 3), (3, 20, 3)) in seen and ((3, spec.weights), (3, spec.weights)) in seen


def test_a_single_network_has_no_other(population):
    *_, thetas, _, _ = population
    found = compare(population, thetas[:1], thetas[1:])
    assert found["generated_generated"] == {"iou": None, "against": 0, "jensen_shannon": None, "wasserstein": None}
    assert all(value is not None for value in found["generated_zoo"].values())


def test_real_targets_have_distances_of_weights_only(population):
    network, spec, thetas, x, _ = population
    run_of, generator = torch.arange(6), torch.Generator().manual_seed(0)
    found = pairwise(network, spec, thetas[:6], thetas[6:], run_of, x, torch.zeros(60, 1), generator, outputs="gaussian")
    for pair, one in compare(population, thetas[:6], thetas[6:]).items():
        assert found[pair] == {**one, "iou": None, "jensen_shannon": None}


# The report


def test_the_report_shows_pairs_and_lacks_them_where_they_were_not_measured():
    one = {"iou": 0.5, "against": 63, "jensen_shannon": 0.25, "wasserstein": 0.0125}
    none = {"iou": None, "against": 0, "jensen_shannon": None, "wasserstein": None}
    title, table = _pairs({"generated_generated": none, "generated_zoo": one, "zoo_zoo": one})
    assert title.startswith("## Pairs of networks") and "A copy has 1" in title
    assert "| generated, generated | 0 | - | - | - |" in table and "| generated, zoo | 63 | 0.5000 | 0.2500 | 0.0125 |" in table
    assert _pairs(None) == []
