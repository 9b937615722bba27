"""The main job on networks that would fill the memory: through files, with the scores of memory, going on where it was stopped."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import geoflow
from geoflow.appending import appending_networks
from geoflow.canonical import gathering
from geoflow.canonical import large as aligning
from geoflow.flow import Flow
from geoflow.guidance import no_guidance
from geoflow.latent import large as charting
from geoflow.randomness import randomness
from geoflow.stored import stored
from geoflow.zoo import files, large
from geoflow.zoo.builders import builder_of
from geoflow.zoo.networks import build_network
from geoflow.zoo.own import read_task
from geoflow.zoo.store import split_runs
from geoflow.zoo.tasks import Task
from tests.test_experiments import FIGURES, launch, read, types_of

pytestmark = pytest.mark.usefixtures("experiments_on_path")

PHASES = {"read", "align", "latent", "fit", "generate", "write", "evaluate"}
SOURCE = """
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 3))

def wider():
    return build(5)
"""
NETS = 7
RUN = {"latent": "pca", "iterations": 4, "batch": 2, "count": 3, "steps": 2, "heldout": 0.2}
LITTLE = {"memory": 1e-6}  # GB


def make(folder: Path, build: Callable[[Path, Task], Callable[[], nn.Module]], x: np.ndarray) -> dict:
    """Write data and networks of a user. Return the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(SOURCE)
    y = np.arange(len(x)) % 3
    np.savez(folder / "data.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    task = read_task(folder / "data.npz")
    network = build(folder, task)
    torch.manual_seed(0)
    (folder / "nets").mkdir()
    states = [network().state_dict() for _ in range(NETS)]
    for number, state in enumerate(states[:-2]):
        torch.save(state, folder / "nets" / f"seed{number}.pt")
    for number, state in enumerate(states[-2:], NETS - 2):
        save_file(state, folder / "nets" / f"seed{number}.safetensors")
    return {"task": str(folder / "data.npz"), "zoo": {"folder": str(folder / "nets")}}


def own(folder: Path, name: str = "build") -> dict:
    """The options of a run on a small network of the user's own."""
    made = make(folder, lambda folder, task: builder_of(f"{folder}/mine.py:{name}"), images())
    return made | {"network": f"{folder}/mine.py:build"}


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(32, 3, 6, 6))


@pytest.fixture(autouse=True, scope="module")
def fewer_starts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "STARTS", 2)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    return own(tmp_path_factory.mktemp("mine"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def finished(place, options) -> Path:
    return launch(place, named=(), **options, **RUN, **LITTLE)


@pytest.fixture(scope="module")
def in_memory(place, options) -> Path:
    return launch(place, named=(), **options, **RUN)


def test_a_job_in_files_leaves_networks_and_their_scores(finished, options, place):
    metrics, task = read(finished, "metrics.json"), read_task(options["task"])
    assert set(metrics["time"]) == set(metrics["memory"]) == PHASES
    assert all(seconds > 0 for seconds in metrics["time"].values()) and all(0.05 < held < 50 for held in metrics["memory"].values())
    assert {path.stem for path in (finished / "figures").iterdir()} == FIGURES
    report, said = (finished / "report.md").read_text(), (finished / "cout.txt").read_text()
    assert "most memory, GB" in report and "| align |" in report and "GB of networks are kept in files in" in said
    network = builder_of(options["network"])()
    spec, paths = geoflow.spec_of(network, task.x_train[:2]), sorted((finished / "networks").iterdir())
    assert [path.name for path in paths] == [f"network-000{number}.safetensors" for number in (1, 2, 3)]
    found = geoflow.evaluate(network, spec, geoflow.read_networks(finished / "networks", spec), task.x_test, task.y_test)
    assert found.nll.mean().item() == pytest.approx(metrics["generated"]["nll"]["mean"], rel=1e-4)
    assert not list((place / "cache").glob("files-*/new-*")), "what was made on the way is deleted"
    drawn = launch(place, "sample", named=(), checkpoint=str(finished), count=2)
    assert (drawn / "samples.safetensors").exists()
    kept = Flow.load(finished / "flow.safetensors").chart.pca.matrix
    assert kept.path == finished / "flow.zoo.safetensors" and len(kept) == NETS - 1


def test_scores_are_those_of_memory(finished, in_memory):
    """The networks of both flows differ, because components have no sign. All that stands for the zoo is equal."""
    one, other = (read(folder, "metrics.json") for folder in (finished, in_memory))
    types = types_of(other)
    for pair in types["pairwise"].values():
        pair["wasserstein"] = type(None)
    assert types_of(one) | {"time": 0, "memory": 0} == types | {"time": 0, "memory": 0}
    assert set(other["time"]) == set(other["memory"]) == {"collect", "prepare", "train", "sample", "evaluate"}
    for score in ("accuracy", "nll", "ece"):
        assert one["zoo"][score]["mean"] == pytest.approx(other["zoo"][score]["mean"], rel=1e-4)
        means = [found["baselines"]["mean_network"][score]["mean"] for found in (one, other)]
        assert means[0] == pytest.approx(means[1], rel=1e-2, abs=1e-3)
    for name in ("zoo_leave_one_out", "heldout_to_train"):
        assert one["novelty"][name] == pytest.approx(other["novelty"][name], rel=1e-3)
    assert one["diversity"]["zoo"]["distance"] == pytest.approx(other["diversity"]["zoo"]["distance"], rel=1e-3)
    assert one["recalibrated"] == other["recalibrated"] == 20


@pytest.mark.slow
def test_a_job_that_is_stopped_in_every_phase_comes_to_the_same_end(finished, options, tmp_path, monkeypatch):
    from lab import draw
    from lab.checks import InputError

    from geoflow import training
    from geoflow.evaluation.exam import Exam

    stops = [  # where and after how many calls, and what an earlier call has finished
        (large, "read_network", 3, ()),
        (aligning, "match_units", 1, ()),
        (charting, "measured", 2, (large, "read_network")),
        (training, "train_step", 3, (aligning, "match_units")),
        (draw, "recalibrate", 1, (charting, "measured")),
        (files, "unpack", 1, (training, "train_step")),
        (Exam, "single", 4, (draw, "recalibrate")),
    ]
    for owner, name, most, done in stops:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping(getattr(owner, name), most))
            if done:
                patch.setattr(*done, lambda *given, done=done, **how: pytest.fail(f"{done[1]} was finished before"))
            with pytest.raises(InputError, match=r"Stopped\. The same command goes on"):
                launch(tmp_path, named=(), **options, **RUN, **LITTLE, every=1)
    monkeypatch.setattr(files, "unpack", lambda *given: pytest.fail("unpack was finished before"))
    folder = launch(tmp_path, named=(), **options, **RUN, **LITTLE, every=1)
    found, wanted = (read(one, "metrics.json") for one in (folder, finished))
    for part in ("zoo", "generated", "baselines", "ensemble", "novelty"):
        assert flat(found[part]) == pytest.approx(flat(wanted[part]), rel=1e-3, abs=1e-5), part


def stopping(work: Callable, most: int) -> Callable:
    """Return a function that does its work so many times, and is stopped then."""
    calls = []

    def stopped(*given, **how):
        calls.append(1)
        if len(calls) > most:
            raise KeyboardInterrupt
        return work(*given, **how)

    return stopped


def flat(value) -> list[float]:
    return [x for one in value.values() for x in flat(one)] if isinstance(value, dict) else [value or 0.0]


def test_a_full_disk_keeps_what_was_written_and_the_job_goes_on(options, tmp_path, monkeypatch):
    from lab.checks import InputError

    write, left = os.pwrite, [12_000]

    def full(file, content, start):
        left[0] -= len(content) if start else 0
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(file, content, start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"the disk is full after .* Make room, and do the same again: it goes on from there"):
        launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    monkeypatch.undo()
    (kept,) = (tmp_path / "cache").glob("files-*")
    assert list(kept.glob("*.safetensors"))

    def no_room(path, tensors, metadata):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", no_room)
        with pytest.raises(InputError, match=r"network-0001\.safetensors'\. What was written is kept\. Make room, and do the same again"):
            launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    assert read(launch(tmp_path, named=(), **options, **RUN, **LITTLE), "metrics.json")["parameters"] > 0


@pytest.mark.parametrize("more", [{}, {"recalibrate": "never"}, {"polish": 2}, {"polish": 2, "recalibrate": "never"}])
def test_new_networks_in_a_file_are_those_of_memory(more, finished, options, tmp_path):
    """Running statistics and training steps are those of each network alone, so they do not depend on how many are in work."""
    from lab.draw import generate, generate_in_file

    flow, task, network = Flow.load(finished / "flow.safetensors"), read_task(options["task"]), builder_of(options["network"])()
    spec, config = geoflow.spec_of(network, task.x_train[:2]), {**read(finished, "config.json"), **more}
    wanted, paths = generate(flow, network, spec, task, config)
    for _ in range(2):  # the second call finds the file
        found, all_paths = generate_in_file(flow, network, spec, task, config, no_guidance, tmp_path)
        assert found[:].allclose(wanted, atol=1e-4) and all_paths.equal(paths)
    plain = generate(flow, network, spec, task, {**config, "polish": 0})[0]
    assert wanted.equal(plain) == (config["polish"] == 0)


def test_training_steps_name_the_network_whose_loss_is_not_finite(finished, options, tmp_path, monkeypatch):
    from lab import draw

    flow, task, network = Flow.load(finished / "flow.safetensors"), read_task(options["task"]), builder_of(options["network"])()
    spec, config = geoflow.spec_of(network, task.x_train[:2]), {**read(finished, "config.json"), "polish": 2, "recalibrate": "never"}
    broken = draw.generate(flow, network, spec, task, {**config, "polish": 0})[0]
    broken[1] = 1e30
    file = tmp_path / "broken.safetensors"
    with appending_networks(file, spec, broken.dtype) as rows:
        rows.add(broken)
    monkeypatch.setattr(draw, "POLISHED_AT_ONCE", 1)
    monkeypatch.setattr(draw, "sample", lambda *given, into=None, watch, **how: watch(broken) or (stored(file) if into else broken))
    given = flow, network, spec, task, {**config, "steps": 0}
    for call in (lambda: draw.generate(*given), lambda: draw.generate_in_file(*given, no_guidance, tmp_path)):
        with pytest.raises(FloatingPointError, match=r"step 1 the loss of the networks \[1\] is not finite\. Leave polish=2 out"):
            call()


def test_copies_do_not_shift_the_snapshots_of_runs(tmp_path):
    from lab.checks import InputError

    options = own(tmp_path / "mine")
    nets = Path(options["zoo"]["folder"])
    (nets / "seed7.safetensors").write_bytes((nets / "seed6.safetensors").read_bytes())  # of one run
    with pytest.raises(InputError, match=r"1 files of zoo\.folder=.* hold the same bytes as others\. .* Remove these runs"):
        launch(tmp_path, named=(), **options, **RUN, snapshots=2, **LITTLE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_another_network_is_named_before_the_first_is_read(suffix, tmp_path, monkeypatch):
    from lab.checks import InputError

    options, other = own(tmp_path / "mine"), tmp_path / "mine" / "nets" / f"seed9{suffix}"
    made = own(tmp_path / "other", "wider")
    source = {".pt": "seed0.pt", ".safetensors": f"seed{NETS - 1}.safetensors"}[suffix]
    (Path(made["zoo"]["folder"]) / source).rename(other)
    monkeypatch.setattr(large, "read_network", lambda *given: pytest.fail("a file was read"))
    with pytest.raises(InputError, match=rf"seed9\{suffix}: '0.weight' has shape \(5, 3, 3, 3\), the traced network \(4, 3, 3, 3\)"):
        launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    other.write_bytes(other.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"seed9\{suffix}"):
        launch(tmp_path, named=(), **options, **RUN, **LITTLE)


def test_what_needs_all_networks_in_memory_says_so(finished, place):
    from lab.checks import InputError

    with pytest.raises(InputError, match=r"All networks of the zoo are needed in memory here\. .* give memory="):
        launch(place, "stages", named=(), checkpoint=str(finished), count=2, steps=2, **LITTLE)
    assert (launch(place, "stages", named=(), checkpoint=str(finished), count=2, steps=2) / "stages.json").exists()


def test_without_components_the_zoo_stays_in_memory_and_the_cure_is_said(options, tmp_path):
    folder = launch(tmp_path, named=(), **options, **{**RUN, "latent": "none", "velocity": "mlp"}, **LITTLE)
    assert "With latent=pca and without a condition, files keep them" in (folder / "cout.txt").read_text()
    assert (folder / "samples.safetensors").exists()


def test_a_zoo_that_is_trained_goes_to_files_too(options, tmp_path):
    from lab.collect import collect, collect_sparing
    from run import ex

    trained = {name: value for name, value in options.items() if name != "zoo"} | {"runs": 4, "snapshots": 2}
    trained |= {"zoo": {"epochs": 2, "batch": 10}, "cache": str(tmp_path / "cache"), **RUN, **LITTLE}
    config = ex.run("print_config", trained, options={"--file_storage": str(tmp_path)}).config
    found, usual = collect_sparing(config, "cpu"), collect({**config, "memory": 1.0}, "cpu")
    for one, other in ((found.fitted, usual.fitted), (found.heldout, usual.heldout)):
        assert torch.equal(one.thetas[:], other.networks) and torch.equal(one.run_of, other.run_of)
    longer = collect_sparing({**config, "zoo": {**config["zoo"], "epochs": 3}}, "cpu").fitted
    assert longer.configuration != found.fitted.configuration, "trainings of flows to both are kept apart"
    again = collect_sparing(config, "cpu")
    assert again.fitted.thetas.path == found.fitted.thetas.path and again.fitted.configuration == found.fitted.configuration


def test_a_job_that_is_stopped_at_its_last_file_measures_nothing_again(options, tmp_path, monkeypatch):
    """Meanwhile it needs as much disk as it says, and it says which file of another disk the flow needs."""
    from lab import in_files
    from lab.checks import InputError
    from uses import main_job

    from geoflow.evaluation.exam import Exam
    from geoflow.evaluation.keeping import InFiles

    def no_link(place, other):
        if Path(other).name == in_files.POINTS:
            raise OSError(18, "Invalid cross-device link")
        return link(place, other)

    held, drop, link = [], InFiles.drop, os.link
    monkeypatch.setattr(InFiles, "drop", lambda keep, name: held.append(size_of(keep.folder.parent)) or drop(keep, name))
    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="Stopped"):
        patch.setattr(main_job, "write_report", stopping(main_job.write_report, 0))
        launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    monkeypatch.setattr(Exam, "single", lambda *given: pytest.fail("it was measured before"))
    folder = launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    points = Flow.load(folder / "flow.safetensors").chart.pca.matrix.path
    assert f"The flow makes new networks from {points}" in (folder / "cout.txt").read_text()
    networks = size_of(folder / "networks")
    of_the_zoo = (NETS + 1) * networks / RUN["count"]  # its places on the ruler, and the centre that stands beside canonical networks
    assert max(held) - of_the_zoo == in_files.NEW * networks
    assert not list((tmp_path / "cache").glob("files-*/new-*")) and not list((tmp_path / "cache").glob("flow-*"))


def size_of(folder: Path) -> int:
    """The bytes of all networks in the files below a folder, without what was measured of them."""
    paths = [path for path in folder.rglob("*.safetensors") if not path.name.endswith("found.safetensors") and "ruler" not in str(path)]
    return sum(value.nbytes for path in paths for value in load_file(path).values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("network", "x"),
    [
        pytest.param("resnet18", images(), marks=pytest.mark.slow),
        ("vit_small", images()),
        pytest.param("bert_base", np.random.default_rng(0).integers(1, 30_522, (32, 6)), marks=pytest.mark.slow),
    ],
)
def test_published_networks_go_the_same_way(network, x, tmp_path):
    sizes = {"width": 4, "depth": 1}
    options = make(tmp_path / "mine", lambda folder, task: partial(build_network, network, task, sizes), x) | {"network": network, **sizes}
    folder = launch(tmp_path, named=(), **options, **RUN, **LITTLE)
    assert json.loads((folder / "metrics.json").read_text())["time"].keys() == PHASES
    assert len(list((folder / "networks").iterdir())) == 3


def test_the_flow_does_not_see_the_networks_that_are_held_out(options, place, finished):
    spec = geoflow.spec_of(builder_of(options["network"])(), read_task(options["task"]).x_train[:2])
    from geoflow.training import fingerprint
    from geoflow.zoo.store import Zoo

    thetas = geoflow.read_networks(options["zoo"]["folder"], spec)
    fitted, _ = split_runs(Zoo(thetas[:, None], spec, {}), RUN["heldout"], randomness(0, "split"))
    assert Flow.load(finished / "flow.safetensors").config["zoo"] == fingerprint(fitted.networks)
