"""Store a zoo of trained networks, together with the configuration that made it."""

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
from geoflow.zoo.halfway import digest_of, forget
from geoflow.zoo.recipes import ORIGINS
from geoflow.zoo.tasks import Task
from geoflow.zoo.train import common_start, train_zoo

FORMAT = 3  # increased whenever the same configuration would give another zoo
ADDED = {"origin": "independent", "common": None, "examples": None, "init": "torch"}  # later settings, left out at these values
GROUP = 16  # the file is written after at least so many runs
ALL = 256  # runs that are trained at once by default


@dataclass(frozen=True)
class Zoo:
    """A zoo: the weight vectors of `runs` training runs with `snapshots` each.

    `spec` is the table by which the vectors are packed, and `configuration` says how the networks were trained. `start` is the network that
    all runs began with, or None if each began with its own.

    >>> spec = NetworkSpec((), ())
    >>> zoo = Zoo(torch.zeros(3, 2, 0), spec, {})
    >>> zoo.networks.shape, zoo.run_of
    (torch.Size([6, 0]), tensor([0, 0, 1, 1, 2, 2]))
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
        """The run of each row of `networks`."""
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
    source: str = "",
) -> Zoo:
    """Return a zoo from `folder`. If it is not there yet, train it and store it there.

    `settings` are arguments of `train_zoo` with plain values. Three more may say where runs begin. With `origin="shared"` all runs begin
    with one network, which is trained for `common` epochs. Each run then continues on `examples` training examples that it draws with
    replacement. By default these are as many as there are.

    The name of the file is a digest of everything that determines the runs: network, training data, seed, FORMAT and settings except the
    number of runs. The file grows by groups of runs, and a group under training is kept beside it. So an interrupted training continues,
    and a larger zoo begins with the runs of a smaller one. `source` tells the code behind `build` from other code whose network prints the
    same. `together` runs (by default 256) are trained at once, which changes each run by
    rounding only. If several processes ask for one zoo, one of them trains it and the others wait.

    Raises ValueError for a file that is corrupt or belongs to another configuration. Such a file is never replaced silently.

    >>> import tempfile, geoflow
    >>> from geoflow.zoo.networks import mlp
    >>> from geoflow.zoo.recipes import zoo_defaults
    >>> from geoflow.zoo.tasks import load_task
    >>> spec, task = geoflow.spec_of(mlp(4, [5], 3), torch.zeros(1, 4)), load_task("iris")
    >>> settings = zoo_defaults("mlp", "iris") | {"runs": 6, "epochs": 5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(load_zoo(folder, lambda: mlp(4, [5], 3), spec, task, settings, seed=0, progress=False).networks.shape)
    torch.Size([12, 43])
    """
    recipe = {name: value for name, value in settings.items() if name != "runs" and (name not in ADDED or value != ADDED[name])}
    runs, together = settings["runs"], ALL if together is None else together
    _check_origin(recipe)
    configuration = {
        "format": FORMAT,
        "task": task.name,
        "data": digest_of(task.x_train, task.y_train),
        "network": repr(build()),
        "settings": recipe,
        "seed": seed,
    } | ({"source": source} if source else {})
    path = Path(folder) / f"zoo-{task.name}-{digest(configuration)[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        zoo = read_zoo(path) if path.exists() else Zoo(torch.empty(0, recipe["snapshots"], spec.weights), spec, configuration)
        if zoo.configuration != configuration:
            raise ValueError(f"{path} holds the zoo of another configuration: {zoo.configuration}. Delete it; it will be trained again.")
        if _layout(zoo.spec) != _layout(spec):
            raise ValueError(f"{path} was packed by another table than the one traced now. Delete it; it will be trained again.")
        own = {name: value for name, value in recipe.items() if name not in ADDED} | {"init": recipe.get("init", ADDED["init"])}
        own |= {"seed": seed, "device": device, "progress": progress}
        if "origin" in recipe and zoo.start is None:
            start = common_start(build, task, **own | {"epochs": recipe["common"]})
            save_zoo(path, zoo := replace(zoo, start=pack(spec, start)))
        own |= {"examples": recipe.get("examples", len(task.x_train) if "origin" in recipe else None)}
        while zoo.runs < runs:
            group, start = min(max(GROUP, together), runs - zoo.runs), None if zoo.start is None else unpack(spec, zoo.start)
            under_way = path.with_suffix("")
            states = train_zoo(build, task, **own, runs=group, first=zoo.runs, start=start, together=together, checkpoint=under_way)
            save_zoo(path, replace(zoo, thetas=torch.cat([zoo.thetas, pack(spec, states)])))
            forget(under_way)
            zoo = read_zoo(path)
    return replace(zoo, thetas=zoo.thetas[:runs], spec=spec, configuration=configuration | {"settings": recipe | {"runs": runs}})


def save_zoo(path: str | Path, zoo: Zoo) -> None:
    """Write a zoo as one safetensors file. A crash leaves either no file or the whole one."""
    tensors = {"thetas": zoo.thetas} | {f"rest.{name}": value for name, value in zoo.spec.rest.items()}
    tensors |= {} if zoo.start is None else {"start": zoo.start}
    write_tensors(path, tensors, {"configuration": _json(zoo.configuration), "spec": zoo.spec.to_json()})


def read_zoo(path: str | Path) -> Zoo:
    """Read a zoo that `save_zoo` wrote.

    The file is memory-mapped: networks are read from the disk when they are used. Raises ValueError if the file is corrupt or holds no zoo.
    """
    try:
        tensors, metadata = read_tensors(path)
        spec = NetworkSpec.from_json(metadata["spec"], under("rest.", tensors))
        return Zoo(tensors["thetas"], spec, json.loads(metadata["configuration"]), tensors.get("start"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no readable zoo ({type(error).__name__}: {error}). Delete it; it will be trained again.") from error


def split_runs(zoo: Zoo, share: float, generator: torch.Generator) -> tuple[Zoo, Zoo]:
    """Split a zoo by runs. Return the zoo to fit a flow to, and a random `share` of the runs that is held out.

    Raises ValueError as `split_of` does.
    """
    kept, held_out = split_of(zoo.runs, share, generator)
    return replace(zoo, thetas=zoo.thetas[kept]), replace(zoo, thetas=zoo.thetas[held_out])


def split_of(runs: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the numbers of the runs that a flow is fitted to, and of a random `share` that is held out. At least one is held out.

    Raises ValueError if either side has no run left.
    """
    held = max(1, round(share * runs))
    if not 0 < share < 1 or held >= runs:
        raise ValueError(
            f"Holding out a share of {share} of {runs} runs leaves no run on one side. Train more runs or choose a share in (0, 1)."
        )
    order = torch.randperm(runs, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def digest(configuration: Mapping) -> str:
    """Return the sha256 of a configuration of plain values. The order of its keys does not matter.

    >>> digest({"runs": 2, "lr": 0.1}) == digest({"lr": 0.1, "runs": 2})
    True
    """
    return hashlib.sha256(_json(configuration).encode()).hexdigest()


def _check_origin(recipe: Mapping) -> None:
    choose("origin", recipe.get("origin", ADDED["origin"]), ORIGINS)
    if ("origin" in recipe) != ("common" in recipe):
        raise ValueError("origin=shared and common, the epochs of the common training, belong together. Set both or neither.")


def _layout(spec: NetworkSpec) -> list[tuple]:
    """Return which entry lies where in the weight vector. Files depend on nothing else in a table."""
    return [(tensor.name, tensor.shape, tensor.start) for tensor in spec.tensors]


def _json(configuration: Mapping) -> str:
    return json.dumps(configuration, sort_keys=True)
