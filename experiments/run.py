"""Train a zoo, fit a flow to it, make new networks, and say how good and how new they are.

python experiments/run.py with flow=geometric
python experiments/run.py with digits seed=1
python experiments/run.py sample with checkpoint=runs/3 count=16
python experiments/run.py evaluate with checkpoint=runs/3
python experiments/run.py transfer with checkpoint=runs/3 'hidden=[32]'
python experiments/run.py curve with checkpoint=runs/3 count=64 steps=128
python experiments/run.py sharpen with checkpoint=runs/3 sharpness=3
"""

# ruff: noqa: F841  Sacred reads the local variables of config functions; a docstring would be one of them

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from assess import Exam, assess, score, spread_and_scores
from draw import generate, load_flow, network_for, reopen, sampling_settings, task_for
from folder import RunFolder, Samples, probe, read_samples, samples_file, save_samples, write_json
from options import FURTHER, NETWORK, InputError, check_keys, complete, device_name, device_of, flow_settings, plainly, zoo_settings
from sacred import SETTINGS, Experiment
from sacred.run import Run
from sacred.utils import apply_backspaces_and_linefeeds

from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import plot_curve, save_figures
from geoflow.evaluation.report import diversity_table, metrics_table, scores_table, write_report
from geoflow.randomness import randomness
from geoflow.training import prepare, train
from geoflow.velocity import VELOCITIES
from geoflow.wiring import spec_of
from geoflow.zoo.store import digest, load_zoo, split_runs

ROOT = Path(__file__).resolve().parents[1]
SIZES = dict.fromkeys(part.name for velocity in VELOCITIES.values() for part in fields(velocity.Sizes))  # all that any velocity has
POWERS = [2**n for n in range(12)]
SHARPER = [0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0]

SETTINGS.CAPTURE_MODE = "sys"  # the default captures by file descriptors, which hides the terminal from the progress bars
ex = Experiment("geoflow", base_dir=ROOT, save_git_info=shutil.which("git") is not None)
ex.captured_out_filter = apply_backspaces_and_linefeeds
ex.observers.append(RunFolder(ROOT / "runs"))


@ex.config
def config():
    # the network and its zoo; None: the task's default, or what the checkpoint was made for
    task = None  # breast_cancer, digits, iris, wine, mnist or fashion; default: breast_cancer
    hidden = None  # widths of the hidden layers; default: [16, 16]
    activation = None  # relu, tanh or gelu; default: relu
    runs = None  # independent training runs
    snapshots = None  # networks kept from each
    zoo = {"epochs": None, "batch": None, "lr": None, "weight_decay": None, "every": None, "schedule": None, "seed": None}  # their training
    heldout = 0.125  # share of the runs that the flow does not see
    part = "test"  # what is scored: test, or validation, a quarter of the training data taken from zoo and flow, to choose settings on
    # the flow
    flow = "geometric"  # euclidean, normalized or geometric
    metric = "inputs"  # how long a row of weights on the inputs is: the rms of what it makes of the training inputs, or as weights
    velocity = "transformer"  # transformer, identified or mlp
    coupling = "independent"  # independent, ot or equivariant_ot
    time = "uniform"  # uniform or beta
    prediction = "preconditioned"  # preconditioned, velocity or endpoint
    sizes = dict(SIZES)  # of the velocity: layers, node, edge, edge_hidden, heads, components; of mlp: width
    iterations = 1000
    batch = 32
    lr = 4e-3
    weight_decay = 1e-3
    ema = 0.999
    every = 250  # iterations between checkpoints
    # new networks
    count = 256
    solver = None  # euler, midpoint, heun or rk4; these three by default as the checkpoint's run has them, else euler, 100, 0
    steps = None
    sharpness = None  # how far to go beyond what the flow learned, away from a Gaussian zoo: better networks, less diverse
    guidance = 0.0  # strength of the pull towards a low training loss
    checkpoint = None  # for the further commands: a run folder or a flow.safetensors
    # where and with which random numbers
    device = "auto"  # auto, cpu or cuda
    seed = 0
    cache = ".cache"  # zoos, and trainings under way


DEFAULTS = config()


@ex.named_config  # everything once, in seconds
def smoke():
    task = "iris"
    hidden = [5]
    runs = 12
    snapshots = 2
    zoo = {"epochs": 12, "batch": 16, "lr": 1e-2, "weight_decay": 0.1, "every": 1, "schedule": "constant"}
    iterations = 20
    batch = 8
    count = 8
    steps = 5


@ex.named_config  # 30-16-16-2, the default job: a narrower field, trained for longer
def breast_cancer():
    task = "breast_cancer"
    hidden = [16, 16]
    sizes = {"node": 32, "edge": 8, "edge_hidden": 16}
    iterations = 2000
    batch = 64


@ex.named_config  # 64-10-10, small and hard: the mean of aligned networks has twice the NLL of the zoo
def digits():
    task = "digits"
    hidden = [10]
    iterations = 3000
    batch = 64
    sharpness = 0.1


for images in ("mnist", "fashion"):  # 784-10-10, the networks of the thesis
    large = {"sizes": {"node": 112, "components": 96}, "iterations": 12000, "batch": 128, "lr": 3e-3, "sharpness": 1.0}
    ex.add_named_config(images, {"task": images, "hidden": [10], **large})


@ex.named_config  # 784-32-32-10, the networks of DeepWeightFlow
def mnist32():
    task = "mnist"
    hidden = [32, 32]
    runs = 1000
    sizes = {"node": 112, "components": 128}
    iterations = 8000
    batch = 64
    lr = 3e-3
    sharpness = 1.5


@ex.option_hook
def known_keys(options):
    """Sacred's own answer to an unknown key suggests nothing."""
    check_keys(options.get("UPDATE") or (), DEFAULTS)


@ex.option_hook
def one_folder(options):
    """-F names the folder of the runs in place of runs/; two observers would dispute the run's number."""
    ex.observers[:] = [RunFolder(options.get("--file_storage") or ROOT / "runs")]
    options["--file_storage"] = None


@ex.config_hook
def checked(config, command_name, logger):
    """Everything that can be seen to be wrong is seen before a run begins."""
    with plainly():
        completed = complete(config, command_name, DEFAULTS)
        if command_name in (main.__name__, *FURTHER):
            probe(ex.observers[0].basedir, "Choose another folder for the runs: python experiments/run.py -F /a/folder with ...")
            probe(ROOT / Path(config["cache"]).expanduser(), "Choose another: cache=/a/folder.")
    return completed


@ex.main
@plainly()
def main(_config, _run):
    """Train a zoo, fit a flow to it, make new networks, and say how good and how new they are."""
    folder, cache, seconds = folder_of(_run), ROOT / Path(_config["cache"]).expanduser(), {}
    device, seed, settings = device_of(_config["device"]), _config["seed"], flow_settings(_config)
    _run.info |= {"device": device_name(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}

    with timed(seconds, "collect"):
        task = task_for(_config["task"], seed, _config["part"])
        network = network_for(task, settings)
        spec = spec_of(network, task.x_train[:2])
        zoo = load_zoo(cache, partial(network_for, task, settings), spec, task, zoo_settings(_config), _config["zoo"]["seed"], device)
        fitted, heldout = split_runs(zoo, _config["heldout"], randomness(seed, "split"))
    with timed(seconds, "prepare"):
        untrained, points = prepare(spec, fitted.networks, settings, task.x_train if _config["metric"] == "inputs" else None)
    with timed(seconds, "train"):
        training = digest({"zoo": zoo.configuration, "heldout": _config["heldout"], "flow": settings})
        checkpoint = cache / f"flow-{task.name}-{training[:16]}.safetensors"
        if checkpoint.exists():
            print(f"Going on with the interrupted training of {checkpoint}.")
        flow = train(untrained.to(device), points.to(device), checkpoint, _config["every"])
        flow.save(folder / "flow.safetensors")
    with timed(seconds, "sample"):
        thetas, paths = generate(flow, network, spec, task, _config)
        save_samples(folder / "samples.safetensors", Samples(thetas, spec, settings | sampling_settings(_config)))
    with timed(seconds, "evaluate"):
        exam = Exam(network, spec, task, device)
        metrics, figures = assess(exam, flow, fitted, heldout, points, thetas, paths, randomness(seed, "evaluate"))
        save_figures(folder / "figures", figures)

    metrics |= {"time": seconds, "flow": _config["flow"], "task": task.name, "seed": seed, "parameters": spec.weights}
    write_json(folder / "metrics.json", metrics)
    write_report(folder, metrics, _config)
    checkpoint.unlink(missing_ok=True)
    print(metrics_table(metrics), f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def sample(_config, _run):
    """Draw new networks from the flow of checkpoint=runs/3."""
    folder = folder_of(_run)
    if _config["guidance"]:
        flow, network, spec, task = reopen(_config)
    else:  # without data
        flow = load_flow(_config)
        network, spec, task = None, flow.spec, None
    thetas, _ = generate(flow, network, spec, task, _config)
    save_samples(folder / "samples.safetensors", Samples(thetas, spec, dict(flow.config) | sampling_settings(_config)))
    print(f"{len(thetas)} networks of {spec.weights} parameters written to {folder / 'samples.safetensors'}")


@ex.command
@plainly()
def evaluate(_config, _run):
    """Score the saved samples of checkpoint=runs/3 on the test set; where there are none, newly drawn ones."""
    saved, seconds = samples_file(_config["checkpoint"]), {}
    if not saved.exists():
        return score_new_networks(_config, _run)
    print(f"The samples of {saved}:")
    samples = read_samples(saved)
    with timed(seconds, "evaluate"):
        task = task_for(samples.config["task"], samples.config["seed"], samples.config["part"])
        exam = Exam(network_for(task, samples.config), samples.spec, task, device_of(_config["device"]))
        metrics = score(exam, samples.thetas)
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
    how = {name: _config[name] for name in ("task", "flow", "solver", "sharpness", "count", "seed")}
    write_json(folder / "curve.json", how | {"steps": found})
    save_figures(folder / "figures", {"curve": plot_curve(found)})
    print(scores_table({f"{steps} steps": one for steps, one in found.items()}), f"Written to {folder}", sep="\n\n")


@ex.command
@plainly()
def sharpen(_config, _run):
    """Score networks that the flow of checkpoint=runs/3 draws with more and more sharpness: what they gain, and how alike they become."""
    if not _config["sharpness"]:
        raise InputError("sharpen goes up from 0 to the sharpness that is asked for: sharpness=2, for example.")
    folder = folder_of(_run)
    flow, network, spec, task = reopen(_config)
    device, seen = device_of(_config["device"]), len(task.x_test)  # as many examples of the training data: to choose by
    exam = Exam(network, spec, task, device)
    training = Exam(network, spec, replace(task, x_test=task.x_train[:seen], y_test=task.y_train[:seen]), device)
    found = {}
    for sharpness in [s for s in SHARPER if s < _config["sharpness"]] + [_config["sharpness"]]:
        thetas, _ = generate(flow, network, spec, task, {**_config, "sharpness": sharpness})
        found[f"{sharpness:g}"] = spread_and_scores(exam, flow, thetas) | {"training": summary(training.single(thetas))}
    how = {name: _config[name] for name in ("task", "flow", "solver", "steps", "count", "seed")}
    write_json(folder / "sharpness.json", how | {"sharpness": found})
    rows = {f"sharpness {s}": one for s, one in found.items()}
    print(scores_table({name: one["generated"] for name, one in rows.items()}))
    print(diversity_table({name: one["diversity"]["generated"] for name, one in rows.items()}), f"Written to {folder}", sep="\n\n")


def score_new_networks(config: Mapping, run: Run) -> None:
    folder, seconds = folder_of(run), {}
    with timed(seconds, "sample"):
        flow, network, spec, task = reopen(config)
        thetas, _ = generate(flow, network, spec, task, config)
        made_for = {name: config[name] for name in NETWORK} | {"hidden": list(config["hidden"])}
        samples = Samples(thetas, spec, dict(flow.config) | made_for | sampling_settings(config))
        save_samples(folder / "samples.safetensors", samples)
    with timed(seconds, "evaluate"):
        metrics = score(Exam(network, spec, task, device_of(config["device"])), thetas)
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
