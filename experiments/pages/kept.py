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
from lab.folder import ROOT, read_json
from sacred.arg_parser import get_config_updates

from pages.studies import STUDIES, Arguments

RESULTS = ROOT / "results"
FREE = ("cache", "device", "every", "checkpoint", "tuning")  # options that do not change the result of a main job
ENSEMBLES = 64  # number of networks in the ensembles that pages show


def folder_of(study: str, label: str, seed: int) -> Path:
    """Return the folder that keeps a run of a study."""
    words = re.findall(r"[\w.=]+", label.replace(",", "").lower())
    return RESULTS / study / f"{'-'.join(words)}-{seed}"


def read(study: str) -> pd.DataFrame:
    """Return the kept runs of a study as a table by label and seed, in the order of the study.

    The columns are named as in the files of a run, such as generated.nll.mean.
    """
    folders = {(label, seed): folder_of(study, label, seed) for label, seed, _ in STUDIES[study].runs()}
    found = {place: _record(folder) for place, folder in folders.items() if (folder / "metrics.json").exists()}
    frame = pd.json_normalize(list(found.values()))
    frame.index = pd.MultiIndex.from_tuples(found, names=["label", "seed"]) if found else pd.Index([])
    return frame


def _record(folder: Path) -> dict:
    metrics, config, ran = (read_json(folder / f"{name}.json") for name in ("metrics", "config", "ran"))
    ensembles = metrics["ensemble"]
    of_64 = {kind: ensembles.get(f"{kind}_{ENSEMBLES}", ensembles[kind]) for kind in ("generated", "zoo")}
    layers = metrics["novelty"].pop("layers", None)
    metrics["novelty"]["least_layer"] = min(layers.values()) if layers else None
    metrics["minutes"] = {phase: seconds / 60 for phase, seconds in metrics.pop("time").items()}
    ran["commit"] = "".join(ran["commit"])
    return {name: value for name, value in metrics.items() if name != "seed"} | {"ensemble": of_64, "config": config, "ran": ran}


def beside(study: str, kind: str) -> Iterator[tuple[str, int, Mapping]]:
    """Yield label, seed and content of each file in which a command kept what it found of a saved flow.

    `kind` names the files: curve, sharpness, transfer-* or guide-*, for example.
    """
    for label, seed, _ in STUDIES[study].runs():
        for path in sorted(folder_of(study, label, seed).glob(f"{kind}.json")):
            yield label, seed, read_json(path)


@cache
def resolved(arguments: Arguments) -> Mapping:
    """Return the complete configuration of `run.py with` these arguments, checked like that of a real run."""
    updates, named = get_config_updates(arguments)
    with redirect_stdout(StringIO()):
        return ex.run("print_config", config_updates=updates, named_configs=named, options={"--loglevel": "ERROR"}).config


def of_the_result(config: Mapping) -> dict:
    """Return the options that decide a result, as they are after a pass through JSON."""
    free = (*FREE, *(() if config["guidance"] else ("guiding",)))
    return json.loads(json.dumps({name: value for name, value in config.items() if name not in free}))


def place_of(study: str, config: Mapping) -> tuple[str, int] | None:
    """Return the label and the seed of the run that has this configuration in the study, or None."""
    wanted = of_the_result(config)
    same = ((label, seed) for label, seed, arguments in STUDIES[study].runs() if of_the_result(resolved(arguments)) == wanted)
    return next(same, None)
