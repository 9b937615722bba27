"""The fields: modules (graph, x, t) -> velocity that a flow can be built on."""

from geoflow.velocity.mlp import MLPVelocity
from geoflow.velocity.relational_transformer import RelationalTransformer

VELOCITIES = {"transformer": RelationalTransformer, "mlp": MLPVelocity}
