"""Say in a line how to read the table that a run ends with, and what to try where its networks are poor."""

from collections.abc import Collection, Mapping

from geoflow.outputs import Outputs, outputs_of

FEW = 20  # training steps of the flow that nobody expects good networks from
EASY = "breast_cancer"


def advice(metrics: Mapping, config: Mapping, named: Collection[str]) -> list[str]:
    """One line or none. `metrics` is what metrics.json holds, and `named` are the named configurations of the run."""
    zoo, generated, mean = metrics["zoo"], metrics["generated"], metrics["baselines"]["mean_network"]
    kind = outputs_of(metrics.get("outputs", "classes"))
    if "smoke" in named and config["iterations"] <= FEW:
        return [f"The networks of smoke are meant to be poor ({config['iterations']} training steps): it only shows that everything works."]
    poor = _behind(kind, generated, mean) and not _behind(kind, zoo, mean) and not _near(generated, zoo)
    if poor:
        return [
            "The generated networks are behind the mean network. Try more iterations or a larger zoo (runs=...), and the command stages, "
            "which shows where quality is lost."
        ]
    if config["task"] == EASY:
        return [
            "How to read this table: the mean network is strong on this easy task, so compare the generated networks with the zoo. "
            "`with digits` shows a task where baselines fail."
        ]
    if _behind(kind, generated, mean):
        of_whom = "and of networks of the zoo too" if _behind(kind, zoo, mean) else "but these are near the zoo"
        return [f"The mean network is ahead of the generated networks {of_whom}. A flow imitates its zoo: compare them with the zoo."]
    return []


def _behind(kind: Outputs, one: Mapping, other: Mapping) -> bool:
    """Whether networks are worse in both main scores, such as accuracy and NLL."""
    return all(kind.columns[score].worse(one[score]["mean"], other[score]["mean"]) for score in kind.main)


def _near(generated: Mapping, zoo: Mapping) -> bool:
    """Whether the NLL of generated networks is within one standard deviation of the zoo's: a flow imitates its zoo."""
    return generated["nll"]["mean"] <= zoo["nll"]["mean"] + zoo["nll"]["std"]
