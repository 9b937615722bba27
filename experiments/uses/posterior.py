"""Compare ensembles of generated networks with ensembles of as many trained ones."""

import torch
from configuration import ex
from jaxtyping import Shaped
from lab.architectures import own_label
from lab.checks import device_of
from lab.collect import another_zoo, collect_each, fitted_to, made_with, outside_of
from lab.draw import generate, reopen
from lab.ensembles import deep_ensemble, figures_of, measure
from lab.folder import write_json
from lab.options import plainly

from geoflow.evaluation.ensemble_tables import ensembles_table
from geoflow.evaluation.exam import Exam
from geoflow.evaluation.plots import save_figures
from geoflow.randomness import randomness
from geoflow.zoo.tasks import Task
from uses.writing import folder_of, timed

AUROC = "The last columns say how well entropy and information tell examples of another task from their own (AUROC): .5 is chance."


@ex.command
@plainly()
def posterior(_config, _run):
    """Score ensembles of 1, 2, 4 and more networks that the flow of checkpoint=runs/3 draws, beside as many networks of its zoo."""
    folder, device, seconds = folder_of(_run), device_of(_config["device"]), {}
    flow, network, spec, task = reopen(_config)
    with timed(seconds, "collect"):
        made = made_with(_config)
        each = collect_each(made, device)
        zoo, same = each[own_label(made, _config)].fitted, fitted_to(flow, each)
    if not same:
        print(another_zoo(made))
    with timed(seconds, "sample"):
        thetas, _ = generate(flow, network, spec, task, _config)
    trained = deep_ensemble(zoo, _config["count"], randomness(_config["seed"], "deep ensemble"))
    with timed(seconds, "evaluate"):
        found = measure(Exam(network, spec, task, device), {"generated": thetas, "zoo": trained}, _others(task, flow.config["seed"]))
    how = {name: _config[name] for name in ("task", "network", "flow", "solver", "steps", "start", "sharpness", "count", "seed")}
    found = how | {"parameters": spec.weights, "zoo_runs": len(trained), "zoo_of_the_flow": same, "time": seconds} | found
    write_json(folder / "posterior.json", found)
    save_figures(folder / "figures", figures_of(found, f"{_config['flow']} flow on {task.name}"))
    print(ensembles_table(found), *([AUROC] if found["outside"] else []), f"Written to {folder}", sep="\n\n")


def _others(task: Task, seed: int) -> dict[str, Shaped[torch.Tensor, "examples ..."]]:
    """Return the inputs of other tasks that these networks can read. Where data are missing, say so and go on without them."""
    try:
        return outside_of(task, seed)
    except OSError as error:
        print(f"Examples of other tasks are left out: {error}")
        return {}
