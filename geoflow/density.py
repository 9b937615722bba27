"""Say how probable networks are under a flow, by the change of variables along its paths."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from math import lgamma, pi

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from geoflow.canonical import check_zoo
from geoflow.choices import choose
from geoflow.coordinates import Coordinates
from geoflow.divergence import Divergence, dimension, estimated, exact
from geoflow.flow import Flow
from geoflow.manifolds import Product
from geoflow.sampling import CHUNK, SOLVERS, Field, Step, integrate
from geoflow.sources import log_prob_of_noise
from geoflow.spec import NetworkSpec

SMALL = 64  # dimensions up to which the divergence is exact if nothing else is asked for
PROBES = 2  # random directions where there are more dimensions; a standard error needs two
TOLERANCE = 1e-5  # of an adaptive solver, relative and absolute
MEASURES = {  # volume that a density is per unit of: log of the volume of points that belongs to a unit of it
    "points": lambda chart, theta: theta.new_zeros(()),
    "weights": lambda chart, theta: chart.log_volume(theta),
}
Watch = Callable[[Tensor], object]
Solve = Callable[[Field, Tensor, Product, Watch], Tensor]  # (field, y at t = 1, manifold, watch) -> y at t = 0


@dataclass(frozen=True)
class Density:
    """The log-density of some networks under a flow, in nats.

    - `log_prob` [nets] is the logarithm of the density, per unit of the volume that `density` was asked for.
    - `standard_error` [nets] is that of `log_prob` due to random probes, and 0 where the divergence is exact. It does not count the error
      of the solver.
    - `noise` [nets, size] are the points from which the flow makes these networks.
    - `dimension` is that of the manifold.
    - `probes` is the number of random directions, and 0 where the divergence is exact.
    """

    log_prob: Float[Tensor, " nets"]
    standard_error: Float[Tensor, " nets"]
    noise: Float[Tensor, "nets size"]
    dimension: int
    probes: int


def log_prob(flow: Flow, thetas: Float[Tensor, "..."], **options) -> Float[Tensor, " nets"]:
    """Return the log-density of networks [nets, weights] under a flow, in nats [nets]. `density` says what the options mean.

    By default it is a density on the flow's manifold, at the canonical form of each network. So it is the same for all networks that the
    declared symmetries turn into each other. With `flow=euclidean` these are permutations and signs. Its canonical form leaves the scale of
    units as it is.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> zoo = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> flow = geoflow.fit(spec, zoo, flow="euclidean", iterations=2, batch=8, progress=False)
    >>> near, far = geoflow.log_prob(flow, torch.tensor([[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]]))
    >>> bool(near > far)
    True
    """
    return density(flow, thetas, **options).log_prob


def density(flow: Flow, thetas: Float[Tensor, "..."], *, measure: str = "points", **options) -> Density:
    """Return the log-density of networks [nets, weights] under a flow, with its standard error.

    A flow moves noise x_0 along dx/dt = v(x, t) to a network x_1. The path is followed back from the network. By the change of variables

        log p_1(x_1) = log p_0(x_0) - integral of div v(x_t, t) over t from 0 to 1

    where div is the divergence on the manifold. Networks are first brought to the flow's canonical form.

    - `measure` names the volume. "points" is that of the flow's manifold: areas of spheres times lengths of standardised flat coordinates.
      With it the density of noise is uniform on spheres and standard normal in flat space. "weights" is the volume of plain weight space.
      Only `flow=euclidean` has a density there. On spheres, canonical weights fill no volume of it.
    - All other options are those of `at_points`.

    The density is that of `sample` with the same sharpness, with start=0, without a condition and with enough steps. It is computed in the
    precision of `thetas`, and at least in float32. No gradient is kept. A flow for several architectures gives that of its first one.

    Raises ValueError for an unknown measure, and for "weights" with a flow that has no density there. Also raises it for networks of
    another architecture, for NaN and Inf, and for dead units on spheres. Further errors are those of `at_points`.

    Sources: Chen et al., Neural ODEs, 2018; on manifolds Mathieu and Nickel 2020.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> flow = geoflow.fit(spec, torch.randn(40, 3), flow="euclidean", iterations=2, batch=8, progress=False)
    >>> found = density(flow, torch.randn(5, 3), measure="weights")
    >>> found.log_prob.shape, found.standard_error, found.dimension
    (torch.Size([5]), tensor([0., 0., 0., 0., 0.]), 3)
    """
    stretch = choose("measure", measure, MEASURES)
    if thetas.ndim != 2:
        raise ValueError(f"thetas must be [nets, weights], not {tuple(thetas.shape)}. Pass one network as theta[None].")
    check_zoo(flow.spec, thetas, "population")
    thetas = thetas.detach().to(torch.promote_types(thetas.dtype, torch.float32))
    volume = stretch(flow.chart, thetas)
    steady = flow.chart.steady()  # their middle takes their place
    x = flow.chart.point(flow.canonical(thetas))
    found = at_points(flow, torch.where(steady.to(x.device), 0.0, x), **options)
    return replace(found, log_prob=found.log_prob + volume)


@torch.inference_mode(False)  # as in `sample`
@torch.no_grad()
def at_points(
    flow: Flow,
    x: Float[Tensor, "nets size"],
    *,
    solver: str = "rk4",
    steps: int = 32,
    probes: int | None = None,
    sharpness: float = 0.0,
    generator: torch.Generator | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Density:
    """Return the log-density of points on the flow's manifold, per unit of its volume.

    - `solver` names a row of `SOLVERS`, which takes `steps` steps to the times of `times_back`, or of `ADAPTIVE`. An adaptive solver
      chooses its own steps and needs the package torchdiffeq.
    - `probes` is the number of random directions for the divergence, from 2 on, or 0 for the exact divergence. By default it is 0 up to
      SMALL dimensions and PROBES beyond. `generator`, on the CPU, draws them. By default they are always the same.
    - `sharpness` is that of `sample`.
    - `batch` networks are integrated at once. By default, these have CHUNK coordinates together.

    The exact divergence of a velocity costs as many backward passes as there are dimensions. An estimate costs one for each probe.

    Raises ValueError for an unknown solver, for an impossible number of steps, probes or networks, for a negative sharpness, and for a flow
    with prediction=endpoint. Raises ImportError if an adaptive solver is not installed, and FloatingPointError for a density that is NaN or
    Inf.
    """
    _check(flow, steps, probes, sharpness, batch)
    solve = choose("solver", solver, {name: _in_steps(step, steps) for name, step in SOLVERS.items()} | ADAPTIVE)
    manifold, device = flow.chart.manifold, x.device
    x = x.to(next(flow.field.parameters()).device)
    probes = (0 if dimension(manifold) <= SMALL else PROBES) if probes is None else probes
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0) if generator is None else generator))
    rows = max(1, CHUNK.get(x.device.type, CHUNK["cuda"]) // manifold.size)
    parts, found = x.split(batch or rows), []
    v = replace(flow, field=deepcopy(flow.field).to(x).requires_grad_(False).eval()).velocity(flow.chart, sharpness)
    with tqdm(total=len(parts) * (steps if solver in SOLVERS else 1), desc="density", unit="step", disable=not progress) as bar:
        for part in parts:
            draws = torch.Generator().manual_seed(seed)  # the same for all, so that no density depends on the networks beside it
            divergence = estimated(manifold, rows, probes, draws, solver in SOLVERS) if probes else exact(manifold, rows)
            found.append(_follow_back(v, divergence, max(1, probes), part, flow.chart, solve, bar))
    log_prob, error, noise = (torch.cat(columns).to(device) for columns in zip(*found, strict=True))
    if broken := int((~log_prob.isfinite()).sum()):
        raise FloatingPointError(f"{broken} of {len(x)} log-densities came out as NaN or Inf. Take more steps, or networks in float64.")
    return Density(log_prob, error, noise, dimension(manifold), probes)


def _follow_back(
    v: Field, divergence: Divergence, ways: int, x: Float[Tensor, "nets size"], chart: Coordinates, solve: Solve, bar: tqdm
) -> tuple[Float[Tensor, " nets"], Float[Tensor, " nets"], Float[Tensor, "nets size"]]:
    """Follow points back to noise. Return their log-densities with standard errors, and the noise.

    The integral of the divergence is one more flat coordinate for each of the `ways` to estimate it. So any solver on the manifold
    integrates it too, with the solver's order.
    """
    manifold, size, integrals = chart.manifold, chart.manifold.size, []

    def field(y: Tensor, t: Tensor) -> Tensor:
        velocity, diverged = divergence(v, y[:, :size], t)
        return torch.cat([velocity, diverged.T], 1)

    def watch(y: Tensor) -> None:
        integrals.append(y[:, size:])
        bar.update(len(integrals) > 1)

    end = solve(field, torch.cat([x, x.new_zeros(len(x), ways)], 1), Product(size + ways, manifold.spheres), watch)
    noise, change = end[:, :size], end[:, size:].mean(1)
    error = torch.zeros_like(change)
    if ways > 1:  # probes of one step know nothing of those of another, so the variances of the steps add up
        error = (torch.stack(integrals).diff(dim=0).var(2).sum(0) / ways).sqrt()
    return log_prob_of_noise(manifold, noise, chart.spread) + change, error, noise


def times_back(steps: int) -> Float[Tensor, " times"]:
    """Return `steps` + 1 times from 1 to 0: sin^2(u pi / 2) for evenly spaced u.

    Steps are short at both ends. A coordinate of small spread shrinks to it in the last part of the time, and a long step would misjudge
    how far.

    >>> times_back(4)
    tensor([1.0000, 0.8536, 0.5000, 0.1464, 0.0000])
    """
    return torch.linspace(pi / 2, 0, steps + 1).sin().square()


def _in_steps(step: Step, steps: int) -> Solve:
    return lambda field, y, manifold, watch: integrate(field, y, times_back(steps).to(y), manifold, step, watch)


def dopri5(field: Field, y: Float[Tensor, "nets size"], manifold: Product, watch: Watch) -> Float[Tensor, "nets size"]:
    """Solve dy/dt = field(y, t) from t = 1 to t = 0 by the method of Dormand and Prince, of order 5 with adaptive steps.

    It works in the surrounding space, with the field at the nearest point of the manifold. Such a field keeps points on the spheres. In no
    coordinate of any network is the error of a step above TOLERANCE, absolute and relative together. The package is torchdiffeq.

    Raises ImportError if it is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError('solver=dopri5 needs torchdiffeq: pip install "geoflow-weights[density]"') from error
    watch(y)
    options = {"rtol": TOLERANCE, "atol": TOLERANCE, "method": "dopri5", "options": {"norm": lambda error: error.abs().max()}}
    ends = odeint(lambda t, y: field(manifold.projx(y), t), y, y.new_tensor([1.0, 0.0]), **options)
    end = manifold.projx(ends[-1])
    watch(end)
    return end


ADAPTIVE: dict[str, Solve] = {"dopri5": dopri5}


def log_orders(spec: NetworkSpec) -> float:
    """Return the logarithm of the number of orders of the units: the sum of log(n!) over permutation groups of n units.

    The field `transformer` takes all orders of a network for equally probable. Its density of a network in any order is then larger than
    that of the canonical one by this number. A field that tells units by their place has no such rule.

    >>> import geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> f"{log_orders(geoflow.spec_of(network, torch.zeros(1, 4))):.3f}"  # log 6
    '1.792'
    """
    return sum(lgamma(units + 1) for units in spec.groups("permutation").values())


def _check(flow: Flow, steps: int, probes: int | None, sharpness: float, batch: int | None) -> None:
    if not all(isinstance(n, int) and n >= 1 for n in (steps, *([] if batch is None else [batch]))):
        raise ValueError(f"steps and batch must be whole numbers of at least one, not {steps=}, {batch=}.")
    if probes is not None and (not isinstance(probes, int) or probes < 0 or probes == 1):
        raise ValueError(f"{probes=} must be 0, for the exact divergence, or a whole number from 2 on. One probe has no standard error.")
    if not 0 <= sharpness < float("inf"):
        raise ValueError(f"{sharpness=} must be a number of at least 0.")
    if flow.config["prediction"] == "endpoint":
        raise ValueError(
            "A flow with prediction=endpoint has no density: at t = 1, where a path back begins, a predicted endpoint gives no velocity. "
            "Fit a flow with prediction=preconditioned or prediction=velocity."
        )
