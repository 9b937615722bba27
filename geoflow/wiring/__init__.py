"""Read the table of a network from its forward pass."""

# Importing the families fills the table of rules.
from geoflow.wiring import arithmetic, attention, convolution, linear, normalization, pointwise, pooling, recurrent, shapes, views  # noqa: F401
from geoflow.wiring.check import check_spec
from geoflow.wiring.rules import rule
from geoflow.wiring.trace import spec_of

__all__ = ["check_spec", "rule", "spec_of"]
