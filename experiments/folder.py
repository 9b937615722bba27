"""Keep what a run made: its folder, written so that a crash leaves no half file."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geoflow.flow import Flow
from geoflow.spec import NetworkSpec

with warnings.catch_warnings():  # sacred imports pkg_resources, which complains of its age at every start
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    from sacred.observers import FileStorageObserver

SAMPLES = "geoflow-samples-1"


class RunFolder(FileStorageObserver):
    """Sacred's observer, repaired: metrics.json is the run's own."""

    def log_metrics(self, metrics_by_name, info):
        """Sacred would write a metrics.json of its own at every heartbeat, over ours; this experiment logs none of its metrics."""


@dataclass(frozen=True)
class Samples:
    """Networks as they were drawn: weight vectors, the table they are packed by, and the flow's configuration and the sampler's."""

    thetas: Float[Tensor, "nets weights"]
    spec: NetworkSpec
    config: Mapping


def probe(folder: str | Path, cure: str) -> None:
    """Raise OSError, ending in the cure, if a file cannot be made in the folder."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be written ({error.strerror or error}). {cure}") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, that becomes `path` when all is written."""
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_samples(path: Path, samples: Samples) -> None:
    """Write samples as one safetensors file: `thetas`, and spec and configuration as JSON in its metadata."""
    tensors = {"thetas": samples.thetas.contiguous()} | {f"rest.{name}": value for name, value in samples.spec.rest.items()}
    metadata = {"format": SAMPLES, "spec": samples.spec.to_json(), "config": json.dumps(dict(samples.config))}
    with whole(path) as partial:
        save_file(tensors, partial, metadata)


def read_samples(path: Path) -> Samples:
    """Read what `save_samples` wrote. Raises ValueError for a corrupt or foreign file."""
    metadata, tensors = _read(path)
    if metadata.get("format") != SAMPLES:
        raise ValueError(f"{path} holds no samples of this version ({SAMPLES}): its format is {metadata.get('format')!r}.")
    rest = {name.removeprefix("rest."): value for name, value in tensors.items() if name.startswith("rest.")}
    return Samples(tensors["thetas"], NetworkSpec.from_json(metadata["spec"], rest), json.loads(metadata["config"]))


def save_flow(path: Path, flow: Flow) -> None:
    with whole(path) as partial:
        flow.save(partial)


def flow_file(checkpoint: str) -> Path:
    """The flow of a checkpoint: a file, or a run folder that holds one."""
    path = Path(checkpoint).expanduser()
    return path / "flow.safetensors" if path.is_dir() else path


def samples_file(checkpoint: str) -> Path:
    """Where the samples of a run folder lie, if it holds any."""
    return Path(checkpoint).expanduser() / "samples.safetensors"


def described(checkpoint: str) -> Mapping:
    """What the flow of a checkpoint was made with; where only samples are left, what their flow was made with."""
    if not flow_file(checkpoint).exists() and samples_file(checkpoint).exists():
        return read_samples(samples_file(checkpoint)).config
    return Flow.load(flow_file(checkpoint)).config


def _read(path: Path) -> tuple[Mapping, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, or no safetensors file: {error}. Sample again.") from error
