"""Choose coordinates: weight vectors of a canonical zoo as points of the manifold that a flow runs on."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import pi, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geoflow.canonical.scaling import dead_units, incoming, sphere_rows
from geoflow.frame import UNTURNED, Frame, fit_moments, principal_frame
from geoflow.graph import Graph, graph_of
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.statistics import exp_variances, log_variances, variances_of

Statistics = dict[str, tuple[float, float]]  # role -> (mean, standard deviation)
DEAD = 1e-5  # a row below this norm belongs to a dead unit, not to one of norm 1 that a flat flow missed
FLOOR = 1e-2  # the least standard deviation of a coordinate, in units of the mean one of its tensor
LEAST = 1e-4  # the same in units of the noise


@dataclass(frozen=True)
class Recipe:
    """How a flow sees a zoo. `balance`: incoming rows have norm 1. `spheres`: these rows move on spheres, for their scale is free.
    `polar`: so does the last layer's direction; its log-norm becomes a coordinate of its own, so that the logits are kept exactly."""

    balance: bool
    spheres: bool
    polar: bool


FLOWS: dict[str, Recipe] = {
    "euclidean": Recipe(balance=False, spheres=False, polar=False),
    "normalized": Recipe(balance=True, spheres=False, polar=False),
    "geometric": Recipe(balance=True, spheres=True, polar=False),
    "geometric_polar": Recipe(balance=True, spheres=True, polar=True),  # as Erdogan, arXiv 2504.03710
}


@dataclass(frozen=True, eq=False)
class Chart:
    """The map between weight vectors [*batch, weights] and points [*batch, size] of `manifold`; size = weights + polar log-norms.

    Flat coordinates are standardised by role (kind of tensor and of the sites it joins), weights by root fan-in before, so that the
    statistics serve other widths; variances of batch norm are taken by their logarithm. Before all that, weights on an input are brought
    to the axes of `frame`; in these coordinates the weight vectors are canonical, and rows have norm 1.

    `own` are mean and standard deviation of every single coordinate over the zoo, in units of the noise. They are kept for fields that
    know units by their place; other fields know what the frame says of each axis of the inputs.
    """

    spec: NetworkSpec
    recipe: Recipe
    statistics: Statistics
    frame: Frame = UNTURNED
    own: Float[Tensor, "2 _size"] | None = None

    @cached_property
    def outputs(self) -> tuple[Int[Tensor, " entries"], ...]:
        """Per output site the coordinates of all weights that write it, where the recipe keeps them as a direction."""
        if not self.recipe.polar:
            return ()
        roles = [site.role for site in self.spec.sites]
        found: dict[int, list[Tensor]] = {}
        for block in graph_of(self.spec).blocks:
            if roles[block.target] == "output":
                found.setdefault(block.target, []).append(block.index.flatten())
        return tuple(torch.cat(parts).sort().values for parts in found.values() if sum(map(len, parts)) > 1)

    @cached_property
    def graph(self) -> Graph:
        return graph_of(self.spec, extras=len(self.outputs))

    @cached_property
    def manifold(self) -> Product:
        rows = sphere_rows(self.spec) if self.recipe.spheres else ()
        return Product(self.graph.size, (*rows, *(index[None] for index in self.outputs)))

    @cached_property
    def scale(self) -> Float[Tensor, " size"]:
        """What brings each coordinate of a random point to standard deviation 1: root dimension on spheres, 1 elsewhere."""
        scale = torch.ones(self.graph.size)
        for index in self.manifold.spheres:
            scale[index] = sqrt(index.shape[1])
        return scale

    @cached_property
    def flat(self) -> Tensor:
        """Which coordinates lie on no sphere."""
        flat = torch.ones(self.graph.size, dtype=torch.bool)
        for index in self.manifold.spheres:
            flat[index] = False
        return flat

    @cached_property
    def amplitude(self) -> Float[Tensor, " size"]:
        """The typical size of each coordinate of a velocity: pi/2 over root dimension on spheres, where random points are orthogonal."""
        return torch.where(self.flat, 1.0, pi / 2 / self.scale)

    @cached_property
    def moments(self) -> Float[Tensor, "2 size"]:
        """Mean and standard deviation of each coordinate over the zoo, in units of the noise, as far as they are known."""
        return self.frame.along(self.graph) if self.own is None else self.own

    @cached_property
    def middle(self) -> tuple[Float[Tensor, "1 size"], Float[Tensor, "1 size"]]:
        """On each sphere the direction of the zoo's mean, and the length of that mean, in every coordinate of the sphere."""
        mean = (self.moments[0] / self.scale)[None]
        length = self.manifold.cosines(mean, mean).sqrt()
        return torch.where(self.flat, 0.0, mean / length.clamp_min(LEAST)), length.clamp_max(1 - LEAST**1.5)

    def knowing_units(self, points: Float[Tensor, "nets size"]) -> "Chart":
        """This chart with the moments of every coordinate of the zoo that consists of these points.

        To what was seen of a coordinate one network with its tensor's mean variance is added, and FLOOR and LEAST in quadrature: what
        hardly varied in a small zoo is not taken for impossible.
        """
        x = points * self.scale.to(points)
        seen, usual = x.var(0, unbiased=False), torch.zeros_like(x[0])
        for index in [part.index.flatten() for part in self.graph.parts] + [self.graph.scalars]:
            usual[index] = seen[index].mean()
        variance = (len(x) * seen + usual) / (len(x) + 1) + FLOOR**2 * usual + LEAST**2
        return replace(self, own=torch.stack([x.mean(0), variance.sqrt()]).cpu())

    def point(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch size"]:
        """The point of a canonical weight vector. Raises ValueError for a dead unit, whose direction on a sphere is undefined."""
        theta = self.frame.turn(self.graph, theta)
        if self.recipe.spheres and (dead := dead_units(self.spec, theta)):
            network, site, _ = dead[0]
            raise ValueError(
                f"Network {network} has a dead unit at {site!r}: its incoming weights are all zero and have no direction (dead units in "
                f"all: {len(dead)}). Remove such networks, or choose flow=normalized or flow=euclidean."
            )
        raw = self._raw(theta)
        if not (finite := raw.isfinite().reshape(-1, raw.shape[-1]).all(1)).all():
            first = finite.tolist().index(False)
            raise ValueError(
                f"Network {first} has no coordinates: a running variance is negative, or (geometric_polar) its output layer is all zero."
            )
        return self._standardised(raw)

    def theta(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch weights"]:
        """The weight vector of a point; rows that left norm 1 in a flat space are brought back to it."""
        raw = torch.where(self.flat.to(x.device), x * self._std.to(x) + self._mean.to(x), x) / self._root_fan.to(x)
        weights, norms = raw.split([self.spec.weights, len(self.outputs)], -1)
        for index, norm in zip(self.outputs, norms.unbind(-1), strict=True):
            weights = weights.index_copy(-1, index.to(x.device), weights[..., index] * norm.exp().unsqueeze(-1))
        weights = exp_variances(weights, self._variances)
        if self.recipe.balance and not self.recipe.spheres:
            weights = self._with_rows_of_norm_one(weights)
        return self.frame.turn_back(self.graph, weights)

    def nearest(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
        """Weight vectors that left the canonical scale, as means of networks do, brought back to it: rows to norm 1 where they have it."""
        if not self.recipe.balance:
            return theta
        return self.frame.turn_back(self.graph, self._with_rows_of_norm_one(self.frame.turn(self.graph, theta)))

    def _with_rows_of_norm_one(self, weights: Tensor) -> Tensor:
        """Dead units stay as they are."""
        for index in incoming(self.spec).values():
            rows = weights[..., index]
            norm = rows.norm(dim=-1, keepdim=True)
            rows = torch.where(norm > DEAD, rows / norm.clamp_min(DEAD), rows)
            weights = weights.index_copy(-1, index.flatten().to(weights.device), rows.flatten(-2))
        return weights

    def _raw(self, theta: Tensor) -> Tensor:
        """Directions, log-norms and log-variances, weights times root fan-in; not yet standardised."""
        norms = []
        for index in self.outputs:
            norm = theta[..., index].norm(dim=-1, keepdim=True)
            theta = theta.index_copy(-1, index.to(theta.device), theta[..., index] / norm)
            norms.append(norm.log())
        return torch.cat([log_variances(theta, self._variances), *norms], -1) * self._root_fan.to(theta)

    def _standardised(self, raw: Tensor) -> Tensor:
        return torch.where(self.flat.to(raw.device), (raw - self._mean.to(raw)) / self._divisor.to(raw), raw)

    @cached_property
    def _variances(self) -> Tensor:
        return variances_of(self.spec)

    @cached_property
    def _root_fan(self) -> Tensor:
        """Root of the entries per row for weights in flat coordinates, 1 elsewhere."""
        fan = torch.ones(self.graph.size)
        for block in self.graph.blocks:
            fan[block.index] = sqrt(block.index[0].numel())
        return torch.where(self.flat, fan, 1.0)

    @cached_property
    def roles(self) -> dict[str, Int[Tensor, " coordinates"]]:
        """The flat coordinates of each role."""
        roles: dict[str, list[Tensor]] = {}
        for part in self.graph.parts:
            roles.setdefault(part.key, []).append(part.index.flatten())
        for number, coordinate in enumerate(self.graph.scalars):
            roles[f"scalar:{number}"] = [coordinate[None]]
        joined = {key: torch.cat(parts) for key, parts in roles.items()}
        return {key: index[self.flat[index]] for key, index in joined.items() if self.flat[index].any()}

    def check(self) -> None:
        """Raise ValueError where the statistics do not serve: for a role that is flat and has none, or that is on spheres and has some."""
        cure = " A geometric flow keeps rows that can be rescaled on spheres: for other activations or layers use flow=euclidean."
        if unseen := sorted(set(self.roles) - set(self.statistics)):
            raise ValueError(
                f"The flow has never seen flat coordinates of the role {unseen[0]!r}; it knows {', '.join(sorted(self.statistics))}."
                + cure * self.recipe.spheres
            )
        parts = {part.key for part in self.graph.parts}
        if curved := sorted(parts & set(self.statistics) - set(self.roles)):
            raise ValueError(f"The flow knows the role {curved[0]!r} as flat coordinates, not on spheres." + cure)

    @cached_property
    def _mean(self) -> Tensor:
        return self._per_coordinate(0, 0.0)

    @cached_property
    def _std(self) -> Tensor:
        return self._per_coordinate(1, 1.0)

    @cached_property
    def _divisor(self) -> Tensor:
        """The standard deviation, or 1 for a role that never varies: its coordinates are 0, and come back as their mean."""
        return torch.where(self._std > 0, self._std, 1.0)

    def _per_coordinate(self, which: int, default: float) -> Tensor:
        values = torch.full((self.graph.size,), default)
        for role, index in self.roles.items():
            values[index] = self.statistics[role][which]
        return values


def fit_chart(spec: NetworkSpec, recipe: Recipe, thetas: Float[Tensor, "nets weights"], base: Frame = UNTURNED) -> Chart:
    """The chart whose statistics are those of a zoo that is canonical in the frame `base`, along the zoo's own principal axes."""
    chart, x = _standardised_by(spec, recipe, thetas, base)
    chart, x = _standardised_by(spec, recipe, thetas, principal_frame(chart.graph, x, base))
    return replace(chart, frame=replace(chart.frame, moments=fit_moments(chart.graph, x)))


def _standardised_by(spec: NetworkSpec, recipe: Recipe, thetas: Tensor, frame: Frame) -> tuple[Chart, Float[Tensor, "nets size"]]:
    """The chart in a frame without moments, and the zoo's coordinates in units of the noise."""
    blank = Chart(spec, recipe, {}, frame)
    raw = blank._raw(frame.turn(blank.graph, thetas))
    statistics = {role: (raw[:, index].mean().item(), raw[:, index].std().item()) for role, index in blank.roles.items()}
    chart = replace(blank, statistics=statistics)
    return chart, chart._standardised(raw) * chart.scale.to(raw)
