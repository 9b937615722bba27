"""Read what the comments of experiments/configuration.py say of every option and of the named configurations."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from geoflow.velocity import complete_sizes
from lab.allowed import BACK, CHOICES, GROUP_CHOICES, GROUP_NUMBERS, NUMBERS, SAMPLER

DEPENDS = "by network and task"
SIZES = complete_sizes("mlp", {}) | complete_sizes("transformer", {})
LISTS = {
    "hidden": "a list of widths, such as `[32]`, or of such lists",
    "widths": "a list of whole numbers of at least 1",
    "depths": "a list of whole numbers of at least 1",
    "zoo.folder": "a path, or a pattern such as `runs/*/best.pt`",
    "zoo.entry": "a name, such as `ema`",
}
OR_FILES = {"task": ", or a file such as `my_data.npz`", "network": ", or a function such as `my_networks.py:build`"}


@dataclass(frozen=True)
class Option:
    """What is said of an option, as Markdown in one line each."""

    section: str
    name: str
    default: str
    values: str
    meaning: str


def options_of(source: str, defaults: Mapping) -> list[Option]:
    """All options in the order of the source, those of a group by the name group.option.

    The comment behind an option says its meaning, and behind "; default: " what takes the place of None. A comment on a line of its own
    heads a section. Raises ValueError for an option without a comment.
    """
    behind, (config,) = _comments(source), (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "config")
    found, section, line = [], "", config.lineno
    for node in config.body:
        for text in source.splitlines()[line : node.lineno]:
            if text.strip().startswith("# "):
                title = text.strip()[2:].partition(";")[0]
                section = title[0].upper() + title[1:]
        line, name = node.end_lineno, node.targets[0].id
        if isinstance(node.value, ast.Dict):
            group = defaults[name]
            found += [_in_group(section, name, key.value, group[key.value], behind.get(key.lineno, "")) for key in node.value.keys]
        else:
            found.append(_single(section, name, defaults[name], behind.get(node.lineno, "")))
    if silent := [option.name for option in found if not option.meaning]:
        raise ValueError(f"{', '.join(silent)}: no comment behind it in experiments/configuration.py says what it is.")
    return found


def configurations_of(source: str) -> dict[str, str]:
    """What the comment behind each named configuration says: behind its decorator, or behind `ex.add_named_config`."""
    return {name: comment for name, line in _named(source) if (comment := _comments(source).get(line))}


def _named(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            yield from ((node.name, one.lineno) for one in node.decorator_list if ast.unparse(one).endswith("named_config"))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("add_named_config"):
            yield node.value.args[0].value, node.lineno


def _comments(source: str) -> dict[int, str]:
    """The comment on each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _single(section: str, name: str, default: object, comment: str) -> Option:
    meaning, _, left_open = comment.partition("; default: ")
    if isinstance(default, bool):
        values = "`True`, `False`"
    elif name in CHOICES:
        values = _names(CHOICES[name]) + OR_FILES.get(name, "")
    elif name in NUMBERS:
        values = NUMBERS[name][2]
    else:
        values = LISTS.get(name, "a path")
    if name in SAMPLER:
        shown = f"`{SAMPLER[name]}`; of a saved flow: as in its run" + (f"; of `density`: `{BACK[name]}`" if name in BACK else "")
    else:
        shown = left_open or (DEPENDS if default is None else f"`{default}`")
    return Option(section, name, shown, values, meaning)


def _in_group(section: str, group: str, key: str, default: object, comment: str) -> Option:
    meaning, _, left_open = comment.partition("; default: ")
    if group == "sizes":
        return Option(section, f"sizes.{key}", f"`{SIZES[key]}`", NUMBERS["width"][2], meaning)
    choices = GROUP_CHOICES[group]
    numbers = GROUP_NUMBERS[group]
    values = _names(choices[key]) if key in choices else numbers[key][2] if key in numbers else LISTS[f"{group}.{key}"]
    return Option(section, f"{group}.{key}", left_open or (DEPENDS if default is None else f"`{default}`"), values, meaning)


def _names(table: Mapping | tuple) -> str:
    return ", ".join(f"`{name}`" for name in table)
