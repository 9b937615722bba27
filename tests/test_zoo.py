"""The zoo: tasks, networks, training many at once, keeping them."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gaussian_nll_loss

import geoflow
from geoflow import population
from geoflow.outputs.gaussian import FLOOR
from geoflow.randomness import randomness
from geoflow.spec import NetworkSpec, Wire
from geoflow.zoo import cifar, idx, lookup, scaling, store, tasks, train
from geoflow.zoo.halfway import Halfway, digest_of
from geoflow.zoo.networks import NETWORKS, build_network, check_reads, mlp, together
from geoflow.zoo.networks.mlp import ACTIVATIONS
from geoflow.zoo.networks.transformers import Bert, PostNormBlock, PreNormBlock
from geoflow.zoo.recipes import RECIPES, zoo_defaults
from geoflow.zoo.store import Zoo, digest, load_zoo, read_zoo, save_zoo, split_runs
from geoflow.zoo.tasks import TASKS, Task, load_task, validation_task
from geoflow.zoo.train import SCHEDULES, common_start, drawn_data, initial_states, shuffled_batches, train_zoo

TABLES = {"breast_cancer": (569, 30, 2), "digits": (1797, 64, 10), "iris": (150, 4, 3), "wine": (178, 13, 3)}
DATA = Path(os.environ.get("GEOFLOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETTINGS = {"runs": 3, "epochs": 4, "batch": 20, "lr": 1e-2, "weight_decay": 0.1, "snapshots": 2, "every": 2}

EMPTY = NetworkSpec((), ())  # for what looks at no weight

needs_images = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="MNIST is neither in GEOFLOW_DATA nor in ../shared/data")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def iris_mlp():
    return mlp(4, [5], 3)


def dropout_mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 3))


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


@pytest.mark.parametrize(("name", "form"), [("breast_cancer", "table"), ("digits", "table"), ("digits", "image")])
def test_scaler_never_sees_the_test_rows(name, form, monkeypatch):
    before, source = load_task(name, form=form), TASKS[name]

    def corrupted(**options):
        raw = source.load(**options)
        return replace(raw, x_test=raw.x_test * 1000 + 7)

    monkeypatch.setitem(TASKS, name, replace(source, load=corrupted))
    after = load_task(name, form=form)
    assert torch.equal(before.x_train, after.x_train)
    assert not torch.equal(before.x_test, after.x_test)


def test_no_row_is_in_both_parts():
    x = sklearn.datasets.load_breast_cancer().data
    raw = TASKS["breast_cancer"].load(seed=0, folder=None, fetch=offline)
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
    with pytest.raises(ValueError, match=r"Unknown task 'cifar'\. Known: breast_cancer, digits, iris, wine, diabetes, mnist, fashion"):
        load_task("cifar")


def test_images_have_their_pixels_in_place_and_one_scale_for_all():
    table, images = load_task("digits"), load_task("digits", form="image")
    assert images.x_train.shape == (1437, 1, 8, 8) and torch.equal(images.y_train, table.y_train)
    assert abs(images.x_train.mean()) < 1e-6 and abs(images.x_train.std(correction=0) - 1) < 1e-6
    raw = TASKS["digits"].load(seed=0, folder=None, fetch=offline)
    slope, offset = np.polyfit(raw.x_test.ravel(), images.x_test.flatten().numpy(), 1)  # one line through all pixels
    np.testing.assert_allclose(images.x_test.flatten(1).numpy(), slope * raw.x_test + offset, atol=1e-5)


def test_a_form_that_a_task_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"Unknown form of iris 'image'\. Known: table"):
        load_task("iris", form="image")


@needs_images
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_small_images_are_averages_of_four_pixels(name):
    whole, small = (TASKS[task].load(seed=0, folder=DATA, fetch=offline) for task in (name, f"{name}14"))
    images = torch.from_numpy(whole.x_test[:100].astype(np.float32)).view(100, 1, 28, 28)
    averaged = torch.nn.functional.avg_pool2d(images, 2).flatten(1).numpy()
    np.testing.assert_allclose(small.x_test[:100], averaged, rtol=1e-6)
    assert load_task(f"{name}14", folder=DATA, form="image").x_train.shape == (60000, 1, 14, 14)


@needs_images
def test_images_are_read_from_a_folder():
    task = load_task("mnist", folder=DATA, fetch=offline)
    assert task.x_train.shape == (60000, 784) and task.x_test.shape == (10000, 784) and task.classes == 10
    assert torch.bincount(task.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert task.x_train.isfinite().all() and abs(task.x_train.mean()) < 1e-4


@needs_images
def test_fashion_has_its_own_files():
    labels = idx.read_idx(idx.find_idx("fashion", "t10k-labels", DATA, offline), idx.DIGESTS["fashion"]["t10k-labels"])
    assert np.bincount(labels).tolist() == [1000] * 10


@needs_images
def test_environment_names_the_folder(monkeypatch):
    monkeypatch.setenv("GEOFLOW_DATA", str(DATA))
    assert idx.find_idx("mnist", "t10k-labels", None, offline) == DATA / "mnist" / "t10k-labels-idx1-ubyte.gz"


def test_absent_file_offline_says_which_and_where(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(lookup.pooch, "os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"mnist/train-images-idx3-ubyte\.gz nor .*cache.*no network.* Put it in a folder mnist/"):
        load_task("mnist", fetch=offline)


def test_absent_file_is_fetched_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("GEOFLOW_DATA", raising=False)
    monkeypatch.setattr(lookup.pooch, "os_cache", lambda name: tmp_path)
    asked = []
    path = idx.find_idx("fashion", "t10k-labels", None, lambda urls, path: asked.append((urls, path)))
    assert asked == [([mirror + path.name for mirror in idx.MIRRORS["fashion"]], tmp_path / "fashion" / "t10k-labels-idx1-ubyte.gz")]


def test_download_tries_every_mirror(monkeypatch, tmp_path):
    tried = []

    def broken(url, **options):
        tried.append(url)
        raise ConnectionError

    monkeypatch.setattr(lookup.pooch, "retrieve", broken)
    with pytest.raises(OSError, match="a: ConnectionError; b: ConnectionError"):
        lookup.download(["a", "b"], tmp_path / "file")
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


# CIFAR-10


def cifar_archive(path, rows=(8, 8, 8, 8, 8, 24), label=9):
    """Write made-up images in the official format. Return their bytes by file, the last of the test part, and the digest of the archive."""
    generator = np.random.default_rng(0)
    records = [generator.integers(0, 256, (count, 3073), np.uint8) for count in rows]
    for part in records:
        part[:, 0] = np.arange(len(part)) % 10
        part[-1:, 0] = label
    with tarfile.open(path, "w:gz") as archive:
        for name, part in zip([*cifar.PARTS["train"], *cifar.PARTS["test"]], records, strict=True):
            about = tarfile.TarInfo(name)
            about.size = part.nbytes
            archive.addfile(about, io.BytesIO(part.tobytes()))
    return records, hashlib.sha256(path.read_bytes()).hexdigest()


def test_colour_images_are_read_in_the_official_format(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    records, digest = cifar_archive(tmp_path / "cifar10" / cifar.FILE)
    monkeypatch.setattr(cifar, "DIGEST", digest)
    task = load_task("cifar10", folder=tmp_path, fetch=offline)
    train, test = np.concatenate(records[:5]), records[5]
    assert (task.form, task.classes, task.class_names[3]) == ("image", 10, "cat")
    assert task.x_train.shape == (40, 3, 32, 32) and task.x_test.shape == (24, 3, 32, 32)
    assert task.y_train.tolist() == train[:, 0].tolist() and task.y_test.tolist() == test[:, 0].tolist()
    assert abs(task.x_train.mean()) < 1e-5 and abs(task.x_train.std(correction=0) - 1) < 1e-5
    mean, scale = train[:, 1:].mean(), train[:, 1:].std()  # of the training part alone, one for all pixels
    for colour, row, column in ((0, 0, 0), (1, 0, 31), (2, 31, 5)):  # bytes lie by colour, by row and by column
        raw = test[:, 1 + 1024 * colour + 32 * row + column]
        np.testing.assert_allclose(task.x_test[:, colour, row, column].numpy(), (raw - mean) / scale, rtol=1e-5)
    monkeypatch.setattr(scaling, "ROWS", 7)
    assert torch.equal(load_task("cifar10", folder=tmp_path, fetch=offline).x_train, task.x_train)
    part = validation_task(task)
    assert (len(part.x_train), len(part.x_test)) == (30, 10)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / cifar.FILE
    _, digest = cifar_archive(path)
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz has the sha256 .*, expected c4a38c50.* Delete it and fetch it again"):
        cifar.read_cifar(path, cifar.DIGEST)
    assert len(cifar.read_cifar(path, digest)["train"][1]) == 40
    broken = {
        "cut": lambda raw: raw[: len(raw) // 2],
        "no tar": lambda raw: gzip.compress(b"something else"),
        "no gzip": lambda raw: b"<html>",
    }
    for change in broken.values():
        (tmp_path / "broken.tar.gz").write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=r"broken\.tar\.gz is no complete archive of CIFAR-10 \("):
            cifar.read_cifar(tmp_path / "broken.tar.gz", cifar.file_digest(tmp_path / "broken.tar.gz"))
    for change, words in (({"rows": (8, 8, 8, 8, 0, 8)}, "a file has 0 bytes"), ({"label": 10}, "there is a label 10")):
        _, digest = cifar_archive(path, **({"rows": (8,) * 6} | change))
        with pytest.raises(ValueError, match=words):
            cifar.read_cifar(path, digest)


def test_absent_colour_images_are_said_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(lookup.pooch, "os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"cifar10/cifar-10-binary\.tar\.gz nor .*cache.*no network.* Put it in a folder cifar10/"):
        load_task("cifar10", fetch=offline)
    asked = []
    with pytest.raises(FileNotFoundError):
        load_task("cifar10", fetch=lambda urls, path: asked.append((urls, path)))
    assert asked == [(["https://www.cs.toronto.edu/~kriz/" + cifar.FILE], tmp_path / "cache" / "cifar10" / cifar.FILE)]


# Sentences


def write_sentences(folder, **parts):
    (folder / "sst2").mkdir(exist_ok=True)
    for part, lines in parts.items():
        (folder / "sst2" / f"{part}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture
def reviews(tmp_path):
    """Three small files of reviews."""
    train = ["a good film\t1", "a bad film\t0", "bad , bad\t0", "good\t1"]
    return write_sentences(tmp_path, train=train, dev=["good plot\t1"], test=["a dull film\t0", "bad\t0"])


def test_sentences_are_tokens_of_the_words_of_the_training_part(reviews):
    task = load_task("sst2", folder=reviews, fetch=offline)
    assert task.vocabulary == ("[PAD]", "[CLS]", "[UNK]", "bad", "a", "film", "good", ",")
    assert (task.form, task.features, task.classes, task.x_train.dtype, task.numbers) == ("tokens", 32, 2, torch.int64, None)
    assert task.x_train[2].tolist() == [1, 3, 7, 3] + [0] * 28 and task.y_train.tolist() == [1, 0, 0, 1]
    assert task.x_test[0].tolist() == [1, 4, 2, 5] + [0] * 28  # dull is in no training sentence


def test_sentences_are_validated_on_their_official_part(reviews):
    task = load_task("sst2", folder=reviews, fetch=offline)
    valid = validation_task(task)
    assert torch.equal(valid.x_train, task.x_train) and valid.x_test[0, :4].tolist() == [1, 6, 2, 0] and valid.y_test.tolist() == [1]


def test_the_vocabulary_is_cut_at_rare_words_and_sentences_at_their_end(reviews, monkeypatch):
    monkeypatch.setattr(tasks, "WORDS", 5)
    monkeypatch.setattr(tasks, "LENGTH", 3)
    task = load_task("sst2", folder=reviews, fetch=offline)
    assert task.vocabulary[3:] == ("bad", "a") and task.x_train.tolist() == [[1, 4, 2], [1, 4, 3], [1, 3, 2], [1, 2, 0]]


@pytest.mark.parametrize("line", ["no label", "a film\t2", "a film\t", "\t1", "a film\tgood"])
def test_a_broken_line_is_named_by_file_and_number(reviews, line):
    write_sentences(reviews, dev=["fine\t1", line, "bad\t0"])
    with pytest.raises(ValueError, match=r"dev\.tsv\.gz, line 2: '.*' is no sentence, tab and label \(of 0, 1\)\. Mend this line"):
        load_task("sst2", folder=reviews, fetch=offline)


def test_files_without_sentences_are_named(reviews):
    for content in (b"plain text", gzip.compress(bytes(1000))[:-5], gzip.compress(b"\xff\xfe")):
        (reviews / "sst2" / "test.tsv.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"test\.tsv\.gz is no complete gzip archive of UTF-8 text"):
            load_task("sst2", folder=reviews, fetch=offline)
    write_sentences(reviews, test=[])
    with pytest.raises(ValueError, match=r"test\.tsv\.gz holds no sentences"):
        load_task("sst2", folder=reviews, fetch=offline)


def test_absent_sentences_are_said_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setattr(lookup.pooch, "os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"train\.tsv\.gz cannot be downloaded .*official address.* Put it in a folder sst2/"):
        load_task("sst2", folder=tmp_path)


@pytest.mark.skipif(not (DATA / "sst2").is_dir(), reason="SST-2 is neither in GEOFLOW_DATA nor in ../shared/data")
def test_reviews_are_read_from_a_folder():
    task = load_task("sst2", folder=DATA, fetch=offline)
    assert (len(task.x_train), len(task.official[0]), len(task.x_test), len(task.vocabulary)) == (6920, 872, 1821, 2000)


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


# name: (a task of the usual size, small options for the trainings of these tests, weights by default)
SHAPES = {
    "mlp": ("digits", {"hidden": [6]}, 1482),
    "residual_mlp": ("digits", {"width": 6, "depth": 1}, 3450),
    "cnn": ("mnist14", {"width": 2}, 6218),
    "resnet": ("mnist14", {"width": 2}, 5142),
    "vit": ("mnist14", {"width": 4, "depth": 1}, 5546),
    "bert": ("sst2", {"width": 4, "depth": 1}, 37298),
    "resnet18": ("cifar10", {"width": 4, "depth": 1}, 11173962),
    "vit_small": ("cifar10", {"width": 128, "depth": 1}, 21342346),
    "bert_base": ("sst2", {"width": 128, "depth": 1}, 87210242),
}
PUBLISHED = ("resnet18", "vit_small", "bert_base")
SIZES = {"digits": (64,), "mnist14": (1, 14, 14), "sst2": (32,), "cifar10": (3, 32, 32)}


def made_up(network, shape=None, examples=24, words=2000):
    """A task of its form and shape without its data: noise, or sentences of all lengths."""
    name = SHAPES[network][0]
    shape, classes, form = shape or SIZES[name], len("01" if name == "sst2" else "0123456789"), NETWORKS[network].form
    x, y = torch.randn(2, examples, *shape, generator=seeded()), torch.randint(classes, (2, examples), generator=seeded())
    if form == "tokens":
        x = torch.randint(3, words, (2, examples, *shape), generator=seeded())
        x[..., 0] = 1
        x[torch.arange(shape[0]) > torch.randint(2, shape[0], (2, examples, 1), generator=seeded())] = 0
    return Task(name, x[0], y[0], x[1], y[1], tuple(map(str, range(classes))), form, vocabulary=tuple(map(str, range(words))))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in PUBLISHED])
def test_networks_are_small_and_their_tables_hold(name):
    """Every declared symmetry leaves the outputs as they are, for the default sizes and for others."""
    task, (_, small, weights) = made_up(name), SHAPES[name]
    assert sum(parameter.numel() for parameter in build_network(name, task, {}).parameters()) == weights
    assert 5000 <= weights <= 80000 or NETWORKS[name].form == "table"
    for options in ({}, small, *(one for one in ({"depth": 3}, {"norm": "batch"}) if set(one) <= set(NETWORKS[name].options))):
        network = build_network(name, task, options)
        spec = geoflow.spec_of(network, task.x_train[:2])
        assert geoflow.check_spec(network, spec, task.x_train[:2], seeded()) < 1e-12
        assert spec.groups("permutation"), "nothing can be permuted"


@pytest.mark.parametrize(("name", "shape"), [("resnet18", None), ("resnet18", (3, 64, 64)), ("vit_small", None), ("bert_base", None)])
def test_networks_of_published_shapes_are_as_large_and_their_tables_hold(name, shape):
    task, (_, small, weights) = made_up(name, shape, examples=4), SHAPES[name]
    with torch.device("meta"):
        network = build_network(name, task, {})
    assert shape or sum(parameter.numel() for parameter in network.parameters()) == weights
    network = build_network(name, task, small)
    spec = geoflow.spec_of(network, task.x_train[:2])
    assert geoflow.check_spec(network, spec, task.x_train[:2], seeded()) < 1e-12 and spec.groups("permutation")
    assert network(task.x_train).shape == (4, task.units) and not spec.rest.keys() - {n for n in spec.rest if n.endswith("batches_tracked")}


def test_tokens_in_a_file_have_the_published_vocabulary():
    """Their numbers are those of the words, and no file names the words."""
    x = torch.tensor([[1, 30_521, 0]])
    data = Task("my_tokens.npz", x, torch.tensor([0]), x, torch.tensor([1]), ("no", "yes"), "tokens")
    network = build_network("bert_base", data, {"width": 8, "depth": 1})
    assert network.embeddings.word_embeddings.num_embeddings == 30_522 and network.embeddings.position_embeddings.num_embeddings == 512
    for wrong, words in (
        (x + 1, "my_tokens.npz has the token 30522 and texts of 3"),
        (x.new_zeros(1, 513), "the token 30521 and texts of 513"),
    ):
        with pytest.raises(ValueError, match=words):
            build_network("bert_base", replace(data, x_train=wrong), {"width": 8, "depth": 1})


@pytest.mark.parametrize("name", NETWORKS)
def test_many_networks_run_as_each_alone(name):
    task = made_up(name)
    networks = [build_network(name, task, SHAPES[name][1]).eval() for _ in range(3)]
    states = {key: torch.stack([network.state_dict()[key] for network in networks]) for key in networks[0].state_dict()}
    expected = torch.stack([network(task.x_test) for network in networks])
    torch.testing.assert_close(population.run(networks[0], states, task.x_test), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "shape"), [("cnn", (1, 8, 8)), ("cnn", (3, 28, 28)), ("resnet", (3, 28, 28)), ("vit", (1, 8, 8)), ("vit", (1, 28, 28))]
)
def test_image_networks_fit_the_size_of_the_image(network, shape):
    task = made_up(network, shape)
    assert build_network(network, task, {})(task.x_train).shape == (24, 10)


def test_unequal_blocks_of_a_transformer_do_what_torch_does():
    """Pre-norm and post-norm blocks against torch's own encoder layer with the same weights."""
    pre, post = PreNormBlock(8, 2), PostNormBlock(8, 2)
    packed = {"weight": pre.self_attention.qkv.weight, "bias": pre.self_attention.qkv.bias}
    joined = {part: torch.cat([getattr(layer, part) for layer in (post.query, post.key, post.value)]) for part in ("weight", "bias")}
    x, padded = torch.randn(3, 5, 8, generator=seeded()), torch.arange(5) >= torch.tensor([[5], [3], [1]])
    layers = {
        "pre": (packed, pre.self_attention.out_proj, pre.mlp[0], pre.mlp[2], pre.ln_1, pre.ln_2),
        "post": (joined, post.dense, post.intermediate, post.output, post.attention_norm, post.output_norm),
    }
    for kind, (qkv, out, up, down, norm1, norm2) in layers.items():
        torchs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=kind == "pre")
        parts = {"self_attn.out_proj": out, "linear1": up, "linear2": down, "norm1": norm1, "norm2": norm2}
        state = {f"{name}.{key}": value for name, layer in parts.items() for key, value in layer.state_dict().items()}
        torchs.load_state_dict(state | {f"self_attn.in_proj_{key}": value for key, value in qkv.items()})
        if kind == "pre":
            torch.testing.assert_close(pre(x), torchs(x))
        else:
            found, expected = post(x, ~padded[:, None, None, :]), torchs(x, src_key_padding_mask=padded)
            torch.testing.assert_close(found[~padded], expected[~padded])


def test_padding_is_attended_by_nobody():
    network, sentence = Bert(20, 9, 2), torch.tensor([[1, 5, 9, 12, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(network(sentence), network(sentence[:, :4]))
    network.embeddings.word_embeddings.weight.data[0] += 1
    torch.testing.assert_close(network(sentence), network(sentence[:, :4]))
    longer = sentence.clone()
    longer[0, 4] = 7
    assert not torch.allclose(network(longer), network(sentence))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gru", {}, r"Unknown network 'gru'\. Known: mlp, residual_mlp, cnn, resnet, vit, bert"),
        ("cnn", {"depth": 2, "hidden": [3]}, r"network=cnn has no depth=2, hidden=\[3\]\. Its options are width"),
        ("mlp", {"width": 3}, r"network=mlp has no width=3\. Its options are hidden, activation, norm"),
        ("mlp", {"norm": "layer"}, r"Unknown norm 'layer'\. Known: none, batch"),
        ("vit", {"width": 7}, r"width=7 cannot be divided between 2 heads"),
        ("bert", {"width": 7}, r"width=7 cannot be divided between 2 heads"),
        ("vit_small", {"width": 129}, r"width=129 cannot be divided between 2 heads"),
        ("bert_base", {"width": 129}, r"width=129 cannot be divided between 2 heads"),
        ("resnet", {"width": 0}, r"width=0 and depth=1 must be at least 1"),
        ("residual_mlp", {"depth": 0}, r"width=16 and depth=0 must be at least 1"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(name, options, words):
    task = made_up(name if name in NETWORKS else "mlp")
    with pytest.raises(ValueError, match=words):
        build_network(name, task, options)


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        (
            "vit",
            "breast_cancer",
            "network=vit reads images, and task=breast_cancer has none. Tasks for vit: digits, mnist, fashion",
        ),
        ("mlp", "sst2", "network=mlp reads rows of a table, and task=sst2 has none.* Networks for sst2: bert"),
        (
            "bert",
            "mnist",
            "network=bert reads sentences, and task=mnist has none. Tasks for bert: sst2. Networks for mnist: mlp",
        ),
    ],
)
def test_a_task_that_a_network_cannot_read_is_refused(name, task, words):
    with pytest.raises(ValueError, match=words):
        check_reads(name, task)
    with pytest.raises(ValueError, match=words):
        build_network(name, replace(made_up(name), name=task), {})


def test_data_in_another_form_are_refused():
    with pytest.raises(ValueError, match="network=cnn reads the form 'image', and digits was loaded as 'table'"):
        build_network("cnn", load_task("digits"), {})


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [("cnn", (1, 3, 8), "these have 3 x 8 pixels"), ("vit", (1, 11, 14), "No square patches cut an image of 11 x 14 pixels")],
)
def test_images_of_a_wrong_size_are_refused(name, shape, words):
    with pytest.raises(ValueError, match=words):
        build_network(name, made_up(name, shape), {})


def test_the_faster_way_to_train_follows_from_the_size_of_a_batch():
    task = made_up("cnn")
    assert [together("cnn", task, batch, "cpu", 6218) for batch in (64, 65)] == [16, 1]
    assert together("cnn", task, 65, "cuda", 6218) > 16
    assert together("mlp", made_up("mlp"), 128, "cpu", 7960) == 256 and together("bert", made_up("bert"), 1, "cpu", 7960) == 1
    assert together("resnet", task, 64, "cpu", 5310) == 16 and together("resnet", task, 64, "cpu", 236_190) == 1


# Training


@pytest.mark.parametrize("name", NETWORKS)
def test_one_after_the_other_trains_as_all_at_once(name):
    task = made_up(name)
    settings = {"epochs": 2, "batch": 8, "lr": 3e-3, "weight_decay": 0.1, "schedule": "cosine_by_step", "seed": 0, "progress": False}
    build = partial(build_network, name, task, SHAPES[name][1])
    ways = [train_zoo(build, task, runs=4, together=together, **settings) for together in (None, 1, 3)]
    # outputs: a bias of keys, which no output depends on, has a gradient of rounding, and Adam makes full steps of it
    outputs = [population.run(build().eval(), {key: value[:, 0] for key, value in states.items()}, task.x_test) for states in ways]
    assert not torch.allclose(outputs[0][0], outputs[0][1], atol=1e-2)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-4, rtol=1e-3)


def test_runs_of_one_start_begin_there_and_go_their_own_ways():
    task = load_task("iris")
    start = iris_mlp().state_dict()
    settings = {"runs": 3, "epochs": 1, "batch": 20, "weight_decay": 0.0, "seed": 0, "examples": 20, "progress": False}
    states = train_zoo(iris_mlp, task, **settings, lr=1e-3, start=start)
    moved = states["0.weight"][:, 0] - start["0.weight"]
    # the first step of Adam is as long as the learning rate in every coordinate that has a gradient
    assert moved.abs().max() <= 1.001e-3 and (moved.abs() > 0.9e-3).float().mean() > 0.3
    longer = train_zoo(iris_mlp, task, **settings | {"examples": 80}, lr=1e-3, start=start)["0.weight"]
    assert not torch.equal(longer[0], longer[1])  # after one step alone they may have gone the same way: Adam's first step is a sign
    later = train_zoo(iris_mlp, task, **settings | {"runs": 1}, first=2, lr=1e-3, start=start)
    torch.testing.assert_close(later["0.weight"][0], states["0.weight"][2], atol=1e-6, rtol=1e-5)


def test_data_are_drawn_with_replacement_and_stay_the_runs_own():
    rows = drawn_data([seeded(0), seeded(1)], 1000, 1000)
    assert rows.shape == (2, 1000) and rows.min() >= 0 and rows.max() < 1000 and not torch.equal(rows[0], rows[1])
    assert abs(len(rows[0].unique()) - (1 - 1 / np.e) * 1000) < 50  # five deviations
    task = load_task("iris")
    states = train_zoo(iris_mlp, task, **SETTINGS | {"runs": 1, "batch": 5}, examples=5, seed=0, progress=False)
    own = draw_of_run(0, len(task.x_train), 5)
    others = torch.ones(len(task.x_train), dtype=bool).index_fill(0, own, False)
    spoiled = replace(task, x_train=task.x_train.masked_fill(others[:, None], 1e6))
    again = train_zoo(iris_mlp, spoiled, **SETTINGS | {"runs": 1, "batch": 5}, examples=5, seed=0, progress=False)
    assert all(torch.equal(states[name], again[name]) for name in states), "a run sees its own five examples in every epoch"


def draw_of_run(number, available, examples):
    """The rows that a run of seed 0 draws, behind its start."""
    generator = randomness(0, f"run {number}")
    torch.randint(2**62, (), generator=generator)
    return torch.randint(available, (examples,), generator=generator, dtype=torch.int32).long()


def test_the_common_start_is_a_run_of_its_own():
    task, settings = load_task("iris"), {"batch": 20, "lr": 1e-2, "weight_decay": 0.1, "seed": 0, "progress": False}
    start = common_start(iris_mlp, task, epochs=3, schedule="cosine", snapshots=2, every=1, **settings)
    states = train_zoo(iris_mlp, task, runs=1, first=-1, epochs=3, **settings)
    assert all(torch.equal(start[name], states[name][0, 0]) for name in start), "its learning rate is constant"
    first = train_zoo(iris_mlp, task, runs=1, epochs=3, **settings)
    assert not torch.equal(first["0.weight"][0, 0], start["0.weight"])


def test_the_learning_rate_falls_by_the_epoch_or_by_the_step():
    by_epoch, by_step = SCHEDULES["cosine"], SCHEDULES["cosine_by_step"]
    assert by_epoch(0, 0.9, 1) == 1 and by_epoch(1, 0.9, 2) == pytest.approx(0.5)
    assert by_step(0, 0.5, 1) == pytest.approx(0.5) and by_step(1, 0.0, 2) == by_epoch(1, 0.0, 2) and by_step(1, 0.999, 2) < 1e-5


def alone(build, task, runs, settings, seed, loss=cross_entropy):
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
        batches = len(task.x_train) // settings["batch"]
        for i in range(batches):
            for optimizer in optimizers:
                factor = SCHEDULES[settings["schedule"]](epoch, i / batches, settings["epochs"])
                optimizer.param_groups[0]["lr"] = settings["lr"] * factor
            for run, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                rows = order[run, i * settings["batch"] : (i + 1) * settings["batch"]]
                optimizer.zero_grad()
                loss(network(task.x_train[rows]), task.y_train[rows]).backward()
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


def gaussian_loss(outputs, y):
    """Torch's own, of the variance FLOOR + exp(raw log-variance)."""
    mean, raw = outputs.chunk(2, -1)
    return gaussian_nll_loss(mean, y, FLOOR + raw.exp(), full=True, eps=1e-12)


def test_training_on_real_targets_equals_training_by_the_loss_of_torch():
    task, build = load_task("diabetes"), lambda: mlp(10, [5], 2, "tanh")
    states = train_zoo(build, task, **SETTINGS, seed=3, progress=False)
    for run, network in enumerate(alone(build, task, (0, 1, 2), SETTINGS | {"schedule": "constant"}, 3, gaussian_loss)):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(states[name][run, -1], value, rtol=1e-3, atol=1e-4)


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
        ({"schedule": "warm"}, "Unknown schedule 'warm'. Known: constant, cosine, cosine_by_step"),
        ({"examples": 19}, "batch=20 is more than the 19 training examples"),
        ({"together": 0}, "together=0 must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train_zoo(iris_mlp, load_task("iris"), **SETTINGS | change, seed=0, progress=False)


def test_nan_names_the_run():
    built = []

    def second_broken():
        network = iris_mlp()
        if len(built) == 2:  # the first network is built to look at its outputs, and trained by nobody
            nn.init.constant_(network[0].bias, float("nan"))
        built.append(network)
        return network

    with pytest.raises(FloatingPointError, match="The loss of run 1 is not finite in epoch 1"):
        train_zoo(second_broken, load_task("iris"), **SETTINGS, seed=0, progress=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_has_a_recipe_for_every_task_that_it_reads(network):
    assert set(RECIPES) == set(NETWORKS)
    assert set(RECIPES[network]) == {name for name, source in TASKS.items() if NETWORKS[network].form in source.forms}
    settings = {"runs", "epochs", "batch", "lr", "weight_decay", "snapshots", "every", "schedule", "origin", "common", "examples", "init"}
    for task in RECIPES[network]:
        for origin in (None, "independent", "shared"):
            recipe = zoo_defaults(network, task, origin)
            assert set(recipe) == settings and origin in (None, recipe["origin"])
            assert (recipe["common"] is None) == (recipe["origin"] == "independent")


def test_a_common_start_takes_its_training_from_the_recipe():
    assert zoo_defaults("mlp", "iris", "shared")["common"] == zoo_defaults("mlp", "iris")["epochs"]
    bert = zoo_defaults("bert", "sst2")
    assert zoo_defaults("bert", "sst2", "independent")["epochs"] == bert["epochs"] + bert["common"]
    with pytest.raises(ValueError, match=r"Unknown task of vit 'iris'\. Known: mnist14"):
        zoo_defaults("vit", "iris")


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
    monkeypatch.setattr("geoflow.zoo.store.GROUP", 2)
    iris = iris | {"together": 2}
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


@pytest.mark.parametrize(("examples", "together"), [(None, 3), (40, 3), (None, 1)])
def test_an_interrupted_group_goes_on_with_its_epoch(iris, tmp_path, monkeypatch, examples, together):
    """Bit-identical to a training without an interruption, whose batches, moments and snapshots it shares. Finished runs stay."""
    origin = {} if examples is None else {"origin": "shared", "common": 1, "examples": examples}
    iris = iris | {"together": together} | {"settings": SETTINGS | {"epochs": 4, "snapshots": 2, "every": 2} | origin, "build": dropout_mlp}
    iris |= {"spec": geoflow.spec_of(dropout_mlp().eval(), iris["task"].x_train[:1])}
    whole = load_zoo(tmp_path / "whole", **iris, seed=0)
    monkeypatch.setattr("geoflow.zoo.halfway.SECONDS", 0.0)
    stepped, step = [], train.step

    def interrupted(*args):
        stepped.append(args)
        if len(stepped) == stop:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr("geoflow.zoo.train.step", interrupted)
    available, batch = len(iris["task"].x_train), SETTINGS["batch"]
    of_an_epoch = (examples or available) // batch
    runs_before = (3 // together - 1) * 4 * of_an_epoch
    stop = (available // batch if origin else 0) + runs_before + 2 * of_an_epoch + 2  # in the third epoch of the last runs
    with pytest.raises(KeyboardInterrupt):
        load_zoo(tmp_path / "stopped", **iris, seed=0)
    assert len(list((tmp_path / "stopped").glob("*.part"))) == 3 // together
    before = len(stepped)
    again = load_zoo(tmp_path / "stopped", **iris, seed=0)
    assert torch.equal(again.thetas, whole.thetas) and not list((tmp_path / "stopped").glob("*.part"))
    assert len(stepped) - before == 2 * of_an_epoch


def test_what_another_group_left_is_not_used(iris, tmp_path, monkeypatch):
    monkeypatch.setattr("geoflow.zoo.halfway.SECONDS", 0.0)
    state, generators = {"w": torch.ones(2, 3, requires_grad=True)}, [torch.Generator() for _ in range(2)]
    optimizer = torch.optim.AdamW([state["w"]], fused=True)
    state["w"].sum().backward()
    optimizer.step()
    Halfway(tmp_path / "a.part", {"first": 0}).keep(3, state, optimizer, generators, [])
    assert Halfway(tmp_path / "a.part", {"first": 2}).resume(state, optimizer, generators, []) == 0
    assert Halfway(tmp_path / "a.part", {"first": 0}).resume(state, optimizer, generators, []) == 3
    settings = SETTINGS | {"seed": 0, "progress": False, "checkpoint": tmp_path / "zoo"}
    train_zoo(iris_mlp, iris["task"], **settings)
    other = train_zoo(lambda: mlp(4, [5], 3, "tanh"), iris["task"], **settings)
    anew = train_zoo(lambda: mlp(4, [5], 3, "tanh"), iris["task"], **settings | {"checkpoint": None})
    assert torch.equal(other["0.weight"], anew["0.weight"])
    (tmp_path / "a.part").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"a\.part"):
        Halfway(tmp_path / "a.part", {"first": 0}).resume(state, optimizer, generators, [])


def test_of_several_that_want_a_zoo_one_trains_it(iris, tmp_path, monkeypatch):
    trained, train = [], store.train_zoo

    def counted(*args, **options):
        trained.append(args)
        return train(*args, **options)

    monkeypatch.setattr("geoflow.zoo.store.train_zoo", counted)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: load_zoo(tmp_path, **iris, seed=0), range(2))
    assert torch.equal(first.thetas, second.thetas) and len(trained) == 1


def test_later_settings_leave_the_names_of_older_zoos(iris, tmp_path, monkeypatch):
    load_zoo(tmp_path, **iris, seed=0)
    monkeypatch.setattr("geoflow.zoo.store.train_zoo", None)
    later = load_zoo(tmp_path, **iris | {"settings": SETTINGS | {"origin": "independent", "common": None, "examples": None}}, seed=0)
    assert later.start is None and not {"origin", "common", "examples"} & set(later.configuration["settings"])
    (path,) = tmp_path.glob("*.safetensors")
    data = digest_of(iris["task"].x_train, iris["task"].y_train)
    older = {"format": 3, "task": "iris", "data": data, "network": repr(iris_mlp()), "seed": 0}
    assert path.stem == f"zoo-iris-{digest(older | {'settings': {k: v for k, v in SETTINGS.items() if k != 'runs'}})[:16]}"


def test_a_zoo_outlives_what_a_table_says_besides_the_places_of_weights(iris, tmp_path):
    zoo, spec = load_zoo(tmp_path, **iris, seed=0), iris["spec"]
    renamed = replace(spec, wires=(Wire(0, 1, "sum"),))
    assert load_zoo(tmp_path, **iris | {"spec": renamed}, seed=0).spec == renamed != zoo.spec
    moved = replace(spec, tensors=spec.tensors[::-1])
    with pytest.raises(ValueError, match="was packed by another table"):
        load_zoo(tmp_path, **iris | {"spec": moved}, seed=0)


SHARED = SETTINGS | {"origin": "shared", "common": 2}


def test_a_shared_start_is_trained_once_and_kept(iris, tmp_path, monkeypatch):
    monkeypatch.setattr("geoflow.zoo.store.GROUP", 2)
    iris = iris | {"together": 1}
    whole = load_zoo(tmp_path, **iris | {"settings": SHARED}, seed=0)
    shared = {name: value for name, value in SETTINGS.items() if name != "runs"} | {"epochs": 2}
    start = geoflow.pack(iris["spec"], common_start(iris_mlp, iris["task"], **shared, seed=0, progress=False))
    assert torch.equal(whole.start, start) and split_runs(whole, 0.3, seeded())[0].start is whole.start
    states = train_zoo(iris_mlp, iris["task"], **SETTINGS, start=geoflow.unpack(iris["spec"], start), examples=120, together=1, seed=0,
                       progress=False)  # fmt: skip
    assert torch.equal(whole.thetas, geoflow.pack(iris["spec"], states)), "runs draw as many examples as there are"
    monkeypatch.setattr("geoflow.zoo.store.common_start", None)
    larger = load_zoo(tmp_path, **iris | {"settings": SHARED | {"runs": 5}}, seed=0)
    assert torch.equal(larger.thetas[:3], whole.thetas) and larger.runs == 5


@pytest.mark.parametrize("settings", [SETTINGS | {"common": 2}, SETTINGS | {"origin": "shared"}])
def test_an_origin_without_what_it_needs_is_refused(iris, tmp_path, settings):
    with pytest.raises(ValueError, match="origin=shared and common, the epochs of the common training, belong together"):
        load_zoo(tmp_path, **iris | {"settings": settings}, seed=0)
    with pytest.raises(ValueError, match=r"Unknown origin 'pretrained'\. Known: independent, shared"):
        load_zoo(tmp_path, **iris | {"settings": SHARED | {"origin": "pretrained"}}, seed=0)


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
