"""Print the options and the named configurations as Markdown, read from experiments/configuration.py and its comments."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout

import configuration
from configuration import DEFAULTS, ex
from lab.options import CHOICES, NUMBERS, SAMPLER, ZOO_NUMBERS

from geoflow.velocity import complete_sizes
from geoflow.zoo.recipes import ORIGINS
from geoflow.zoo.train import SCHEDULES

SOURCE = inspect.getsource(configuration)

# what stands in code where the comment only says which group of options it is
GROUPS = {
    "zoo": {
        "epochs": "passes through the training data", "batch": "examples in a step", "lr": "learning rate", "weight_decay": "weight decay",
        "every": "epochs between two snapshots of a run", "schedule": "how the learning rate falls",
        "origin": "whether each run has a start of its own, or all begin with one network",
        "common": "with `zoo.origin=shared`: epochs that the common start is trained for",
        "examples": "examples that a run draws with replacement, in place of all the data",
        "seed": "random numbers of the zoo; default: the run's seed",
    },
    "sizes": {
        "layers": "layers of the transformer", "node": "width of the state of a unit", "edge": "width of the state of an edge",
        "edge_hidden": "width of the hidden layer that updates an edge", "heads": "heads of the attention",
        "components": "principal axes of an input that the field sees", "width": "of `velocity=mlp`: width of the first hidden layer",
    },
}  # fmt: skip
SAID = {  # options whose names say enough in the code, and not on a page
    "flow": "how the flow sees a zoo", "coupling": "who travels to whom: how noise is paired with networks",
    "time": "how the times of training are drawn", "prediction": "what the field predicts", "weighting": "of the loss, over the times",
    "iterations": "training steps of the flow", "batch": "networks in a training step", "lr": "learning rate of the flow",
    "weight_decay": "weight decay of the flow", "ema": "decay of the moving average over the flow's weights", "count": "new networks",
    "solver": "method that integrates the flow", "steps": "steps of the solver", "device": "where to compute",
    "seed": "data split, zoo, flow and samples", "task": "the data", "network": "the kind of network",
    "activation": "of an mlp: the function behind each hidden layer", "norm": "of an mlp: the layer behind each hidden linear layer",
    "metric": "how long a row of weights on the inputs is",
    "recalibrate": "whether running statistics are measured anew, where there are any",
    "velocity": "the field; `auto` takes `identified` for zoos from one common start, else `transformer`",
    "part": "what is scored; `validation` takes a quarter of the training data from zoo and flow, to choose settings on",
    "cache": "folder of zoos, and of trainings under way", "checkpoint": "of a saved flow: a run folder or a `flow.safetensors`",
    "start": "the time that sampling begins at, on paths from noise to the centre of the aligned zoo",
    "sharpness": "how far sampling goes beyond what the flow learned, away from a Gaussian zoo",
}  # fmt: skip
SIZES = complete_sizes("mlp", {}) | complete_sizes("transformer", {})
ZOO_CHOICES = {"origin": ORIGINS, "schedule": SCHEDULES}


def comments() -> dict[str, str]:
    """What the comment behind each option says."""
    tokens = tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {node.targets[0].id: by_line.get(node.lineno, "") for node in _config().body if isinstance(node, ast.Assign)}


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Section, option, default, allowed values, meaning."""
    said, under = comments(), sections()
    for name in said:
        default = DEFAULTS[name]
        if isinstance(default, Mapping):
            for key in default:
                numbers = ZOO_NUMBERS.get(key) if name == "zoo" else NUMBERS["width"]
                values = _names(ZOO_CHOICES[key]) if key in ZOO_CHOICES and name == "zoo" else numbers[2]
                default = "by network and task" if name == "zoo" else f"`{SIZES[key]}`"
                yield under[name], f"{name}.{key}", default, values, GROUPS[name][key]
            continue
        values = _names(CHOICES[name]) if name in CHOICES else NUMBERS[name][2] if name in NUMBERS else _kind(default, name)
        meaning, _, left_open = said[name].partition("; default: ")
        if not (meaning := SAID.get(name, meaning)):
            raise ValueError(f"{name} has no comment in experiments/configuration.py, and no words in docs/option_table.py.")
        yield under[name], name, _shown(name, default, left_open), values, meaning


def sections() -> dict[str, str]:
    """The heading comment that each option stands under."""
    heading, found = "", {}
    for line in ast.get_source_segment(SOURCE, _config()).splitlines():
        text = line.strip()
        if text.startswith("# "):
            heading = text[2:].partition(";")[0]
        elif re.match(r"    \w+ = ", line):
            found[text.partition(" = ")[0]] = heading
    return found


def named() -> str:
    """The named configurations, with what each of them sets."""
    lines = ["| configuration | sets |", "|---|---|"]
    for name, scope in ex.named_configs.items():
        options = scope() if callable(scope) else scope
        lines.append(f"| `{name}` | {' '.join(f'`{option}`' for option in _assigned(options))} |")
    return "\n".join(lines)


def _assigned(options: Mapping, group: str = "") -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _assigned(value, f"{name}.")
        else:
            yield f"{group}{name}={value}".replace(" ", "")


def _config() -> ast.FunctionDef:
    (function,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef) and node.name == "config")
    return function


def _shown(name: str, default: object, left_open: str) -> str:
    """A default as the table has it; None stands for what depends on something else."""
    if name in SAMPLER:
        return f"`{SAMPLER[name]}`; of a saved flow: as in its run"
    if default is None:
        return left_open or "by network and task"
    return f"`{default}`"


def _names(table) -> str:
    return ", ".join(f"`{name}`" for name in table)


def _kind(default: object, name: str) -> str:
    if isinstance(default, bool):
        return "`True`, `False`"
    return "a list of widths, such as `[32]`" if name == "hidden" else "a path"


def table() -> str:
    lines, before = [], None
    for section, name, default, values, meaning in rows():
        if section != before:
            title = section[0].upper() + section[1:]
            lines += ["", f"### {title}", "", "| option | meaning | default | values |", "|---|---|---|---|"]
            before = section
        lines.append(f"| `{name}` | {meaning} | {default} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with redirect_stdout(io.StringIO()):
        options, configurations = table(), named()
    print(options, "### Named configurations", configurations, sep="\n\n")
