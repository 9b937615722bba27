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

from geoflow.files import read_tensors, under, write_tensors
from geoflow.spec import NetworkSpec
from geoflow.vector import pack
from geoflow.zoo.tasks import Task
from geoflow.zoo.train import train_zoo

FORMAT = 3  # counted up whenever the same configuration would give another zoo
GROUP = {"cpu": 256, "cuda": 4096}  # runs that are trained together, and kept as soon as they are done

# name: arguments of train_zoo. Learning rate, weight decay and epochs have the best mean NLL of single networks on a validation part of
# the training data, never on the test part; measured with 30-16-16-2, 64-10-10, 4-16-3 and 13-16-3. At 784-10-10 decay .1 is best (.207);
# .03 (.219) is taken because networks that shrink less differ more: their ensemble of 64 has .955 in place of .952.
_SHARED = {"lr": 1e-2, "weight_decay": 0.1, "schedule": "cosine"}
ZOO_DEFAULTS: dict[str, dict] = {
    "breast_cancer": _SHARED | {"runs": 512, "epochs": 20, "batch": 32, "lr": 3e-3, "weight_decay": 0.3, "snapshots": 2, "every": 2},
    "digits": _SHARED | {"runs": 2048, "epochs": 40, "batch": 32, "weight_decay": 0.15, "snapshots": 1, "every": 1},
    "iris": _SHARED | {"runs": 512, "epochs": 80, "batch": 16, "snapshots": 2, "every": 4},
    "wine": _SHARED | {"runs": 512, "epochs": 40, "batch": 16, "snapshots": 2, "every": 4},
    "mnist": _SHARED | {"runs": 4096, "epochs": 10, "batch": 128, "lr": 2e-2, "weight_decay": 0.03, "snapshots": 1, "every": 1},
    "fashion": _SHARED | {"runs": 4096, "epochs": 10, "batch": 128, "lr": 2e-2, "weight_decay": 0.03, "snapshots": 1, "every": 1},
}


@dataclass(frozen=True)
class Zoo:
    """Weight vectors of `runs` independent training runs with `snapshots` each, the table they are packed by, and what made them."""

    thetas: Float[Tensor, "runs snapshots weights"]
    spec: NetworkSpec
    configuration: Mapping

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
) -> Zoo:
    """The zoo of `settings` (arguments of `train_zoo`, all of plain values), read from `folder` or trained and kept there.

    The file is named by the digest of everything that determines its runs: network, training data, settings but for their number, seed and
    FORMAT. It grows by groups of runs, so that an interrupted training goes on, and a larger zoo begins with the runs of a smaller one.
    Of several processes that ask for the same zoo one trains it, and the others wait.

    Raises ValueError for a file that is corrupt or belongs to another configuration: it is never replaced silently.
    """
    recipe, runs = dict(settings), settings["runs"]
    del recipe["runs"]
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
        if zoo.spec != spec:
            raise ValueError(f"{path} was packed by another table than the one traced now. Delete it; it will be trained again.")
        while zoo.runs < runs:
            group = min(GROUP[torch.device(device).type], runs - zoo.runs)
            states = train_zoo(build, task, **recipe, runs=group, first=zoo.runs, seed=seed, device=device, progress=progress)
            save_zoo(path, replace(zoo, thetas=torch.cat([zoo.thetas, pack(spec, states)])))
            zoo = read_zoo(path)
    return replace(zoo, thetas=zoo.thetas[:runs], configuration=configuration | {"settings": recipe | {"runs": runs}})


def save_zoo(path: str | Path, zoo: Zoo) -> None:
    """Write a zoo as one safetensors file; a crash leaves either no file or the whole one."""
    tensors = {"thetas": zoo.thetas} | {f"rest.{name}": value for name, value in zoo.spec.rest.items()}
    write_tensors(path, tensors, {"configuration": _json(zoo.configuration), "spec": zoo.spec.to_json()})


def read_zoo(path: str | Path) -> Zoo:
    """Read what `save_zoo` wrote. The file is mapped: networks come from the disk when they are used, and leave memory under pressure.

    Raises ValueError naming the file if it is corrupt or no zoo."""
    try:
        tensors, metadata = read_tensors(path)
        spec = NetworkSpec.from_json(metadata["spec"], under("rest.", tensors))
        return Zoo(tensors["thetas"], spec, json.loads(metadata["configuration"]))
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
    return Zoo(zoo.thetas[kept], zoo.spec, zoo.configuration), Zoo(zoo.thetas[held_out], zoo.spec, zoo.configuration)


def digest(configuration: Mapping) -> str:
    """The sha256 of a configuration of plain values, whatever the order of its keys.

    >>> digest({"runs": 2, "lr": 0.1}) == digest({"lr": 0.1, "runs": 2})
    True
    """
    return hashlib.sha256(_json(configuration).encode()).hexdigest()


def _digest_of(task: Task) -> str:
    return hashlib.sha256(task.x_train.numpy().tobytes() + task.y_train.numpy().tobytes()).hexdigest()


def _json(configuration: Mapping) -> str:
    return json.dumps(configuration, sort_keys=True)
