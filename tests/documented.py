"""Data-centres files that pages of the documentation show."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGES", "shown"]

PAGES = Path(__file__).parents[1] / "docs" / "launchers"

_FILE = re.compile(r"```yaml\n(# data-centres.yaml\n.*?)```", re.DOTALL)


def shown(page: str, **replaced: str) -> str:
    """The complete data-centres file of a page, with words replaced that are not so on a test's machine."""
    [text] = _FILE.findall((PAGES / f"{page}.md").read_text())
    for word, other in replaced.items():
        assert word in text, f"{page}.md shows no {word}"
        text = text.replace(word, other)
    return text
