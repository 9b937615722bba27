"""Pick a row of a table by its name, or say which names there are."""

from collections.abc import Mapping
from typing import TypeVar

Row = TypeVar("Row")


def choose(option: str, name: str, table: Mapping[str, Row]) -> Row:
    """The row `name` of the table of an option. Raises ValueError listing the known names.

    >>> choose("solver", "eular", {"euler": 1, "rk4": 4})
    Traceback (most recent call last):
    ValueError: Unknown solver 'eular'. Known: euler, rk4.
    """
    if name not in table:
        raise ValueError(f"Unknown {option} {name!r}. Known: {', '.join(table)}.")
    return table[name]
