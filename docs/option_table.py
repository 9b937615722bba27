"""Print the options and the named configurations as Markdown, by the comments of experiments/configuration.py."""

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path

from configuration import DEFAULTS, ex
from lab.words import configurations_of, options_of

SOURCE = Path(ex.said_in).read_text(encoding="utf-8")


def table() -> str:
    """Return all options, in a table for each section."""
    lines, before = [], None
    for option in options_of(SOURCE, DEFAULTS):
        if option.section != before:
            lines += ["", f"### {option.section}", "", "| option | meaning | default | values |", "|---|---|---|---|"]
            before = option.section
        lines.append(f"| `{option.name}` | {option.meaning} | {option.default} | {option.values} |")
    return "\n".join(lines)


def named() -> str:
    """Return the named configurations, with what each of them is and what it sets."""
    said = configurations_of(SOURCE)
    lines = ["| configuration | what it is | sets |", "|---|---|---|"]
    for name, scope in ex.named_configs.items():
        options = scope() if callable(scope) else scope
        lines.append(f"| `{name}` | {said[name]} | {' '.join(f'`{option}`' for option in _assigned(options))} |")
    return "\n".join(lines)


def _assigned(options: Mapping, group: str = "") -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _assigned(value, f"{name}.")
        else:
            yield f"{group}{name}={value}".replace(" ", "")


if __name__ == "__main__":
    with redirect_stdout(io.StringIO()):
        options, configurations = table(), named()
    print(options, "### Named configurations", configurations, sep="\n\n")
