"""One call scores generated networks beside their zoo and the baselines, for any network and data."""

import json

import pytest
import torch
from torch import nn

import geoflow
from geoflow.evaluation.advice import advice
from geoflow.evaluation.baselines import BASELINES
from geoflow.evaluation.scoreboard import scoreboard
from geoflow.zoo.own import own_task
from geoflow.zoo.train import train_zoo

NETS = 40


def build():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 3, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return own_task(x[:100], y[:100], x[100:], y[100:])


@pytest.fixture(scope="module")
def trained(data):
    """Twice NETS networks, [runs, snapshots, weights]: the first half is the zoo, the second was trained separately."""
    settings = {"epochs": 20, "batch": 20, "lr": 0.03, "weight_decay": 0.01, "seed": 0, "snapshots": 2, "every": 5}
    states = train_zoo(build, data, runs=2 * NETS, progress=False, **settings)
    return geoflow.pack(spec(), states)


def spec():
    return geoflow.spec_of(build(), torch.zeros(1, 3))


def moved(thetas):
    """The same functions with their units in another order and on another scale."""
    generator = torch.Generator().manual_seed(1)
    return torch.stack([geoflow.apply_symmetry(spec(), one, geoflow.random_symmetry(spec(), generator, one.dtype)) for one in thetas])


def test_networks_that_were_trained_separately_are_new_and_copies_are_not(data, trained):
    """Also if the copies have their units in another order and on another scale."""
    zoo, others = trained[:NETS], trained[NETS:, -1]
    new = scoreboard(build(), spec(), zoo, others, data).metrics
    copied = scoreboard(build(), spec(), zoo, moved(zoo[:, -1]), data).metrics
    assert 0.6 < new["novelty"]["ratio"] < 1.6 and new["novelty"]["copies"] <= 0.1
    assert copied["novelty"]["ratio"] < 1e-3 and copied["novelty"]["copies"] == 1.0
    assert copied["generated"]["nll"]["mean"] == pytest.approx(
        geoflow.evaluate(build(), spec(), zoo[:, -1], data.x_test, data.y_test).nll.mean().item(), rel=1e-5
    )
    said = advice(copied)
    assert len(said) == 1 and said[0].startswith("100% of the generated networks are suspiciously close to one training network")
    assert not any("suspiciously" in line for line in advice(new))


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_precisions_may_differ(dtype, data, trained):
    """Networks are compared in the finer precision of the two, so that rounding alone makes a copy no new network."""
    zoo = trained[:NETS].to(dtype)
    found = scoreboard(build(), spec(), zoo, zoo[:, -1].float(), data, heldout=trained[NETS:, -1].to(dtype)).metrics
    assert found["novelty"]["copies"] == 1.0 and found["novelty"]["ratio"] < 1e-3
    assert (
        found["generated"]["nll"]["mean"] == pytest.approx(found["ensemble"]["zoo"]["nll"], abs=1) and found["novelty"]["heldout_to_train"]
    )


def test_it_holds_what_a_reader_needs_and_says_so(data, trained, tmp_path):
    board = scoreboard(build(), spec(), trained[:NETS], trained[NETS:, 0], data, heldout=trained[NETS:, 1])
    assert set(board.metrics["baselines"]) == set(BASELINES)
    assert board.metrics["parameters"] == spec().weights and board.metrics["recalibrated"] is None
    assert board.metrics["novelty"]["heldout_to_train"] > 0
    text = str(board)
    assert text.splitlines()[1].startswith("zoo ") and "rescaled mean" in text
    report = board.write(tmp_path / "board", {"how": "by hand"})
    assert json.loads((tmp_path / "board" / "metrics.json").read_text()) == board.metrics
    said = report.read_text()
    assert said.startswith("# Generated networks beside their zoo") and '"how": "by hand"' in said and "## Time" not in said
    assert {path.stem for path in (tmp_path / "board" / "figures").iterdir()} == {"scores", "distances"} == set(board.figures)
    assert all(f"figures/{name}.png" in said for name in board.figures)


def test_snapshots_of_one_run_are_no_neighbours_of_each_other(data, trained):
    """Else the snapshots of a run, which are alike, would make every new network look new."""
    several, alone = trained[:NETS], trained[:NETS].flatten(0, 1)
    by_run, by_network = (scoreboard(build(), spec(), zoo, trained[NETS:, -1], data).metrics["novelty"] for zoo in (several, alone))
    assert by_run["zoo_leave_one_out"] > by_network["zoo_leave_one_out"]


def test_a_flow_brings_its_own_form_and_its_loss(data, trained):
    """Means of euclidean canonical networks are other networks than those of geometric ones."""
    zoo = trained[:NETS, -1]
    flow = geoflow.fit(spec(), zoo, flow="euclidean", iterations=2, batch=8, progress=False)
    own, plain = (scoreboard(build(), spec(), zoo, trained[NETS:, -1], data, one) for one in (flow, None))
    assert set(own.figures) == {"scores", "distances", "loss"}
    means = [board.metrics["baselines"]["mean_network"]["nll"]["mean"] for board in (own, plain)]
    assert means[0] != means[1]
    assert own.metrics["novelty"]["ratio"] == plain.metrics["novelty"]["ratio"], "the ruler is the same for every flow"


def test_poor_networks_are_called_poor(data, trained):
    poor = torch.randn(8, spec().weights, generator=torch.Generator().manual_seed(0)) * 5
    said = str(scoreboard(build(), spec(), trained[:NETS], poor, data))
    assert "behind the mean network" in said and "look at the stages" in said


def test_running_statistics_of_baselines_are_measured_anew_where_inputs_are_given(data):
    def network():
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))

    table = geoflow.spec_of(network(), torch.zeros(2, 3))
    states = train_zoo(network, data, runs=12, epochs=5, batch=20, lr=0.03, weight_decay=0.01, seed=0, progress=False)
    zoo = geoflow.pack(table, states).flatten(0, 1)
    as_they_are, anew = (scoreboard(network(), table, zoo[:8], zoo[8:], data, seen=seen).metrics for seen in (None, data.x_train))
    assert (as_they_are["recalibrated"], anew["recalibrated"]) == (0, len(data.x_train))
    assert as_they_are["zoo"] == anew["zoo"] and as_they_are["generated"] == anew["generated"]
    assert as_they_are["baselines"]["mean_network"]["nll"] != anew["baselines"]["mean_network"]["nll"]


def test_real_targets_have_their_own_scores():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    data = own_task(x[:40], x[:40, :1], x[40:], x[40:, :1], outputs="gaussian", names=["size"])
    zoo = torch.randn(20, spec().weights, generator=generator)
    board = scoreboard(build(), spec(), zoo[:12], zoo[12:], data)
    assert board.metrics["outputs"] == "gaussian" and board.metrics["targets"][0]["name"] == "size"
    assert "r2" in board.metrics["generated"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": torch.zeros(4, 2)}, r"An example of x_train has shape \[3\], and one of x_test \[2\]"),
        ({"y_train": torch.zeros(8)}, 'Real targets need outputs="gaussian"'),
        ({"y_test": torch.tensor([0, 1])}, "one class index for each of the 4 examples"),
        ({"names": ["one"]}, "names holds 1 names, and y has 2"),
        ({"outputs": "logits"}, "Unknown outputs 'logits'"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(change, words):
    usual = {"x_train": torch.zeros(8, 3), "y_train": torch.arange(8) % 2, "x_test": torch.zeros(4, 3), "y_test": torch.arange(4) % 2}
    own_task(**usual)
    with pytest.raises(ValueError, match=words):
        own_task(**(usual | change))


def test_a_zoo_of_one_run_cannot_be_compared_with(data, trained):
    with pytest.raises(ValueError, match="at least 2"):
        scoreboard(build(), spec(), trained[:1], trained[NETS:, -1], data)
