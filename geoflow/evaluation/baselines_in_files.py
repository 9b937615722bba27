"""Make the networks of simple baselines from a zoo in a file, one by one, in another file."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from geoflow.appending import write_networks_of
from geoflow.choices import choose
from geoflow.evaluation.baselines import NOISE, check_spread, draw, normal
from geoflow.files import beside
from geoflow.fingerprints import digest_of
from geoflow.flow import Flow
from geoflow.latent.large import single
from geoflow.latent.pca import write_sums
from geoflow.statistics import exp_variances, log_variances, variances_of
from geoflow.stored import Stored, mapped
from geoflow.tally import Tally

One = Callable[[int], Float[Tensor, " weights"]]  # the network with this number


def mean_network(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    mean = _moments(flow, zoo)[0]
    return 1, lambda number: mean


def rescaled_mean(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    mean = exp_variances(_moments(flow, zoo)[0], variances_of(flow.spec))
    return 1, lambda number: log_variances(flow.chart.nearest(mean), variances_of(flow.spec))


def interpolation(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    first = draw(len(zoo), count, generator)
    second = (first + 1 + draw(len(zoo) - 1, count, generator)) % len(zoo)
    shares, variances = torch.rand(count, 1, generator=generator), variances_of(flow.spec)

    def made(number: int) -> Tensor:
        one, other = (single(zoo[int(which[number])])[None] for which in (first, second))
        ends = (log_variances(end, variances) for end in (one, flow.canonical(other, one)))
        nearest = flow.chart.nearest(exp_variances(torch.lerp(*ends, shares[number].to(one)), variances))
        return log_variances(nearest, variances)[0]

    return count, made


def gaussian(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    (mean, deviation), noise = _moments(flow, zoo), _noises(flow, count, generator)
    return count, lambda number: mean + deviation * noise(number).to(mean)


def pca_gaussian(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    """The sums over all networks are made in one pass, in a file of their own. Only variances are summed as logarithms, in memory."""
    z = normal(count, len(zoo), generator) / (len(zoo) - 1) ** 0.5
    shares, variances = z + (1 - z.sum(1, keepdim=True)) / len(zoo), variances_of(flow.spec)
    sums = write_sums(beside(path, "sums"), zoo, shares, zoo.dtype, "sums")
    logs = shares @ torch.stack([log_variances(single(theta), variances)[variances] for theta in zoo])
    return count, lambda number: single(sums[number]).index_copy(0, variances, logs[number])


def noised(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    chosen, deviation, variances = draw(len(zoo), count, generator), _moments(flow, zoo)[1], variances_of(flow.spec)
    noise = _noises(flow, count, generator)
    return count, lambda i: log_variances(single(zoo[int(chosen[i])]), variances) + NOISE * deviation * noise(i).to(deviation)


def retrieval(flow: Flow, zoo: Stored, count: int, generator: Generator, path: Path) -> tuple[int, One]:
    chosen = draw(len(zoo), count, generator)
    return count, lambda number: log_variances(single(zoo[int(chosen[number])]), variances_of(flow.spec))


IN_FILES: dict[str, Callable[[Flow, Stored, int, Generator, Path], tuple[int, One]]] = {
    "mean_network": mean_network,
    "rescaled_mean": rescaled_mean,
    "interpolation": interpolation,
    "gaussian": gaussian,
    "pca_gaussian": pca_gaussian,
    "noised": noised,
    "retrieval": retrieval,
}


def baseline_in_file(
    name: str, flow: Flow, zoo: Stored, count: int, generator: Generator, path: str | Path, progress: bool = True
) -> Stored:
    """Write the networks that `baseline` makes to a file, and return them, opened. `zoo` is canonical, as `canonicalize_large` wrote it.

    The values are those of `baseline`. Only the noise of `gaussian` and `noised` is drawn network by network, so it is other noise of the
    same distribution. After an interruption the same call goes on, with a generator in the same state.

    Raises ValueError as `baseline` does, and for a file at `path` with networks of another zoo, flow or generator. Raises OSError if the
    disk is full.
    """
    make = choose("baseline", name, IN_FILES)
    check_spread(len(zoo))
    path, drawn = Path(path), generator.get_state()
    count, one = make(flow, zoo, count, generator, path)
    variances = variances_of(flow.spec)
    form = {"recipe": repr(flow.chart.recipe), "axes": flow.chart.frame.axes, "reference": flow.reference}
    key = digest_of(form | {"baseline": name, "zoo": zoo.mark(), "count": count, "drawn": drawn})
    found = write_networks_of(flow.spec, path, key, count, zoo.dtype, lambda number: exp_variances(one(number), variances), progress)
    beside(path, "sums").unlink(missing_ok=True)
    return found


def _moments(flow: Flow, zoo: Stored) -> tuple[Float[Tensor, " weights"], Float[Tensor, " weights"]]:
    """Return the mean and the standard deviation of every weight, with logarithms of running variances."""
    tally, variances = Tally(), variances_of(flow.spec)
    for theta in mapped(zoo, lambda x: log_variances(single(x), variances)):
        tally.add(theta[None])
    return tally.mean.to(single(zoo[0]).dtype), tally.variance().sqrt().to(single(zoo[0]).dtype)


def _noises(flow: Flow, count: int, generator: Generator) -> Callable[[int], Float[Tensor, " weights"]]:
    """Return the noise of each network, which is the same whenever it is asked for."""
    seeds = torch.randint(2**62, (count,), generator=generator)
    return lambda number: torch.randn(flow.spec.weights, generator=torch.Generator().manual_seed(int(seeds[number])))
