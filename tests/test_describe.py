"""What is said of a table holds: entries that nothing moves stay as they are, and the command line prints it."""

from pathlib import Path

import pytest
import torch

import geoflow
from geoflow.__main__ import main
from geoflow.describe import describe, unmoved
from geoflow.spec import SYMMETRIES
from tests.networks import NETWORKS

SOURCE = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x, z):
        return self.head(self.second(x + self.first(x) * self.mask + z).cumsum(-1))

def words():
    return nn.Sequential(nn.Embedding(1, 3), nn.Flatten(), nn.Linear(21, 2))

def unknown():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).real
    return nn.Sequential(nn.Linear(4, 3), Fourier())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_networks.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_that_nothing_moves_stay_as_they_are_and_all_others_move(name, generator):
    """Eight random symmetries: one alone may leave a group of two units in its order."""
    build, example = NETWORKS[name]
    spec = geoflow.spec_of(build(), example())
    theta = torch.rand(spec.weights, generator=generator, dtype=torch.float64) + 1
    before, changed = geoflow.unpack(spec, theta), set()
    for _ in range(8):
        after = geoflow.unpack(spec, geoflow.apply_symmetry(spec, theta, geoflow.random_symmetry(spec, generator)))
        changed |= {tensor.name for tensor in spec.tensors if not torch.equal(before[tensor.name], after[tensor.name])}
    assert set(unmoved(spec)) == {tensor.name for tensor in spec.tensors} - changed
    said = describe(spec)
    assert f"{spec.weights:,} weights in {len(spec.tensors)} tensors" in said
    assert all(f"{symmetry} {group} of {units} units" in said for symmetry in SYMMETRIES for group, units in spec.groups(symmetry).items())
    assert all(f"linear {group} of " in said and f"width {width}, " in said for group, (_, width) in spec.linear.items())


def test_a_table_is_printed(folder, capsys):
    main(["inspect", "my_networks.py:small", "--input", "4"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "my_networks.py:small, for inputs [4]" in lines
    assert "35 weights in 8 tensors. Symmetries: permutation (1 group), scaling (1 group), sign (1 group)." in lines
    assert "0.weight 3 x 4 weight p0 s0, input" in lines and "3.weight 2 x 3 weight output, p0 c0" in lines
    assert "3.bias output: order and scale of outputs have a meaning" in lines
    assert "1.num_batches_tracked unread: no forward pass in evaluation mode uses it" in lines
    assert lines[-1].startswith("Checked: ")


def test_reasons_follow_wires_and_name_constants(folder, capsys):
    main(["inspect", "my_networks.py:Odd", "--input", "4", "--input", "4"])
    said = " ".join(capsys.readouterr().out.split())
    assert "for inputs [4] and [4]" in said and "Symmetries: none." in said
    assert "first.bias first: tied to the input by a wire (sum)" in said
    assert "second.bias second: an operation of the forward pass tells its units apart" in said
    assert "mask constant: all networks have the values of the traced one" in said


def test_tokens_and_data_give_an_example_too(folder, capsys):
    import numpy as np

    main(["inspect", "my_networks.py:words", "--input", "7", "--tokens"])
    assert "for inputs [7]" in capsys.readouterr().out
    x, y = np.zeros((3, 4)), np.array([0, 1, 0])
    np.savez("my_data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    main(["inspect", "my_networks.py:small", "--data", "my_data.npz"])
    assert "for inputs [4]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("my_networks.py:small", "Say what the network reads: --input 3,32,32 (the shape of one example), or --data my_data.npz."),
        ("my_networks.py:small --input 4 --data my_data.npz", "Say what the network reads"),
        ("my_networks.py:small --input 5", "my_networks.py:small does not take examples of shape [5] in torch.float32 (RuntimeError: mat1"),
        ("my_networks.py:smal --input 4", "has no function 'smal'. Its functions: small, Odd, words, unknown."),
        ("my_network.py:small --input 4", "There is no file my_network.py."),
        ("my_networks.py:unknown --input 4", "No wiring rule for aten.fft_rfft"),
        ("my_networks.py:small --data none.npz --tokens", "--tokens goes with --input"),
        ("my_networks.py:small --data none.npz", "There is no file none.npz."),
    ],
)
def test_a_mistake_is_said_in_a_line(words, answer, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *words.split()])
    assert stopped.value.code == 1 and answer in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "words"), [("4x4", "'4x4' is no shape such as 3,32,32"), ("=-4", "'-4' has a size below 1")])
def test_a_shape_that_is_none_is_refused(shape, words, folder, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "my_networks.py:small", *(["--input" + shape] if shape[0] == "=" else ["--input", shape])])
    assert words in capsys.readouterr().err
