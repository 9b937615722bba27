"""Write the pages of results/, and what the README shows of them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from lab.folder import ROOT

from geoflow.evaluation.plots import save_figures
from pages.answers import answer
from pages.figures import MAIN, figures
from pages.kept import RESULTS, beside, levels_of, missing, read
from pages.readme import inserted, picture, shown
from pages.studies import STUDIES
from pages.tables import (
    by_density,
    by_label,
    by_level,
    by_sharpness,
    by_start,
    by_time,
    by_way,
    machine,
    of_ensembles,
    of_rivals,
    outputs_in,
    quality,
    titles,
    transfers,
)
from pages.templating import rendered

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "figures"
MANY = 4  # least number of rows for which the figure of all rows stands for a study
CAPTIONS = {
    "rows": "Rows of the table: the zoo, the generated networks, and the baseline with the lowest NLL.",
    "sizes": "Over the number of training runs in the zoo. Near 0 the networks are copies, near 1 they are as new as another run.",
    "curve": "Networks that one flow draws in 1, 2, 4 and more steps of the solver.",
    "widths": "Networks of other widths and depths that one flow draws, beside trained ones. Stars mark the sizes that it saw.",
    "guide": "Ways to guide one flow to labelled data, and training by Adam with as many gradients.",
    "finetune": "Training from several starts. A band is one standard deviation over networks. The dashed line is the accuracy to reach.",
    "tradeoff": "Networks that one flow draws with more and more sharpness, from 0 (hollow) on. To the left they are more alike.",
    "polish": "New networks after 0 (hollow), 1, 4 and more training steps. Red rings: more than a tenth are copies. Dashed: the zoo.",
    "ensembles": "Ensembles of generated networks beside ensembles of the zoo. A band is the deviation over ensembles of one size.",
    "reliability": "Accuracy by confidence. On the dotted line an ensemble is right as often as it says, and below it is too sure.",
    "selective": "Accuracy on the answers of highest confidence. A curve that falls late means that an ensemble knows when it is wrong.",
    "outside": "How well ensembles tell examples of another task from their own: 1 is always, .5 is chance. Right: entropies of both.",
}


def rebuild() -> list[Path]:
    """Write the page of every study that has runs, the overview, and what the README shows. Return the paths."""
    kept = {study: frame for study in STUDIES if len(frame := read(study))}
    paths = [path for study, frame in kept.items() for path in write(study, frame)]
    (RESULTS / "README.md").write_text(overview(kept), encoding="utf-8")
    README.write_text(inserted(README.read_text(encoding="utf-8"), rendered("readme.md.j2", **shown(kept))), encoding="utf-8")
    return [*paths, RESULTS / "README.md", README, *save_figures(PICTURE, picture(kept))]


def overview(kept: Mapping[str, pd.DataFrame]) -> str:
    """Return the text of results/README.md: the question of each study, a figure and the answer."""
    return rendered("overview.md.j2", studies=[_shown(study, frame, "..") for study, frame in kept.items()])


def write(study: str, frame: pd.DataFrame) -> list[Path]:
    """Write the page of a study, its figures, and the CSV file with everything that its runs measured. Return the paths."""
    folder = RESULTS / study
    pictures = figures(study, frame)
    (folder / "README.md").write_text(page(study, frame, list(pictures)), encoding="utf-8")
    frame.to_csv(folder / "runs.csv", float_format="%.5g")
    shutil.rmtree(folder / "figures", ignore_errors=True)
    return [folder / "README.md", folder / "runs.csv", *save_figures(folder / "figures", pictures)]


def page(study: str, frame: pd.DataFrame, pictures: list[str]) -> str:
    """Return the text of results/<study>/README.md. `pictures` names its figures."""
    rows = by_label(frame)
    found = [(label, seed, by_sharpness(one, rows[label])) for label, seed, one in beside(study, "sharpness")]
    return rendered(
        "page.md.j2",
        **_shown(study, frame, "../.."),
        quality=quality(frame),
        sharpness=found,
        stages=[(label, seed, by_time(one, outputs_in(rows[label]))) for label, seed, one in beside(study, "stages")],
        levels=[(label, seed, one, by_level(one, outputs_in(rows[label]))) for label, seed, one in levels_of(frame)],
        densities=[(label, seed, by_density(one)) for label, seed, one in beside(study, "density")],
        guided=[(label, seed, one, by_way(one)) for label, seed, one in beside(study, "guide-*")],
        tuned=[(label, seed, one, by_start(one)) for label, seed, one in beside(study, "finetune-*")],
        transfers=transfers([one for *_, one in beside(study, "transfer-*")]),
        ensembles=[(label, seed, of_ensembles(one)) for label, seed, one in beside(study, "posterior")],
        rivals=[(label, seed, of_rivals(one)) for label, seed, one in beside(study, "rivals")],
        captions={name: CAPTIONS[name.rstrip("0123456789").partition("_")[0]] for name in pictures if name != MAIN},
        machine=machine(frame),
        missing=missing(study),
    )


def _shown(study: str, frame: pd.DataFrame, root: str) -> dict:
    """Return what both the page and the overview say of a study."""
    rows = by_label(frame)
    parts = [row for row in rows if row not in STUDIES[study].rows]  # of runs for several networks
    complete = all(label in rows or any(row.startswith(f"{label}, ") for row in parts) for label in STUDIES[study].about)
    several = len(rows) >= MANY and frame["config.task"].nunique() == 1
    shown = {"name": study, "study": STUDIES[study], "picture": "rows" if several else MAIN, "scores": titles(outputs_in(frame))}
    return shown | {"answer": answer(study, rows, root) if complete else None}
