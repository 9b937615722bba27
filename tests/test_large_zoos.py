"""Zoos in files: what is done network by network is what memory gives, interruptions and full disks lose nothing, bad files are named."""

import os
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn

from geoflow import read_networks, spec_of, write_networks
from geoflow.appending import appending
from geoflow.stored import mapped, stored
from geoflow.zoo.files import network_files
from geoflow.zoo.large import add_networks, open_zoo


def build(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def spec():
    return spec_of(build(), torch.zeros(2, 4))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "runs").mkdir()
    for number in range(12):
        torch.save(build().state_dict(), tmp_path / "runs" / f"seed{number}.pt")
    return tmp_path / "runs"


def quietly(path, source, spec, **how):
    return add_networks(path, source, spec, progress=False, **how)


# Rows of a file


def test_rows_are_those_of_the_tensor(tmp_path, spec, folder):
    zoo, thetas = quietly(tmp_path / "zoo.safetensors", folder, spec), read_networks(folder, spec)
    rows = zoo.thetas
    for seen, wanted in ((rows, thetas), (mapped(rows, lambda x: 2 * x), 2 * thetas), (rows.to(torch.double), thetas.double())):
        assert seen.shape == tuple(wanted.shape) and seen.dtype == wanted.dtype and seen.numel() == wanted.numel() and len(seen) == 12
        assert all(seen[at].equal(wanted[at]) for at in (0, -1, slice(2, 7), slice(None), slice(5, 5), [3, 1], torch.tensor([0, 11, 0])))
        assert torch.stack(list(seen)).equal(wanted)
        assert [part[:].tolist() for part in seen.split(5)] == [part.tolist() for part in wanted.split(5)]
    with pytest.raises(IndexError):
        rows[12]
    paths = write_networks(tmp_path / "again", spec, rows)
    assert read_networks(paths, spec).equal(thetas)


# Adding networks


def test_a_zoo_is_its_files_and_says_so(tmp_path, spec, folder):
    zoo = quietly(tmp_path / "zoo.safetensors", folder, spec)
    assert zoo.thetas[:].equal(read_networks(folder, spec))
    assert [one["path"] for one in zoo.networks] == [str(path) for path in network_files(folder)]
    assert len({one["sha256"] for one in zoo.networks}) == 12
    with safe_open(tmp_path / "zoo.safetensors", "pt") as file:  # any reader opens it
        assert file.get_tensor("thetas").equal(zoo.thetas[:])
    again = open_zoo(tmp_path / "zoo.safetensors")
    assert again.spec == spec and all(again.spec.rest[name].equal(value) for name, value in spec.rest.items())


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_an_interrupted_zoo_is_whole_and_goes_on(stop, tmp_path, spec, folder, monkeypatch):
    path, read, seen = tmp_path / "zoo.safetensors", [], []

    def interrupted(file, *rest):
        if len(read) == stop + 1:  # the first network is read once more, to know its precision
            raise KeyboardInterrupt
        read.append(file)
        return original(file, *rest)

    from geoflow.zoo import large

    original = large.read_network
    monkeypatch.setattr(large, "read_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(path, folder, spec)
    assert len(open_zoo(path, spec).thetas) == stop
    with path.open("ab") as file:  # what a stop in the middle of a network leaves
        file.write(b"half a network")
    monkeypatch.setattr(large, "read_network", lambda file, *rest: seen.append(file) or original(file, *rest))
    assert quietly(path, folder, spec).thetas[:].equal(read_networks(folder, spec))
    assert seen == network_files(folder)[stop:]  # nothing is read twice
    assert quietly(path, folder, spec).thetas.shape == (12, spec.weights)


def test_more_networks_come_behind(tmp_path, spec, folder):
    path, files = tmp_path / "zoo.safetensors", network_files(folder)
    quietly(path, files[5:7], spec)
    zoo = quietly(path, folder, spec)
    assert zoo.thetas[:].equal(read_networks([*files[5:7], *files[:5], *files[7:]], spec))


def test_a_full_disk_keeps_what_was_written(tmp_path, spec, folder, monkeypatch):
    path, write, left = tmp_path / "zoo.safetensors", os.pwrite, [4 * spec.weights * 3 + 50]

    def full(file, content, start):
        if len(content) != 4 * spec.weights and start:  # a part of a row
            raise OSError(28, "No space left on device")
        if start == 0:
            return write(file, content, start)
        done = min(len(content), left[0])
        left[0] -= done
        if not done:
            raise OSError(28, "No space left on device")
        return write(file, content[:done], start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        OSError, match=r"zoo\.safetensors: the disk is full after 3 networks, which are kept\. The next one needs .* goes on"
    ):
        quietly(path, folder, spec)
    monkeypatch.undo()
    assert open_zoo(path, spec).thetas[:].equal(read_networks(folder, spec)[:3])
    assert quietly(path, folder, spec).thetas[:].equal(read_networks(folder, spec))


@pytest.mark.parametrize(("dtype", "kept"), [(None, torch.float32), (torch.half, torch.half), (torch.double, torch.double)])
def test_the_precision_is_that_of_the_first_network_or_the_one_asked_for(dtype, kept, tmp_path, spec, folder):
    zoo = quietly(tmp_path / "zoo.safetensors", folder, spec, dtype=dtype)
    assert zoo.thetas.dtype == kept and zoo.thetas[:].equal(read_networks(folder, spec).to(kept))


def test_bad_networks_and_files_are_named_and_the_good_ones_kept(tmp_path, spec, folder):
    path, state = tmp_path / "zoo.safetensors", build().state_dict()
    torch.save(state | {"0.bias": torch.full((5,), torch.nan)}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt: '0\.bias' holds NaN"):
        quietly(path, folder, spec)
    assert len(open_zoo(path).thetas) == 3
    torch.save({name: value.double() for name, value in state.items()}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt holds a network in torch\.float64, and .* Make the zoo with dtype=torch\.float64"):
        quietly(path, folder, spec)
    with pytest.raises(ValueError, match=r"holds networks in torch\.float32, not in torch\.float16"):
        quietly(path, folder, spec, dtype=torch.half)
    torch.save(state | {"0.bias": torch.full((5,), 1e6)}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt: A weight is NaN, or too large for torch\.float16"):
        quietly(tmp_path / "half.safetensors", folder, spec, dtype=torch.half)
    torch.save(build().state_dict(), folder / "seed1.pt")
    os.utime(folder / "seed1.pt", (1, 1))
    with pytest.raises(ValueError, match=r"seed1\.pt has changed since it was added"):
        quietly(path, folder, spec)


def test_a_cut_zoo_and_one_of_another_network_are_named(tmp_path, spec, folder):
    path, other = tmp_path / "zoo.safetensors", spec_of(build(6), torch.zeros(2, 4))
    quietly(path, folder, spec)
    for way in (open_zoo, lambda path, spec: quietly(path, folder, spec)):
        with pytest.raises(ValueError, match=r"another architecture: '0\.weight' of shape \[5, 4\] stands where .* shape \[6, 4\]"):
            way(path, other)
    shutil.copy(path, cut := tmp_path / "cut.safetensors")
    os.truncate(cut, path.stat().st_size - 1)
    for way in (open_zoo, lambda path, spec: quietly(path, folder, spec)):
        with pytest.raises(ValueError, match=r"cut\.safetensors is cut short"):
            way(cut, spec)
    (tmp_path / "letter.safetensors").write_text("not a zoo " * 9)
    with pytest.raises(ValueError, match=r"letter\.safetensors is cut short or no safetensors file"):
        open_zoo(tmp_path / "letter.safetensors")
    with appending(tmp_path / "plain.safetensors", "thetas", 7, torch.half, {}) as rows:
        rows.add(torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"plain\.safetensors has no table of its networks"):
        open_zoo(tmp_path / "plain.safetensors")
    for name, size, words, said in (("thetas", 8, {}, "rows of 8 numbers"), ("points", 7, {}, "None of None as 'points'"),
                                    ("thetas", 7, {"spec": "x"}, "another 'spec' of itself")):  # fmt: skip
        with pytest.raises(ValueError, match=said), appending(tmp_path / "plain.safetensors", name, size, torch.half, words):
            pass
    assert len(stored(tmp_path / "plain.safetensors")) == 2


def test_small_tensors_of_every_kind_lie_beside(tmp_path):
    beside = {"a": torch.tensor(True), "b": torch.arange(3), "c": torch.ones(2, 2).bfloat16(), "d": torch.tensor([1], dtype=torch.uint8)}
    for start in (0, 2):
        with appending(tmp_path / "a.safetensors", "thetas", 5, torch.float64, {"x": "y"}, beside) as rows:
            rows.add(torch.full((2, 5), float(start)).double())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert all(file.get_tensor(name).equal(value) for name, value in beside.items())
        assert file.get_tensor("thetas")[:, 0].tolist() == [0, 0, 2, 2]
    other = beside | {"b": torch.arange(1, 4)}
    named = pytest.raises(ValueError, match="holds another 'b'")
    with named, appending(tmp_path / "a.safetensors", "thetas", 5, torch.float64, {"x": "y"}, other):
        pass
