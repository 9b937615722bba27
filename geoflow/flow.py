"""Define a flow: a chart, a velocity on it, and how the network's output becomes that velocity."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.chart import FLOWS, Chart
from geoflow.choices import choose
from geoflow.files import read_tensors, under, write_tensors
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.velocity import build_field

FORMAT = "geoflow-2"  # counted up whenever a saved field no longer fits
LAST = 1e-2  # an endpoint is never divided by less than this remaining time


def preconditioned(raw: Tensor, x: Tensor, t: Tensor, chart: Chart) -> tuple[Tensor, Tensor]:
    """v = ((2t - 1) x + s raw) / s^2 with s^2 = t^2 + (1 - t)^2 in flat coordinates, the projection of raw on spheres.

    For independent standard normal noise and data the first term is E[x_1 - x_0 | x_t] and s raw / s^2 has unit variance: the network
    sees and predicts numbers of size one at every t. On a sphere the mean is tangent to nothing but x_t itself, so no such term exists.
    """
    flat, (amplitude, t) = chart.flat.to(x.device), (_amplitude(chart, x), t[:, None])
    s2 = t**2 + (1 - t) ** 2
    v = torch.where(flat, ((2 * t - 1) * x + s2.sqrt() * raw) / s2, raw * amplitude)
    return chart.manifold.proju(x, v), torch.where(flat, s2, 1.0)


def velocity(raw: Tensor, x: Tensor, t: Tensor, chart: Chart) -> tuple[Tensor, Tensor]:
    """v = the projection of raw on the tangent space."""
    return chart.manifold.proju(x, raw * _amplitude(chart, x)), torch.ones_like(x)


def endpoint(raw: Tensor, x: Tensor, t: Tensor, chart: Chart) -> tuple[Tensor, Tensor]:
    """v = log_{x_t}(x_1) / (1 - t) for a predicted x_1, anchored at x_t; on spheres raw is added to x_t before projection."""
    flat, remaining = chart.flat.to(x.device), (1 - t[:, None]).clamp_min(LAST)
    end = chart.manifold.projx(torch.where(flat, raw, x + raw / chart.scale.to(x)))
    return chart.manifold.logmap(x, end) / remaining, (remaining**2).expand(x.shape)


# name: (raw output of the network, x_t, t, chart) -> (velocity, weight of its squared error at this t)
PREDICTIONS: dict[str, Callable] = {"preconditioned": preconditioned, "velocity": velocity, "endpoint": endpoint}


def _amplitude(chart: Chart, x: Tensor) -> Tensor:
    """The typical size of a velocity's coordinate: pi/2 over root dimension on spheres, where random points are orthogonal."""
    return torch.where(chart.flat, 1.0, math.pi / 2 / chart.scale).to(x)


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

    def on(self, spec: NetworkSpec | None) -> Chart:
        """The flow's chart on another architecture for the same task; None: its own. Raises ValueError for one that it cannot serve."""
        if spec is None:
            return self.chart
        chart = Chart(spec, self.chart.recipe, self.chart.statistics)
        chart.check()
        return chart

    def velocity(self, chart: Chart) -> Callable[[Tensor, Tensor], Tensor]:
        """The field v(x, t) [nets, size] on a chart, with t a number or [nets]."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
            return self.predict(chart, x, t)[0]

        return v

    def predict(self, chart: Chart, x: Float[Tensor, "nets size"], t: Float[Tensor, " nets"]) -> tuple[Tensor, Tensor]:
        """The velocity at (x, t) and the weight of its squared error, both [nets, size]."""
        raw = self.field(chart.graph, x * chart.scale.to(x), t)
        return PREDICTIONS[self.config["prediction"]](raw, x, t, chart)

    def to(self, device: str | torch.device) -> "Flow":
        self.field.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Write the flow as one safetensors file with its whole configuration; it holds no code."""
        tensors = {f"field.{name}": value for name, value in self.field.state_dict().items()}
        tensors |= {f"rest.{name}": value for name, value in self.spec.rest.items()}
        tensors |= {"reference": self.reference, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        metadata = {"spec": self.spec.to_json(), "statistics": json.dumps(self.chart.statistics), "config": json.dumps(dict(self.config))}
        write_tensors(path, tensors, {"format": FORMAT} | metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Flow":
        """Read what `save` wrote. Raises ValueError for a corrupt or foreign file, FileNotFoundError for none."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no flow at {path}. A run writes it as runs/<id>/flow.safetensors.")
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a flow of this version ({FORMAT}): its format is {metadata.get('format')!r}.")
        spec = NetworkSpec.from_json(metadata["spec"], under("rest.", tensors))
        config = json.loads(metadata["config"])
        statistics = {role: tuple(pair) for role, pair in json.loads(metadata["statistics"]).items()}
        flow = build_flow(Chart(spec, FLOWS[config["flow"]], statistics), tensors["reference"], config)
        flow.field.load_state_dict(under("field.", tensors))
        flow.losses.extend(tensors["losses"].tolist())
        return flow.to(device)


def build_flow(chart: Chart, reference: Float[Tensor, " weights"], config: Mapping) -> Flow:
    """An untrained flow; `config` names the velocity, its sizes and the prediction. The field is initialised from `config["seed"]`."""
    choose("prediction", config["prediction"], PREDICTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness(config["seed"], "field").initial_seed())
        field = build_field(chart.graph, config["velocity"], config["sizes"])
    return Flow(chart, field, reference, config)
