"""Keep a population of trained networks, and the configuration that made it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn

from geoflow.choices import choose
from geoflow.files import read_tensors, under, write_tensors
from geoflow.spec import NetworkSpec
from geoflow.vector import pack, unpack
from geoflow.zoo.recipes import ORIGINS
from geoflow.zoo.tasks import Task
from geoflow.zoo.train import common_start, train_zoo

FORMAT = 3  # counted up whenever the same configuration would give another zoo
ADDED = {"origin": "independent", "common": None, "examples": None}  # settings that were added later; absent where they are as before
GROUP = 16  # runs at least from one writing of the file to the next
ALL = 256  # runs that are trained at once where nothing else is said


@dataclass(frozen=True)
class Zoo:
    """Weight vectors of `runs` training runs with `snapshots` each, the table they are packed by, and what made them.

    `start` is the network that all runs began with, if they had one in common.
    """

    thetas: Float[Tensor, "runs snapshots weights"]
    spec: NetworkSpec
    configuration: Mapping
    start: Float[Tensor, " weights"] | None = None

    @property
    def runs(self) -> int:
        return self.thetas.shape[0]

    @property
    def snapshots(self) -> int:
        return self.thetas.shape[1]

    @property
    def networks(self) -> Float[Tensor, "nets weights"]:
        """All snapshots of all runs, one after the other."""
        return self.thetas.flatten(0, 1)

    @property
    def run_of(self) -> Tensor:
        """The run that each row of `networks` comes from."""
        return torch.arange(self.runs).repeat_interleave(self.snapshots)


def load_zoo(
    folder: str | Path,
    build: Callable[[], nn.Module],
    spec: NetworkSpec,
    task: Task,
    settings: Mapping,
    seed: int,
    device="cpu",
    progress=True,
    together: int | None = None,
) -> Zoo:
    """The zoo of `settings` (arguments of `train_zoo`, all of plain values), read from `folder` or trained and kept there.

    Two more settings say where runs begin: with `origin="shared"` all begin with one network, trained for `common` epochs, and each goes on
    with data that it draws from the training part with replacement (`examples` of them, by default as many as there are).

    The file is named by the digest of everything that determines its runs: network, training data, settings but for their number, seed and
    FORMAT. It grows by groups of runs, so that an interrupted training goes on, and a larger zoo begins with the runs of a smaller one.
    `together` runs are trained at once (by default 256), which changes no run but for rounding. Of several processes that ask for the
    same zoo one trains it, and the others wait.

    Raises ValueError for a file that is corrupt or belongs to another configuration: it is never replaced silently.
    """
    recipe = {name: value for name, value in settings.items() if name != "runs" and (name not in ADDED or value != ADDED[name])}
    runs, together = settings["runs"], ALL if together is None else together
    _check_origin(recipe)
    configuration = {
        "format": FORMAT,
        "task": task.name,
        "data": _digest_of(task),
        "network": repr(build()),
        "settings": recipe,
        "seed": seed,
    }
    path = Path(folder) / f"zoo-{task.name}-{digest(configuration)[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        zoo = read_zoo(path) if path.exists() else Zoo(torch.empty(0, recipe["snapshots"], spec.weights), spec, configuration)
        if zoo.configuration != configuration:
            raise ValueError(f"{path} holds the zoo of another configuration: {zoo.configuration}. Delete it; it will be trained again.")
        if _layout(zoo.spec) != _layout(spec):
            raise ValueError(f"{path} was packed by another table than the one traced now. Delete it; it will be trained again.")
        own = {name: value for name, value in recipe.items() if name not in ADDED} | {"seed": seed, "device": device, "progress": progress}
        if "origin" in recipe and zoo.start is None:
            start = common_start(build, task, **own | {"epochs": recipe["common"]})
            save_zoo(path, zoo := replace(zoo, start=pack(spec, start)))
        own |= {"examples": recipe.get("examples", len(task.x_train) if "origin" in recipe else None)}
        while zoo.runs < runs:
            group, start = min(max(GROUP, together), runs - zoo.runs), None if zoo.start is None else unpack(spec, zoo.start)
            states = train_zoo(build, task, **own, runs=group, first=zoo.runs, start=start, together=together)
            save_zoo(path, replace(zoo, thetas=torch.cat([zoo.thetas, pack(spec, states)])))
            zoo = read_zoo(path)
    return replace(zoo, thetas=zoo.thetas[:runs], spec=spec, configuration=configuration | {"settings": recipe | {"runs": runs}})


def save_zoo(path: str | Path, zoo: Zoo) -> None:
    """Write a zoo as one safetensors file; a crash leaves either no file or the whole one."""
    tensors = {"thetas": zoo.thetas} | {f"rest.{name}": value for name, value in zoo.spec.rest.items()}
    tensors |= {} if zoo.start is None else {"start": zoo.start}
    write_tensors(path, tensors, {"configuration": _json(zoo.configuration), "spec": zoo.spec.to_json()})


def read_zoo(path: str | Path) -> Zoo:
    """Read what `save_zoo` wrote. The file is mapped: networks come from the disk when they are used, and leave memory under pressure.

    Raises ValueError naming the file if it is corrupt or no zoo."""
    try:
        tensors, metadata = read_tensors(path)
        spec = NetworkSpec.from_json(metadata["spec"], under("rest.", tensors))
        return Zoo(tensors["thetas"], spec, json.loads(metadata["configuration"]), tensors.get("start"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no readable zoo ({type(error).__name__}: {error}). Delete it; it will be trained again.") from error


def split_runs(zoo: Zoo, share: float, generator: torch.Generator) -> tuple[Zoo, Zoo]:
    """Two zoos of different runs: the one to fit a flow on, and a random `share` of the runs (at least one) held out from it.

    Raises ValueError if that leaves either side without a run.
    """
    held = max(1, round(share * zoo.runs))
    if not 0 < share < 1 or held >= zoo.runs:
        raise ValueError(
            f"Holding out a share of {share} of {zoo.runs} runs leaves no run on one side. Train more runs or choose a share in (0, 1)."
        )
    order = torch.randperm(zoo.runs, generator=generator)
    held_out, kept = order[:held].sort().values, order[held:].sort().values
    return replace(zoo, thetas=zoo.thetas[kept]), replace(zoo, thetas=zoo.thetas[held_out])


def digest(configuration: Mapping) -> str:
    """The sha256 of a configuration of plain values, whatever the order of its keys.

    >>> digest({"runs": 2, "lr": 0.1}) == digest({"lr": 0.1, "runs": 2})
    True
    """
    return hashlib.sha256(_json(configuration).encode()).hexdigest()


def _check_origin(recipe: Mapping) -> None:
    choose("origin", recipe.get("origin", ADDED["origin"]), ORIGINS)
    if ("origin" in recipe) != ("common" in recipe):
        raise ValueError("origin=shared and common, the epochs of the common training, belong together. Give both or neither.")


def _layout(spec: NetworkSpec) -> list[tuple]:
    """Where the weight vector has which entry; what else a table says, no file depends on."""
    return [(tensor.name, tensor.shape, tensor.start) for tensor in spec.tensors]


def _digest_of(task: Task) -> str:
    return hashlib.sha256(task.x_train.numpy().tobytes() + task.y_train.numpy().tobytes()).hexdigest()


def _json(configuration: Mapping) -> str:
    return json.dumps(configuration, sort_keys=True)
