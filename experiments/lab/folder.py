"""Read and write run folders, so that a crash leaves no half-written file."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from sacred.observers import FileStorageObserver
from sacred.utils import SacredError
from torch import Tensor

from geoflow import flow as flows
from geoflow.files import read_tensors, under, whole, write_tensors
from geoflow.spec import NetworkSpec
from geoflow.zoo.store import ADDED

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = "geoflow-samples-1"
OF_SACRED = {"config.json", "run.json", "info.json", "cout.txt"}  # the files that Sacred writes for every run
# the values that these options had in runs that do not record them
OLDER = {"network": "mlp", "norm": "none", "width": None, "depth": None, "start": 0.0, "recalibrate": "auto", "probes": None}
OLDER |= {"condition": "none", "condition_dropout": 0.1, "condition_strength": 1.0, "ask": None, "polish": 0, "memory": 1.0}
OLDER |= flows.PLAIN
OLDER_ZOO = {"folder": None, "entry": None}


class RunFolder(FileStorageObserver):
    """Write run folders as Sacred's observer does, with two repairs.

    The run writes metrics.json itself. A mistake of the user leaves no folder without results.
    """

    def failed_event(self, fail_time, fail_trace):
        """Remove the folder if the user made a mistake and nothing was made. The message already says what Sacred would keep."""
        super().failed_event(fail_time, fail_trace)
        nothing_made = {path.name for path in Path(self.dir).iterdir()} <= OF_SACRED
        if isinstance(sys.exc_info()[1], SacredError) and nothing_made:
            shutil.rmtree(self.dir)

    def log_metrics(self, metrics_by_name, info):
        """Write nothing: Sacred would replace the metrics.json of the run at every heartbeat. No metrics are logged through Sacred."""


@dataclass(frozen=True)
class Samples:
    """Hold drawn networks: their weight vectors, the table that packs them, and the configuration of the flow and the sampler."""

    thetas: Float[Tensor, "nets weights"]
    spec: NetworkSpec
    config: Mapping


def probe(folder: str | Path, cure: str) -> None:
    """Raise OSError if no file can be made in the folder. The message ends with `cure`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"The folder {folder} cannot be written ({error.strerror or error}). {cure}") from error


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def commit() -> str:
    """Return the commit of the checkout, with a + if files have changed since. The text is empty outside git.

    The files that `make results` writes do not count as changed.
    """
    if shutil.which("git") is None:
        return ""
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!README.md")
    found, dirty = (subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True) for words in (("rev-parse", "HEAD"), changed))
    return "" if found.returncode else found.stdout.strip() + "+" * bool(dirty.stdout)


def check_library(imported: str) -> None:
    """Raise OSError if geoflow is imported from another folder. The record of a run would then name the wrong commit."""
    if (place := Path(imported).resolve().parents[1]) != ROOT:
        raise OSError(
            f"geoflow is imported from {place}, not from {ROOT}, whose commit a run records. Set PYTHONPATH={ROOT}, or install it."
        )


def write_json(path: Path, content: Mapping) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def today(config: Mapping) -> dict:
    """Return the configuration of a run, a flow or samples in today's words, with the options that it did not have yet."""
    config = flows.today(config)
    if "task" in config:  # experiments/run.py made it
        config = OLDER | config
    return config | {"zoo": ADDED | OLDER_ZOO | dict(config["zoo"])} if isinstance(config.get("zoo"), Mapping) else config


def save_samples(path: Path, samples: Samples) -> None:
    """Write samples as one safetensors file. Spec and configuration are JSON in its metadata."""
    tensors = {"thetas": samples.thetas.contiguous()} | {f"rest.{name}": value for name, value in samples.spec.rest.items()}
    metadata = {"format": SAMPLES, "spec": samples.spec.to_json(), "config": json.dumps(dict(samples.config))}
    write_tensors(path, tensors, metadata)


def read_samples(path: Path) -> Samples:
    """Read what `save_samples` wrote. Raises ValueError for a corrupt or foreign file."""
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != SAMPLES:
        raise ValueError(f"{path} holds no samples of this version ({SAMPLES}): its format is {metadata.get('format')!r}.")
    return Samples(
        tensors["thetas"], NetworkSpec.from_json(metadata["spec"], under("rest.", tensors)), today(json.loads(metadata["config"]))
    )


def flow_file(checkpoint: str) -> Path:
    """Return the path of the flow file. A checkpoint is that file, or a run folder that holds it."""
    path = Path(checkpoint).expanduser()
    return path / "flow.safetensors" if path.is_dir() else path


def samples_file(checkpoint: str, label: str = "") -> Path:
    """Return the path of the samples in a run folder, whether it holds any or not.

    A flow for several architectures has samples of each, in a folder with the label of the architecture.
    """
    return Path(checkpoint).expanduser() / label / "samples.safetensors"


def sampled_with(checkpoint: str, names: Iterable[str]) -> dict:
    """Return those of the named settings that config.json records in the run folder of a checkpoint."""
    path = flow_file(checkpoint).parent / "config.json"
    config = read_json(path) if path.exists() else {}
    return {name: config[name] for name in names if config.get(name) is not None}


def configured(checkpoint: str) -> bool:
    """Return whether a checkpoint lies in the folder of a run, which says how its zoo was trained."""
    return (flow_file(checkpoint).parent / "config.json").exists()


def config_of(checkpoint: str) -> Mapping:
    """Return the configuration of the run of a checkpoint. Raises FileNotFoundError if there is only a flow."""
    path = flow_file(checkpoint).parent / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: this command needs the run folder of the flow, which says how its zoo was trained.")
    return today(read_json(path))


def described(checkpoint: str) -> Mapping:
    """Return the configuration of the flow of a checkpoint. If only samples are left, return the one that they record."""
    flow, samples = flow_file(checkpoint), samples_file(checkpoint)
    if samples.parent.is_dir() and not (flow.exists() or samples.exists()):
        raise FileNotFoundError(
            f"The folder {checkpoint} holds neither a flow nor samples. The main job writes both, and the command sample writes samples."
        )
    if not flow.exists() and samples.exists():
        return read_samples(samples).config
    return today(flows.Flow.load(flow).config)
