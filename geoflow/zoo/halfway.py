"""Keep runs under training, so that an interrupted zoo continues with the epoch where it was."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from geoflow.files import read_tensors, under, write_tensors

PART = ".part"
SECONDS = 20.0  # between two writes
State = dict[str, Tensor]


class Halfway:
    """The file of runs that are trained at once: their weights, AdamW's moments, random numbers and snapshots after some epoch.

    `settings` hold everything that decides these runs. A file with other settings is not used. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None, settings: Mapping):
        self.path, self.settings, self.written = path, json.dumps(settings, sort_keys=True), monotonic()

    def resume(self, state: State, optimizer: torch.optim.Optimizer, generators: Sequence[torch.Generator], snapshots: list[State]) -> int:
        """Put everything back as the file has it, and return how many epochs are done: 0 without a file of these runs.

        Raises ValueError if the file is corrupt.
        """
        if self.path is None or not self.path.exists():
            return 0
        tensors, metadata = read_tensors(self.path)
        if metadata.get("settings") != self.settings:
            return 0
        for name, value in state.items():
            with torch.no_grad():
                value.copy_(tensors[f"state.{name}"])
            if moments := under(f"adamw.{name}.", tensors):
                optimizer.state[value] = {key: moment.to(value.device) for key, moment in moments.items()}
        for generator, numbers in zip(generators, tensors["generators"], strict=True):
            generator.set_state(numbers.clone())  # aligned, unlike a view of a file
        torch.set_rng_state(tensors["global"].clone())
        if "global.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["global.cuda"].clone())
        snapshots += [under(f"snapshot.{number}.", tensors) for number in range(int(metadata["snapshots"]))]
        return int(metadata["epochs"])

    def keep(
        self,
        epochs: int,
        state: State,
        optimizer: torch.optim.Optimizer,
        generators: Sequence[torch.Generator],
        snapshots: list[State],
        last: bool = False,
    ) -> None:
        """Write everything, if the last time is long enough ago or this was the `last` epoch."""
        if self.path is None or (monotonic() - self.written < SECONDS and not last):
            return
        tensors = {f"state.{name}": value.detach() for name, value in state.items()}
        for name, value in state.items():
            tensors |= {f"adamw.{name}.{key}": moment for key, moment in optimizer.state.get(value, {}).items()}
        tensors |= {f"snapshot.{number}.{name}": value for number, one in enumerate(snapshots) for name, value in one.items()}
        tensors |= {"generators": torch.stack([generator.get_state() for generator in generators]), "global": torch.get_rng_state()}
        if any(value.is_cuda for value in state.values()):
            tensors["global.cuda"] = torch.cuda.get_rng_state()
        metadata = {"settings": self.settings, "epochs": str(epochs), "snapshots": str(len(snapshots))}
        write_tensors(self.path, tensors, metadata)
        self.written = monotonic()


def digest_of(*tensors: Tensor) -> str:
    """The sha256 of the numbers of several tensors."""
    found = sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def forget(beside: Path) -> None:
    """Remove what was kept of the runs whose files begin with this name."""
    for path in beside.parent.glob(f"{beside.name}-*{PART}"):
        path.unlink()
