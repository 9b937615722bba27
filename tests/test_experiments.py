"""The main job and the further commands, from the configuration to the files of a run."""

import gzip
import json
import math
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import geoflow
from geoflow import training
from geoflow.evaluation.baselines import BASELINES
from geoflow.flow import Flow
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.statistics import statistics_of
from geoflow.velocity import VELOCITIES, complete_sizes
from geoflow.zoo import store
from geoflow.zoo.networks import mlp
from geoflow.zoo.recipes import zoo_defaults
from geoflow.zoo.store import read_zoo
from geoflow.zoo.tasks import TASKS, load_task

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
FILES = {
    "config.json",
    "info.json",
    "run.json",
    "metrics.json",
    "flow.safetensors",
    "samples.safetensors",
    "report.md",
    "figures",
    "cout.txt",
}
FIGURES = {"scores", "loss", "weights", "distances"}
STATISTICS = {"mean": float, "std": float}
SCORES = {"accuracy": STATISTICS, "nll": STATISTICS, "ece": STATISTICS}
PLACED = {**SCORES, "novelty": float, "spread": float}
POOLED = {"accuracy": float, "nll": float, "ece": float}
ENSEMBLE = {"n": int, **POOLED, "log_pool": POOLED}
PAIR = {"iou": float, "against": int, "jensen_shannon": float, "wasserstein": float}
TRAINED = {"folder": None, "entry": None}  # options of zoos that are read
SCHEMA = {
    "zoo": SCORES,
    "generated": SCORES,
    "baselines": {name: PLACED for name in ("interpolation", "gaussian", "pca_gaussian", "noised", "retrieval")}
    | {name: {**PLACED, "spread": type(None)} for name in ("mean_network", "rescaled_mean")},
    "ensemble": {"generated": ENSEMBLE, "zoo": ENSEMBLE},
    "diversity": dict.fromkeys(("zoo", "generated"), dict.fromkeys(("distance", "disagreement"), float)),
    "pairwise": {"generated_generated": PAIR, "generated_zoo": PAIR, "zoo_zoo": PAIR},
    "novelty": dict.fromkeys(("generated_to_train", "heldout_to_train", "zoo_leave_one_out", "ratio", "copies", "spread"), float)
    | {"layers": {"0": float, "2": float}},
    **dict.fromkeys(("time", "memory"), dict.fromkeys(("collect", "prepare", "train", "sample", "evaluate"), float)),
    "flow": str,
    "task": str,
    "seed": int,
    "parameters": int,
    "recalibrated": type(None),
}

pytestmark = pytest.mark.usefixtures("experiments_on_path")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs and the cache of all these tests lie."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def finished(place) -> Path:
    """The folder of one smoke run."""
    return launch(place)


def launch(place: Path, command: str = "main", named=("smoke",), **config) -> Path:
    """Run a command in this process; the folder that it wrote."""
    from run import ex

    ex.run(command, {"cache": str(place / "cache"), **config}, named, options={"--file_storage": str(place / "runs")})
    return place / "runs" / ex.current_run._id


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def timeless(folder: Path) -> dict:
    """What was measured in a run, without the time and the memory that it took."""
    return {name: value for name, value in read(folder, "metrics.json").items() if name not in ("time", "memory")}


def types_of(value):
    return {name: types_of(one) for name, one in value.items()} if isinstance(value, dict) else type(value)


def say(argv: str, capsys) -> str:
    """What the command line answers to a mistake, besides a non-zero exit status."""
    from run import ex

    with pytest.raises(SystemExit) as stopped:
        ex.run_commandline(f"run.py {argv}")
    assert stopped.value.code == 1
    return capsys.readouterr().err


# The main job


def test_a_run_leaves_its_files(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    assert {path.stem for path in (finished / "figures").iterdir()} == FIGURES
    for path in (finished / "figures").iterdir():
        picture = matplotlib.image.imread(path)[..., :3]
        assert min(picture.shape[:2]) > 200 and picture.std() > 0.01, f"{path.name} is blank"
    assert all(f"figures/{name}.png" in (finished / "report.md").read_text() for name in FIGURES)
    assert read(finished, "run.json")["status"] == "COMPLETED"


def test_metrics_have_their_schema(finished):
    metrics = read(finished, "metrics.json")
    assert types_of(metrics) == SCHEMA
    assert set(metrics["baselines"]) == set(BASELINES)
    assert (metrics["flow"], metrics["task"], metrics["seed"], metrics["parameters"]) == ("geometric", "iris", 0, 4 * 5 + 5 + 5 * 3 + 3)
    assert metrics["ensemble"]["generated"]["n"] == metrics["ensemble"]["zoo"]["n"] == 8
    assert metrics["novelty"]["ratio"] == metrics["novelty"]["generated_to_train"] / metrics["novelty"]["zoo_leave_one_out"]
    assert all(seconds > 0 for seconds in metrics["time"].values()) and all(held > 0 for held in metrics["memory"].values())


def test_the_configuration_is_recorded_completely(finished):
    config = read(finished, "config.json")
    absent = {
        "width",
        "depth",
        "checkpoint",
        "common",
        "examples",
        "probes",
        "ask",
        "pool",
        "components",
        "folder",
        "entry",
    }  # an mlp has no width, independent runs no common start, a zoo that is trained no folder, and a flow on all weights no components
    assert {name for name, value in {**config, **config["zoo"]}.items() if value is None} == absent
    assert (config["network"], config["norm"], config["metric"], config["zoo"]["origin"]) == ("mlp", "none", "inputs", "independent")
    assert (config["hidden"], config["activation"], config["zoo"]["epochs"]) == ([5], "relu", 12)


def test_samples_load_into_the_network(finished):
    from lab.folder import read_samples

    samples, network = read_samples(finished / "samples.safetensors"), mlp(4, [5], 3)
    assert samples.thetas.shape == (8, samples.spec.weights) and samples.thetas.isfinite().all()
    network.load_state_dict(geoflow.unpack(samples.spec, samples.thetas[0]), strict=True)
    assert samples.config["sampling"] == {
        "solver": "euler",
        "steps": 5,
        "start": 0.0,
        "sharpness": 0.0,
        "ask": None,
        "condition_strength": 1.0,
        "guidance": 0.0,
        "guiding": {
            "at": "point", "unit": "velocity", "schedule": "constant", "yields": False, "repeats": 1, "examples": None, "batch": 1000,
        },
        "polish": 0,
        "recalibrate": "auto",
        "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"flow": "euclidean", "velocity": "mlp", "coupling": "ot", "time": "beta", "solver": "heun", "prediction": "velocity"},
        {"flow": "normalized", "coupling": "equivariant_ot", "solver": "midpoint", "prediction": "endpoint", "guidance": 0.1},
        {"flow": "geometric", "weighting": "uniform"},
    ],
    ids=lambda options: options["flow"],
)
def test_other_flows_share_the_cached_zoo(finished, place, monkeypatch, options):
    monkeypatch.setattr(store, "train_zoo", None)  # so a second training would fail
    metrics, first = read(launch(place, **options), "metrics.json"), read(finished, "metrics.json")
    assert types_of(metrics) == SCHEMA
    assert metrics["flow"] == options["flow"] and metrics["zoo"] == first["zoo"]


def test_without_alignment_the_yardsticks_are_the_same(finished, place):
    """Baselines and distances of the zoo are those of aligned networks, whatever the flow saw."""
    metrics, first = (read(folder, "metrics.json") for folder in (launch(place, align=False), finished))
    assert metrics["baselines"]["mean_network"]["nll"]["mean"] == pytest.approx(first["baselines"]["mean_network"]["nll"]["mean"], rel=1e-3)
    assert metrics["diversity"]["zoo"]["distance"] == pytest.approx(first["diversity"]["zoo"]["distance"], rel=1e-3)
    assert metrics["novelty"]["zoo_leave_one_out"] == pytest.approx(first["novelty"]["zoo_leave_one_out"], rel=1e-3)


def test_another_seed_is_another_split_and_zoo(finished, place):
    metrics, first = (read(folder, "metrics.json") for folder in (launch(place, seed=1, iterations=2), finished))
    assert metrics["seed"] == 1 and metrics["zoo"] != first["zoo"]


def test_an_interrupted_run_goes_on_to_the_same_result(finished, place, monkeypatch, capsys):
    from lab.options import Interrupted

    step, done = training.train_step, []

    def interrupted(*args):
        if len(done) == 12:
            raise KeyboardInterrupt
        done.append(args)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted)
        with pytest.raises(Interrupted, match="The same command goes on"):
            launch(place, every=5)
    stopped = max((place / "runs").glob("[0-9]*"), key=lambda path: int(path.name))
    assert read(stopped, "run.json")["status"] == "INTERRUPTED"
    assert not (stopped / "metrics.json").exists()

    again = launch(place, every=5)
    assert "Going on with the interrupted training" in capsys.readouterr().out
    whole, resumed = (load_file(folder / "flow.safetensors") for folder in (finished, again))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert timeless(again) == timeless(finished)
    assert not list((place / "cache").glob("flow-*")), "the checkpoint of a completed run is removed"


def test_a_zoo_can_have_a_seed_of_its_own(finished, place):
    before = set((place / "cache").glob("zoo-*.safetensors"))
    launch(place, seed=1, zoo={"seed": 3})
    (made,) = set((place / "cache").glob("zoo-*.safetensors")) - before  # another one, for the seed splits the data of iris
    assert read_zoo(made).configuration["seed"] == 3


def test_a_training_of_another_zoo_is_not_gone_on_with(place, monkeypatch, capsys):
    """The checkpoint's name holds the digest of the zoo and the flow."""

    def interrupted(*args):
        raise FloatingPointError("The flow's loss is nan at iteration 3. Lower lr.")

    from lab.checks import InputError

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted)
        with pytest.raises(InputError, match="Lower lr"):
            launch(place, iterations=3)
    launch(place, iterations=3, lr=1e-4)
    assert "Going on" not in capsys.readouterr().out


def test_the_command_line_runs_it(place, finished):
    command = [sys.executable, EXPERIMENTS / "run.py", "--file_storage", place / "line", "with", "smoke", "iterations=2", "device=cpu"]
    command += [f"cache={place / 'cache'}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "generated" in done.stdout and "ensemble of 8 zoo" in done.stdout and str(place / "line" / "1") in done.stdout
    assert "flow:" not in done.stderr and "Warning" not in done.stderr  # no progress bars, because this is no terminal
    assert types_of(read(place / "line" / "1", "metrics.json")) == SCHEMA


def test_the_command_line_says_a_mistake_in_one_line(place):
    command = [sys.executable, EXPERIMENTS / "run.py", "--file_storage", place / "mistake", "with", "smoke", "task=moon"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith("InputError: Unknown task 'moon'. Known: ") and "Traceback" not in done.stderr


# What a run says


def test_smoke_says_that_its_networks_are_meant_to_be_poor(finished):
    assert "meant to be poor (20 training steps)" in (finished / "cout.txt").read_text()


def scores(accuracy: float, nll: float) -> dict:
    return {"accuracy": {"mean": accuracy, "std": 0.01}, "nll": {"mean": nll, "std": 0.01}}


@pytest.mark.parametrize(
    ("task", "zoo", "generated", "mean", "words"),
    [
        ("digits", (0.9, 0.3), (0.5, 1.0), (0.8, 0.5), "Try more iterations or a zoo of more training runs, and look at the stages"),
        ("digits", (0.9, 0.3), (0.88, 0.305), (0.89, 0.302), "but these are near the zoo"),
        ("digits", (0.9, 0.3), (0.85, 0.4), (0.95, 0.2), "of networks of the zoo too"),
        ("digits", (0.9, 0.3), (0.85, 0.4), (0.8, 0.5), None),
        ("digits", (0.9, 0.3), (0.85, 0.4), (0.8, 0.35), None),  # worse in NLL alone
        ("breast_cancer", (0.9, 0.3), (0.85, 0.4), (0.95, 0.2), "`with digits` shows a task where baselines fail"),
        ("breast_cancer", (0.9, 0.3), (0.5, 1.0), (0.8, 0.5), "Try more iterations"),
    ],
)
def test_a_run_says_in_a_line_how_to_read_its_table(task, zoo, generated, mean, words):
    from lab.advice import advice

    metrics = {"zoo": scores(*zoo), "generated": scores(*generated), "baselines": {"mean_network": scores(*mean)}}
    said = advice(metrics, {"task": task, "iterations": 1000}, ())
    assert [words in line for line in said] == [True] if words else said == []
    copied = advice(metrics | {"novelty": {"copies": 0.5}}, {"task": task, "iterations": 1000}, ())
    assert copied[:-1] == said and copied[-1].startswith("50% of the generated networks are suspiciously close")


def test_a_small_zoo_makes_the_default_batch_smaller_and_a_failed_run_leaves_no_folder(tmp_path, capsys):
    from run import ex

    with pytest.raises(SystemExit):
        ex.run_commandline(f"run.py --file_storage={tmp_path} with runs=10 snapshots=1 zoo.batch=5000")
    answer = capsys.readouterr()
    assert "batch=9, not 32, because the zoo gives the flow 9 networks." in answer.out
    assert "zoo.batch=5000 is more than" in answer.err and not list(tmp_path.glob("[0-9]*"))


def test_a_failed_run_keeps_the_flow_that_it_made(place):
    from lab.checks import InputError
    from run import ex

    with pytest.raises(InputError, match="came out with NaN"):
        launch(place, sharpness=1e30, iterations=2)
    folder = place / "runs" / ex.current_run._id
    assert (folder / "flow.safetensors").exists() and read(folder, "run.json")["status"] == "FAILED"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_at_a_terminal_only(finished, place, terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    launch(place, "sample", named=(), checkpoint=str(finished), count=2)
    assert ("sample: 100%" in capsys.readouterr().err) == terminal


# Help


def ask(argv: str, capsys) -> str:
    """What the command line answers, on one line."""
    from run import ex

    with pytest.raises(SystemExit) as stopped:
        ex.run_commandline(f"run.py {argv}")
    return " ".join(f"{capsys.readouterr().out} {stopped.value.code or ''}".split())


def test_help_says_what_we_say_of_commands_options_and_configurations(capsys):
    from configuration import DEFAULTS, ex
    from lab.words import configurations_of, options_of

    source = (EXPERIMENTS / "configuration.py").read_text()
    options, configurations = options_of(source, DEFAULTS), configurations_of(source)
    assert configurations.keys() == ex.named_configs.keys()
    single = {name for name, value in DEFAULTS.items() if not isinstance(value, dict)}
    grouped = {f"{group}.{key}" for group in DEFAULTS if group not in single for key in DEFAULTS[group]}
    assert {option.name for option in options} == single | grouped
    answer = ask("help", capsys)
    ours, flags = answer.split("Flags, in front of the word")
    said = [f"{name} {' '.join(command.__doc__.split())}" for name, command in ex.commands.items() if not command.__doc__.startswith("\n")]
    said += [f"{name} {words}" for name, words in configurations.items()]
    said += [f"{option.name} {option.meaning}. Default: {option.default}." for option in options]
    assert len(said) > 70 and not [words for words in said if " ".join(words.replace("`", "").split()) not in ours]
    assert "--file_storage" in flags and "\x1b" not in answer and "dummy" not in answer


@pytest.mark.parametrize("argv", ["help sample", "sample --help", "sample -h"])
def test_help_for_a_command_has_its_options(argv, capsys):
    answer = ask(argv, capsys)
    assert answer.startswith("Usage: experiments/run.py sample [with") and "Draw new networks from the flow" in answer
    assert "sample with checkpoint=runs/3 count=16" in answer and "solver method that integrates the flow. Default" in answer
    assert "iterations" not in answer and "dummy" not in answer


def test_a_mistake_in_the_form_of_a_command_names_the_program(capsys):
    answer = ask("sample checkpoint=runs/3", capsys)
    assert "experiments/run.py COMMAND" in answer and "dummy" not in answer


def test_colours_are_for_terminals(tmp_path, capsys):
    from run import ex

    ex.run_commandline(f"run.py print_config --file_storage={tmp_path} with smoke")
    answer = capsys.readouterr().out
    assert "task = 'iris'" in answer and "\x1b" not in answer


def test_an_option_without_a_comment_is_refused():
    from lab.words import options_of

    with pytest.raises(ValueError, match=r"lr, zoo\.epochs: no comment"):
        defaults = {"lr": 1, "zoo": {"epochs": None}}
        options_of("def config():\n    # the flow\n    lr = 1\n    zoo = {\n        'epochs': None,\n    }\n", defaults)


def test_every_size_of_a_field_is_an_option():
    from configuration import DEFAULTS

    assert set(DEFAULTS["sizes"]) == set().union(*(complete_sizes(velocity, {}) for velocity in VELOCITIES))


def test_options_have_the_defaults_of_the_library():
    from configuration import DEFAULTS
    from lab.allowed import BATCH

    named = {name: one.default for name, one in signature(geoflow.fit).parameters.items() if name in DEFAULTS}
    own = {name: DEFAULTS[name] for name in named} | {"batch": BATCH}
    different = {"sizes", "device", "checkpoint"}  # a group, "auto", and here a saved flow
    assert {name: own[name] for name in own.keys() - different} == {name: named[name] for name in named.keys() - different}


# Networks beyond the mlp

TINY = {"runs": 12, "snapshots": 1, "iterations": 3, "batch": 8, "count": 4, "steps": 2, "sizes": {"layers": 1, "node": 8, "edge": 4}}


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A few made-up reviews of films."""
    (tmp_path / "sst2").mkdir()
    for part, count in {"train": 48, "dev": 12, "test": 12}.items():
        lines = [f"{'a ' * (n % 5 + 1)}{('bad', 'good')[n % 2]} film\t{n % 2}" for n in range(count)]
        (tmp_path / "sst2" / f"{part}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("mlp", {"hidden": [5], "norm": "batch", "task": "iris"}),
        ("residual_mlp", {"width": 4, "depth": 1, "task": "iris"}),
        ("cnn", {"width": 2, "task": "digits"}),
        ("resnet", {"width": 2, "task": "digits"}),
        ("vit", {"width": 4, "depth": 1, "task": "digits"}),
        ("bert", {"width": 4, "depth": 1}),
    ],
)
def test_every_network_goes_through_the_main_job_and_comes_back(network, options, place, reviews):
    from lab.folder import read_samples

    zoo = {"epochs": 1, "batch": 16, "origin": "shared", "common": 1, "examples": 32}
    folder = launch(place, named=(), network=network, zoo=zoo, **TINY, **options)
    assert types_of(read(folder, "metrics.json")["zoo"]) == types_of(read(folder, "metrics.json")["generated"]) == SCORES
    config = read(folder, "config.json")
    assert (config["network"], config["zoo"]["origin"]) == (network, "shared") and options.items() <= config.items()
    drawn = launch(place, "sample", named=(), checkpoint=str(folder), count=4)
    samples = [read_samples(one / "samples.safetensors") for one in (folder, drawn)]
    assert torch.equal(samples[0].thetas, samples[1].thetas) and samples[0].config["network"] == network
    scored = launch(place, "evaluate", named=(), checkpoint=str(drawn))
    assert read(scored, "metrics.json")["generated"] == read(folder, "metrics.json")["generated"]


def test_a_validation_part_of_sentences_is_the_official_one(reviews):
    from lab.collect import task_for

    task = task_for("sst2", 0, "validation", "bert")
    assert (len(task.x_train), len(task.x_test)) == (48, 12)


def test_another_origin_has_its_own_recipe(tmp_path):
    from run import ex

    def zoo_of(named, origin):
        return ex.run("print_config", {"zoo": {"origin": origin}}, (named,), options={"--file_storage": str(tmp_path)}).config["zoo"]

    independent, recipe = zoo_of("resnet14", "independent"), zoo_defaults("resnet", "mnist14", "independent") | TRAINED
    assert independent == {name: recipe.get(name, 0) for name in independent} and independent["common"] is None
    shared = zoo_of("digits", "shared")
    assert shared["common"] == shared["epochs"]


def test_flows_from_before_there_were_other_networks_are_mlps(finished, place, tmp_path):
    older = ("network", "norm", "width", "depth")
    flow = Flow.load(finished / "flow.safetensors")
    flow.config = {name: value for name, value in flow.config.items() if name not in older}
    flow.save(tmp_path / "flow.safetensors")
    drawn = launch(place, "evaluate", named=(), checkpoint=str(tmp_path / "flow.safetensors"), count=8, steps=5)
    assert read(drawn, "metrics.json")["generated"] == read(finished, "metrics.json")["generated"]
    assert [read(drawn, "config.json")[name] for name in older] == ["mlp", "none", None, None]


def test_an_older_configuration_is_completed_by_what_it_meant(finished):
    from lab.folder import today

    config = read(finished, "config.json")
    older = {name: value for name, value in config.items() if name not in ("network", "norm", "width", "depth")}
    older["zoo"] = {name: value for name, value in config["zoo"].items() if name not in ("origin", "common", "examples", *TRAINED)}
    assert today(older) == config


# The commands on a saved flow


def test_sample_draws_more_networks(finished, place):
    from lab.folder import read_samples

    plain, guided, polished = (
        read_samples(launch(place, "sample", named=(), checkpoint=str(finished), count=3, steps=4, **more) / "samples.safetensors")
        for more in ({}, {"guidance": 0.1}, {"polish": 30})
    )
    assert plain.thetas.shape == guided.thetas.shape == polished.thetas.shape == (3, 43)
    assert not torch.allclose(plain.thetas, guided.thetas)
    task, network = load_task("iris", 0), mlp(4, [5], 3)
    before, after = (geoflow.evaluate(network, one.spec, one.thetas, task.x_train, task.y_train).nll for one in (plain, polished))
    assert (after < before - 0.01).all()


def test_a_flow_is_sampled_as_its_run_did_and_without_data(finished, place, monkeypatch):
    from lab.folder import read_samples

    monkeypatch.setattr("lab.own.load_task", None)
    drawn = read_samples(launch(place, "sample", named=(), checkpoint=str(finished), count=8) / "samples.safetensors")
    assert torch.equal(drawn.thetas, read_samples(finished / "samples.safetensors").thetas)  # five steps, as smoke says
    plain = launch(place, "sample", named=(), checkpoint=str(finished / "flow.safetensors"), count=2, sharpness=0.5)
    assert [read(plain, "config.json")[name] for name in ("steps", "sharpness", "solver")] == [5, 0.5, "euler"]


def test_a_start_is_taken_over_but_by_transfer_whose_units_nobody_aligned(finished, place):
    drawn = launch(place, "sample", named=(), checkpoint=str(finished), count=8, start=0.5)
    (drawn / "flow.safetensors").write_bytes((finished / "flow.safetensors").read_bytes())
    again = launch(place, "sample", named=(), checkpoint=str(drawn / "flow.safetensors"), count=2)
    wider = launch(place, "transfer", named=(), checkpoint=str(drawn / "flow.safetensors"), count=2, hidden=[9])
    assert [read(folder, "config.json")["start"] for folder in (finished, drawn, again, wider)] == [0.0, 0.5, 0.5, 0.0]


def test_networks_that_are_none_are_not_written(finished, place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=r"4 of 4 networks came out with NaN or Inf\. Lower guidance or sharpness"):
        launch(place, "sample", named=(), checkpoint=str(finished), count=4, sharpness=1e30)


def test_guidance_that_diverges_keeps_what_was_made_before(finished, place, capsys, monkeypatch):
    """100 networks are drawn in batches of 3; the loss grows without bound from the third batch on."""
    from lab.checks import InputError
    from lab.folder import read_samples

    from geoflow import guidance, sampling

    monkeypatch.setattr(sampling, "CHUNK", {"cpu": 3 * 43, "cuda": 3 * 43})
    calls, rise = [], guidance.RISE

    def limit(*_):
        calls.append(0)
        return rise if len(calls) <= 2 * 4 else -1e9

    monkeypatch.setattr(guidance, "RISE", type("Limit", (), {"__mul__": limit})())
    with pytest.raises(InputError, match=r"Guidance diverged at t = 0: .* 6 of 100 networks were finished before") as said:
        launch(place, "sample", named=(), checkpoint=str(finished), count=100, steps=4, guidance=0.1)
    folder = Path(str(said.value).rpartition("kept in ")[2].rstrip("."))
    assert read_samples(folder / "samples.safetensors").thetas.shape == (6, 43)


def test_a_huge_strength_is_no_success(finished, place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=r"Guidance diverged at t = 0\..* 0 of 4 networks were finished before"):
        launch(place, "sample", named=(), checkpoint=str(finished), count=4, guidance=1e6)


def test_guide_compares_ways_with_training(finished, place, capsys):
    """All ways take as many gradients. The chosen setting is the best of those tried, by examples that are not the test part."""
    from lab.labels import labelled
    from uses.guiding import RATES, STRENGTHS, WAYS

    folder = launch(place, "guide", named=(), checkpoint=str(finished), count=3, steps=4, guiding={"repeats": 2, "examples": 50})
    found = read(folder, "guide.json")
    assert (found["task"], found["own_task"], found["examples"], found["batch"], found["gradients"]) == ("iris", "iris", 40, 40, 8)
    trained = [f"Adam from {start} networks" for start in ("random", "generated", "training")]
    assert list(found["ways"]) == ["unguided", *(f"guided: {way}" for way in WAYS), *trained]
    for name, one in list(found["ways"].items())[1:]:
        grid = RATES if name.startswith("Adam") else STRENGTHS[WAYS[name.removeprefix("guided: ")]["unit"]]
        assert [float(value) for value in one["tried"]] == list(grid) and one["gradients"] == 8
        known = {float(value): nll for value, nll in one["tried"].items() if nll is not None}
        assert one["chosen"] == min(known, key=known.get)
    best = min(one["test"]["nll"]["mean"] for name, one in found["ways"].items() if name.startswith("guided") and one["test"])
    assert best < found["ways"]["unguided"]["test"]["nll"]["mean"]
    assert (folder / "figures" / "guide.png").exists() and "guided: velocity (strength" in capsys.readouterr().out
    from run import ex

    data = labelled(ex.current_run.config)
    parts = [data.task.x_train, data.valid.x, data.test.x]
    assert [len(part) for part in parts] == [40, 10, 30]
    rows = [set(map(tuple, part.tolist())) for part in parts]
    assert not rows[0] & rows[1]


def test_a_flow_without_its_run_is_guided_without_training_networks(finished, place, tmp_path):
    (tmp_path / "flow.safetensors").write_bytes((finished / "flow.safetensors").read_bytes())
    folder = launch(place, "guide", named=(), checkpoint=str(tmp_path / "flow.safetensors"), count=2, steps=2)
    assert "Adam from training networks" not in read(folder, "guide.json")["ways"]


def test_finetune_draws_learning_curves(finished, place, capsys):
    from uses.finetuning import RATES, milestones

    options = {"tuning": {"steps": 20, "level": 0.7}, "guidance": 1.0, "guiding": {"examples": 100}, "steps": 4}
    folder = launch(place, "finetune", named=(), checkpoint=str(finished), count=3, **options)
    found = read(folder, "finetune.json")
    kinds = {f"{start} networks" for start in ("random", "generated", "training", "guided")}
    assert set(found["starts"]) == kinds | {"training networks, canonical", "mean network"}
    steps = [str(step) for step in milestones(20)]
    assert steps == ["0", "1", "2", "3", "4", "6", "8", "11", "16", "20"]
    for one in found["starts"].values():
        assert list(one["scores"]) == steps and one["lr"] in RATES
        assert one["scores"]["20"]["nll"]["mean"] < one["scores"]["0"]["nll"]["mean"]
        reached = [int(step) for step, at in one["scores"].items() if at["accuracy"]["mean"] >= 0.7]
        assert one["reached"] == (reached[0] if reached else None)
    zoo = read(finished, "metrics.json")["zoo"]["accuracy"]
    assert abs(found["starts"]["training networks"]["scores"]["0"]["accuracy"]["mean"] - zoo["mean"]) < 4 * zoo["std"] + 0.05
    as_trained, canonical = (found["starts"][f"training networks{form}"]["scores"] for form in ("", ", canonical"))
    assert canonical["0"]["nll"]["mean"] == pytest.approx(as_trained["0"]["nll"]["mean"], rel=1e-3) and canonical["4"] != as_trained["4"]
    assert (folder / "figures" / "finetune.png").exists() and "accuracy 0.7 after" in capsys.readouterr().out


def test_a_folder_without_flow_and_samples_says_so(finished, place):
    from lab.checks import InputError

    folder = launch(place, "evaluate", named=(), checkpoint=str(finished))
    with pytest.raises(InputError, match="holds neither a flow nor samples"):
        launch(place, "evaluate", named=(), checkpoint=str(folder))


def test_evaluate_gives_the_figures_of_the_run(finished, place):
    folder = launch(place, "evaluate", named=(), checkpoint=str(finished))
    metrics, first = read(folder, "metrics.json"), read(finished, "metrics.json")
    assert metrics["generated"] == first["generated"] and metrics["ensemble"]["generated"] == first["ensemble"]["generated"]
    assert (metrics["task"], metrics["parameters"]) == ("iris", 43)


def test_evaluate_draws_where_nothing_is_saved(finished, place, capsys):
    folder = launch(place, "evaluate", named=(), checkpoint=str(finished / "flow.safetensors"), count=3, steps=2)
    assert "comes without samples, so evaluate draws 3 new networks" in capsys.readouterr().out
    assert read(folder, "metrics.json")["ensemble"]["generated"]["n"] == 3


def test_evaluate_scores_what_sample_drew(finished, place):
    drawn = launch(place, "sample", named=(), checkpoint=str(finished), count=3, steps=2)
    assert read(launch(place, "evaluate", named=(), checkpoint=str(drawn)), "metrics.json")["ensemble"]["generated"]["n"] == 3


def test_transfer_makes_another_architecture(finished, place, capsys):
    folder = launch(place, "transfer", named=(), checkpoint=str(finished), hidden=[9], count=3, steps=2)
    metrics = read(folder, "metrics.json")
    assert metrics["parameters"] == 4 * 9 + 9 + 9 * 3 + 3
    assert read(folder, "config.json")["task"] == "iris"
    assert "generated" in capsys.readouterr().out
    again = read(launch(place, "evaluate", named=(), checkpoint=str(folder)), "metrics.json")
    assert again["generated"] == metrics["generated"]


def test_sharpening_scores_known_sharpness_and_the_last(finished, place, capsys):

    folder = launch(place, "sharpen", named=(), checkpoint=str(finished), count=3, steps=5, sharpness=0.15)
    found = read(folder, "sharpness.json")["sharpness"]
    assert list(found) == ["0", "0.1", "0.15"] and "sharpness 0.15" in capsys.readouterr().out
    assert found["0"]["generated"] != found["0.15"]["generated"] and found["0"]["diversity"]["generated"]["distance"] > 0
    assert {"accuracy", "nll", "ece"} == set(found["0"]["training"])
    assert (folder / "figures" / "sharpness.png").exists()
    assert (launch(place, "sharpen", named=(), checkpoint=str(finished), count=1, steps=2, sharpness=0.1) / "figures").is_dir()


def test_polish_scores_all_starts_after_0_1_4_and_the_last_number_of_steps(finished, place, capsys):
    folder = launch(place, "polish", named=(), checkpoint=str(finished), count=4, steps=5, polish=30)
    starts = read(folder, "polish.json")["starts"]
    assert list(starts) == [
        "generated networks", "baseline: interpolation", "baseline: noised", "baseline: gaussian", "random networks",
    ]  # fmt: skip
    assert all(list(row) == ["0", "1", "4", "16", "30"] for row in starts.values())
    assert all(row["30"]["nll"]["mean"] < row["0"]["nll"]["mean"] for row in starts.values())
    assert "generated networks, 30 steps" in capsys.readouterr().out
    made = launch(place, "sample", named=(), checkpoint=str(finished), count=4, steps=5, polish=30)
    scored = read(launch(place, "evaluate", named=(), checkpoint=str(made)), "metrics.json")
    assert scored["generated"] == {name: starts["generated networks"]["30"][name] for name in scored["generated"]}
    assert (folder / "figures" / "polish.png").exists()


def test_rivals_names_a_missing_package_before_it_trains(finished, place, monkeypatch, capsys):
    import uses.rivals
    from lab.checks import InputError

    def missing(name):
        raise ImportError(f"The package {name} is missing.")

    monkeypatch.setattr(uses.rivals, "imported", missing)
    with pytest.raises(InputError, match="The package laplace is missing"):
        launch(place, "rivals", named=(), checkpoint=str(finished), count=3, steps=2)
    assert "5 times" not in capsys.readouterr().out


def test_the_curve_scores_powers_of_two_and_the_last(finished, place, capsys):
    folder = launch(place, "curve", named=(), checkpoint=str(finished), count=3, steps=5)
    found = read(folder, "curve.json")
    assert list(found["steps"]) == ["1", "2", "4", "5"] and all(types_of(one) == SCORES for one in found["steps"].values())
    drawn = launch(place, "sample", named=(), checkpoint=str(finished), count=3, steps=5)  # the same seed: the same networks
    assert read(launch(place, "evaluate", named=(), checkpoint=str(drawn)), "metrics.json")["generated"] == found["steps"]["5"]
    assert (folder / "figures" / "curve.png").exists() and "4 steps" in capsys.readouterr().out


def test_densities_are_those_of_the_library(finished, place, capsys):
    """On the zoo of the run, with the solver for the way back in place of the sampler's. The count is that of each kind."""
    folder = launch(place, "density", named=(), checkpoint=str(finished), count=2, probes=4)
    found, flow = read(folder, "density.json"), Flow.load(finished / "flow.safetensors")
    assert (found["solver"], found["steps"], found["probes"], found["dimension"], found["weights"]) == ("rk4", 32, 4, 38, 43)
    assert found["log_orders"] == pytest.approx(math.log(120))  # five hidden units
    kinds = ["heldout", "fitted", "generated", "noised_0.1", "noised_0.3", "noised_1"]
    assert list(found["sets"]) == [*kinds, *(name for name in BASELINES if name not in ("noised", "retrieval"))]
    for name, one in found["sets"].items():
        alone = name in ("mean_network", "rescaled_mean")
        assert one["networks"] == len(one["values"]) == 2 - alone and (one["std"] is None) == alone
        assert 0 <= one["auroc"] <= 1 and one["per_weight"] == pytest.approx(one["median"] / 43) and one["standard_error"] > 0
    assert found["sets"]["heldout"]["auroc"] == 0.5
    drawn = geoflow.sample(flow, 2, steps=5, generator=randomness(0, "sample"))  # as the run draws them
    right = geoflow.log_prob(flow, drawn, probes=4, generator=randomness(0, "probes"))
    assert found["sets"]["generated"]["values"] == pytest.approx(right.tolist(), abs=1e-2)
    assert (folder / "figures" / "density.png").exists() and "AUROC" in capsys.readouterr().out
    assert read(folder, "config.json")["count"] == 2


# Ensembles beside those of the zoo


@pytest.fixture(scope="module")
def compared(finished, place) -> Path:
    """The folder of a comparison of ensembles."""
    return launch(place, "posterior", named=(), checkpoint=str(finished), count=8)


def test_posterior_scores_ensembles_beside_the_zoo(finished, compared):
    found, first = read(compared, "posterior.json"), read(finished, "metrics.json")
    sizes = ["1", "2", "4", "8"]
    assert found["shown"] == 8 and found["zoo_of_the_flow"] and found["zoo_runs"] == 8 and found["outside"] == {}
    for kind in ("generated", "zoo"):
        for pool in ("linear", "log"):
            one = found["ensembles"][kind][pool]
            assert list(one) == sizes and [one[size]["groups"] for size in sizes] == [8, 4, 2, 1]
    single, whole = (found["ensembles"]["generated"]["linear"][size] for size in ("1", "8"))
    for score in ("accuracy", "nll", "ece"):
        assert single[score] == pytest.approx(first["generated"][score], abs=1e-5)
        assert whole[score]["mean"] == pytest.approx(first["ensemble"]["generated"][score], abs=1e-5)
    logarithmic = found["ensembles"]["generated"]["log"]["8"]["nll"]["mean"]
    assert logarithmic == pytest.approx(first["ensemble"]["generated"]["log_pool"]["nll"], abs=1e-5)
    assert {path.stem for path in (compared / "figures").iterdir()} == {"ensembles", "reliability", "selective"}
    assert "4 zoo, log pool" in (compared / "cout.txt").read_text()


def test_the_members_of_a_deep_ensemble_share_no_run(generator):
    from lab.ensembles import deep_ensemble

    zoo = store.Zoo(torch.arange(10.0).view(5, 2, 1), NetworkSpec((), ()), {})
    members = deep_ensemble(zoo, 4, generator).flatten().tolist()
    assert len(set(members)) == 4 and {*members} <= {1.0, 3.0, 5.0, 7.0, 9.0}, "the last snapshot of each run"
    assert len(deep_ensemble(zoo, 256, generator)) == 5


def test_posterior_meets_other_tasks_of_the_same_shape(place, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "mirrored", TASKS["digits"])
    made = launch(place, named=(), task="digits", hidden=[4], zoo={"epochs": 1, "batch": 16}, **TINY)
    folder = launch(place, "posterior", named=(), checkpoint=str(made), count=4)
    told = read(folder, "posterior.json")["outside"]["mirrored"]["generated"]["linear"]
    assert {name: one["mean"] for name, one in told["auroc"]["4"].items()} == {"entropy": 0.5, "information": 0.5}, "the same examples"
    assert "information" not in told["auroc"]["1"] and sum(told["entropy"]["inside"]) == pytest.approx(1)
    assert (folder / "figures" / "outside_mirrored.png").exists() and "mirrored: entropy" in capsys.readouterr().out

    def absent(*_, **__):
        raise FileNotFoundError("mirrored is nowhere.")

    monkeypatch.setattr("lab.collect.outside_inputs", absent)
    folder = launch(place, "posterior", named=(), checkpoint=str(made), count=4)
    assert "Examples of other tasks are left out: mirrored is nowhere." in capsys.readouterr().out
    assert read(folder, "posterior.json")["outside"] == {}


def test_posterior_says_where_the_zoo_is_another_one(finished, place, tmp_path, capsys):
    flow = Flow.load(finished / "flow.safetensors")
    flow.config = {**flow.config, "zoo": "made elsewhere"}
    flow.save(tmp_path / "flow.safetensors")
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    folder = launch(place, "posterior", named=(), checkpoint=str(tmp_path), count=4)
    assert "The flow was fitted to another zoo of this configuration." in capsys.readouterr().out
    assert read(folder, "posterior.json")["zoo_of_the_flow"] is False


def test_posterior_needs_the_run_folder(finished, place, tmp_path):
    from lab.checks import InputError

    (tmp_path / "flow.safetensors").write_bytes((finished / "flow.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"config\.json is missing: this command needs the run folder of the flow"):
        launch(place, "posterior", named=(), checkpoint=str(tmp_path), count=4)


def test_rivals_stand_beside_the_flow_at_their_cost(finished, place, monkeypatch, capsys):
    from rivals.methods import RIVALS
    from uses import rivals

    without_packages = {name: RIVALS[name] for name in ("single network", "deep ensemble of 64", "SWAG")}
    monkeypatch.setattr(rivals, "RIVALS", without_packages)
    monkeypatch.setattr(rivals, "REPEATS", 2)
    found = read(launch(place, "rivals", named=(), checkpoint=str(finished), count=8), "rivals.json")["rivals"]
    assert list(found) == [*without_packages, "flow, ensemble of 8"]
    assert {name: (one["members"], one["repeats"]) for name, one in found.items()} == {
        "single network": (1, 2), "deep ensemble of 64": (64, 2), "SWAG": (64, 2), "flow, ensemble of 8": (8, 1),
    }  # fmt: skip
    assert found["single network"]["seconds"] < found["deep ensemble of 64"]["seconds"] and "log" not in found["single network"]
    ours, first = found["flow, ensemble of 8"], read(finished, "metrics.json")
    assert ours["linear"]["nll"]["mean"] == pytest.approx(first["ensemble"]["generated"]["nll"], abs=1e-5)
    assert ours["parts"]["flow"] == first["time"]["train"] and ours["seconds"] == pytest.approx(sum(ours["parts"].values()))
    assert ours["parts"]["zoo"] == pytest.approx(found["deep ensemble of 64"]["seconds"] * 12 / 64)
    assert "SWAG, log pool" in capsys.readouterr().out


def test_rivals_refuse_a_zoo_from_one_start(place, finished, tmp_path):
    from lab.checks import InputError

    (tmp_path / "flow.safetensors").write_bytes((finished / "flow.safetensors").read_bytes())
    config = read(finished, "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"zoo": config["zoo"] | {"origin": "shared", "common": 1}}))
    with pytest.raises(InputError, match="the zoo of this flow has one common start"):
        launch(place, "rivals", named=(), checkpoint=str(tmp_path), count=8)


def test_small_ensembles_stand_beside_large_ones(finished, place, monkeypatch):
    monkeypatch.setattr("geoflow.evaluation.exam.SMALL", 2)
    ensembles = read(launch(place, "evaluate", named=(), checkpoint=str(finished)), "metrics.json")["ensemble"]
    assert {name: one["n"] for name, one in ensembles.items()} == {"generated": 8, "generated_2": 2}
    assert ensembles["generated_2"]["log_pool"]["nll"] != ensembles["generated"]["log_pool"]["nll"]


def test_a_geoflow_from_elsewhere_makes_no_record(tmp_path):
    from lab.folder import ROOT, check_library

    check_library(geoflow.__file__)
    with pytest.raises(OSError, match=f"not from {ROOT}, whose commit a run records"):
        check_library(str(tmp_path / "geoflow" / "__init__.py"))


def test_a_zoo_with_too_large_a_batch_is_named_by_its_option(place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=r"zoo\.batch=500 is more than the 120 training examples of iris"):
        launch(place, zoo={"batch": 500})


@pytest.mark.parametrize(
    ("command", "config", "words"),
    [
        ("transfer", {"hidden": [5, 5]}, "never seen the role 'weight:hidden<hidden:1'"),
        ("transfer", {"task": "wine"}, "built for 4 units of 'input0', not for 13: another task needs another flow"),
        ("transfer", {"activation": "tanh"}, "never seen flat coordinates of the role 'weight:hidden<input:1'.*use flow=euclidean"),
        ("transfer", {}, "transfer needs another network"),
        ("transfer", {"network": "residual_mlp"}, "never seen"),
        ("transfer", {"network": "cnn"}, "network=cnn reads images, and task=iris has none"),
        ("transfer", {"width": 3}, "network=mlp has no width=3"),
        ("sample", {"network": "residual_mlp"}, "for another network or hidden or activation or norm or width or depth use transfer"),
        ("sample", {"flow": "euclidean"}, "sample takes the flow as it was fitted, so flow=euclidean would change nothing"),
        ("sample", {"snapshots": 3}, "so snapshots=3 would change nothing"),
        ("sample", {"sizes": {"node": 32}}, r"so sizes\.node=32 would change nothing"),
        ("transfer", {"hidden": [9], "start": 0.1}, "another network has other units: for transfer leave start=0"),
        ("sharpen", {"sharpness": 0.0}, "sharpen goes up from 0"),
        ("polish", {}, "polish goes up from 0"),
        ("curve", {"polish": 4}, "polish serves the commands main and sample and polish, and changes nothing here"),
        ("posterior", {"count": 1}, "posterior compares ensembles, and count=1 makes none"),
        ("posterior", {"task": "wine"}, "for another task use transfer"),
        ("evaluate", {"seed": 4}, "evaluate scores the saved samples, so"),
        ("sample", {"hidden": [9]}, "for another hidden use transfer"),
        ("density", {"start": 0.1}, "density follows networks back to pure noise, so start=0.1 would change nothing"),
        ("density", {"guidance": 0.1}, "so guidance=0.1 would change nothing"),
        ("density", {"probes": 1}, "probes=1 must be 0, or a whole number of at least 2"),
        ("density", {"probes": -2}, "probes=-2 must be 0"),
        ("density", {"iterations": 3}, "density takes the flow as it was fitted"),
        ("density", {"hidden": [9]}, "for another hidden use transfer"),
        ("sample", {"probes": 4}, "probes=4 serves the command density only"),
        ("curve", {"solver": "dopri5"}, "solver=dopri5 serves the command density only. To draw networks choose euler, midpoint"),
        ("evaluate", {"task": "wine"}, "for another task use transfer"),
    ],
)
def test_what_a_flow_cannot_make_is_said(finished, place, command, config, words):
    from lab.checks import InputError

    with pytest.raises(InputError, match=words):
        launch(place, command, named=(), checkpoint=str(finished), **{"count": 2, "steps": 2} | config)


# Running statistics


@pytest.fixture(scope="module")
def normed(place) -> dict[str, Path]:
    """The folders of two runs with batch norm, by what they do with its statistics."""
    return {how: launch(place, norm="batch", recalibrate=how) for how in ("auto", "never")}


def test_finetune_measures_running_statistics_before_each_score(normed, place):
    options = {"checkpoint": str(normed["auto"]), "count": 3, "steps": 4, "tuning": {"steps": 8}}
    starts = read(launch(place, "finetune", named=(), **options), "finetune.json")["starts"]
    drawn = launch(place, "sample", named=(), checkpoint=str(normed["auto"]), count=3, steps=4)
    before = read(launch(place, "evaluate", named=(), checkpoint=str(drawn)), "metrics.json")["generated"]["nll"]["mean"]
    assert starts["generated networks"]["scores"]["0"]["nll"]["mean"] == pytest.approx(before, rel=0.2)  # measured on other examples
    assert all(one["scores"]["8"]["nll"]["mean"] < one["scores"]["0"]["nll"]["mean"] for one in starts.values())


def test_polish_measures_running_statistics_after_its_steps(normed, place):
    scored = {}
    for steps in (1, 8):
        drawn = launch(place, "sample", named=(), checkpoint=str(normed["auto"]), count=4, steps=4, polish=steps)
        scored[str(steps)] = read(launch(place, "evaluate", named=(), checkpoint=str(drawn)), "metrics.json")["generated"]
    found = read(launch(place, "polish", named=(), checkpoint=str(normed["auto"]), count=4, steps=4, polish=8), "polish.json")
    for steps, one in scored.items():
        assert one == {name: found["starts"]["generated networks"][steps][name] for name in one}


def kept(folder: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The running statistics of saved networks, all else of them, and how many examples the record says they were measured on."""
    from lab.folder import read_samples

    samples = read_samples(folder / "samples.safetensors")
    index = statistics_of(samples.spec)
    others = torch.ones(samples.spec.weights, dtype=torch.bool).index_fill(0, index, False)
    return samples.thetas[:, index], samples.thetas[:, others], samples.config["recalibrated"]


def test_generated_networks_and_baselines_are_measured_anew_and_the_zoo_is_not(normed):
    from lab.folder import read_samples

    auto, never = (read(folder, "metrics.json") for folder in normed.values())
    assert (auto["recalibrated"], never["recalibrated"]) == (120, 0)  # all training examples of iris
    assert auto["zoo"] == never["zoo"] and auto["generated"] != never["generated"]
    assert all(auto["baselines"][name] != never["baselines"][name] for name in BASELINES)
    assert auto["baselines"]["retrieval"]["novelty"] < 1e-5  # a copy that was measured anew is a copy
    for how, words in {"auto": "measured anew on 120 training inputs", "never": "were not measured anew"}.items():
        assert words in (normed[how] / "report.md").read_text()
    measured, drawn = (kept(folder) for folder in normed.values())
    assert torch.equal(measured[1], drawn[1]) and not torch.isclose(measured[0], drawn[0]).any()
    samples = read_samples(normed["auto"] / "samples.safetensors")
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    again = geoflow.recalibrate(network, samples.spec, samples.thetas, load_task("iris", 0).x_train)
    torch.testing.assert_close(again, samples.thetas, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("how", "other", "examples"), [("auto", "never", 120), ("never", "auto", 0)])
def test_further_commands_measure_as_the_run_did(normed, place, how, other, examples):
    made = normed[how]
    drawn = launch(place, "sample", named=(), checkpoint=str(made), count=8)
    assert torch.equal(kept(drawn)[0], kept(made)[0]) and read(drawn, "config.json")["recalibrate"] == how
    scored = [read(launch(place, "evaluate", named=(), checkpoint=str(one)), "metrics.json") for one in (made, drawn)]
    assert scored[0]["generated"] == scored[1]["generated"] == read(made, "metrics.json")["generated"]
    assert [one["recalibrated"] for one in scored] == [examples] * 2
    asked = launch(place, "sample", named=(), checkpoint=str(made), count=8, recalibrate=other)
    assert not torch.isclose(kept(asked)[0], kept(made)[0]).any()


def test_sample_says_where_it_could_not_measure(normed, place, capsys, monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("iris is nowhere.")

    monkeypatch.setattr("lab.own.load_task", absent)
    drawn = launch(place, "sample", named=(), checkpoint=str(normed["auto"]), count=8)
    assert "running statistics are as the flow drew them, not measured anew: iris is nowhere." in capsys.readouterr().out
    statistics, others, examples = kept(drawn)
    assert examples == 0 and torch.equal(others, kept(normed["auto"])[1]) and torch.equal(statistics, kept(normed["never"])[0])
    launch(place, "sample", named=(), checkpoint=str(normed["never"]), count=8)
    assert "as the flow drew them" not in capsys.readouterr().out


# Mistakes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("with flow=geometri", "Unknown flow 'geometri'. Known: euclidean, normalized, geometric, geometric_polar."),
        ("with task=minst", "Unknown task 'minst'. Known: breast_cancer, digits, iris, wine, diabetes, mnist, fashion, mnist14,"),
        (
            "with network=lenet",
            "Unknown network 'lenet'. Known: mlp, residual_mlp, cnn, resnet, vit, bert, resnet18, vit_small, bert_base.",
        ),
        ("with network=vit task=breast_cancer", "network=vit reads images, and task=breast_cancer has none. Tasks for vit: digits"),
        ("with task=sst2", "network=mlp reads rows of a table, and task=sst2 has none. Tasks for mlp: breast_cancer"),
        ("with network=cnn hidden=[3]", "network=cnn has no hidden=[3]. Its options are width."),
        ("with width=3", "network=mlp has no width=3. Its options are hidden, activation, norm."),
        ("with network=resnet width=0", "width=0 must be a whole number of at least 1."),
        ("with network=vit depth=1.5", "depth=1.5 must be a whole number of at least 1."),
        ("with norm=layer", "Unknown norm 'layer'. Known: none, batch."),
        ("with network=bert metric=inputs", "network=bert reads sentences. Choose metric=weights."),
        ("with zoo.origin=pretrained", "Unknown zoo.origin 'pretrained'. Known: independent, shared."),
        ("with zoo.common=3", "zoo.common=3 says how long a shared start is trained, and with zoo.origin=independent runs share none."),
        ("with zoo.origin=shared zoo.common=0", "zoo.common=0 must be a whole number of at least 1."),
        ("with zoo.examples=20", "zoo.examples=20 fill no batch of zoo.batch=32."),
        ("with solver=eular", "Unknown solver 'eular'. Known: euler, midpoint, heun, rk4, dopri5."),
        ("with velocity=cnn", "Unknown velocity 'cnn'. Known: transformer, identified, mlp, auto."),
        ("with align=3", "align=3 must be True or False."),
        ("with coupling=sinkhorn", "Unknown coupling 'sinkhorn'. Known: independent, ot, equivariant_ot."),
        ("with time=normal", "Unknown time 'normal'. Known: uniform, beta."),
        ("with activation=sine", "Unknown activation 'sine'. Known: relu, tanh, gelu."),
        ("with prediction=noise", "Unknown prediction 'noise'. Known: preconditioned, velocity, endpoint."),
        ("with weighting=cosine", "Unknown weighting 'cosine'. Known: balanced, uniform."),
        ("with recalibrate=always", "Unknown recalibrate 'always'. Known: auto, never."),
        ("with device=gpu", "Unknown device 'gpu'. Known: auto, cpu, cuda."),
        ("with zoo.schedule=linear", "Unknown zoo.schedule 'linear'. Known: constant, cosine, cosine_by_step."),
        ("with hidden=[0]", "hidden=[0] must be a list of widths of at least 1"),
        ("with hidden=16", "hidden=16 must be a list"),
        ("with iterations=0", "iterations=0 must be a whole number of at least 1."),
        ("with count=0", "count=0 must be a whole number of at least 1."),
        ("with steps=many", "steps=many must be a whole number of at least 1."),
        ("with heldout=1.0", "heldout=1.0 must be a number between 0 and 1."),
        ("with lr=-1", "lr=-1 must be a number above 0."),
        ("with zoo.epochs=0", "zoo.epochs=0 must be a whole number of at least 1."),
        ("with guidance=-0.1", "guidance=-0.1 must be a number of at least 0."),
        ("with guiding.at=end", "Unknown guiding.at 'end'. Known: point, endpoint, through."),
        ("with guiding.unit=adam", "Unknown guiding.unit 'adam'. Known: loss, velocity, average."),
        ("with guiding.yields=maybe", "Unknown guiding.yields 'maybe'. Known: False, True."),
        ("with guiding.repeats=0", "guiding.repeats=0 must be a whole number of at least 1."),
        ("with guiding.example=5", "There is no option 'guiding.example'. Is it guiding.examples"),
        ("with guiding=1", "guiding is a group of options, such as guiding.at=..."),
        ("with tuning.level=2", "tuning.level=2 must be a number between 0 and 1."),
        ("with seed=-1", "seed=-1 must be a whole number"),
        ("with runs=2 snapshots=4", "leave 1 to fit the flow on"),
        ("with batch=32 runs=10 snapshots=1", "batch=32 is more than the 9 networks that the flow is fitted to"),
        ("with latent=pca components=9 batch=4 runs=10 snapshots=1", "components=9: 9 networks have at most 8 components"),
        ("with snapshots=5 zoo.epochs=3", "snapshots=5 every zoo.every=2 epochs do not fit into zoo.epochs=3."),
        ("with flwo=geometric", "There is no option 'flwo'. Is it flow"),
        ("with zoo.epoch=3", "There is no option 'zoo.epoch'. Is it zoo.epochs"),
        ("with xyzzy=3", "There is no option 'xyzzy'. Known: task, network, hidden, activation"),
        ("with zoo=cosine", "zoo is a group of options, such as zoo.epochs=..."),
        (
            "with checkpoint=runs/3",
            "checkpoint serves the commands sample, evaluate, transfer, widths, guide, finetune, curve, sharpen, polish",
        ),
        ("curve with steps=8", "curve with checkpoint=runs/3"),
        ("density with count=2", "density with checkpoint=runs/3"),
        ("with probes=2", "probes=2 serves the command density only"),
        ("with solver=dopri5", "solver=dopri5 serves the command density only"),
        ("sample with count=2", "sample with checkpoint=runs/3"),
        ("transfer with hidden=[32]", "transfer with checkpoint=runs/3"),
        ("evaluate with checkpoint=runs/none", "There is no flow at runs/none"),
    ],
)
def test_a_mistake_is_answered_in_a_line(argv, words, capsys, tmp_path):
    command, _, updates = argv.rpartition("with ")
    answer = say(f"{command} --file_storage={tmp_path} with {updates}", capsys)
    assert words in answer and "Traceback" not in answer
    assert not list(tmp_path.iterdir()), "no run begins"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(capsys, tmp_path):
    answer = say(f"--file_storage={tmp_path} with smoke device=cuda", capsys)
    assert "torch finds no GPU here. Choose device=auto or device=cpu." in answer


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "corrupt"), (b"not a tensor in sight", "corrupt"), ("foreign", "not a flow of this version")]
)
def test_a_file_that_is_no_flow_is_said(content, words, capsys, tmp_path):
    path = tmp_path / "flow.safetensors"
    if content == "foreign":
        save_file({"theta": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    answer = say(f"sample --file_storage={tmp_path / 'runs'} with checkpoint={tmp_path}", capsys)
    assert words in answer and str(path) in answer and "Traceback" not in answer


def test_a_flow_that_says_not_what_it_makes_is_refused(finished, place, capsys, tmp_path):
    flow = Flow.load(finished / "flow.safetensors")
    flow.config = {name: value for name, value in flow.config.items() if name != "task"}
    flow.save(tmp_path / "flow.safetensors")
    assert "does not say its task" in say(f"sample --file_storage={tmp_path / 'runs'} with checkpoint={tmp_path}", capsys)


@pytest.mark.parametrize("unwritable", ["runs", "cache"])
def test_an_unwritable_folder_is_said_before_the_computing(unwritable, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    places = {"runs": tmp_path / "runs", "cache": tmp_path / "cache"} | {unwritable: tmp_path / "file" / "below"}
    answer = say(f"--file_storage={places['runs']} with smoke cache={places['cache']}", capsys)
    assert f"{tmp_path / 'file' / 'below'} cannot be written" in answer and "Choose another" in answer
    assert "Traceback" not in answer


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    from lab.folder import write_json

    write_json(tmp_path / "metrics.json", {"accuracy": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"accuracy": object()})
    assert read(tmp_path, "metrics.json") == {"accuracy": 1} and len(list(tmp_path.iterdir())) == 1


# The named configurations


@pytest.mark.parametrize(
    ("name", "task", "network", "options"),
    [
        (None, "breast_cancer", "mlp", {"hidden": [16, 16], "activation": "relu", "norm": "none"}),
        ("breast_cancer", "breast_cancer", "mlp", {"hidden": [16, 16]}),
        ("digits", "digits", "mlp", {"hidden": [10]}),
        ("mnist", "mnist", "mlp", {"hidden": [10]}),
        ("fashion", "fashion", "mlp", {"hidden": [10]}),
        ("mnist32", "mnist", "mlp", {"hidden": [32, 32]}),
        ("cnn14", "mnist14", "cnn", {"width": 8, "depth": None, "hidden": None}),
        ("resnet14", "mnist14", "resnet", {"width": 4, "depth": 1}),
        ("vit14", "mnist14", "vit", {"width": 16, "depth": 2}),
        ("bert", "sst2", "bert", {"width": 16, "depth": 2, "metric": "weights"}),
    ],
)
def test_named_configurations_take_the_defaults_of_their_task(name, task, network, options, tmp_path):
    from run import ex

    config = ex.run("print_config", named_configs=(name,) if name else (), options={"--file_storage": str(tmp_path)}).config
    assert (config["task"], config["network"], config["flow"]) == (task, network, "geometric")
    assert options.items() <= config.items()
    zoo = {"runs": config["runs"], "snapshots": config["snapshots"], **config["zoo"]}
    assert zoo == zoo_defaults(network, task) | {"seed": 0} | TRAINED | ({"runs": 1000} if name == "mnist32" else {})
    assert all(math.isfinite(value) for value in (config["lr"], config["ema"]))


@pytest.mark.parametrize("words", ["digits seed=1", "flow=euclidean"])
def test_a_forgotten_with_is_named(words, tmp_path):
    from run import ex

    with pytest.raises(SystemExit, match=f"Options follow the word `with`: experiments/run.py with {words}"):
        ex.run_commandline(["run.py", *words.split()])
