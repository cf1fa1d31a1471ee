"""What README.md shows: its code, and the output it says that code has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["README", "Example", "examples"]

README = Path(__file__).parents[1] / "README.md"

_EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\s*```text\n(?P<output>.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of Python in the README."""

    code: str
    output: str | None
    """What the block after it shows, or None if there is none."""


def examples() -> list[Example]:
    """Every block of Python in the README, in order."""
    return [Example(found["code"], found["output"]) for found in _EXAMPLE.finditer(README.read_text())]
