"""Data-centres files that pages of the documentation show."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["DOCS", "PAGES", "files", "shown"]

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "launchers"

_COMPLETE = "# data-centres.yaml\n"


def files(page: Path) -> list[str]:
    """Every data-centres file of a page."""
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    return [text for text in blocks if re.search(r"^data_centres:$", text, re.MULTILINE)]


def shown(page: str, **replaced: str) -> str:
    """The complete data-centres file of a page, with words replaced that are not so on a test's machine."""
    [text] = [text for text in files(PAGES / f"{page}.md") if text.startswith(_COMPLETE)]
    for word in replaced:
        assert word in text, f"{page}.md shows no {word}"
    # All at once: what is put in may have some of the other words in it.
    words = "|".join(map(re.escape, replaced)) or "$^"
    return re.sub(words, lambda found: replaced[found[0]], text)
