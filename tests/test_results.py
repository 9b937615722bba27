"""What stands in results/ is what its programs make of the kept runs."""

import json
from copy import deepcopy

import pytest


@pytest.fixture
def results(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments")
    import results

    return results


def test_the_pages_are_those_that_the_kept_runs_make(results):
    pages = sorted(results.RESULTS.glob("*.md"))
    assert [path.stem for path in pages] == sorted(path.name for path in results.RESULTS.iterdir() if path.is_dir())
    for path in pages:
        assert path.read_text(encoding="utf-8") == results.page(path.stem)


def test_a_shortfall_is_named(results):
    row = results._read(next((results.RESULTS / "main_job").glob("digits-geometric-*.json")))["metrics"]
    assert results.missed_of_the_main_job(row) == []
    worse = deepcopy(row)
    worse["generated"]["nll"]["mean"] = 0.21
    worse["generated"]["accuracy"]["mean"] = 0.93
    worse["novelty"]["ratio"] = 0.5
    assert {"accuracy < 0.9400", "NLL > 0.2000", "novelty"} <= set(results.missed_of_the_main_job(worse))


def test_mnist_is_held_against_its_own_demands(results):
    one = {"accuracy": {"mean": 0.925, "std": 0.01}, "nll": {"mean": 0.28}, "ece": {"mean": 0.03}}
    large, small = {"n": 256, "accuracy": 0.5, "ece": 1.0}, {"n": 64, "accuracy": 0.957, "ece": 0.02}
    ensembles = {"generated": large, "generated_64": small, "zoo": large, "zoo_64": small | {"accuracy": 0.96}}
    good = {"generated": one, "ensemble": ensembles, "novelty": {"ratio": 1.0}}
    assert results.missed_of_mnist(good) == []
    worse = deepcopy(good)
    worse["generated"]["accuracy"] = {"mean": 0.91, "std": 0.03}
    worse["ensemble"]["zoo_64"]["accuracy"] = 0.97
    worse["ensemble"]["generated_64"]["ece"] = 0.04
    assert results.missed_of_mnist(worse) == ["accuracy < 0.9200", "std > 0.0200", "ensemble accuracy < 0.9650", "ensemble ECE > 0.0300"]


def test_a_run_of_another_task_is_refused(results, tmp_path):
    for name, content in {"metrics.json": {"task": "digits"}, "config.json": {}, "run.json": {}}.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="is a run of digits; the table mnist is for mnist"):
        results.keep("mnist", tmp_path)
