"""Put the principal components of a zoo in the place of its coordinates."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geoflow.appending import words_of, write_networks_of
from geoflow.chart import Chart
from geoflow.coordinates import Coordinates, Recipe
from geoflow.files import beside
from geoflow.fingerprints import digest_of
from geoflow.frame import Frame
from geoflow.graph import Graph
from geoflow.latent.pca import PCA, fit_pca
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.stored import Matrix, Stored, stored
from geoflow.writing import check_room, writing

WITHIN = 2**28  # numbers up to which a saved flow holds the networks of its zoo; larger zoos get a file beside it
NAME = "points"  # of the zoo's points in such a file
COLUMNS = 2**16  # columns of it that are written at once
ROUNDINGS = 4  # a spread of so many roundings may be rounding itself


@dataclass(frozen=True, eq=False)
class Components(Coordinates):
    """The principal components of a zoo as the coordinates of a flow. There are at most nets - 1 of them.

    A weight vector goes to its point on `chart`, in units of the noise, and from there to its components. All components are divided by one
    number, `unit`, so that their mean variance is 1. So distances in the space of components are those of the chart, up to this factor.
    Components of small variance stay small, and are as small beside the noise.

    The space of components is flat. A decoded network is the mean plus a weighted sum of the centred networks of the zoo. On a chart with
    spheres this sum lies inside them, and the nearest point of the manifold takes its place: every row keeps its direction and gets norm 1
    again. So all networks have the norms of the zoo. A network of the zoo that is made from all components comes back as it was.

    What lies outside the span of the zoo has no place here. So there is no density over networks, and no other architecture.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    >>> zoo = torch.randn(6, spec.weights, generator=torch.Generator().manual_seed(0))
    >>> flow = geoflow.fit(spec, zoo, flow="euclidean", latent="pca", iterations=1, batch=4, progress=False)
    >>> x = flow.chart.point(flow.canonical(zoo))
    >>> x.shape, flow.chart.theta(x).allclose(flow.canonical(zoo), atol=1e-5)
    (torch.Size([6, 5]), True)
    """

    chart: Chart
    pca: PCA
    spread: float = 1.0

    @property
    def spec(self) -> NetworkSpec:
        return self.chart.spec

    @property
    def recipe(self) -> Recipe:
        return self.chart.recipe

    @property
    def frame(self) -> Frame:
        return self.chart.frame

    @cached_property
    def size(self) -> int:
        """The number of components."""
        return len(self.pca.variances)

    @cached_property
    def unit(self) -> float:
        """The number that components are divided by: the root of their mean variance."""
        return self.pca.variances.mean().sqrt().item()

    @cached_property
    def graph(self) -> Graph:
        """A graph without units, because a component belongs to none. Every coordinate stands alone."""
        return Graph(NetworkSpec((), ()), (), (), (), torch.arange(self.size))

    @cached_property
    def manifold(self) -> Product:
        return Product(self.size)

    @cached_property
    def scale(self) -> Float[Tensor, " size"]:
        return torch.ones(self.size)

    @cached_property
    def flat(self) -> Bool[Tensor, " size"]:
        return torch.ones(self.size, dtype=torch.bool)

    @property
    def amplitude(self) -> Float[Tensor, " size"]:
        return self.scale

    @cached_property
    def moments(self) -> Float[Tensor, "2 size"]:
        """Means of 0, and the standard deviations of the components in their unit."""
        deviations = (self.pca.variances.sqrt() / self.unit).float()
        return torch.stack([torch.zeros_like(deviations), deviations])

    @property
    def own(self) -> Float[Tensor, "2 size"]:
        return self.moments

    @cached_property
    def middle(self) -> tuple[Float[Tensor, "1 size"], Float[Tensor, "1 size"]]:
        """Zeros, because there are no spheres."""
        return torch.zeros(1, self.size), torch.zeros(1, self.size)

    def knowing_units(self, points: Float[Tensor, "nets size"]) -> "Components":
        """Return these coordinates, which know their moments from the zoo."""
        return self

    def point(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch size"]:
        """Return the components of canonical weight vectors. What lies outside the span of the zoo is lost."""
        return self.pca.encode(measured(self.chart, self.chart.point(theta))) / self.unit

    def theta(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch weights"]:
        """Return the weight vectors of components."""
        point = self.pca.decode(x * self.unit) / self.chart.scale.to(x)
        return self.chart.theta(self.chart.manifold.projx(point))

    def nearest(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
        return self.chart.nearest(theta)

    def on(self, spec: NetworkSpec) -> NoReturn:
        raise ValueError(
            f"latent=pca makes networks from those of its zoo, which have {self.spec.weights} weights, and cannot make others of "
            f"{spec.weights}. For another architecture fit a flow with latent=none and velocity=transformer."
        )

    def steady(self) -> NoReturn:
        raise ValueError(
            f"A flow with latent=pca has no density over networks: all that it draws lie in {self.size} of {self.spec.weights} dimensions. "
            "Fit a flow with latent=none."
        )

    def log_volume(self, theta: Float[Tensor, "*batch weights"]) -> NoReturn:
        self.steady()

    def write(self, path: Path, x: Float[Tensor, "nets size"], progress: bool = False) -> Stored:
        """Write the weight vectors of components, in the precision of the zoo's file, with one pass over the zoo.

        Their points are written first, to a second file of the same size, which is deleted at the end. Raises OSError if the disk has no
        room for both, before anything is written.
        """
        dtype, passing = self.pca.matrix.dtype, beside(path, NAME)
        there = len(words_of(path)[1]) if path.exists() else 0
        if there < len(x):
            passing.unlink(missing_ok=True)  # an interrupted call left it
            check_room(path, (len(x) * self.chart.graph.size + (len(x) - there) * self.spec.weights) * dtype.itemsize)
            points = self.pca.write(passing, x.detach().cpu() * self.unit, dtype, NAME)

        def made(number: int) -> Tensor:
            point = points[number].to(torch.promote_types(dtype, torch.float32)) / self.chart.scale
            return self.chart.theta(self.chart.manifold.projx(point))

        key = digest_of({"points": x, "variances": self.pca.variances, "statistics": self.chart.statistics})
        written = write_networks_of(self.spec, path, key, len(x), dtype, made, progress)
        passing.unlink(missing_ok=True)
        return written

    def record(self, path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
        """Return what a flow saved at `path` keeps. A zoo of more than WITHIN numbers goes to a file beside it, unless it is in one."""
        tensors, words = self.chart.record(path)
        tensors |= {"latent.vectors": self.pca.vectors, "latent.variances": self.pca.variances}
        about = {"total": self.pca.total, "columns": self.pca.columns}
        matrix = self.pca.matrix
        if isinstance(matrix, Tensor) and prod(matrix.shape) <= WITHIN:
            return tensors | {"latent.points": matrix}, {**words, "latent": json.dumps(about)}
        if isinstance(matrix, Tensor):
            place = beside(path, "zoo")
            with writing(place, NAME, tuple(matrix.shape), matrix.dtype) as writer:
                for block in matrix.split(COLUMNS, 1):
                    writer.write(block)
            matrix = stored(place, NAME)
        place = matrix.path.resolve()
        inside = place.parent == path.resolve().parent
        about |= {"file": place.name if inside else str(place), "name": matrix.name, "sha256": matrix.digest()}
        return tensors, {**words, "latent": json.dumps(about)}


def in_components(
    charts: Sequence[Chart], points: Sequence[Float[Tensor, "_nets _size"]], components: float | None
) -> tuple[list[Components], list[Float[Tensor, "_nets _components"]]]:
    """Return the principal components of each zoo, which is given by its points, as coordinates, and the zoos in them.

    `components` is that of `fit_pca`, whose errors are raised.
    """
    found = [Components(chart, fit_pca(measured(chart, one), components)) for chart, one in zip(charts, points, strict=True)]
    for one in found:
        check_spread(one.pca)
    return found, [(chart.pca.own / chart.unit).to(one) for chart, one in zip(found, points, strict=True)]


def check_spread(pca: PCA) -> None:
    """Warn if networks differ by rounding only, as those that are one network in several orders of its units. Theirs is no zoo."""
    rounding, deviation = torch.finfo(pca.matrix.dtype).eps, (pca.total / pca.matrix.shape[1]) ** 0.5
    if deviation < ROUNDINGS * rounding:
        warnings.warn(
            f"The aligned networks differ by {deviation:.1g} of the spread of their weights, and {pca.matrix.dtype} rounds to "
            f"{rounding:.1g}. So their components may be rounding. Are they one network with its units in several orders? Else keep them "
            "in a wider precision.",
            stacklevel=5,
        )


def read_components(chart: Chart, tensors: Mapping[str, Tensor], words: Mapping[str, str], path: Path) -> Components:
    """Return the components that `record` wrote for a flow saved at `path`.

    Raises FileNotFoundError if the file with the zoo's networks is gone, and ValueError if it is another one.
    """
    about = json.loads(words["latent"])
    matrix = tensors["latent.points"] if "file" not in about else _reopened(path, about)
    return Components(chart, PCA(matrix, tensors["latent.vectors"], tensors["latent.variances"], about["total"], about["columns"]))


def _reopened(path: Path, about: Mapping) -> Matrix:
    place = path.parent / about["file"]
    if not place.is_file():
        raise FileNotFoundError(f"The flow {path} makes networks from those of its zoo in {place}, which is gone. Put the file there.")
    matrix = stored(place, about["name"])
    if (found := matrix.digest()) != about["sha256"]:
        raise ValueError(
            f"{place} is not the file that the flow {path} was saved with: its sha256 begins with {found[:8]}, not {about['sha256'][:8]}. "
            "Put that file there."
        )
    return matrix


def measured(chart: Chart, points: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
    """Return points in units of the noise. Else rows on spheres would count less, because their coordinates are small."""
    return points * chart.scale.to(points)
