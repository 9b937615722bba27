"""The main job reaches what is asked of it, from the command line, at full size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "flow", "minutes"),
    [("breast_cancer", "geometric", 5), ("breast_cancer", "euclidean", 5), ("breast_cancer", "normalized", 5), ("digits", "geometric", 30)],
)
def test_the_main_job_meets_its_demands(named, flow, minutes, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from studies import missed_of_the_main_job

    command = [sys.executable, "experiments/run.py", "-F", str(tmp_path), "with", named, f"flow={flow}", f"cache={tmp_path / 'cache'}"]
    subprocess.run(command, cwd=ROOT, check=True)
    metrics = json.loads((tmp_path / "1" / "metrics.json").read_text())
    assert missed_of_the_main_job(metrics) == []
    assert sum(metrics["time"].values()) <= 60 * minutes
