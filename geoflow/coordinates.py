"""Say what a flow needs to know of its coordinates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from geoflow.frame import Frame
from geoflow.graph import Graph
from geoflow.manifolds import Product
from geoflow.spec import NetworkSpec
from geoflow.stored import Stored


@dataclass(frozen=True)
class Recipe:
    """The choice of coordinates for a zoo.

    - `balance`: incoming rows of weights have norm 1 where a symmetry frees their scale.
    - `spheres`: these rows are points of spheres.
    - `polar`: so is the direction of the last layer. Its log-norm is one more coordinate, so the logits are kept exactly.

    >>> FLOWS["geometric"]
    Recipe(balance=True, spheres=True, polar=False)
    """

    balance: bool
    spheres: bool
    polar: bool


FLOWS: dict[str, Recipe] = {
    "euclidean": Recipe(balance=False, spheres=False, polar=False),
    "normalized": Recipe(balance=True, spheres=False, polar=False),
    "geometric": Recipe(balance=True, spheres=True, polar=False),
    "geometric_polar": Recipe(balance=True, spheres=True, polar=True),  # Erdogan, arXiv 2504.03710
}


class Coordinates(ABC):
    """The map between canonical weight vectors [*batch, weights] and points [*batch, size] of a manifold.

    `Chart` has a coordinate for every weight, and `Components` has the principal components of a zoo. Both are used alike.

    - `spec` is the table of the networks, `recipe` and `frame` say what is canonical.
    - `own` [2, size] is the mean and standard deviation of every coordinate over the zoo, or None if only those of roles are known.
    - `spread` is the standard deviation of the noise in flat coordinates, in units of the zoo's.
    """

    spec: NetworkSpec
    recipe: Recipe
    frame: Frame
    own: Float[Tensor, "2 _size"] | None
    spread: float

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """The graph that a field reads. It has a place for every coordinate."""

    @property
    @abstractmethod
    def manifold(self) -> Product:
        """The product of spheres and flat space that the points lie on."""

    @property
    @abstractmethod
    def scale(self) -> Float[Tensor, " size"]:
        """Factors that give each coordinate of a random point standard deviation 1."""

    @property
    @abstractmethod
    def flat(self) -> Bool[Tensor, " size"]:
        """Whether each coordinate is on no sphere."""

    @property
    @abstractmethod
    def amplitude(self) -> Float[Tensor, " size"]:
        """The typical size of each coordinate of a velocity."""

    @property
    @abstractmethod
    def moments(self) -> Float[Tensor, "2 size"]:
        """Mean and standard deviation of each coordinate over the zoo, times `scale`, as far as they are known."""

    @property
    @abstractmethod
    def middle(self) -> tuple[Float[Tensor, "1 size"], Float[Tensor, "1 size"]]:
        """The direction of the zoo's mean on each sphere, and the length of that mean, given in every coordinate of the sphere."""

    @abstractmethod
    def knowing_units(self, points: Float[Tensor, "nets size"]) -> "Coordinates":
        """Return these coordinates with `own` set to the moments of a zoo, which is given by its points."""

    @abstractmethod
    def point(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch size"]:
        """Return the points of canonical weight vectors."""

    @abstractmethod
    def theta(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch weights"]:
        """Return the weight vectors of points."""

    @abstractmethod
    def nearest(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch weights"]:
        """Rescale the rows that should have norm 1 to norm 1."""

    @abstractmethod
    def on(self, spec: NetworkSpec) -> "Coordinates":
        """Return the same coordinates for another architecture. Raises ValueError if there are none."""

    @abstractmethod
    def steady(self) -> Bool[Tensor, " size"]:
        """Return which coordinates are the same in all networks of the zoo. Raises ValueError if points have no density."""

    @abstractmethod
    def log_volume(self, theta: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch"]:
        """Return how many units of volume of points belong to one of weights, as a logarithm."""

    @abstractmethod
    def write(self, path: Path, x: Float[Tensor, "nets size"], progress: bool = False) -> Stored:
        """Write the weight vectors of points to a file, network by network, and return them, opened. The same call goes on with it."""

    @abstractmethod
    def record(self, path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
        """Return the tensors and words that a flow saved at `path` keeps of its coordinates, besides the table."""
