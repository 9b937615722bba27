"""Write the pages of results/, their figures and CSV files, and the table and picture of the README."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from lab.folder import ROOT

from geoflow.evaluation.plots import save_figures
from pages.figures import MAIN, figures
from pages.kept import RESULTS, beside, read
from pages.readme import inserted, picture, shown
from pages.studies import STUDIES, TEMPLATES
from pages.tables import MEANS, NAMES, best, by_label, machine, novelty, quality, scores, sharpness, three, transfers

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "figures"
MANY = 4  # rows of a study that is shown by all of them
CAPTIONS = {
    "rows": "Rows of the table: the zoo, the generated networks, and the baseline with the lowest NLL.",
    "sizes": "Over the number of training runs in the zoo. Near 0 the networks are copies, near 1 they are as new as another run.",
    "curve": "Networks that one flow draws in 1, 2, 4 and more steps of the solver.",
    "tradeoff": "Networks that one flow draws with more and more sharpness, from 0 (hollow) on. To the left they are more alike.",
}


def rebuild() -> list[Path]:
    """Write every page whose study has runs, the overview, and what the README shows of them."""
    kept = {study: frame for study in STUDIES if len(frame := read(study))}
    paths = [path for study, frame in kept.items() for path in write(study, frame)]
    (RESULTS / "README.md").write_text(overview(kept), encoding="utf-8")
    README.write_text(inserted(README.read_text(encoding="utf-8"), rendered("readme.md.j2", **shown(kept))), encoding="utf-8")
    return [*paths, RESULTS / "README.md", README, *save_figures(PICTURE, picture(kept))]


def overview(kept: Mapping[str, pd.DataFrame]) -> str:
    """The text of results/README.md: of each study its question, a figure and the answer."""
    return rendered("overview.md.j2", studies=[_shown(study, frame) for study, frame in kept.items()])


def write(study: str, frame: pd.DataFrame) -> list[Path]:
    """The page of a study, its figures, and the CSV file with all that its runs measured."""
    folder = RESULTS / study
    pictures = figures(study, frame)
    (folder / "README.md").write_text(page(study, frame, list(pictures)), encoding="utf-8")
    frame.to_csv(folder / "runs.csv", float_format="%.5g")
    shutil.rmtree(folder / "figures", ignore_errors=True)
    return [folder / "README.md", folder / "runs.csv", *save_figures(folder / "figures", pictures)]


def page(study: str, frame: pd.DataFrame, pictures: list[str]) -> str:
    """The text of results/<study>/README.md; `pictures` names its figures."""
    rows = by_label(frame)
    found = [(label, seed, sharpness(label, one, rows[label])) for label, seed, one in beside(study, "sharpness")]
    return rendered(
        "page.md.j2",
        **_shown(study, frame),
        quality=quality(frame),
        sharpness=found,
        transfers=transfers([one for *_, one in beside(study, "transfer-*")]),
        captions={name: CAPTIONS[name] for name in pictures if name != MAIN},
        machine=machine(frame),
        missing=[f"{label} (seed {seed})" for label, seed, _ in STUDIES[study].runs() if (label, seed) not in frame.index],
    )


def _shown(study: str, frame: pd.DataFrame) -> dict:
    """What page and overview say of a study."""
    rows = by_label(frame)
    complete = {*STUDIES[study].about} <= {*rows}
    several = len(rows) >= MANY and frame["config.task"].nunique() == 1
    shown = {"name": study, "study": STUDIES[study], "picture": "rows" if several else MAIN}
    return shown | {"answer": answer(study, rows) if complete else None}


def answer(study: str, rows: dict[str, pd.DataFrame]) -> str:
    """The answer to a study's question, with the numbers of its runs."""

    def measured(label: str, column: str, form: str = "") -> str:
        value = rows[label][column].mean()
        return format(value, form) if form else three(value)

    def ahead(label: str, baseline: str) -> int:
        runs = rows[label]
        return int((runs["generated.nll.mean"] < runs[f"baselines.{baseline}.nll.mean"]).sum())

    text = rendered(
        f"{study}.md.j2",
        of=measured,
        scores=lambda label, kind="generated": scores(rows[label], kind),
        mean=lambda label: scores(rows[label], best(rows[label], MEANS)),
        novelty=lambda label, kind=None: novelty(rows[label], kind),
        ahead=ahead,
        best=lambda label: NAMES.get(name := best(rows[label]), name),
        best_scores=lambda label: scores(rows[label], best(rows[label])),
        times=lambda label: f"{rows[label]['generated.nll.mean'].mean() / rows[label]['zoo.nll.mean'].mean():.2f}",
        seeds=lambda label: len(rows[label]),
    )
    return " ".join(text.split())


def rendered(template: str, **values) -> str:
    pages = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                        keep_trailing_newline=True, autoescape=False)  # fmt: skip
    pages.filters["markdown"] = _markdown
    return pages.get_template(template).render(**values)


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
