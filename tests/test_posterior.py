"""Ensembles of growing size: what they say of each example, how good that is, and how sure."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import nn
from torch.func import functional_call

import geoflow
from geoflow.evaluation import posterior, posterior_plots
from geoflow.evaluation.ensemble_tables import ensembles_table
from geoflow.evaluation.growing import columns_of, grouped, scores_by_size
from geoflow.evaluation.metrics import ensemble_scores
from geoflow.evaluation.posterior import INFORMATION, answers, graded, scores_of
from geoflow.evaluation.records import numbers_record, outside_record, pooled_record, reliability_record, scores_record, selective_record
from geoflow.evaluation.reliability import auroc, reliability, selective
from geoflow.outputs import OUTPUTS, outputs_of
from geoflow.outputs.classes import ece
from geoflow.zoo.networks import mlp
from geoflow.zoo.outside import others_of, outside_inputs
from geoflow.zoo.tasks import TASKS, load_task

CLASSES = 3
POOLS = outputs_of("classes").pools


@pytest.fixture
def networks():
    """Eleven networks, and examples of three classes."""
    torch.manual_seed(0)
    nets = [mlp(4, [6], CLASSES) for _ in range(11)]
    x, y = 2 * torch.randn(60, 4), torch.randint(CLASSES, (60,))
    spec = geoflow.spec_of(nets[0], x[:2])
    return nets[0], spec, 3 * geoflow.pack(spec, [net.state_dict() for net in nets]), x, y


def probabilities(networks) -> torch.Tensor:
    """What each network says, run one by one in double precision: [nets, examples, classes]."""
    network, spec, thetas, x, _ = networks
    network = network.double()
    each = [functional_call(network, geoflow.unpack(spec, theta.double()), x.double()) for theta in thetas]
    return torch.stack(each).softmax(-1).detach()


def pooled_by_hand(p: torch.Tensor, pool: str) -> torch.Tensor:
    """One ensemble [examples, classes] of members [nets, examples, classes]."""
    mean = p.mean(0) if pool == "linear" else p.log().mean(0).exp()
    return mean / mean.sum(-1, keepdim=True)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


# Ensembles


@pytest.mark.parametrize("pool", POOLS)
def test_scores_are_those_of_each_ensemble_alone(networks, pool):
    network, spec, thetas, x, y = networks
    found = graded(network, spec, thetas, x, y)[pool]
    assert list(found) == [1, 2, 4, 8] and {size: len(one.correct) for size, one in found.items()} == {1: 11, 2: 5, 4: 2, 8: 1}
    for size, one in found.items():
        for group in range(len(one.correct)):
            alone = ensemble_scores(network, spec, thetas[group * size : (group + 1) * size], x, y, pool=pool)
            assert one.correct[group].double().mean().item() == pytest.approx(alone.accuracy.item())
            assert one.nll[group].mean().item() == pytest.approx(alone.nll.item(), rel=1e-5)
            assert ece(one.answers.confidence[group], one.correct[group]).item() == pytest.approx(alone.ece.item(), abs=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_every_number_is_what_its_formula_says(networks, pool):
    *_, y = networks
    p = probabilities(networks)
    found = graded(*networks)[pool]
    for size, one in found.items():
        for group, members in enumerate(p[: len(one.correct) * size].split(size)):
            mean = pooled_by_hand(members, pool)
            said = one.answers
            assert torch.equal(said.predicted[group], mean.argmax(-1)) and torch.equal(one.correct[group], mean.argmax(-1) == y)
            # float32 weights are run by both, in single and in double precision
            close = dict(rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(said.confidence[group].double(), mean.amax(-1), **close)
            torch.testing.assert_close(said.entropy[group].double(), -(mean * mean.log()).sum(-1), **close)
            of_all = divergence(members, mean) if pool == "linear" else divergence(mean.expand_as(members), members)
            torch.testing.assert_close(said.information[group].double(), of_all.mean(0), **close)
            by_sklearn = [brier_score_loss(y == c, mean[:, c]) for c in range(CLASSES)]
            assert one.brier[group].mean().item() == pytest.approx(sum(by_sklearn), rel=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_each_pool_is_nearest_to_its_members(networks, pool):
    """Any other distribution has a larger mean divergence than the information, in the direction of the pool."""
    p, found = probabilities(networks)[:8], answers(*networks[:4], sizes=[8])[pool][8]
    for other in (pooled_by_hand(p, "log" if pool == "linear" else "linear"), p[0], torch.full_like(p[0], 1 / CLASSES)):
        apart = divergence(p, other.expand_as(p)) if pool == "linear" else divergence(other.expand_as(p), p)
        assert (apart.mean(0) > found.information[0] - 1e-6).all()


def test_members_that_agree_hold_no_information(networks):
    network, spec, thetas, x, _ = networks
    for by_size in answers(network, spec, thetas[:1].expand(4, -1), x).values():
        assert all(one.information.max() < 1e-9 for one in by_size.values())  # rounding of double precision
        assert torch.allclose(by_size[4].entropy, by_size[1].entropy[:1], rtol=1e-5)
    different = answers(network, spec, thetas, x)
    assert all(by_size[4].information.min() > 0 and not by_size[1].information.any() for by_size in different.values())


@pytest.mark.parametrize("change", [{"batch": 7}, {"batch_size": 13}, {"entries": 40}])
def test_how_the_work_is_divided_changes_nothing(networks, change, monkeypatch):
    if "entries" in change:
        monkeypatch.setattr(posterior, "ENTRIES", change.pop("entries"))
    whole, parts = graded(*networks), graded(*networks, **change)
    for pool in POOLS:
        for one, other in zip(whole[pool].values(), parts[pool].values(), strict=True):
            torch.testing.assert_close(one.nll, other.nll)
            torch.testing.assert_close(one.answers.information, other.answers.information, rtol=1e-3, atol=1e-6)
            assert torch.equal(one.answers.predicted, other.answers.predicted)


def test_the_networks_run_once_and_few_examples_at_a_time(networks, monkeypatch):
    seen, predictors = [], posterior.predictors

    def counting(*args):
        def counted(predict):
            def run(x):
                seen.append(len(x))
                return predict(x)

            return run

        return [counted(predict) for predict in predictors(*args)]

    monkeypatch.setattr(posterior, "predictors", counting)
    monkeypatch.setattr(posterior, "ENTRIES", 11 * CLASSES * 8)
    graded(*networks, batch=4 * 60)  # four networks at a time
    assert seen.pop(0) == 1, "one example shows how many classes there are"
    assert sum(seen) == 3 * 60 and max(seen) == 8


def test_ensembles_of_one_size_are_bounded_and_share_no_network(networks):
    network, spec, thetas, x, _ = networks
    found = answers(network, spec, thetas, x, groups=2)["linear"]
    assert {size: len(one.entropy) for size, one in found.items()} == {1: 2, 2: 2, 4: 2, 8: 1}
    changed = thetas.clone()
    changed[4] *= 2
    again = answers(network, spec, changed, x, groups=2)["linear"]
    assert torch.equal(found[4].entropy[0], again[4].entropy[0]) and not torch.equal(found[4].entropy[1], again[4].entropy[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": [16, 32]}, "There are 11 networks, too few for ensembles of 16, 32"),
        ({"sizes": []}, "too few for ensembles of no size"),
        ({"pools": ("median",)}, r"Unknown pool 'median'\. Known: linear, log"),
    ],
)
def test_what_does_not_fit_is_said(networks, change, words):
    with pytest.raises(ValueError, match=words):
        answers(*networks[:4], **change)


def test_labels_of_no_class_are_refused(networks):
    with pytest.raises(ValueError, match="y holds classes 3 to 3, but the network tells 3 apart"):
        graded(*networks[:4], torch.full((60,), CLASSES))


@pytest.mark.parametrize("how", [{}, {"batch_size": 10}])
def test_a_network_with_one_logit_tells_two_classes_apart(how, generator):
    """It answers as the network whose other logit is always 0."""
    one, two = nn.Linear(2, 1), nn.Linear(2, 2)
    thetas, x = torch.randn(4, 3, generator=generator), torch.randn(15, 2, generator=generator)
    both = torch.cat([torch.zeros(4, 2), thetas[:, :2], torch.zeros(4, 1), thetas[:, 2:]], 1)
    y = torch.randint(2, (15,), generator=generator)
    found, expected = (
        graded(network, geoflow.spec_of(network, x), nets, x, y, **how)["linear"][2] for network, nets in ((one, thetas), (two, both))
    )
    for got, wanted in ((found.nll, expected.nll), (found.brier, expected.brier), (found.answers.entropy, expected.answers.entropy)):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="y holds classes 2 to 2, but the network tells 2 apart"):
        graded(one, geoflow.spec_of(one, x), thetas, x, torch.full((15,), 2), **how)


# Any kind of outputs


def targets_of(outputs, networks):
    """Networks and targets for a kind of outputs. Those for real targets give two means and two log-variances."""
    *_, x, _ = networks
    if outputs == "classes":
        return networks
    network = mlp(4, [6], 4)
    spec = geoflow.spec_of(network, x[:2])
    thetas = torch.stack([geoflow.pack(spec, mlp(4, [6], 4).state_dict()) for _ in range(11)])
    return network, spec, thetas, x, torch.randn(60, 2)


@pytest.mark.parametrize("change", [{}, {"batch": 7}, {"batch_size": 13}])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_scores_by_size_are_those_of_each_ensemble_alone(networks, outputs, change):
    network, spec, thetas, x, y = targets_of(outputs, networks)
    found = scores_by_size(network, spec, thetas, x, y, groups=4, outputs=outputs, **change)
    assert [*found] == [*outputs_of(outputs).pools]
    for pool, by_size in found.items():
        assert {size: len(one.nll) for size, one in by_size.items()} == {1: 4, 2: 4, 4: 2, 8: 1}
        for size, one in by_size.items():
            for group in range(len(one.nll)):
                members = thetas[group * size : (group + 1) * size]
                alone = vars(ensemble_scores(network, spec, members, x, y, pool=pool, outputs=outputs))
                for name, value in alone.items():
                    torch.testing.assert_close(vars(one)[name][group], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_pooled_predictions_have_the_scores_of_their_ensemble(networks, outputs):
    network, spec, thetas, x, y = targets_of(outputs, networks)
    kind = outputs_of(outputs)
    prediction = torch.stack([kind.prediction(functional_call(network, geoflow.unpack(spec, theta), x)) for theta in thetas[:4]])
    for pool in kind.pools:
        found = pooled_record(prediction.detach(), y, pool, outputs)
        alone = vars(ensemble_scores(network, spec, thetas[:4], x, y, pool=pool, outputs=outputs))
        assert found.keys() == columns_of(outputs).keys()
        assert {name: found[name] for name in alone} == pytest.approx({name: value.item() for name, value in alone.items()}, abs=1e-5)
    record = numbers_record(scores_by_size(network, spec, thetas, x, y, outputs=outputs))["linear"]["4"]
    assert record["groups"] == 2 and {*record} - {"groups"} == {*kind.columns} and record["nll"]["std"] > 0


def test_graded_and_scores_by_size_agree(networks):
    wide, narrow = graded(*networks), scores_by_size(*networks)
    for pool, by_size in wide.items():
        for size, one in by_size.items():
            torch.testing.assert_close(one.nll.mean(1), narrow[pool][size].nll, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(one.correct.float().mean(1), narrow[pool][size].accuracy)


def test_no_ensemble_is_made_of_what_is_left(generator):
    members = torch.randn(11, 3, generator=generator)
    divided = grouped(members, 4, 9)
    assert divided.shape == (4, 2, 3) and torch.equal(divided[:, 1], members[4:8])
    assert grouped(members, 12).shape == (12, 0, 3)


def test_every_pool_says_what_its_members_hold():
    assert INFORMATION.keys() == POOLS.keys() == posterior_plots.STYLES.keys()


# Reliability, selective prediction, other tasks


def draw(generator, examples=400, groups=3, levels=None):
    """Confidences, of which `levels` are different, and whether each answer is correct."""
    confidence = 0.3 + 0.7 * torch.rand(groups, examples, generator=generator)
    if levels:
        confidence = (confidence * levels).round() / levels
    return confidence, torch.rand(groups, examples, generator=generator) < confidence


def test_bins_of_reliability_are_those_of_sklearn(generator):
    confidence, correct = draw(generator)
    bins = reliability(confidence, correct)
    accuracy, mean = calibration_curve(correct.flatten(), confidence.flatten(), n_bins=len(bins.share))
    full = bins.share > 0
    np.testing.assert_allclose(bins.accuracy[full], accuracy, atol=1e-5)
    np.testing.assert_allclose(bins.confidence[full], mean, atol=1e-5)
    assert bins.share.sum().item() == pytest.approx(1) and bins.accuracy[~full].isnan().all() and (~full).any()


def test_the_gaps_of_the_bins_make_the_ece(generator):
    confidence, correct = draw(generator, groups=1)
    bins = reliability(confidence, correct)
    gaps = (bins.share * (bins.accuracy - bins.confidence).abs()).nansum().item()
    assert gaps == pytest.approx(ece(confidence[0], correct[0]).item(), abs=1e-6)


def test_selective_accuracy_is_that_of_the_most_confident(generator):
    confidence, correct = draw(generator, examples=50)
    found = selective(confidence, correct)
    for group in range(len(found)):
        for k in (1, 7, 50):
            surest = confidence[group].topk(k).indices
            assert found[group, k - 1].item() == pytest.approx(correct[group, surest].double().mean().item(), abs=1e-6)
    assert torch.allclose(found[:, -1], correct.float().mean(1))


def test_the_order_of_equal_confidences_does_not_matter(generator):
    """The curve is the mean over all orders of examples with equal confidence."""
    confidence, correct = draw(generator, examples=6, groups=1, levels=3)
    shuffled = []
    for _ in range(4000):
        order = torch.randperm(6, generator=generator)
        confidence_there, correct_there = confidence[0, order], correct[0, order].double()
        surest = confidence_there.argsort(descending=True, stable=True)
        shuffled.append(correct_there[surest].cumsum(0) / torch.arange(1, 7))
    mean = torch.stack(shuffled).mean(0)
    torch.testing.assert_close(selective(confidence, correct)[0].double(), mean, atol=0.03, rtol=0)  # 4 deviations of such a mean
    order = torch.randperm(6, generator=generator)
    assert torch.equal(selective(confidence, correct), selective(confidence[:, order], correct[:, order]))
    assert not torch.equal(selective(confidence, correct), selective(confidence, correct[:, order]))


def test_auroc_counts_pairs(generator):
    outside, inside = (torch.rand(2, n, generator=generator).mul(8).round() for n in (30, 40))
    outside += 2
    pairs = outside[:, :, None] - inside[:, None]
    by_pairs = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean((1, 2))
    torch.testing.assert_close(auroc(outside, inside).double(), by_pairs)
    torch.testing.assert_close(auroc(inside, outside).double(), 1 - by_pairs)
    assert auroc(inside[:1], inside[:1]).item() == 0.5
    labels = [1] * 30 + [0] * 40
    assert auroc(outside[:1], inside[:1]).item() == pytest.approx(roc_auc_score(labels, torch.cat([outside[0], inside[0]])))


def test_scores_are_means_and_deviations_over_ensembles(networks):
    found = graded(*networks)["linear"]
    values, one = scores_of(found[4]), scores_of(found[8])
    first, second = found[4].nll.mean(1).tolist()
    assert values["nll"] == pytest.approx({"mean": (first + second) / 2, "std": abs(first - second) / math.sqrt(2)})
    assert list(values) == ["accuracy", "nll", "brier", "ece", "area"] and all(value["std"] == 0 for value in one.values())


# Records


def test_records_are_plain_numbers_of_what_was_found(networks):
    network, spec, thetas, x, _ = networks
    found = graded(*networks)
    record = {
        "scores": scores_record(found),
        "reliability": reliability_record(found, 4),
        "selective": selective_record(found, 4),
        "outside": outside_record(answers(network, spec, thetas, 10 * x), found, 4),
    }
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    scores, bins, curve, outside = (record[name]["log"] for name in record)
    assert {size: one["groups"] for size, one in scores.items()} == {"1": 11, "2": 5, "4": 2, "8": 1}
    assert scores["4"]["nll"] == scores_of(found["log"][4])["nll"]
    assert None in bins["accuracy"] and sum(bins["share"]) == pytest.approx(1)
    assert curve["coverage"][-1] == 1 and curve["accuracy"][-1] == pytest.approx(scores["4"]["accuracy"]["mean"])
    assert len(curve["coverage"]) == len(curve["accuracy"]) and curve["coverage"] == sorted(set(curve["coverage"]))
    assert [*outside["auroc"]["1"]] == ["entropy"] and [*outside["auroc"]["4"]] == ["entropy", "information"]
    assert outside["auroc"]["4"]["entropy"]["mean"] < 0.5, "these networks are surer of larger inputs"
    assert sum(outside["entropy"]["inside"]) == pytest.approx(1) == sum(outside["entropy"]["outside"])


# Inputs of other tasks


def test_other_tasks_have_images_of_the_same_shape():
    for name, source in TASKS.items():
        others = others_of(name)
        assert name not in others and all(TASKS[other].image == source.image for other in others)
        assert all(name in others_of(other) for other in others)
    assert others_of("fashion14") == ("mnist14",) and others_of("breast_cancer") == () and others_of("sst2") == ()


@pytest.fixture
def two_tasks(monkeypatch):
    """Two made-up tasks of images 2 x 2, whose pixels have different means and spreads."""
    from dataclasses import replace

    from geoflow.zoo.tasks import Raw, Source, image, pixels

    def raw(scale, *, seed, folder, fetch):
        numbers = np.random.default_rng(seed + scale)
        x, y = (scale * numbers.normal(1, 1, (n, 4)) for n in (30, 20)), (np.arange(n) % 2 for n in (30, 20))
        (x_train, x_test), (y_train, y_test) = x, y
        return Raw(x_train, y_train, x_test, y_test, ("0", "1"))

    forms = {"table": pixels, "image": image}
    for name, scale in (("near", 1), ("far", 10)):
        monkeypatch.setitem(TASKS, name, Source(lambda scale=scale, **how: raw(scale, **how), forms, (1, 2, 2)))
    return replace


@pytest.mark.parametrize("form", ["table", "image"])
def test_inputs_of_another_task_are_scaled_by_the_first(two_tasks, form):
    """Their own statistics would make them look like those of the task."""
    own, far = load_task("near", 3, form=form), load_task("far", 3, form=form)
    met = outside_inputs("near", "far", 3, form=form)
    assert met.shape == far.x_test.shape == own.x_test.shape and met.dtype == own.x_test.dtype
    raw = {name: TASKS[name].load(seed=3, folder=None, fetch=None) for name in ("near", "far")}
    mean, scale = TASKS["near"].forms[form](raw["near"].x_train)
    np.testing.assert_allclose(met.flatten(1), (raw["far"].x_test - mean) / scale, rtol=1e-5)
    assert met.std() > 5 * own.x_test.std() and far.x_test.std() < 2 * own.x_test.std()


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("digits", "mnist", "Unknown other task for digits 'mnist'. Known: none."),
        ("mnist", "mnist14", "Known: fashion."),
        ("mnist", "mnist", "Known: fashion."),
        ("minst", "mnist", "Unknown task 'minst'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name, other, words):
    with pytest.raises(ValueError, match=words):
        outside_inputs(name, other)


# Tables and figures


def made_up(kinds=("generated", "zoo")) -> dict:
    """What posterior.json may hold."""
    score = {"groups": 2} | {name: {"mean": 0.5, "std": 0.1} for name in ("accuracy", "nll", "brier", "ece", "area")}
    told = {name: {"mean": 0.9, "std": 0.01} for name in ("entropy", "information")}
    auroc = {"1": {"entropy": told["entropy"]}, "2": told, "4": told}
    bins = {"share": [0.0, 0.3, 0.7], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.4, 0.95]}
    entropy = {"edges": [0.0, 0.5, 1.0], "inside": [0.8, 0.2], "outside": [0.3, 0.7]}

    def each(one):
        return {kind: dict.fromkeys(POOLS, one) for kind in kinds}

    return {
        "task": "mnist",
        "shown": 4,
        "ensembles": each(dict.fromkeys(("1", "2", "4"), score)),
        "reliability": each(bins),
        "selective": each({"coverage": [0.5, 1.0], "accuracy": [1.0, 0.9]}),
        "outside": {"fashion": each({"auroc": auroc, "entropy": entropy})},
    }


def test_the_table_has_a_row_for_every_second_size():
    lines = ensembles_table(made_up()).splitlines()
    assert lines[0].split() == ["accuracy", "NLL", "ECE", "Brier", "area", "fashion:", "entropy", "fashion:", "information"]
    names = ["1 generated", "1 zoo"] + [f"4 {kind}, {pool} pool" for pool in POOLS for kind in ("generated", "zoo")]
    assert [line.split("  ")[0] for line in lines[1:]] == names
    assert lines[1].split()[-2:] == ["0.900", "-"] and lines[-1].split()[-2:] == ["0.900", "0.900"]


def test_the_table_lacks_what_a_small_zoo_cannot_make():
    found = made_up()
    for pool in POOLS:
        found["ensembles"]["zoo"] = {pool: {"1": found["ensembles"]["zoo"][pool]["1"]} for pool in POOLS}
    assert "4 zoo" not in ensembles_table(found) and "1 zoo" in ensembles_table(found)


@pytest.mark.parametrize("kinds", [("generated", "zoo"), ("generated",)])
def test_figures_are_drawn(kinds, tmp_path):
    found = made_up(kinds)
    half = {"mean": 0.5, "std": 0.1}
    numbers = {size: {score: half for score in columns_of("gaussian")} for size in ("1", "2")}
    posterior_plots.plot_ensembles({kind: dict.fromkeys(POOLS, numbers) for kind in kinds}, outputs="gaussian").savefig(tmp_path / "n.png")
    figures = [
        posterior_plots.plot_ensembles(found["ensembles"]),
        posterior_plots.plot_reliability(found["reliability"]),
        posterior_plots.plot_selective(found["selective"]),
        posterior_plots.plot_outside(found["outside"]["fashion"], "mnist", "fashion", 4),
    ]
    for number, figure in enumerate(figures):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{number}.png")  # a warning of matplotlib would fail here
    lines = [line for line in figures[0].axes[0].get_lines() if len(line.get_xdata()) == 3]
    assert len(lines) == len(kinds) * len(POOLS)


def test_a_long_title_lies_within_the_narrowest_figure():
    title = "MNIST, 784-10-10: 1,024 runs, 6,000 steps of 64, seed 0: accuracy of ensembles of 64 where they are sure"
    figure = posterior_plots.plot_selective(made_up(("generated",))["selective"], title)
    figure.draw_without_rendering()
    extent = figure.get_suptitle(), figure._suptitle.get_window_extent()
    assert extent[0].replace("\n", " ") == title and extent[1].x0 >= 0 and extent[1].x1 <= figure.bbox.x1
