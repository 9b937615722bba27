"""Bring networks to one canonical form: scale, order and sign of every neuron."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from geoflow.canonical import scaling
from geoflow.canonical.matching import align, centre, check_zoo
from geoflow.canonical.origin import order_kept
from geoflow.canonical.scaling import balance, dead_units, sphere_rows
from geoflow.frame import UNTURNED, Frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec

__all__ = ["Canonical", "align", "balance", "canonicalize", "centre", "check_zoo", "dead_units", "order_kept", "sphere_rows", "unaligned"]


@dataclass(frozen=True)
class Canonical:
    """Networks in canonical form, and the reference that they are aligned to."""

    theta: Float[Tensor, "nets weights"]
    reference: Float[Tensor, "*#nets weights"]


def canonicalize(
    spec: NetworkSpec,
    theta: Float[Tensor, "nets weights"],
    reference: Float[Tensor, "*#nets weights"] | None = None,
    balance: bool = True,
    frame: Frame = UNTURNED,
) -> Canonical:
    """Balance every network, then align it to the reference; every network computes the same function as before.

    Without a reference it is the common centre of these networks, found from the first of them. Further networks, such as held-out ones,
    are brought to the same form by passing the reference of the first ones, which is taken as it is, or one for each of them. Lengths
    and inner products of the weights on an input are those that they have in `frame`.

    Raises ValueError for an empty zoo, for NaN or Inf with the network and the tensor, and for a single network without a reference.

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
    graph = graph_of(spec)
    theta = _scaled(spec, theta, balance, frame)
    common = centre(spec, theta, theta[0]) if reference is None else frame.turn(graph, reference)
    aligned = frame.turn_back(graph, align(spec, theta, common)[0])
    return Canonical(aligned, frame.turn_back(graph, common) if reference is None else reference)


def unaligned(spec: NetworkSpec, theta: Float[Tensor, "nets weights"], balance: bool, frame: Frame) -> Float[Tensor, "nets weights"]:
    """Networks in the scale of their canonical form, their units in the order and with the signs in which they came."""
    return frame.turn_back(graph_of(spec), _scaled(spec, theta, balance, frame))


def _scaled(spec: NetworkSpec, theta: Tensor, balance: bool, frame: Frame) -> Tensor:
    turned = frame.turn(graph_of(spec), theta)
    return scaling.balance(spec, turned) if balance else turned
