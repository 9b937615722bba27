"""Hold the house's structure: who may import whom, and what no file may do."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from geoflow.spec import NetworkSpec
from geoflow.vector import unpack

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("geoflow", "tests", "experiments", "benchmarks", "notebooks")
LEVELS = {
    "zoo": 5, "choosing": 5, "settings": 5, "batches": 5, "training": 5, "checkpoint": 5, "muon": 5, "recording": 5, "evaluation": 5,
    "__main__": 5,
    "sampling": 4, "guidance": 4, "descent": 4, "density": 4,
    "targets": 3, "flow": 3, "velocity": 3, "objectives": 3,
    "canonical": 2, "coordinates": 2, "chart": 2, "charting": 2, "latent": 2, "several": 2, "conditions": 2, "frame": 2, "sources": 2,
    "couplings": 2, "paths": 2, "population": 2, "statistics": 2,
    "describe": 1, "states": 1, "vector": 1, "symmetry": 1, "linear": 1, "graph": 1, "earlier": 1, "pyg": 1, "manifolds": 1,
    "divergence": 1, "wiring": 1, "pieces": 1,
    "spec": 0, "choices": 0, "examples": 0, "outputs": 0, "files": 0, "stored": 0, "appending": 0, "fingerprints": 0, "tally": 0,
    "randomness": 0, "constants": 0, "memory": 0, "parts": 0,
}  # fmt: skip
FRONT = 6  # geoflow/__init__.py, and whoever imports from it
OUTSIDE = {"sacred", "experiments", "notebooks", "benchmarks", "tests", "beartype"}
MOST_LINES = 300


def test_the_house_stands():
    found = breaches(ROOT)
    assert not found, "\n".join(found)


def test_the_table_of_levels_is_that_of_the_docs():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    rooms = {room: int(level) for level, cell in rows for room in re.findall(r"(\w+)(?:/|\.py)", re.sub(r"\(.*?\)", "", cell))}
    assert {room: level for room, level in rooms.items() if level < FRONT} == LEVELS
    for folder in ("canonical", "velocity"):
        (listed,) = re.findall(rf"{folder}/ \((.*?)\)", "".join(cell for _, cell in rows))
        there = {path.stem for path in (ROOT / "geoflow" / folder).glob("*.py")} - {"__init__"}
        assert set(listed.split(", ")) == there, f"docs/architecture.md lists {listed} in {folder}/"


@pytest.mark.parametrize(
    ("place", "source", "complaint"),
    [
        ("geoflow/spec.py", "from geoflow.vector import pack", "geoflow.vector.pack lies above"),
        ("geoflow/vector.py", "import geoflow.zoo.train", "geoflow.zoo.train lies above"),
        ("geoflow/vector.py", "from geoflow import flow", "geoflow.flow lies above"),
        ("geoflow/vector.py", "from geoflow import pack", "geoflow.pack lies above"),
        ("geoflow/vector.py", "import geoflow", "geoflow lies above"),
        ("geoflow/velocity/mlp.py", "from ..sampling import sample", "geoflow.sampling.sample lies above"),
        ("geoflow/velocity/mlp.py", "def f():\n    from .. import training", "geoflow.training lies above"),
        ("geoflow/velocity/__init__.py", "from ..guidance import no_guidance", "geoflow.guidance.no_guidance lies above"),
        ("geoflow/cellar.py", "x = 1", "has no level"),
        ("geoflow/zoo/train.py", "import sacred.observers", "sacred.observers has no place in geoflow"),
        ("geoflow/zoo/train.py", "from experiments.run import main", "experiments.run.main has no place in geoflow"),
        ("geoflow/spec.py", "\n" * MOST_LINES, "lines"),
        ("experiments/run.py", "device = torch.device('cuda')", "torch.device"),
        ("experiments/run.py", "from torch import device", "torch.device"),
        ("tests/test_it.py", "import sys\nsys.path.insert(0, '..')", "sys.path"),
        ("tests/test_it.py", "from sys import path", "sys.path"),
        ("benchmarks/time_it.py", "from geoflow.spec import *", "star import"),
        ("notebooks/tour.ipynb", "%matplotlib inline\nfrom geoflow import *", "star import"),
    ],
)
def test_a_breach_is_found(tmp_path, place, source, complaint):
    plant(tmp_path, place, '"""Say one thing."""\n\n' + source)
    (found,) = breaches(tmp_path)
    assert found.startswith(place) and complaint in found


@pytest.mark.parametrize(
    "opening", ["import torch", "# A comment.", '"""No full stop"""', '"""Two sentences. Side by side."""', '"""\nToo late."""', ""]
)
def test_a_file_without_its_one_sentence_is_found(tmp_path, opening):
    plant(tmp_path, "geoflow/spec.py", opening)
    (found,) = breaches(tmp_path)
    assert "first line" in found


def test_a_folder_that_is_no_package_is_found(tmp_path):
    plant(tmp_path, "geoflow/zoo/train.py", '"""Train."""')
    (tmp_path / "geoflow/zoo/__init__.py").unlink()
    (found,) = breaches(tmp_path)
    assert "__init__.py" in found


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("geoflow/__init__.py", "from geoflow.zoo import train"),
        ("geoflow/zoo/train.py", "from geoflow.evaluation.scores import nll\nfrom . import tasks\nfrom geoflow import spec"),
        ("geoflow/velocity/__init__.py", "from .mlp import MLP\nfrom ..spec import Site"),
        ("geoflow/vector.py", "def f(device: torch.device): ..."),
        ("geoflow/vector.py", "where = torch.device('cpu')"),
        ("experiments/run.py", "import sacred\nimport geoflow\nos.path.join('a')\nx: torch.device"),
    ],
)
def test_sound_files_pass(tmp_path, place, source):
    plant(tmp_path, place, '"""Say one thing: spec.py\'s table."""\n' + source)
    assert breaches(tmp_path) == []


def test_annotations_are_checked():
    """The option --jaxtyping-packages of pyproject.toml is at work."""
    with pytest.raises(jaxtyping.TypeCheckError):
        unpack(NetworkSpec((), ()), torch.zeros(0, dtype=torch.long))


def plant(root: Path, place: str, source: str) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").write_text('"""A room."""\n')
    cells = {"cells": [{"cell_type": "markdown", "source": ["# Tour"]}, {"cell_type": "code", "source": source.splitlines(keepends=True)}]}
    path.write_text(json.dumps(cells) if path.suffix == ".ipynb" else source)


def breaches(root: Path) -> list[str]:
    """Every breach of the rules under `root`, as `place: complaint`."""
    found = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*")):
        place = path.relative_to(root)
        if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in place.parts:
            source = path.read_text() if path.suffix == ".py" else _code(path)
            found += [f"{place}: {complaint}" for complaint in _complaints(place, source)]
            if place.parts[0] == "geoflow" and not (path.parent / "__init__.py").exists():
                found.append(f"{place}: its folder has no __init__.py")
    return found


def _code(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join("" if line.startswith(("%", "!")) else line for line in lines)


def _complaints(place: Path, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    names = list(_names(place, tree))
    if any(name.endswith(".*") for name in names):
        yield "star import; name what is used"
    if "sys.path" in names:
        yield "sys.path; install the package instead (make env)"
    if place.parts[0] == "experiments" and ("torch.device" in _calls(tree) or "torch.device" in _imports(place, tree)):
        yield "torch.device; device and dtype follow the input"
    if place.parts[0] == "geoflow":
        yield from _complaints_of_the_library(place, source, list(_imports(place, tree)))


def _complaints_of_the_library(place: Path, source: str, imports: list[str]) -> Iterator[str]:
    if not re.match(r'"""[^.?!]*(?:[.?!](?=\S)[^.?!]*)*[.?!](?:"""|\s*$)', source.partition("\n")[0]):
        yield "the first line is not a docstring of one sentence"
    if (lines := source.count("\n")) > MOST_LINES:
        yield f"{lines} lines, over {MOST_LINES}; split it by question"
    room = place.parts[1].removesuffix(".py")
    level = FRONT if room == "__init__" else LEVELS.get(room)
    if level is None:
        yield "has no level; give it one here and in docs/architecture.md"
        return
    for name in imports:
        top, _, inner = name.partition(".")
        if top in OUTSIDE:
            yield f"{name} has no place in geoflow"
        if top == "geoflow" and LEVELS.get(inner.partition(".")[0], FRONT) > level:
            yield f"{name} lies above; imports go downwards only"


def _imports(place: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of all imports, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = [*place.parts[: len(place.parts) - node.level]] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def _names(place: Path, tree: ast.AST) -> Iterator[str]:
    """Imported names, and attributes of plain names (`sys.path`)."""
    yield from _imports(place, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def _calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
