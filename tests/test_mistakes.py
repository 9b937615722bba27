"""Mistakes in the use of the library are answered with what is wrong and what is right.

They run in a process of their own, without the annotations' checks, which a user does not have.
"""

import subprocess
import sys

import pytest

SETTING = """
import torch, geoflow
from torch import nn
network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
spec = geoflow.spec_of(network, torch.zeros(1, 4))
zoo = torch.randn(40, spec.weights)
x, y = torch.randn(6, 4), torch.randint(2, (6,))
def fit(zoo): return geoflow.fit(spec, zoo, iterations=1, batch=8, progress=False)
def evaluate(zoo=zoo, network=network, x=x, y=y, **more): return geoflow.evaluate(network, spec, zoo, x, y, **more)
nan = zoo.clone(); nan[3, 1] = float("nan")
for line in LINES:
    try:
        print("FOUND", line, eval(line))
    except Exception as error:
        print(type(error).__name__, error)
"""
MISTAKES = {
    "fit(zoo[0])": r"ValueError A zoo is a tensor [nets, weights] as geoflow.pack(spec, state_dicts) makes it, not (23,) of torch.float32.",
    "fit([network.state_dict()])": "ValueError A zoo is a tensor [nets, weights] as geoflow.pack(spec, state_dicts) makes it, not list.",
    "fit(zoo.long())": "not (40, 23) of torch.int64.",
    "fit(zoo.requires_grad_(True)).losses == []": "FOUND",
    "geoflow.pack(spec, network) in geoflow.pack(spec, [network])": "FOUND",
    "geoflow.pack(spec, [zoo[0]])": "Network 0 of the zoo: This is a Tensor, not a state dict. Pass a network, or its state_dict().",
    "geoflow.pack(spec, 'zoo/')": "ValueError pack takes networks and state dicts, not a str. Read files with geoflow.read_networks.",
    "geoflow.pack(spec, [network, 3])": "ValueError Network 1 of the zoo: This is a int, not a state dict.",
    "geoflow.write_networks('folder', spec, zoo[0])": "thetas must be [nets, weights], not (23,). Pass one network as theta[None].",
    "geoflow.pack(spec, 3)": "ValueError pack takes networks and state dicts, not a int. Pass networks, or their state dicts.",
    "geoflow.read_networks('nowhere', spec)": "FileNotFoundError There is no file nowhere (files that are missing: 1 of 1).",
    "fit(zoo[:1].expand(40, -1))": "ValueError All 40 networks are identical. A flow needs at least 2 that differ.",
    "evaluate(x=(x * 9).to(torch.uint8))": "Images as bytes must be made real as in training, often by x / 255.",
    "evaluate(x=x.numpy())": "torch.from_numpy makes one of an array",
    "evaluate(output='logits')": "ValueError Sequential returns no entry 'logits': it has no entries.",
    "evaluate(nan)": "ValueError Network 3 of the population holds NaN or Inf in '0.weight'.",
    "evaluate(y=y[:5])": "ValueError y must hold one class index for each of the 6 examples, not (5,) of torch.int64.",
    "evaluate(x=x.repeat(250, 1), y=y.repeat(150))": "one class index for each of the 1500 examples, not (900,) of torch.int64.",
    "evaluate(y=y.float())": 'not (6,) of torch.float32. Real targets need outputs="gaussian".',
    "evaluate(y=y.double())": "Class indices are whole numbers: y.long().",
    "evaluate(y=y[:5, None].float(), outputs='gaussian')": "real targets for each of the 6 examples, not (5, 1) of torch.float32.",
    "evaluate(y=y.float(), outputs='gaussian')": "One target for each example is y[:, None].",
    "evaluate(y=torch.zeros(6, 2), outputs='gaussian')": "It needs 4 outputs: a mean and a log-variance for each target.",
    "evaluate(outputs='regression')": "ValueError Unknown outputs 'regression'. Known: classes, gaussian.",
    "evaluate(network=nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)))": "has shape (9, 4), the traced network (3, 4)",
    "geoflow.spec_of(network, torch.zeros(1, 5))": "Is the example an input of it?",
}


@pytest.fixture(scope="module")
def answers():
    script = f"LINES = {list(MISTAKES)}\n{SETTING}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return dict(zip(MISTAKES, [line for line in done.stdout.splitlines() if line.strip()], strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(answers, mistake):
    assert MISTAKES[mistake] in answers[mistake]
