"""Draw the figures of a study from its kept runs."""

from collections.abc import Mapping

import pandas as pd
from lab.ensembles import figures_of
from lab.labels import by_kind
from matplotlib.figure import Figure

from geoflow.evaluation.boards import plot_board, plot_rows
from geoflow.evaluation.comparisons import plot_curve, plot_frontier, plot_learning, plot_sizes, plot_tradeoff, plot_widths
from geoflow.outputs import outputs_of
from geoflow.zoo.tasks import TASKS
from pages.kept import beside, free_options
from pages.studies import STUDIES
from pages.tables import BASELINES, NAMES, best, by_label, outputs_in

MAIN = "scoreboard"  # the main figure of a study
SIZES = 3  # least number of zoo sizes for a figure over the size


def figures(study: str, frame: pd.DataFrame) -> dict[str, Figure]:
    """Return the figures of a study by name.

    They show the scoreboard of the first row, all rows beside each other, and what was measured over sizes, steps and sharpness.
    """
    rows = by_label(frame)
    first = next(iter(rows))
    title, outputs = STUDIES[study].title, outputs_in(frame)
    shown = {"scoreboard": plot_board(board(rows[first]), f"{title}: {first}" if len(rows) > 1 else title, outputs_in(rows[first]))}
    task = frame["config.task"].mode()[0]  # the accuracies of another task would stretch the axes
    of_one = {label: _kinds(runs) for label, runs in rows.items() if runs["config.task"].iloc[0] == task}
    if len(of_one) > 1:
        shown["rows"] = plot_rows(of_one, f"{title}: {task}" if len(of_one) < len(rows) else title, outputs)
    if lines := by_size(frame):
        shown["sizes"] = plot_sizes(lines, f"{title}: over the size of the zoo", outputs)
    for number, (label, seed, found) in enumerate(beside(study, "curve")):
        steps = {int(steps): one for steps, one in found["steps"].items()}
        shown[f"curve{number or ''}"] = plot_curve(steps, f"{title}: {label}, seed {seed}, over the steps of the solver", outputs)
    for number, (label, seed, found) in enumerate(beside(study, "widths")):
        sizes = {int(depth): {int(width): one for width, one in row.items()} for depth, row in found["depths"].items()}
        seen = {int(depth): widths for depth, widths in found["seen"].items()}
        name = f"{label.partition(', hidden=')[0]}, seed {seed}: networks of other sizes"
        shown[f"widths{number or ''}"] = plot_widths(sizes, seen, name, outputs)
    if sharper := {label: (seed, found) for label, seed, found in beside(study, "sharpness")}:
        drawn = {label: _by_distance(frame.loc[label, seed], found) for label, (seed, found) in sharper.items()}
        label, (seed, _) = next(iter(sharper.items()))
        zoo = summary(frame.loc[label, seed], "zoo", outputs)
        shown["tradeoff"] = plot_tradeoff(drawn, zoo, f"{title}: quality against diversity", outputs)
    for number, (label, seed, found) in enumerate(beside(study, "polish")):
        ways = {start: [(at["novelty"], at["copies"], at) for at in row.values()] for start, row in found["starts"].items()}
        ways |= by_steps(frame.drop(index=label, level=0))
        shown[f"polish{number or ''}"] = plot_frontier(ways, found["zoo"], f"{title}: {label}, seed {seed}, trained further", outputs)
    for number, (label, seed, found) in enumerate(beside(study, "guide-*")):
        rows = by_kind({name: one["test"] for name, one in found["ways"].items() if one["test"]})
        name = f"{title}: {label}, seed {seed}, guided to {found['task']} with {found['gradients']} gradients"
        shown[f"guide{number or ''}"] = plot_rows(rows, name, TASKS[found["task"]].outputs)
    for number, (label, seed, found) in enumerate(beside(study, "finetune-*")):
        starts = {name: {int(step): one for step, one in start["scores"].items()} for name, start in found["starts"].items()}
        name = f"{title}: {label}, seed {seed}, trained further on {found['task']} with {found['examples']:,} labels"
        shown[f"finetune{number or ''}"] = plot_learning(starts, name, found["level"], TASKS[found["task"]].outputs)
    for number, (label, seed, found) in enumerate(beside(study, "posterior")):
        made = figures_of(found, f"{title}: {label}, seed {seed}")
        shown |= {f"{name}{number or ''}": figure for name, figure in made.items()}
    return shown


def board(runs: pd.DataFrame) -> dict[str, Mapping]:
    """Return the mean scores and the novelty of the zoo, the generated networks and the baselines."""
    mean = runs.mean(numeric_only=True)
    kinds = {"zoo": ("zoo", None), "generated": ("generated", "novelty.ratio")}
    for name in BASELINES:
        if f"baselines.{name}.nll.mean" in mean:
            kinds[NAMES.get(name, name)] = (f"baselines.{name}", f"baselines.{name}.novelty")
    main = outputs_of(outputs_in(runs)).main
    return {
        kind: {score: mean[f"{column}.{score}.mean"] for score in main} | {"novelty": None if new is None else mean[new]}
        for kind, (column, new) in kinds.items()
    }


def by_size(frame: pd.DataFrame) -> dict[str, list[tuple[int, Mapping, Mapping, Mapping]]]:
    """Return a line of points for each training that was done with zoos of several sizes.

    A point is the number of runs in the zoo, the novelty, the scores of the generated networks, and those of the zoo.
    """
    lines, same = {}, ("runs", *free_options(frame[["config.guidance", "config.polish"]].any(axis=None)))
    options = [column for column in frame if column.startswith("config.") and column.split(".")[1] not in same]
    for _, runs in frame.groupby(frame[options].map(str).agg(" ".join, axis=1), sort=False):
        runs = runs.sort_values("config.runs")
        network, iterations, batch, seed = runs[["config.network", "config.iterations", "config.batch", "config.seed"]].iloc[0]
        if len(runs) >= SIZES:
            lines[f"{network}, {iterations:,} steps of {batch}, seed {seed}"] = [
                (
                    int(run["config.runs"]), {"ratio": run["novelty.ratio"], "copies": run["novelty.copies"]},
                    *(summary(run, kind, outputs_in(runs)) for kind in ("generated", "zoo")),
                )
                for _, run in runs.iterrows()
            ]  # fmt: skip
    return lines


def summary(run: pd.Series, kind: str, outputs: str) -> dict[str, dict[str, float]]:
    """Return the main scores of a kind of networks, in the form of `geoflow.evaluation.metrics.summary`."""
    return {score: {part: run[f"{kind}.{score}.{part}"] for part in ("mean", "std")} for score in outputs_of(outputs).main}


def by_steps(frame: pd.DataFrame) -> dict[str, list[tuple[float, float, Mapping]]]:
    """Return a line for `plot_frontier` of each row's first run. Rows that differ in the training steps of the flow alone share one."""
    if frame.empty:
        return {}
    first, lines = frame.groupby(level=0, sort=False).head(1), {}
    same = ("iterations", "seed", *free_options(frame[["config.guidance", "config.polish"]].any(axis=None)))
    options = [column for column in frame if column.startswith("config.") and column.split(".")[1] not in same]
    for _, runs in first.groupby(first[options].map(str).agg(" ".join, axis=1), sort=False):
        labels, runs = [label for label, *_ in runs.index], runs.sort_values("config.iterations")
        steps = ", ".join(f"{steps:,}" for steps in runs["config.iterations"])
        name = labels[0] if len(labels) == 1 else f"{labels[0]}: {steps} steps"
        lines[name] = [
            (run["novelty.ratio"], run["novelty.copies"], summary(run, "generated", outputs_in(runs))) for _, run in runs.iterrows()
        ]
    return lines


def _kinds(runs: pd.DataFrame) -> dict[str, Mapping]:
    """Return what a row of the figure shows: the zoo, the generated networks, and the baseline with the lowest NLL."""
    shown = board(runs)
    top = best(runs)
    return {"zoo": shown["zoo"], "generated": shown["generated"], "best baseline": shown[NAMES.get(top, top)]}


def _by_distance(run: pd.Series, found: Mapping) -> list[tuple[float, Mapping]]:
    """Return for each sharpness the distance of two networks, divided by that of two of the zoo, and the scores."""
    zoo = run["diversity.zoo.distance"]
    return [(one["diversity"]["generated"]["distance"] / zoo, one["generated"]) for one in found["sharpness"].values()]
