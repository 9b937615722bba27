"""The command line with conditions: asked levels of the loss, and one flow for two tasks."""

from functools import partial
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from sklearn.utils import Bunch

from geoflow.flow import Flow
from geoflow.zoo.recipes import RECIPES
from geoflow.zoo.tasks import TASKS, Source, _split_table, standardise
from tests.test_experiments import SCORES, launch, read, say, types_of

LEVEL = {"asked": float, "reached": {"mean": float, "std": float}, "test": SCORES}
LABELS = ["task=iris", "task=turned"]


def turned() -> Bunch:
    """Irises with the classes in another order: another task of the same form."""
    irises = sklearn.datasets.load_iris()
    return Bunch(data=irises.data, target=(irises.target + 1) % 3, target_names=irises.target_names[[2, 0, 1]])


@pytest.fixture(scope="module", autouse=True)
def two_tasks(experiments_on_path):
    """A second task beside iris."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "turned", Source(partial(_split_table, turned), {"table": standardise}))
        patch.setitem(RECIPES["mlp"], "turned", RECIPES["mlp"]["iris"])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs and the cache of all these tests lie."""
    return tmp_path_factory.mktemp("conditioned")


@pytest.fixture(scope="module")
def leveled(place) -> Path:
    """The folder of a run whose flow is told losses."""
    return launch(place, condition="nll", condition_dropout=0.2)


@pytest.fixture(scope="module")
def both(place) -> Path:
    """The folder of a run for two tasks."""
    return launch(place, task="iris,turned", condition="task")


def test_a_run_asks_for_five_levels_of_the_zoo(leveled):
    found, flow = read(leveled, "metrics.json")["condition"], Flow.load(leveled / "flow.safetensors")
    assert [types_of(one) for one in found["levels"]] == [LEVEL] * 5 and found["networks"] == 8
    asked = [one["asked"] for one in found["levels"]]
    assert asked == sorted(asked) and flow.conditions.low[0] < torch.tensor(asked).log().min()
    assert torch.tensor(asked).log().max() < flow.conditions.high[0]
    assert -1 <= found["rank_correlation"] <= 1 and found["strength"] == 1.0
    assert "rank correlation of asked and reached" in (leveled / "cout.txt").read_text()
    assert "## Asked levels" in (leveled / "report.md").read_text()
    assert flow.config["condition_dropout"] == 0.2


def test_the_levels_are_losses_on_training_data(leveled, place):
    """Against the losses of the zoo's own networks."""
    from lab.collect import collect
    from lab.conditions import training_nll

    found = collect(read(leveled, "config.json") | {"cache": str(place / "cache")}, "cpu")
    losses = training_nll(found.network, found.spec, found.task, found.fitted.networks, "cpu")
    flow = Flow.load(leveled / "flow.safetensors")
    assert (flow.conditions.low[0], flow.conditions.high[0]) == pytest.approx((losses.log().min().item(), losses.log().max().item()))


def test_evaluate_reaches_the_levels_of_the_run(leveled, place, capsys):
    scored = read(launch(place, "evaluate", named=(), checkpoint=str(leveled)), "metrics.json")
    first = read(leveled, "metrics.json")
    assert scored["condition"] == first["condition"] and scored["generated"] == first["generated"]
    assert "asked NLL, training" in capsys.readouterr().out


def test_sample_asks_for_a_level_and_says_where_it_extrapolates(leveled, place, capsys):
    from lab.folder import read_samples

    low = Flow.load(leveled / "flow.safetensors").conditions.low[0]
    inside = torch.tensor(low).exp().item() * 1.01
    drawn = launch(place, "sample", named=(), checkpoint=str(leveled), count=8, ask=inside)
    assert read_samples(drawn / "samples.safetensors").config["extrapolated"] is False
    with pytest.warns(UserWarning, match="outside the range that the flow learned"):
        beyond = launch(place, "sample", named=(), checkpoint=str(leveled), count=8, ask=inside / 10)
    assert read_samples(beyond / "samples.safetensors").config["extrapolated"] is True
    scored = launch(place, "evaluate", named=(), checkpoint=str(beyond))
    assert read(scored, "metrics.json")["extrapolated"] is True and "an extrapolation." in capsys.readouterr().out
    plain = launch(place, "sample", named=(), checkpoint=str(leveled), count=8)
    again, first = (read_samples(folder / "samples.safetensors") for folder in (plain, leveled))
    assert torch.equal(again.thetas, first.thetas) and "extrapolated" not in again.config


def test_one_flow_for_two_tasks_has_scores_of_each(both, place):
    metrics = read(both, "metrics.json")
    assert list(metrics["architectures"]) == LABELS and metrics["task"] == ["iris", "turned"]
    flow = Flow.load(both / "flow.safetensors")
    assert len(flow.charts) == 1 and flow.conditions.count == 2
    alone = launch(place, task="turned")
    assert read(alone, "metrics.json")["zoo"] == metrics["architectures"]["task=turned"]["zoo"]  # each has its own zoo
    assert {path.name for path in (both / LABELS[1]).iterdir()} == {"samples.safetensors", "report.md", "figures"}


@pytest.mark.parametrize("label", LABELS)
def test_the_task_is_chosen_by_its_name(label, both, place):
    from lab.folder import read_samples

    task = label.removeprefix("task=")
    drawn = launch(place, "sample", named=(), checkpoint=str(both), task=task, count=8)
    first, again = (read_samples(folder / "samples.safetensors") for folder in (both / label, drawn))
    assert torch.equal(first.thetas, again.thetas) and again.config["task"] == task
    scored = launch(place, "evaluate", named=(), checkpoint=str(drawn))
    assert read(scored, "metrics.json")["generated"] == read(both, "metrics.json")["architectures"][label]["generated"]


def test_two_tasks_may_have_several_architectures(place):
    folder = launch(place, task=["iris", "turned"], hidden=[[5], [3]], condition="task", iterations=4)
    assert list(read(folder, "metrics.json")["architectures"]) == [f"{task},hidden=[{n}]" for task in LABELS for n in (5, 3)]
    assert len(Flow.load(folder / "flow.safetensors").charts) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("with condition=accuracy", "Unknown condition 'accuracy'. Known: none, nll, task."),
        ("with condition=task", "1 task and condition=task do not go together"),
        ("with task=iris,turned", "2 tasks and condition=none do not go together. A flow for several tasks is told which one"),
        ("with task=iris,iris condition=task", "task=iris is listed twice."),
        ("with task=iris,digits condition=task", "The tasks iris, digits have zoos of different snapshots"),
        ("with condition=nll 'hidden=[[3],[4]]'", "condition=nll serves one architecture"),
        ("with condition_dropout=1.0", "condition_dropout=1.0 must be a share from 0 to below 1."),
        ("with condition_strength=-1", "condition_strength=-1 must be a number of at least 0."),
        ("with ask=0.1", "ask serves the commands on a saved flow"),
    ],
)
def test_a_mistake_with_conditions_is_answered_in_a_line(argv, words, capsys, tmp_path):
    command, _, updates = argv.rpartition("with ")
    answer = say(f"{command} --file_storage={tmp_path} with {updates}", capsys)
    assert words in answer and "Traceback" not in answer
    assert not list(tmp_path.iterdir()), "no run begins"


def test_what_a_conditioned_flow_cannot_do_is_said(both, leveled, place):
    from lab.checks import InputError

    for folder, config, words in (
        (both, {"ask": 0.1}, "ask=0.1 serves flows with condition=nll, and this one has condition=task"),
        (leveled, {"ask": 0.0}, "ask=0.0 must be a number above 0"),
        (leveled, {"condition": "task"}, "takes the flow as it was fitted, so condition=task would change nothing"),
        (both, {"task": "wine"}, r"fitted to \(task=iris, task=turned\); for another task use transfer"),
    ):
        with pytest.raises(InputError, match=words):
            launch(place, "sample", named=(), checkpoint=str(folder), count=2, steps=2, **config)


def test_tasks_of_different_forms_are_refused(place, monkeypatch):
    from lab.checks import InputError

    monkeypatch.setitem(RECIPES["mlp"], "wine", RECIPES["mlp"]["iris"])
    with pytest.raises(InputError, match=r"iris has inputs \[4\] and 3 classes and wine has inputs \[13\] and 3 classes"):
        launch(place, task=["iris", "wine"], condition="task")
