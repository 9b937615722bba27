"""Train a zoo, fit a flow to it, make new networks, and say how good and how new they are.

.venv/bin/python experiments/run.py with flow=geometric
.venv/bin/python experiments/run.py with digits seed=1
.venv/bin/python experiments/run.py sample with checkpoint=runs/3 count=16
.venv/bin/python experiments/run.py evaluate with checkpoint=runs/3
.venv/bin/python experiments/run.py transfer with checkpoint=runs/3 'hidden=[32]'
.venv/bin/python experiments/run.py curve with checkpoint=runs/3 count=64 steps=128
.venv/bin/python experiments/run.py sharpen with checkpoint=runs/3 sharpness=3
.venv/bin/python experiments/run.py stages with checkpoint=runs/3 count=64
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from configuration import ex
from lab.advice import advice
from lab.architectures import network_settings
from lab.assess import Exam, assess, score, spread_and_scores
from lab.collect import at_terminal, cache_of, collect, network_for, task_for
from lab.draw import generate, load_flow, measuring_examples, recalibrated, recalibrates, reopen, sampling_settings
from lab.folder import RunFolder, Samples, commit, config_of, read_samples, samples_file, save_samples, write_json
from lab.options import InputError, device_name, device_of, flow_settings, plainly
from sacred.run import Run
from torch import Tensor

from geoflow.evaluation.comparisons import plot_curve, plot_sharpness
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.report import diversity_table, metrics_table, scores_table, write_report
from geoflow.evaluation.stages import brought_back, layer_by_layer
from geoflow.randomness import randomness
from geoflow.statistics import recalibrate
from geoflow.training import prepare, train
from geoflow.zoo.store import digest

POWERS = [2**n for n in range(12)]
TIMES = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]
LAYER_TIMES = [0.0, 0.5, 0.9]
SHARPER = [0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0]

ex.doc = __doc__


@ex.main
@plainly()
def main(_config, _run):
    """Train a zoo, fit a flow to it, make new networks, and say how good and how new they are."""
    folder, seconds = folder_of(_run), {}
    device, seed, settings = device_of(_config["device"]), _config["seed"], flow_settings(_config)
    _run.info |= {"device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__), "commit": commit()}

    with timed(seconds, "collect"):
        found = collect(_config, device)
        task, network, spec, fitted = found.task, found.network, found.spec, found.fitted
    order = {"shared": "one common start, and their units in one order", "independent": "starts of their own, and their units in any order"}
    velocity, origin = _config["velocity"], _config["zoo"]["origin"]
    print(f"velocity={velocity} for networks with {order[origin]} (zoo.origin={origin}).")
    with timed(seconds, "prepare"):
        untrained, points = prepare(spec, fitted.networks, settings, task.numbers if _config["metric"] == "inputs" else None)
    with timed(seconds, "train"):
        training = digest({"zoo": fitted.configuration, "heldout": _config["heldout"], "flow": settings})
        checkpoint = cache_of(_config) / f"flow-{task.name}-{training[:16]}.safetensors"
        if checkpoint.exists():
            print(f"Going on with the interrupted training of {checkpoint}.")
        flow = train(untrained.to(device), points.to(device), checkpoint, _config["every"], at_terminal())
        flow.save(folder / "flow.safetensors")
    with timed(seconds, "sample"):
        thetas, paths = generate(flow, network, spec, task, _config)
        seen = measuring_examples(spec, task, _config, seed)
        made = settings | sampling_settings(_config) | recalibrated(spec, seen)
        save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    with timed(seconds, "evaluate"):
        exam = Exam(network, spec, task, device)
        metrics, figures = assess(exam, flow, fitted, found.heldout, thetas, paths, randomness(seed, "evaluate"), seen)
        save_figures(folder / "figures", figures)

    metrics |= {"time": seconds, "flow": _config["flow"], "task": task.name, "seed": seed, "parameters": spec.weights}
    write_json(folder / "metrics.json", metrics)
    write_report(folder, metrics, _config)
    checkpoint.unlink(missing_ok=True)
    advised = advice(metrics, _config, _run.meta_info["named_configs"])
    print(metrics_table(metrics), *advised, f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def sample(_config, _run):
    """Draw new networks from the flow of checkpoint=runs/3."""
    folder = folder_of(_run)
    flow = load_flow(_config)
    network, spec, task, seen = None, flow.spec, None, None  # without data
    if _config["guidance"]:
        flow, network, spec, task = reopen(_config)
    elif recalibrates(spec, _config):
        try:
            flow, network, spec, task = reopen(_config)
        except OSError as error:
            print(f"The running statistics are as the flow drew them, not measured anew: {error}")
    if task is not None:
        seen = measuring_examples(spec, task, _config, flow.config["seed"])
    thetas, _ = generate(flow, network, spec, task, _config)
    made = dict(flow.config) | sampling_settings(_config) | recalibrated(spec, seen)
    save_samples(folder / "samples.safetensors", Samples(thetas, spec, made))
    print(f"{len(thetas)} networks of {spec.weights} parameters written to {folder / 'samples.safetensors'}")


@ex.command
@plainly()
def evaluate(_config, _run):
    """Score the saved samples of checkpoint=runs/3 on the test set; where there are none, newly drawn ones."""
    saved, seconds = samples_file(_config["checkpoint"]), {}
    if not saved.exists():
        print(f"{_config['checkpoint']} comes without samples, so evaluate draws {_config['count']} new networks from its flow.")
        return score_new_networks(_config, _run)
    print(f"The samples of {saved}:")
    samples = read_samples(saved)
    with timed(seconds, "evaluate"):
        task = task_for(*(samples.config[name] for name in ("task", "seed", "part", "network")))
        exam = Exam(network_for(task, samples.config), samples.spec, task, device_of(_config["device"]))
        metrics = score(exam, samples.thetas) | {"recalibrated": samples.config.get("recalibrated")}
    return report(metrics | {"time": seconds}, samples, folder_of(_run))


@ex.command
@plainly()
def transfer(_config, _run):
    """Draw networks of another architecture, or for another data set, from the flow of checkpoint=runs/3, and score them."""
    score_new_networks(_config, _run)


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
    save_figures(folder / "figures", {"curve": plot_curve(found)})
    print(scores_table({f"{steps} steps": one for steps, one in found.items()}), f"Written to {folder}", sep="\n\n")


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
    save_figures(folder / "figures", {"sharpness": plot_sharpness(scored, trained, apart)})
    rows = {f"sharpness {s}": one for s, one in found.items()}
    scores = scores_table({name: one["generated"] for name, one in rows.items()})
    print(scores, diversity_table({name: one["diversity"]["generated"] for name, one in rows.items()}), f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def stages(_config, _run):
    """Find where the flow of checkpoint=runs/3 loses quality: score networks of its zoo that it made anew from times on their paths."""
    folder, seed, device = folder_of(_run), _config["seed"], device_of(_config["device"])
    flow, network, spec, task = reopen(_config)
    zoo = collect(config_of(_config["checkpoint"]) | {"cache": _config["cache"]}, device).fitted
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
    print(scores_table({"the networks themselves": itself, **rows}), f"Written to {folder}", sep="\n\n")


def score_new_networks(config: Mapping, run: Run) -> None:
    folder, seconds = folder_of(run), {}
    with timed(seconds, "sample"):
        flow, network, spec, task = reopen(config)
        thetas, _ = generate(flow, network, spec, task, config)
        made = recalibrated(spec, measuring_examples(spec, task, config, flow.config["seed"]))
        samples = Samples(thetas, spec, dict(flow.config) | network_settings(config) | sampling_settings(config) | made)
        save_samples(folder / "samples.safetensors", samples)
    with timed(seconds, "evaluate"):
        metrics = score(Exam(network, spec, task, device_of(config["device"])), thetas) | made
    report(metrics | {"time": seconds}, samples, folder)


def report(metrics: dict, samples: Samples, folder: Path) -> None:
    """Write and show the scores of generated networks alone."""
    metrics |= {name: samples.config[name] for name in ("flow", "task", "seed")} | {"parameters": samples.spec.weights}
    write_json(folder / "metrics.json", metrics)
    print(metrics_table(metrics), f"Written to {folder}", sep="\n\n")


def folder_of(run: Run) -> Path:
    """The folder of this run. Raises InputError where Sacred was told to keep none."""
    folders = [observer.dir for observer in run.observers if isinstance(observer, RunFolder)]
    if not folders:
        raise InputError("This command writes a run folder: leave out --unobserved.")
    return Path(folders[0])


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[phase] = perf_counter() - start


if __name__ == "__main__":
    ex.run_commandline()
