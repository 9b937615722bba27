"""Make the table and the picture of the README from the kept runs."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.figure import Figure

from geoflow.evaluation.boards import plot_board
from pages.figures import board
from pages.tables import NAMES, best, by_label, mean_of, novelty, scores, three

# title of a line: the study and the row that it shows
ROWS = {
    "digits, 64-10-10": ("main_job", "digits, geometric"),
    "MNIST, 784-10-10": ("mnist", "1,024 runs, 6,000 steps of 64"),
    "Fashion-MNIST, 784-10-10": ("fashion", "1,024 runs, 12,000 steps of 64"),
    "MNIST, 784-32-32-10": ("mnist32", "1,000 runs, 3,000 steps of 64"),
    "digits, batch norm": ("batch_norm", "BatchNorm1d behind the hidden layer"),
    "digits, residual MLP": ("residual_mlp", "3,000 steps of 32"),
    "ResNet, one start": ("resnet", "400 steps of 16"),
    "ViT, one start": ("vit", "400 steps of 16"),
    "BERT, one start": ("bert", "400 steps of 16"),
}
PICTURE, MEAN_OF = "digits, 64-10-10", "MNIST, 784-10-10"
BEGIN, END = "<!-- This table is written by `make results`. -->\n", "<!-- The end of the table. -->"


def shown(kept: Mapping[str, pd.DataFrame]) -> dict:
    """Return what templates/readme.md.j2 takes.

    This is a table with a line for each network, MNIST beside its means, and the rows in which a baseline has a lower NLL.
    """
    rows = _rows(kept)
    behind = [title for title, runs in rows.items() if mean_of(runs, best(runs), "nll") < mean_of(runs, "generated", "nll")]
    mnist = rows.get(MEAN_OF)
    means = {} if mnist is None else {kind: scores(mnist, kind) for kind in ("generated", "mean_network", "rescaled_mean")}
    if mnist is not None:
        means["gain"] = three(mean_of(mnist, "generated", "accuracy") - mean_of(mnist, "mean_network", "accuracy"))
    near = _range(novelty(rows[title], best(rows[title])) for title in behind)
    return {"table": pd.DataFrame(_line(title, runs) for title, runs in rows.items()), "mnist": means, "behind": behind, "near": near}


def _range(novelties: Iterable[str]) -> str:
    found = sorted(novelties)
    return f"{found[0]} to {found[-1]}" if found else ""


def picture(kept: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Draw generated networks beside the zoo and the baselines, on a task where the baselines are worse."""
    runs = _rows(kept).get(PICTURE)
    return {} if runs is None else {"scoreboard": plot_board(board(runs), "Single networks 64-10-10 for the digits, on the test part")}


def inserted(text: str, made: str) -> str:
    """Return the text with `made` between the two marks. Raises ValueError if a mark is missing."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"The README has lost the marks of its table, {BEGIN!r} and {END!r}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{made.strip()}\n\n{END}{after}"


def _rows(kept: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the runs of each line."""
    found = {title: by_label(kept[study]).get(label) for title, (study, label) in ROWS.items() if study in kept}
    return {title: runs for title, runs in found.items() if runs is not None}


def _line(title: str, runs: pd.DataFrame) -> dict[str, str]:
    top = best(runs)
    return {
        "task": title,
        "zoo": scores(runs, "zoo"),
        "generated": scores(runs, "generated"),
        "best baseline (its novelty)": f"{NAMES.get(top, top)} {scores(runs, top)} ({novelty(runs, top)})",
        "novelty": novelty(runs),
        "time (seeds)": f"{runs['minutes.train'].mean():.0f} min ({len(runs)})",
    }
