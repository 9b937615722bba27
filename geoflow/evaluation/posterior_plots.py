"""Draw how good ensembles are, and how sure, over their size."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from geoflow.evaluation.growing import columns_of
from geoflow.evaluation.plots import BLACK, BLUE, GREY, LIGHT, ORANGE, VERMILION, plain_ticks

COLOURS = {"generated": BLUE, "zoo": BLACK}
STYLES = {"linear": "-", "log": "--"}  # by the pool
LINE = 70  # characters that fit on a line of a title above the narrowest figure
SCORES = {"entropy": ("-", "o"), "information": (":", "s")}  # what tells examples of another task

Value = Mapping[str, float]  # mean and std over ensembles
ByKind = Mapping[str, Mapping[str, Mapping]]  # the kind of networks, the pool, and what was found


def plot_ensembles(found: ByKind, title: str = "Ensembles by their size", outputs: str = "classes") -> Figure:
    """Draw four scores over the number of networks in an ensemble, for each kind of networks and each pool.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy, NLL, ECE and the Brier score.

    A band is the standard deviation over ensembles of one size.

    >>> one = {name: {"mean": 0.5, "std": 0.1} for name in columns_of("classes")}
    >>> len(plot_ensembles({"generated": {"linear": {"1": one, "2": one}}}).axes)
    4
    """
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    figure.suptitle(title)
    for axes, (score, column) in zip(figure.subplots(2, 2).flat, list(columns_of(outputs).items())[:4], strict=True):
        for kind, pool, by_size in _each(found):
            sizes, values = [int(size) for size in by_size], [one[score] for one in by_size.values()]
            _line(axes, sizes, values, color=COLOURS.get(kind, ORANGE), linestyle=STYLES[pool], label=f"{kind}, {pool} pool")
        _over_sizes(axes, sizes, column.label)
        if column.log:
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
    _legend_below(figure, 2)
    return figure


def plot_reliability(found: ByKind, title: str = "Reliability") -> Figure:
    """Draw accuracy over confidence, with a panel for each pool, and below it the share of examples in each bin.

    `found` holds share, confidence and accuracy of the bins. A larger mark has more examples. Below the diagonal, networks are
    too sure.

    >>> one = {"share": [0.0, 1.0], "confidence": [None, 0.9], "accuracy": [None, 0.8]}
    >>> len(plot_reliability({"generated": {"linear": one, "log": one}}).axes)
    4
    """
    pools = list(dict.fromkeys(pool for _, pool, _ in _each(found)))
    figure = Figure(figsize=(4.4 * len(pools), 5.4), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(2, len(pools), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for (upper, lower), pool in zip(grid.T, pools, strict=True):
        upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        for kind, bins in ((kind, of[pool]) for kind, of in found.items() if pool in of):
            points = [point for point in zip(*(bins[name] for name in ("confidence", "accuracy", "share")), strict=True) if point[2]]
            confidence, accuracy, share = zip(*points, strict=True)
            colour = COLOURS.get(kind, ORANGE)
            upper.plot(confidence, accuracy, color=colour, linewidth=1, alpha=0.5)
            upper.scatter(confidence, accuracy, [8 + 140 * one**0.5 for one in share], color=colour, alpha=0.7, linewidth=0, label=kind)
            lower.plot(confidence, share, color=colour, marker="o", markersize=3, linewidth=1.2)
        upper.set(title=f"{pool} pool", xlim=(0, 1.03), ylim=(0, 1.05))
        lower.set(xlabel="confidence", yscale="log")
        lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_formatter(NullFormatter())
        for axes in (upper, lower):
            _plain(axes)
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("share of examples\n(log scale)")
    _legend_below(figure, len(found))
    return figure


def plot_selective(found: ByKind, title: str = "Accuracy on the examples of highest confidence") -> Figure:
    """Draw the accuracy over the share of examples that are answered, beginning with those of highest confidence.

    >>> one = {"coverage": [0.5, 1.0], "accuracy": [1.0, 0.9]}
    >>> plot_selective({"generated": {"linear": one}}).axes[0].get_xlabel()
    'share of examples that are answered'
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    figure.suptitle(fill(title, LINE))
    axes = figure.add_subplot()
    for kind, pool, curve in _each(found):
        style = {"color": COLOURS.get(kind, ORANGE), "linestyle": STYLES[pool], "linewidth": 1.5}
        axes.plot(curve["coverage"], curve["accuracy"], label=f"{kind}, {pool} pool", **style)
    axes.set(xlabel="share of examples that are answered", ylabel="accuracy on them", xlim=(0, 1.01))
    _plain(axes)
    _legend_below(figure, 2)
    return figure


def plot_outside(found: ByKind, inside: str, other: str, size: int, title: str = "") -> Figure:
    """Draw how well ensembles tell examples of another task, and the entropies of both tasks' examples.

    `found` holds for each kind of networks and each pool `auroc`, which are the scores by size, and `entropy`, a histogram with the edges
    of its bins and the shares inside and outside, for ensembles of `size` networks.

    >>> auroc = {"2": {"entropy": {"mean": 0.9, "std": 0.0}, "information": {"mean": 0.8, "std": 0.0}}}
    >>> one = {"auroc": auroc, "entropy": {"edges": [0.0, 1.0, 2.0], "inside": [0.9, 0.1], "outside": [0.2, 0.8]}}
    >>> len(plot_outside({"generated": {"linear": one}}, "mnist", "fashion", 2).axes)
    2
    """
    figure = Figure(figsize=(6 + 3.4 * len(found), 4.4), layout="constrained")
    figure.suptitle(title or f"Networks of {inside} meet {other}")
    first, *others = figure.subplots(1, 1 + len(found), width_ratios=(5.4, *[3.4] * len(found)))
    for kind, pool, one in _each(found):
        for score, (line, marker) in SCORES.items():
            known = {int(size): values[score] for size, values in one["auroc"].items() if score in values}
            if pool == "linear":
                style = {"color": COLOURS.get(kind, ORANGE), "linestyle": line, "marker": marker}
                _line(first, list(known), list(known.values()), label=f"{kind}, {score}", **style)
    _over_sizes(first, [int(size) for size in one["auroc"]], "AUROC (linear pool)")
    first.legend(frameon=False, fontsize=9)
    for axes, (kind, pools) in zip(others, found.items(), strict=True):
        bins = pools["linear"]["entropy"]
        for name, label, colour in (("inside", inside, LIGHT), ("outside", other, VERMILION)):
            axes.stairs([100 * share for share in bins[name]], bins["edges"], fill=True, color=colour, alpha=0.55, label=label)
        axes.set(title=f"{size} {kind}", xlabel="entropy (nats)")
        _plain(axes)
    others[0].set_ylabel("share of examples (%)")
    others[0].legend(frameon=False, fontsize=9)
    return figure


def _each(found: ByKind):
    """Yield kind, pool and what was found."""
    return ((kind, pool, one) for kind, pools in found.items() for pool, one in pools.items())


def _line(axes: Axes, sizes: Sequence[int], values: Sequence[Value], marker: str = "o", **style) -> None:
    """Draw means over sizes, and a band of one standard deviation."""
    means, spreads = ([one[part] for one in values] for part in ("mean", "std"))
    axes.plot(sizes, means, marker=marker, markersize=3.5, linewidth=1.4, **style)
    low, high = ([mean + sign * spread for mean, spread in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(sizes, low, high, color=style["color"], alpha=0.08, linewidth=0)


def _over_sizes(axes: Axes, sizes: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), list(map(str, sizes)))
    axes.minorticks_off()
    axes.set(xlabel="networks in an ensemble", ylabel=label)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25)
    axes.set_axisbelow(True)


def _legend_below(figure: Figure, columns: int) -> None:
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
