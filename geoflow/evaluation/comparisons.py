"""Draw the results of several runs, or of several ways to sample one flow, beside each other."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.evaluation.novelty import COPIES
from geoflow.evaluation.plots import BLACK, BLUE, GREY, ORANGE, VERMILION, main_columns, plain_ticks

MARKERS = "os^Dv"
COPIED = 0.1  # share of copies from which a point of `plot_frontier` is ringed
Summary = Mapping[str, Mapping[str, float]]  # score: its mean and std over networks, from `summary`


def plot_curve(
    scores: Mapping[int, Summary], title: str = "Quality by number of solver steps (mean ± standard deviation)", outputs: str = "classes"
) -> Figure:
    """Draw mean and standard deviation of the two main scores by the number of solver steps.

    `scores` holds a summary of the sampled networks for each number of steps. `outputs` names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_curve({1: one, 2: one}).axes)
    2
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (field, said) in zip(figure.subplots(1, 2), main_columns(outputs).items(), strict=True):
        means, spreads = ([one[field][part] for one in scores.values()] for part in ("mean", "std"))
        axes.errorbar(list(scores), means, spreads, color=BLUE, marker="o", markersize=4, capsize=3, linewidth=1.4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(scores), list(map(str, scores)))
        axes.set(xlabel="solver steps", ylabel=said.long_label)
        _finish(axes, said.log)
    return figure


def plot_sharpness(
    scores: Mapping[float, Summary],
    training: Mapping[float, Summary],
    distances: Mapping[float, float],
    title: str = "Over the sharpness",
    outputs: str = "classes",
) -> Figure:
    """Draw the two main scores and the distance between two networks over the sharpness of one flow.

    `scores` are those on the test part, `training` those on training data, where the best sharpness can be chosen. Distances are shown in
    units of the first. `outputs` names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_sharpness({0.0: one, 1.0: one}, {0.0: one, 1.0: one}, {0.0: 30.5, 1.0: 29.0}).axes)
    3
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle(title)
    *quality, apart = figure.subplots(1, 3)
    for axes, (field, said) in zip(quality, main_columns(outputs).items(), strict=True):
        for found, name, colour, marker in ((scores, "test part", BLUE, "o"), (training, "training data", ORANGE, "s")):
            axes.plot(list(found), [one[field]["mean"] for one in found.values()], color=colour, marker=marker, markersize=4, label=name)
        axes.set(xlabel="sharpness", ylabel=said.long_label)
        _finish(axes, said.log)
    quality[0].legend(frameon=False)
    first = next(iter(distances.values()), None)  # one network has no distance to another
    apart.plot(list(distances), [distance / first for distance in distances.values()], color=BLUE, marker="o", markersize=4)
    apart.set(xlabel="sharpness", ylabel="distance between two networks (first = 1)")
    _finish(apart)
    return figure


def plot_widths(
    found: Mapping[int, Mapping[int, Mapping[str, Summary]]],
    seen: Mapping[int, Sequence[int]],
    title: str = "Networks of other widths and depths",
    outputs: str = "classes",
) -> Figure:
    """Draw the means of the two main scores over the width, with a line for each depth.

    `found` holds by depth and width the summaries "generated" and, if some were trained to compare with, "trained". `seen` holds by depth
    the widths that the flow was fitted to. They are marked by stars. `outputs` names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_widths({1: {8: {"generated": one, "trained": one}, 16: {"generated": one}}}, {1: [8]}).axes)
    2
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title)
    for axes, (field, said) in zip(figure.subplots(1, 2), main_columns(outputs).items(), strict=True):
        for number, (depth, row) in enumerate(found.items()):
            colour, several = (BLUE, ORANGE, VERMILION, GREY)[number % 4], f", depth {depth}"
            for kind, style in (("generated", "-"), ("trained", "--")):
                line = {width: one[kind][field]["mean"] for width, one in row.items() if kind in one}
                axes.plot(list(line), list(line.values()), style, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4,
                          label=f"{kind}{several}")  # fmt: skip
            stars = {width: row[width]["generated"][field]["mean"] for width in seen.get(depth, ()) if width in row}
            axes.plot(list(stars), list(stars.values()), "*", color=colour, markersize=12, label=f"seen by the flow{several}")
        axes.set_xscale("log", base=2)
        widths = sorted({width for row in found.values() for width in row})
        axes.set_xticks(widths, list(map(str, widths)))
        axes.minorticks_off()
        axes.set(xlabel="width", ylabel=said.long_label)
        _finish(axes, said.log)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(1, len(found)), frameon=False)
    return figure


def plot_learning(starts: Mapping[str, Mapping[int, Summary]], title: str, level: float | None = None, outputs: str = "classes") -> Figure:
    """Draw the two main scores over the steps of a training, with a line for each start and a band of one deviation.

    `starts` holds a summary for each step. A dashed line marks the `level` of the first score, which is the accuracy for classes. `outputs`
    names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_learning({"random": {0: one, 8: one}, "generated": {0: one, 8: one}}, "Digits").axes)
    2
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for axes, (field, said) in zip(panels, main_columns(outputs).items(), strict=True):
        for number, (name, scores) in enumerate(starts.items()):
            colour, mean, spread = (BLACK, BLUE, ORANGE, GREY, VERMILION)[number % 5], *_parts(scores, field)
            axes.plot(list(scores), mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4, label=name)
            low = [max(m - s, m / 4) if said.log else m - s for m, s in zip(mean, spread, strict=True)]
            axes.fill_between(list(scores), low, [m + s for m, s in zip(mean, spread, strict=True)], color=colour, alpha=0.15, linewidth=0)
        if level is not None and axes is panels[0]:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
        axes.set_xscale("symlog", linthresh=1)
        last = max(map(max, starts.values()))
        axes.set_xlim(-0.3, 1.4 * last)
        ticks = [0, *(2**n for n in range(0, 20, 2) if 2**n <= last)]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
        axes.set(xlabel="training steps", ylabel=said.long_label)
        _finish(axes, said.log)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _parts(scores: Mapping[int, Summary], field: str) -> tuple[list[float], list[float]]:
    return tuple([one[field][part] for one in scores.values()] for part in ("mean", "std"))


def plot_tradeoff(
    flows: Mapping[str, Sequence[tuple[float, Summary]]],
    zoo: Summary,
    title: str = "Quality and diversity at different sharpness",
    outputs: str = "classes",
) -> Figure:
    """Draw the means of the two main scores against the distance between two networks, in units of the zoo's.

    Each flow has a line, and each sharpness a mark. The first mark is hollow. The zoo lies at 1. Of two flows with the same distance, the
    more accurate one is better. `outputs` names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_tradeoff({"geometric": [(0.98, one), (0.9, one)]}, one).axes)
    2
    """
    figure = Figure(figsize=(8, 4 + 0.22 * len(flows)), layout="constrained")
    figure.suptitle(title)
    for axes, (field, said) in zip(figure.subplots(1, 2), main_columns(outputs).items(), strict=True):
        for number, (name, drawn) in enumerate(flows.items()):
            style = {"color": (BLUE, ORANGE, VERMILION, GREY)[number % 4], "marker": MARKERS[number % len(MARKERS)]}
            points = [(distance, one[field]["mean"]) for distance, one in drawn]
            axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
            axes.plot(*points[0], markersize=4, markerfacecolor="white", **style)
        axes.plot([1], [zoo[field]["mean"]], "*", color=BLACK, markersize=9, linestyle="", label="zoo")
        axes.set(xlabel="distance between two networks (zoo = 1)", ylabel=said.long_label)
        _finish(axes, said.log)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + (len(flows) > 3), frameon=False)
    return figure


def plot_frontier(
    lines: Mapping[str, Sequence[tuple[float, float, Summary]]], zoo: Summary, title: str = "Quality and novelty", outputs: str = "classes"
) -> Figure:
    """Draw the means of the two main scores against the novelty ratio, with a line for each way to make networks.

    A point is (novelty ratio, share of copies, scores). The first point of a line is hollow. A red ring marks points of which more than a
    tenth are copies. Dashed lines are the zoo's own scores. Good and new networks lie near these lines at a novelty near 1. `outputs`
    names the kind of outputs, a row of OUTPUTS.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> len(plot_frontier({"generated": [(0.9, 0.02, one), (0.91, 0.01, one)], "noised": [(0.2, 1.0, one)]}, one).axes)
    2
    """
    figure = Figure(figsize=(10, 4 + 0.12 * len(lines)), layout="constrained")
    figure.suptitle(title)
    for axes, (field, said) in zip(figure.subplots(1, 2), main_columns(outputs).items(), strict=True):
        for number, (name, points) in enumerate(lines.items()):
            style = {"color": (BLUE, ORANGE, BLACK, GREY)[number % 4], "marker": MARKERS[number // 4 % len(MARKERS)], "markersize": 5}
            places = [(novelty, one[field]["mean"]) for novelty, _, one in points]
            axes.plot(*zip(*places, strict=True), label=name, linewidth=1, **style)
            axes.plot(*places[0], markerfacecolor="white", **style)
            copied = [place for place, (_, copies, _) in zip(places, points, strict=True) if copies is not None and copies > COPIED]
            axes.plot([x for x, _ in copied], [y for _, y in copied], "o", color=VERMILION, markersize=10, markerfacecolor="none")
        axes.axhline(zoo[field]["mean"], color=BLACK, linestyle="--", linewidth=1, label="zoo")
        axes.set(xlabel="novelty (1 = as new as another run)", ylabel=said.long_label)
        _finish(axes, said.log)
    figure.axes[0].plot([], [], "o", color=VERMILION, markersize=10, markerfacecolor="none", label="more than a tenth are copies")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_sizes(
    flows: Mapping[str, Sequence[tuple[int, Mapping[str, float], Summary, Summary]]],
    title: str = "Novelty, copies and quality by size of the zoo",
    outputs: str = "classes",
) -> Figure:
    """Draw novelty, copies and the first main score of generated networks by the number of training runs in the zoo.

    Each kind of training has a line. A point is (runs, result of `novelty`, scores of the generated networks, scores of the zoo). A novelty
    near 0 means copies, and one near 1 networks as new as another training run. The dashed lines are the zoo's own values. `outputs` names
    the kind of outputs, a row of OUTPUTS. For classes the score is the accuracy.

    >>> one, new = {"accuracy": {"mean": 0.9, "std": 0.01}}, {"ratio": 1.0, "copies": 0.01}
    >>> len(plot_sizes({"geometric": [(32, {"ratio": 0.8, "copies": 0.5}, one, one), (128, new, one, one)]}).axes)
    3
    """
    figure = Figure(figsize=(10, 3.4 + 0.22 * len(flows)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    (score, said), *_ = main_columns(outputs).items()
    zoos = dict(sorted((runs, (1, COPIES, zoo[score]["mean"])) for points in flows.values() for runs, _, _, zoo in points))
    for number, (name, points) in enumerate(flows.items()):
        style = {"color": (BLUE, ORANGE, VERMILION, GREY)[number % 4], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        lines = [[(found["ratio"], found["copies"], new[score]["mean"])[panel] for _, found, new, _ in points] for panel in range(3)]
        for axes, line in zip(panels, lines, strict=True):
            axes.plot([point[0] for point in points], line, label=name, **style)
    labels = ("novelty (1 = as new as another run)", "share of copies", said.long_label)
    for axes, label, own in zip(panels, labels, zip(*zoos.values(), strict=True), strict=True):
        axes.plot(list(zoos), own, color=BLACK, linestyle="--", linewidth=1, label="zoo")
        axes.set(xscale="log", xlabel="training runs in the zoo", ylabel=label)
        axes.set_xticks(list(zoos), list(map(str, zoos)))
        axes.minorticks_off()
        _finish(axes)
        if axes is not panels[-1]:
            axes.set_ylim(0, 1.1 * max(1, axes.get_ylim()[1] / 1.1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + (len(flows) > 2), frameon=False)
    return figure


def _finish(axes: Axes, log: bool = False) -> None:
    """Draw a grid. A logarithmic axis gets plain ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    if log:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
