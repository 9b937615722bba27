"""Keep the networks that a scoreboard makes: in memory, or network by network in files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor, nn

from geoflow.canonical import align
from geoflow.canonical.large import Steps, canonicalize_large
from geoflow.evaluation.baselines import baseline
from geoflow.evaluation.baselines_in_files import baseline_in_file
from geoflow.evaluation.large import place_large, recalibrate_large
from geoflow.evaluation.plots import SHOWN_PATHS
from geoflow.evaluation.ruler import Ruler, fit_ruler
from geoflow.files import read_tensors, write_tensors
from geoflow.fingerprints import digest_of
from geoflow.flow import Flow
from geoflow.frame import Frame
from geoflow.graph import graph_of
from geoflow.spec import NetworkSpec
from geoflow.statistics import recalibrate
from geoflow.stored import Networks, Stored
from geoflow.symmetry import apply_symmetry

Found = Mapping[str, Tensor]  # small results by their names
Shown = tuple[Float[Tensor, "zoo size"], Float[Tensor, "generated size"], Float[Tensor, "times paths size"]]


class Keeper(ABC):
    """Say where a scoreboard keeps what it makes. Each set of networks has a `name`, such as that of a baseline."""

    @abstractmethod
    def canonical(self, flow: Flow, name: str, thetas: Networks) -> Networks:
        """Return networks in the canonical form of a flow."""

    @abstractmethod
    def generators(self, names: Sequence[str], generator: Generator) -> Mapping[str, Generator]:
        """Return the generator that draws each baseline."""

    @abstractmethod
    def baseline(self, name: str, flow: Flow, zoo: Networks, count: int, generator: Generator) -> Networks:
        """Return the networks of a baseline, as `geoflow.evaluation.baselines.baseline` makes them."""

    @abstractmethod
    def recalibrated(self, name: str, network: nn.Module, spec: NetworkSpec, thetas: Networks, seen: Shaped[Tensor, "_n ..."]) -> Networks:
        """Return the networks with running statistics measured anew (see `recalibrate`), on the device of `seen`."""

    @abstractmethod
    def ruler(self, spec: NetworkSpec, zoo: Networks, frame: Frame) -> Ruler:
        """Return the ruler of the zoo."""

    @abstractmethod
    def placed(self, ruler: Ruler, name: str, thetas: Networks) -> Networks:
        """Return the coordinates of networks on the ruler."""

    @abstractmethod
    def kept(self, name: str, about: Mapping, find: Callable[[], Found]) -> Found:
        """Return what `find` gives, or what it gave before an interruption. `about` holds all that decides it."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Forget the networks with this name, of which all is measured."""

    @abstractmethod
    def shown(self, flow: Flow, zoo: Networks, generated: Networks, paths: Float[Tensor, "times nets size"]) -> Shown:
        """Return canonical zoo, generated networks and paths in coordinates that show how they lie."""


class InMemory(Keeper):
    """Keep all networks in memory."""

    def canonical(self, flow, name, thetas):
        return flow.canonical(thetas)

    def generators(self, names, generator):
        return dict.fromkeys(names, generator)

    def baseline(self, name, flow, zoo, count, generator):
        return baseline(name, flow, zoo, count, generator)

    def recalibrated(self, name, network, spec, thetas, seen):
        return recalibrate(network, spec, thetas.to(seen.device), seen).cpu()

    def ruler(self, spec, zoo, frame):
        return fit_ruler(spec, zoo, frame)

    def placed(self, ruler, name, thetas):
        return ruler.place(thetas)

    def kept(self, name, about, find):
        return find()

    def drop(self, name):
        pass

    def shown(self, flow, zoo, generated, paths):
        """One order of the units holds on each path: the one that makes its last network canonical."""
        thetas, graph = flow.chart.theta(paths), graph_of(flow.spec)
        ends, reference = (flow.chart.frame.turn(graph, one) for one in (thetas[-1], flow.reference))
        return zoo, generated, apply_symmetry(flow.spec, thetas, align(flow.spec, ends, reference)[1])


@dataclass(frozen=True)
class InFiles(Keeper):
    """Keep networks in a folder, of which only a few are in memory at once. What was measured stays there for the same call again.

    `known` holds canonical networks that lie in a file already, by their names. Baselines are drawn by generators of their own, so that
    those that were measured before need not be drawn again. The folder can be deleted when the scoreboard is made.
    """

    folder: str | Path
    known: Mapping[str, Stored] = field(default_factory=dict)
    progress: bool = False

    def canonical(self, flow, name, thetas):
        if name in self.known:
            return self.known[name]
        recipe, frame = flow.chart.recipe, flow.chart.frame
        path = self._at(name, "canonical")
        return canonicalize_large(flow.spec, thetas, path, flow.reference, recipe.balance, frame, progress=self.progress).theta

    def generators(self, names, generator):
        seeds = torch.randint(2**62, (len(names),), generator=generator).tolist()
        return {name: torch.Generator().manual_seed(seed) for name, seed in zip(names, seeds, strict=True)}

    def baseline(self, name, flow, zoo, count, generator):
        return baseline_in_file(name, flow, zoo, count, generator, self._at(name, "networks"), self.progress)

    def recalibrated(self, name, network, spec, thetas, seen):
        return recalibrate_large(network, spec, thetas, seen, self._at(name, "recalibrated"), self.progress)

    def ruler(self, spec, zoo, frame):
        steps = Steps(Path(self.folder) / f"ruler-{digest_of({'zoo': zoo.mark(), 'frame': frame.axes})[:8]}", self.progress)
        return fit_ruler(spec, zoo, frame, match=steps.match)

    def placed(self, ruler, name, thetas):
        return place_large(ruler, thetas, self._at(name, "placed"), self.progress)

    def kept(self, name, about, find):
        """Raises ValueError if the folder holds the results of other networks, other data or other random numbers."""
        path, of = self._at(name, "found"), digest_of({key: _mark(one) for key, one in about.items()})
        if not path.exists():
            write_tensors(path, find(), {"of": of})
        found, words = read_tensors(path)
        if words["of"] != of:
            raise ValueError(f"{path} was found for other networks or data, or with other random numbers. Delete it, or name a new folder.")
        return found

    def drop(self, name):
        for what in ("networks", "recalibrated", "placed"):
            self._at(name, what).unlink(missing_ok=True)

    def shown(self, flow, zoo, generated, paths):
        """In the components of the zoo. `paths` are those of all generated networks, so their ends are the networks."""
        own = flow.chart.pca.own / flow.chart.unit
        return own.to(paths), paths[-1], paths[:, :SHOWN_PATHS]

    def _at(self, name: str, what: str) -> Path:
        return Path(self.folder) / f"{name}.{what}.safetensors"


IN_MEMORY = InMemory()


def _mark(value: object) -> object:
    return value.mark() if isinstance(value, Stored) else value
