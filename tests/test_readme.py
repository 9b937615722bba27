"""Hold the README to what it promises: its code runs, its commands and options exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MOST_LINES = 15


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The arguments of every call of experiments/run.py, in blocks and in the text."""
    lines = [line for block in blocks("bash") for line in block.splitlines()] + re.findall(r"`(python experiments[^`]*)`", README)
    return [line.removeprefix("python experiments/run.py") for line in lines if line.startswith("python experiments/run.py")]


def options() -> dict[str, tuple[str, set[str]]]:
    """The table of options: its default, and what is set as code among its values."""
    (table,) = re.findall(r"^\| option .*?\n\n", README, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.strip().splitlines()[2:]]
    return {name.strip("`"): (default.strip("`"), set(re.findall(r"`([^`]*)`", values))) for name, default, values in rows}


@pytest.fixture(scope="module")
def ex():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        from run import ex

        yield ex


def test_the_example_runs():
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES
    short = code.replace("iterations=2000", "iterations=2").replace("geoflow.sample(flow, 10)", "geoflow.sample(flow, 10, steps=2)")
    assert short.count("=2)") == 2
    exec(compile(short, "README.md", "exec"), {})


@pytest.mark.parametrize("argv", commands())
def test_the_commands_are_understood(ex, argv, tmp_path):
    words = shlex.split(argv)
    if words[0] != "with":
        assert words.pop(0) in ex.commands
    if words[:1] == ["with"]:
        ex.run_commandline(["run.py", "print_config", f"--file_storage={tmp_path}", *words])


def test_there_are_commands():
    for command in ("with flow=geometric", "with smoke", "sample with", "evaluate with", "transfer with", "guidance=0.1"):
        assert any(command in argv for argv in commands())


def test_the_table_of_options_is_complete(ex, tmp_path):
    config = ex.run("print_config", options={"--file_storage": str(tmp_path)}).config
    table = options()
    assert set(table) == set(config)
    for name, (default, _) in table.items():
        assert default in ("*task*", "*velocity*", "*network*", "*zoo*", str(config[name])), f"{name}: the default is {config[name]}"
    for name in ("zoo", "sizes"):
        assert table[name][1] == {f"{name}.{key}" for key in config[name]}


def test_the_table_of_options_lists_the_right_values(ex):
    from lab.options import CHOICES

    for name, choices in CHOICES.items():
        assert options()[name][1] == set(choices)


def test_the_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]*)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
