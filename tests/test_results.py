"""What stands in results/ is what its programs make of the kept runs."""

from copy import deepcopy

import pytest


@pytest.fixture
def results(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments")
    import results

    return results


def test_the_page_is_the_one_that_the_kept_runs_make(results):
    assert (results.RESULTS / "main_job.md").read_text(encoding="utf-8") == results.rebuild()


def test_a_shortfall_is_named(results):
    row = results._read(next((results.RESULTS / "main_job").glob("digits-geometric-*.json")))["metrics"]
    worse = deepcopy(row)
    worse["generated"]["nll"]["mean"] = 0.21
    worse["generated"]["accuracy"]["mean"] = 0.93
    worse["novelty"]["ratio"] = 0.5
    assert {"accuracy < 0.9400", "NLL > 0.2000", "novelty"} <= set(results.failures(worse))
