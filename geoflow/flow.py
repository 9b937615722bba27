"""Define a flow: a chart, a velocity on it, and how the network's output becomes that velocity."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.canonical import canonicalize
from geoflow.chart import FLOWS, Chart
from geoflow.choices import choose
from geoflow.constants import beside
from geoflow.files import read_tensors, under, write_tensors
from geoflow.frame import Frame, of_every_input
from geoflow.graph import graph_of, leading, plain_inputs
from geoflow.randomness import randomness, seed_global
from geoflow.spec import NetworkSpec
from geoflow.velocity import build_field

FORMAT = "geoflow-8"  # counted up with every change of what is saved
WITHOUT_WIRES = ("geoflow-5", "geoflow-6", "geoflow-7")  # fields of these heard nothing along wires
BY_ROLE = ("geoflow-5", "geoflow-6")  # these named moments by the role of the weights alone
READABLE = (*WITHOUT_WIRES, FORMAT)
BEFORE = {"align": True, "weighting": "balanced"}  # how flows that are older than an option were fitted
CLOSE = 1e-5  # cosines this near to 1 are rounding
LAST = 1e-2  # an endpoint is never divided by less than this remaining time


Known = tuple[Tensor, Tensor, Tensor]  # what `gaussian` says


def gaussian(x: Tensor, t: Tensor, chart: Chart) -> Known:
    """What a Gaussian zoo would tell of each coordinate, in units of the noise: x_t standardised, E[dx_t | x_t], and the rest's deviation.

    For noise x_0 ~ N(0, 1), data x_1 ~ N(m, s^2) and x_t = a x_0 + b x_1 the variance is d^2 = a^2 + b^2 s^2 and

        E[dx_t | x_t] = b' m + (a a' + b b' s^2) / d^2 (x_t - b m),        rest = s |a b' - a' b| / d

    In flat coordinates a, b = 1 - t, t. On a sphere a, b = sin, cos of (1 - t) theta, where theta is the angle from x_0 to x_1: pi / 2 for
    random points, and where the chart knows the middle of the zoo on each sphere, what x_t tells of it (see `angles_left`).
    """
    (m, s), flat, t = beside(chart.moments, x), beside(chart.flat, x), t[:, None]
    theta = math.pi / 2 if chart.own is None else angles_left(x, t, chart)
    angle = (1 - t) * theta
    a, b = torch.where(flat, 1 - t, angle.sin()), torch.where(flat, t, angle.cos())
    da, db = torch.where(flat, -1.0, -theta * b), torch.where(flat, 1.0, theta * a)
    variance = a**2 + (b * s) ** 2
    offset, deviation = x * beside(chart.scale, x) - b * m, variance.sqrt()
    mean = db * m + (a * da + b * db * s**2) / variance * offset
    return offset / deviation, mean, s * (a * db - da * b) / deviation


def angles_left(x: Float[Tensor, "nets size"], t: Float[Tensor, "nets 1"], chart: Chart) -> Float[Tensor, "nets size"]:
    """The angle theta from x_0 to x_1 that x_t tells of, on each sphere of a chart that knows the moments of every coordinate.

    The zoo lies around a middle at the distance r from the sphere's centre, and leaves x_1 the variance s^2 = 1 - r^2. Before x_t is seen,
    theta is pi / 2 with variance 1 / dim. The angle psi' from x_t to the middle, cos psi' = <x_t, middle> / r, is (1 - t) theta but for an
    error of the variance (s^2 + s^4 / (2 sin^2((1 - t) pi / 2))) / r^2 / dim. The result is the mean of both by their precisions.
    """
    middle, length = (beside(one, x) for one in chart.middle)
    left, r2 = 1 - t, length.square()
    angle = (chart.manifold.cosines(x, middle) / length.clamp_min(CLOSE)).clamp(-1 + CLOSE, 1 - CLOSE).acos()
    error = (1 - r2) + (1 - r2).square() / (2 * (left * math.pi / 2).sin().square().clamp_min(CLOSE))
    return (error * (math.pi / 2) + r2 * left * angle) / (error + r2 * left.square())


def preconditioned(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """v = the expectation for a Gaussian zoo + raw in units of what that leaves open: the network predicts numbers of size one at every
    t, and where it predicts 0 the flow is the Gaussian's: exactly in flat coordinates, nearly on spheres, by the less the fewer axes carry
    a row. Every unit counts the same, with the error of its weights relative to what the Gaussian leaves open of them; the loss where the
    network predicts 0 is then one at every t."""
    _, mean, rest = known
    unit_of, units = beside(chart.graph.unit_of, x), chart.graph.units
    left_open = x.new_zeros(len(x), units).index_add_(1, unit_of, rest.square())
    weight = x.shape[1] / units / left_open[:, unit_of]
    return chart.manifold.proju(x, (mean + rest * raw) / beside(chart.scale, x)), weight


def velocity(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """v = the projection of raw on the tangent space."""
    return chart.manifold.proju(x, raw * beside(chart.amplitude, x)), torch.ones_like(x)


def endpoint(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """v = log_{x_t}(x_1) / (1 - t) for a predicted x_1, anchored at x_t; on spheres raw is added to x_t before projection."""
    flat, remaining = beside(chart.flat, x), (1 - t[:, None]).clamp_min(LAST)
    end = chart.manifold.projx(torch.where(flat, raw, x + raw / beside(chart.scale, x)))
    return chart.manifold.logmap(x, end) / remaining, (remaining**2).expand(x.shape)


# name: (raw output of the network, x_t, t, chart, what the Gaussian knows) -> (velocity, weight of its squared error at this t)
PREDICTIONS: dict[str, Callable] = {"preconditioned": preconditioned, "velocity": velocity, "endpoint": endpoint}
# name: that weight -> the weight in the loss: an error of what the network says counts the same at every t, or one of the velocity
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"balanced": lambda weight: weight, "uniform": torch.ones_like}


@dataclass(eq=False)
class Flow:
    """A trained generator of networks: `sample(flow, n)` draws weight vectors, `unpack(flow.spec, theta)` makes state dicts of them.

    `field` predicts on the graph of `chart`; `reference` is the common centre that the zoo was aligned to, by which further networks
    are made canonical; `config` records how the flow was made, `losses` the training loss of each iteration.
    """

    chart: Chart
    field: nn.Module
    reference: Float[Tensor, " weights"]
    config: Mapping
    losses: list[float] = field(default_factory=list)

    @property
    def spec(self) -> NetworkSpec:
        return self.chart.spec

    def canonical(
        self, thetas: Float[Tensor, "nets weights"], reference: Float[Tensor, "nets weights"] | None = None
    ) -> Float[Tensor, "nets weights"]:
        """Networks of the flow's own architecture in the form in which it saw its zoo: `chart.point` takes them. They compute the same.

        With a `reference` for each, their units come in the order that is nearest to it, in place of the zoo's centre.
        """
        reference = self.reference if reference is None else reference
        return canonicalize(self.spec, thetas, reference, self.chart.recipe.balance, self.chart.frame).theta

    def on(self, spec: NetworkSpec | None) -> Chart:
        """The flow's chart on another architecture for the same task; None: its own. Raises ValueError for one that it cannot serve."""
        if spec is None or (spec.sites, spec.tensors) == (self.spec.sites, self.spec.tensors):  # the flow's own table knows its wires
            return self.chart
        chart = replace(self.chart, spec=spec, own=None)  # moments of other coordinates say nothing
        chart.check()
        return chart

    def velocity(self, chart: Chart, sharpness: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The field v(x, t) [nets, size] on a chart, with t a number or [nets].

        A `sharpness` s makes it v + s (v - u), with u the velocity that a Gaussian zoo would have: away from what the worse model knows.
        Networks become better and less diverse. Source: autoguidance, Karras et al., arXiv 2406.02507, with the Gaussian as the weak model.
        """

        def v(x: Tensor, t: Tensor) -> Tensor:
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
            learned = self.predict(chart, x, t)[0]
            if not sharpness:
                return learned
            return torch.lerp(chart.manifold.proju(x, gaussian(x, t, chart)[1] / beside(chart.scale, x)), learned, 1 + sharpness)

        return v

    def predict(self, chart: Chart, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> tuple[Tensor, Tensor]:
        """The velocity at (x, t) and the weight of its squared error, both [nets, size]."""
        known = gaussian(x, t, chart)
        raw = self.field(chart.graph, known[0], t)
        return PREDICTIONS[self.config["prediction"]](raw, x, t, chart, known)

    def matching_loss(self, x_t: Float[Tensor, "nets size"], dx_t: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> Tensor:
        """The mean squared error of the velocity in units of a coordinate's own size, weighted over t as the configuration says."""
        v, weight = self.predict(self.chart, x_t, t)
        return (WEIGHTINGS[self.config["weighting"]](weight) * ((v - dx_t) * beside(self.chart.scale, x_t)).square()).mean()

    def to(self, device: str | torch.device) -> "Flow":
        self.field.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Write the flow as one safetensors file with its whole configuration; it holds no code."""
        tensors = {f"field.{name}": value for name, value in self.field.state_dict().items()}
        tensors |= {f"rest.{name}": value for name, value in self.spec.rest.items()}
        tensors |= {f"axes.{name}": axes for name, axes in self.chart.frame.axes.items()}
        tensors |= {f"moments.{weights}": moments for weights, moments in self.chart.frame.moments.items()}
        tensors |= {} if self.chart.own is None else {"own": self.chart.own}
        tensors |= {"reference": self.reference, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        metadata = {"spec": self.spec.to_json(), "statistics": json.dumps(self.chart.statistics), "config": json.dumps(dict(self.config))}
        write_tensors(path, tensors, {"format": FORMAT} | metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Flow":
        """Read what `save` wrote. Raises ValueError for a corrupt or foreign file, FileNotFoundError for none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no flow at {path}. A run writes it as runs/<id>/flow.safetensors.")
        tensors, metadata = read_tensors(path)
        if metadata.get("format") not in READABLE:
            raise ValueError(f"{path} is not a flow of this version ({' or '.join(READABLE)}): its format is {metadata.get('format')!r}.")
        spec = NetworkSpec.from_json(metadata["spec"], under("rest.", tensors))
        config = today(json.loads(metadata["config"]))
        statistics = {role: tuple(pair) for role, pair in json.loads(metadata["statistics"]).items()}
        moments = under("moments.", tensors)
        frame = Frame(under("axes.", tensors), of_every_input(graph_of(spec), moments) if metadata["format"] in BY_ROLE else moments)
        chart = Chart(spec, FLOWS[config["flow"]], statistics, frame, tensors.get("own"))
        flow = build_flow(chart, tensors["reference"], config)
        state = under("field.", tensors)
        if metadata["format"] in WITHOUT_WIRES:  # matrices of zeros say nothing
            state = {name: torch.zeros_like(value) for name, value in flow.field.state_dict().items() if "wires." in name} | state
        flow.field.load_state_dict(state)
        flow.losses.extend(tensors["losses"].tolist())
        return flow.to(device)


def today(config: Mapping) -> dict:
    """A configuration in today's words, with options that it is older than. Before `align`, geometric was what geometric_polar is now.

    >>> today({"flow": "geometric"})
    {'align': True, 'weighting': 'balanced', 'flow': 'geometric_polar'}
    """
    polar = config["flow"] == "geometric" and "align" not in config
    return {**BEFORE, **config, "flow": "geometric_polar" if polar else config["flow"]}


def build_flow(chart: Chart, reference: Float[Tensor, " weights"], config: Mapping) -> Flow:
    """An untrained flow; `config` names the velocity, its sizes and the prediction. The field is initialised from `config["seed"]`."""
    choose("prediction", config["prediction"], PREDICTIONS)
    with torch.random.fork_rng(devices=[]):
        seed_global(randomness(config["seed"], "field").initial_seed())
        field = build_field(chart.graph, config["velocity"], config["sizes"])
    if config["prediction"] != "preconditioned" and len(leading(chart.graph, field.components).unseen):
        widest = max(block.index.shape[1] for blocks in plain_inputs(chart.graph).values() for block in blocks)
        raise ValueError(
            f"prediction={config['prediction']} leaves coordinates that the field does not see as they are: only preconditioned knows "
            f"where they go. Choose it, or sizes.components={widest}."
        )
    return Flow(chart, field, reference, config)
