"""Choose a space for a flow to work in: the coordinates themselves, or their principal components."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from geoflow.chart import Chart
from geoflow.coordinates import Coordinates
from geoflow.latent.components import in_components, read_components


@dataclass(frozen=True)
class Latent:
    """A row of LATENTS.

    `fit` takes the charts and points of zoos and a number of components. It returns the coordinates of the flow, and the zoos in them.
    `read` makes the coordinates of a saved flow from a chart, tensors and words of the file, and its path.
    """

    fit: Callable[[Sequence[Chart], Sequence[Tensor], float | None], tuple[Sequence[Coordinates], Sequence[Tensor]]]
    read: Callable[[Chart, Mapping[str, Tensor], Mapping[str, str], Path], Coordinates]


NONE = "none"
LATENTS: dict[str, Latent] = {
    NONE: Latent(lambda charts, points, components: (charts, points), lambda chart, tensors, words, path: chart),
    "pca": Latent(in_components, read_components),
}
