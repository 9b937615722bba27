"""Make new weight vectors by simple methods, which a flow has to beat."""

from collections.abc import Callable
from functools import wraps

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from geoflow.choices import choose
from geoflow.flow import Flow
from geoflow.statistics import exp_variances, log_variances, variances_of

NOISE = 0.3  # in standard deviations of each weight

Thetas = Float[Tensor, "nets weights"]
Made = Float[Tensor, "made weights"]
Make = Callable[[Flow, Thetas, int, Generator], Made]


def by_logarithm(make: Make) -> Make:
    """Let a baseline work with the logarithms of running variances, as the flow's chart does.

    So variances come out positive, and their mean is geometric.
    """

    @wraps(make)
    def made(flow: Flow, thetas: Thetas, count: int, generator: Generator, **settings: float) -> Made:
        variances = variances_of(flow.spec)
        return exp_variances(make(flow, log_variances(thetas, variances), count, generator, **settings), variances)

    return made


@by_logarithm
def mean_network(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Return the average of all networks, [1, weights] whatever the count. Running variances get their geometric mean.

    See `baseline` for the arguments and an example.
    """
    return thetas.mean(0, keepdim=True)


def rescaled_mean(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Return the average of all networks in the flow's canonical scale, [1, weights].

    Averaging shortens rows. Rows that have norm 1 in the zoo get norm 1 again.
    """
    return flow.chart.nearest(mean_network(flow, thetas, count, generator))


def interpolation(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Return points between two different networks that are drawn at random, in the flow's canonical scale.

    The second network is aligned to the first. With a uniform in [0, 1], a point is

        (1 - a) theta_i + a theta_j

    Running variances are interpolated by their logarithm. Source: Ainsworth et al., Git Re-Basin, 2023.
    """
    first = draw(len(thetas), count, generator)
    second = (first + 1 + draw(len(thetas) - 1, count, generator)) % len(thetas)
    variances = variances_of(flow.spec)
    ends = (log_variances(one, variances) for one in (thetas[first], flow.canonical(thetas[second], thetas[first])))
    between = torch.lerp(*ends, torch.rand(count, 1, generator=generator).to(thetas))
    return flow.chart.nearest(exp_variances(between, variances))


@by_logarithm
def gaussian(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Sample every weight by itself, from a Gaussian with the zoo's mean and variance of that weight."""
    return thetas.mean(0) + thetas.std(0) * normal(count, thetas.shape[1], generator).to(thetas)


@by_logarithm
def pca_gaussian(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Sample from the Gaussian with the zoo's mean and full sample covariance, of rank min(nets - 1, weights).

    Let C [nets, weights] be the centred networks and z ~ N(0, I) of length `nets`. Then z C / sqrt(nets - 1) has the covariance C^T C /
    (nets - 1). This equals independent normals along all principal components, without the cost of finding them.
    """
    mean = thetas.mean(0)
    z = normal(count, len(thetas), generator).to(thetas) / (len(thetas) - 1) ** 0.5
    return mean + z @ (thetas - mean)


@by_logarithm
def noised(flow: Flow, thetas: Thetas, count: int, generator: Generator, level: float = NOISE) -> Made:
    """Return networks drawn at random, plus Gaussian noise of `level` times the standard deviation of each weight."""
    return retrieval(flow, thetas, count, generator) + level * thetas.std(0) * normal(count, thetas.shape[1], generator).to(thetas)


def retrieval(flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Return networks drawn at random with replacement.

    A flow that memorised its data would do the same.
    """
    return thetas[draw(len(thetas), count, generator)]


BASELINES: dict[str, Make] = {
    "mean_network": mean_network,
    "rescaled_mean": rescaled_mean,
    "interpolation": interpolation,
    "gaussian": gaussian,
    "pca_gaussian": pca_gaussian,
    "noised": noised,
    "retrieval": retrieval,
}


def baseline(name: str, flow: Flow, thetas: Thetas, count: int, generator: Generator) -> Made:
    """Return `count` weight vectors [made, weights] from the baseline `name` of BASELINES. The two means give one vector only.

    `thetas` are the training networks in the flow's canonical form. Running variances are averaged and drawn by their logarithm, as in the
    flow. Running statistics fit averaged or noised weights less well than trained ones. `geoflow.recalibrate` measures them anew.

    Raises ValueError for an unknown name, an empty zoo, and a zoo of one network, which has no spread.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> thetas = torch.tensor([[0.0, 2.0, 1.0], [2.0, 4.0, 1.0]])
    >>> flow = geoflow.fit(spec, thetas, flow="euclidean", iterations=1, batch=2, progress=False)
    >>> baseline("mean_network", flow, thetas, 5, torch.Generator())
    tensor([[1., 3., 1.]])
    """
    make = choose("baseline", name, BASELINES)
    check_spread(len(thetas))
    return make(flow, thetas, count, generator)


def check_spread(nets: int) -> None:
    """Raise ValueError for a zoo of too few networks for baselines."""
    if nets < 2:
        raise ValueError(f"A zoo of {nets} networks has no spread: baselines need at least 2. Train more runs.")


def draw(high: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator)


def normal(count: int, size: int, generator: Generator) -> Tensor:
    return torch.randn(count, size, generator=generator)
