"""Trace a network: read its table from one forward pass."""

# These imports register the rules.
from geoflow.wiring import arithmetic, attention, convolution, linear, normalization, pointwise, pooling, recurrent, shapes, views  # noqa: F401
from geoflow.wiring.check import check_spec
from geoflow.wiring.rules import rule
from geoflow.wiring.trace import spec_of

__all__ = ["check_spec", "rule", "spec_of"]
