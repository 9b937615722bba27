"""Find what a saved flow gains and loses with the steps of the solver, with sharpness, and along its paths."""

from dataclasses import replace

import torch
from configuration import ex
from lab.checks import device_of
from lab.collect import collect_own
from lab.draw import generate, measuring_examples, reopen
from lab.folder import write_json
from lab.options import plainly
from torch import Tensor

from geoflow.evaluation.comparisons import plot_curve, plot_sharpness
from geoflow.evaluation.exam import Exam, spread_and_scores
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.stages import brought_back, layer_by_layer
from geoflow.evaluation.tables import diversity_table, scores_table
from geoflow.randomness import randomness
from geoflow.statistics import recalibrate
from uses.writing import folder_of

POWERS = [2**n for n in range(12)]
TIMES = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
LAYER_TIMES = [0.0, 0.5, 0.9]
SHARPER = [0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0]


@ex.command
@plainly()
def curve(_config, _run):
    """Score networks that the flow of checkpoint=runs/3 draws in 1, 2, 4 and more steps of the solver, up to steps=128."""
    folder = folder_of(_run)
    flow, network, spec, task = reopen(_config)
    exam = Exam(network, spec, task, device_of(_config["device"]))
    numbers = [n for n in POWERS if n < _config["steps"]] + [_config["steps"]]
    found = {steps: summary(exam.single(generate(flow, network, spec, task, {**_config, "steps": steps})[0])) for steps in numbers}
    how = {name: _config[name] for name in ("task", "flow", "solver", "start", "sharpness", "count", "seed")}
    write_json(folder / "curve.json", how | {"steps": found})
    save_figures(folder / "figures", {"curve": plot_curve(found, outputs=task.outputs)})
    print(scores_table({f"{steps} steps": one for steps, one in found.items()}, task.outputs), f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def sharpen(_config, _run):
    """Score networks that the flow of checkpoint=runs/3 draws with more and more sharpness: what they gain, and how alike they become."""
    folder = folder_of(_run)
    flow, network, spec, task = reopen(_config)
    device, seen = device_of(_config["device"]), len(task.x_test)  # as many examples of the training data: to choose by
    exam = Exam(network, spec, task, device)
    training = Exam(network, spec, replace(task, x_test=task.x_train[:seen], y_test=task.y_train[:seen]), device)
    found = {}
    for sharpness in [s for s in SHARPER if s < _config["sharpness"]] + [_config["sharpness"]]:
        thetas, _ = generate(flow, network, spec, task, {**_config, "sharpness": sharpness})
        found[f"{sharpness:g}"] = spread_and_scores(exam, flow, thetas) | {"training": summary(training.single(thetas))}
    how = {name: _config[name] for name in ("task", "flow", "solver", "steps", "start", "count", "seed")}
    write_json(folder / "sharpness.json", how | {"sharpness": found})
    by_number = {float(sharpness): one for sharpness, one in found.items()}
    scored, trained = ({s: one[part] for s, one in by_number.items()} for part in ("generated", "training"))
    apart = {s: one["diversity"]["generated"]["distance"] for s, one in by_number.items() if _config["count"] > 1}
    save_figures(folder / "figures", {"sharpness": plot_sharpness(scored, trained, apart, outputs=task.outputs)})
    rows = {f"sharpness {s}": one for s, one in found.items()}
    scores = scores_table({name: one["generated"] for name, one in rows.items()}, task.outputs)
    diversity = diversity_table({name: one["diversity"]["generated"] for name, one in rows.items()}, task.outputs)
    print(scores, diversity, f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def stages(_config, _run):
    """Find where the flow of checkpoint=runs/3 loses quality: score networks of its zoo that it made anew from times on their paths."""
    folder, seed, device = folder_of(_run), _config["seed"], device_of(_config["device"])
    flow, network, spec, task = reopen(_config)
    zoo = collect_own(_config).fitted
    some = zoo.networks[torch.randperm(len(zoo.networks), generator=randomness(seed, "stages"))[: _config["count"]]]
    exam, seen = Exam(network, spec, task, device), measuring_examples(spec, task, _config, flow.config["seed"])

    def scored(thetas: Tensor) -> dict:
        return summary(exam.single(thetas if seen is None else recalibrate(network, spec, thetas, seen)))

    made = brought_back(flow, some, TIMES, randomness(seed, "sample"), _config["solver"], _config["steps"])
    whole = {f"{t:g}": scored(one) for t, one in made.items()}
    layers = {f"{t:g}": {name: scored(one) for name, one in layer_by_layer(flow, some, made[t]).items()} for t in LAYER_TIMES}
    how = {name: _config[name] for name in ("task", "network", "flow", "solver", "steps", "count", "seed")}
    itself = scored(some)
    write_json(folder / "stages.json", how | {"zoo": itself, "whole": whole, "layers": layers})
    rows = {f"from t = {t}": one for t, one in whole.items()}
    rows |= {f"from t = {t}, {name or 'the rest'} alone": one for t, several in layers.items() for name, one in several.items()}
    print(scores_table({"the networks themselves": itself, **rows}, task.outputs), f"Written to {folder}", sep="\n\n")
