"""Settle what all tests share: threads, plots, data sets, and where randomness comes from."""

import os
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure():
    """Before any test is collected; subprocesses and notebooks inherit the environment."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    if DATA.is_dir():
        os.environ.setdefault("GEOFLOW_DATA", str(DATA))
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def generator() -> torch.Generator:
    """Randomness of a test: its own, and the same every time."""
    return torch.Generator().manual_seed(0)
