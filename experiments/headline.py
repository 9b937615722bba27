"""Lay out the README's table of results: for each size of network the flow that was trained most, beside its zoo and the baselines."""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import mean

from tables import Run, baseline_novelty, groups, markdown, novelty_of, place, small_ensemble, zoo_seed

FLOWS = ("geometric", "geometric_polar")  # a task's rows are of the first that its page has
# what a row is called: the page that it is from, and the task
ROWS = {
    "digits, 64-10-10": ("main_job", "digits"),
    "MNIST, 784-10-10": ("mnist", "mnist"),
    "Fashion-MNIST, 784-10-10": ("fashion", "fashion"),
    "MNIST, 784-32-32-10": ("mnist32", "mnist"),
}
# the kinds of a baseline, of which the one with the least NLL is shown
BASELINES = {
    "mean network (the better of two)": ("mean_network", "rescaled_mean"),
    "interpolation": ("interpolation",),
    "Gaussian on principal components": ("pca_gaussian",),
    "noised training network": ("noised",),
}
NEW = ("ratio", "copies")  # what is said of how new generated networks are
BEGIN, END = "<!-- This table is written by `make results`. -->\n", "<!-- The end of the table. -->"


def headline(pages: Mapping[str, Sequence[Run]]) -> str:
    """The table, in Markdown, from the kept runs of each page; a size of which there are none has no row."""
    head = ["", "generated", "zoo (runs)", *BASELINES, "ensemble of 64, of the zoo's", "spread / zoo", "flow", "its training", "seeds"]
    found = {title: most_trained(pages.get(page, ()), task) for title, (page, task) in ROWS.items()}
    return markdown([head, *(_row(title, runs) for title, runs in found.items() if runs)])


def most_trained(runs: Sequence[Run], task: str) -> Sequence[Run]:
    """The runs, one a seed, of the flow that took the most examples in its training; then of the largest zoo, of the most seeds."""
    of_task = [group for group in groups(runs).values() if group[0]["config"]["task"] == task]
    found = ([group for group in of_task if group[0]["config"]["flow"] == flow] for flow in FLOWS)
    return max(next(filter(None, found), ()), key=_training, default=())


def inserted(text: str, table: str) -> str:
    """A text whose table, between its two marks, is this one."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"The README has lost the marks of its table, {BEGIN!r} and {END!r}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n\n{END}{after}"


def _training(group: Sequence[Run]) -> tuple[int, int, int]:
    config = group[0]["config"]
    return config["iterations"] * config["batch"], config["runs"], len(group)


def _row(title: str, runs: Sequence[Run]) -> list[str]:
    several = [run["metrics"] for run in runs]
    cells = [_cell([one["generated"] for one in several], *(mean(novelty_of(one, name) for one in several) for name in NEW))]
    cells += [f"{_cell([one['zoo'] for one in several])} ({runs[0]['config']['runs']:,})"]
    for kinds in BASELINES.values():
        known = [name for name in kinds if all(name in one["baselines"] for one in several)]
        name = min(known, key=lambda name: mean(one["baselines"][name]["nll"]["mean"] for one in several))
        novelty = mean(baseline_novelty(one, name) for one in several)
        cells += [_cell([one["baselines"][name] for one in several], novelty)]
    ensembles = (_three_digits(mean(small_ensemble(one, whose)["accuracy"] for one in several)) for whose in ("generated", "zoo"))
    apart = mean(novelty_of(one, "spread") for one in several)
    config = runs[0]["config"]
    on = ", ".join(sorted({place(run["ran"]) for run in runs}))
    trained = f"{config['iterations']:,} x {config['batch']}: {mean(one['time']['train'] for one in several) / 60:.0f} min, {on}"
    zoos = {zoo_seed(run["config"]) for run in runs}
    seeds = ", ".join(str(one["seed"]) for one in several) + " of one zoo" * (len(runs) > len(zoos) == 1)
    return [title, *cells, ", ".join(ensembles), f"{apart:.2f}", f"`{runs[0]['config']['flow']}`", trained, seeds]


def _cell(kind: Sequence[Mapping], *new: float) -> str:
    """Accuracy / NLL (novelty, copies), the means over seeds."""
    scores = " / ".join(_three_digits(mean(one[score]["mean"] for one in kind)) for score in ("accuracy", "nll"))
    known = ", ".join(f"{value:.2f}" for value in new if not isnan(value))
    return f"{scores} ({known})" if known else scores


def _three_digits(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
