"""Write the answer to the question of a study, with the numbers of its runs."""

from collections.abc import Mapping

import pandas as pd

from pages.studies import STUDIES
from pages.tables import BASELINES, NAMES, best, mean_of, novelty, scores, three
from pages.templating import rendered


def answer(study: str, rows: Mapping[str, pd.DataFrame], root: str) -> str:
    """Return the answer of a study, whose runs are given by label. `root` leads from the page to the folder of the project.

    Raises ValueError if the answer says what the runs do not show.
    """

    def sure(condition: bool, words: str) -> str:
        if not condition:
            raise ValueError(f"The answer of {study} says {words!r}, which its runs do not show. Edit its file in pages/templates/.")
        return words

    def of(label: str, column: str, form: str = "") -> str:
        value = rows[label][column].mean()
        return format(value, form) if form else three(value)

    def changes(label: str) -> list[tuple[str, float]]:
        """Return what each other row adds to the NLL of this one, the lowest first."""
        usual = mean_of(rows[label], "generated", "nll")
        found = [(other, mean_of(runs, "generated", "nll") - usual) for other, runs in rows.items() if other != label]
        return sorted(found, key=lambda change: change[1])

    def ratios(label: str) -> tuple[float, float]:
        """Return the lowest and the highest NLL of the generated networks over the runs, in units of the zoo's."""
        found = rows[label]["generated.nll.mean"] / rows[label]["zoo.nll.mean"]
        return found.min(), found.max()

    def beaten(label: str) -> int:
        """Return how many baselines have a higher NLL than the generated networks."""
        return sum(mean_of(rows[label], kind, "nll") > mean_of(rows[label], "generated", "nll") for kind in BASELINES)

    def ahead(label: str, baseline: str) -> int:
        """Return in how many runs the generated networks have a lower NLL than a baseline."""
        return (rows[label]["generated.nll.mean"] < rows[label][f"baselines.{baseline}.nll.mean"]).sum()

    text = rendered(
        f"{STUDIES[study].answer or study}.md.j2",
        root=root,
        sure=sure,
        of=of,
        changes=changes,
        ratios=ratios,
        beaten=beaten,
        ahead=ahead,
        scores=lambda label, kind="generated": scores(rows[label], kind),
        novelty=lambda label, kind=None: novelty(rows[label], kind),
        nll=lambda label, kind="generated": mean_of(rows[label], kind, "nll"),
        accuracy=lambda label, kind="generated": mean_of(rows[label], kind, "accuracy"),
        most_accurate=lambda label: max(mean_of(rows[label], kind, "accuracy") for kind in BASELINES),
        best=lambda label: NAMES.get(name := best(rows[label]), name),
        best_scores=lambda label: scores(rows[label], best(rows[label])),
        best_novelty=lambda label: novelty(rows[label], best(rows[label])),
        seeds=lambda label: len(rows[label]),
    )
    return " ".join(text.split())
