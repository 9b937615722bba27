"""The main job and the commands on a saved flow serve a task whose targets are real numbers."""

import math

import pytest
import torch

from geoflow.evaluation.baselines import BASELINES
from geoflow.evaluation.boards import plot_board, plot_rows
from geoflow.evaluation.comparisons import plot_curve, plot_learning, plot_sharpness, plot_sizes, plot_tradeoff
from geoflow.evaluation.plots import plot_scores
from geoflow.evaluation.tables import diversity_table, metrics_table, scores_table
from geoflow.outputs import RegressionScores
from tests.test_experiments import FIGURES, FILES, STATISTICS, launch, read, types_of

COLUMNS = ["MSE", "NLL", "R²", "calibration"]
SCORES = dict.fromkeys(("mse", "nll", "r2", "calibration"), STATISTICS)
POOLED = dict.fromkeys(SCORES, float)
TINY = {"hidden": [5], "runs": 12, "snapshots": 2, "iterations": 3, "batch": 8, "count": 4, "steps": 2}
ZOO = {"epochs": 4, "every": 2}

pytestmark = pytest.mark.usefixtures("experiments_on_path")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("real_targets")


@pytest.fixture(scope="module")
def finished(place):
    return launch(place, named=(), task="diabetes", zoo=ZOO, **TINY)


def test_the_main_job_scores_real_targets_and_says_their_unit(finished):
    metrics = read(finished, "metrics.json")
    assert metrics["outputs"] == "gaussian"
    (target,) = metrics["targets"]
    assert target["name"] == "disease progression" and 70 < target["deviation"] < 85
    kinds = {"zoo": metrics["zoo"], "generated": metrics["generated"], **metrics["baselines"]}
    assert set(kinds) == {"zoo", "generated", *BASELINES}
    for one in kinds.values():
        assert types_of({name: one[name] for name in SCORES}) == SCORES
    for one in metrics["ensemble"].values():
        assert types_of(one) == {"n": int, **POOLED, "log_pool": POOLED}
    assert {path.name for path in finished.iterdir()} == FILES
    assert {path.stem for path in (finished / "figures").iterdir()} == FIGURES


def test_the_report_and_the_printed_table_read_right(finished):
    report, printed = ((finished / name).read_text(encoding="utf-8") for name in ("report.md", "cout.txt"))
    deviation = read(finished, "metrics.json")["targets"][0]["deviation"]
    assert "| networks | MSE | NLL | R² | calibration |" in report
    assert f"standard deviations of the training part: {deviation:.4g} for disease progression." in report
    assert "R² and negative log-likelihood of single networks" in report
    for text in (report, printed):
        assert "accuracy" not in text and "ECE" not in text and "classes" not in text
    assert next(line for line in printed.splitlines() if "NLL" in line).split() == COLUMNS


@pytest.mark.parametrize(
    ("command", "options", "figure"),
    [
        ("evaluate", {}, None),
        ("transfer", {"hidden": [7], "count": 3}, None),
        ("curve", {"count": 3, "steps": 2}, "curve"),
        ("sharpen", {"count": 3, "sharpness": 0.1}, "sharpness"),
        ("polish", {"count": 3, "polish": 2}, "polish"),
        ("stages", {"count": 3}, None),
    ],
)
def test_the_further_commands_serve_real_targets(finished, place, command, options, figure, capsys):
    folder = launch(place, command, named=(), checkpoint=str(finished), **options)
    printed = capsys.readouterr().out
    assert next(line for line in printed.splitlines() if "NLL" in line).split()[: len(COLUMNS)] == COLUMNS
    assert figure is None or (folder / "figures" / f"{figure}.png").exists()
    if command == "evaluate":
        assert read(folder, "metrics.json")["generated"] == read(finished, "metrics.json")["generated"]


def test_guided_networks_are_drawn_for_real_targets(finished, place):
    """A strong pull changes the networks, and lowers their loss."""
    pulled = launch(place, "sample", named=(), checkpoint=str(finished), count=8, guidance=0.3, steps=20)
    plain = launch(place, "sample", named=(), checkpoint=str(finished), count=8, steps=20)
    scored = [read(launch(place, "evaluate", named=(), checkpoint=str(one)), "metrics.json") for one in (pulled, plain)]
    nll = [metrics["generated"]["nll"]["mean"] for metrics in scored]
    assert nll[0] < nll[1]


def test_advice_compares_the_scores_of_the_kind(finished):
    from lab.advice import advice

    def one(r2, nll):
        return {"r2": {"mean": r2, "std": 0.01}, "nll": {"mean": nll, "std": 0.01}}

    def said(zoo, generated, mean):
        metrics = {"outputs": "gaussian", "zoo": one(*zoo), "generated": one(*generated), "baselines": {"mean_network": one(*mean)}}
        return advice(metrics, {"task": "diabetes", "iterations": 1000}, ())

    assert "Try more iterations" in said((0.5, 1.0), (-2.0, 3.0), (0.4, 1.1))[0]
    assert "but these are near the zoo" in said((0.5, 1.0), (0.48, 1.005), (0.49, 1.004))[0]
    assert said((0.5, 1.0), (0.4, 1.1), (0.3, 1.2)) == []


def test_tables_have_the_columns_of_the_kind():
    one = {name: {"mean": 0.5, "std": 0.25} for name in SCORES}
    metrics = {"outputs": "gaussian", "generated": one, "baselines": {}, "ensemble": {}}
    assert metrics_table(metrics).split("\n")[0].split() == COLUMNS
    assert scores_table({"8 steps": one}, "gaussian").split("\n")[0].split() == COLUMNS
    assert diversity_table({"zoo": {"distance": 2.0, "disagreement": 0.3}}, "gaussian").split("\n")[0].split() == ["distance", "difference"]
    with pytest.raises(KeyError):
        metrics_table(metrics | {"outputs": "classes"})


def test_figures_have_the_labels_of_the_kind():
    """The likelihood may be negative, so its axis is linear."""
    one = {"r2": {"mean": 0.4, "std": 0.1}, "nll": {"mean": -0.2, "std": 0.1}}
    board = {"zoo": {"r2": 0.5, "nll": -0.3, "novelty": None}, "generated": {"r2": 0.4, "nll": -0.2, "novelty": 1.0}}
    new = {"ratio": 1.0, "copies": 0.01}
    figures = [
        plot_board(board, "diabetes", "gaussian"),
        plot_rows({"seed 0": board, "seed 1": board}, "diabetes", "gaussian"),
        plot_curve({1: one, 2: one}, outputs="gaussian"),
        plot_sharpness({0.0: one}, {0.0: one}, {0.0: 2.0}, outputs="gaussian"),
        plot_tradeoff({"geometric": [(1.0, one), (0.9, one)]}, one, outputs="gaussian"),
        plot_learning({"random networks": {0: one, 8: one}}, "diabetes", 0.3, "gaussian"),
        plot_sizes({"geometric": [(8, new, one, one), (16, new, one, one)]}, outputs="gaussian"),
    ]
    for figure in figures:
        labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
        assert any("R²" in label for label in labels) and not any("accuracy" in label for label in labels)
        shown = [axes for axes in figure.axes if "NLL" in axes.get_xlabel() or "log-likelihood" in axes.get_ylabel()]
        assert all(axes.get_xscale() == "linear" for axes in shown if "NLL" in axes.get_xlabel())
        assert all(axes.get_yscale() == "linear" for axes in shown)


def test_a_failing_network_does_not_stretch_the_axes_of_the_others():
    """It is drawn at the edge, with its loss of 1,000 nats or without end."""
    good = torch.linspace(-0.2, 0.2, 30)
    zoo = RegressionScores(mse=good + 0.5, nll=good, r2=good + 0.5, calibration=good.abs())
    bad = RegressionScores(*(torch.tensor([value, good[3]]) for value in (1e3, math.inf, -1e3, 0.5)))
    figure = plot_scores({"zoo": zoo, "mean_network": bad}, outputs="gaussian")
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert -1 < low < high < 1.5, axes.get_xlabel()
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["R² (1 is perfect)", "negative log-likelihood (nats)"]
