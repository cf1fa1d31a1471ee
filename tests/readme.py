"""What README.md shows: its code, and the output it says that code has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["README", "Example", "examples", "lab_examples"]

README = Path(__file__).parents[1] / "README.md"
SITES = README.parent / "docs" / "sites.md"

_EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\s*```text\n(?P<output>.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of Python in the README."""

    code: str
    output: str | None
    """What the block after it shows, or None if there is none."""


def examples() -> list[Example]:
    """Every block of Python in the README that runs on one machine, in order."""
    return [one for one in _examples(README) if not _of_lab(one)]


def lab_examples() -> list[Example]:
    """Those of README and of docs/sites.md that calculate with the catalogue of the lab."""
    return [one for page in (README, SITES) for one in _examples(page) if _of_lab(one)]


def _of_lab(example: Example) -> bool:
    return '"weather.yaml"' in example.code


def _examples(page: Path) -> list[Example]:
    return [Example(found["code"], found["output"]) for found in _EXAMPLE.finditer(page.read_text())]
