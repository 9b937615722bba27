"""Read the runs that results/ keeps into a table, with one row for each run."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pandas as pd
from configuration import ex
from lab.architectures import architectures_of
from lab.folder import OLDER, ROOT, read_json, today
from sacred.arg_parser import get_config_updates

from pages.studies import STUDIES, Arguments

RESULTS = ROOT / "results"
FREE = (
    "cache",
    "device",
    "memory",
    "every",
    "checkpoint",
    "tuning",
    "yardstick",
    "widths",
    "depths",
)  # they change no result of a main job
ENSEMBLES = 64  # number of networks in the ensembles that pages show


def folder_of(study: str, label: str, seed: int) -> Path:
    """Return the folder that keeps a run of a study."""
    words = re.findall(r"[\w.=]+", label.replace(",", "").lower())
    return RESULTS / study / f"{'-'.join(words)}-{seed}"


def read(study: str) -> pd.DataFrame:
    """Return the kept runs of a study as a table by label and seed, in the order of the study.

    A run of several architectures has a row for each, with the architecture behind the label. The columns are named as in the files of a
    run, such as generated.nll.mean.
    """
    folders = {(label, seed): folder_of(study, label, seed) for label, seed, _ in STUDIES[study].runs()}
    kept = {place: folder for place, folder in folders.items() if (folder / "metrics.json").exists()}
    found = {(label + more, seed): record for (label, seed), folder in kept.items() for more, record in _records(folder).items()}
    frame = pd.json_normalize(list(found.values()))
    frame.index = pd.MultiIndex.from_tuples(found, names=["label", "seed"]) if found else pd.Index([])
    return frame


def missing(study: str) -> int:
    """Return how many runs of a study are not kept."""
    return sum(not (folder_of(study, label, seed) / "metrics.json").exists() for label, seed, _ in STUDIES[study].runs())


def _records(folder: Path) -> dict[str, dict]:
    """Return what a run says of each of its architectures, by what is added to the label of the run."""
    metrics, config, ran = (read_json(folder / f"{name}.json") for name in ("metrics", "config", "ran"))
    config = OLDER | config
    common = {name: value for name, value in metrics.items() if name != "architectures"}
    blocks, parts = metrics.get("architectures", {"": {}}), architectures_of(today(config))
    return {
        f", {label}" if label else "": _record(common | block, {**config, **(parts[label] if label else {})}, dict(ran))
        for label, block in blocks.items()
    }


def _record(metrics: dict, config: Mapping, ran: dict) -> dict:
    metrics = dict(metrics)
    ensembles = metrics["ensemble"]
    of_64 = {kind: ensembles.get(f"{kind}_{ENSEMBLES}", ensembles[kind]) for kind in ("generated", "zoo")}
    layers = metrics["novelty"].get("layers")
    least = {"least_layer": min(layers.values()) if layers else None}
    metrics["novelty"] = {name: value for name, value in metrics["novelty"].items() if name != "layers"} | least
    metrics["minutes"] = {phase: seconds / 60 for phase, seconds in metrics.pop("time").items()}
    ran["commit"] = "".join(ran["commit"])
    return {name: value for name, value in metrics.items() if name != "seed"} | {"ensemble": of_64, "config": config, "ran": ran}


def beside(study: str, kind: str) -> Iterator[tuple[str, int, Mapping]]:
    """Yield label, seed and content of each file in which a command kept what it found of a saved flow.

    `kind` names the files: curve, sharpness, widths, transfer-* or guide-*, for example. Of several architectures the label is that of the
    first.
    """
    for label, seed, _ in STUDIES[study].runs():
        folder = folder_of(study, label, seed)
        for path in sorted(folder.glob(f"{kind}.json")):
            first = next(iter(read_json(folder / "metrics.json").get("architectures", {"": {}})))
            yield f"{label}, {first}" if first else label, seed, read_json(path)


def levels_of(frame: pd.DataFrame) -> Iterator[tuple[str, int, Mapping]]:
    """Yield label, seed and `condition` of metrics.json of each run whose flow was told the NLL of its networks."""
    if "condition.levels" in frame:
        for (label, seed), run in frame.dropna(subset="condition.levels").iterrows():
            yield label, seed, {name: run[f"condition.{name}"] for name in ("levels", "networks", "strength", "rank_correlation")}


@cache
def resolved(arguments: Arguments) -> Mapping:
    """Return the complete configuration of `run.py with` these arguments, checked like that of a real run."""
    updates, named = get_config_updates(arguments)
    with redirect_stdout(StringIO()):
        return ex.run("print_config", config_updates=updates, named_configs=named, options={"--loglevel": "ERROR"}).config


def of_the_result(config: Mapping) -> dict:
    """Return the options that decide a result, as they are after a pass through JSON."""
    free = free_options(config["guidance"] != 0 or config["polish"] != 0)
    return json.loads(json.dumps({name: value for name, value in config.items() if name not in free}))


def free_options(labels_seen: bool) -> tuple[str, ...]:
    """Return the options that change no result of a main job. Those of `guiding` change none where nothing is guided or polished."""
    return FREE if labels_seen else (*FREE, "guiding")


def place_of(study: str, config: Mapping) -> tuple[str, int] | None:
    """Return the label and the seed of the run that has this configuration in the study, or None."""
    wanted = of_the_result(config)
    same = ((label, seed) for label, seed, arguments in STUDIES[study].runs() if of_the_result(resolved(arguments)) == wanted)
    return next(same, None)
