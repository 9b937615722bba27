"""Choose a field: a module (graph, x, t) -> velocity that a flow learns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from torch import nn

from geoflow.choices import choose
from geoflow.graph import Graph
from geoflow.velocity.mlp import MLPVelocity
from geoflow.velocity.relational_transformer import IdentifiedTransformer, RelationalTransformer

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


def build_field(graphs: Sequence[Graph], velocity: str, sizes: Mapping[str, int], features: int = 0) -> nn.Module:
    """A new field for networks with the roles of these graphs. Only an equivariant field serves more than one.

    With `features` above 0 it takes conditions of so many numbers.
    """
    kind = VELOCITIES[velocity]
    first, *others = graphs
    told = {"features": features} if features else {}
    return kind(first, kind.Sizes(**complete_sizes(velocity, sizes)), *others, **told)
