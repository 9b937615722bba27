"""Gather the pages that are made elsewhere: the options, the pages of results/, the notes on speed and quality, the notebooks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONTENTS = "# Pages of results\n\n```{toctree}\n:maxdepth: 1\n\n%s\n```\n"


def gather(root: Path, folder: Path) -> None:
    """Write all of them below `folder`, where they changed, and remove what is made no longer."""
    made = _gather(root, folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path not in made:
            path.unlink()


def _gather(root: Path, folder: Path) -> set[Path]:
    made = set()

    def write(path: Path, text: str) -> None:
        made.add(path)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def copy(source: Path, target: Path) -> None:
        made.add(target)
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    write(folder / "options.md", options(root))
    write(folder / "notes.md", with_targets(as_page((root / "benchmarks" / "NOTES.md").read_text(encoding="utf-8"))))
    write(folder / "changelog.md", (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    pages = sorted((root / "results").glob("*/README.md"))
    for page in pages:
        name = page.parent.name
        write(folder / "results" / f"{name}.md", of_results(name, page.read_text(encoding="utf-8")))
        for figure in sorted((page.parent / "figures").glob("*.png")):
            copy(figure, folder / "results" / name / figure.name)
    write(folder / "results" / "index.md", CONTENTS % "\n".join(page.parent.name for page in pages))
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        copy(notebook, folder / notebook.name)
    return made


def options(root: Path) -> str:
    """The tables that option_table.py prints; it imports what lies in experiments/."""
    path = os.pathsep.join(filter(None, [str(root / "experiments"), str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(root / "docs" / "option_table.py")]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout


def of_results(name: str, text: str) -> str:
    """A page of results/, with its figures where they were copied to."""
    return as_page(re.sub(r"\(figures/", f"({name}/", text))


def with_targets(text: str) -> str:
    """Each section with a name to link to, made of its title without what stands in brackets: notes-first-words."""

    def target(heading: re.Match) -> str:
        words = re.findall(r"\w+", heading[1].partition(" (")[0].lower())
        return f"(notes-{'-'.join(words[:5])})=\n\n{heading[0]}"

    return re.sub(r"^## (.*)$", target, text, flags=re.MULTILINE)


def as_page(text: str) -> str:
    """Markdown in which a dollar is a dollar."""
    return text.replace("$", r"\$")
