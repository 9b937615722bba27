"""Train a few networks of an architecture by the recipe of a flow's zoo, to compare generated ones with."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from geoflow.evaluation.exam import Exam
from geoflow.evaluation.metrics import summary
from lab.architectures import network_settings
from lab.checks import device_of
from lab.collect import made_with, whole_zoo
from lab.reading import is_read


def recipe_of(config: Mapping) -> Mapping | None:
    """Return the configuration of the run that made the flow of a checkpoint. It says how the zoo was trained.

    Without the folder of that run it says why nothing is compared, and returns None.
    """
    try:
        recipe = made_with(config)
    except FileNotFoundError as error:
        print(f"No networks are trained to compare with: {error}")
        return None
    if recipe["runs"] is None:
        print(f"No networks are trained to compare with: {config['checkpoint']} is of a run that trained no zoo. Name the flow's own run.")
        return None
    if is_read(recipe):
        print(f"No networks are trained to compare with: those in {recipe['zoo']['folder']} do not say how they were trained.")
        return None
    return recipe


def with_trained(metrics: Mapping, thetas: Float[Tensor, "nets weights"], config: Mapping, recipe: Mapping) -> dict:
    """Add to the scores of generated networks those of trained ones of the same architecture, and of ensembles of as many.

    A flow's own zoo begins with these runs. The cache keeps them.
    """
    device = device_of(config["device"])
    task, network, spec, zoo = whole_zoo({**recipe, **network_settings(config), "runs": config["yardstick"]}, device)
    exam, trained = Exam(network, spec, task, device), zoo.thetas[:, -1]
    ensembles = {f"generated_{len(trained)}": exam.ensemble(thetas[: len(trained)])} if len(thetas) > len(trained) else {}
    ensembles |= {"trained": exam.ensemble(trained)}
    return {**metrics, "trained": summary(exam.single(trained)), "ensemble": {**metrics["ensemble"], **ensembles}}
