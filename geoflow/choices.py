"""Look a name up in a table, and list the known names if it is not there."""

from collections.abc import Mapping
from typing import TypeVar

Row = TypeVar("Row")


def choose(option: str, name: str, table: Mapping[str, Row]) -> Row:
    """The row `name` of a table. `option` says in the message what was chosen.

    Raises ValueError with the known names if the table has no such row.

    >>> choose("solver", "eular", {"euler": 1, "rk4": 4})
    Traceback (most recent call last):
    ValueError: Unknown solver 'eular'. Known: euler, rk4.
    """
    if name not in table:
        raise ValueError(f"Unknown {option} {name!r}. Known: {', '.join(table)}.")
    return table[name]
