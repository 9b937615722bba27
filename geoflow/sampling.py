"""Sample networks from a flow, by integrating its velocity from noise."""

import warnings
from collections.abc import Callable
from math import asin, pi, sqrt
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.choices import choose
from geoflow.coordinates import Coordinates
from geoflow.flow import Flow
from geoflow.guidance import Diverged, Field, Guidance, Step, no_guidance
from geoflow.manifolds import Product
from geoflow.sources import head_start, noise
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks

CHUNK = {"cpu": 2**17, "cuda": 2**21}  # coordinates of the networks integrated at once; on a CPU more do not fit the cache


def euler(v: Field, x: Tensor, t: Tensor, h: Tensor, manifold: Product) -> Tensor:
    """Take a step of order 1: x <- exp_x(h v). It is exact if the path is a geodesic.

    >>> import torch
    >>> euler(lambda x, t: x, torch.ones(1, 1), torch.tensor(0.0), torch.tensor(0.5), Product(1))
    tensor([[1.5000]])
    """
    return manifold.expmap(x, h * v(x, t))


def midpoint(v: Field, x: Tensor, t: Tensor, h: Tensor, manifold: Product) -> Tensor:
    """Take a step of order 2, with the velocity in the middle of the step.

    Like `heun` and `rk4` it works in the surrounding space and projects back, which keeps the order (Hairer, Lubich and Wanner, Geometric
    numerical integration, IV.4).

    >>> import torch
    >>> midpoint(lambda x, t: x, torch.ones(1, 1), torch.tensor(0.0), torch.tensor(0.5), Product(1))
    tensor([[1.6250]])
    """
    half = manifold.retr(x, h / 2 * v(x, t))
    return manifold.retr(x, h * v(half, t + h / 2))


def heun(v: Field, x: Tensor, t: Tensor, h: Tensor, manifold: Product) -> Tensor:
    """Take a step of order 2, with the mean of the velocities at both ends.

    >>> import torch
    >>> heun(lambda x, t: x, torch.ones(1, 1), torch.tensor(0.0), torch.tensor(0.5), Product(1))
    tensor([[1.6250]])
    """
    first = v(x, t)
    last = v(manifold.retr(x, h * first), t + h)
    return manifold.retr(x, h / 2 * (first + last))


def rk4(v: Field, x: Tensor, t: Tensor, h: Tensor, manifold: Product) -> Tensor:
    """Take a step of order 4, the classical scheme of Runge and Kutta.

    >>> import torch
    >>> rk4(lambda x, t: x, torch.ones(1, 1), torch.tensor(0.0), torch.tensor(0.5), Product(1))  # e^.5 is 1.6487
    tensor([[1.6484]])
    """
    k_1 = v(x, t)
    k_2 = v(manifold.retr(x, h / 2 * k_1), t + h / 2)
    k_3 = v(manifold.retr(x, h / 2 * k_2), t + h / 2)
    k_4 = v(manifold.retr(x, h * k_3), t + h)
    return manifold.retr(x, h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4))


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}
AT_THE_END = ("heun", "rk4")  # need the velocity at t = 1, which a predicted endpoint does not give


def integrate(
    v: Field,
    x_0: Float[Tensor, "nets size"],
    times: Float[Tensor, " times"],
    manifold: Product,
    step: Step = euler,
    watch: Callable[[Tensor], object] = lambda x: None,
) -> Float[Tensor, "nets size"]:
    """Solve dx/dt = v(x, t) on the manifold, from x_0 at the first of `times`. Return x at the last.

    `watch` is called with the points [nets, size] at every time, including the first and the last.

    >>> import torch
    >>> plane = Product(1)
    >>> integrate(lambda x, t: x, torch.ones(1, 1).double(), torch.linspace(0, 1, 33).double(), plane, rk4)  # e
    tensor([[2.7183]], dtype=torch.float64)
    """
    x = x_0
    watch(x)
    for t, h in zip(times[:-1], times.diff(), strict=True):
        x = step(v, x, t, h, manifold)
        watch(x)
    return x


@torch.inference_mode(False)  # tables made here are kept and may be used later with gradients
@torch.no_grad()
def sample(
    flow: Flow,
    count: int,
    *,
    spec: NetworkSpec | None = None,
    solver: str = "euler",
    steps: int = 100,
    sharpness: float = 0.0,
    start: float = 0.0,
    guidance: Guidance = no_guidance,
    condition: float | Tensor | None = None,
    condition_strength: float = 1.0,
    generator: torch.Generator | None = None,
    batch: int | None = None,
    watch: Callable[[Tensor], object] = lambda x: None,
    progress: bool = False,
    into: str | Path | None = None,
) -> Networks:
    """Sample `count` new networks as weight vectors [count, weights]. `unpack` turns them into state dicts.

    - `spec` is another architecture for the same task. The flow then transfers to it without training.
    - `solver` names a row of `SOLVERS`. It takes `steps` steps to the times of `time_grid`.
    - `sharpness` of at least 0 trades diversity for quality (see `Flow.velocity`).
    - `start` in [0, 1) is the time to begin at, a little way towards the centre of the aligned zoo (see `head_start`). At 0 sampling begins
      with pure noise.
    - `condition` asks a flow that was fitted with conditions for networks of this kind: numbers [features] or [count, features], or labels
      [] or [count]. Without it the flow draws from all of them. `condition_strength` w goes from no condition (0) through the condition
      that was learned (1) and beyond (see `Flow.velocity`). A number outside the range of the zoo gives a warning.
    - `guidance` is made by `guide` or `task_guidance`. `generator`, on the CPU, samples the noise.
    - `into` is a file for the networks, if they are too many or too large for memory. They are written one by one, and returned as
      `open_zoo(into).thetas`. With `latent="pca"` all of them are made in one pass over the zoo. After an interruption the same call goes
      on, if `generator` is in the same state.
    - `batch` networks are integrated at once. By default, these have CHUNK coordinates together. `watch` is called with their points at
      every time.

    Raises ValueError for an unknown solver, or one that does not suit the flow's prediction. Also raises it for an impossible count, number
    of steps, sharpness, start, condition or strength. With another `spec` it refuses a start, because no zoo has aligned its units, and a
    role of weights that the flow has never seen. Raises Diverged if networks come out with NaN or Inf, or if guidance makes their loss grow
    without bound. The exception holds the networks that were finished before, and none with `into`.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> flow = geoflow.fit(spec, torch.randn(40, spec.weights), iterations=2, batch=8, progress=False)
    >>> theta = geoflow.sample(flow, 5, steps=3)
    >>> network.load_state_dict(geoflow.unpack(spec, theta[0]), strict=True)
    <All keys matched successfully>
    """
    if not all(isinstance(n, int) and n >= 1 for n in (count, steps, *([] if batch is None else [batch]))):
        raise ValueError(f"count, steps and batch must be whole numbers of at least one, not {count=}, {steps=}, {batch=}.")
    if not 0 <= sharpness < float("inf"):
        raise ValueError(f"{sharpness=} must be a number of at least 0.")
    if not 0 <= condition_strength < float("inf"):
        raise ValueError(f"{condition_strength=} must be a number of at least 0.")
    chart, step = flow.on(spec), solver_for(flow, solver)
    _check_start(flow, chart, start)
    begin = noise(chart, count, generator).to(next(flow.field.parameters()))
    begin = head_start(chart, flow.of(chart.spec).reference, begin, start) if start else begin
    told = None if condition is None else encoded(flow, condition, count).to(begin)
    how = (start, step, steps, sharpness, guidance, batch, watch, progress, told, condition_strength)
    if into is None:
        return finish(flow, chart, begin, *how)
    try:
        points = finish(flow, chart, begin, *how, end=lambda x: x)
    except Diverged as error:
        raise Diverged(str(error)) from None
    return chart.write(Path(into), points.cpu(), progress)


def finish(
    flow: Flow,
    chart: Coordinates,
    begin: Float[Tensor, "nets size"],
    start: float,
    step: Step,
    steps: int,
    sharpness: float = 0.0,
    guidance: Guidance = no_guidance,
    batch: int | None = None,
    watch: Callable[[Tensor], object] = lambda x: None,
    progress: bool = False,
    condition: Float[Tensor, "nets features"] | None = None,
    condition_strength: float = 1.0,
    end: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "nets _size"]:
    """Integrate from the points `begin` at the time `start` to the end, and return the networks there, or what `end` makes of the points.

    The other arguments are those of `sample`, where `condition` is encoded. Raises Diverged as `sample` does.
    """
    flow.field.eval()
    end = chart.theta if end is None else end
    times = time_grid(chart, start, steps).to(begin)
    batch = batch or max(1, CHUNK.get(begin.device.type, CHUNK["cuda"]) // chart.graph.size)
    parts = begin.split(batch)
    told = [None] * len(parts) if condition is None else condition.split(batch)
    thetas = []
    with tqdm(total=len(parts) * steps, desc="sample", unit="step", disable=not progress) as bar:
        for part, one in zip(parts, told, strict=True):
            guided = guidance(chart, step)

            def counted(*arguments, guided=guided) -> Tensor:
                bar.update()
                return guided(*arguments)

            field = flow.velocity(chart, sharpness, one, condition_strength)
            try:
                thetas.append(end(integrate(field, part, times, chart.manifold, counted, watch)))
            except Diverged as error:
                raise Diverged(str(error), torch.cat([*thetas] or [begin.new_zeros(0, chart.spec.weights)])) from None
    thetas = torch.cat(thetas)
    finite = thetas.isfinite().all(1)
    if not finite.all():
        cure = "Lower guidance or sharpness, or take more steps."
        raise Diverged(f"{int((~finite).sum())} of {len(thetas)} networks came out with NaN or Inf. {cure}", thetas[finite])
    return thetas


def encoded(flow: Flow, condition: float | Tensor, count: int) -> Float[Tensor, "count features"]:
    """Return a condition for `count` networks as the field reads it. Warns if it lies outside the range that the flow learned.

    Raises ValueError if the flow has no conditions, and for a condition of another form.
    """
    if flow.conditions is None:
        raise ValueError("This flow was fitted without conditions and cannot be asked for one. Pass conditions= to fit, or no condition.")
    found = flow.conditions.encode(condition, count)
    if outside := int(flow.conditions.outside(flow.conditions.shaped(condition, count)).sum()):
        warnings.warn(
            f"The conditions of {outside} of {count} networks lie outside the range that the flow learned, {flow.conditions.range()}. "
            "Such networks are an extrapolation.",
            stacklevel=3,
        )
    return found


def solver_for(flow: Flow, solver: str) -> Step:
    """Return the row of `SOLVERS`. Raises ValueError if it is unknown or does not suit the flow's prediction."""
    step = choose("solver", solver, SOLVERS)
    if solver in AT_THE_END and flow.config["prediction"] == "endpoint":
        raise ValueError(f"{solver=} looks at t = 1, where a predicted endpoint gives no velocity. Choose euler or midpoint.")
    return step


def time_grid(chart: Coordinates, start: float, steps: int) -> Float[Tensor, " times"]:
    """Return `steps` + 1 times from `start` to 1.

    Usually the times are u^2 for evenly spaced u. Early steps are then short, because the widest axes of a zoo are decided early. If the
    chart knows the moments of every coordinate, the times are sin^2(u pi / 2). Late steps are then short too. A coordinate with a small
    standard deviation s is decided in the last s of the time, and longer steps would make the networks too similar.

    >>> import torch, geoflow
    >>> from geoflow.chart import Chart
    >>> from geoflow.coordinates import FLOWS
    >>> chart = Chart(geoflow.spec_of(torch.nn.Linear(1, 1), torch.zeros(1, 1)), FLOWS["euclidean"], {})
    >>> time_grid(chart, 0.0, 4)
    tensor([0.0000, 0.0625, 0.2500, 0.5625, 1.0000])
    """
    if chart.own is None:
        return torch.linspace(sqrt(start), 1, steps + 1).square()
    return torch.linspace(asin(sqrt(start)), pi / 2, steps + 1).sin().square()


def _check_start(flow: Flow, chart: Coordinates, start: float) -> None:
    if not 0 <= start < 1:
        raise ValueError(f"{start=} must be a time from 0 to below 1.")
    if start and not flow.config["align"]:
        raise ValueError(f"{start=} leads to the zoo's centre, but this flow saw units in no common order (align=False). Choose start=0.")
    if start and not flow.knows(chart.spec):
        raise ValueError(f"{start=} leads to the zoo's centre, and another architecture has other units: for transfer leave start=0.")
