"""Draw the pictures of the site that no run makes. `python docs/figures.py` writes them into docs/figures/."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import geoflow
from geoflow.manifolds import Product
from geoflow.paths import geodesic as geodesic_between

FOLDER = Path(__file__).resolve().parent / "figures"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8c8c8c"  # colour-blind readers can tell them apart too
plt.rcParams.update({"font.size": 15, "savefig.dpi": 130, "axes.titlesize": 16})


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.png", bbox_inches="tight", facecolor="white")
    plt.close(figure)


def units(axes: plt.Axes, x: float, heights: np.ndarray, colours: list[str], names: list[str]) -> None:
    axes.scatter([x] * len(heights), heights, s=900, c=colours, edgecolors="black", linewidths=1.5, zorder=3)
    for y, name in zip(heights, names, strict=True):
        axes.text(x, y, name, ha="center", va="center", color="white" if name.isalpha() else "black", zorder=4, fontweight="bold")


def permutation() -> None:
    """Draw one network twice, with its hidden units in two orders."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    own = {"A": BLUE, "B": ORANGE, "C": GREEN}
    inner, outer = np.array([1.0, -1.0]), np.array([2.0, 0.0, -2.0])
    generator = np.random.default_rng(4)
    widths = {name: generator.uniform(1, 5, 4) for name in own}
    for axes, order, title in ((both[0], "ABC", "order A, B, C"), (both[1], "CAB", "order C, A, B: the same function")):
        for y, name in zip(outer, order, strict=True):
            for number, other in enumerate(inner):
                axes.plot([0, 1], [other, y], color=own[name], linewidth=widths[name][number])
                axes.plot([1, 2], [y, other], color=own[name], linewidth=widths[name][2 + number], linestyle=(0, (3, 1)))
        units(axes, 0, inner, ["white"] * 2, ["1", "2"])
        units(axes, 1, outer, [own[name] for name in order], list(order))
        units(axes, 2, inner, ["white"] * 2, ["1", "2"])
        axes.set(title=title, xlim=(-0.3, 2.3), ylim=(-3.1, 2.8))
        for x, word in enumerate(("inputs", "hidden units", "outputs")):
            axes.text(x, -2.9, word, ha="center")
        axes.axis("off")
    save(figure, "permutation")


def geodesic() -> None:
    """Draw a geodesic on a sphere, and the straight line between its ends."""
    figure = plt.figure(figsize=(7, 6))
    axes = figure.add_subplot(projection="3d", computed_zorder=False)
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 60), np.linspace(0, np.pi, 30))
    axes.plot_surface(np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color="#e9eef3", alpha=0.6, linewidth=0, shade=False)
    for height in np.linspace(-0.75, 0.75, 4):
        radius, angle = np.sqrt(1 - height**2), np.linspace(0, 2 * np.pi, 100)
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), height, color=GREY, linewidth=0.5)
    start, end = np.array([0.62, -0.62, 0.3]), np.array([0.0, 0.95, 0.35])
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    t = torch.linspace(0, 1, 61).double()
    path, velocity = (part.numpy() for part in geodesic_between(Product(3, [torch.arange(3)[None]]), *map(torch.tensor, (start, end)), t))
    chord = np.linspace(start, end, 61)
    axes.plot(*chord.T, color=ORANGE, linewidth=3, linestyle="--", label="straight line: leaves the sphere")
    axes.plot(*path.T, color=BLUE, linewidth=4, label="geodesic: rows keep norm 1")
    axes.scatter(*path[::15][1:4].T, color=BLUE, s=60)
    axes.scatter(*start, color=RED, s=130, marker="s", label="noise $x_0$")
    axes.scatter(*end, color="black", s=190, marker="*", label="row of a trained network $x_1$")
    middle, tangent = path[30], velocity[30] / np.linalg.norm(velocity[30]) * 0.45
    axes.quiver(*middle, *tangent, color=GREEN, linewidth=3, arrow_length_ratio=0.3)
    axes.text(*(middle + tangent * 0.6 + np.array([0, 0, 0.16])), r"velocity $\dot x_t$", color=GREEN)
    axes.set_box_aspect((1, 1, 1))
    axes.set(xlim=(-0.7, 0.9), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axes.view_init(14, 30)
    axes.axis("off")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.08), frameon=False)
    save(figure, "geodesic")


class Skip(nn.Module):
    """Add what a linear layer makes of x to x: x + relu(layer(x))."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.relu(self.layer(x))


def wires() -> None:
    """Draw the graph of a small residual network, as `graph_of` returns it."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Skip(4), nn.Linear(4, 2))
    spec = geoflow.spec_of(network, torch.zeros(2, 3))
    graph = geoflow.graph_of(spec)
    depth = graph.depth
    names = {"input": "inputs", "output": "outputs"}
    figure, axes = plt.subplots(figsize=(11, 5.2), layout="constrained")
    order = sorted(range(len(spec.sites)), key=lambda site: depth[site])
    place = {site: float(number) for number, site in enumerate(order)}
    heights = {site: np.linspace(1, -1, spec.sites[site].size) * spec.sites[site].size for site in order}
    for block in graph.blocks:
        for target in heights[block.target]:
            for source in heights[block.source]:
                axes.plot([place[block.source], place[block.target]], [source, target], color=GREY, linewidth=1, zorder=1)
    for diagonal in graph.diagonals:
        bend = 0.0 if abs(place[diagonal.target] - place[diagonal.source]) == 1 else 1.1
        t = np.linspace(0, 1, 40)
        for source, target in zip(heights[diagonal.source], heights[diagonal.target], strict=True):
            x = (1 - t) * place[diagonal.source] + t * place[diagonal.target]
            y = (1 - t) * source + t * target + bend * 4 * t * (1 - t)
            axes.plot(x, y, color=BLUE if diagonal.wire == "sum" else RED, linewidth=2.5, zorder=2)
    for site in order:
        pinned = spec.sites[site].permutation is None
        colour = "white" if pinned else ORANGE
        axes.scatter([place[site]] * len(heights[site]), heights[site], s=420, c=colour, edgecolors="black", zorder=3)
        axes.text(place[site], -6.2, names.get(spec.sites[site].role, f"site {spec.sites[site].name!r}"), ha="center")
    kinds = {"weights": GREY, "wires of the norm": RED, "wires of the sum": BLUE}
    for word, colour in kinds.items():
        axes.plot([], [], color=colour, linewidth=3, label=word)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)
    axes.set(ylim=(-6.8, 6))
    axes.axis("off")
    save(figure, "wires")


if __name__ == "__main__":
    permutation()
    geodesic()
    wires()
