"""Keep what a run made: its folder, written so that a crash leaves no half file."""

import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from geoflow import flow as flows
from geoflow.files import read_tensors, under, whole, write_tensors
from geoflow.spec import NetworkSpec
from geoflow.zoo.store import ADDED

with warnings.catch_warnings():  # sacred imports pkg_resources, which complains of its age at every start
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    from sacred.observers import FileStorageObserver
    from sacred.utils import SacredError

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = "geoflow-samples-1"
OF_SACRED = {"config.json", "run.json", "info.json", "cout.txt"}  # what Sacred writes of every run
# how runs were made that are older than these options
OLDER = {"network": "mlp", "norm": "none", "width": None, "depth": None, "start": 0.0, "recalibrate": "auto"}


class RunFolder(FileStorageObserver):
    """Sacred's observer, repaired: metrics.json is the run's own, and a mistake of the user leaves no folder without results."""

    def failed_event(self, fail_time, fail_trace):
        """Sacred keeps the folder of every failed run. It says nothing new where the user was told what to set right."""
        super().failed_event(fail_time, fail_trace)
        nothing_made = {path.name for path in Path(self.dir).iterdir()} <= OF_SACRED
        if isinstance(sys.exc_info()[1], SacredError) and nothing_made:
            shutil.rmtree(self.dir)

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


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def commit() -> str:
    """What the checkout is at; with a + where files have changed since, besides those that `make results` writes. Empty outside git."""
    if shutil.which("git") is None:
        return ""
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!README.md")
    found, dirty = (subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True) for words in (("rev-parse", "HEAD"), changed))
    return "" if found.returncode else found.stdout.strip() + "+" * bool(dirty.stdout)


def check_library(imported: str) -> None:
    """Raise OSError where geoflow is imported from elsewhere: the record of a run would name a commit that did not make it."""
    if (place := Path(imported).resolve().parents[1]) != ROOT:
        raise OSError(
            f"geoflow is imported from {place}, not from {ROOT}, whose commit a run records. Set PYTHONPATH={ROOT}, or install it."
        )


def write_json(path: Path, content: Mapping) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def setting(config: Mapping, option: str):
    """The value of an option, which may stand in a group, as zoo.origin."""
    group, _, name = option.rpartition(".")
    return config[group][name] if group else config[name]


def today(config: Mapping) -> dict:
    """The configuration of a run, a flow or its samples in today's words, with options that it is older than."""
    config = flows.today(config)
    if "task" in config:  # experiments/run.py made it
        config = OLDER | config
    return config | {"zoo": ADDED | dict(config["zoo"])} if isinstance(config.get("zoo"), Mapping) else config


def save_samples(path: Path, samples: Samples) -> None:
    """Write samples as one safetensors file: `thetas`, and spec and configuration as JSON in its metadata."""
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
    """The flow of a checkpoint: a file, or a run folder that holds one."""
    path = Path(checkpoint).expanduser()
    return path / "flow.safetensors" if path.is_dir() else path


def samples_file(checkpoint: str) -> Path:
    """Where the samples of a run folder lie, if it holds any."""
    return Path(checkpoint).expanduser() / "samples.safetensors"


def sampled_with(checkpoint: str, names: Iterable[str]) -> dict:
    """Those of the named settings that the run folder around a checkpoint has in its config.json."""
    path = flow_file(checkpoint).parent / "config.json"
    config = read_json(path) if path.exists() else {}
    return {name: config[name] for name in names if config.get(name) is not None}


def config_of(checkpoint: str) -> Mapping:
    """The configuration of the run around a checkpoint. Raises FileNotFoundError where there is only a flow."""
    path = flow_file(checkpoint).parent / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: this command needs the run folder of the flow, which says how its zoo was trained.")
    return today(read_json(path))


def described(checkpoint: str) -> Mapping:
    """What the flow of a checkpoint was made with; where only samples are left, what their flow was made with."""
    flow, samples = flow_file(checkpoint), samples_file(checkpoint)
    if samples.parent.is_dir() and not (flow.exists() or samples.exists()):
        raise FileNotFoundError(f"The folder {checkpoint} holds neither a flow nor samples. A run writes both, sample the latter.")
    if not flow.exists() and samples.exists():
        return read_samples(samples).config
    return today(flows.Flow.load(flow).config)
