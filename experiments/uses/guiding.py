"""Compare ways to guide a saved flow towards labelled data, and training with as many gradients."""

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter

from configuration import ex
from lab.collect import at_terminal, training_networks
from lab.draw import generate
from lab.folder import write_json
from lab.labels import Labelled, by_kind, fresh_networks, labelled, nll_of
from lab.options import plainly
from torch import Tensor
from tqdm import tqdm

import geoflow
from geoflow.descent import descend
from geoflow.evaluation.boards import plot_rows
from geoflow.evaluation.metrics import summary
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.tables import scores_table
from geoflow.guidance import no_guidance
from geoflow.randomness import randomness
from uses.writing import folder_of

# what is compared: arguments of `guide`
WAYS: dict[str, dict] = {
    "loss, at the point": {"unit": "loss"},
    "loss, at the endpoint": {"unit": "loss", "at": "endpoint"},
    "loss, through the endpoint": {"unit": "loss", "at": "through"},
    "velocity": {"unit": "velocity"},
    "velocity, falling": {"unit": "velocity", "schedule": "falling"},
    "velocity, rising": {"unit": "velocity", "schedule": "rising"},
    "velocity, falling, yields": {"unit": "velocity", "schedule": "falling", "yields": True},
    "average, falling, yields": {"unit": "average", "schedule": "falling", "yields": True},
}
STRENGTHS = {"loss": (0.1, 1.0, 10.0, 100.0), "velocity": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "average": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates of Adam
TRIED = 8  # networks that a setting is chosen by


@ex.command
@plainly()
def guide(_config, _run):
    """Compare ways to guide the flow of checkpoint=runs/3 to labelled data, such as task=fashion, and Adam with as many gradients."""
    folder, data = folder_of(_run), labelled(_config)
    gradients, count = _config["steps"] * _config["guiding"]["repeats"], _config["count"]

    def drawn(strength: float, networks: int, how: Mapping) -> Tensor:
        objective = data.objective(randomness(_config["seed"], "guidance"))
        guidance = geoflow.guide(objective, strength, repeats=_config["guiding"]["repeats"], **how) if strength else no_guidance
        return generate(data.flow, data.network, data.spec, data.task, {**_config, "count": networks}, guidance)[0]

    def trained(start: Tensor) -> Callable[[float, int], Tensor]:
        def by(lr: float, networks: int) -> Tensor:
            objective = data.objective(randomness(_config["seed"], "guidance"))
            return descend(data.spec, start[:networks].to(data.device), objective, gradients, lr).cpu()

        return by

    plain = drawn(0.0, count, {})
    starts = {
        "random networks": fresh_networks(data.task, _config, data.spec, count),
        "generated networks": plain,
        "training networks": training_networks(_config, data.spec, count),
    }
    found = {"unguided": {"test": summary(data.test.single(plain)), "gradients": 0}}
    ways = {f"guided: {way}": (STRENGTHS[how["unit"]], lambda s, n, how=how: drawn(s, n, how)) for way, how in WAYS.items()}
    ways |= {f"Adam from {name}": (RATES, trained(start)) for name, start in starts.items() if start is not None}
    for name, (values, make) in tqdm(ways.items(), desc="ways", unit="way", disable=not at_terminal()):
        found[name] = best_of(values, make, data, count) | {"gradients": gradients}
    how = {name: _config[name] for name in ("task", "flow", "solver", "steps", "sharpness", "count", "seed")}
    how |= {"own_task": data.flow.config["task"], "examples": len(data.task.x_train), "batch": data.batch, "gradients": gradients}
    write_json(folder / "guide.json", how | {"ways": found})
    rows = {name: one["test"] for name, one in found.items() if one["test"]}
    title, outputs = f"{data.task.name}: guidance and training, {gradients} gradients", data.task.outputs
    save_figures(folder / "figures", {"guide": plot_rows(by_kind(rows), title, outputs)})
    print(scores_table({named(name, found[name]): one for name, one in rows.items()}, outputs), f"Written to {folder}", sep="\n\n")


def best_of(values: Iterable[float], make: Callable[[float, int], Tensor], data: Labelled, count: int) -> dict:
    """Choose the value (a strength or a learning rate) with the lowest NLL on the examples to choose by, and score networks made with it.

    The scores are None if every value made networks diverge.
    """
    tried = {}
    for value in values:
        try:
            tried[value] = nll_of(data.valid, make(value, min(TRIED, count)))
        except FloatingPointError:  # also Diverged
            tried[value] = float("inf")
    chosen = min(tried, key=tried.get)
    seen = {f"{value:g}": nll if nll < float("inf") else None for value, nll in tried.items()}
    begun = perf_counter()
    try:
        test = summary(data.test.single(make(chosen, count)))
    except FloatingPointError:
        test = None
    return {"chosen": chosen, "tried": seen, "test": test, "seconds": perf_counter() - begun}


def named(name: str, one: Mapping) -> str:
    if "chosen" not in one:
        return name
    return f"{name} ({'lr' if name.startswith('Adam') else 'strength'} {one['chosen']:g})"
