"""Score networks of many widths and depths that a saved flow draws, beside trained ones."""

from collections.abc import Mapping, Sequence

from configuration import ex
from lab.architectures import architectures_of, label_of, sized_network
from lab.checks import device_of
from lab.draw import generate, reopen
from lab.folder import described, write_json
from lab.options import plainly
from lab.yardstick import recipe_of, with_trained

from geoflow.evaluation.comparisons import plot_widths
from geoflow.evaluation.exam import Exam, score
from geoflow.evaluation.plots import save_figures
from geoflow.evaluation.tables import metrics_table
from geoflow.sampling import sample
from uses.writing import folder_of

WIDEST = 1024  # widths up to here are compared with those that the flow saw


@ex.command
@plainly()
def widths(_config, _run):
    """Score networks of the widths=[4,64] and depths=[1,2] that the flow of checkpoint=runs/3 draws, beside trained ones."""
    folder, found, refused = folder_of(_run), {}, []
    recipe = recipe_of(_config) if _config["yardstick"] else None
    how = {name: _config[name] for name in ("task", "network", "flow", "solver", "steps", "sharpness", "count", "yardstick", "seed")}
    seen = {depth: seen_widths(_config, depth) for depth in _config["depths"]}
    for depth in _config["depths"]:
        for width in _config["widths"]:
            if (reason := reason_against(_config, width, depth)) is not None:
                print(f"Width {width}, depth {depth} is left out: {reason}")
                refused.append({"width": width, "depth": depth, "reason": reason})
                continue
            config = {**_config, **sized_network(_config, width, depth)}
            found.setdefault(depth, {})[width] = scored(config, recipe)
            write_json(folder / "widths.json", how | {"seen": seen, "depths": found, "refused": refused})  # large ones take long
    write_json(folder / "widths.json", how | {"seen": seen, "depths": found, "refused": refused})
    if not found:
        raise ValueError(f"The flow serves none of these sizes. {refused[0]['reason']}")
    save_figures(folder / "figures", {"widths": plot_widths(found, seen)})
    blocks = {label_of({"width": width, "depth": depth}): one for depth, row in found.items() for width, one in row.items()}
    print(metrics_table({"architectures": blocks}), f"Written to {folder}", sep="\n\n")


def scored(config: Mapping, recipe: Mapping | None) -> dict:
    """Return the scores of networks that the saved flow draws and, with a recipe, of trained ones."""
    flow, network, spec, task = reopen(config)
    thetas, _ = generate(flow, network, spec, task, config)
    metrics = score(Exam(network, spec, task, device_of(config["device"])), thetas) | {"parameters": spec.weights}
    return metrics if recipe is None else with_trained(metrics, thetas, config, recipe)


def reason_against(config: Mapping, width: int, depth: int) -> str | None:
    """Return why there are no networks of this size, or why the flow cannot draw them. Return None if it can."""
    try:
        flow, _, spec, _ = reopen({**config, **sized_network(config, width, depth)})
        sample(flow, 1, spec=spec, steps=1)
    except ValueError as error:
        return str(error)
    return None


def seen_widths(config: Mapping, depth: int) -> Sequence[int]:
    """Return the widths of this depth that the flow was fitted to."""
    own = list(architectures_of(described(config["checkpoint"])).values())
    try:
        return [width for width in range(1, WIDEST + 1) if sized_network(config, width, depth) in own]
    except ValueError:  # this kind of network has no such depth, which `reason_against` says
        return []
