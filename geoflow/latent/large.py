"""Fit a chart and principal components to a zoo in a file, of which only a few networks are ever in memory."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.appending import appending, small_tensors, words_of
from geoflow.canonical import Canonical, unaligned
from geoflow.canonical.large import canonicalize_large
from geoflow.chart import Chart, Statistics
from geoflow.coordinates import Recipe
from geoflow.files import under
from geoflow.fingerprints import digest_of
from geoflow.frame import WIDE, Frame, centred_axes, moments_of, named, turned_on, unturned_axes
from geoflow.graph import Block, plain_inputs
from geoflow.latent.components import NAME, Components, check_spread, measured
from geoflow.latent.pca import check_components, fit_pca
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks, Stored, mapped, stored
from geoflow.tally import Tally


def coordinates_in_file(
    spec: NetworkSpec, zoo: Stored, recipe: Recipe, align: bool, components: float | None, base: Frame, progress: bool
) -> tuple[Components, Float[Tensor, "nets components"], Float[Tensor, " weights"]]:
    """Return the principal components of a zoo in a file as coordinates, the zoo in them, and the centre that it was aligned to.

    Two files are written beside that of the zoo, each as large as it: the networks in canonical form, and their points on the chart in
    units of the noise. Both are written network by network, and are used again where they fit. The flow makes its networks from the second.

    Raises ValueError for more components than networks minus one, before anything is read.
    """
    check_components(components, len(zoo))
    canonical, path = canonical_beside(spec, zoo, recipe, align, base, progress), _beside(spec, zoo, recipe, align, base, NAME)
    seen = canonical.theta if align else mapped(zoo, lambda theta: unaligned(spec, single(theta), recipe.balance, base))
    chart = _chart_of(path, spec, recipe) if path.exists() else fit_chart_large(spec, recipe, canonical.theta, base, progress)
    points = write_points(chart, seen, path, zoo.dtype, progress)
    found = Components(chart, fit_pca(points, components))
    check_spread(found.pca)
    return found, (found.pca.own / found.unit).float(), canonical.reference


def canonical_beside(spec: NetworkSpec, zoo: Stored, recipe: Recipe, align: bool, base: Frame, progress: bool = False) -> Canonical:
    """Return the canonical form of a zoo in a file, in the first of the two files that `coordinates_in_file` writes beside it."""
    path = _beside(spec, zoo, recipe, align, base, "canonical")
    return canonicalize_large(spec, zoo, path, balance=recipe.balance, frame=base, progress=progress)


def _beside(spec: NetworkSpec, zoo: Stored, recipe: Recipe, align: bool, base: Frame, what: str) -> Path:
    key = digest_of({"zoo": zoo.mark(), "spec": spec.to_json(), "recipe": repr(recipe), "align": align, "frame": base.axes})[:8]
    return zoo.path.with_name(f"{zoo.path.stem}.{key}.{what}.safetensors")


def fit_chart_large(spec: NetworkSpec, recipe: Recipe, thetas: Networks, base: Frame, progress: bool = False) -> Chart:
    """Return what `fit_chart` does for networks that are read one after the other. Sums are in float64."""

    def each(what: str, chart: Chart, made: Callable[[Chart, Tensor], Tensor]):
        """Yield something of every network."""
        for theta in tqdm(thetas, desc=what, unit="network", total=len(thetas), disable=not progress):
            yield made(chart, single(theta)[None])

    blank = Chart(spec, recipe, {}, base)
    chart = replace(blank, statistics=_statistics(blank, each("statistics", blank, _raw)))
    axes = _axes(chart, base, each("principal axes", chart, _points)) | unturned_axes([chart.graph], base)
    if not all(base.axes.get(name) is one for name, one in axes.items()):
        chart = replace(chart, frame=Frame(axes))
        chart = replace(chart, statistics=_statistics(chart, each("statistics along them", chart, _raw)))
    chart = replace(chart, frame=Frame(chart.frame.axes, _moments(chart, each("moments", chart, _points))))
    chart.check()
    return chart


def write_points(chart: Chart, thetas: Networks, path: Path, dtype: torch.dtype, progress: bool = False) -> Stored:
    """Write the points of canonical networks, in units of the noise, to a file. Points that it has already are kept.

    The file also holds the chart. Raises ValueError as `Chart.point` does.
    """
    beside, words = chart.record(path)
    with appending(path, NAME, chart.graph.size, dtype, words, beside, len(thetas)) as file:
        for net in tqdm(range(len(file), len(thetas)), desc="write points", unit="network", disable=not progress):
            try:
                point = chart.point(single(thetas[net])[None])
            except ValueError as error:
                raise ValueError(str(error).replace("Network 0", f"Network {net}", 1)) from error
            file.add(measured(chart, point))
    return stored(path, NAME)


def _chart_of(path: Path, spec: NetworkSpec, recipe: Recipe) -> Chart:
    """Return the chart of a file of points. It is not fitted anew after an interruption."""
    words, (axes, moments) = words_of(path)[0], (under(kind, small_tensors(path, kind)) for kind in ("axes.", "moments."))
    statistics = {role: tuple(pair) for role, pair in json.loads(words["statistics"]).items()}
    return Chart(spec, recipe, statistics, Frame(axes, moments), powers=json.loads(words["powers"]))


def single(theta: Tensor) -> Tensor:
    """Return weights in at least single precision: in half precision rows leave their spheres."""
    return theta.to(torch.promote_types(theta.dtype, torch.float32))


def _raw(chart: Chart, theta: Tensor) -> Tensor:
    return chart.raw(chart.frame.turn(chart.graph, theta))


def _points(chart: Chart, theta: Tensor) -> Tensor:
    return measured(chart, chart.standardised(_raw(chart, theta)))


def _statistics(chart: Chart, networks) -> Statistics:
    tallies = {role: Tally() for role in chart.roles}
    for raw in networks:
        for role, index in chart.roles.items():
            tallies[role].add(raw[0, index])
    return {role: (float(one.mean), float(one.variance().sqrt())) for role, one in tallies.items()}


def _rows(chart: Chart, point: Tensor, most: float) -> dict[tuple[str, Block], Tensor]:
    """Return the rows of weights on each input of at most so many units, [rows, units, features], by the input and the block."""
    inputs = plain_inputs(chart.graph).items()
    return {(name, block): point[0, block.index] for name, blocks in inputs for block in blocks if block.index.shape[1] <= most}


def _axes(chart: Chart, base: Frame, networks) -> dict[str, Tensor]:
    """Return the axes of `principal_frame`, from sums over all rows."""
    tallies: dict[str, dict[str, Tally]] = {}
    products: dict[str, Tensor] = {}
    if not any(len(blocks[0].index[0]) <= WIDE for blocks in plain_inputs(chart.graph).values()):
        return {}
    for point in networks:
        dtype = point.dtype
        for (name, block), rows in _rows(chart, point, WIDE).items():
            tallies.setdefault(name, {}).setdefault(block.key, Tally()).add(rows)
            flat = rows.double().transpose(1, 2).flatten(0, 1)
            products[name] = products.get(name, 0) + flat.T @ flat
    means = {name: [(one.count, one.mean) for one in by_role.values()] for name, by_role in tallies.items()}
    return {name: turned_on(base, name, centred_axes(products[name], means[name])).to(dtype) for name in products}


def _moments(chart: Chart, networks) -> dict[str, Tensor]:
    tallies: dict[str, Tally] = {}
    if not plain_inputs(chart.graph):
        return {}
    for point in networks:
        dtype = point.dtype
        for (name, block), rows in _rows(chart, point, float("inf")).items():
            tallies.setdefault(named(name, block.key), Tally()).add(rows)
    return {weights: moments_of(one.mean, one.squares / one.count, one.count).to(dtype) for weights, one in tallies.items()}
