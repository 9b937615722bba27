"""Say in a line how to read the table that a run ends with, and what to try where its networks are poor."""

from collections.abc import Collection, Mapping

from geoflow.evaluation import advice as of_scores

FEW = 20  # training steps of the flow that nobody expects good networks from
EASY = "breast_cancer"


def advice(metrics: Mapping, config: Mapping, named: Collection[str]) -> list[str]:
    """Return sentences for a run. `metrics` is what metrics.json holds, and `named` are the named configurations of the run."""
    if "smoke" in named and config["iterations"] <= FEW:
        return [f"The networks of smoke are meant to be poor ({config['iterations']} training steps): it only shows that everything works."]
    if config["task"] == EASY and not of_scores.poor(metrics):
        return [
            "How to read this table: the mean network is strong on this easy task, so compare the generated networks with the zoo. "
            "`with digits` shows a task where baselines fail.",
            *of_scores.on_copies(metrics),
        ]
    return of_scores.advice(metrics)
