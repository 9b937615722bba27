"""Choose a field: a module (graph, x, t) -> velocity that a flow learns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import torch
from torch import nn

from geoflow.choices import choose
from geoflow.graph import Graph
from geoflow.latent import NONE
from geoflow.velocity.mlp import MLPVelocity
from geoflow.velocity.relational_transformer import NOTHING, RECOMPUTE, IdentifiedTransformer, RelationalTransformer

VELOCITIES = {"transformer": RelationalTransformer, "identified": IdentifiedTransformer, "mlp": MLPVelocity}


def complete_sizes(velocity: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """All sizes of a field, as {name: size}. Sizes that are not given have their defaults.

    Raises ValueError for an unknown field, an unknown size, and a size that is not a whole number of at least 1.

    >>> complete_sizes("transformer", {"layers": 2})
    {'layers': 2, 'node': 64, 'edge': 16, 'edge_hidden': 32, 'heads': 4, 'components': 128}
    """
    kind = choose("velocity", velocity, VELOCITIES).Sizes
    for name, value in sizes.items():
        choose(f"size of velocity={velocity}", name, {field.name: field for field in fields(kind)})
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"sizes.{name}={value} must be a whole number of at least 1.")
    return asdict(kind(**sizes))


def build_field(
    graphs: Sequence[Graph],
    velocity: str,
    sizes: Mapping[str, int],
    features: int = 0,
    dropout: float = 0.0,
    recompute: str = NOTHING,
) -> nn.Module:
    """A new field for networks with the roles of these graphs. Only an equivariant field serves more than one.

    With `features` above 0 it takes conditions of so many numbers. `dropout` is the share of hidden units that are dropped in training.
    `recompute` names a row of RECOMPUTE.
    """
    kind = VELOCITIES[velocity]
    first, *others = graphs
    given = {"features": features, "dropout": dropout, "recompute": recompute}
    given = {name: value for name, value in given.items() if value not in (0, NOTHING)}
    return kind(first, kind.Sizes(**complete_sizes(velocity, sizes)), *others, **given)


def count_parameters(graphs: Sequence[Graph], velocity: str, sizes: Mapping[str, int]) -> int:
    """The number of parameters of a new field. No memory is taken for them.

    >>> import torch, geoflow
    >>> graph = geoflow.graph_of(geoflow.spec_of(torch.nn.Linear(2, 1), torch.zeros(1, 2)))
    >>> count_parameters([graph], "mlp", {"width": 1000}) > 1_000_000
    True
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_field(graphs, velocity, sizes).parameters())


def check_dropout(velocity: str, dropout: float) -> None:
    """Raise ValueError for what is no share, and for a share that this kind of field cannot drop.

    >>> check_dropout("transformer", 0.1)
    Traceback (most recent call last):
    ValueError: dropout=0.1 serves velocity=mlp, and velocity=transformer drops nothing. Leave it out.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be a share from 0 to below 1.")
    dropping = [name for name, kind in VELOCITIES.items() if kind.drops]
    if dropout and velocity not in dropping:
        raise ValueError(f"dropout={dropout} serves velocity={' or '.join(dropping)}, and velocity={velocity} drops nothing. Leave it out.")


def check_recompute(velocity: str, recompute: str) -> None:
    """Raise ValueError for an unknown row of RECOMPUTE, and for a field that has nothing to compute again.

    >>> check_recompute("mlp", "layers")
    Traceback (most recent call last):
    ValueError: recompute=layers serves velocity=transformer or identified, and velocity=mlp keeps few. Leave it out.
    """
    choose("recompute", recompute, RECOMPUTE)
    serving = [name for name, kind in VELOCITIES.items() if kind.reads_units]
    if recompute != NOTHING and velocity not in serving:
        raise ValueError(f"recompute={recompute} serves velocity={' or '.join(serving)}, and velocity={velocity} keeps few. Leave it out.")


def check_latent(velocity: str, latent: str) -> None:
    """Raise ValueError if a field reads units and their weights, and the space of the flow has none.

    >>> check_latent("transformer", "pca")
    Traceback (most recent call last):
    ValueError: velocity=transformer reads units and weights, and latent=pca has components only. Choose velocity=mlp, or latent=none.
    """
    if latent != NONE and VELOCITIES[velocity].reads_units:
        free = " or ".join(name for name, kind in VELOCITIES.items() if not kind.reads_units)
        raise ValueError(
            f"velocity={velocity} reads units and weights, and latent={latent} has components only. Choose velocity={free}, or latent=none."
        )
