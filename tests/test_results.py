"""What stands in results/ is what its programs make of the kept runs."""

import json
from copy import deepcopy

import pytest

import geoflow


@pytest.fixture
def results(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments")
    import results

    return results


@pytest.fixture
def pages(results):
    import pages

    return pages


@pytest.fixture
def studies(results):
    import studies

    return studies


RECORD = {
    "host": {"cpu": "", "gpus": None, "os": ["", ""], "python_version": "3"},
    "start_time": "",
    "experiment": {"repositories": [{"commit": "abc", "dirty": False}]},
}


def a_run(folder, command="main", **content):
    """A run folder with what Sacred, and the command, wrote into it."""
    folder.mkdir(exist_ok=True)
    for name, part in {"run": RECORD | {"command": command}, **content}.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return folder


def test_the_pages_are_those_that_the_kept_runs_make(results, pages, studies):
    folders = sorted(path for path in results.RESULTS.iterdir() if path.is_dir())
    assert folders and {path.name for path in folders} <= set(studies.PAGES)
    for folder in folders:
        runs = pages.read_runs(folder)
        pictures = pages.figures(runs)
        assert (folder / "README.md").read_text(encoding="utf-8") == pages.page(folder.name, runs, pictures)
        assert {path.stem for path in (folder / "figures").iterdir()} == set(pictures)
        assert {path.name for path in folder.iterdir()} == {"README.md", "figures", *(pages.name_of(run["config"]) for run in runs)}
        for flow in folder.glob("*/flow.safetensors"):
            assert flow.stat().st_size <= results.LARGEST
            assert geoflow.Flow.load(flow).config["flow"] == pages.read_run(flow.parent)["config"]["flow"]


def test_the_readme_shows_what_the_kept_runs_make(results, pages, studies):
    import headline

    kept = {name: pages.read_runs(results.RESULTS / name) for name in studies.PAGES if (results.RESULTS / name).is_dir()}
    text = results.README.read_text(encoding="utf-8")
    assert headline.inserted(text, headline.headline(kept)) == text
    shown = [line.split(" | ")[0] for line in text.split(headline.BEGIN)[1].split(headline.END)[0].strip().splitlines()[2:]]
    assert shown == [f"| {title}" for title in headline.ROWS]
    with pytest.raises(ValueError, match="lost the marks"):
        headline.inserted("# geoflow", headline.headline(kept))


def test_the_readme_shows_the_flow_of_today_that_was_trained_most(pages, results):
    import headline

    folder = next((results.RESULTS / "main_job").glob("digits-geometric*"))
    run = pages.read_run(folder)
    changes = {"polar": {"flow": "geometric_polar", "iterations": 9000}, "short": {"iterations": 1000}, "long": {}, "again": {"seed": 7}}
    runs = [run | {"config": run["config"] | {"flow": "geometric", "name": name} | change} for name, change in changes.items()]
    assert [one["config"]["name"] for one in headline.most_trained(runs, "digits")] == ["long", "again"]
    assert [one["config"]["name"] for one in headline.most_trained(runs[:1], "digits")] == ["polar"]
    assert headline.most_trained(runs, "mnist") == ()


def test_a_shortfall_is_named(results, studies):
    row = results.read_json(next((results.RESULTS / "main_job").glob("digits-geometric*")) / "metrics.json")
    assert studies.missed_of_the_main_job(row) == []
    worse = deepcopy(row)
    worse["generated"]["nll"]["mean"] = 0.21
    worse["generated"]["accuracy"]["mean"] = 0.93
    worse["novelty"]["ratio"] = 0.5
    assert {"accuracy < 0.9400", "NLL > 0.2000", "novelty"} <= set(studies.missed_of_the_main_job(worse))


def test_mnist_is_held_against_its_own_demands(studies):
    one = {"accuracy": {"mean": 0.925, "std": 0.01}, "nll": {"mean": 0.28}, "ece": {"mean": 0.03}}
    large, small = {"n": 256, "accuracy": 0.5, "ece": 1.0}, {"n": 64, "accuracy": 0.957, "ece": 0.02}
    ensembles = {"generated": large, "generated_64": small, "zoo": large, "zoo_64": small | {"accuracy": 0.96}}
    good = {"generated": one, "ensemble": ensembles, "novelty": {"ratio": 1.0, "copies": 0.01}}
    assert studies.missed_of_mnist(good) == ["log pool not measured"]
    worse = deepcopy(good)
    worse["generated"]["accuracy"] = {"mean": 0.91, "std": 0.03}
    worse["ensemble"]["zoo_64"]["accuracy"] = 0.97
    worse["ensemble"]["generated_64"]["ece"] = 0.04
    assert studies.missed_of_mnist(worse) == ["accuracy < 0.9200", "std > 0.0200", "ensemble accuracy < 0.9650", "log pool not measured"]
    worse["ensemble"]["generated_64"]["log_pool"] = {"accuracy": 0.958, "ece": 0.01}
    worse["ensemble"]["zoo_64"]["log_pool"] = {"accuracy": 0.964, "ece": 0.01}
    assert studies.missed_of_mnist(worse) == ["accuracy < 0.9200", "std > 0.0200", "ensemble accuracy < 0.9590"]
    worse["ensemble"]["generated_64"]["log_pool"]["ece"] = 0.04
    assert "log pool ECE > 0.0300" in studies.missed_of_mnist(worse)


@pytest.mark.parametrize(
    ("couplings", "named"),
    [(["ot", "ot", "independent"], {"-", "coupling independent"}), (["ot", "independent"], {"coupling ot", "coupling independent"})],
)
def test_settings_are_named_where_they_are_not_as_in_most_runs(results, pages, couplings, named):
    kept = next((results.RESULTS / "main_job").glob("digits-geometric*"))
    run = {name: results.read_json(kept / f"{name}.json") for name in ("metrics", "config", "ran")}
    runs = [run | {"config": run["config"] | {"coupling": coupling}} for coupling in couplings]
    assert {settings for _, _, settings in pages.groups(runs)} == named
    assert ("in most runs: digits (coupling ot)" if "-" in named else "in most runs.") in pages.page("main_job", runs, [])


def test_zoos_of_three_sizes_make_a_line_for_each_training(results, pages):
    run = pages.read_run(next((results.RESULTS / "main_job").glob("digits-geometric*-0")))
    changes = [{"runs": runs} for runs in (512, 32, 128)] + [{"runs": 32, "iterations": 8000}, {"runs": 64, "coupling": "ot"}]
    runs = [run | {"config": run["config"] | {"iterations": 1000} | change} for change in changes]
    lines = pages.by_size(runs)["digits"]
    flow = run["config"]["flow"]
    assert {name: [point[0] for point in points] for name, points in lines.items()} == {
        f"{flow}, 1000 iterations, seed 0": [32, 128, 512],
        f"{flow}, 8000 iterations, seed 0": [32],
    }
    assert set(pages.figures(runs)) >= {"sizes-digits"} and not pages.by_size(runs[1:])


def test_a_run_from_before_the_last_layer_was_flat_is_another_than_one_of_today(results, pages):
    config = results.read_json(next((results.RESULTS / "main_job").glob("digits-geometric*")) / "config.json")
    before = {name: value for name, value in config.items() if name != "align"} | {"flow": "geometric"}
    assert pages.name_of(before) == pages.name_of(before | {"flow": "geometric_polar", "align": True})
    assert pages.name_of(before) != pages.name_of(before | {"align": True})
    assert pages.name_of(before) == pages.name_of(before | {"weighting": "balanced"}) != pages.name_of(before | {"weighting": "uniform"})


def test_a_run_of_another_task_is_refused(results, tmp_path):
    with pytest.raises(SystemExit, match="is a run of digits; the page mnist is for mnist"):
        results.keep("mnist", a_run(tmp_path / "run", metrics={}, config={"task": "digits"}))
    with pytest.raises(SystemExit, match="holds no finished run of the main job, nor of curve, sharpen, transfer"):
        results.keep("mnist", a_run(tmp_path / "run", "evaluate", metrics={}, config={"task": "mnist"}))
    with pytest.raises(SystemExit, match="holds no finished run"):
        results.keep("mnist", tmp_path / "nothing")


def test_runs_and_their_curves_are_kept_by_their_settings(results, pages, tmp_path, monkeypatch):
    """A page of two settings and two seeds names what differs, and has a curve where one was drawn."""
    kept = next(path for path in sorted((results.RESULTS / "main_job").iterdir()) if path.name.startswith("digits"))
    run = {name: results.read_json(kept / f"{name}.json") for name in ("metrics", "config", "ran")}
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("<!-- This table is written by `make results`. -->\n<!-- The end of the table. -->\nmore\n")
    for number, change in enumerate([{"seed": 0}, {"seed": 1}, {"seed": 0, "coupling": "ot"}]):
        metrics = run["metrics"] | {"seed": change["seed"]}
        results.keep("main_job", a_run(tmp_path / str(number), metrics=metrics, config=run["config"] | change))
    drawn = {"task": "digits", "sharpness": 0.1, "steps": {"1": run["metrics"]["generated"], "2": run["metrics"]["generated"]}}
    curve = a_run(tmp_path / "curve", "curve", curve=drawn, config={"checkpoint": str(tmp_path / "0")})
    results.keep("main_job", curve)
    one = {"generated": run["metrics"]["generated"], "training": run["metrics"]["zoo"], "ensemble": run["metrics"]["ensemble"]}
    found = {"task": "digits", "count": 9, "steps": 3, "sharpness": {"0.5": one | {"diversity": run["metrics"]["diversity"]}}}
    results.keep("main_job", a_run(tmp_path / "sharper", "sharpen", sharpness=found, config={"checkpoint": str(tmp_path / "0")}))
    scored = {name: run["metrics"][name] for name in ("generated", "ensemble", "task")} | {"parameters": 2410}
    how = {"hidden": [32], "count": 8, "solver": "euler", "steps": 32, "start": 0.0, "sharpness": 0.1, "guidance": 0.0, "seed": 0}
    config = how | {"task": "digits", "checkpoint": str(tmp_path / "0")}
    kept_there = results.keep("main_job", a_run(tmp_path / "wider", "transfer", metrics=scored, config=config))
    assert results.read_json(kept_there / "transfer-digits-32.json")["ran"]["commit"] == ["abc"]
    results.rebuild()
    readme = (tmp_path / "README.md").read_text()
    assert "| digits, 64-10-10 | " in readme and "MNIST" not in readme and readme.endswith("more\n")
    page = (tmp_path / "results" / "main_job" / "README.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| digits | geometric") and line.count("|") > 14]
    assert f"| digits | {pages.today(run['config'])['flow']} | 3 | 0 | " in page  # ahead of the zoo in none of three
    assert [row.split(" | ")[2] for row in rows] == (["-"] * 3 + ["coupling ot"]) * 2 and "(coupling independent)" in page
    assert len(list((tmp_path / "results" / "main_job" / "figures").glob("curve-digits-*-0.png"))) == 1
    (row,) = [line for line in page.splitlines() if line.startswith("| 0.5 | ")]
    assert "## By sharpness: digits-" in page and "(9 networks, 3 steps)" in page
    (_,) = [line for line in page.splitlines() if line.startswith("| digits | 32 | 2410 | 8 | 32 | 0.1 | ")]
    assert "## Transfer, without training: networks that the flow of digits-" in page
    assert row.startswith(f"| 0.5 | {one['generated']['accuracy']['mean']:.4f} | ")
    assert (tmp_path / "results" / "main_job" / "figures" / "tradeoff-digits.png").exists()
    anew = RECORD | {"command": "main", "start_time": "later"}
    (tmp_path / "0" / "run.json").write_text(json.dumps(anew))
    assert {path.name for path in results.keep("main_job", tmp_path / "0").iterdir()} == {"metrics.json", "config.json", "ran.json"}
    (curve / "config.json").write_text(json.dumps({"checkpoint": str(tmp_path / "elsewhere")}))
    with pytest.raises(SystemExit, match="whose flow drew the networks"):
        results.keep("main_job", curve)


def test_every_run_of_a_sweep_can_be(pages, studies):
    from folder import setting
    from sweep import SWEEPS, folder_of, resolved

    for page, sweep in SWEEPS.items():
        assert len({folder_of(page, arguments) for arguments in sweep}) == len(sweep)
        names = set()
        for arguments in sweep:
            config = resolved(arguments)
            asked = studies.PAGES[page].tasks[config["task"]]
            assert {option: setting(config, option) for option in asked} == asked
            names.add(pages.name_of(config))
        assert len(names) == len(sweep), f"{page}: two runs would take each other's place"


def test_a_sweep_goes_on_with_the_runs_that_are_what_it_means_today(pages, tmp_path):
    """The latest of them; one made when a name or a default meant something else is made again."""
    import sweep

    arguments = sweep.SWEEPS["fashion"][3]
    config = sweep.resolved(arguments)
    for number, change in enumerate([{}, {"cache": "/elsewhere"}, {"start": 0.0}], 1):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.json").write_text(json.dumps(dict(config) | change))
    assert sweep.finished(tmp_path, config) is None
    for number in (1, 2, 3):
        (tmp_path / f"{number}" / "metrics.json").touch()
    assert sweep.finished(tmp_path, config) == tmp_path / "2"
    assert sweep.finished(tmp_path, sweep.resolved(sweep.SWEEPS["fashion"][4])) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": "validation"}, "was scored on the validation part; results/ is for the test part"),
        ({"hidden": [12]}, r"has hidden=\[12\]; the page main_job is for hidden=\[10\]"),
    ],
)
def test_a_run_of_another_network_or_part_is_refused(results, tmp_path, change, words):
    kept = next((results.RESULTS / "main_job").glob("digits-geometric*"))
    config = results.read_json(kept / "config.json") | change
    with pytest.raises(SystemExit, match=words):
        results.keep("main_job", a_run(tmp_path / "run", metrics=results.read_json(kept / "metrics.json"), config=config))


def test_a_run_says_what_made_it_and_what_scored_it(pages):
    import tables

    made = {"ran": {"commit": ["1234567890+"]}, "metrics": {}}
    assert tables.commits(made) == "1234567+"
    assert tables.commits(made | {"metrics": {"rescored": {"date": "", "commit": "abcdefghij"}}}) == "1234567+, scored abcdefg"


@pytest.mark.parametrize("change", [{"solver": "heun"}, {"heldout": 0.5}, {"snapshots": 3}, {"guidance": 0.1}, {"ema": 0.9}, {"count": 64}])
def test_a_run_with_another_setting_takes_no_place_of_this_one(results, pages, change):
    config = results.read_json(next((results.RESULTS / "main_job").glob("digits-geometric*")) / "config.json")
    assert pages.name_of(config) != pages.name_of(config | change)
