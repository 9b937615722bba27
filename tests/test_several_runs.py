"""The command line with several architectures: the main job, what follows from its flow, and the yardstick of other sizes."""

from pathlib import Path

import matplotlib.image
import pytest
import torch

from geoflow.flow import Flow
from geoflow.zoo import store
from tests.test_experiments import SCHEMA, launch, read, say, timeless, types_of

HIDDEN = [[5], [3], [4, 4]]
LABELS = ["hidden=[5]", "hidden=[3]", "hidden=[4,4]"]
COMMON = {"time", "memory", "flow", "task", "seed"}
FEW = {"count": 4, "steps": 2, "yardstick": 2}

pytestmark = pytest.mark.usefixtures("experiments_on_path")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the runs and the cache of all these tests lie."""
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def alone(place) -> Path:
    """The folder of a run with one architecture."""
    return launch(place, hidden=HIDDEN[0])


@pytest.fixture(scope="module")
def together(alone, place) -> Path:
    """The folder of a run with three, of which the first has a zoo already."""
    return launch(place, hidden=HIDDEN)


def test_each_architecture_has_its_scores_its_samples_and_its_report(together, alone):
    metrics = read(together, "metrics.json")
    assert set(metrics) == {"architectures", *COMMON} and list(metrics["architectures"]) == LABELS
    expected = {name: kind for name, kind in SCHEMA.items() if name not in COMMON}
    for label, block in metrics["architectures"].items():
        assert {**types_of(block), "novelty": {}} == {**expected, "novelty": {}}
        assert {path.name for path in (together / label).iterdir()} == {"samples.safetensors", "report.md", "figures"}
    assert metrics["architectures"][LABELS[0]]["zoo"] == read(alone, "metrics.json")["zoo"]
    assert [one["parameters"] for one in metrics["architectures"].values()] == [43, 27, 55]
    overview = (together / "report.md").read_text()
    assert all(f"[{label}](<{label}/report.md>)" in overview for label in LABELS)
    assert not (together / "samples.safetensors").exists()
    assert len(Flow.load(together / "flow.safetensors").charts) == 3
    said = (together / "cout.txt").read_text()
    assert all(f"{label}:\nzoo " in said for label in LABELS) and "velocity=transformer" in said


def test_every_architecture_has_its_cached_zoo(together, place, monkeypatch):
    monkeypatch.setattr(store, "train_zoo", None)  # so another training would fail
    again = launch(place, hidden=HIDDEN[1:], iterations=2)
    first = read(together, "metrics.json")["architectures"]
    assert all(one["zoo"] == first[label]["zoo"] for label, one in read(again, "metrics.json")["architectures"].items())


def test_one_architecture_in_a_list_is_one(alone, place):
    listed = launch(place, hidden=HIDDEN[:1])
    assert timeless(listed) == timeless(alone)
    assert (listed / "samples.safetensors").exists()


def test_an_interrupted_run_of_several_goes_on_to_the_same_result(together, place, monkeypatch, capsys):
    from lab.options import Interrupted
    from safetensors.torch import load_file

    from geoflow import training

    step, done = training.train_step, []

    def interrupted(*args):
        if len(done) == 12:
            raise KeyboardInterrupt
        done.append(args)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted)
        with pytest.raises(Interrupted):
            launch(place, hidden=HIDDEN, every=5)
    again = launch(place, hidden=HIDDEN, every=5)
    assert "Going on with the interrupted training" in capsys.readouterr().out
    whole, resumed = (load_file(folder / "flow.safetensors") for folder in (together, again))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert timeless(again) == timeless(together)


@pytest.mark.parametrize("label", LABELS)
def test_sample_and_evaluate_serve_the_architecture_that_is_named(label, together, place):
    from lab.folder import read_samples

    named = {} if label == LABELS[0] else {"hidden": HIDDEN[LABELS.index(label)]}
    drawn = launch(place, "sample", named=(), checkpoint=str(together), count=8, **named)
    first, again = (read_samples(folder / "samples.safetensors") for folder in (together / label, drawn))
    assert torch.equal(first.thetas, again.thetas) and first.config["hidden"] == again.config["hidden"] == HIDDEN[LABELS.index(label)]
    expected = read(together, "metrics.json")["architectures"][label]["generated"]
    for folder, more in ((together, named), (drawn, {})):
        scored = launch(place, "evaluate", named=(), checkpoint=str(folder), **more)
        assert read(scored, "metrics.json")["generated"] == expected


MORE = {"sharpen": {"sharpness": 0.1}, "polish": {"polish": 2}, "finetune": {"tuning": {"steps": 2}}, "density": {"probes": 2}}


@pytest.mark.parametrize("command", ["stages", "curve", "sharpen", "polish", "density", "posterior", "finetune"])
def test_analyses_serve_each_architecture(command, together, place):
    more = MORE.get(command, {})
    folder = launch(place, command, named=(), checkpoint=str(together), hidden=[4, 4], count=4, steps=2, **more)
    assert read(folder, "config.json")["hidden"] == [4, 4]
    found = read(folder, next(path.name for path in folder.glob("*.json") if path.name not in {"config.json", "run.json", "info.json"}))
    if command == "posterior":
        assert found["zoo_of_the_flow"]
    if command == "finetune":
        assert "training networks" in found["starts"]
    if command == "density":
        assert found["weights"] == read(together, "metrics.json")["architectures"]["hidden=[4,4]"]["parameters"]


def test_transfer_prints_trained_networks_and_the_flow_s_own_beside_its_own(together, place, capsys):
    folder = launch(place, "transfer", named=(), checkpoint=str(together), hidden=[6, 2], **FEW)
    metrics, said = read(folder, "metrics.json"), capsys.readouterr().out
    assert list(metrics["own"]) == [f"own {label}" for label in LABELS]
    for one in (metrics, *metrics["own"].values()):
        assert types_of(one["trained"]) == types_of(one["generated"])
        assert {name: ensemble["n"] for name, ensemble in one["ensemble"].items()} == {"generated": 4, "generated_2": 2, "trained": 2}
    assert "ensemble of 2 trained" in said and "own hidden=[3]:" in said
    assert metrics["own"]["own hidden=[5]"]["trained"] != metrics["trained"]


def test_the_yardstick_is_trained_once_by_the_recipe_of_the_zoo(alone, place, monkeypatch, capsys):
    first = read(launch(place, "transfer", named=(), checkpoint=str(alone), hidden=[7], **FEW), "metrics.json")
    with monkeypatch.context() as patch:
        patch.setattr(store, "train_zoo", None)
        again = read(launch(place, "transfer", named=(), checkpoint=str(alone), hidden=[7], **FEW), "metrics.json")
    assert again["trained"] == first["trained"]
    as_trained = launch(place, hidden=[7], runs=12)  # the main job of that architecture begins with the same runs
    assert read(as_trained, "metrics.json")["parameters"] == first["parameters"]
    capsys.readouterr()
    without = launch(place, "transfer", named=(), checkpoint=str(alone / "flow.safetensors"), hidden=[7], count=4, steps=2, yardstick=0)
    assert "trained" not in read(without, "metrics.json") and "No networks are trained" not in capsys.readouterr().out


def test_without_the_run_folder_nothing_is_trained_and_this_is_said(alone, place, tmp_path, capsys):
    (tmp_path / "flow.safetensors").write_bytes((alone / "flow.safetensors").read_bytes())
    folder = launch(place, "transfer", named=(), checkpoint=str(tmp_path), hidden=[7], **FEW)
    assert "No networks are trained to compare with:" in capsys.readouterr().out and "trained" not in read(folder, "metrics.json")
    drawn = launch(place, "sample", named=(), checkpoint=str(alone), count=2, steps=2)  # its configuration has no zoo
    (drawn / "flow.safetensors").write_bytes((alone / "flow.safetensors").read_bytes())
    folder = launch(place, "transfer", named=(), checkpoint=str(drawn), hidden=[7], **FEW)
    assert "is of a run that trained no zoo" in capsys.readouterr().out and "trained" not in read(folder, "metrics.json")


def test_widths_scores_every_size_that_the_flow_serves_and_names_the_others(alone, together, place, capsys):
    sizes = {"widths": [3, 6], "depths": [1, 2], **FEW}
    several, one = (launch(place, "widths", named=(), checkpoint=str(folder), **sizes) for folder in (together, alone))
    found, less = read(several, "widths.json"), read(one, "widths.json")
    assert {depth: list(row) for depth, row in found["depths"].items()} == {"1": ["3", "6"], "2": ["3", "6"]} and found["refused"] == []
    assert found["seen"] == {"1": [3, 5], "2": [4]} and less["seen"] == {"1": [5], "2": []}
    assert all("trained" in one and "generated" in one for row in found["depths"].values() for one in row.values())
    assert list(less["depths"]) == ["1"] and [(one["width"], one["depth"]) for one in less["refused"]] == [(3, 2), (6, 2)]
    assert all("never seen the role 'weight:hidden<hidden:1'" in one["reason"] for one in less["refused"])
    said = capsys.readouterr().out
    assert "Width 6, depth 2 is left out: The f" in said and "width=6,depth=2:" in said
    picture = matplotlib.image.imread(several / "figures" / "widths.png")[..., :3]
    assert min(picture.shape[:2]) > 200 and picture.std() > 0.01


def test_where_no_size_is_served_widths_says_why(alone, place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=r"serves none of these sizes\. The field has never seen"):
        launch(place, "widths", named=(), checkpoint=str(alone), widths=[3], depths=[3], **FEW)


def test_every_kind_of_network_has_sizes():
    from geoflow.zoo.networks import NETWORKS, options_of

    for name, network in NETWORKS.items():
        assert options_of(name, network.sized(4, 1)) != options_of(name, network.sized(8, 1))
    assert options_of("mlp", NETWORKS["mlp"].sized(7, 3))["hidden"] == [7, 7, 7]
    with pytest.raises(ValueError, match="network=cnn has no depth=2"):
        options_of("cnn", NETWORKS["cnn"].sized(4, 2))


@pytest.mark.parametrize(
    ("network", "options", "labels"),
    [
        ("mlp", {"hidden": [8, 4]}, [""]),
        ("mlp", {"hidden": [[8], [4, 4]]}, ["hidden=[8]", "hidden=[4,4]"]),
        ("mlp", {"hidden": [[8], []]}, ["hidden=[8]", "hidden=[]"]),
        ("mlp", {"hidden": [[8], [4]], "norm": "none,batch"}, ["hidden=[8],norm=none", "hidden=[4],norm=batch"]),
        ("residual_mlp", {"width": [8, 4], "depth": [1, 2]}, ["width=8,depth=1", "width=4,depth=2"]),
        ("residual_mlp", {"width": 8, "depth": [1, 2]}, ["depth=1", "depth=2"]),
    ],
)
def test_options_that_list_values_are_several_architectures(network, options, labels):
    from lab.architectures import architectures_of, whole_network

    found = architectures_of(whole_network(network, "digits", options))
    assert list(found) == labels
    assert all(one["network"] == network and not isinstance(one["width"], list) for one in found.values())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("with 'hidden=[[3],[0]]'", "hidden=[0] must be a list of widths of at least 1, such as hidden=[16,16], or a list of such lists"),
        ("with 'hidden=[[3],4]'", "hidden=[[3], 4] must be a list of widths"),
        ("with 'hidden=[[3],[3]]'", "hidden=[3] is listed twice. Name it once."),
        ("with 'hidden=[[3],[4]]' norm=none,batch,none", "hidden lists 2 and norm lists 3 values: options that list several"),
        ("with 'hidden=[[3],[4]]' velocity=mlp", "velocity=mlp tells units by their place, and the units of 2 architectures have no"),
        ("with 'hidden=[[3],[4]]' activation=relu,sine", "Unknown activation 'sine'."),
        ("with network=resnet 'width=[2,0]'", "width=0 must be a whole number of at least 1."),
        ("with widths=[3]", "widths serves the command widths, and changes nothing here."),
        ("sample with checkpoint=runs/3 yardstick=3", "yardstick serves the commands transfer and widths, and changes nothing here."),
        ("transfer with checkpoint=runs/3 yardstick=1", "There is no flow at runs/3"),
    ],
)
def test_a_mistake_with_several_is_answered_in_a_line(argv, words, capsys, tmp_path):
    command, _, updates = argv.rpartition("with ")
    answer = say(f"{command} --file_storage={tmp_path} with {updates}", capsys)
    assert words in answer and "Traceback" not in answer
    assert not list(tmp_path.iterdir()), "no run begins"


@pytest.mark.parametrize(
    ("command", "config", "words"),
    [
        ("sample", {"hidden": [9]}, r"fitted to \(hidden=\[5\], hidden=\[3\], hidden=\[4,4\]\); for another hidden use transfer"),
        ("transfer", {"hidden": [3]}, "transfer needs another network than the flow's own"),
        ("sample", {"hidden": [[3]]}, "makes networks of one architecture at a time"),
        ("sample", {"hidden": [[3], [5]]}, r"makes networks of one architecture at a time. Name one of hidden=\[5\], hidden=\[3\]"),
        ("widths", {"widths": [0]}, r"widths=\[0\] must be a list of whole numbers of at least 1"),
        ("widths", {"depths": []}, r"depths=\[\] must be a list of whole numbers"),
        ("transfer", {"hidden": [9], "yardstick": 1}, "yardstick=1 must be 0 or a whole number of at least 2"),
    ],
)
def test_what_commands_on_a_flow_of_several_refuse(command, config, words, together, place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=words):
        launch(place, command, named=(), checkpoint=str(together), count=2, steps=2, **config)
