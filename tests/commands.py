"""Read Markdown pages: blocks of code, commands and sentences. Ask the programs whether they understand a command."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
PYTHON = ".venv/bin/python"
CALL = re.compile(rf"^(?:{re.escape(PYTHON)}|python3?) experiments/(\w+)\.py\b *([^#]*)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def calls(page: Path) -> list[str]:
    """Every command of a page that calls a program of experiments/, in blocks of bash and in the text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()] + re.findall(r"`([^`\n]*)`", text)
    return [line.strip() for line in lines if CALL.match(line.strip())]


def parts(call: str) -> tuple[str, list[str]]:
    """The program, such as sweep, and its arguments."""
    program, arguments = CALL.match(call).groups()
    return program, shlex.split(arguments)


class Understood(Exception):
    """A program has read its arguments, and would begin now."""


def understand(call: str, folder: Path) -> None:
    """Let the program read its arguments, and no more. It complains of an unknown command, option, value, named configuration or study."""
    program, words = parts(call)
    if program == "run":
        return _understand_run(words, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        parse = argparse.ArgumentParser.parse_args

        def stop(parser: argparse.ArgumentParser, *args, **kwargs):
            parse(parser, *args, **kwargs)
            raise Understood

        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [f"{program}.py", *words])
        with pytest.raises(Understood):
            __import__(program).main()


def _understand_run(words: list[str], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        from run import ex

        if words[:1] == ["-F"]:
            del words[:2]
        if words and words[0] != "with":
            command = words.pop(0)
            assert command in {*ex.commands, "help", "print_named_configs"}, f"run.py has no command {command}."
        if words:
            assert words[0] == "with", f"Options follow the word with, not {words[0]}."
            ex.run_commandline(["run.py", "print_config", f"--file_storage={folder}", *words])


def prose(page: Path) -> list[str]:
    """The sentences of a page and of the captions in it, without headings, blocks of code, formulas, tables and comments."""
    text = re.sub(r"^```\{figure\}.*?\n\n(.*?)^```$", r"\n\1\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for left_out in (r"^```.*?^```$", r"<!--.*?-->", r"\$\$.*?\$\$", r"^(?:#+ |\|| {4}|\().*?$"):
        text = re.sub(left_out, "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads
    paragraphs = re.split(r"\n\s*\n|^ *(?:[-*:]|\d+\.) ", text, flags=re.MULTILINE)
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))]
    return [sentence for sentence in sentences if words_of(sentence) > 2]  # not the terms of a glossary


def words_of(sentence: str) -> int:
    return len(re.findall(r"\S*\w\S*", sentence))
