"""Bring networks to canonical form: one choice of the scale, order and sign of every unit, and of the matrix of every head."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from geoflow.canonical import products
from geoflow.canonical.gathering import centre, gathered
from geoflow.canonical.matching import align, apply_by_parts, check_zoo, match_units
from geoflow.canonical.origin import order_kept
from geoflow.canonical.products import balance, balance_products
from geoflow.canonical.scaling import dead_units, sphere_rows
from geoflow.frame import UNTURNED, Frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.stored import Networks

__all__ = [
    "Canonical",
    "align",
    "balance",
    "balance_products",
    "canonicalize",
    "centre",
    "check_zoo",
    "dead_units",
    "order_kept",
    "sphere_rows",
    "unaligned",
]


@dataclass(frozen=True)
class Canonical:
    """Networks in canonical form, and the reference that they are aligned to.

    `reference` is one vector [weights] for all networks, or one vector for each of them.
    """

    theta: Networks
    reference: Float[Tensor, "..."]


def canonicalize(
    spec: NetworkSpec,
    theta: Float[Tensor, "nets weights"],
    reference: Float[Tensor, "*#nets weights"] | None = None,
    balance: bool = True,
    frame: Frame = UNTURNED,
) -> Canonical:
    """Balance every network, then align it to a reference. Every network computes the same function as before.

    Balancing rescales units until their incoming weights have norm 1 (see `balance`), and gives both factors of the products of a head one
    size (see `balance_products`). Aligning reorders and flips units, and turns heads (see `align`).

    Without a `reference`, the networks are aligned to their common centre (see `centre`). To bring further networks to the same form, such
    as held-out ones, pass the reference of the first ones. A reference is used as it is. `balance=False` leaves the scale as it is.

    A `frame` changes the coordinates of the weights on an input. Norms and inner products of these weights are then those in the frame.

    Raises ValueError for an empty zoo, for NaN or Inf, and for a single network without a reference. The message names the network and
    the tensor.

    >>> import torch, geoflow
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> spec = geoflow.spec_of(network, torch.zeros(1, 4))
    >>> theta = torch.randn(6, spec.weights, generator=torch.Generator().manual_seed(0))
    >>> zoo = canonicalize(spec, theta)
    >>> again = canonicalize(spec, theta[:2], zoo.reference)
    >>> bool(again.theta.allclose(zoo.theta[:2]))
    True
    """
    check_zoo(spec, theta)
    scaled = _scaled(spec, theta, balance, frame)
    if reference is None:
        common, symmetry = gathered(spec, scaled)
    else:
        common = _turn(spec, reference, frame)
        symmetry = match_units(spec, scaled, common)
    own = scaled if scaled is not theta else theta.new_empty(theta.shape)
    aligned = _turn_back(spec, apply_by_parts(spec, scaled, symmetry, own), frame)
    return Canonical(aligned, _turn_back(spec, common, frame) if reference is None else reference)


def unaligned(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], balance: bool, frame: Frame) -> Float[Tensor, "nets weights"]:
    """Networks in the scale of their canonical form, with their units in the given order and with the given signs."""
    return _turn_back(spec, _scaled(spec, theta, balance, frame), frame)


def _scaled(spec: NetworkSpec, theta: Tensor, balance: bool, frame: Frame) -> Tensor:
    turned = _turn(spec, theta, frame)
    return products.balance(spec, turned) if balance else turned


def _turn(spec: NetworkSpec, theta: Tensor, frame: Frame) -> Tensor:
    return frame.turn(graph_of(spec), theta) if frame.axes else theta  # the graph of a large network takes seconds


def _turn_back(spec: NetworkSpec, theta: Tensor, frame: Frame) -> Tensor:
    return frame.turn_back(graph_of(spec), theta) if frame.axes else theta
