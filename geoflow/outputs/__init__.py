"""List what the outputs of a network can mean: the kinds of predictions, each with its loss, its pools and its scores."""

from geoflow.choices import choose
from geoflow.outputs.classes import ClassOutputs, Scores
from geoflow.outputs.gaussian import GaussianOutputs, RegressionScores
from geoflow.outputs.kind import Column, Outputs, Pool

__all__ = ["OUTPUTS", "ClassOutputs", "Column", "GaussianOutputs", "Outputs", "Pool", "RegressionScores", "Scores", "outputs_of"]

OUTPUTS: dict[str, Outputs] = {"classes": ClassOutputs(), "gaussian": GaussianOutputs()}


def outputs_of(name: str) -> Outputs:
    """Return the kind of outputs `name`, a row of OUTPUTS. Raises ValueError for an unknown name.

    >>> outputs_of("gaussian").units(1)  # a mean and a log-variance
    2
    """
    return choose("outputs", name, OUTPUTS)
