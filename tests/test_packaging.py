"""Hold pyproject, constraints, conda, make and the citation together."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
OF_THE_DOCS = [Requirement(text) for text in PROJECT["optional-dependencies"]["docs"]]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINNED = {canonicalize_name(pin.name): pin for pin in PINS}
PAPERS = {"2504.03710", "2601.05052", "2209.04836", "2302.03660", "2210.05062", "2403.12143", "2302.00482"}


def test_every_pin_is_one_public_version():
    assert len(PINNED) == len(PINS)
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and Version(specifier.version).local is None, f"{pin}: pin it as name==version"


@pytest.mark.parametrize("requirement", DECLARED + OF_THE_DOCS, ids=lambda requirement: requirement.name)
def test_the_pin_satisfies_pyproject(requirement):
    assert disagreement(requirement, PINNED) is None


@pytest.mark.parametrize(
    ("requirement", "complaint"), [("torch>=99", "does not satisfy"), ("setuptools<70", "does not satisfy"), ("torch-scatter>=2", "no pin")]
)
def test_a_disagreement_is_found(requirement, complaint):
    assert complaint in disagreement(Requirement(requirement), PINNED)


def test_the_build_uses_the_setuptools_of_the_dependencies():
    build = {r.name: r.specifier for r in map(Requirement, PYPROJECT["build-system"]["requires"])}
    assert build == {r.name: r.specifier for r in DECLARED if r.name == "setuptools"}


def test_all_that_is_needed_is_pinned():
    """Walks the installed packages; what only some platforms need (CUDA libraries) is pinned by who needs it."""
    needed, queue = set(), list(DECLARED)
    while queue:
        requirement = queue.pop()
        if (name := canonicalize_name(requirement.name)) not in needed:
            needed.add(name)
            queue += [further for further in map(Requirement, _requires(name)) if _everywhere(further)]
    assert needed <= set(PINNED), f"pin {sorted(needed - set(PINNED))} in constraints.txt"


def test_conda_builds_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [Requirement(text.replace("=", "==")) for text in conda["dependencies"] if isinstance(text, str)]
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert conda["name"] == PROJECT["name"]
    assert {r.name for r in plain} == {"python", "pip"}, "packages come by pip, under the same constraints"
    (python,) = (specifier.version for r in plain if r.name == "python" for specifier in r.specifier)
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]


@pytest.mark.parametrize(("target", "command"), [("run", "experiments/run.py with flow=geometric"), ("test", 'pytest -m "not slow"')])
def test_make_has_its_targets(target, command):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert command in done.stdout


def test_make_names_the_cure_without_python_3_11(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run([shutil.which("make"), "env"], cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "No Python 3.11" in done.stderr and "make env PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert re.search(r"^exec make test$", script.read_text(), re.MULTILINE)
    assert script.stat().st_mode & 0o100, "chmod +x .ci/run"


def test_the_readme_names_the_commands():
    for command in ("make run", "make test", 'pip install -e ".[dev]"'):
        assert command in (ROOT / "README.md").read_text()


def test_the_citation_names_software_and_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    for entry in [citation, *citation["references"]]:
        assert {"title", "authors", "type"} <= set(entry)
        assert all("name" in author or {"family-names", "given-names"} <= set(author) for author in entry["authors"])
    papers = {i["value"].removeprefix("arXiv:"): entry for entry in citation["references"] for i in entry["identifiers"]}
    assert set(papers) == PAPERS
    assert all(entry["url"] == f"https://arxiv.org/abs/{paper}" for paper, entry in papers.items())


def test_the_licence_is_the_declared_one():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and PROJECT["license"] == "Apache-2.0"


def test_the_changelog_knows_this_version():
    headings = re.findall(r"^## \[?([\w.]+)\]?", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def disagreement(requirement: Requirement, pinned: dict[str, Requirement]) -> str | None:
    """Why the pins do not provide a requirement, or None."""
    pin = pinned.get(canonicalize_name(requirement.name))
    if pin is None:
        return f"no pin for {requirement} in constraints.txt"
    (specifier,) = pin.specifier
    return None if requirement.specifier.contains(specifier.version) else f"{pin} does not satisfy {requirement}"


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError as error:
        raise AssertionError(f"{name} is needed and not installed; run make env") from error


def _everywhere(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or ("platform" not in str(marker) and marker.evaluate({"extra": ""}))
