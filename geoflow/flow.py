"""Define a flow: coordinates, a field on them, and how the field's output becomes a velocity."""

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

FORMAT = "geoflow-8"  # increased with every change of what is saved
WITHOUT_WIRES = ("geoflow-5", "geoflow-6", "geoflow-7")  # in these formats fields had no messages along wires
BY_ROLE = ("geoflow-5", "geoflow-6")  # these formats named moments by the role of the weights alone
READABLE = (*WITHOUT_WIRES, FORMAT)
BEFORE = {"align": True, "weighting": "balanced"}  # options that older flows lack, with the values that they had then
CLOSE = 1e-5  # a cosine nearer to 1 than this is rounding
LAST = 1e-2  # smallest remaining time that a predicted endpoint is divided by


Known = tuple[Tensor, Tensor, Tensor]  # result of `gaussian`


def gaussian(x: Tensor, t: Tensor, chart: Chart) -> Known:
    """Return what a Gaussian zoo would tell about each coordinate at x_t.

    A Gaussian zoo has the zoo's mean m and standard deviation s in each coordinate, as far as the chart knows them. The three results
    [nets, size] are x_t standardised, the expected velocity E[dx_t | x_t], and the standard deviation of the rest. All are in units of the
    noise. With noise x_0 ~ N(0, 1), data x_1 ~ N(m, s^2), x_t = a x_0 + b x_1 and d^2 = a^2 + b^2 s^2

        E[dx_t | x_t] = b' m + (a a' + b b' s^2) / d^2 (x_t - b m),        rest = s |a b' - a' b| / d

    In flat coordinates a, b = 1 - t, t. On a sphere a, b = sin, cos of (1 - t) theta, where theta is the angle from x_0 to x_1. It is pi /
    2 for random points. If the chart knows the middle of the zoo on each sphere, x_t tells more about the angle (see `angles_left`).

    >>> import torch, geoflow
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), FLOWS["euclidean"], {})
    >>> gaussian(torch.ones(1, 2), torch.zeros(1), chart)  # nothing is known of the zoo: m = 0, s = 1
    (tensor([[1., 1.]]), tensor([[-1., -1.]]), tensor([[1., 1.]]))
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
    """Estimate the angle theta from x_0 to x_1 on each sphere, given x_t. The chart must know the moments of every coordinate.

    The zoo lies around its middle, whose distance from the sphere's centre is r. So x_1 has the variance s^2 = 1 - r^2 around it. Without
    x_t, theta is pi / 2 with variance 1 / dim. The angle psi' from x_t to the middle has cos psi' = <x_t, middle> / r. It equals (1 - t)
    theta up to an error of variance (s^2 + s^4 / (2 sin^2((1 - t) pi / 2))) / r^2 / dim. The result is the mean of both estimates, weighted
    by their precisions.
    """
    middle, length = (beside(one, x) for one in chart.middle)
    left, r2 = 1 - t, length.square()
    angle = (chart.manifold.cosines(x, middle) / length.clamp_min(CLOSE)).clamp(-1 + CLOSE, 1 - CLOSE).acos()
    error = (1 - r2) + (1 - r2).square() / (2 * (left * math.pi / 2).sin().square().clamp_min(CLOSE))
    return (error * (math.pi / 2) + r2 * left * angle) / (error + r2 * left.square())


def preconditioned(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = (the velocity of a Gaussian zoo) + raw * (the deviation that it leaves open), and the weights of its squared errors.

    So the field predicts numbers of size one at every t. Where it predicts 0, the flow is the Gaussian's. That is exact in flat
    coordinates. On spheres it is approximate, and the fewer axes carry a row, the rougher it is. Every unit counts the same. The error of
    its weights is measured relative to what the Gaussian leaves open of them. So the loss is one at every t where the field predicts 0.

    >>> import torch, geoflow
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.zeros(1), torch.full((1, 2), 3.0)
    >>> preconditioned(raw, x, t, chart, gaussian(x, t, chart))[0]  # -1 + 1 * 3
    tensor([[2., 2.]])
    """
    _, mean, rest = known
    unit_of, units = beside(chart.graph.unit_of, x), chart.graph.units
    left_open = x.new_zeros(len(x), units).index_add_(1, unit_of, rest.square())
    weight = x.shape[1] / units / left_open[:, unit_of]
    return chart.manifold.proju(x, (mean + rest * raw) / beside(chart.scale, x)), weight


def velocity(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = the projection of raw on the tangent space, and weights 1.

    >>> import torch, geoflow
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.zeros(1), torch.full((1, 2), 3.0)
    >>> velocity(raw, x, t, chart, gaussian(x, t, chart))[0]
    tensor([[3., 3.]])
    """
    return chart.manifold.proju(x, raw * beside(chart.amplitude, x)), torch.ones_like(x)


def endpoint(raw: Tensor, x: Tensor, t: Tensor, chart: Chart, known: Known) -> tuple[Tensor, Tensor]:
    """Return v = log_{x_t}(x_1) / (1 - t) for a predicted x_1, and the weights (1 - t)^2.

    In flat coordinates raw is x_1 itself. On spheres raw is added to x_t, and the sum is projected on the sphere.

    >>> import torch, geoflow
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), FLOWS["euclidean"], {})
    >>> x, t, raw = torch.ones(1, 2), torch.full((1,), 0.5), torch.full((1, 2), 3.0)
    >>> endpoint(raw, x, t, chart, gaussian(x, t, chart))[0]  # (3 - 1) / .5
    tensor([[4., 4.]])
    """
    flat, remaining = beside(chart.flat, x), (1 - t[:, None]).clamp_min(LAST)
    end = chart.manifold.projx(torch.where(flat, raw, x + raw / beside(chart.scale, x)))
    return chart.manifold.logmap(x, end) / remaining, (remaining**2).expand(x.shape)


# name: (output of the field, x_t, t, chart, result of `gaussian`) -> (velocity, weight of its squared error at this t)
PREDICTIONS: dict[str, Callable] = {"preconditioned": preconditioned, "velocity": velocity, "endpoint": endpoint}
# name: that weight -> weight in the loss. balanced: the field's output counts the same at every t; uniform: the velocity does
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {"balanced": lambda weight: weight, "uniform": torch.ones_like}


@dataclass(eq=False)
class Flow:
    """A trained generator of networks.

    `sample(flow, n)` samples weight vectors, and `unpack(flow.spec, theta)` turns them into state dicts. `chart` holds the coordinates.
    `field` predicts velocities in them. `reference` is the common centre that the zoo was aligned to. `config` records how the flow was
    fitted, and `losses` holds the training loss of each iteration.

    >>> import tempfile, torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(9, 3), flow="euclidean", iterations=1, batch=4, progress=False)
    >>> flow.velocity(flow.chart)(torch.zeros(4, 3), torch.tensor(0.5)).shape
    torch.Size([4, 3])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flow.save(f"{folder}/flow.safetensors")
    ...     print(Flow.load(f"{folder}/flow.safetensors").spec == spec)
    True
    """

    chart: Chart
    field: nn.Module
    reference: Float[Tensor, " weights"]
    config: Mapping
    losses: list[float] = field(default_factory=list)

    @property
    def spec(self) -> NetworkSpec:
        """The table of the networks that the flow was fitted to."""
        return self.chart.spec

    def canonical(
        self, thetas: Float[Tensor, "nets weights"], reference: Float[Tensor, "nets weights"] | None = None
    ) -> Float[Tensor, "nets weights"]:
        """Return networks of the flow's own architecture in canonical form. They compute the same as before.

        The flow saw its zoo in this form, and `chart.point` takes it. Units come in the order that is nearest to the zoo's centre. With a
        `reference` for each network, they come in the order nearest to that.
        """
        reference = self.reference if reference is None else reference
        return canonicalize(self.spec, thetas, reference, self.chart.recipe.balance, self.chart.frame).theta

    def on(self, spec: NetworkSpec | None) -> Chart:
        """Return the flow's chart for another architecture for the same task. For None it is the flow's own.

        Raises ValueError if the flow cannot serve that architecture.
        """
        if spec is None or (spec.sites, spec.tensors) == (self.spec.sites, self.spec.tensors):  # only the own table surely has wires
            return self.chart
        chart = replace(self.chart, spec=spec, own=None)  # these moments belong to other coordinates
        chart.check()
        return chart

    def velocity(self, chart: Chart, sharpness: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function v(x, t) on a chart. It takes points [nets, size] and t as a number or [nets], and gives velocities [nets,
        size].

        With `sharpness` s it gives v + s (v - u), where u is the velocity of a Gaussian zoo. The networks then become better and less
        diverse. Source: autoguidance, Karras et al., arXiv 2406.02507, with the Gaussian as the weak model.
        """

        def v(x: Tensor, t: Tensor) -> Tensor:
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
            learned = self.predict(chart, x, t)[0]
            if not sharpness:
                return learned
            return torch.lerp(chart.manifold.proju(x, gaussian(x, t, chart)[1] / beside(chart.scale, x)), learned, 1 + sharpness)

        return v

    def predict(self, chart: Chart, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> tuple[Tensor, Tensor]:
        """Return the velocity at (x, t) and the weight of its squared error, both [nets, size]."""
        known = gaussian(x, t, chart)
        raw = self.field(chart.graph, known[0], t)
        return PREDICTIONS[self.config["prediction"]](raw, x, t, chart, known)

    def matching_loss(self, x_t: Float[Tensor, "nets size"], dx_t: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> Tensor:
        """Return the mean squared error of the velocity, weighted over t as the configuration says.

        Every coordinate is measured in units of its own size.
        """
        v, weight = self.predict(self.chart, x_t, t)
        return (WEIGHTINGS[self.config["weighting"]](weight) * ((v - dx_t) * beside(self.chart.scale, x_t)).square()).mean()

    def to(self, device: str | torch.device) -> "Flow":
        """Move the field to a device, and return the flow."""
        self.field.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Write the flow with its whole configuration as one safetensors file, which holds no code."""
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
        """Read a flow that `save` wrote.

        Raises FileNotFoundError if there is no file, and ValueError if it is corrupt or not a flow.
        """
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
        if metadata["format"] in WITHOUT_WIRES:  # with matrices of zeros, wires carry no message
            state = {name: torch.zeros_like(value) for name, value in flow.field.state_dict().items() if "wires." in name} | state
        flow.field.load_state_dict(state)
        flow.losses.extend(tensors["losses"].tolist())
        return flow.to(device)


def today(config: Mapping) -> dict:
    """Return a configuration in today's words, with the options that older flows did not have yet.

    Before `align` existed, `geometric` was what `geometric_polar` is now.

    >>> today({"flow": "geometric"})
    {'align': True, 'weighting': 'balanced', 'flow': 'geometric_polar'}
    """
    polar = config["flow"] == "geometric" and "align" not in config
    return {**BEFORE, **config, "flow": "geometric_polar" if polar else config["flow"]}


def build_flow(chart: Chart, reference: Float[Tensor, " weights"], config: Mapping) -> Flow:
    """Return an untrained flow. `config` names the field, its sizes and the prediction.

    The field is initialised from `config["seed"]`.
    """
    choose("prediction", config["prediction"], PREDICTIONS)
    with torch.random.fork_rng(devices=[]):
        seed_global(randomness(config["seed"], "field").initial_seed())
        field = build_field(chart.graph, config["velocity"], config["sizes"])
    if config["prediction"] != "preconditioned" and len(leading(chart.graph, field.components).unseen):
        widest = max(block.index.shape[1] for blocks in plain_inputs(chart.graph).values() for block in blocks)
        raise ValueError(
            f"The field sees {field.components} of {widest} axes of an input, and prediction={config['prediction']} cannot tell where "
            f"the others go. Choose prediction=preconditioned, or sizes.components={widest}."
        )
    return Flow(chart, field, reference, config)
