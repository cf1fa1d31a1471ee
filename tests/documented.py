"""Data-centres files that pages of the documentation show."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGES", "files", "shown"]

PAGES = Path(__file__).parents[1] / "docs" / "launchers"

_COMPLETE = "# data-centres.yaml\n"


def files(page: str) -> list[str]:
    """Every data-centres file of a page on launchers."""
    text = (PAGES / f"{page}.md").read_text()
    return re.findall(rf"```yaml\n((?:{_COMPLETE})?data_centres:\n.*?)```", text, re.DOTALL)


def shown(page: str, **replaced: str) -> str:
    """The complete data-centres file of a page, with words replaced that are not so on a test's machine."""
    [text] = [text for text in files(page) if text.startswith(_COMPLETE)]
    for word in replaced:
        assert word in text, f"{page}.md shows no {word}"
    # All at once: what is put in may have some of the other words in it.
    words = "|".join(map(re.escape, replaced)) or "$^"
    return re.sub(words, lambda found: replaced[found[0]], text)
