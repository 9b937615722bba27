"""Draw what several runs, or several ways to sample one flow, made of it beside each other."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.evaluation.novelty import COPIES
from geoflow.evaluation.plots import BLACK, BLUE, COLOURS, GREY, ORANGE, SCORED, VERMILION, plain_ticks

LABEL = 44  # characters of a line of a run's name
MARKERS = "os^Dv"
Summary = Mapping[str, Mapping[str, float]]  # score: its mean and std over networks, as `summary` gives them


def plot_curve(scores: Mapping[int, Summary], title: str = "Quality over the steps of the solver, mean ± standard deviation") -> Figure:
    """Mean accuracy and negative log-likelihood of networks drawn in so many steps, with their standard deviations.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_curve({1: one, 2: one}).axes)
    2
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (field, label) in zip(figure.subplots(1, 2), SCORED.items(), strict=True):
        means, spreads = ([one[field][part] for one in scores.values()] for part in ("mean", "std"))
        axes.errorbar(list(scores), means, spreads, color=BLUE, marker="o", markersize=4, capsize=3, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(scores), list(map(str, scores)))
        axes.set(xlabel="steps", ylabel=label)
        _finish(axes, field, "y")
    return figure


def plot_summaries(runs: Mapping[str, Mapping[str, Summary]], title: str = "Mean of single networks ± standard deviation") -> Figure:
    """Accuracy and negative log-likelihood of the networks of several runs, a row for each run, a mark for each set of networks.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_summaries({"seed 0": {"zoo": one, "generated": one}}).axes)
    2
    """
    names = [fill(name, LABEL) for name in runs]
    figure = Figure(figsize=(10, 1.6 + 0.34 * max(name.count("\n") + 1 for name in names) * len(runs)), layout="constrained")
    figure.suptitle(title)
    sets = list(dict.fromkeys(name for one in runs.values() for name in one))
    for axes, (field, label) in zip(figure.subplots(1, 2, sharey=True), SCORED.items(), strict=True):
        for number, name in enumerate(sets):
            rows = [row + (number - len(sets) / 2 + 0.5) * 0.14 for row, one in enumerate(runs.values()) if name in one]
            found = [one[name][field] for one in runs.values() if name in one]
            style = {"color": COLOURS.get(name, (ORANGE, GREY, VERMILION)[number % 3]), "marker": MARKERS[number % len(MARKERS)]}
            means, spreads = [one["mean"] for one in found], [one["std"] for one in found]
            axes.errorbar(means, rows, xerr=spreads, label=name.replace("_", " "), linestyle="", markersize=5, linewidth=1.2, **style)
        axes.set_yticks(range(len(runs)), names)
        axes.set(xlabel=label)
        _finish(axes, field, "x")
    figure.axes[0].set_ylim(len(runs) - 0.5, -0.5)  # the first run on top, and no mark cut off at the edge
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sets), frameon=False)
    return figure


def plot_tradeoff(
    flows: Mapping[str, Sequence[tuple[float, Summary]]], zoo: Summary, title: str = "Quality against diversity, by sharpness"
) -> Figure:
    """Mean accuracy and negative log-likelihood of networks against how far two of them are apart, in units of the zoo.

    A line for each flow, a mark for each sharpness, the first of them hollow, the zoo itself at 1. Of two flows the better is more accurate
    at an equal distance.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_tradeoff({"geometric": [(0.98, one), (0.9, one)]}, one).axes)
    2
    """
    figure = Figure(figsize=(8, 4 + 0.22 * len(flows)), layout="constrained")
    figure.suptitle(title)
    for axes, (field, label) in zip(figure.subplots(1, 2), SCORED.items(), strict=True):
        for number, (name, drawn) in enumerate(flows.items()):
            style = {"color": (BLUE, ORANGE, VERMILION, GREY)[number % 4], "marker": MARKERS[number % len(MARKERS)]}
            points = [(distance, one[field]["mean"]) for distance, one in drawn]
            axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
            axes.plot(*points[0], markersize=4, markerfacecolor="white", **style)
        axes.plot([1], [zoo[field]["mean"]], "*", color=BLACK, markersize=9, linestyle="", label="zoo")
        axes.set(xlabel="distance of two networks / zoo", ylabel=label)
        _finish(axes, field, "y")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + (len(flows) > 3), frameon=False)
    return figure


def plot_sizes(
    flows: Mapping[str, Sequence[tuple[int, Mapping[str, float], Summary, Summary]]],
    title: str = "Novelty and accuracy over the size of the zoo",
) -> Figure:
    """How new and how accurate generated networks are against how many training runs the zoo has, a line for each kind of training.

    A point is (runs, what `novelty` gives, scores of the generated, scores of the zoo's networks). A ratio near 0 means copies of the
    training networks, one near 1 networks as new as another training run; the dashed lines are the zoo's own.

    >>> one, new = {"accuracy": {"mean": 0.9, "std": 0.01}}, {"ratio": 1.0, "copies": 0.01}
    >>> len(plot_sizes({"geometric": [(32, {"ratio": 0.8, "copies": 0.5}, one, one), (128, new, one, one)]}).axes)
    3
    """
    figure = Figure(figsize=(10, 3.4 + 0.22 * len(flows)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    zoos = dict(sorted((runs, (1, COPIES, zoo["accuracy"]["mean"])) for points in flows.values() for runs, _, _, zoo in points))
    for number, (name, points) in enumerate(flows.items()):
        style = {"color": (BLUE, ORANGE, VERMILION, GREY)[number % 4], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        lines = [[(found["ratio"], found["copies"], new["accuracy"]["mean"])[panel] for _, found, new, _ in points] for panel in range(3)]
        for axes, line in zip(panels, lines, strict=True):
            axes.plot([point[0] for point in points], line, label=name, **style)
    labels = ("novelty ratio", "share of copies", "accuracy")
    for axes, label, own in zip(panels, labels, zip(*zoos.values(), strict=True), strict=True):
        axes.plot(list(zoos), own, color=BLACK, linestyle="--", linewidth=1, label="zoo")
        axes.set(xscale="log", xlabel="training runs in the zoo", ylabel=label)
        axes.set_xticks(list(zoos), list(map(str, zoos)))
        axes.minorticks_off()
        _finish(axes, "accuracy", "y")
        if axes is not panels[-1]:
            axes.set_ylim(0, 1.1 * max(1, axes.get_ylim()[1] / 1.1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + (len(flows) > 2), frameon=False)
    return figure


def _finish(axes: Axes, field: str, along: str) -> None:
    """A grid, and a readable logarithmic axis where it shows likelihoods."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=along if along == "x" else "both", alpha=0.25)
    if field == "nll":
        axes.set(**{f"{along}scale": "log"})
        plain_ticks(getattr(axes, f"{along}axis"))
