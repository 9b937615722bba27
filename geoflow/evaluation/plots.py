"""Draw the results of one run: scores, loss, weights and distances."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from geoflow.outputs import Column, RegressionScores, Scores, outputs_of

# the colours of Okabe & Ito 2008, which can be told apart with every kind of colour vision
BLACK, ORANGE, BLUE, VERMILION, GREEN, GREY, LIGHT = "#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#A8A8A8"
COLOURS = {"zoo": BLACK, "heldout": BLACK, "fitted": GREY, "generated": BLUE}
BINS = 40
WIDE = 4.0  # quartile distances from the quartiles: what lies farther out is marked at the edge
REACH = 6  # interquartile ranges
DPI = 150
SHOWN_NETWORKS = 1000
SHOWN_PATHS = 12

DISTANCES = {
    "zoo_leave_one_out": ("training networks, to the nearest other run", BLACK),
    "heldout_to_train": ("held-out networks", ORANGE),
    "generated_to_train": ("generated networks", BLUE),
}


def plot_scores(
    scores: Mapping[str, Scores | RegressionScores], title: str = "Scores of single networks", outputs: str = "classes"
) -> Figure:
    """Draw histograms of the two main scores of a kind of outputs, with one row for each named set of networks.

    For classes they are accuracy and negative log-likelihood. A vertical line marks the mean. Where neither a logarithm nor a best value
    bounds the axis, values far outside the usual range are drawn at its edge.

    >>> one = Scores(torch.rand(9), torch.rand(9) + 0.1, torch.rand(9))
    >>> len(plot_scores({"zoo": one, "generated": one}).axes)
    4
    """
    figure = Figure(figsize=(8, 0.9 + 0.55 * len(scores)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(scores), 2, sharex="col", squeeze=False)
    for column, (field, said) in enumerate(main_columns(outputs).items()):
        values = {name: getattr(one, field).detach().flatten().cpu() for name, one in scores.items()}
        pooled = torch.cat(list(values.values()))
        if said.log:
            edges = _log_edges(pooled)
        elif said.best is not None:
            edges = _edges(torch.cat([pooled, torch.tensor([said.best])]))
        else:
            low, high = usual_range(pooled[pooled.isfinite()].tolist())
            values, edges = {name: v.clamp(low, high) for name, v in values.items()}, _edges(torch.tensor([low, high]))
        for row, (name, v) in enumerate(values.items()):
            _ridge(grid[row, column], v, edges, COLOURS.get(name, ORANGE))
        grid[-1, column].set_xlabel(said.long_label)
        if said.log:
            grid[-1, column].set_xscale("log")
            plain_ticks(grid[-1, column].xaxis)
    for row, name in enumerate(scores):
        grid[row, 0].set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center")
    return figure


def plot_loss(losses: Float[Tensor, " steps"] | Sequence[float], title: str = "Loss of the flow in training") -> Figure:
    """Draw the loss of every training step, and its running mean over 2 % of the steps, on a logarithmic axis.

    >>> plot_loss([1.0, 0.5, 0.3]).axes[0].get_xlabel()
    'training step'
    """
    losses = torch.as_tensor(losses, dtype=torch.float64).detach().cpu()
    width = max(1, len(losses) // 50)
    figure, axes = _single(title)
    axes.plot(range(1, len(losses) + 1), losses, color=GREY, linewidth=0.5, alpha=0.6, label="each step")
    axes.plot(range(width, len(losses) + 1), losses.unfold(0, width, 1).mean(1), color=BLUE, linewidth=1.8, label=f"mean of {width} steps")
    axes.set(xlabel="training step", ylabel="flow matching loss (log scale)", yscale="log")
    plain_ticks(axes.yaxis)
    axes.grid(True, alpha=0.2)
    axes.legend(frameon=False)
    return figure


def plot_weights(
    zoo: Float[Tensor, "nets weights"],
    generated: Float[Tensor, "generated weights"],
    trajectories: Float[Tensor, "steps paths weights"],
    title: str = "Weight space, projected on the zoo's principal components",
) -> Figure:
    """Draw the zoo, the generated networks and some paths of the sampler in the plane of the zoo's first two principal components.

    >>> plot_weights(torch.randn(9, 4), torch.randn(5, 4), torch.randn(3, 2, 4)).axes[0].get_title()
    "Weight space, projected on the zoo's principal components"
    """
    zoo, generated = _thin(zoo.detach().double().cpu()), _thin(generated.detach().double().cpu())
    mean, basis, shares = principal_plane(zoo)
    figure, axes = _single(title, (7, 5.5))
    paths = (trajectories.detach().double().cpu()[:, :SHOWN_PATHS] - mean) @ basis
    for points, colour, marker, label in ((zoo, LIGHT, "o", "zoo"), (generated, BLUE, "x", "generated")):
        axes.plot(*((points - mean) @ basis).T, marker, color=colour, markersize=4, alpha=0.7, zorder=2, label=label, markeredgewidth=0.8)
    for index, path in enumerate(paths.unbind(1)):
        axes.plot(*path.T, color=ORANGE, linewidth=1.1, zorder=3, label="sampling path" if index == 0 else None)
    for points, colour, label in ((paths[0], VERMILION, "noise"), (paths[-1], BLUE, "end of a path")):
        axes.plot(*points.T, "o", color=colour, markersize=5, zorder=4, label=label, markeredgecolor="white", markeredgewidth=0.5)
    axes.set(xlabel=f"component 1 ({shares[0]:.0%} of the zoo's variance)", ylabel=f"component 2 ({shares[1]:.0%} of the zoo's variance)")
    axes.grid(True, alpha=0.2)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_distances(distances: Mapping[str, Float[Tensor, " nets"]], title: str = "How new are the networks?") -> Figure:
    """Draw histograms of the distances to the nearest run, each with its median.

    The distances are the first columns of what `neighbours_of` gives.

    >>> plot_distances({"generated_to_train": torch.rand(9)}).axes[0].get_xlabel()
    'distance to the nearest training run (1 = two networks of the zoo)'
    """
    figure, axes = _single(title)
    values = {name: v.detach().flatten().cpu() for name, v in distances.items()}
    edges = _edges(torch.cat(list(values.values())))
    for name, v in values.items():
        label, colour = DISTANCES.get(name, (name.replace("_", " "), GREY))
        weights = torch.full_like(v, 100 / len(v)).numpy()
        axes.hist(v.numpy(), edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.15)
        axes.hist(
            v.numpy(), edges, weights=weights, histtype="step", color=colour, linewidth=1.6, label=f"{label} (median {v.median():.3g})"
        )
        axes.axvline(v.median().item(), color=colour, linestyle="--", linewidth=1.2)
    axes.set(xlabel="distance to the nearest training run (1 = two networks of the zoo)", ylabel="share of networks (%)")
    axes.set_xlim(left=0)
    figure.legend(frameon=False, loc="outside lower center")
    return figure


def main_columns(outputs: str) -> dict[str, Column]:
    """Return what figures say of the two main scores of a kind of outputs, a row of OUTPUTS.

    >>> list(main_columns("classes"))
    ['accuracy', 'nll']
    """
    kind = outputs_of(outputs)
    return {field: kind.columns[field] for field in kind.main}


def usual_range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that a few failing runs do not stretch.

    >>> usual_range([1.0, 1.1, 1.2, 1.3, 90.0])
    (1.0, 1.3)
    """
    first, third = np.quantile(values, [0.25, 0.75])
    slack = max(WIDE * (third - first), 1e-9)
    inside = [value for value in values if first - slack <= value <= third + slack]
    return min(inside), max(inside)


def plot_densities(values: Mapping[str, Float[Tensor, " nets"]], title: str = "Log-density under the flow") -> Figure:
    """Draw histograms of log-densities, with one row for each named set of networks. A vertical line marks the median.

    The axis ends REACH interquartile ranges of the first set below its lowest value. What lies further left is drawn at that end.

    >>> plot_densities({"heldout": torch.randn(9), "noised": torch.randn(9) - 5}).axes[-1].get_xlabel()
    'log-density (nats); networks further left are drawn at the left end'
    """
    values = {name: torch.as_tensor(one).detach().double().flatten().cpu() for name, one in values.items()}
    first = next(iter(values.values()))
    low, high = first.quantile(torch.tensor([0.25, 0.75]).double())
    shown = {name: one.clamp_min((first.min() - REACH * (high - low)).item()) for name, one in values.items()}
    figure = Figure(figsize=(8, 0.9 + 0.4 * len(values)), layout="constrained")
    figure.suptitle(title)
    edges = _edges(torch.cat(list(shown.values())))
    for axes, (name, one) in zip(figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0], shown.items(), strict=True):
        _ridge(axes, one, edges, COLOURS.get(name, ORANGE), torch.median)
        axes.set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center")
    axes.set_xlabel("log-density (nats); networks further left are drawn at the left end")
    return figure


def save_figures(folder: str | Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure to `folder`/<name>.png, and return the paths. The folder is made if it is missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def principal_plane(thetas: Float[Tensor, "nets weights"]) -> tuple[Float[Tensor, " weights"], Float[Tensor, "weights 2"], list[float]]:
    """Return the mean, the first two principal directions, and the shares of the variance along them.

    Raises ValueError for fewer than 3 networks, fewer than 2 weights, or a zoo without spread, because they span no plane.
    """
    mean = thetas.mean(0)
    _, spread, components = torch.linalg.svd(thetas - mean, full_matrices=False)
    if len(spread) < 2 or len(thetas) < 3 or spread[0] == 0:
        raise ValueError(
            f"{len(thetas)} networks of {thetas.shape[1]} weights span no plane to plot on. Pass at least 3 different networks."
        )
    shares = spread.square() / spread.square().sum()
    return mean, components[:2].T, shares[:2].tolist()


def _single(title: str, size: tuple[float, float] = (7, 4)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _ridge(axes: Axes, values: Tensor, edges: list[float], colour: str, middle: Callable[[Tensor], Tensor] = torch.mean) -> None:
    """Draw one histogram without a vertical scale, because only its place and shape matter. A line marks its `middle`."""
    axes.hist(values.numpy(), edges, color=colour, alpha=0.55 if len(values) > 1 else 0.0)
    axes.axvline(middle(values).item(), color=colour, linewidth=2)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def _edges(values: Tensor) -> list[float]:
    """Return bin edges over the range of all values. A single value gets bins around it."""
    values = values[values.isfinite()].double()
    low, high = values.min().item(), values.max().item()
    slack = 1e-3 if high == low else 0.0
    return torch.linspace(low - slack, high + slack, BINS + 1).tolist()


def _log_edges(values: Tensor) -> list[float]:
    """Return bin edges of equal ratio over the range of all positive values, from 1e-6 on."""
    return [10**edge for edge in _edges(values.clamp(min=1e-6).log10())]


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 0.2, 0.5, 1, 2, 5 instead of powers of ten.

    A short axis gets the ticks of a linear one.
    """
    axis.axes.autoscale_view()
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _thin(thetas: Tensor) -> Tensor:
    """Return at most SHOWN_NETWORKS rows, evenly spaced."""
    return thetas[:: -(-len(thetas) // SHOWN_NETWORKS)]
