"""Read the runs that results/ keeps: one row of a table for each run, with everything that was measured."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
from configuration import ex
from lab.folder import ROOT, read_json
from sacred.arg_parser import get_config_updates

from pages.studies import STUDIES, Arguments

RESULTS = ROOT / "results"
FREE = ("cache", "device", "every", "checkpoint")  # options that change nothing in a result
ENSEMBLES = 64  # networks of the ensembles that pages speak of


def folder_of(study: str, label: str, seed: int) -> Path:
    """Where a run of a study is kept."""
    words = re.findall(r"[\w.=]+", label.replace(",", "").lower())
    return RESULTS / study / f"{'-'.join(words)}-{seed}"


def read(study: str) -> pd.DataFrame:
    """The kept runs of a study by label and seed, in the study's order; the columns are named as in its files: generated.nll.mean."""
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
    """Label, seed and content of what a further command found of the kept flows: curve, sharpness or transfer-*."""
    for label, seed, _ in STUDIES[study].runs():
        for path in sorted(folder_of(study, label, seed).glob(f"{kind}.json")):
            yield label, seed, read_json(path)


def resolved(arguments: Arguments) -> Mapping:
    """The whole configuration of `run.py with` these arguments, checked like that of a real run."""
    updates, named = get_config_updates(arguments)
    with redirect_stdout(StringIO()):
        return ex.run("print_config", config_updates=updates, named_configs=named, options={"--loglevel": "ERROR"}).config


def of_the_result(config: Mapping) -> dict:
    """The options that decide a result, as JSON has them."""
    return json.loads(json.dumps({name: value for name, value in config.items() if name not in FREE}))


def place_of(study: str, config: Mapping) -> tuple[str, int] | None:
    """Label and seed of the study's run that has this configuration."""
    wanted = of_the_result(config)
    same = ((label, seed) for label, seed, arguments in STUDIES[study].runs() if of_the_result(resolved(arguments)) == wanted)
    return next(same, None)
