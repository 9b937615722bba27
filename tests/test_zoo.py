"""The zoo: tasks, networks, training many at once, keeping them."""

import gzip
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import geoflow
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec
from geoflow.zoo import idx, store
from geoflow.zoo.networks import ACTIVATIONS, mlp
from geoflow.zoo.store import ZOO_DEFAULTS, Zoo, digest, load_zoo, read_zoo, save_zoo, split_runs
from geoflow.zoo.tasks import TASKS, load_task, validation_task
from geoflow.zoo.train import SCHEDULES, initial_states, shuffled_batches, train_zoo

TABLES = {"breast_cancer": (569, 30, 2), "digits": (1797, 64, 10), "iris": (150, 4, 3), "wine": (178, 13, 3)}
DATA = Path(os.environ.get("GEOFLOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETTINGS = {"runs": 3, "epochs": 4, "batch": 20, "lr": 1e-2, "weight_decay": 0.1, "snapshots": 2, "every": 2}

EMPTY = NetworkSpec((), ())  # for what looks at no weight

needs_images = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is neither in GEOFLOW_DATA nor in ../shared/data")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def iris_mlp():
    return mlp(4, [5], 3)


def offline(urls, path):
    raise OSError("no network in this test")


# Tasks


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_split_and_stratified(name):
    task, (examples, features, classes) = load_task(name), TABLES[name]
    assert (len(task.x_train) + len(task.x_test), task.features, task.classes) == (examples, features, classes)
    assert len(task.x_test) >= 0.2 * examples
    shares = [torch.bincount(y, minlength=classes) / len(y) for y in (task.y_train, task.y_test)]
    torch.testing.assert_close(*shares, atol=2 / len(task.y_test), rtol=0)  # two rows of the smaller part


def test_split_depends_on_the_seed_alone():
    assert torch.equal(load_task("wine").x_test, load_task("wine", seed=0).x_test)
    assert not torch.equal(load_task("wine").y_test, load_task("wine", seed=1).y_test)


def test_standardise_gives_zero_mean_and_unit_deviation_on_the_training_part_only():
    task = load_task("breast_cancer")
    torch.testing.assert_close(task.x_train.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(task.x_train.std(0, correction=0), torch.ones(30), atol=1e-5, rtol=0)
    assert task.x_test.mean(0).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_scaler_never_sees_the_test_rows(name, monkeypatch):
    before, (source, scaling) = load_task(name), TASKS[name]

    def corrupted(**options):
        raw = source(**options)
        return replace(raw, x_test=raw.x_test * 1000 + 7)

    monkeypatch.setitem(TASKS, name, (corrupted, scaling))
    after = load_task(name)
    assert torch.equal(before.x_train, after.x_train)
    assert not torch.equal(before.x_test, after.x_test)


def test_no_row_is_in_both_parts():
    x = sklearn.datasets.load_breast_cancer().data
    raw = TASKS["breast_cancer"][0](seed=0, folder=None, fetch=offline)
    assert {*map(bytes, raw.x_train)} | {*map(bytes, raw.x_test)} == {*map(bytes, x)}
    assert not {*map(bytes, raw.x_train)} & {*map(bytes, raw.x_test)}


def test_constant_pixels_stay_finite():
    task = load_task("digits")
    assert task.x_train.isfinite().all() and task.x_test.abs().max() < 10


def test_validation_part_comes_from_the_training_part():
    task = load_task("iris")
    valid = validation_task(task)
    rows = torch.cat([valid.x_train, valid.x_test])
    assert torch.equal(rows.sort(0).values, task.x_train.sort(0).values)


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown task 'cifar'\. Known: breast_cancer, digits, iris, wine, mnist, fashion"):
        load_task("cifar")


@needs_images
def test_images_are_read_from_a_folder():
    task = load_task("mnist", folder=DATA, fetch=offline)
    assert task.x_train.shape == (60000, 784) and task.x_test.shape == (10000, 784) and task.classes == 10
    assert torch.bincount(task.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert task.x_train.isfinite().all() and abs(task.x_train.mean()) < 1e-4


@needs_images
def test_fashion_has_its_own_files():
    labels = idx.read_idx(idx.find("fashion", "t10k-labels", DATA, offline), idx.DIGESTS["fashion"]["t10k-labels"])
    assert np.bincount(labels).tolist() == [1000] * 10


@needs_images
def test_environment_names_the_folder(monkeypatch):
    monkeypatch.setenv("GEOFLOW_DATA", str(DATA))
    assert idx.find("mnist", "t10k-labels", None, offline) == DATA / "mnist" / "t10k-labels-idx1-ubyte.gz"


def test_absent_file_offline_says_which_and_where(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(idx.pooch, "os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"mnist/train-images-idx3-ubyte\.gz nor .*cache.*no network.* Put it in a folder mnist/"):
        load_task("mnist", fetch=offline)


def test_absent_file_is_fetched_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("GEOFLOW_DATA", raising=False)
    monkeypatch.setattr(idx.pooch, "os_cache", lambda name: tmp_path)
    asked = []
    path = idx.find("fashion", "t10k-labels", None, lambda urls, path: asked.append((urls, path)))
    assert asked == [([mirror + path.name for mirror in idx.MIRRORS["fashion"]], tmp_path / "fashion" / "t10k-labels-idx1-ubyte.gz")]


def test_download_tries_every_mirror(monkeypatch, tmp_path):
    tried = []

    def broken(url, **options):
        tried.append(url)
        raise ConnectionError

    monkeypatch.setattr(idx.pooch, "retrieve", broken)
    with pytest.raises(OSError, match="a: ConnectionError; b: ConnectionError"):
        idx.download(["a", "b"], tmp_path / "file")
    assert tried == ["a", "b"]


def test_wrong_digest_and_broken_archive_name_the_file(tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"train-labels.*decompresses to bytes of md5 .* expected abc"):
        idx.read_idx(path, "abc")
    path.write_bytes(gzip.compress(bytes(1000))[:-5])
    with pytest.raises(ValueError, match=r"train-labels.*no complete gzip archive"):
        idx.read_idx(path, "abc")


def test_idx_of_known_bytes(tmp_path):
    raw = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])  # two axes, of 2 and 3
    path = tmp_path / "raw.gz"
    path.write_bytes(gzip.compress(raw))
    np.testing.assert_array_equal(idx.read_idx(path, idx.hashlib.md5(raw).hexdigest()), [[0, 1, 2], [3, 4, 5]])


# Networks


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_maps_features_to_classes(activation):
    assert mlp(7, [5, 4], 3, activation)(torch.zeros(2, 7)).shape == (2, 3)
    assert len(mlp(7, [5, 4], 3, activation)) == 5


def test_bad_mlps_are_refused():
    with pytest.raises(ValueError, match=r"Unknown activation 'relu6'\. Known: relu, tanh, gelu"):
        mlp(2, [3], 2, "relu6")
    with pytest.raises(ValueError, match=r"\[2, 0, 2\]"):
        mlp(2, [0], 2)


# Training


def alone(build, task, runs, settings, seed):
    """Plain PyTorch, one network after the other, with the same starts and orders."""
    generators = [randomness(seed, f"run {run}") for run in runs]
    networks = []
    with torch.random.fork_rng(devices=[]):
        for gen in generators:
            torch.manual_seed(int(torch.randint(2**62, (), generator=gen)))
            networks.append(build())
    optimizers = [torch.optim.AdamW(n.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"]) for n in networks]
    for epoch in range(settings["epochs"]):
        order = torch.stack([torch.randperm(len(task.x_train), generator=gen, dtype=torch.int32) for gen in generators])
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings["lr"] * SCHEDULES[settings["schedule"]](epoch / settings["epochs"])
        for i in range(len(task.x_train) // settings["batch"]):
            for run, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                rows = order[run, i * settings["batch"] : (i + 1) * settings["batch"]]
                optimizer.zero_grad()
                cross_entropy(network(task.x_train[rows]), task.y_train[rows]).backward()
                optimizer.step()
    return networks


def batch_norm_net():
    # no bias: before batch norm its gradient is zero but for rounding, which Adam blows up to steps of full length
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def convolution_net():
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("build", [iris_mlp, batch_norm_net, convolution_net])
def test_training_together_equals_training_alone(build, schedule):
    task, settings = load_task("iris"), SETTINGS | {"schedule": schedule}
    states = train_zoo(build, task, **settings, seed=3, first=5, progress=False)
    for run, network in enumerate(alone(build, task, (5, 6, 7), settings, 3)):
        for name, value in network.state_dict().items():
            # float32 sums in another order, 24 steps; Adam divides by the gradient's size, which magnifies
            torch.testing.assert_close(states[name][run, -1], value, atol=1e-5, rtol=1e-4)


def test_runs_differ_and_seeds_repeat():
    task = load_task("iris")
    first, again, other = (train_zoo(iris_mlp, task, **SETTINGS, seed=s, progress=False) for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"][0], first["0.weight"][1])


def test_snapshots_are_states_on_the_way():
    task = load_task("iris")
    states = train_zoo(iris_mlp, task, **SETTINGS, seed=0, progress=False)
    shorter = SETTINGS | {"epochs": 2, "snapshots": 1}
    halfway = train_zoo(iris_mlp, task, **shorter, seed=0, progress=False)
    assert torch.equal(states["2.bias"][:, 0], halfway["2.bias"][:, 0])  # snapshots every 2 of 4 epochs: after 2 and after 4
    assert not torch.equal(states["2.bias"][:, 0], states["2.bias"][:, 1])


def test_global_generators_are_left_alone(monkeypatch):
    torch.manual_seed(5)
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    network = lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.2), nn.Linear(5, 3))  # noqa: E731
    first, again = (train_zoo(network, load_task("iris"), **SETTINGS, seed=0, progress=False) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and not seeded
    assert torch.equal(first["0.weight"], again["0.weight"])  # dropout's masks included


def test_every_epoch_uses_every_row_once():
    batches = torch.cat(list(shuffled_batches([seeded(0), seeded(1)], 12, 4)), 1)
    assert torch.equal(batches.sort(1).values, torch.arange(12).expand(2, 12).int())
    assert not torch.equal(batches[0], batches[1])
    assert sum(b.shape[1] for b in shuffled_batches([seeded(0), seeded(1)], 14, 4)) == 12


def test_starts_are_the_default_initialisation():
    _, states = initial_states(lambda: nn.Linear(100, 50), [seeded(n) for n in range(20)], torch.device("cpu"))
    weight = states["weight"]
    assert weight.abs().max() <= 0.1 and abs(weight.std() - 0.1 / 3**0.5) < 1e-3  # uniform on +-1/sqrt(fan in)
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "runs=0 must be at least 1"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch": 121}, "batch=121 is more than the 120 training examples"),
        ({"snapshots": 3}, "snapshots=3 every 2 epochs do not fit into 4 epochs"),
        ({"schedule": "warm"}, "Unknown schedule 'warm'. Known: constant, cosine"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train_zoo(iris_mlp, load_task("iris"), **SETTINGS | change, seed=0, progress=False)


def test_nan_names_the_run():
    built = []

    def second_broken():
        network = iris_mlp()
        if len(built) == 1:
            nn.init.constant_(network[0].bias, float("nan"))
        built.append(network)
        return network

    with pytest.raises(FloatingPointError, match="The loss of run 1 is not finite in epoch 1"):
        train_zoo(second_broken, load_task("iris"), **SETTINGS, seed=0, progress=False)


@pytest.mark.parametrize("name", ZOO_DEFAULTS)
def test_defaults_are_settings_of_known_tasks(name):
    assert name in TASKS
    assert {"runs", "epochs", "batch", "lr", "weight_decay", "snapshots", "every", "schedule"} == set(ZOO_DEFAULTS[name])


# Store


@pytest.fixture
def iris():
    task = load_task("iris")
    return {"build": iris_mlp, "spec": geoflow.spec_of(iris_mlp(), task.x_train[:1]), "task": task, "settings": SETTINGS, "progress": False}


def test_zoo_holds_what_training_gave(iris, tmp_path):
    zoo = load_zoo(tmp_path, **iris, seed=0)
    states = train_zoo(iris_mlp, iris["task"], **SETTINGS, seed=0, progress=False)
    assert zoo.thetas.shape == (3, 2, iris["spec"].weights) and (zoo.runs, zoo.snapshots) == (3, 2)
    assert torch.equal(zoo.thetas, geoflow.pack(iris["spec"], states))
    assert torch.equal(zoo.networks[3], zoo.thetas[1, 1]) and zoo.run_of.tolist() == [0, 0, 1, 1, 2, 2]
    iris_mlp().load_state_dict(geoflow.unpack(zoo.spec, zoo.networks[0]), strict=True)


def test_cache_is_found_by_its_configuration(iris, tmp_path, monkeypatch):
    first = load_zoo(tmp_path, **iris, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr("geoflow.zoo.store.train_zoo", None)  # a hit trains nothing
        again = load_zoo(tmp_path, **iris, seed=0)
    assert torch.equal(first.thetas, again.thetas) and first.spec == again.spec and first.configuration == again.configuration
    load_zoo(tmp_path, **iris, seed=1)
    load_zoo(tmp_path, **iris | {"settings": SETTINGS | {"lr": 2e-2}}, seed=0)
    load_zoo(tmp_path, **iris | {"task": load_task("iris", seed=1)}, seed=0)
    load_zoo(tmp_path, **iris | {"build": lambda: mlp(4, [5], 3, "tanh")}, seed=0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


def test_an_interrupted_or_larger_zoo_goes_on(iris, tmp_path, monkeypatch):
    whole = load_zoo(tmp_path / "whole", **iris | {"settings": SETTINGS | {"runs": 5}}, seed=0)
    monkeypatch.setattr("geoflow.zoo.store.GROUP", {"cpu": 2})
    trained, kept = [], store.train_zoo

    def interrupted(*args, first, **options):
        trained.append(first)
        if trained == [0, 2]:
            raise KeyboardInterrupt
        return kept(*args, first=first, **options)

    monkeypatch.setattr("geoflow.zoo.store.train_zoo", interrupted)
    grow = partial(load_zoo, tmp_path / "grown", **{**iris, "settings": SETTINGS | {"runs": 5}}, seed=0)
    with pytest.raises(KeyboardInterrupt):
        grow()
    grown = grow()
    assert trained == [0, 2, 2, 4] and grown.configuration == whole.configuration
    torch.testing.assert_close(grown.thetas, whole.thetas, atol=1e-5, rtol=1e-4)  # float32 sums in another order
    fewer = load_zoo(tmp_path / "grown", **iris, seed=0)
    assert torch.equal(fewer.thetas, grown.thetas[:3]) and trained == [0, 2, 2, 4]


def test_of_several_that_want_a_zoo_one_trains_it(iris, tmp_path, monkeypatch):
    trained, train = [], store.train_zoo

    def counted(*args, **options):
        trained.append(args)
        return train(*args, **options)

    monkeypatch.setattr("geoflow.zoo.store.train_zoo", counted)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: load_zoo(tmp_path, **iris, seed=0), range(2))
    assert torch.equal(first.thetas, second.thetas) and len(trained) == 1


def test_corrupt_and_foreign_files_are_refused(iris, tmp_path):
    load_zoo(tmp_path, **iris, seed=0)
    (path,) = tmp_path.glob("*.safetensors")
    zoo = read_zoo(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"zoo-iris-.* is no readable zoo .*Delete it"):
        load_zoo(tmp_path, **iris, seed=0)
    save_zoo(path, replace(zoo, configuration={"format": 0}))
    with pytest.raises(ValueError, match="holds the zoo of another configuration"):
        load_zoo(tmp_path, **iris, seed=0)


def test_failed_write_leaves_nothing(iris, tmp_path, monkeypatch):
    zoo = load_zoo(tmp_path / "cache", **iris, seed=0)
    monkeypatch.setattr("geoflow.files.os.replace", offline)
    with pytest.raises(OSError, match="no network"):
        save_zoo(tmp_path / "new" / "zoo.safetensors", zoo)
    assert not list((tmp_path / "new").iterdir())


def test_batch_norm_zoo_survives_the_store(tmp_path):
    task = load_task("iris")
    spec = geoflow.spec_of(batch_norm_net(), task.x_train[:2])
    zoo = load_zoo(tmp_path, batch_norm_net, spec, task, SETTINGS, seed=0, progress=False)
    shutil.rmtree(tmp_path)
    batch_norm_net().load_state_dict(geoflow.unpack(zoo.spec, zoo.networks[0]), strict=True)


def test_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": [2]}) == digest(json.loads('{"b": [2], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})


def test_split_holds_out_whole_runs():
    zoo = Zoo(torch.arange(10.0).reshape(10, 1, 1).expand(10, 2, 3), EMPTY, {})
    kept, held = split_runs(zoo, 0.2, seeded())
    assert (kept.runs, held.runs) == (8, 2)
    assert {*kept.thetas.unique().tolist()} | {*held.thetas.unique().tolist()} == {*range(10)}
    again, _ = split_runs(zoo, 0.2, seeded())
    assert torch.equal(kept.thetas, again.thetas)
    assert not torch.equal(kept.thetas, split_runs(zoo, 0.2, seeded(1))[0].thetas)


@pytest.mark.parametrize(("runs", "share"), [(0, 0.2), (1, 0.2), (4, 0.0), (4, 1.0), (4, 0.9)])
def test_split_without_a_run_on_one_side_is_refused(runs, share):
    with pytest.raises(ValueError, match=f"Holding out a share of {share} of {runs} runs leaves no run on one side"):
        split_runs(Zoo(torch.zeros(runs, 1, 3), EMPTY, {}), share, seeded())
