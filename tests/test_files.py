"""Folders of networks: what one writes the other reads, plain torch reads it too, and a file that does not fit is named."""

import argparse
import gc
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from geoflow import pack, read_networks, spec_of, write_networks
from geoflow.zoo import files
from geoflow.zoo.files import network_files


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens).relu())


@pytest.fixture(scope="module")
def spec():
    return spec_of(build(), torch.zeros(2, 4))


SAVED = {
    "safetensors": (".safetensors", lambda net, path: save_file(net.state_dict(), path)),
    "save_model": (".safetensors", lambda net, path: save_model(net, str(path))),
    "torch": (".pt", lambda net, path: torch.save(net.state_dict(), path)),
    "torch's older format": (".pth", lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)),
    "bin": (".bin", lambda net, path: torch.save(dict(net.state_dict()), path)),
    "numpy": (".pt", lambda net, path: torch.save({name: value.numpy() for name, value in net.state_dict().items()}, path)),
}
CHECKPOINTS = {
    "state_dict": lambda net: {"state_dict": net.state_dict(), "epoch": 3, "best": np.float64(0.9), "history": np.arange(3)},
    "parallel": lambda net: {"model": nn.DataParallel(net).state_dict(), "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("build_one", [build, Tied])
@pytest.mark.parametrize(("suffix", "save"), SAVED.values(), ids=SAVED)
def test_every_format_is_read(build_one, suffix, save, tmp_path):
    networks, folder = [build_one() for _ in range(12)], tmp_path / "zoo"
    folder.mkdir()
    if "save_file" in save.__code__.co_names and build_one is Tied:
        pytest.skip("save_file refuses tied entries")
    spec = spec_of(networks[0], torch.zeros(2, 4) if build_one is build else torch.tensor([[1, 2]]))
    for number, network in enumerate(networks):
        save(network, folder / f"seed{number}{suffix}")
    (folder / "notes.txt").touch()
    (folder / f".hidden{suffix}").touch()
    expected = pack(spec, networks)
    paths = [folder / f"seed{number}{suffix}" for number in range(12)]
    for source in (folder, str(folder), f"{folder}/seed*{suffix}", f"{tmp_path}/**/seed*{suffix}", paths, map(str, paths)):
        assert torch.equal(read_networks(source, spec), expected)
    assert torch.equal(read_networks(paths[::-1], spec), expected.flip(0))
    assert torch.equal(read_networks(paths[3], spec), expected[3:4])
    assert network_files(folder) == paths  # seed2 comes before seed10


@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_are_opened_and_one_line_says_so(wrap, spec, tmp_path):
    networks = [build() for _ in range(3)]
    for number, network in enumerate(networks):
        torch.save(wrap(network), tmp_path / f"{number}.pt")
    with pytest.warns(UserWarning, match="^Read 3 of 3 state dicts from the entry") as seen:
        found = read_networks(tmp_path, spec)
    assert torch.equal(found, pack(spec, networks)) and len(seen) == 1


def test_of_several_networks_in_one_file_one_is_named(spec, tmp_path):
    model, average = build(), build()
    torch.save({"model": model.state_dict(), "ema": nn.DataParallel(average).state_dict()}, path := tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: Several entries hold networks that fit the spec: \['model'\], \['ema'\].*entry="):
        read_networks(path, spec)
    with pytest.warns(UserWarning, match=r"from the entry \['ema'\], with 'module"):
        assert torch.equal(read_networks(path, spec, entry="ema")[0], pack(spec, average))
    with pytest.raises(ValueError, match=r"There is no entry 'emma'. Known: 'model', 'ema'"):
        read_networks(path, spec, entry="emma")


@pytest.mark.parametrize(("kinds", "expected"), [
    (["float16", "float16"], "float16"), (["bfloat16", "float32"], "float32"), (["float32", "float64", "float32"], "float64"),
])  # fmt: skip
def test_precisions_are_kept_and_joined(kinds, expected, spec, tmp_path):
    networks = [build().to(getattr(torch, kind)) for kind in kinds]
    for number, network in enumerate(networks):
        save_file(network.state_dict(), tmp_path / f"{number}.safetensors")
    found = read_networks(tmp_path, spec)
    assert found.dtype == getattr(torch, expected)
    assert torch.equal(found, torch.stack([pack(spec, network).to(found) for network in networks]))


def test_one_file_is_in_memory_at_a_time(spec, tmp_path, monkeypatch):
    for number in range(5):
        torch.save(build().state_dict(), tmp_path / f"{number}.pt")
    alive, read = weakref.WeakSet(), files._read

    def watched(path):
        gc.collect()
        assert len(alive) == 0
        state = read(path)
        alive.add(state["0.weight"].untyped_storage())
        return state

    monkeypatch.setattr(files, "_read", watched)
    read_networks(tmp_path, spec)


class Code:
    """What a file could run."""

    def __reduce__(self):
        return print, ("run",)


UNFIT = {
    "missing": (".pt", lambda state: {k: v for k, v in state.items() if k != "3.bias"}, "entry '3.bias' is missing"),
    "unknown": (".pt", lambda state: {**state, "4.bias": torch.zeros(1)}, "entries ['4.bias'] are unknown"),
    "shape": (".pth", lambda state: {**state, "3.bias": torch.zeros(4)}, "'3.bias' has shape (4,), the traced network (3,)"),
    "NaN": (".safetensors", lambda state: {**state, "3.bias": torch.full((3,), torch.nan)}, "'3.bias' holds NaN or Inf"),
    "stacked": (".pt", lambda state: {k: torch.stack([v, v]) for k, v in state.items()}, "they hold (2,) networks"),
    "another network": (".pt", lambda state: nn.Linear(2, 2).state_dict(), "was traced. Unknown to it: 'bias'"),
    "a tensor": (".bin", lambda state: torch.zeros(3), "This is a Tensor, not a state dict"),
    "a whole module": (".pt", lambda state: build(), "plain data (WeightsUnpickler error: Unsupported global: GLOBAL torch.nn"),
    "code": (".pt", lambda state: {**state, "code": Code()}, "torch.load(weights_only=True) refuses it"),
    "empty": (".pt", lambda state: b"", "it is corrupt"),
    "text": (".pt", lambda state: b"not a network", "refuses it. It is corrupt"),
    "cut": (".safetensors", lambda state: b"\x01", "is corrupt or not a safetensors file"),
}


@pytest.mark.parametrize(("suffix", "change", "words"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_named_with_the_difference(suffix, change, words, spec, tmp_path, capsys):
    torch.save(build().state_dict(), tmp_path / "0.pt")
    path, content = tmp_path / f"1{suffix}", change(build().state_dict())
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (save_file if suffix == ".safetensors" else torch.save)(content, path)
    with pytest.raises(ValueError) as error:
        read_networks(tmp_path, spec)
    assert path.name in str(error.value) and words in str(error.value)
    assert "run" not in capsys.readouterr().out


def test_where_no_network_is_that_is_said(spec, tmp_path):
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, f"{tmp_path}/*.pt", tmp_path / "none.pt", [tmp_path / "none.pt"], []):
        with pytest.raises(FileNotFoundError, match=r"There is no (network in|file)"):
            read_networks(source, spec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_written_is_read_and_loaded_by_plain_torch(dtype, spec, tmp_path):
    thetas = torch.stack([pack(spec, build()) for _ in range(11)]).to(dtype)
    paths = write_networks(tmp_path / "new" / "folder", spec, thetas)
    assert [path.name for path in paths[:2]] == ["network-0001.safetensors", "network-0002.safetensors"]
    assert network_files(tmp_path / "new" / "folder") == paths
    found = read_networks(tmp_path / "new" / "folder", spec)
    assert found.dtype == dtype and torch.equal(found, thetas)
    for theta, path in zip(thetas, paths, strict=True):
        network = build().to(dtype)
        network.load_state_dict(load_file(path), strict=True)
        assert torch.equal(pack(spec, network), theta)
        assert path.stat().st_size < 2000 + 8 * spec.weights


def test_tied_entries_are_written_under_both_names(tmp_path):
    network = Tied()
    spec = spec_of(network, torch.tensor([[1, 2]]))
    theta = pack(spec, network)
    (path,) = write_networks(tmp_path, spec, theta[None].requires_grad_())
    assert set(load_file(path)) == set(network.state_dict())
    other = Tied()
    other.load_state_dict(load_file(path), strict=True)
    assert torch.equal(pack(spec, other), theta)


def test_more_networks_get_more_digits(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DIGITS", 1)
    paths = write_networks(tmp_path, spec, torch.randn(10, spec.weights))
    assert [path.name for path in network_files(tmp_path)] == [path.name for path in paths]
    assert paths[0].name == "network-01.safetensors"


@pytest.mark.parametrize("there", ["network-0001.safetensors", "network-0900.safetensors", "best.pt"])
def test_networks_are_not_overwritten_nor_joined_by_others(there, spec, tmp_path):
    (tmp_path / there).write_text("mine")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=f"holds 1 networks already, such as {there}"):
        write_networks(tmp_path, spec, torch.zeros(2, spec.weights))
    assert (tmp_path / there).read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_vectors_of_another_network_are_not_written(spec, tmp_path):
    with pytest.raises(ValueError, match="does not fit this spec"):
        write_networks(tmp_path, spec, torch.zeros(2, spec.weights + 1))
    assert not list(tmp_path.iterdir())
