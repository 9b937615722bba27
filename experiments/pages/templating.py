"""Fill the templates of the pages."""

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pages.studies import TEMPLATES


def rendered(template: str, **values) -> str:
    """Return a file of templates/ with these values filled in. The filter `markdown` turns a table into Markdown."""
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    pages.filters["markdown"] = _markdown
    return pages.get_template(template).render(**values)


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
