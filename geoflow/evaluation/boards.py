"""Draw generated networks beside the zoo and the baselines."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.evaluation.plots import BLACK, BLUE, GREY, ORANGE, main_columns, plain_ticks, usual_range
from geoflow.outputs import Column

ROW = 0.36  # inches
NOVELTY = Column("novelty", "novelty", "copy: 0, another run: 1")


def plot_board(kinds: Mapping[str, Mapping[str, float | None]], title: str, outputs: str = "classes") -> Figure:
    """Draw the two main scores and the novelty of each kind of networks, a row for each. The numbers stand beside the marks.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy and NLL.

    >>> zoo, new = {"accuracy": 0.9, "nll": 0.3, "novelty": None}, {"accuracy": 0.9, "nll": 0.3, "novelty": 1.0}
    >>> len(plot_board({"zoo": zoo, "generated": new}, "Digits").axes)
    3
    """
    figure = Figure(figsize=(10, 1.3 + ROW * len(kinds)), layout="constrained")
    figure.suptitle(title)
    panels = main_columns(outputs) | {"novelty": NOVELTY}
    for axes, (field, said) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        for row, (name, one) in enumerate(kinds.items()):
            if (value := one[field]) is not None:
                axes.plot(value, row, "o", color=_colour(name), markersize=7)
                axes.annotate(_short(value), (value, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10)
        if field == "novelty":
            axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
        _rows(axes, list(kinds), said)
        axes.margins(x=0.28)
    return figure


def plot_rows(rows: Mapping[str, Mapping[str, Mapping[str, float]]], title: str, outputs: str = "classes") -> Figure:
    """Draw the two main scores of several runs, a row for each run, a mark for each kind of networks that it has.

    The axes span what most runs reach. A mark at the edge, with its number, stands for a value beyond it. `outputs` is as in `plot_board`.

    >>> one = {"accuracy": 0.9, "nll": 0.3}
    >>> len(plot_rows({"seed 0": {"zoo": one, "generated": one}}, "Digits").axes)
    2
    """
    kinds = list(dict.fromkeys(kind for one in rows.values() for kind in one))
    figure = Figure(figsize=(10, 1.5 + 0.28 * len(rows)), layout="constrained")
    figure.suptitle(title)
    for axes, (field, said) in zip(figure.subplots(1, 2, sharey=True), main_columns(outputs).items(), strict=True):
        low, high = usual_range([one[kind][field] for one in rows.values() for kind in one])
        for kind, marker in zip(kinds, "|oDs^v", strict=False):
            found = [(row, one[kind][field]) for row, one in enumerate(rows.values()) if kind in one]
            inside = [(value, row) for row, value in found if low <= value <= high]
            axes.plot(*zip(*inside, strict=True), marker, color=_colour(kind), markersize=6, label=kind, markeredgewidth=1.6)
            for row, value in found:
                if not low <= value <= high:
                    edge, side = (low, -1) if value < low else (high, 1)
                    axes.plot(edge, row, "<" if side < 0 else ">", color=_colour(kind), markersize=6)
                    axes.annotate(
                        _short(value), (edge, row), xytext=(-7 * side, 0), textcoords="offset points", va="center", fontsize=10,
                        ha="left" if side < 0 else "right",
                    )  # fmt: skip
        _rows(axes, list(rows), said)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def _colour(kind: str) -> str:
    return {"zoo": BLACK, "generated": BLUE, "guided": BLUE, "mean network": GREY, "unguided": GREY}.get(kind, ORANGE)


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.2f}"


def _rows(axes: Axes, names: list[str], said: Column) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(said.label)
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if said.log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
