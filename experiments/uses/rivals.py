"""Compare ensembles of a flow with other ways to get an ensemble, at their cost."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

import torch
from configuration import ex
from lab.architectures import network_settings
from lab.checks import InputError, device_of
from lab.collect import made_with, network_for
from lab.draw import generate, reopen
from lab.folder import flow_file, read_json, write_json
from lab.options import plainly, zoo_settings
from lab.reading import is_read
from rivals.methods import NOT_OF_A_RUN, RIVALS, Rival, Setting, said_by, timed
from rivals.packages import imported
from torch import Tensor

from geoflow.evaluation.ensemble_tables import rivals_table
from geoflow.evaluation.exam import SMALL
from geoflow.evaluation.posterior import mean_and_spread
from geoflow.evaluation.records import pooled_record
from geoflow.outputs import outputs_of
from geoflow.zoo.tasks import Task
from uses.writing import folder_of

REPEATS = 5  # trainings of each way, with seeds of their own
ENSEMBLE = "deep ensemble of 64"  # whose seconds tell what the runs of a zoo cost


@ex.command
@plainly()
def rivals(_config, _run):
    """Score an ensemble of the flow of checkpoint=runs/3 beside deep ensembles, last-layer Laplace, SWAG and SGHMC, with their cost."""
    folder, device, made = folder_of(_run), device_of(_config["device"]), {**made_with(_config), **network_settings(_config)}
    if is_read(made):
        raise InputError(f"rivals trains networks as those of the zoo, and those in {made['zoo']['folder']} do not say how. Train a zoo.")
    if made["zoo"]["origin"] != "independent":
        raise InputError("rivals trains each network from its own start, and the zoo of this flow has one common start.")
    flow, network, spec, task = reopen(_config)
    recipe = {name: value for name, value in zoo_settings(made).items() if name not in NOT_OF_A_RUN} | {"every": 1}
    setting, found = Setting(partial(network_for, task, made), spec, task, recipe, device), {}
    for name, rival in serving_rivals(task.outputs).items():
        print(f"{name}, {REPEATS} times", flush=True)
        several = [timed(partial(rival.way, setting, seed=seed), device) for seed in range(REPEATS)]
        found[name] = _scored([said for said, _ in several], task) | {"seconds": fmean(seconds for _, seconds in several)}
    thetas, seconds = timed(lambda: generate(flow, network, spec, task, _config)[0], device)
    ensembles = [some for some in thetas.split(SMALL) if len(some) == min(SMALL, len(thetas))]
    cost = _cost(_config["checkpoint"], found[ENSEMBLE]["seconds"] / 64 * made["runs"]) | {"sample": seconds}
    ours = _scored([said_by(setting, some) for some in ensembles], task) | {"seconds": sum(cost.values()), "parts": cost}
    found[f"flow, ensemble of {len(ensembles[0])}"] = ours
    how = {name: _config[name] for name in ("task", "network", "flow", "solver", "steps", "start", "sharpness", "count", "seed")}
    write_json(folder / "rivals.json", how | {"outputs": task.outputs, "parameters": spec.weights, "rivals": found})
    print(rivals_table(found, task.outputs), f"Written to {folder}", sep="\n\n")


def serving_rivals(outputs: str) -> dict[str, Rival]:
    """Return the rows of RIVALS that serve a kind of outputs, and say which others are left out.

    Raises InputError with the cure if a package that they need is missing, before any of them is trained.
    """
    serving = {name: rival for name, rival in RIVALS.items() if outputs in rival.outputs}
    for name, rival in RIVALS.items():
        if name not in serving:
            print(f"{name} is left out, because it serves networks for {' and '.join(rival.outputs)} only.")
    try:
        for package in filter(None, (rival.package for rival in serving.values())):
            imported(package)
    except ImportError as error:
        raise InputError(str(error)) from error
    return serving


def _scored(several: Sequence[Tensor], task: Task) -> dict:
    """Score ensembles, each by what its members predict [members, examples, units]. A closed form has one member and needs no pool."""
    members = len(several[0])
    pools = outputs_of(task.outputs).pools if members > 1 else ("linear",)
    each = {pool: [pooled_record(said, task.y_test, pool, task.outputs) for said in several] for pool in pools}
    return {"members": members, "repeats": len(several)} | {
        pool: {name: mean_and_spread(torch.tensor([one[name] for one in scored])) for name in scored[0]} for pool, scored in each.items()
    }


def _cost(checkpoint: str, zoo: float) -> dict[str, float]:
    """Return the seconds that the zoo and the flow were trained for. Those of the zoo follow from what a few of its runs take."""
    metrics: Mapping = read_json(flow_file(checkpoint).parent / "metrics.json")
    return {"zoo": zoo, "flow": metrics["time"]["train"]}
