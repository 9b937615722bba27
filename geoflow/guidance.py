"""Guide a flow towards networks with a low loss: move them along its gradient between the steps of the solver."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.coordinates import Coordinates
from geoflow.manifolds import Product
from geoflow.objectives import Objective, losses, task_objective
from geoflow.outputs.reading import Output
from geoflow.parts import sums_of

Field = Callable[[Tensor, Tensor], Tensor]  # (x [nets, size], t []) -> tangent vectors [nets, size]
Step = Callable[..., Tensor]  # (v, x, t, h, manifold) -> x at t + h
Guidance = Callable[[Coordinates, Step], Step]  # the step of a solver -> a step that is guided too

RISE = 10.0  # guidance has diverged if a loss L_0 rises by more than RISE (1 + |L_0|)
FIRST, SECOND = 0.9, 0.99  # what running means keep of themselves
TINY = 1e-12  # shorter gradients have no direction


def no_guidance(chart: Coordinates, step: Step) -> Step:
    """Leave the steps of the solver as they are."""
    return step


class Diverged(FloatingPointError):
    """Guidance, or the solver, has made networks that are of no use. `thetas` holds those that were finished before."""

    def __init__(self, message: str, thetas: Float[Tensor, "nets weights"] | None = None):
        super().__init__(message)
        self.thetas = thetas


def at_point(loss: Callable, v: Field, x: Tensor, t: Tensor, speed: Tensor, manifold: Product) -> Tensor:
    """Return the gradient at x_t itself. Source: Erdogan 2025."""
    return loss(x)


def at_endpoint(loss: Callable, v: Field, x: Tensor, t: Tensor, speed: Tensor, manifold: Product) -> Tensor:
    """Return the gradient at the network that the flow predicts for t = 1, brought to x_t by parallel transport."""
    end = manifold.expmap(x, (1 - t) * speed)
    return manifold.transp(end, x, loss(end))


def through_endpoint(loss: Callable, v: Field, x: Tensor, t: Tensor, speed: Tensor, manifold: Product) -> Tensor:
    """Return the gradient of the loss of the predicted network as a function of x_t, through the field.

    Source: diffusion posterior sampling, Chung et al. 2023.
    """
    return loss(x, lambda point: manifold.expmap(point, (1 - t) * v(point, t)))


# name: where the gradient is taken
PLACES: dict[str, Callable] = {"point": at_point, "endpoint": at_endpoint, "through": through_endpoint}
# name: factor of the strength at time t
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "falling": lambda t: 1 - t,
    "rising": lambda t: t,
}


@dataclass
class Gradient:
    """Take gradients as they are, in the flow's coordinates."""

    chart: Coordinates

    def __call__(self, x: Tensor, gradient: Tensor, speed: Tensor) -> Float[Tensor, "nets size"]:
        return gradient


@dataclass
class UnitGradient(Gradient):
    """Give the gradient of every unit the length of the flow's velocity there. So one strength serves many tasks."""

    def __call__(self, x: Tensor, gradient: Tensor, speed: Tensor) -> Float[Tensor, "nets size"]:
        return gradient / self.lengths(gradient).clamp_min(TINY) * self.lengths(speed)

    def lengths(self, v: Float[Tensor, "nets size"]) -> Float[Tensor, "nets size"]:
        """Return the length of a vector over the coordinates of each unit, given in every coordinate of the unit."""
        unit_of = self.chart.graph.unit_of.to(v.device)
        return sums_of(v.square(), unit_of, self.chart.graph.units).sqrt()[:, unit_of]


@dataclass
class MeanGradient(UnitGradient):
    """Average gradients over the steps, and divide by their root mean square in each unit.

    The result has the length of the flow's velocity, and is shorter where gradients contradict each other. Source: Kingma and Ba, Adam,
    2015, with one second moment for each unit.
    """

    count: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, x: Tensor, gradient: Tensor, speed: Tensor) -> Float[Tensor, "nets size"]:
        self.count += 1
        self.first = self.chart.manifold.proju(x, FIRST * self.first.to(x) + (1 - FIRST) * gradient)
        self.second = SECOND * self.second.to(x) + (1 - SECOND) * self.lengths(gradient).square()
        mean, square = self.first / (1 - FIRST**self.count), self.second / (1 - SECOND**self.count)
        return mean / square.sqrt().clamp_min(TINY) * self.lengths(speed)


# name: in which units gradients are counted
UNITS: dict[str, type[Gradient]] = {"loss": Gradient, "velocity": UnitGradient, "average": MeanGradient}


def guide(
    objective: Objective,
    strength: float = 1.0,
    *,
    at: str = "point",
    unit: str = "velocity",
    schedule: str = "constant",
    yields: bool = False,
    repeats: int = 1,
) -> Guidance:
    """Return a guidance that lowers an objective L of every sampled network. `sample` takes it.

    After each step of the solver from t to t + h, `repeats` times,

        x <- exp_x(-h / repeats * strength * schedule(t) * d),        d = grad_x L(f_theta(x)) in some unit

    - `at` names where the gradient is taken: at the `point` x_t, at the `endpoint` that the flow predicts from there, or `through` this
      prediction. The last one also goes through the field, and costs several times as much.
    - `unit` names in which units the gradient is counted. `loss` takes it as it is, so the right strength depends on the task. `velocity`
      gives it the length of the flow's velocity in each unit of the network. `average` also averages it over the steps.
    - `schedule` names how the strength changes with time: `constant`, `falling` as 1 - t, or `rising` as t.
    - With `yields`, the flow never works against the objective: its velocity is 0 in coordinates where it would raise the loss.
    - `repeats` gradients are taken in each step of the solver.

    Raises ValueError for an unknown name, a negative strength or no repeats.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(9, 6), flow="euclidean", iterations=1, batch=4, progress=False)
    >>> small = guide(lambda states: states["weight"].square().sum((1, 2)), strength=2.0)
    >>> geoflow.sample(flow, 5, steps=3, guidance=small).shape
    torch.Size([5, 6])
    """
    place, factor, units = choose("at", at, PLACES), choose("schedule", schedule, SCHEDULES), choose("unit", unit, UNITS)
    if not (0 <= strength < float("inf") and isinstance(repeats, int) and repeats >= 1):
        raise ValueError(f"{strength=} must be a number of at least 0, and {repeats=} a whole number of at least 1.")

    def guidance(chart: Coordinates, step: Step) -> Step:
        direction, watched = units(chart), Losses(objective, chart)

        def guided(v: Field, x: Tensor, t: Tensor, h: Tensor, manifold: Product) -> Tensor:
            speed = manifold.logmap(x, step(v, x, t, h, manifold)) / h
            for now in t + h * torch.arange(repeats, device=t.device) / repeats:
                speed = manifold.proju(x, speed)
                with _said_when(now):
                    d = direction(x, place(watched, v, x, now, speed, manifold), speed)
                kept = torch.where(speed * d > 0, 0.0, speed) if yields else speed
                x = manifold.expmap(x, manifold.proju(x, h / repeats * (kept - strength * factor(now) * d)))
            return x

        return guided

    return guidance


@dataclass(eq=False)
class Losses:
    """Give tangent gradients of the losses of points, for all networks at once, and stop where the losses grow without bound."""

    objective: Objective
    chart: Coordinates
    first: Tensor | None = None

    def __call__(self, x: Float[Tensor, "nets size"], then: Callable[[Tensor], Tensor] = lambda x: x) -> Float[Tensor, "nets size"]:
        """Return the tangent gradient at x of the loss of `then(x)`.

        Raises Diverged if a loss is not finite, or has risen too much since the first call.
        """
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            found = losses(self.objective, self.chart.spec, self.chart.theta(then(point)))
            (gradient,) = torch.autograd.grad(found.sum(), point)
        found = found.detach()
        self.first = found if self.first is None else self.first
        wrong = ~found.isfinite() | (found - self.first > RISE * (1 + self.first.abs()))
        if wrong.any():
            raise Diverged(f"the loss of a network went from {self.first[wrong][0].item():.3g} to {found[wrong][0].item():.3g}")
        return self.chart.manifold.egrad2rgrad(x, gradient)


@contextmanager
def _said_when(t: Tensor) -> Iterator[None]:
    try:
        yield
    except Diverged as error:
        raise Diverged(f"Guidance diverged at t = {t:.3g}: {error}. Lower guidance, or take more steps.") from None


def task_guidance(
    network: nn.Module,
    x: Shaped[Tensor, "examples ..."],
    y: Shaped[Tensor, "examples ..."],
    strength: float = 1.0,
    outputs: str = "classes",
    batch: int | None = None,
    generator: torch.Generator | None = None,
    output: Output = None,
    **how,
) -> Guidance:
    """Return a guidance by `guide` that lowers the mean negative log-likelihood of the examples (x, y).

    `network` gives the architecture that is sampled. Its weights play no role. `outputs`, `batch`, `generator` and `output` are those
    of `task_objective`, and `how` holds further arguments of `guide`. Raises ValueError as these two do.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(9, 6), flow="euclidean", iterations=1, batch=4, progress=False)
    >>> guidance = task_guidance(network, torch.eye(2), torch.tensor([0, 1]), strength=0.3)
    >>> geoflow.sample(flow, 5, steps=3, guidance=guidance).shape
    torch.Size([5, 6])
    """
    return guide(task_objective(network, x, y, outputs, batch, generator, output), strength, **how)
