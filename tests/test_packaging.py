"""Hold pyproject, constraints, conda, make and the citation together, and build what is published."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"] + EXTRAS["density"] + EXTRAS["experiments"] + EXTRAS["dev"]]
DECLARED = [requirement for requirement in DECLARED if requirement.name != PROJECT["name"]]  # dev takes in two extras
BEYOND = [Requirement(text) for text in EXTRAS["docs"] + EXTRAS["baselines"]]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINNED = {canonicalize_name(pin.name): pin for pin in PINS}
DISTRIBUTION = f"{PROJECT['name'].replace('-', '_')}-{PROJECT['version']}"  # how the names of built files begin
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "results", "runs")
SHORT_USE = """
import torch, geoflow
spec = geoflow.spec_of(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)), torch.zeros(1, 4))
print(geoflow.__file__, *spec.groups("permutation").values())
"""
PAPERS = {"2504.03710", "2601.05052", "2209.04836", "2302.03660", "2210.05062", "2403.12143", "2302.00482"}


def test_every_pin_is_one_public_version():
    assert len(PINNED) == len(PINS)
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and Version(specifier.version).local is None, f"{pin}: pin it as name==version"


@pytest.mark.parametrize("requirement", DECLARED + BEYOND, ids=lambda requirement: requirement.name)
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


@pytest.mark.parametrize(
    ("target", "command"),
    [("run", "experiments/run.py with flow=geometric"), ("test", '-n auto --maxprocesses 4 --dist loadfile -m "not slow"')],
)
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
    assert all(citation[key] == PROJECT[key] for key in ("version", "license", "keywords"))
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


def test_pre_commit_has_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (ruff,) = (repository for repository in config["repos"] if repository["repo"].endswith("/ruff-pre-commit"))
    (pin,) = PINNED["ruff"].specifier
    assert ruff["rev"] == f"v{pin.version}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check"], "make lint checks, and nothing formats"


def test_the_guide_for_contributors_names_what_exists():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", guide, re.MULTILINE))
    assert {"env", "test", "lint", "results"} <= named <= set(targets.split())
    places = re.findall(r"\]\((?!http)([^)]*)\)", guide) + re.findall(r"\b(?:tests|experiments)/\w+\.py\b", guide)
    assert [place for place in places if not (ROOT / place).exists()] == []


class Built(NamedTuple):
    """What is published, the copy of the repository that it was built from, and a folder with the wheel installed."""

    tree: Path
    sdist: Path
    wheel: Path
    site: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel built from that. It needs no network and leaves the repository as it is."""
    folder = tmp_path_factory.mktemp("built")
    tree, site = folder / "tree", folder / "site"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    _python(folder, "-m", "build", "--no-isolation", "--outdir", "dist", "tree")
    (sdist,), (wheel,) = folder.glob("dist/*.tar.gz"), folder.glob("dist/*.whl")
    _python(folder, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    return Built(tree, sdist, wheel, site)


def test_the_wheel_holds_the_package_alone(built):
    names = set(zipfile.ZipFile(built.wheel).namelist())
    metadata = {name for name in names if name.startswith(f"{DISTRIBUTION}.dist-info/")}
    assert names - metadata == _package(built.tree)
    assert "geoflow/py.typed" in names and f"{DISTRIBUTION}.dist-info/licenses/LICENSE" in names
    assert (built.tree / "tests").is_dir() and (built.tree / "experiments").is_dir(), "the copy holds what must stay out"


def test_the_source_distribution_holds_the_package_and_its_papers(built):
    with tarfile.open(built.sdist) as archive:
        names = {member.name.removeprefix(f"{DISTRIBUTION}/") for member in archive if member.isfile()}
    assert _package(built.tree) | {"LICENSE", "README.md", "pyproject.toml", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not {"tests", "experiments", "benchmarks", "notebooks"} & {name.partition("/")[0] for name in names}


def test_the_installed_wheel_works(built):
    file, units = _python(built.site, "-c", SHORT_USE, PYTHONPATH=str(built.site)).split()
    assert Path(file) == built.site / "geoflow" / "__init__.py" and units == "6"


def test_the_metadata_are_those_of_pyproject(built):
    (found,) = distributions(path=[str(built.site)])
    for field, key in (("Name", "name"), ("Version", "version"), ("Summary", "description"), ("License-Expression", "license")):
        assert found.metadata[field] == PROJECT[key]
    assert found.metadata["Keywords"].split(",") == PROJECT["keywords"]
    assert found.metadata.get_all("Classifier") == PROJECT["classifiers"]
    needed = [requirement for requirement in map(Requirement, found.requires) if requirement.marker is None]
    assert set(needed) == set(map(Requirement, PROJECT["dependencies"]))


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


def _python(folder: Path, *arguments: str | Path, **environment: str) -> str:
    """What Python prints, run in a folder."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _package(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in (tree / "geoflow").rglob("*") if path.is_file()}
