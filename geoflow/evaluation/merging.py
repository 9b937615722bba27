"""Merge networks: align one to another, average several, and measure the loss on the line between two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from geoflow.canonical.gathering import gathered
from geoflow.canonical.matching import align, part_of
from geoflow.canonical.products import balance, balance_products, maps_back
from geoflow.canonical.scaling import balance_by
from geoflow.evaluation.metrics import evaluate
from geoflow.examples import Examples
from geoflow.outputs import RegressionScores, Scores
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate
from geoflow.symmetry import Symmetry, apply_symmetry
from geoflow.vector import pack, unpack

Network = Mapping | nn.Module  # a state dict, or the network


def align_to(spec: NetworkSpec, state: Network, reference: Network) -> dict[str, Tensor]:
    """Return a network's state dict with its units in the order, the signs and the scale of a reference. It computes the same as before.

    Both are balanced first, so that the match does not depend on the scale of their units (see `balance` and `align`). Then the network
    gets the scale of the reference and the matrices of its heads. If the product of a head lacks full rank in the reference, that head
    stays balanced (see `balance_products`). Source: Ainsworth et al., Git Re-Basin, 2023 (weight matching).

    Raises ValueError as `pack` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> theta = geoflow.pack(spec, network)
    >>> moved = geoflow.apply_symmetry(spec, theta, geoflow.random_symmetry(spec, torch.Generator().manual_seed(0)))
    >>> aligned = geoflow.align_to(spec, geoflow.unpack(spec, moved), network)
    >>> torch.allclose(geoflow.pack(spec, aligned), theta, atol=1e-6)
    True
    """
    theta, goal = (_packed(spec, [one]) for one in (state, reference))
    balanced, back = _balanced(spec, goal.to(theta))
    aligned = align(spec, balance(spec, theta), balanced)[0]
    return unpack(spec, apply_symmetry(spec, aligned, back)[0])


def merge(spec: NetworkSpec, states: Sequence[Network], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the state dict of the average network, after all networks are aligned to their common centre.

    The result has the order and the scale of the first network. `weights` are the shares of the networks, by default equal. They are
    divided by their sum. Running statistics are averaged too: measure them anew by `recalibrate`. Source: Ainsworth et al., Git Re-Basin,
    2023 (MergeMany). One difference is that the centre is found by `centre`, whose rounds align all networks at once.

    Raises ValueError for no network, for weights that are not one number for each network or have no positive sum, and as `pack` does.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> merged = geoflow.merge(spec, [network, network])
    >>> torch.allclose(merged["0.weight"], network[0].weight)
    True
    """
    thetas = _packed(spec, states)
    share = torch.tensor([1.0] * len(thetas) if weights is None else [float(weight) for weight in weights], dtype=torch.float64)
    if len(share) != len(thetas) or not (share >= 0).all() or not share.sum() > 0:
        raise ValueError(f"weights must be {len(thetas)} numbers, one for each network, at least 0 and not all 0, not {weights}.")
    balanced, back = _balanced(spec, thetas)
    aligned = apply_symmetry(spec, balanced, gathered(spec, balanced)[1]) if len(thetas) > 1 else balanced
    mean = (share / share.sum()).to(thetas) @ aligned
    ordered = align(spec, mean[None], balanced[0])[0]
    return unpack(spec, apply_symmetry(spec, ordered, part_of(back, slice(1)))[0])


@dataclass(frozen=True)
class Barrier:
    """The line between two networks: its points in [0, 1], the scores of the networks there, and the height of the barrier.

    With the loss L, which is the NLL in nats, the height is

        max_t L(t) - (L(0) + L(1)) / 2

    Source: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, 2020.
    """

    at: Float[Tensor, " points"]
    scores: Scores | RegressionScores
    height: float


def barrier(
    network: nn.Module,
    spec: NetworkSpec,
    a: Network,
    b: Network,
    x: Examples,
    y: Shaped[Tensor, "examples ..."],
    points: int = 11,
    inputs: Tensor | None = None,
    **how,
) -> Barrier:
    """Return the scores along the line (1 - t) a + t b, and how high the loss rises above that of its ends.

    The networks are taken as they are. For two independent ones, pass `align_to(spec, b, a)` as b. With training `inputs`, the running
    statistics of all points between the ends are measured anew (see `recalibrate`). Further arguments are those of `evaluate`.

    Raises ValueError for fewer than 3 points, and as `pack` and `evaluate` do.

    >>> import torch, geoflow
    >>> network = torch.nn.Linear(2, 2)
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 2))
    >>> found = geoflow.barrier(network, spec, network, network, torch.eye(2), torch.tensor([0, 1]))
    >>> len(found.scores.nll), abs(found.height) < 1e-6
    (11, True)
    """
    if points < 3:
        raise ValueError(f"{points=} must be at least 3: the two ends, and what lies between them.")
    ends = _packed(spec, [a, b])
    at = torch.linspace(0, 1, points, dtype=ends.dtype, device=ends.device)
    line = torch.lerp(ends[0], ends[1], at[:, None])
    if inputs is not None:
        line[1:-1] = recalibrate(network, spec, line[1:-1], inputs)
    scores = evaluate(network, spec, line, x, y, **how)
    return Barrier(at, scores, float(scores.nll.max() - (scores.nll[0] + scores.nll[-1]) / 2))


def _packed(spec: NetworkSpec, states: Sequence[Network]) -> Float[Tensor, "nets weights"]:
    """Return weight vectors, at least in single precision."""
    if isinstance(states, Mapping | nn.Module):
        raise ValueError("These are the entries of one network. Pass a list of networks, or of state dicts.")
    thetas = pack(spec, states).detach()
    return thetas.to(torch.promote_types(thetas.dtype, torch.float32))


def _balanced(spec: NetworkSpec, thetas: Float[Tensor, "nets weights"]) -> tuple[Float[Tensor, "nets weights"], Symmetry]:
    """Return balanced networks, and the symmetry that gives them back the scale of their units and the matrices of their heads."""
    scaled, factors = balance_by(spec, thetas)
    balanced = balance_products(spec, scaled)
    return balanced, Symmetry(factors={g: 1 / factor for g, factor in factors.items()}, linear=maps_back(spec, scaled, balanced))
