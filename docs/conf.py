"""Configure Sphinx for the documentation site."""

import importlib.util
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent

project = "geoflow"
author = "The geoflow developers"
copyright = "The geoflow developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "gathered/options.md", "gathered/headline.md", "gathered/overview.md"]  # parts of other pages

html_theme = "furo"
html_title = "geoflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False

nb_execution_mode = "off"  # notebooks are shown with the outputs that they keep
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]  # pages of results/ have heading levels of their own

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
smartquotes = False


def _marked(line: str) -> str:
    """Turn a line of a docstring from Markdown into reStructuredText: code between backticks, all else plain."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # one backtick is not closed
        parts = [line.replace("`", "'")]
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) if number % 2 == 0 else f"``{part}``" for number, part in enumerate(parts)]
    return "".join(f"\\ {part}\\ " if part.startswith("``") else part for part in plain)


def _docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText. Backticks mark code, indentation marks formulas, and >>> marks examples."""
    found, example, formula = [], False, False
    for number, line in enumerate(lines):
        blank, before = not line.strip(), number == 0 or not lines[number - 1].strip()
        example = not blank and (example or line.lstrip().startswith(">>>"))
        if line.startswith(" ") and before and not example and not formula:
            found += ["::", ""]
            formula = True
        formula = formula and (blank or line.startswith(" "))
        found.append(line if example or formula or blank else _marked(line))
    lines[:] = found


def _signature(app, what, name, obj, options, signature: str | None, returns: str | None) -> tuple[str | None, str | None]:
    """Shorten the names of types, and write ... for a default that a dataclass makes anew."""
    short = (re.sub(r"~(?:\w+\.)+", "", part).replace("<factory>", "...") if part else part for part in (signature, returns))
    return tuple(short)


def setup(app) -> None:
    spec = importlib.util.spec_from_file_location("gathered", HERE / "gathered.py")
    gathered = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gathered)
    gathered.gather(HERE.parent, HERE / "gathered")
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
