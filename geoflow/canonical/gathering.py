"""Find the common centre of a zoo."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from geoflow.canonical.matching import match_units, part_of, parts_of
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks
from geoflow.symmetry import Symmetry, apply_symmetry

STARTS = 8  # networks that the search for a centre begins at
TRIAL = 5  # rounds after which the best start is chosen: the gains of one or two rounds say little of the last one
LARGE = 2**25  # weights of all networks together

Match = Callable[[NetworkSpec, Networks, Tensor], Symmetry]


def centre(
    spec: NetworkSpec, theta: Networks, reference: Float[Tensor, " weights"] | None = None, rounds: int = 20, match: Match = match_units
) -> Float[Tensor, " weights"]:
    """The common centre of all networks: align them to the reference, take their mean as the next reference, and repeat.

    The mean gain <reference, g theta> of a round equals the squared norm of its mean network. The rounds stop when it no longer grows, or
    after `rounds` of them. Returns the mean of the best round, [weights].

    Which centre is found depends on the first reference. By default several networks, spread over the zoo, are tried for TRIAL rounds each.
    The one with the greatest gain goes on for at most `rounds` more. Zoos of more than LARGE weights in all begin at their first network
    only, because aligning them takes long. `match` finds the symmetries, as `match_units` does.

    Raises ValueError for fewer than two networks, because their centre would be the network itself.

    >>> import torch
    >>> from geoflow.wiring import spec_of
    >>> from geoflow.symmetry import permute
    >>> spec = spec_of(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> theta = torch.randn(spec.weights, generator=torch.Generator().manual_seed(0))
    >>> zoo = torch.stack([theta, permute(spec, theta, {0: torch.tensor([2, 0, 1])})])  # one network in two orders
    >>> torch.equal(centre(spec, zoo, theta), theta)
    True
    """
    return gathered(spec, theta, reference, rounds, match)[0]


def gathered(
    spec: NetworkSpec, theta: Networks, reference: Float[Tensor, " weights"] | None = None, rounds: int = 20, match: Match = match_units
) -> tuple[Float[Tensor, " weights"], Symmetry]:
    """Return what `centre` returns, and the symmetry that aligns the networks to it."""
    if len(theta) < 2:
        raise ValueError(f"A common centre needs at least two networks, not {len(theta)}. Pass a reference to align to.")
    if reference is None:
        starts = 1 if theta.numel() > LARGE else min(STARTS, len(theta))
        tried = [_rounds(spec, theta, theta[start * len(theta) // starts], TRIAL, match) for start in range(starts)]
        best = max(tried, key=lambda one: one.gain)
    else:
        best = _Gathered(reference, None, -float("inf"), False)
    best = best if best.done else _rounds(spec, theta, best.centre, rounds, match, best.gain)
    return best.centre, match(spec, theta, best.centre) if best.symmetry is None else best.symmetry


@dataclass(frozen=True)
class _Gathered:
    """A centre, the symmetry that aligns the networks to it if it is known, its gain, and whether further rounds would change nothing."""

    centre: Float[Tensor, " weights"]
    symmetry: Symmetry | None
    gain: float
    done: bool


def _rounds(
    spec: NetworkSpec, theta: Networks, reference: Float[Tensor, " weights"], rounds: int, match: Match, gain: float = -float("inf")
) -> _Gathered:
    for _ in range(rounds):
        symmetry = match(spec, theta, reference)
        mean = _mean(spec, theta, symmetry)
        grown = sum(float(part.double().square().sum()) for part in mean.split(2**20))
        if grown <= gain * (1 + 1e-6):
            return _Gathered(reference, symmetry, gain, True)
        gain, reference = grown, mean
    return _Gathered(reference, None, gain, False)


def _mean(spec: NetworkSpec, theta: Networks, symmetry: Symmetry) -> Float[Tensor, " weights"]:
    """The mean of the aligned networks. Only a few of them are in memory at once."""
    total = torch.zeros(spec.weights, dtype=torch.promote_types(theta.dtype, torch.float32), device=theta.device)
    for part in parts_of(spec, len(theta)):
        moved = apply_symmetry(spec, theta[part], part_of(symmetry, part))
        total += moved[0] if len(moved) == 1 else moved.sum(0, dtype=total.dtype)
    return total.div_(len(theta)).to(theta.dtype)
