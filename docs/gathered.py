"""Gather for the site what is made elsewhere: options, pages of results/, notes, changelog and notebooks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONTENTS = "```{toctree}\n:hidden:\n\n%s\n```\n"
MARKS = re.compile(r"<!-- This table is written by .*?-->\n(.*?)<!-- The end of the table. -->", re.DOTALL)


def gather(root: Path, folder: Path) -> None:
    """Write the gathered files below `folder` if they changed, and remove files that are no longer made."""
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
    write(folder / "notes.md", notes((root / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")))
    write(folder / "changelog.md", (root / "CHANGELOG.md").read_text(encoding="utf-8"))
    write(folder / "headline.md", headline((root / "README.md").read_text(encoding="utf-8")))
    write(folder / "overview.md", overview((root / "results" / "README.md").read_text(encoding="utf-8")))
    for page in sorted((root / "results").glob("*/README.md")):
        name = page.parent.name
        write(folder / "results" / f"{name}.md", study(name, page.read_text(encoding="utf-8")))
        for file in (*sorted((page.parent / "figures").glob("*.png")), page.parent / "runs.csv"):
            copy(file, folder / "results" / name / file.name)
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        write(folder / notebook.name, beside_the_notes(notebook.read_text(encoding="utf-8")))
    return made


def options(root: Path) -> str:
    """Return the tables that option_table.py prints. It runs in its own process, because it imports from experiments/."""
    path = os.pathsep.join(filter(None, [str(root / "experiments"), str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(root / "docs" / "option_table.py")]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout


def headline(readme: str) -> str:
    """Return what stands between the two marks of the README, its table of results, as a part of docs/results.md."""
    if not (found := MARKS.search(readme)):
        raise ValueError("README.md has lost the marks of its table. `make results` writes the table between them.")
    return as_page(found[1].strip().replace("(results/README.md)", "(#the-studies)") + "\n")


def overview(text: str) -> str:
    """Return results/README.md as a part of docs/results.md.

    Its title is left out, its links lead from there, and the pages of all studies are listed.
    """
    text = text.partition("\n")[2].replace("\n## ", "\n### ")
    studies = re.findall(r"\((\w+)/README\.md\)", text)
    text = re.sub(r"\((\w+)/README\.md\)", r"(gathered/results/\1.md)", text)
    text = re.sub(r"\((\w+)/figures/", r"(gathered/results/\1/", text)
    return as_page(f"{_outside(text, '')}\n{CONTENTS % chr(10).join(f'gathered/results/{name}' for name in studies)}")


def study(name: str, text: str) -> str:
    """Return the page of a study, with links to the copies of its figures and of runs.csv."""
    text = text.replace("(figures/", f"({name}/").replace("(runs.csv)", f"({name}/runs.csv)")
    return as_page(_outside(text, "../../"))


def _outside(text: str, docs: str) -> str:
    """Change the links that leave results/. `docs` is the path from the page to docs/."""
    text = re.sub(r"\((?:\.\./)+docs/", f"({docs}", text)
    return re.sub(r"\((?:\.\./)+benchmarks/NOTES\.md", f"({docs}gathered/notes.md", text)


def notes(text: str) -> str:
    """Return benchmarks/NOTES.md with a name for each section that links can use, such as notes-first-words.

    The name is made of the first five words of the title, without what follows in brackets.
    """

    def target(heading: re.Match) -> str:
        words = re.findall(r"\w+", heading[1].partition(" (")[0].lower())
        return f"(notes-{'-'.join(words[:5])})=\n\n{heading[0]}"

    return as_page(re.sub(r"^## (.*)$", target, beside_the_notes(text), flags=re.MULTILINE))


def beside_the_notes(text: str) -> str:
    """Return notes or a notebook with links that lead from docs/gathered/."""
    text = re.sub(r"\(\.\./results/(\w+)/README\.md", r"(results/\1.md", text)
    return _outside(text.replace("(../results/README.md", "(../results.md"), "../")


def as_page(text: str) -> str:
    """Escape dollars, so that Markdown reads no formulas."""
    return text.replace("$", r"\$")
