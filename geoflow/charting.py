"""Fit the coordinates of a flow to the zoos that it is to learn."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.chart import Chart
from geoflow.coordinates import Recipe
from geoflow.frame import UNTURNED, Frame, fit_moments, principal_frame
from geoflow.spec import NetworkSpec

PRIOR = 0.02  # of a slope, in squared logarithms; widths of 8 and 16 have .24


def fit_chart(spec: NetworkSpec, recipe: Recipe, thetas: Float[Tensor, "nets weights"], base: Frame = UNTURNED) -> Chart:
    """Fit a chart to one zoo, as `fit_charts` does to several."""
    return fit_charts([spec], recipe, [thetas], base)[0]


def fit_charts(
    specs: Sequence[NetworkSpec], recipe: Recipe, zoos: Sequence[Float[Tensor, "_nets _weights"]], base: Frame = UNTURNED
) -> list[Chart]:
    """Fit charts to the zoos of several architectures, each canonical in the frame `base`. They share their statistics and their frame.

    The statistics are those of all coordinates of a role, whichever zoo they are of. The frame has the principal axes of all rows. Several
    architectures also show how weights shrink with the fan-in (see `fit_powers`). A single one cannot show it, and root fan-in is taken.

    Raises ValueError if a role is flat in one architecture and on spheres in another.
    """
    blank = [Chart(spec, recipe, {}, base) for spec in specs]
    powers = fit_powers(blank, zoos) if len(specs) > 1 else {}
    charts, points = _standardised_by([replace(chart, powers=powers) for chart in blank], zoos)
    frame = principal_frame([chart.graph for chart in charts], points, base)
    charts, points = _standardised_by([replace(chart, frame=frame) for chart in charts], zoos)
    frame = replace(charts[0].frame, moments=fit_moments([chart.graph for chart in charts], points))
    charts = [replace(chart, frame=frame) for chart in charts]
    for chart in charts:
        chart.check()
    return charts


def fit_powers(charts: Sequence[Chart], zoos: Sequence[Float[Tensor, "_nets _weights"]]) -> dict[str, float]:
    """Return for each role of flat weights the power p of the fan-in n by which w n^(1/2 + p) has one size at all widths.

    Without learned features w shrinks as n^(-1/2), and with them up to n^-1. p is the slope of the logarithm of the size, the root mean
    square, over that of the fan-in. A prior towards p = 0 weighs little where the widths differ by a factor of 2.

    >>> import torch, geoflow
    >>> specs = [geoflow.spec_of(torch.nn.Linear(n, 1, bias=False), torch.zeros(1, n)) for n in (4, 64)]
    >>> zoos = [torch.full((2, n), 1 / n) for n in (4, 64)]
    >>> powers = fit_powers([Chart(spec, geoflow.FLOWS["euclidean"], {}) for spec in specs], zoos)
    >>> {role: round(power, 2) for role, power in powers.items()}
    {'weight:output<input:1': 0.5}
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    for chart, zoo in zip(charts, zoos, strict=True):
        raw = chart.raw(chart.frame.turn(chart.graph, zoo))
        for block in chart.graph.blocks:
            if chart.flat[block.index].all() and (size := raw[:, block.index].double().square().mean().sqrt().item()):
                seen.setdefault(block.key, []).append((math.log(block.index[0].numel()), math.log(size)))
    return {role: _slope(*torch.tensor(pairs, dtype=torch.double).unbind(1)) for role, pairs in seen.items()}


def _slope(fans: Float[Tensor, " parts"], sizes: Float[Tensor, " parts"]) -> float:
    """Return how fast sizes fall over fans. Both are logarithms."""
    apart = fans - fans.mean()
    return (-(apart * sizes).sum() / (apart.square().sum() + PRIOR)).item()


def _standardised_by(blank: Sequence[Chart], zoos: Sequence[Tensor]) -> tuple[list[Chart], list[Float[Tensor, "_nets _size"]]]:
    """Return charts with the statistics of all zoos, and the coordinates of each zoo in units of the noise."""
    raw = [chart.raw(chart.frame.turn(chart.graph, zoo)) for chart, zoo in zip(blank, zoos, strict=True)]
    statistics = {}
    for role in dict.fromkeys(role for chart in blank for role in chart.roles):
        parts = [one[:, chart.roles[role]].flatten() for chart, one in zip(blank, raw, strict=True) if role in chart.roles]
        statistics[role] = (torch.cat(parts).mean().item(), torch.cat(parts).std().item())
    charts = [replace(chart, statistics=statistics) for chart in blank]
    return charts, [chart.standardised(one) * chart.scale.to(one) for chart, one in zip(charts, raw, strict=True)]
