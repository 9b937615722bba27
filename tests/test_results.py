"""What stands in results/ is what its programs make of the kept runs."""

import json
from pathlib import Path

import pytest

import geoflow

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "digits, geometric"
POOLED = {"ensembles", "reliability", "selective", "outside_mirrored14"}  # the figures of what posterior found
LARGEST = 25 * 10**6  # bytes of results/


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch):
    """As `python experiments/results.py` has it."""
    monkeypatch.syspath_prepend(ROOT / "experiments")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Results are kept, and a README is written, below this folder."""
    from pages import kept, write

    folder = tmp_path / "results"
    folder.mkdir()
    for module in (kept, write):
        monkeypatch.setattr(module, "RESULTS", folder)
    monkeypatch.setattr(write, "README", tmp_path / "README.md")
    monkeypatch.setattr(write, "PICTURE", tmp_path)
    (tmp_path / "README.md").write_text("<!-- This table is written by `make results`. -->\n<!-- The end of the table. -->\nmore\n")
    return folder


def content(seed=0, study="main_job", row="digits-geometric"):
    """What is kept of a run, by default one on the digits, by file."""
    folder = ROOT / "results" / study / f"{row}-{seed}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "config")}


def ensembles():
    """What posterior.json may hold."""
    half = {"mean": 0.5, "std": 0.1}
    one = {"groups": 2, "accuracy": half, "nll": half, "brier": half, "ece": half, "area": half}
    told = {"entropy": {"mean": 0.9, "std": 0.0}, "information": {"mean": 0.8, "std": 0.0}}
    auroc = {"1": {"entropy": told["entropy"]}, "2": told, "4": told}
    entropy = {"edges": [0.0, 1.0, 2.0], "inside": [0.9, 0.1], "outside": [0.2, 0.8]}

    def each(found):
        return {kind: dict.fromkeys(("linear", "log"), found) for kind in ("generated", "zoo")}

    return {
        "task": "digits",
        "shown": 4,
        "ensembles": each(dict.fromkeys(("1", "2", "4"), one)),
        "reliability": each({"share": [1.0], "confidence": [0.9], "accuracy": [0.8]}),
        "selective": each({"coverage": [0.5, 1.0], "accuracy": [1.0, 0.9]}),
        "outside": {"mirrored14": each({"auroc": auroc, "entropy": entropy})},
    }


def rivals():
    """What rivals.json may hold."""

    def scored(nll):
        values = {"accuracy": 0.9, "nll": nll, "brier": 0.2, "ece": 0.03, "area": 0.99}
        return {name: {"mean": value, "std": 0.01} for name, value in values.items()}

    alone = {"members": 1, "repeats": 5, "linear": scored(0.3), "log": scored(0.3), "seconds": 1.234}
    ours = {"members": 64, "repeats": 4, "linear": scored(0.2), "log": scored(0.1), "seconds": 1234.0}
    return {"task": "digits", "rivals": {"one network": alone, "flow, ensemble of 64": ours}}


def a_run(folder, command="main", **content):
    """A run folder with what Sacred, and the command, wrote into it."""
    folder.mkdir(exist_ok=True)
    host = {"cpu": "one", "gpus": None, "os": ["", ""], "python_version": "3"}
    info = {"device": "cpu", "threads": 1, "commit": "abcdefghij"}
    record = {"host": host, "start_time": "", "command": command, "experiment": {"repositories": [{"commit": "abcdefghij"}]}}
    for name, part in {"run": record, **({"info": info} if command == "main" else {}), **content}.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return folder


def test_the_pages_are_those_that_the_kept_runs_make():
    from pages.figures import figures
    from pages.kept import RESULTS, folder_of, read
    from pages.studies import STUDIES
    from pages.write import page

    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    assert folders and {path.name for path in folders} <= set(STUDIES)
    for folder in folders:
        frame = read(folder.name)
        pictures = figures(folder.name, frame)
        assert (folder / "README.md").read_text(encoding="utf-8") == page(folder.name, frame, list(pictures))
        assert (folder / "runs.csv").read_text() == frame.to_csv(float_format="%.5g")
        assert {path.stem for path in (folder / "figures").iterdir()} == set(pictures)
        kept = {path.name for label, seed, _ in STUDIES[folder.name].runs() if (path := folder_of(folder.name, label, seed)).exists()}
        assert {path.name for path in folder.iterdir()} == {"README.md", "runs.csv", "figures", *kept}


def test_options_that_older_runs_do_not_record_have_the_value_that_they_had():
    """So runs from before and after such an option lie on one line of a figure."""
    from pages.figures import by_size
    from pages.kept import read

    frame = read("independent")
    assert frame["config.condition"].eq("none").all() and frame["config.condition_strength"].eq(1.0).all()
    lines = by_size(frame)
    for line in ("resnet, 1,500 steps of 32, seed 0", "vit, 1,500 steps of 32, seed 0"):
        assert [point[0] for point in lines[line]] == [64, 192, 576]


def test_results_are_small_and_their_tables_narrow():
    from pages.kept import RESULTS

    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) <= LARGEST
    assert len((RESULTS / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
    for page in RESULTS.rglob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            assert line.count(" | ") < 8, f"{page}: more than eight columns in {line}"


def test_a_kept_flow_is_that_of_its_run():
    from pages.kept import RESULTS, folder_of
    from pages.studies import STUDIES

    wanted = {folder_of(name, label, row.seeds[0]) for name, study in STUDIES.items() for label, row in study.rows.items() if row.flow}
    flows = list(RESULTS.glob("*/*/flow.safetensors"))
    assert flows and {flow.parent for flow in flows} <= wanted
    assert {folder for folder in wanted if folder.exists()} == {flow.parent for flow in flows}
    for flow in flows:
        config = json.loads((flow.parent / "config.json").read_text())
        fitted = geoflow.Flow.load(flow).config
        assert {name: fitted[name] for name in ("flow", "task", "seed", "iterations")} == {
            name: config[name] for name in ("flow", "task", "seed", "iterations")
        }


def test_the_readme_and_the_overview_show_what_the_kept_runs_make():
    from pages.kept import RESULTS, read
    from pages.readme import BEGIN, END, ROWS, inserted, shown
    from pages.studies import STUDIES
    from pages.write import README, overview, rendered

    kept = {study: frame for study in STUDIES if len(frame := read(study))}
    text = README.read_text(encoding="utf-8")
    made = rendered("readme.md.j2", **shown(kept))
    assert inserted(text, made) == text
    titles = [line.split(" | ")[0].removeprefix("| ") for line in text.split(BEGIN)[1].split(END)[0].splitlines() if " | " in line][2:]
    assert titles and titles == [title for title in ROWS if title in titles]
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == overview(kept)
    with pytest.raises(ValueError, match="lost the marks"):
        inserted("# geoflow", made)


def test_each_cell_is_the_mean_over_seeds():
    from pages.kept import read
    from pages.tables import by_label, quality, three

    runs = by_label(read("main_job"))[DIGITS]
    assert runs.index.get_level_values("seed").tolist() == [0, 1, 2]
    each = [content(seed=seed)["metrics"]["generated"] for seed in (0, 1, 2)]
    mean = {score: three(sum(one[score]["mean"] for one in each) / 3) for score in ("accuracy", "nll")}
    row = quality(runs).iloc[0]
    assert row["generated"] == f"{mean['accuracy']} / {mean['nll']}" and row["seeds"] == "0, 1, 2"


def test_the_best_baseline_is_the_one_with_the_lowest_nll():
    from pages.kept import read
    from pages.tables import BASELINES, best

    runs = read("main_job").loc[[(DIGITS, 0)]]
    found = {name: content()["metrics"]["baselines"][name]["nll"]["mean"] for name in BASELINES}
    assert best(runs) == min(found, key=found.get)
    assert best(runs.assign(**{"baselines.gaussian.nll.mean": 0.0})) == "gaussian"
    assert best(runs.assign(**{f"baselines.{best(runs)}.nll.mean": float("nan")})) != best(runs)


def test_runs_and_what_was_found_of_their_flows_are_kept(tmp_path, elsewhere):
    from pages.kept import folder_of
    from pages.tables import three
    from pages.write import rebuild

    import results

    for seed in (0, 1):
        folder = results.keep("main_job", a_run(tmp_path / f"{seed}", **content(seed=seed)))
        assert folder == folder_of("main_job", DIGITS, seed) and folder.is_relative_to(elsewhere)
    new, checkpoint = content()["metrics"], {"checkpoint": str(tmp_path / "0")}
    curve = {"steps": {"1": new["generated"], "2": new["generated"]}}
    results.keep("main_job", a_run(tmp_path / "curve", "curve", curve=curve, config=checkpoint))
    one = {"generated": new["generated"], "training": new["zoo"], "diversity": {"generated": new["diversity"]["generated"]}}
    results.keep("main_job", a_run(tmp_path / "sharper", "sharpen", sharpness={"sharpness": {"0.5": one, "1": one}}, config=checkpoint))
    steps = {"0": new["generated"] | {"novelty": 0.9, "copies": 0.0}, "4": new["zoo"] | {"novelty": 0.8, "copies": 0.2}}
    polish = {"zoo": new["zoo"], "starts": {"generated networks": steps}}
    results.keep("main_job", a_run(tmp_path / "polish", "polish", polish=polish, config=checkpoint))
    layers = {"0": {"0": new["zoo"], "": new["generated"]}}
    stages = {"zoo": new["zoo"], "whole": {"0": new["generated"], "0.5": new["zoo"]}, "layers": layers}
    results.keep("main_job", a_run(tmp_path / "stages", "stages", stages=stages, config=checkpoint))
    how = {"task": "digits", "hidden": [32], "count": 8, "solver": "euler", "steps": 32, "start": 0.0, "sharpness": 0.1, "guidance": 0.0}
    wider = {name: new[name] for name in ("generated", "ensemble", "task")} | {"parameters": 2410}
    results.keep("main_job", a_run(tmp_path / "wider", "transfer", metrics=wider, config=how | checkpoint | {"seed": 0}))
    results.keep("main_job", a_run(tmp_path / "pooled", "posterior", posterior=ensembles(), config=checkpoint))
    results.keep("main_job", a_run(tmp_path / "rivals", "rivals", rivals=rivals(), config=checkpoint))
    seen = {"task": "fashion", "own_task": "digits", "examples": 4000, "gradients": 512, "count": 8}
    ways = {
        "unguided": {"test": new["generated"]},
        "guided: velocity": {"test": None, "chosen": 10.0, "seconds": 60.0},
        "Adam from random networks": {"test": new["zoo"], "chosen": 0.01, "seconds": 6.0},
    }
    results.keep("main_job", a_run(tmp_path / "guided", "guide", guide=seen | {"ways": ways}, config=checkpoint | {"task": "fashion"}))
    starts = {"random networks": {"lr": 0.01, "reached": 8, "scores": {"0": new["generated"], "8": new["zoo"]}}}
    tuned = seen | {"starts": starts, "level": 0.8}
    results.keep("main_job", a_run(tmp_path / "tuned", "finetune", finetune=tuned, config=checkpoint | {"task": "fashion"}))
    sets = {
        "heldout": {"networks": 8, "median": 12.34, "per_weight": 0.0162, "std": 2.5, "auroc": 0.5},
        "noised_0.3": {"networks": 8, "median": -7.0, "per_weight": -0.0092, "std": 3.0, "auroc": 0.98},
        "mean_network": {"networks": 1, "median": 50.0, "per_weight": 0.0658, "std": None, "auroc": 0.0},
    }
    results.keep("main_job", a_run(tmp_path / "density", "density", density={"sets": sets}, config=checkpoint))
    rebuild()
    readme = (tmp_path / "README.md").read_text()
    assert "| digits, 64-10-10 | " in readme and "MNIST" not in readme and readme.endswith("more\n")
    assert (tmp_path / "scoreboard.png").exists()
    page = (elsewhere / "main_job" / "README.md").read_text()
    assert f"| {DIGITS} | 0, 1 | " in page and "13 of its runs are not made yet" in page
    assert f"## Quality by sharpness: {DIGITS}, seed 0" in page and "| 0.5 | ." in page
    worst, other = (" / ".join(three(new[kind][score]["mean"]) for score in ("accuracy", "nll")) for kind in ("generated", "zoo"))
    assert f"| t = 0 | {worst} | the rest {worst}, 0 {other} |" in page and f"| t = 0.5 | {other} |  |" in page
    assert "| digits | 32 | 2,410 | 8 | ." in page and "commits abcdefg." in page
    assert f"## Ensembles beside those of the zoo: {DIGITS}, seed 0" in page
    assert f"## Other ways to get an ensemble: {DIGITS}, seed 0" in page
    assert "| one network | - | .900 | .300 | .030 | .200 | 1.23 |" in page, "which needs no pool"
    assert "| flow, ensemble of 64 | log | .900 | .100 | .030 | .200 | 1.23e+03 |" in page, "the pool with the lower NLL"
    assert "| 1 zoo | .500 | .500 | .500 | .500 | .500 | .900 |" in page
    assert "| 4 generated, log pool | .500 | .500 | .500 | .500 | .500 | .900 / .800 |" in page and "| 2 zoo" not in page
    assert f"## Guided to fashion with 4,000 labels: {DIGITS}, seed 0" in page and "with 512 gradients" in page
    assert f"| unguided |  | {worst} |  |" in page and "| guided: velocity | strength 10 | diverged | 1.0 |" in page
    assert f"| Adam from random networks | learning rate 0.01 | {other} | 0.1 |" in page
    assert f"| random networks | 0.01 | {worst} | {other} | 8 |" in page
    assert f"## How probable networks are: {DIGITS}, seed 0" in page and "| held-out | 8 | 12.3 | 0.016 | 2.5 | .500 |" in page
    assert "| noised 0.3 | 8 | -7.0 | -0.009 | 3.0 | .980 |" in page and "| mean | 1 | 50.0 | 0.066 | - | .000 |" in page
    drawn = {path.stem for path in (elsewhere / "main_job" / "figures").iterdir()}
    assert drawn == {"scoreboard", "curve", "tradeoff", "guide", "finetune", *POOLED}
    assert "Not all runs are made yet" in (elsewhere / "README.md").read_text()
    again = results.keep("main_job", tmp_path / "0")  # what was found of the older flow goes
    assert {path.name for path in again.iterdir()} == {"metrics.json", "config.json", "ran.json"}
    (tmp_path / "curve" / "config.json").write_text(json.dumps({"checkpoint": str(tmp_path / "nowhere")}))
    with pytest.raises(SystemExit, match="it is not known which flow drew the networks"):
        results.keep("main_job", tmp_path / "curve")


def test_the_page_shows_which_levels_were_asked_for_and_reached(elsewhere, tmp_path):
    """A row for every architecture or task of a run, and the answer as soon as all its rows are there."""
    from pages.kept import read, resolved
    from pages.studies import STUDIES
    from pages.write import overview, page

    import results

    (_, _, level), (_, _, tasks) = STUDIES["conditions"].runs()
    one = content()["metrics"]
    told = {"asked": 0.05, "reached": {"mean": 0.06, "std": 0.01}, "test": one["generated"]}
    asked = {"levels": [told, told | {"asked": 0.5}], "networks": 51, "strength": 1.0, "rank_correlation": 0.876}
    common = {name: one[name] for name in ("time", "flow", "seed")}
    results.keep("conditions", a_run(tmp_path / "1", metrics=one | {"condition": asked}, config=resolved(level)))
    alone = read("conditions")
    text = page("conditions", alone, [])
    assert "| .050 | .060 ± .010 | " in text and "| .500 | .060 ± .010 | " in text and "is 0.88 over all of them" in text
    assert "The rank correlation of asked and reached levels" not in text, "the answer needs the other run too"

    both = {"architectures": {f"task={name}": one | {"task": name} for name in ("mnist", "fashion")}} | common
    results.keep("conditions", a_run(tmp_path / "2", metrics=both, config=resolved(tasks)))
    frame = read("conditions")
    assert len(frame) == 3 and len(alone) == 1
    assert "The rank correlation of asked and reached levels is 0.88." in overview({"conditions": frame})


def test_the_pages_of_real_targets_name_their_scores(tmp_path, elsewhere):
    from pages.write import rebuild

    import results

    run = content(study="diabetes", row="1000-steps-of-32")
    results.keep("diabetes", a_run(tmp_path / "0", **run))
    new, checkpoint = run["metrics"], {"checkpoint": str(tmp_path / "0")}
    curve = {"steps": {"1": new["generated"], "2": new["generated"]}}
    results.keep("diabetes", a_run(tmp_path / "curve", "curve", curve=curve, config=checkpoint))
    one = {"generated": new["generated"], "training": new["zoo"], "diversity": {"generated": new["diversity"]["generated"]}}
    results.keep("diabetes", a_run(tmp_path / "sharper", "sharpen", sharpness={"sharpness": {"0.5": one, "1": one}}, config=checkpoint))
    poor = new["baselines"]["gaussian"]
    stages = {"zoo": new["zoo"], "whole": {"0": poor}, "layers": {"0": {"0": new["zoo"], "2": poor}}}
    results.keep("diabetes", a_run(tmp_path / "stages", "stages", stages=stages, config=checkpoint))
    rebuild()
    page = (elsewhere / "diabetes" / "README.md").read_text(encoding="utf-8")
    pairs = {kind: " / ".join(f"{one[score]['mean']:.3f}".removeprefix("0") for score in ("r2", "nll")) for kind, one in
             (("zoo", new["zoo"]), ("poor", poor))}  # fmt: skip
    assert "Scores are R² / NLL of single networks" in page and "![R², NLL and novelty of zoo" in page and "accuracy" not in page
    assert "| sharpness | R² / NLL |" in page and "| made anew from | R² / NLL |" in page
    assert f"| t = 0 | {pairs['poor']} | 2 {pairs['poor']}, 0 {pairs['zoo']} |" in page, "the layer with the lowest R² comes first"
    assert {path.stem for path in (elsewhere / "diabetes" / "figures").iterdir()} == {"scoreboard", "curve", "tradeoff"}


@pytest.mark.parametrize("change", [{"part": "validation"}, {"hidden": [12]}, {"solver": "heun"}, {"count": 64}, {"seed": 9}])
def test_a_run_that_the_study_does_not_have_is_refused(tmp_path, elsewhere, change):
    import results

    run = content()
    with pytest.raises(SystemExit, match=r"is no run of the study main_job. `sweep.py main_job --list`"):
        results.keep("main_job", a_run(tmp_path / "run", metrics=run["metrics"], config=run["config"] | change))


def test_a_run_of_another_command_is_refused(tmp_path, elsewhere):
    import results

    with pytest.raises(
        SystemExit, match="holds no finished run of the main job, nor of curve, sharpen, polish, stages, widths, transfer, guide"
    ):
        results.keep("mnist", a_run(tmp_path / "run", "evaluate", metrics={}, config={"task": "mnist"}))
    with pytest.raises(SystemExit, match="holds no finished run"):
        results.keep("mnist", tmp_path / "nothing")


def test_every_run_of_a_study_can_be_and_has_a_place_of_its_own():
    from pages.kept import folder_of, of_the_result, resolved
    from pages.studies import STUDIES, TEMPLATES

    for name, study in STUDIES.items():
        runs = list(study.runs())
        configs = [json.dumps(of_the_result(resolved(arguments)), sort_keys=True) for *_, arguments in runs]
        assert len(set(configs)) == len(runs) == len({folder_of(name, label, seed) for label, seed, _ in runs}), name
        assert set(study.about) <= set(study.rows) and (TEMPLATES / f"{study.answer or name}.md.j2").exists()


def test_a_sweep_goes_on_with_the_runs_that_are_what_it_means_today(tmp_path):
    """The latest of them; one made when a name or a default meant something else is made again."""
    import sweep
    from pages.studies import STUDIES

    (*_, first), *_, (*_, other) = STUDIES["fashion"].runs()
    config = sweep.resolved(first)
    for number, change in enumerate([{}, {"cache": "/elsewhere"}, {"start": 0.0}], 1):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.json").write_text(json.dumps(dict(config) | change))
    assert sweep.finished(tmp_path, config) is None
    for number in (1, 2, 3):
        (tmp_path / f"{number}" / "metrics.json").touch()
    assert sweep.finished(tmp_path, config) == tmp_path / "2"
    assert sweep.finished(tmp_path, sweep.resolved(other)) is None
