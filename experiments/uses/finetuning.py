"""Train networks further from several starts: generated, guided, random, trained and mean ones."""

from collections.abc import Mapping

from configuration import ex
from lab.collect import at_terminal, training_networks
from lab.draw import generate, in_training, measured_anew, way_of
from lab.folder import write_json
from lab.labels import Labelled, fresh_networks, labelled, nll_of
from lab.options import plainly
from torch import Tensor
from tqdm import tqdm

import geoflow
from geoflow.descent import descend
from geoflow.evaluation.comparisons import plot_learning
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.tables import scores_table
from geoflow.outputs import outputs_of
from geoflow.randomness import randomness
from uses.writing import folder_of

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # learning rates of Adam


@ex.command
@plainly()
def finetune(_config, _run):
    """Train networks further, on task=fashion for example: from the flow of checkpoint=runs/3, random ones, its zoo's and their mean."""
    folder, data = folder_of(_run), labelled(_config)
    kind = outputs_of(data.task.outputs)
    count, level, steps = _config["count"], _config["tuning"]["level"], milestones(_config["tuning"]["steps"])
    trained = training_networks(_config, data.spec, count)  # canonical ones compute the same, with weights as the flow draws them
    starts = {
        "random networks": fresh_networks(data.task, _config, data.spec, count),
        "generated networks": generate(data.flow, data.network, data.spec, data.task, _config)[0],
        "training networks": trained,
        "training networks, canonical": None if trained is None else data.flow.canonical(trained.to(data.device)),
        "mean network": None if trained is None else data.flow.reference[None],
    }
    if _config["guidance"]:
        objective = data.objective(randomness(_config["seed"], "guidance"))
        guidance = geoflow.guide(objective, _config["guidance"], **way_of(_config))
        starts["guided networks"] = generate(data.flow, data.network, data.spec, data.task, _config, guidance)[0]
    curves = {}
    for name, start in tqdm(starts.items(), desc="starts", unit="start", disable=not at_terminal()):
        if start is not None:
            curves[name] = learning_curve(data, start, steps, _config)
            curves[name]["reached"] = reached(curves[name]["scores"], level, kind.main[0])
    how = {name: _config[name] for name in ("task", "flow", "count", "seed", "guidance", "guiding")}
    how |= {"own_task": data.flow.config["task"], "examples": len(data.task.x_train), "batch": data.batch, "level": level}
    write_json(folder / "finetune.json", how | {"starts": curves})
    title = f"{data.task.name}: training from several starts ({count} networks each, {len(data.task.x_train):,} examples)"
    shown = plot_learning({name: one["scores"] for name, one in curves.items()}, title, level, data.task.outputs)
    save_figures(folder / "figures", {"finetune": shown})
    ends = {f"{name}, step {step} (lr {one['lr']:g})": one["scores"][step] for name, one in curves.items() for step in (0, steps[-1])}
    wanted = f"{kind.columns[kind.main[0]].title} {level:g}"
    lines = (said(name, one["reached"], wanted) for name, one in curves.items())
    print(scores_table(ends, data.task.outputs), *lines, f"Written to {folder}", sep="\n\n")


def milestones(last: int) -> list[int]:
    """Return the steps after which networks are scored: 0, and about two for each doubling."""
    between = {round(2 ** (half / 2)) for half in range(2 * last.bit_length())}
    return [0, *sorted(step for step in between if step < last), last]


def learning_curve(data: Labelled, start: Tensor, steps: list[int], config: Mapping) -> dict:
    """Train networks by Adam at a constant learning rate, and score them on the test part after some steps.

    The learning rate is the one with the lowest NLL on the examples to choose by, averaged over these steps. Running statistics are
    measured anew before each score, on inputs to learn from.
    """
    tried, kept, seed = {}, {}, config["seed"]
    for lr in RATES:
        at = {}

        def watch(step: int, thetas: Tensor, at=at) -> None:
            if step in steps:
                at[step] = measured_anew(data.network, data.spec, thetas.clone(), data.task, config, seed)

        objective = in_training(data.objective(randomness(seed, "batches")), data.spec, config)
        try:
            descend(data.spec, start.to(data.device), objective, steps[-1], lr, falling=False, watch=watch)
        except FloatingPointError:
            continue
        tried[lr], kept[lr] = sum(nll_of(data.valid, thetas) for thetas in at.values()) / len(at), at
    if not tried:
        raise FloatingPointError(f"Training diverged with all learning rates ({', '.join(f'{lr:g}' for lr in RATES)}). Check the networks.")
    best = min(tried, key=tried.get)
    scores = {step: summary(data.test.single(thetas.cpu())) for step, thetas in kept[best].items()}
    return {"lr": best, "tried": {f"{lr:g}": nll for lr, nll in tried.items()}, "scores": scores}


def reached(scores: Mapping[int, Mapping], level: float, score: str = "accuracy") -> int | None:
    """Return the first of the scored steps at which the mean of a score is at least `level`, or None."""
    return next((step for step, one in scores.items() if one[score]["mean"] >= level), None)


def said(name: str, step: int | None, wanted: str) -> str:
    return f"{name}: {wanted} " + ("is not reached" if step is None else f"after {step} steps")
