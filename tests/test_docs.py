"""Hold all pages to what they promise: commands are understood, examples run, options are complete, sentences are short."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from commands import DOCS, PAGES, PYTHON, ROOT, blocks, calls, parts, prose, understand, words_of

from geoflow.wiring.rules import RULES

WITH_COMMANDS = [*PAGES, ROOT / "CONTRIBUTING.md"]
CALLS = sorted({call for page in WITH_COMMANDS for call in calls(page)})
IN_A_MOMENT = {"run": "print_config with smoke", "sweep": "mnist --list", "results": "--help", "rescore": "--help"}
EXAMPLES = [page for page in DOCS if any(code.startswith("import torch\n") for code in blocks(page, "python"))]
LONG, SHARE, LONGEST = 30, 0.05, 40  # words of a sentence
RESULTS = [ROOT / "results" / "README.md", *sorted((ROOT / "results").glob("*/README.md"))]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with the files that docs/your_networks.md tells a reader to write, made by its own blocks with little training."""
    folder = tmp_path_factory.mktemp("written")
    networks, script = blocks(ROOT / "docs" / "your_networks.md", "python")[:2]
    (folder / "my_networks.py").write_text(networks)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        context.syspath_prepend(folder)
        exec(compile(_tiny(script.replace("range(128)", "range(12)")), "your_networks.md", "exec"), {})
    del sys.modules["my_networks"]
    return folder


@pytest.mark.parametrize("call", CALLS)
def test_commands_are_understood(call, tmp_path, request, monkeypatch):
    if "my_networks.py" in call or "zoo.folder=checkpoints" in call:
        monkeypatch.chdir(request.getfixturevalue("written"))
    understand(call, tmp_path)


def test_the_first_section_on_own_networks_leads_to_a_table(written, monkeypatch, capsys):
    """The command that looks at a network works on the files of the page."""
    from geoflow.__main__ import main

    (call,) = re.findall(r"^\.venv/bin/python -m geoflow (.*)$", (ROOT / "docs" / "your_networks.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(written)
    main(call.split())
    assert "Symmetries: permutation (1 group), scaling (1 group)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        "experiments/run.py with flow=geometrc",
        "experiments/run.py with no_such_configuration",
        "experiments/run.py smaple with count=3",
        "experiments/sweep.py no_such_study",
        "experiments/rescore.py --no-such-option runs/1",
    ],
)
def test_wrong_commands_are_not_understood(wrong, tmp_path):
    with pytest.raises((AssertionError, SystemExit)):
        understand(f"{PYTHON} {wrong}", tmp_path)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_name_the_environment(page):
    assert [call for call in calls(page) if not call.startswith(f"{PYTHON} ")] == []


def test_the_pages_show_every_program():
    """And the README the main job, on one task and on another, and what can be done with a flow."""
    assert {parts(call)[0] for call in CALLS} == {"run", "sweep", "results", "rescore"}
    for command in ("with flow=geometric", "with digits", "sample with", "evaluate with", "transfer with"):
        assert any(command in call for call in calls(PAGES[0])), command


@pytest.mark.skipif(not (ROOT / PYTHON).exists(), reason="make env builds .venv")
@pytest.mark.parametrize(("program", "arguments"), IN_A_MOMENT.items())
def test_commands_need_no_active_environment(program, arguments):
    command = f"{PYTHON} experiments/{program}.py {arguments}"
    bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_examples_run(page, tmp_path, monkeypatch):
    """From the first block that imports torch on. Each block continues the one before."""
    monkeypatch.chdir(tmp_path)
    codes, names = blocks(page, "python"), {}
    first = next(number for number, code in enumerate(codes) if code.startswith("import torch\n"))
    with patch.dict(RULES):  # a page on rules adds some
        for code in codes[first:]:
            exec(compile(_tiny(code), page.name, "exec"), names)


def _tiny(code: str) -> str:
    """The same code with two steps of every training and of every solver."""
    code = re.sub(r"iterations=\d+", "iterations=2", code)
    code = re.sub(r"for _ in range\(100\)", "for _ in range(2)", code)
    return re.sub(r"(geoflow\.sample\(flow, \d+)", r"\1, steps=2", code)


def test_the_table_of_options_is_complete():
    """docs/option_table.py reads the options as they are; the site shows what it prints."""
    path = os.pathsep.join([str(ROOT / "experiments"), str(ROOT)])
    command = [sys.executable, str(ROOT / "docs" / "option_table.py")]
    table = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout
    rows = dict(re.findall(r"^\| `([\w.]+)` \| .*? \| .*? \| (.*?) \|$", table, re.MULTILINE))
    with pytest.MonkeyPatch.context() as context:
        context.syspath_prepend(ROOT / "experiments")
        from configuration import DEFAULTS
        from lab.allowed import CHOICES
    assert {name.partition(".")[0] for name in rows} == set(DEFAULTS)
    for name, choices in CHOICES.items():
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(choices)


@pytest.mark.parametrize("package", ["lab", "pages", "rivals", "uses"])
def test_the_architecture_lists_the_experiments(package):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {package}/ \| (.*) \|$", text, re.MULTILINE)
    listed = {name for names in re.findall(r"\((.*?)\)", row) for name in names.split(", ")}
    assert listed == {path.stem for path in (ROOT / "experiments" / package).glob("*.py")} - {"__init__"}


def test_links_to_results_lead_somewhere():
    """Sphinx checks the other links of the site. These stand in code."""
    for page in DOCS:
        for path in re.findall(r"(?<![\w/])results/\w[\w=.,/-]*\w", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path):
    sentences = prose(page)
    lengthy = sorted((sentence for sentence in sentences if words_of(sentence) > LONG), key=words_of, reverse=True)
    listed = "\n".join(f"{words_of(sentence)} words: {sentence}" for sentence in lengthy)
    assert len(lengthy) <= SHARE * len(sentences), f"{len(lengthy)} of {len(sentences)} sentences have more than {LONG} words:\n{listed}"
    assert all(words_of(sentence) <= LONGEST for sentence in lengthy), listed
