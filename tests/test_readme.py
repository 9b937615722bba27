"""Hold the README to what it promises: its example runs and is short, and its links lead somewhere."""

import re

from commands import PAGES, ROOT, blocks

README = PAGES[0]
MOST_LINES = 15


def test_the_example_runs():
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES
    short = code.replace("iterations=2000", "iterations=2").replace("geoflow.sample(flow, 10)", "geoflow.sample(flow, 10, steps=2)")
    assert short.count("=2)") == 2
    exec(compile(short, "README.md", "exec"), {})


def test_the_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]*)\)", README.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
