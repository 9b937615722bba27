"""Say in a sentence what the scores of generated networks mean, and what to try where they are poor."""

from collections.abc import Mapping

from geoflow.outputs import Outputs, outputs_of

MANY_COPIES = 0.1  # share of the generated networks; for really new ones it is .01


def advice(metrics: Mapping) -> list[str]:
    """Return the sentences that the scores of a scoreboard call for, or none. `metrics` is what metrics.json holds.

    >>> def one(accuracy, nll):
    ...     return {"accuracy": {"mean": accuracy, "std": 0.01}, "nll": {"mean": nll, "std": 0.01}}
    >>> metrics = {"zoo": one(0.9, 0.3), "generated": one(0.5, 1.0), "baselines": {"mean_network": one(0.8, 0.5)}}
    >>> advice(metrics)[0].split(".")[0]
    'The generated networks are behind the mean network'
    """
    (kind, zoo, generated, mean), said = _compared(metrics), []
    if poor(metrics):
        said.append(
            "The generated networks are behind the mean network. Try more iterations or a zoo of more training runs, and look at the "
            "stages, which show where quality is lost."
        )
    elif _behind(kind, generated, mean):
        of_whom = "and of networks of the zoo too" if _behind(kind, zoo, mean) else "but these are near the zoo"
        said.append(f"The mean network is ahead of the generated networks {of_whom}. A flow imitates its zoo: compare them with the zoo.")
    return said + on_copies(metrics)


def on_copies(metrics: Mapping) -> list[str]:
    """Return a sentence if many of the generated networks are near copies of training networks."""
    copies = metrics.get("novelty", {}).get("copies")
    if copies is None or copies <= MANY_COPIES:
        return []
    return [
        f"{copies:.0%} of the generated networks are suspiciously close to one training network (of really new ones 1%). "
        "Try a zoo of more training runs, fewer iterations, or start=0."
    ]


def poor(metrics: Mapping) -> bool:
    """Return whether the generated networks are behind the mean network, and this is not because of their zoo."""
    kind, zoo, generated, mean = _compared(metrics)
    return _behind(kind, generated, mean) and not _behind(kind, zoo, mean) and not _near(generated, zoo)


def _compared(metrics: Mapping) -> tuple[Outputs, Mapping, Mapping, Mapping]:
    """Return the kind of outputs, and the scores of the zoo, of the generated networks and of the mean network."""
    kind = outputs_of(metrics.get("outputs", "classes"))
    return kind, metrics["zoo"], metrics["generated"], metrics["baselines"]["mean_network"]


def _behind(kind: Outputs, one: Mapping, other: Mapping) -> bool:
    """Return whether networks are worse in both main scores, such as accuracy and NLL."""
    return all(kind.columns[score].worse(one[score]["mean"], other[score]["mean"]) for score in kind.main)


def _near(generated: Mapping, zoo: Mapping) -> bool:
    """Return whether the NLL of generated networks is within one standard deviation of the zoo's: a flow imitates its zoo."""
    return generated["nll"]["mean"] <= zoo["nll"]["mean"] + zoo["nll"]["std"]
