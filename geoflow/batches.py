"""Draw what a training step needs: one of the zoos, noise and times."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.coordinates import Coordinates
from geoflow.flow import Flow
from geoflow.randomness import randomness
from geoflow.sources import noise

# name: quantile function of the distribution of t in [0, 1]
TIMES = {
    "uniform": lambda share: share,
    # Beta(1, 2) has more early times; this inverts its distribution function 1 - (1 - t)^2
    "beta": lambda share: 1 - (1 - share).sqrt(),
}


def next_zoo(networks: Sequence[int], generator: torch.Generator) -> int:
    """Choose the zoo of the next batch with a probability in proportion to its number of networks, so that each comes equally often.

    >>> next_zoo([40], torch.Generator())
    0
    """
    return 0 if len(networks) == 1 else int(torch.multinomial(torch.tensor(networks, dtype=torch.double), 1, generator=generator))


def pools_of(flow: Flow, device: str | torch.device = "cpu") -> list[Float[Tensor, "pool _size"]]:
    """Return the noise samples that all steps share, for each of the flow's charts. Without `pool` there are none."""
    generator = randomness(flow.config["seed"], "pool")
    return [] if flow.config["pool"] is None else [noise(chart, flow.config["pool"], generator, device) for chart in flow.charts]


def drawn(pool: Float[Tensor, "pool size"], count: int, generator: torch.Generator) -> Float[Tensor, "count size"]:
    """Draw `count` samples of a pool with replacement."""
    return pool[torch.randint(len(pool), (count,), generator=generator).to(pool.device)]


def moved_aside(
    chart: Coordinates, ends: Sequence[Float[Tensor, "nets size"]], jitter: float, generator: torch.Generator
) -> list[Float[Tensor, "nets size"]]:
    """Move both ends of paths by the same random vector, of the standard deviation `jitter` where a zoo's coordinates have 1.

    In flat space the whole path is moved by it, and the velocity stays: x_t becomes x_t + jitter * e with e ~ N(0, 1). On spheres each end
    is moved by the tangent part of the vector.
    """
    aside = jitter * torch.randn(ends[0].shape, generator=generator).to(ends[0]) / chart.scale.to(ends[0])
    return [chart.manifold.retr(x, chart.manifold.proju(x, aside)) for x in ends]


def times(name: str, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Sample `count` times in [0, 1], one from each of `count` equally probable parts of the distribution.

    So no batch has early times only, or late times only.
    """
    return TIMES[name]((torch.arange(count) + torch.rand(count, generator=generator)) / count)
