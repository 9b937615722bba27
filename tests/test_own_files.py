"""The command line with a network, data and trained networks of the user's own, all in files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import geoflow
from geoflow.flow import Flow
from geoflow.zoo.builders import builder_of
from geoflow.zoo.own import read_task
from tests.test_experiments import SCORES, TINY, launch, read, say, types_of

pytestmark = pytest.mark.usefixtures("experiments_on_path")

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:
    hidden: int = 6

def build():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(Sizes().hidden, 3))

def wider():
    return nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))

def numbers():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

def one_logit():
    return nn.Linear(4, 1)

def pixels():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))

def nothing():
    build()

def sized(width):
    return nn.Linear(4, width)

class Worded(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.head(x), "norm": x.norm()}

ready = nn.Linear(4, 3)
_hidden = build
"""
TWINS = """
from torch import nn

class Net(nn.Linear):
    factor = +1

    def forward(self, x):
        return self.factor * super().forward(x)

def make():
    return Net(4, 3)

def unlike():
    network = Net(4, 3)
    network.factor = 3
    return network
"""
USE = {"network": "my_networks.py:build", "task": "my_data.npz"}


def arrays(**changes) -> dict[str, np.ndarray]:
    """Examples of four numbers in three classes, and changes to the arrays."""
    x = np.random.default_rng(0).normal(size=(120, 4))
    y = x[:, :3].argmax(1)
    usual = {"x_train": x[:80], "y_train": y[:80], "x_test": x[80:], "y_test": y[80:]} | changes
    return {name: value for name, value in usual.items() if value is not None}


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """The folder of a user: my_networks.py, data with classes and with numbers, and folders of networks."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_networks.py").write_text(SOURCE)
    np.savez(folder / "my_data.npz", **arrays())
    np.savez(folder / "numbers.npz", **arrays(y_train=arrays()["x_train"][:, 0], y_test=arrays()["x_test"][:, 0]))
    np.savez(folder / "two.npz", **arrays(y_train=np.arange(80) % 2, y_test=np.arange(40) % 2))
    build, wider = (builder_of(f"{folder / 'my_networks.py'}:{name}") for name in ("build", "wider"))
    x = read_task(folder / "my_data.npz").x_train[:2]
    for name, builder, count in (("checkpoints", build, 12), ("few", build, 2), ("foreign", wider, 12)):
        spec = geoflow.spec_of(builder(), x)
        geoflow.write_networks(folder / name, spec, geoflow.pack(spec, [builder() for _ in range(count)]))
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    for number in range(12):
        states = {"model": build().state_dict(), "ema": build().state_dict()}
        torch.save(states, folder / "mixed" / f"{number}.pt")
    return folder


@pytest.fixture
def there(mine, monkeypatch) -> Path:
    monkeypatch.chdir(mine)
    return mine


@pytest.fixture(scope="module")
def finished(mine) -> Path:
    """The folder of a run on the user's files, which were named from their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mine)
        return launch(mine, named=(), **USE, zoo={"folder": "checkpoints/"}, **TINY)


# The main job, and the commands on its flow


def test_a_run_learns_from_the_networks_in_the_folder(finished, mine):
    from lab.folder import read_samples

    from geoflow.randomness import randomness
    from geoflow.training import fingerprint
    from geoflow.zoo.store import Zoo, split_runs

    metrics, config, flow = read(finished, "metrics.json"), read(finished, "config.json"), Flow.load(finished / "flow.safetensors")
    assert types_of(metrics["zoo"]) == types_of(metrics["generated"]) == SCORES and metrics["task"] == "my_data.npz"
    paths = {"network": f"{mine}/my_networks.py:build", "task": f"{mine}/my_data.npz", "zoo.folder": f"{mine}/checkpoints"}
    assert paths == {"network": config["network"], "task": config["task"], "zoo.folder": config["zoo"]["folder"]}
    assert (config["runs"], config["snapshots"], config["zoo"]["epochs"]) == (12, 1, None)
    thetas = geoflow.read_networks(mine / "checkpoints", flow.spec)
    fitted, heldout = split_runs(Zoo(thetas[:, None], flow.spec, {}), 0.125, randomness(0, "split"))
    assert flow.config["zoo"] == fingerprint(fitted.networks) and heldout.runs == 2
    files = ("my_networks.py", "my_data.npz")
    assert flow.config["files"] == {str(mine / name): hashlib.sha256((mine / name).read_bytes()).hexdigest() for name in files}
    assert flow.config["velocity"] in (finished / "cout.txt").read_text() and "my_data.npz" in (finished / "report.md").read_text()
    samples = read_samples(finished / "samples.safetensors")
    assert samples.config["recalibrated"] == 80 and samples.config["velocity"] == flow.config["velocity"]


def test_later_commands_find_the_files_from_another_folder(finished, mine, tmp_path, monkeypatch):
    from lab.folder import read_samples

    monkeypatch.chdir(tmp_path)
    drawn = launch(mine, "sample", named=(), checkpoint=str(finished), count=4)
    assert torch.equal(*(read_samples(one / "samples.safetensors").thetas for one in (finished, drawn)))
    scored = launch(mine, "evaluate", named=(), checkpoint=str(drawn))
    assert read(scored, "metrics.json")["generated"] == read(finished, "metrics.json")["generated"]
    assert read(scored, "metrics.json")["task"] == "my_data.npz"


@pytest.mark.parametrize(
    ("command", "options", "file"),
    [
        ("guide", {"guiding": {"examples": 20}}, "guide.json"),
        ("finetune", {"tuning": {"steps": 2, "level": 0.7}}, "finetune.json"),
        ("curve", {}, "curve.json"),
        ("sharpen", {"sharpness": 0.1}, "sharpness.json"),
        ("polish", {"polish": 2}, "polish.json"),
        ("stages", {}, "stages.json"),
        ("density", {"probes": 2}, "density.json"),
        ("posterior", {}, "posterior.json"),
        ("transfer", {"network": "my_networks.py:wider"}, "metrics.json"),
    ],
)
def test_every_command_serves_the_flow(command, options, file, finished, there, capsys):
    folder = launch(there, command, named=(), checkpoint=str(finished), count=2, steps=2, **options)
    found = read(folder, file)
    said = capsys.readouterr().out
    assert "changed" not in said
    if command == "posterior":
        assert found["zoo_of_the_flow"] and found["zoo_runs"] == 2
    if command == "finetune":
        assert "training networks" in found["starts"]
    if command == "transfer":
        assert found["parameters"] == 4 * 9 + 5 * 9 + 9 * 3 + 3 and "do not say how they were trained" in said


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("widths", {}, "my_networks.py:build builds networks of one size"),
        ("rivals", {"count": 2}, "do not say how. Train a zoo"),
        ("sample", {"network": "my_networks.py:wider"}, "for another network use transfer"),
        ("sample", {"task": "two.npz"}, "for another task use transfer"),
        ("sample", {"zoo": {"folder": "few"}}, "sample takes the flow as it was fitted"),
        ("transfer", {"hidden": [3]}, "my_networks.py:build is a function without arguments, so hidden=[3] would change nothing"),
        ("transfer", {"network": "my_networks.py:nothing"}, "returns a NoneType, not a torch.nn.Module"),
        ("transfer", {"network": "my_networks.py:numbers"}, "gives 2 outputs, and my_data.npz needs 3"),
    ],
)
def test_what_a_command_cannot_do_is_said(command, options, words, finished, there):
    from lab.checks import InputError

    with pytest.raises(InputError) as said:
        launch(there, command, named=(), checkpoint=str(finished), **options)
    assert words in str(said.value)


# Files that change


@pytest.fixture
def changing(tmp_path, monkeypatch) -> Path:
    """A run on files that a test may change."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    np.savez(tmp_path / "my_data.npz", **arrays())
    monkeypatch.chdir(tmp_path)
    spec = geoflow.spec_of(builder_of("my_networks.py:build")(), torch.zeros(2, 4))
    geoflow.write_networks("nets", spec, geoflow.pack(spec, [builder_of("my_networks.py:build")() for _ in range(12)]))
    return launch(tmp_path, named=(), **USE, zoo={"folder": "nets"}, **TINY)


def test_a_changed_file_is_noticed(changing, tmp_path, capsys):
    from lab.checks import InputError

    np.savez(tmp_path / "my_data.npz", **arrays(x_test=arrays()["x_test"] + 1))
    (tmp_path / "my_networks.py").write_text("# a comment" + SOURCE)
    capsys.readouterr()
    launch(tmp_path, "evaluate", named=(), checkpoint=str(changing))
    said = capsys.readouterr().out
    assert all(f"{tmp_path / name} has changed since the flow of {changing}" in said for name in ("my_data.npz", "my_networks.py"))

    (tmp_path / "my_networks.py").write_text(SOURCE.replace("6", "7"))
    for command in ("evaluate", "curve"):
        with pytest.raises(InputError, match=r"no longer builds .* '0.weight' has shape \(7, 4\), and had \(6, 4\)"):
            launch(tmp_path, command, named=(), checkpoint=str(changing))

    (tmp_path / "my_networks.py").unlink()
    (tmp_path / "my_data.npz").unlink()
    drawn = launch(tmp_path, "sample", named=(), checkpoint=str(changing), count=2)
    assert (drawn / "samples.safetensors").exists() and "as the flow drew them, not measured anew" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"There is no file .*my_data\.npz"):
        launch(tmp_path, "evaluate", named=(), checkpoint=str(changing))


def test_a_changed_folder_is_noticed(changing, tmp_path, capsys):
    from lab.checks import InputError

    (tmp_path / "nets" / "network-0001.safetensors").rename(tmp_path / "nets" / "network-9999.safetensors")
    for command in ("posterior", "density"):
        launch(tmp_path, command, named=(), checkpoint=str(changing), count=2, steps=2)
        assert f"The networks in {tmp_path / 'nets'} have changed since the flow was fitted" in capsys.readouterr().out
    (tmp_path / "nets" / "network-9999.safetensors").unlink()
    with pytest.raises(InputError, match="runs=12 with snapshots=1 need more than the 11 files"):
        launch(tmp_path, "density", named=(), checkpoint=str(changing), count=2)


# Own files beside those of the library


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"network": "my_networks.py:numbers", "task": "numbers.npz"}, {"mse", "nll", "r2", "calibration"}),
        ({"network": "my_networks.py:one_logit", "task": "two.npz"}, {"accuracy", "nll", "ece"}),
        ({"network": "my_networks.py:build", "task": "iris"}, {"accuracy", "nll", "ece"}),
        ({"hidden": [5], "task": "my_data.npz"}, {"accuracy", "nll", "ece"}),
        ({"network": "my_networks.py:Worded", "task": "my_data.npz", "zoo": {"folder": "worded"}}, {"accuracy", "nll", "ece"}),
    ],
)
def test_own_files_and_those_of_the_library_go_together(options, scores, there, capsys):
    if options.get("zoo") and not Path("worded").exists():
        build = builder_of("my_networks.py:Worded")
        spec = geoflow.spec_of(build(), torch.zeros(2, 4))
        geoflow.write_networks("worded", spec, geoflow.pack(spec, [build() for _ in range(12)]))
    folder = launch(there, named=(), **{"zoo": {"epochs": 1, "batch": 16}} | TINY | options)
    metrics = read(folder, "metrics.json")
    assert set(metrics["generated"]) == set(metrics["zoo"]) == scores
    usual = "The usual one is taken: runs=12 snapshots=1 zoo.epochs=1 zoo.batch=16 zoo.lr=0.003" in capsys.readouterr().out
    assert usual == ("zoo" not in options)
    scored = launch(there, "evaluate", named=(), checkpoint=str(folder))
    assert read(scored, "metrics.json")["generated"] == metrics["generated"]


def test_another_code_of_the_same_print_has_another_zoo(there):
    from lab.collect import whole_zoo
    from run import ex

    def zoo_of(sign: str, name: str = "make"):
        Path("twins.py").write_text(TWINS.replace("+1", sign))
        options = {"network": f"twins.py:{name}", "task": "my_data.npz", "runs": 4, "zoo": {"epochs": 1, "batch": 16}}
        config = ex.run("print_config", {**options, "cache": str(there / "cache")}, options={"--file_storage": "runs"}).config
        return whole_zoo(config, "cpu")[3]

    one, again, other, second = (zoo_of(*code) for code in (("+1",), ("+1",), ("-1",), ("-1", "unlike")))
    assert torch.equal(one.thetas, again.thetas)
    assert not torch.allclose(one.thetas, other.thetas) and not torch.allclose(other.thetas, second.thetas)


@pytest.mark.parametrize(("network", "form"), [("my_networks.py:pixels", "image"), ("mlp", "table"), ("cnn", "image")])
def test_a_network_gets_the_form_that_it_takes(network, form, there):
    from lab.own import task_of

    assert task_of("digits", network, 0).form == form
    images = np.zeros((6, 1, 8, 8))
    np.savez("images.npz", x_train=images, y_train=np.arange(6) % 10, x_test=images, y_test=np.arange(4, 10))
    assert task_of("images.npz", network, 0).form == form


def test_files_in_a_row_may_be_snapshots_of_one_run(there, tmp_path):
    from run import ex

    def counted(**options):
        config = ex.run("print_config", {**USE, **options}, options={"--file_storage": str(tmp_path)}).config
        return config["runs"], config["snapshots"], config["batch"]

    assert counted(zoo={"folder": "checkpoints"}) == (12, 1, 10)
    assert counted(zoo={"folder": "checkpoints"}, snapshots=2) == (6, 2, 10)
    assert counted(zoo={"folder": "checkpoints"}, snapshots=2, runs=5) == (5, 2, 8)
    assert counted(zoo={"folder": "checkpoints/network-000*"}) == (9, 1, 8)


# Mistakes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("network=mine.py:build task=my_data.npz", "mine.py. A network of your own is named as my_networks.py:build"),
        ("network=my_networks.py:bild task=my_data.npz", "has no function 'bild'. Its functions: build, wider, numbers"),
        ("network=my_networks.py task=my_data.npz", "my_networks.py names no function. Its functions: build"),
        ("network=my_networks.py:nothing task=my_data.npz", "my_networks.py:nothing returns a NoneType, not a torch.nn.Module"),
        ("network=my_networks.py:sized task=my_data.npz", "Write one without arguments, such as def build(): return sized(8)."),
        ("network=my_networks.py:ready task=my_data.npz", "'ready' in"),
        ("network=my_networks.py:build", "my_networks.py:build needs data: task=my_data.npz"),
        ("network=my_networks.py:build task=my_data.npz hidden=[3]", "a function without arguments, so hidden=[3] would change nothing"),
        ("network=my_networks.py:pixels task=my_data.npz", "network=my_networks.py:pixels does not take examples of shape [4]"),
        ("network=my_networks.py:numbers task=my_data.npz", "gives 2 outputs, and my_data.npz needs 3: it has 3 classes"),
        ("network=my_networks.py:build task=numbers.npz", "needs 2: a mean and a log-variance for each of its 1 real targets"),
        ("network=my_networks.py:pixels task=iris", "network=my_networks.py:pixels does not take examples of shape [4]"),
        ("network=my_networks.py:build task=irs", "Unknown task 'irs'. Known: breast_cancer"),
        ("network=my_networks.py:Worded task=my_data.npz", "gives a dict for 2 examples, and a zoo is trained on outputs"),
        (
            "network=broken.py:build task=my_data.npz",
            "broken.py cannot be imported (ModuleNotFoundError: No module named 'layers_of_mine')",
        ),
        ("network=beside.py:build task=my_data.npz", "It lies beside it: set PYTHONPATH="),
        ("task=none.npz", "There is no file"),
        ("task=my_networks.py", "my_networks.py: it is no .npz file, or it is broken"),
        ("task=my_data.npz network=cnn", "x_train [80, 4] holds rows of a table, and images are needed"),
        ("task=my_data.npz network=bert", "reads words of a vocabulary"),
        ('\'task=["mnist","my_data.npz"]\' condition=task', "takes those of the library, and no file such as my_data.npz"),
        ("{use} zoo.folder=nowhere", "There is no file"),
        ("{use} zoo.folder=empty", "There is no network in"),
        (
            "{use} zoo.folder=foreign",
            "network-0001.safetensors: '0.weight' has shape (9, 4), the traced network (6, 4): two architectures.",
        ),
        ("{use} zoo.folder=few", "runs=2 with heldout=0.125 leave 1 to fit the flow on. That is too few to compare: zoo.folder="),
        ("{use} zoo.folder=checkpoints runs=13", "runs=13 with snapshots=1 need more than the 12 files of zoo.folder="),
        ("{use} zoo.folder=checkpoints snapshots=5", "snapshots=5 of each run do not divide the 12 files"),
        ("{use} zoo.folder=checkpoints runs=many", "runs=many must be a whole number of at least 1."),
        ("{use} zoo.folder=checkpoints batch=32", "batch=32 is more than the 10 networks that the flow is fitted to"),
        ("{use} zoo.folder=checkpoints zoo.epochs=3 zoo.lr=0.1", "so zoo.epochs=3 zoo.lr=0.1 would change nothing. Leave it out."),
        ("{use} zoo.folder=checkpoints part=validation", "which the networks in zoo.folder may have seen"),
        ("{use} zoo.folder=3", "zoo.folder=3 must be text"),
        ("{use} zoo.entry=ema", "zoo.entry=ema says what to read from each file of zoo.folder=..., which is missing."),
        ("{use} zoo.folder=mixed", "Several entries hold networks that fit the spec: ['model'], ['ema']"),
        ("{use} zoo.folder=mixed zoo.entry=best", "There is no entry 'best'. Known: 'model', 'ema'."),
        ("task=iris 'hidden=[[4],[5]]' zoo.folder=checkpoints", "zoo.folder holds networks of one kind"),
    ],
)
def test_a_mistake_is_answered_in_a_line(argv, words, there, capsys, tmp_path):
    Path("broken.py").write_text("import layers_of_mine")
    Path("beside.py").write_text("import broken")
    use = " ".join(f"{name}={value}" for name, value in USE.items())
    answer = say(f"--file_storage={tmp_path} with cache={tmp_path / 'cache'} {argv.format(use=use)}", capsys)
    assert words in answer and "Traceback" not in answer
    assert not list(tmp_path.glob("[0-9]*")), "no run is kept"


def test_an_entry_of_checkpoints_is_chosen(there, capsys):
    from lab.reading import read_zoo_of_files
    from run import ex

    options = {**USE, "zoo": {"folder": "mixed", "entry": "ema"}}
    config = ex.run("print_config", options, options={"--file_storage": "runs"}).config
    spec = geoflow.spec_of(builder_of(USE["network"])(), torch.zeros(2, 4))
    zoo = read_zoo_of_files(config, spec)
    states = [torch.load(f"mixed/{number}.pt")["ema"] for number in range(12)]
    assert torch.equal(zoo.networks, geoflow.pack(spec, states)) and zoo.runs == 12
    assert "Read 12 of 12 state dicts from the entry ['ema']." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None}, "it lacks y_test, and holds x_train, y_train, x_test"),
        ({"y_train": np.zeros(79, int)}, "x_train holds 80 examples, and y_train 79."),
        ({"x_test": np.zeros((40, 5))}, "An example of x_train has shape [4], and one of x_test [5]"),
        ({"x_test": np.zeros((40, 4), int)}, "x_train holds torch.float32, and x_test torch.int64. Both parts need one form."),
        ({"x_train": np.zeros((80, 4), np.uint8)}, "x_train holds uint8. Make it real as in training"),
        ({"x_test": np.full((40, 4), np.nan)}, "x_test holds NaN or Inf"),
        ({"y_test": np.zeros(40)}, "y_train holds int64. Both parts of y need one kind"),
        ({"y_train": np.full(80, -1)}, "y holds classes -1 to -1"),
        ({"y_train": np.zeros((80, 1), int)}, "one class index for each of the 80 examples, not (80, 1)"),
        ({"y_train": np.array([None] * 80)}, "allow_pickle=False"),
        ({"x_test": np.zeros((0, 4)), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"names": np.array(["a", "b"])}, "names holds 2 names, and y has 3"),
    ],
)
def test_arrays_that_make_no_task_are_named(changes, words, tmp_path):
    np.savez(tmp_path / "wrong.npz", **arrays(**changes))
    with pytest.raises(ValueError) as said:
        read_task(tmp_path / "wrong.npz")
    assert words in str(said.value) and str(tmp_path / "wrong.npz") in str(said.value)


def test_a_file_gives_the_arrays_that_it_holds(tmp_path):
    given = arrays(names=np.array(["left", "middle", "right", "none"]))
    np.savez(tmp_path / "named.npz", **given)
    task = read_task(tmp_path / "named.npz")
    assert task.class_names == ("left", "middle", "right", "none") and task.units == 4 and task.form == "table"
    assert torch.equal(task.x_test, torch.from_numpy(given["x_test"]).float()) and torch.equal(
        task.y_train, torch.from_numpy(given["y_train"])
    )
    tokens = {"x_train": np.ones((80, 7), int), "x_test": np.ones((40, 7), int)}
    np.savez(tmp_path / "tokens.npz", **arrays(**tokens))
    assert read_task(tmp_path / "tokens.npz").form == "tokens" and read_task(tmp_path / "tokens.npz").numbers is None
