"""Fit a Gaussian to the snapshots of one training run, and draw networks from it (SWAG)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RANK = 20  # snapshots whose deviations are kept


@dataclass(frozen=True)
class Swag:
    """A Gaussian over weights, with the covariance (diag(variance) + D^T D / (K - 1)) / 2 for the K rows of the deviations D."""

    mean: Float[Tensor, " weights"]
    variance: Float[Tensor, " weights"]
    deviations: Float[Tensor, "kept weights"]


def fit_swag(snapshots: Float[Tensor, "snapshots weights"], rank: int = RANK) -> Swag:
    """Return the Gaussian of the snapshots of one run, in their order.

    The deviation of a snapshot is from the running mean of the snapshots up to it. The last `rank` of them are kept. The variance is over
    all snapshots. Source: Maddox et al. 2019, A simple baseline for Bayesian uncertainty in deep learning, algorithm 1.

    Raises ValueError for fewer than 2 snapshots or a rank below 2, because they span no covariance.
    """
    if min(len(snapshots), rank) < 2:
        raise ValueError(f"SWAG needs at least 2 snapshots and a rank of at least 2, not {len(snapshots)} snapshots and rank {rank}.")
    running = snapshots.cumsum(0) / torch.arange(1, len(snapshots) + 1, dtype=snapshots.dtype)[:, None]
    mean, deviations = running[-1], (snapshots - running)[-rank:]
    return Swag(mean, (snapshots - mean).square().mean(0), deviations)


def draw_swag(swag: Swag, count: int, generator: torch.Generator) -> Float[Tensor, "count weights"]:
    """Draw networks: mean + sqrt(variance / 2) z_1 + D^T z_2 / sqrt(2 (K - 1)) with standard normal z_1 and z_2."""
    kept, weights = swag.deviations.shape
    own, shared = (torch.randn(count, size, generator=generator, dtype=swag.mean.dtype) for size in (weights, kept))
    return swag.mean + (swag.variance / 2).sqrt() * own + shared @ swag.deviations / (2 * (kept - 1)) ** 0.5
