"""Choose the field that suits a zoo, and refuse one that cannot serve several architectures."""

from jaxtyping import Float
from torch import Tensor

from geoflow.canonical import order_kept
from geoflow.spec import NetworkSpec
from geoflow.velocity import VELOCITIES

AUTO = "auto"  # `velocity_for` chooses the field
IN_COMPONENTS = "mlp", "velocity=mlp: components belong to no units, so a field has no graph to read."
SEVERAL = "transformer", "velocity=transformer: units of different architectures have no common places."
KEPT = 0.5  # share of units that keep their place, above chance, from which they count as commonly ordered


def velocity_for(spec: NetworkSpec, thetas: Float[Tensor, "nets weights"], coupling: str = "independent") -> tuple[str, str]:
    """Return the row of `VELOCITIES` that suits a zoo, and the reason.

    It is `identified` if the units of all networks are in one order. At least half of them, above chance, must then keep their place when
    the networks are aligned.

    >>> import torch, geoflow
    >>> spec = geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    >>> velocity_for(spec, torch.randn(5, 3))
    ('identified', 'velocity=identified: no units of these networks are exchangeable.')
    """
    if coupling == "equivariant_ot":
        return "transformer", "velocity=transformer: coupling=equivariant_ot needs a field that does not tell units by their place."
    if not spec.groups("permutation"):
        return "identified", "velocity=identified: no units of these networks are exchangeable."
    kept = order_kept(spec, thetas)
    velocity, origin = ("identified", "one common start") if kept >= KEPT else ("transformer", "independent starts")
    return velocity, f"velocity={velocity}: {max(0.0, kept):.0%} of the units keep their place under alignment, as from {origin}."


def check_serves(velocity: str, architectures: int) -> None:
    """Raise ValueError if a field of this kind cannot serve so many architectures."""
    if architectures > 1 and VELOCITIES[velocity].knows_units:
        raise ValueError(
            f"velocity={velocity} tells units by their place, and the units of {architectures} architectures have no common places. "
            "Choose velocity=transformer."
        )
