"""Define a flow: coordinates, a field on them, and how the field's output becomes a velocity."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.canonical import canonicalize
from geoflow.chart import Chart
from geoflow.choices import choose
from geoflow.conditions import Conditions, from_record
from geoflow.constants import beside
from geoflow.coordinates import FLOWS, Coordinates
from geoflow.earlier import still_describes
from geoflow.files import read_tensors, under, write_tensors
from geoflow.frame import Frame, of_every_input
from geoflow.graph import graph_of, leading, plain_inputs
from geoflow.latent import LATENTS, NONE
from geoflow.parts import in_parts
from geoflow.randomness import randomness, seed_global
from geoflow.spec import NetworkSpec
from geoflow.targets import PREDICTIONS, WEIGHTINGS, gaussian
from geoflow.velocity import NOTHING, build_field

FORMAT = "geoflow-11"  # increased with every change of what is saved
WITHOUT_WIRES = ("geoflow-5", "geoflow-6", "geoflow-7")  # in these formats fields had no messages along wires
BY_ROLE = ("geoflow-5", "geoflow-6")  # these formats named moments by the role of the weights alone
READABLE = (*WITHOUT_WIRES, "geoflow-8", "geoflow-9", "geoflow-10", FORMAT)
# what a configuration means that does not say more
PLAIN = {
    "latent": NONE, "components": None, "spread": 1.0, "pool": None, "jitter": 0.0, "dropout": 0.0, "optimizer": "muon",
    "recompute": NOTHING,
}  # fmt: skip
BEFORE = {"align": True, "weighting": "balanced", **PLAIN}  # options that older flows lack, with the values that they had then


@dataclass(frozen=True, eq=False)
class Member:
    """A further architecture that a flow was fitted to: its coordinates, and the common centre that its zoo was aligned to."""

    chart: Coordinates
    reference: Float[Tensor, " weights"]


@dataclass(eq=False)
class Flow:
    """A trained generator of networks.

    `sample(flow, n)` samples weight vectors, and `unpack(flow.spec, theta)` turns them into state dicts. `chart` holds the coordinates.
    `field` predicts velocities in them. `reference` is the common centre that the zoo was aligned to. `config` records how the flow was
    fitted, and `losses` holds the training loss of each iteration.

    A flow may have been told something of each network, its *condition*. `conditions` describes it. See `sample`.

    A flow may be fitted to several architectures. `chart` and `reference` belong to the first of them, and `others` hold the further ones.
    `of` gives the same flow with another of them first.

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

    chart: Coordinates
    field: nn.Module
    reference: Float[Tensor, " weights"]
    config: Mapping
    losses: list[float] = field(default_factory=list)
    others: tuple[Member, ...] = ()

    @property
    def spec(self) -> NetworkSpec:
        """The table of the networks that the flow was fitted to. With several architectures it is that of the first."""
        return self.chart.spec

    @property
    def conditions(self) -> Conditions | None:
        """What the flow was told of every network, or None."""
        return from_record(self.config["conditions"]) if "conditions" in self.config else None

    @property
    def charts(self) -> tuple[Coordinates, ...]:
        """The coordinates of every architecture that the flow was fitted to."""
        return (self.chart, *(member.chart for member in self.others))

    def knows(self, spec: NetworkSpec) -> bool:
        """Whether the flow was fitted to networks of this architecture, perhaps with a table of an earlier tracing."""
        return _own(self.charts, spec) is not None

    def of(self, spec: NetworkSpec) -> "Flow":
        """Return this flow with one of its architectures first, so that `spec`, `chart`, `reference` and `canonical` are of that one.

        The field is shared. A flow keeps the tables that it was fitted with: later ones of the same networks may declare more symmetries.
        Raises ValueError for an architecture that the flow was not fitted to.
        """
        members = [Member(self.chart, self.reference), *self.others]
        own = _own(self.charts, spec)
        if own is None:
            raise ValueError(
                f"The flow was not fitted to networks of {spec.weights} weights with this table; those that it was fitted to have "
                f"{', '.join(str(chart.spec.weights) for chart in self.charts)}. Only `sample` serves other architectures."
            )
        first = next(member for member in members if member.chart is own)
        return replace(self, chart=own, reference=first.reference, others=tuple(one for one in members if one is not first))

    def canonical(
        self, thetas: Float[Tensor, "nets weights"], reference: Float[Tensor, "nets weights"] | None = None
    ) -> Float[Tensor, "nets weights"]:
        """Return networks of the flow's own architecture in canonical form. They compute the same as before.

        The flow saw its zoo in this form, and `chart.point` takes it. Units come in the order that is nearest to the zoo's centre. With a
        `reference` for each network, they come in the order nearest to that.
        """
        reference = self.reference if reference is None else reference
        return canonicalize(self.spec, thetas, reference, self.chart.recipe.balance, self.chart.frame).theta

    def on(self, spec: NetworkSpec | None) -> Coordinates:
        """Return the flow's chart for another architecture for the same task. For None it is the flow's first.

        Raises ValueError if the flow cannot serve that architecture.
        """
        if spec is None:
            return self.chart
        if (own := _own(self.charts, spec)) is not None:  # only the own tables surely have wires
            return own
        return self.chart.on(spec)

    def velocity(
        self,
        chart: Coordinates,
        sharpness: float = 0.0,
        condition: Float[Tensor, "nets features"] | None = None,
        condition_strength: float = 1.0,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function v(x, t) on a chart. It takes points [nets, size] and t as a number or [nets], and gives velocities [nets,
        size].

        With `sharpness` s it gives v + s (v - u), where u is the velocity of a Gaussian zoo. The networks then become better and less
        diverse. Source: autoguidance, Karras et al., arXiv 2406.02507, with the Gaussian as the weak model.

        With an encoded `condition` c and the strength w, the velocity that was learned is v(x) + w (v(x | c) - v(x)). Source:
        classifier-free guidance, Ho and Salimans, arXiv 2207.12598.
        """

        def v(x: Tensor, t: Tensor) -> Tensor:
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
            learned = self.predict(chart, x, t, condition)[0]
            if condition is not None and condition_strength != 1:
                learned = torch.lerp(self.predict(chart, x, t)[0], learned, condition_strength)
            if not sharpness:
                return learned
            return torch.lerp(chart.manifold.proju(x, gaussian(x, t, chart)[1] / beside(chart.scale, x)), learned, 1 + sharpness)

        return v

    def predict(
        self,
        chart: Coordinates,
        x: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity at (x, t) and the weight of its squared error, both [nets, size]. `condition` is encoded."""
        known = gaussian(x, t, chart)
        raw = self.field(chart.graph, known[0], t, *(() if condition is None else (condition,)))
        return PREDICTIONS[self.config["prediction"]](raw, x, t, chart, known)

    def matching_loss(
        self,
        x_t: Float[Tensor, "nets size"],
        dx_t: Float[Tensor, "nets size"],
        t: Float[Tensor, " nets"],
        chart: Coordinates | None = None,
        condition: Float[Tensor, "nets _features"] | None = None,
    ) -> Tensor:
        """Return the mean squared error of the velocity on a chart (by default the first), weighted over t as the configuration says.

        Every coordinate is measured in units of its own size.
        """
        chart = self.chart if chart is None else chart
        v, weight = self.predict(chart, x_t, t, condition)
        weight, scale = WEIGHTINGS[self.config["weighting"]](weight), beside(chart.scale, x_t)
        return in_parts(lambda weight, v, dx_t, scale: weight * ((v - dx_t) * scale).square(), weight, v, dx_t, scale).mean()

    def to(self, device: str | torch.device) -> "Flow":
        """Move the field to a device, and return the flow."""
        self.field.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Write the flow with its whole configuration as one safetensors file, which holds no code.

        A flow with latent=pca also keeps the networks of its zoo. If they have more than 2^28 numbers, they go to a second file beside it.
        """
        path = Path(path)
        tensors = {f"field.{name}": value for name, value in self.field.state_dict().items()}
        tensors |= {f"rest.{name}": value for name, value in self.spec.rest.items()}
        for number, member in enumerate(self.others):
            tensors |= {f"others.{number}.rest.{name}": value for name, value in member.chart.spec.rest.items()}
            tensors[f"others.{number}.reference"] = member.reference
        of_chart, words = self.chart.record(path)
        tensors |= of_chart | {"reference": self.reference, "losses": torch.tensor(self.losses, dtype=torch.float64)}
        metadata = {"spec": self.spec.to_json(), "config": json.dumps(dict(self.config)), **words}
        metadata |= {"others": json.dumps([member.chart.spec.to_json() for member in self.others])}
        write_tensors(path, tensors, {"format": FORMAT} | metadata)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Flow":
        """Read a flow that `save` wrote.

        Raises FileNotFoundError if there is no file, and ValueError if it is corrupt or not a flow. The same errors stand for a second file
        that the flow needs.
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
        powers = json.loads(metadata.get("powers", "{}"))
        chart = Chart(spec, FLOWS[config["flow"]], statistics, frame, tensors.get("own"), powers, config["spread"])
        others = []
        for number, table in enumerate(json.loads(metadata.get("others", "[]"))):
            further = NetworkSpec.from_json(table, under(f"others.{number}.rest.", tensors))
            others.append(Member(replace(chart, spec=further), tensors[f"others.{number}.reference"]))
        chart = replace(LATENTS[config["latent"]].read(chart, tensors, metadata, Path(path)), spread=config["spread"])
        flow = build_flow(chart, tensors["reference"], config, others)
        state = under("field.", tensors)
        if metadata["format"] in WITHOUT_WIRES:  # with matrices of zeros, wires carry no message
            state = {name: torch.zeros_like(value) for name, value in flow.field.state_dict().items() if "wires." in name} | state
        flow.field.load_state_dict(state)
        flow.losses.extend(tensors["losses"].tolist())
        return flow.to(device)


def today(config: Mapping) -> dict:
    """Return a configuration in today's words, with the options that older flows did not have yet.

    Before `align` existed, `geometric` was what `geometric_polar` is now.

    >>> older = today({"flow": "geometric"})
    >>> older["flow"], older["align"], older["weighting"], older["latent"]
    ('geometric_polar', True, 'balanced', 'none')
    """
    polar = config["flow"] == "geometric" and "align" not in config
    return {**BEFORE, **config, "flow": "geometric_polar" if polar else config["flow"]}


def _own(charts: Sequence[Coordinates], spec: NetworkSpec) -> Coordinates | None:
    """The chart of the networks with this table, or else one whose table of an earlier tracing still describes them."""
    for chart in charts:
        if (chart.spec.sites, chart.spec.tensors) == (spec.sites, spec.tensors):
            return chart
    return next((chart for chart in charts if still_describes(chart.spec, spec)), None)


def build_flow(chart: Coordinates, reference: Float[Tensor, " weights"], config: Mapping, others: Sequence[Member] = ()) -> Flow:
    """Return an untrained flow. `config` names the field, its sizes and the prediction. `others` are its further architectures.

    The field is initialised from `config["seed"]`.
    """
    config = PLAIN | dict(config)
    choose("prediction", config["prediction"], PREDICTIONS)
    with torch.random.fork_rng(devices=[]):
        seed_global(randomness(config["seed"], "field").initial_seed())
        features = from_record(config["conditions"]).features if "conditions" in config else 0
        graphs = [chart.graph, *(member.chart.graph for member in others)]
        field = build_field(graphs, config["velocity"], config["sizes"], features, config["dropout"], config["recompute"]).eval()
    if config["prediction"] != "preconditioned" and len(leading(chart.graph, field.components).unseen):
        widest = max(block.index.shape[1] for blocks in plain_inputs(chart.graph).values() for block in blocks)
        raise ValueError(
            f"The field sees {field.components} of {widest} axes of an input, and prediction={config['prediction']} cannot tell where "
            f"the others go. Choose prediction=preconditioned, or sizes.components={widest}."
        )
    return Flow(chart, field, reference, config, others=tuple(others))
