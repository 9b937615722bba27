"""Evaluation: scores, baselines, novelty, plots and the report."""

import json
import math
from dataclasses import fields

import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import NearestNeighbors
from torch import nn

import geoflow
from geoflow import fit, spec_of
from geoflow.canonical.scaling import incoming
from geoflow.evaluation import boards, comparisons, plots, predictions
from geoflow.evaluation.baselines import BASELINES, NOISE, baseline
from geoflow.evaluation.metrics import Scores, disagreement, ensemble_scores, evaluate, scores, summary
from geoflow.evaluation.novelty import by_layer, nearest_runs, neighbours_of, novelty, spread
from geoflow.evaluation.report import write_report
from geoflow.evaluation.ruler import fit_ruler, layers_of
from geoflow.evaluation.tables import metrics_table
from geoflow.statistics import statistics_of, variances_of
from geoflow.symmetry import permute, rescale
from geoflow.zoo.networks import mlp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def networks():
    """Seven networks of one architecture with batch norm and dropout, and examples of three classes."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)) for _ in range(7)]
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    for net in nets:
        net(x)  # in training mode: gives batch norm its statistics
    spec = geoflow.spec_of(nets[0], x[:2])
    return nets, spec, geoflow.pack(spec, [net.state_dict() for net in nets]), x, y


# Metrics


@pytest.mark.parametrize("part", [1000, 20])
@pytest.mark.parametrize("batch", [1, 120, 2**18])
def test_evaluate_equals_one_network_after_the_other(networks, batch, part, monkeypatch):
    monkeypatch.setattr(predictions, "PART", part)
    nets, spec, thetas, x, y = networks
    together = evaluate(nets[0], spec, thetas, x, y, batch=batch)
    for i, net in enumerate(nets):
        probabilities = net.eval()(x).detach().double().softmax(-1)
        assert together.accuracy[i].item() == pytest.approx(accuracy_score(y, probabilities.argmax(-1)))
        assert together.nll[i].item() == pytest.approx(log_loss(y, probabilities, labels=range(3)), abs=1e-5)
        assert together.ece[i].item() == pytest.approx(ece_by_hand(probabilities, y), abs=1e-5)


def ece_by_hand(probabilities, y, bins=15):
    confidence, predicted = probabilities.max(-1)
    total = 0.0
    for b in range(bins):
        members = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if members.any():
            gap = (predicted == y)[members].double().mean() - confidence[members].mean()
            total += members.double().mean().item() * abs(gap.item())
    return total


def test_evaluate_changes_nothing_in_the_network(networks):
    nets, spec, thetas, x, y = networks
    before = {name: value.clone() for name, value in nets[0].state_dict().items()}
    evaluate(nets[0].train(), spec, thetas, x, y)
    assert nets[0].training and all(module.training for module in nets[0])
    assert all(torch.equal(value, before[name]) for name, value in nets[0].state_dict().items())


def test_a_network_whose_logits_overflow_scores_nan_and_leaves_the_others_alone(networks):
    nets, spec, thetas, x, y = networks
    thetas = torch.cat([thetas[:2], 1e30 * torch.ones_like(thetas[:1])])
    found = evaluate(nets[0], spec, thetas, 1e9 * x.abs(), y)
    assert found.nll[:2].isfinite().all() and found.nll[2].isnan() and found.ece[2].isnan() and found.accuracy[2] == 0


def test_half_precision_is_summed_in_float32():
    log_probs = torch.full((20000, 2), -9.5, dtype=torch.float16)
    assert scores(log_probs, torch.zeros(20000, dtype=torch.long)).nll.item() == pytest.approx(9.5)


def test_of_equal_classes_the_first_is_predicted():
    log_probs = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.4, 0.4]]).log()
    assert [scores(log_probs, torch.tensor(y)).accuracy.item() for y in ([0, 1], [1, 1], [2, 2])] == [1, 0.5, 0]


@pytest.mark.parametrize("part", [1000, 20])
@pytest.mark.parametrize("pool", ["linear", "log"])
def test_ensembles_average_probabilities_or_log_probabilities(networks, pool, part, monkeypatch):
    monkeypatch.setattr(predictions, "PART", part)
    nets, spec, thetas, x, y = networks
    thetas = 5 * thetas  # confident networks, where the two averages differ
    for net, theta in zip(nets, thetas, strict=True):
        net.load_state_dict(geoflow.unpack(spec, theta))
    logits = torch.stack([net.eval()(x).detach() for net in nets]).double()
    result = ensemble_scores(nets[0], spec, thetas, x, y, batch=120, pool=pool)
    linear, log = logits.softmax(-1).mean(0), logits.mean(0).softmax(-1)
    average, other = (linear, log) if pool == "linear" else (log, linear)
    assert result.nll.item() == pytest.approx(log_loss(y, average, labels=range(3)), abs=1e-5)
    assert result.accuracy.item() == pytest.approx(accuracy_score(y, average.argmax(-1)))
    assert result.ece.item() == pytest.approx(ece_by_hand(average, y), abs=1e-5)
    assert abs(result.nll.item() - log_loss(y, other, labels=range(3))) > 1e-2


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_ensemble_of_one_is_the_network(networks, pool):
    nets, spec, thetas, x, y = networks
    alone, ensemble = evaluate(nets[0], spec, thetas[:1], x, y), ensemble_scores(nets[0], spec, thetas[:1], x, y, pool=pool)
    assert all(torch.allclose(getattr(alone, f.name)[0], getattr(ensemble, f.name)) for f in fields(Scores))


def test_ece_of_a_case_worked_by_hand():
    # two bins in use: (.6, .667] holds .65 (right) and .62 (wrong): |.5 - .635| = .135
    # (.933, 1] holds .97 (right) and 1 (right): |1 - .985| = .015
    first = torch.tensor([0.65, 0.62, 0.97, 1.0])
    log_probs = torch.stack([first, 1 - first], -1).log()
    assert scores(log_probs, torch.tensor([0, 1, 0, 0])).ece.item() == pytest.approx(0.5 * 0.135 + 0.5 * 0.015, abs=1e-6)


def test_perfect_and_confident_scores():
    log_probs = torch.eye(3).log()  # -inf at the other classes
    result = scores(log_probs, torch.arange(3))
    assert (result.accuracy, result.nll, result.ece) == (1, 0, 0)
    assert scores(log_probs, torch.tensor([1, 2, 0])).nll == math.inf


def test_nll_of_huge_logits_is_finite():
    spec = geoflow.spec_of(nn.Linear(2, 2), torch.zeros(1, 2))
    theta = geoflow.pack(spec, {"weight": 1e4 * torch.eye(2), "bias": torch.zeros(2)})[None]
    result = evaluate(nn.Linear(2, 2), spec, theta, torch.eye(2), torch.tensor([1, 0]))
    assert result.nll.item() == pytest.approx(1e4) and result.ece.item() == 1


def test_a_class_that_the_network_does_not_know_is_an_error(networks):
    nets, spec, thetas, x, y = networks
    with pytest.raises(ValueError, match="the network tells 3 apart, from 0 on"):
        evaluate(nets[0], spec, thetas, x, y + 1)


def test_an_unknown_pool_is_an_error(networks):
    nets, spec, thetas, x, y = networks
    with pytest.raises(ValueError, match="linear"):
        ensemble_scores(nets[0], spec, thetas, x, y, pool="logits")


def test_nothing_to_evaluate_is_an_error(networks):
    nets, spec, thetas, x, y = networks
    with pytest.raises(ValueError, match="no network to evaluate"):
        evaluate(nets[0], spec, thetas[:0], x, y)
    with pytest.raises(ValueError, match="no example to evaluate on"):
        ensemble_scores(nets[0], spec, thetas, x[:0], y[:0])


def test_disagreement_is_that_of_all_pairs():
    """Three constant networks, two of which say the same: one pair in three agrees everywhere."""
    network = torch.nn.Linear(2, 3)
    spec = geoflow.spec_of(network, torch.zeros(1, 2))
    says = lambda k: geoflow.pack(spec, {"weight": torch.zeros(3, 2), "bias": torch.eye(3)[k]})  # noqa: E731
    x = torch.randn(1500, 2)
    assert disagreement(network, spec, torch.stack([says(0), says(0), says(2)]), x) == pytest.approx(2 / 3)
    assert disagreement(network, spec, torch.stack([says(0), says(1)]), x, batch=1) == 1
    assert math.isnan(disagreement(network, spec, says(0)[None], x))


def test_spread_is_the_distance_of_pairs(generator):
    thetas = torch.randn(30, 4, generator=generator)
    pairs = torch.pdist(thetas).square().mean().sqrt().item()
    assert spread(thetas) == pytest.approx(pairs, rel=1e-5) and math.isnan(spread(thetas[:1]))


def test_summary_of_many_and_of_one():
    many = Scores(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))
    assert summary(many)["accuracy"] == {"mean": 0.5, "std": pytest.approx(0.5**0.5)}
    assert summary(Scores(*torch.ones(3, 1)))["nll"] == {"mean": 1.0, "std": 0.0}
    assert json.loads(json.dumps(summary(many))) == summary(many)


# Baselines


@pytest.fixture
def zoo():
    """300 networks of 5 weights with a known mean and correlated coordinates."""
    mix = torch.randn(5, 5, generator=seeded(1), dtype=torch.float64)
    return torch.arange(5.0, dtype=torch.float64) + torch.randn(300, 5, generator=seeded(2), dtype=torch.float64) @ mix


@pytest.fixture
def flow(zoo):
    """A flow on networks whose units have no order and whose weights have no scale."""
    return fit(spec_of(nn.Linear(4, 1), torch.zeros(1, 4)), zoo, flow="euclidean", iterations=1, batch=8, progress=False)


MEANS = {"mean_network", "rescaled_mean"}  # there is one of each
COUNT = 40_000  # a covariance entry of size c is then estimated to about c * sqrt(2 / COUNT) < .01 c; tolerances are five times that


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_mean_and_the_type(flow, zoo, name):
    made = baseline(name, flow, zoo, COUNT, seeded())
    assert made.dtype == zoo.dtype and made.shape == (1 if name in MEANS else COUNT, 5)
    torch.testing.assert_close(made.mean(0), zoo.mean(0), atol=5 * zoo.std(0).max().item() / COUNT**0.5, rtol=0)


def covariances(zoo):
    """What each baseline's covariance must be, in closed form."""
    full, empirical = zoo.T.cov(), zoo.T.cov(correction=0)
    return {
        # E[a^2 + (1-a)^2] = 2/3 of the covariance, and 2 E[a (1-a)] = 1/3 of the cross covariance -empirical / (nets - 1) of distinct pairs
        "interpolation": (2 / 3 - 1 / 3 / (len(zoo) - 1)) * empirical,
        "gaussian": full.diag().diag(),
        "pca_gaussian": full,
        "noised": empirical + NOISE**2 * full.diag().diag(),
        "retrieval": empirical,
    }


@pytest.mark.parametrize("name", sorted(set(BASELINES) - MEANS))
def test_baselines_have_their_covariance(flow, zoo, name):
    expected = covariances(zoo)[name]
    torch.testing.assert_close(baseline(name, flow, zoo, COUNT, seeded()).T.cov(), expected, atol=0.05 * expected.max().item(), rtol=0)


def test_gaussian_per_coordinate_misses_the_correlation(zoo):
    assert (covariances(zoo)["gaussian"] - covariances(zoo)["pca_gaussian"]).abs().max() > 0.2


def test_retrieval_copies_and_noised_does_not(flow, zoo):
    runs = torch.arange(len(zoo))
    assert nearest_runs(baseline("retrieval", flow, zoo, 50, seeded()), zoo, runs)[:, 0].max() == 0
    assert nearest_runs(baseline("noised", flow, zoo, 50, seeded()), zoo, runs)[:, 0].min() > 0


def test_interpolation_lies_between_two_different_networks(flow):
    pair = torch.tensor([[0.0] * 5, [1.0, 2.0, 0.0, 0.0, 0.0]])
    made = baseline("interpolation", flow, pair, 200, seeded())
    torch.testing.assert_close(made[:, 1], 2 * made[:, 0])
    assert made.min() >= -1e-6 and made[:, 0].max() <= 1 + 1e-6  # roundings of the frame
    assert len(made[:, 0].unique()) == 200  # never a network with itself


def test_pca_gaussian_stays_in_the_span():
    spec = spec_of(nn.Linear(9, 1), torch.zeros(1, 9))
    few = torch.randn(4, 10, generator=seeded(), dtype=torch.float64)
    made = baseline("pca_gaussian", fit(spec, few, flow="euclidean", iterations=1, batch=2, progress=False), few, 100, seeded())
    assert torch.linalg.matrix_rank(made - few.mean(0)) == 3


@pytest.fixture(scope="module")
def normed():
    """A flow on networks with batch norm whose running variances differ by factors of a thousand; examples, classes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3))
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    spec = geoflow.spec_of(network, x[:2])
    thetas = geoflow.pack(spec, network.state_dict()) + 0.3 * torch.randn(40, spec.weights, generator=seeded())
    variances = variances_of(spec)
    thetas[:, variances] = (2 * torch.randn(40, len(variances), generator=seeded(1))).exp()
    return network, fit(spec, thetas, iterations=1, batch=8, progress=False), thetas, x, y


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_positive_variances_and_score(normed, name):
    network, flow, thetas, x, y = normed
    made = baseline(name, flow, flow.canonical(thetas), 200, seeded())
    assert (made[:, variances_of(flow.spec)] > 0).all()
    assert evaluate(network, flow.spec, made, x, y).nll.isfinite().all()


@pytest.mark.parametrize("name", ["mean_network", "rescaled_mean", "interpolation", "gaussian", "pca_gaussian", "noised"])
def test_baselines_average_and_draw_variances_by_their_logarithm(normed, name):
    """The mean logarithm is the zoo's. Interpolation and noise keep it on average: the standard error of 200 draws is below .2."""
    _, flow, thetas, _, _ = normed
    variances = variances_of(flow.spec)
    zoo = flow.canonical(thetas)
    logs = (one[:, variances].log().mean(0) for one in (baseline(name, flow, zoo, 400, seeded()), zoo))
    torch.testing.assert_close(*logs, atol=1e-4 if "mean" in name else 0.6, rtol=0)


@pytest.mark.parametrize("name", ["mean_network", "gaussian", "pca_gaussian", "noised"])
def test_without_variances_baselines_are_plain_sums_bit_for_bit(flow, zoo, name):
    draw = seeded()
    made = {
        "mean_network": lambda: zoo.mean(0, keepdim=True),
        "gaussian": lambda: zoo.mean(0) + zoo.std(0) * torch.randn(9, 5, generator=draw).double(),
        "pca_gaussian": lambda: zoo.mean(0) + (torch.randn(9, 300, generator=draw).double() / 299**0.5) @ (zoo - zoo.mean(0)),
        "noised": lambda: zoo[torch.randint(300, (9,), generator=draw)] + NOISE * zoo.std(0) * torch.randn(9, 5, generator=draw).double(),
    }
    assert torch.equal(baseline(name, flow, zoo, 9, seeded()), made[name]())


def test_retrieval_copies_variances_bit_for_bit(normed):
    _, flow, thetas, _, _ = normed
    made = baseline("retrieval", flow, thetas, 20, seeded())
    assert all((network == thetas).all(1).any() for network in made)


@pytest.fixture
def relu_flow():
    spec = spec_of(mlp(3, [4], 2), torch.zeros(1, 3))
    thetas = torch.randn(20, spec.weights, generator=seeded(), dtype=torch.float64)
    return fit(spec, thetas, flow="geometric", iterations=1, batch=8, progress=False), thetas


def test_interpolation_aligns_its_pairs(relu_flow):
    """Between a network and itself in another order lies nothing but itself, whatever the centre that both were aligned to."""
    flow, thetas = relu_flow
    one = flow.canonical(thetas[:1])
    pair = torch.cat([one, permute(flow.spec, one, {0: torch.tensor([2, 0, 3, 1])})])
    made = baseline("interpolation", flow, pair, 50, seeded())
    assert max(min((network - end).abs().max() for end in pair) for network in made) < 1e-6


@pytest.mark.parametrize("name", ["rescaled_mean", "interpolation"])
def test_baselines_keep_the_scale_that_the_flow_knows(relu_flow, name):
    """Their rows have norm 1, as those of a mean of networks have not; the last layer is the mean of the zoo's."""
    flow, thetas = relu_flow
    zoo = flow.canonical(thetas)
    made = baseline(name, flow, zoo, 12, seeded())
    (rows,) = incoming(flow.spec).values()
    norms = flow.chart.frame.turn(flow.chart.graph, made)[:, rows].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    if name == "rescaled_mean":
        torch.testing.assert_close(made[0, -10:], zoo.mean(0)[-10:])


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_repeat_with_the_generator(flow, zoo, name):
    assert torch.equal(baseline(name, flow, zoo, 8, seeded()), baseline(name, flow, zoo, 8, seeded()))


def test_bad_baselines_are_refused(flow, zoo):
    with pytest.raises(ValueError, match=r"Unknown baseline 'magic'\. Known: mean_network, rescaled_mean, interpolation"):
        baseline("magic", flow, zoo, 3, seeded())
    for nets in (0, 1):
        with pytest.raises(ValueError, match=f"A zoo of {nets} networks has no spread"):
            baseline("gaussian", flow, zoo[:nets], 3, seeded())


# Novelty


def new(generated, train, heldout, runs):
    return novelty(neighbours_of(generated, train, heldout, runs))


def test_copies_have_ratio_zero_and_fresh_draws_one():
    train, heldout, fresh = (torch.randn(400, 30, generator=seeded(s)) for s in range(3))
    runs = torch.arange(400)
    assert new(train, train, heldout, runs)["ratio"] == 0
    result = new(fresh, train, heldout, runs)
    assert result["ratio"] == pytest.approx(1, abs=0.05)
    assert result["heldout_to_train"] == pytest.approx(result["zoo_leave_one_out"], rel=0.05)


def test_a_few_copies_among_new_networks_are_seen():
    train, heldout, fresh = (torch.randn(400, 30, generator=seeded(s)) for s in range(3))
    mixed = torch.cat([fresh[:300], train[:100] + 0.3 * fresh[300:]])
    none, found = (new(one, train, heldout, torch.arange(400)) for one in (fresh, mixed))
    assert none["copies"] < 0.03 and found["copies"] == pytest.approx(0.25 + 0.75 * none["copies"], abs=0.01)
    assert found["ratio"] > 0.9  # which the median does not tell


def test_networks_that_are_less_spread_out_are_no_copies():
    """Shrunk to their mean they are all nearer to the zoo, to no run more than to the others."""
    train, heldout, fresh = (torch.randn(400, 300, generator=seeded(s)) for s in range(3))
    result = new(0.9 * fresh, train, heldout, torch.arange(400))
    assert result["copies"] < 0.03 and result["ratio"] < 0.97


def test_snapshots_of_one_run_do_not_count_as_neighbours():
    runs = torch.randn(100, 1, 30, generator=seeded())
    train = (runs + 1e-3 * torch.randn(100, 3, 30, generator=seeded(1))).flatten(0, 1)
    run_of = torch.arange(100).repeat_interleave(3)
    found = new(train, train, train, run_of)
    assert found["zoo_leave_one_out"] > 1 and found["copies"] == 1  # though the nearest three are as near: they are one run
    assert new(train, train, train, torch.arange(300))["zoo_leave_one_out"] < 0.1  # what taking snapshots for runs would say


def test_distances_equal_brute_force():
    train, generated = torch.randn(700, 6, generator=seeded()), torch.randn(900, 6, generator=seeded(1))
    expected, _ = NearestNeighbors(n_neighbors=16, algorithm="brute").fit(train.double().numpy()).kneighbors(generated.double().numpy())
    found = nearest_runs(generated, train, torch.arange(700))
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_small_distances_far_from_the_origin_are_exact():
    train = 100 + torch.randn(50, 200, generator=seeded())
    generated = train.clone()
    generated[:, 0] += 2**-10
    # the coordinates, near 100, are spaced 2^-17: 2^-10 is exact to one such step
    found = nearest_runs(generated, train, torch.arange(50))[:, 0]
    torch.testing.assert_close(found, torch.full((50,), 2.0**-10), atol=2**-17, rtol=0)


def test_novelty_of_too_little_is_an_error():
    train = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"needs at least 2\. Train more runs"):
        new(train, train, train, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="needs at least 2"):
        new(train, train[:1], train, torch.arange(1))
    with pytest.raises(ValueError, match="copies of a network of another run"):
        new(train, torch.ones(4, 3), train, torch.arange(4))
    for generated, heldout, name in ((train[:0], train, "generated"), (train, train[:0], "held-out")):
        with pytest.raises(ValueError, match=f"There are no {name} networks"):
            new(generated, train, heldout, torch.arange(4))
    assert new(train, train[:2], train, torch.arange(2))["copies"] is None


# The ruler


def some_zoo(count, seed, hidden=(6, 6)):
    """Networks whose last layer is a hundred times as large as the others."""
    spec = spec_of(mlp(5, list(hidden), 3), torch.zeros(1, 5))
    thetas = torch.randn(count, spec.weights, generator=seeded(seed))
    thetas[:, spec.offsets[4] :] *= 100
    return spec, thetas


def test_every_layer_counts_the_same_in_the_distance_of_two_networks():
    spec, zoo = some_zoo(200, 0)
    placed = fit_ruler(spec, zoo).place(zoo)
    assert spread(placed) == pytest.approx(1, rel=0.05)
    for index in layers_of(spec).values():
        assert spread(placed[:, index]) ** 2 == pytest.approx(1 / 3, rel=0.1)
    assert torch.equal(torch.cat(list(layers_of(spec).values())).sort().values, torch.arange(spec.weights))


def test_the_ruler_knows_networks_that_compute_the_same(generator):
    spec, zoo = some_zoo(100, 0)
    ruler = fit_ruler(spec, zoo)
    order = {group: torch.randperm(size, generator=generator) for group, size in spec.groups("permutation").items()}
    scale = {group: torch.rand(size, generator=generator) + 0.5 for group, size in spec.groups("scaling").items()}
    torch.testing.assert_close(ruler.place(rescale(spec, permute(spec, zoo, order), scale)), ruler.place(zoo), atol=1e-4, rtol=1e-4)


def test_running_statistics_do_not_count_in_distances(normed, generator):
    """A copy whose statistics were measured anew is a copy."""
    _, flow, thetas, _, _ = normed
    ruler, spec = fit_ruler(flow.spec, thetas), flow.spec
    index = statistics_of(spec)
    again = thetas.index_copy(1, index, torch.rand(len(thetas), len(index), generator=generator) + 0.1)
    torch.testing.assert_close(ruler.place(again), ruler.place(thetas))
    counted = torch.cat(list(layers_of(spec).values())).sort().values
    assert torch.equal(torch.cat([counted, index]).sort().values, torch.arange(spec.weights))
    assert spread(ruler.place(thetas)) == pytest.approx(1, rel=0.05)


def test_a_copied_layer_is_seen_by_itself():
    spec, zoo = some_zoo(200, 0)
    ruler, fresh = fit_ruler(spec, zoo), some_zoo(100, 1)[1]
    layers, placed = layers_of(spec), ruler.place(zoo)
    hybrid = ruler.place(fresh)
    first = next(iter(layers.values()))
    hybrid[:, first] = placed[:100, first]
    found, none = (by_layer(spec, one, placed, torch.arange(200)) for one in (hybrid, ruler.place(fresh)))
    assert list(found) == ["0", "2", "4"] and found["0"] < 1e-3
    assert all(ratio == pytest.approx(1, abs=0.15) for ratio in (*none.values(), found["2"], found["4"]))


def test_copies_with_noise_are_found_in_another_order_of_their_units():
    """Aligned to the centre of a zoo, some of their units have changed places."""
    spec, zoo = some_zoo(100, 0, (24, 24))
    ruler, runs = fit_ruler(spec, zoo), torch.arange(100)
    placed = ruler.place(zoo)
    noised = ruler.place(zoo + 0.4 * zoo.std(0) * torch.randn(zoo.shape, generator=seeded(1)))
    by_centre, by_pair = (nearest_runs(noised, placed, runs, spec=known)[:, 0].median() for known in (None, spec))
    assert by_pair < 0.8 * by_centre


# Plots


def some_scores(nets):
    return Scores(torch.rand(nets), torch.rand(nets) + 0.05, torch.rand(nets))


FIGURES = {
    "scores": lambda: plots.plot_scores({"zoo": some_scores(20), "generated": some_scores(20), "mean_network": some_scores(1)}),
    "loss": lambda: plots.plot_loss(torch.rand(200) + 0.1),
    "weights": lambda: plots.plot_weights(torch.randn(1200, 9), torch.randn(8, 9), torch.randn(5, 20, 9)),
    "curve": lambda: comparisons.plot_curve({n: summary(some_scores(3)) for n in (1, 2, 4)}),
    "sharpness": lambda: comparisons.plot_sharpness(
        *({s: summary(some_scores(3)) for s in (0.0, 0.5)} for _ in range(2)), {0.0: 2.0, 0.5: 1.0}
    ),
    "board": lambda: boards.plot_board(
        {"zoo": {"accuracy": 0.9, "nll": 0.3, "novelty": None}, "generated": {"accuracy": 0.8, "nll": 0.4, "novelty": 1.0}}, "digits"
    ),
    "rows": lambda: boards.plot_rows({f"row {n}": {"zoo": {"accuracy": 1 / n, "nll": n}} for n in (1, 2, 3, 90)}, "digits"),
    "tradeoff": lambda: comparisons.plot_tradeoff(
        {flow: [(1 - s, summary(some_scores(3))) for s in (0, 0.1)] for flow in ("geometric", "euclidean")}, summary(some_scores(3))
    ),
    "frontier": lambda: comparisons.plot_frontier(
        {name: [(n, n / 2, summary(some_scores(3))) for n in (0.1, 0.9)] for name in ("generated", "noised")}, summary(some_scores(3))
    ),
    "distances": lambda: plots.plot_distances(
        {name: one[:, 0] for name, one in neighbours_of(*torch.randn(3, 9, 2), torch.arange(9)).items()}
    ),
}

ODD_FIGURES = {
    "one network": lambda: plots.plot_scores({"zoo": some_scores(1)}),
    "an infinite loss of a baseline": lambda: plots.plot_scores(
        {"gaussian": Scores(torch.rand(2), torch.tensor([1.0, math.inf]), torch.rand(2))}
    ),
    "a perfect network": lambda: plots.plot_scores({"zoo": Scores(torch.ones(2), torch.zeros(2), torch.zeros(2))}),
    "a curve of one network": lambda: comparisons.plot_curve({5: summary(some_scores(1))}),
    "one step": lambda: plots.plot_loss([0.5]),
    "copies": lambda: plots.plot_distances({"generated_to_train": torch.zeros(5)}),
}


@pytest.mark.parametrize("make", [*FIGURES.values(), *ODD_FIGURES.values()], ids=[*FIGURES, *ODD_FIGURES])
def test_figures_are_drawn_and_labelled(make, tmp_path):
    figure = make()
    assert isinstance(figure, Figure)
    assert figure.axes[-1].get_xlabel()
    (path,) = plots.save_figures(tmp_path / "figures", {"one": figure})
    assert path.read_bytes().startswith(b"\x89PNG")


def test_principal_plane_is_that_of_the_covariance():
    thetas = torch.randn(50, 4, generator=seeded(), dtype=torch.float64) * torch.tensor([5.0, 1, 3, 1])
    mean, basis, shares = plots.principal_plane(thetas)
    values, vectors = torch.linalg.eigh(thetas.T.cov())
    torch.testing.assert_close(basis @ basis.T, vectors[:, -2:] @ vectors[:, -2:].T)  # the plane, whatever its basis
    assert shares == pytest.approx((values.flip(0) / values.sum())[:2].tolist())
    torch.testing.assert_close(mean, thetas.mean(0))


@pytest.mark.parametrize("thetas", [torch.randn(1, 4), torch.randn(2, 4), torch.randn(5, 1), torch.ones(5, 4)])
def test_no_plane_is_an_error(thetas):
    with pytest.raises(ValueError, match="span no plane to plot"):
        plots.principal_plane(thetas)


# Report


@pytest.fixture
def metrics():
    one = {name: {"mean": 0.5, "std": 0.25} for name in ("accuracy", "nll", "ece")}
    pooled = {"accuracy": 0.9, "nll": 0.1, "ece": 0.01}
    ensemble = {"n": 64, **pooled, "log_pool": pooled}
    return {
        "zoo": one,
        "generated": one,
        "baselines": dict.fromkeys(BASELINES, one),
        "ensemble": {"generated": ensemble, "zoo": ensemble},
        "diversity": {"zoo": {"distance": 2.0, "disagreement": 0.1}, "generated": {"distance": 1.5, "disagreement": 0.05}},
        "novelty": {
            "generated_to_train": 1.0,
            "heldout_to_train": 1.1,
            "zoo_leave_one_out": 1.2,
            "ratio": 0.83,
            "copies": 0.02,
            "layers": {"0": 0.7},
        },
        "time": dict.fromkeys(("collect", "prepare", "train", "sample", "evaluate"), 1.5),
        "flow": "geometric",
        "task": "iris",
        "seed": 0,
        "parameters": 1234,
    }


def test_table_has_a_row_for_everything(metrics):
    lines = metrics_table(metrics).splitlines()
    assert [line[:34].strip() for line in lines] == [
        "", "zoo", "generated", *(name.replace("_", " ") for name in BASELINES), "ensemble of 64 generated",
        "ensemble of 64 generated, log pool", "ensemble of 64 zoo", "ensemble of 64 zoo, log pool",
    ]  # fmt: skip
    assert all("0.500 ± 0.250" in line for line in lines[1:9])
    starts = {line.index("0.") for line in lines[1:]}
    assert len(starts) == 1  # the columns are aligned, the ensembles' too


def test_report_tells_the_run_and_shows_only_figures_that_exist(metrics, tmp_path):
    plots.save_figures(tmp_path / "figures", {"loss": FIGURES["loss"]()})
    text = write_report(tmp_path, metrics, {"flow": "geometric", "hidden": [16, 16]}).read_text(encoding="utf-8")
    for part in (
        "# geometric flow on iris, seed 0",
        "1,234 parameters",
        "| novelty | 0.83 |",
        "| copies | 0.02 |",
        "| novelty of layer 0 | 0.7 |",
        "| train | 1.5 |",
        "(figures/loss.png)",
        '"hidden"',
    ):
        assert part in text
    assert "scores.png" not in text and "unning statistics" not in text
    for examples, words in ((2000, "were measured anew on 2,000 training inputs"), (0, "were not measured anew")):
        assert words in write_report(tmp_path, metrics | {"recalibrated": examples}, {}).read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[: 2 + 10]}) == 1


def test_mlp_zoo_end_to_end_scores_like_the_networks_themselves():
    torch.manual_seed(0)
    nets = [mlp(4, [5], 3) for _ in range(4)]
    spec = geoflow.spec_of(nets[0], torch.zeros(1, 4))
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    thetas = geoflow.pack(spec, [net.state_dict() for net in nets])
    expected = torch.stack([scores(net(x).detach().log_softmax(-1), y).nll for net in nets])
    torch.testing.assert_close(evaluate(nets[2], spec, thetas, x, y).nll, expected)
