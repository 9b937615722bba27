"""Set what all tests share: threads, plots, data sets and random numbers."""

import os
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure():
    """Set the environment before any test is collected. Subprocesses and notebooks inherit it."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    if DATA.is_dir():
        os.environ.setdefault("GEOFLOW_DATA", str(DATA))
    if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="module")
def experiments_on_path():
    """Let tests import the programs of experiments/, as `python experiments/run.py` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments")
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """Give each test a generator of its own, with the same random numbers every time."""
    return torch.Generator().manual_seed(0)
