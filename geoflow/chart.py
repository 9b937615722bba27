"""Choose coordinates: map canonical weight vectors to points of a manifold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import pi, sqrt
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geoflow.appending import write_networks_of
from geoflow.canonical.scaling import dead_units, incoming, sphere_rows
from geoflow.coordinates import Coordinates, Recipe
from geoflow.fingerprints import digest_of
from geoflow.frame import UNTURNED, Frame
from geoflow.graph import Graph, graph_of
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.statistics import exp_variances, log_variances, variances_of
from geoflow.stored import Stored

Statistics = dict[str, tuple[float, float]]  # role -> (mean, standard deviation)
DEAD = 1e-5  # shorter rows belong to dead units; a flat flow does not miss norm 1 by so much
FLOOR = 1e-2  # smallest standard deviation of a coordinate, relative to that of its tensor
LEAST = 1e-4  # smallest standard deviation of a coordinate, in units of the noise
ROUNDING = 1e-6  # standard deviations below this share of the mean are rounding in float32


@dataclass(frozen=True, eq=False)
class Chart(Coordinates):
    """The map between canonical weight vectors [*batch, weights] and points [*batch, size] of a manifold.

    `recipe` says which coordinates lie on spheres. All others are flat. They are standardised by their role, which is the kind of their
    tensor and of the layers that it joins. `statistics` holds the mean and standard deviation of each role. Weights are multiplied by root
    fan-in before, so that the statistics also serve other widths. `powers` holds, for roles of weights, the power of the fan-in that is
    needed besides the root. Variances of batch norm are replaced by their logarithms. Before all this, `frame` turns the weights on an
    input to its axes. In these axes weight vectors are canonical, and rows have norm 1. size is the number of weights and polar log-norms.

    `own` [2, size] is the mean and standard deviation of every single coordinate over the zoo, in units of the noise. It is kept for fields
    that tell units by their place. For other fields it is None, and the frame gives moments along the axes of the inputs only.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    >>> zoo = torch.tensor([[1.0, 5.0], [3.0, 7.0]])
    >>> from geoflow.charting import fit_chart
    >>> chart = fit_chart(spec, geoflow.FLOWS["euclidean"], zoo)
    >>> chart.theta(chart.point(zoo))
    tensor([[1., 5.],
            [3., 7.]])
    """

    spec: NetworkSpec
    recipe: Recipe
    statistics: Statistics
    frame: Frame = UNTURNED
    own: Float[Tensor, "2 _size"] | None = None
    powers: Mapping[str, float] = field(default_factory=dict)
    spread: float = 1.0

    @cached_property
    def outputs(self) -> tuple[Int[Tensor, " entries"], ...]:
        """For each output that the recipe keeps as a direction, the coordinates of all weights that write it."""
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
        """The graph of the network, with the polar log-norms as further coordinates."""
        return graph_of(self.spec, extras=len(self.outputs))

    @cached_property
    def manifold(self) -> Product:
        """The product of spheres and flat space that the points lie on."""
        rows = sphere_rows(self.spec) if self.recipe.spheres else ()
        return Product(self.graph.size, (*rows, *(index[None] for index in self.outputs)))

    @cached_property
    def scale(self) -> Float[Tensor, " size"]:
        """Factors that give each coordinate of a random point standard deviation 1: root dimension on spheres, 1 elsewhere."""
        scale = torch.ones(self.graph.size)
        for index in self.manifold.spheres:
            scale[index] = sqrt(index.shape[1])
        return scale

    @cached_property
    def flat(self) -> Tensor:
        """Whether each coordinate is flat, that is on no sphere."""
        flat = torch.ones(self.graph.size, dtype=torch.bool)
        for index in self.manifold.spheres:
            flat[index] = False
        return flat

    @cached_property
    def amplitude(self) -> Float[Tensor, " size"]:
        """The typical size of each coordinate of a velocity: 1 in flat coordinates, pi/2 over root dimension on spheres.

        Random points of a sphere are nearly orthogonal, so pi/2 apart.
        """
        return torch.where(self.flat, 1.0, pi / 2 / self.scale)

    @cached_property
    def moments(self) -> Float[Tensor, "2 size"]:
        """Mean and standard deviation of each coordinate over the zoo, in units of the noise, as far as they are known."""
        return self.frame.along(self.graph) if self.own is None else self.own

    @cached_property
    def middle(self) -> tuple[Float[Tensor, "1 size"], Float[Tensor, "1 size"]]:
        """The direction of the zoo's mean on each sphere, and the length of that mean, given in every coordinate of the sphere."""
        mean = (self.moments[0] / self.scale)[None]
        length = self.manifold.cosines(mean, mean).sqrt()
        return torch.where(self.flat, 0.0, mean / length.clamp_min(LEAST)), length.clamp_max(1 - LEAST**1.5)

    def knowing_units(self, points: Float[Tensor, "nets size"]) -> "Chart":
        """Return this chart with `own` set to the moments of a zoo, which is given by its points.

        A small zoo may hardly vary in a coordinate by chance. So the variance also counts one more network with the mean variance of its
        tensor. FLOOR and LEAST are added in quadrature.
        """
        x = points * self.scale.to(points)
        seen, usual = x.var(0, unbiased=False), torch.zeros_like(x[0])
        for index in [part.index.flatten() for part in self.graph.parts] + [self.graph.scalars]:
            usual[index] = seen[index].mean()
        variance = (len(x) * seen + usual) / (len(x) + 1) + FLOOR**2 * usual + LEAST**2
        return replace(self, own=torch.stack([x.mean(0), variance.sqrt()]).cpu())

    def point(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch size"]:
        """Return the points of canonical weight vectors.

        Raises ValueError for a dead unit, whose incoming weights are all zero, because it has no direction on a sphere. Also raises it for
        a negative running variance, and for an output layer of zeros with `polar`.
        """
        theta = self.frame.turn(self.graph, theta)
        if self.recipe.spheres and (dead := dead_units(self.spec, theta)):
            network, site, _ = dead[0]
            raise ValueError(
                f"Network {network} has a dead unit at {site!r}: its incoming weights are all zero and have no direction (dead units in "
                f"all: {len(dead)}). Remove such networks, or choose flow=normalized or flow=euclidean."
            )
        raw = self.raw(theta)
        if not (finite := raw.isfinite().reshape(-1, raw.shape[-1]).all(1)).all():
            first = finite.tolist().index(False)
            raise ValueError(
                f"Network {first} has no coordinates: a running variance is negative, or (geometric_polar) its output layer is all zero. "
                "Remove this network."
            )
        return self.standardised(raw)

    def theta(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch weights"]:
        """Return the weight vectors of points. In flat space, rows that should have norm 1 are rescaled to it."""
        raw = torch.where(self.flat.to(x.device), x * self._std.to(x) + self._mean.to(x), x) / self._root_fan.to(x)
        weights, norms = raw.split([self.spec.weights, len(self.outputs)], -1)
        for index, norm in zip(self.outputs, norms.unbind(-1), strict=True):
            weights = weights.index_copy(-1, index.to(x.device), weights[..., index] * norm.exp().unsqueeze(-1))
        weights = exp_variances(weights, self._variances)
        if self.recipe.balance and not self.recipe.spheres:
            weights = self._with_rows_of_norm_one(weights)
        return self.frame.turn_back(self.graph, weights)

    def nearest(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
        """Rescale the rows that should have norm 1 to norm 1.

        The mean of canonical networks needs this, because averaging shortens rows.
        """
        if not self.recipe.balance:
            return theta
        return self.frame.turn_back(self.graph, self._with_rows_of_norm_one(self.frame.turn(self.graph, theta)))

    def on(self, spec: NetworkSpec) -> "Chart":
        """Return this chart for another architecture. Raises ValueError if the architecture has a role that the chart does not know."""
        chart = replace(self, spec=spec, own=None)  # these moments belong to other coordinates
        chart.check()
        return chart

    def steady(self) -> Bool[Tensor, " size"]:
        """Return which flat coordinates are the same in all networks of the zoo, up to rounding.

        A gain that canonical form scales to 1 is an example. Standardised, such a coordinate is rounding, made large.
        """
        found = torch.zeros(self.graph.size, dtype=torch.bool)
        for role, index in self.roles.items():
            mean, deviation = self.statistics[role]
            found[index] = deviation <= ROUNDING * abs(mean)
        return found

    def write(self, path: Path, x: Float[Tensor, "nets size"], progress: bool = False) -> Stored:
        key = digest_of({"points": x, "statistics": self.statistics, "axes": self.frame.axes})
        return write_networks_of(self.spec, path, key, len(x), x.dtype, lambda number: self.theta(x[number]), progress)

    def record(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and words that a saved flow keeps of this chart."""
        tensors = {f"axes.{name}": axes for name, axes in self.frame.axes.items()}
        tensors |= {f"moments.{weights}": moments for weights, moments in self.frame.moments.items()}
        tensors |= {} if self.own is None else {"own": self.own}
        return tensors, {"statistics": json.dumps(self.statistics), "powers": json.dumps(dict(self.powers))}

    def log_volume(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch"]:
        """Return log |det d point / d theta|: how many units of volume of points belong to one of weights.

        Raises ValueError if the recipe balances rows, because canonical weights then fill no volume.
        """
        if self.recipe.balance:
            raise ValueError(
                "A density over weights needs flow=euclidean. The other flows give rows of weights norm 1, so canonical weights fill no "
                "volume. Leave measure=points."
            )
        linear = self._root_fan.double().log().sum() - self._divisor.double().log().sum() + self.frame.log_det(self.graph)
        return linear.to(theta) - log_variances(theta, self._variances)[..., self._variances.to(theta.device)].sum(-1)

    def _with_rows_of_norm_one(self, weights: Tensor) -> Tensor:
        """Rescale rows to norm 1, except those of dead units."""
        for index in incoming(self.spec).values():
            rows = weights[..., index]
            norm = rows.norm(dim=-1, keepdim=True)
            rows = torch.where(norm > DEAD, rows / norm.clamp_min(DEAD), rows)
            weights = weights.index_copy(-1, index.flatten().to(weights.device), rows.flatten(-2))
        return weights

    def raw(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch size"]:
        """Return coordinates before they are standardised: directions, log-norms, log-variances, and weights times root fan-in."""
        norms = []
        for index in self.outputs:
            norm = theta[..., index].norm(dim=-1, keepdim=True)
            theta = theta.index_copy(-1, index.to(theta.device), theta[..., index] / norm)
            norms.append(norm.log())
        return torch.cat([log_variances(theta, self._variances), *norms], -1) * self._root_fan.to(theta)

    def standardised(self, raw: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Return points: flat coordinates minus the mean of their role, divided by its standard deviation."""
        return torch.where(self.flat.to(raw.device), (raw - self._mean.to(raw)) / self._divisor.to(raw), raw)

    @cached_property
    def _variances(self) -> Tensor:
        return variances_of(self.spec)

    @cached_property
    def _root_fan(self) -> Tensor:
        """The root of the entries per row, times their power of the role, for weights in flat coordinates. It is 1 elsewhere."""
        fan = torch.ones(self.graph.size)
        for block in self.graph.blocks:
            entries = block.index[0].numel()
            fan[block.index] = sqrt(entries) * entries ** self.powers.get(block.key, 0.0)
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
        """Raise ValueError if a flat role has no statistics, or if a role on spheres has some."""
        cure = " A geometric flow keeps rows that a symmetry rescales on spheres. For other activations or layers use flow=euclidean."
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
        """The standard deviation, or 1 for a role that never varies. Such coordinates are 0, and become the mean again."""
        return torch.where(self._std > 0, self._std, 1.0)

    def _per_coordinate(self, which: int, default: float) -> Tensor:
        values = torch.full((self.graph.size,), default)
        for role, index in self.roles.items():
            values[index] = self.statistics[role][which]
        return values
