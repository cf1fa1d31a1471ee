"""Which tests quote a message, in what they expect to be said."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from errors_table import Row

TESTS = Path(__file__).parent

# Letters that a quotation has at least, with more than one word: less could be of anything.
_SHORTEST = 10
_WORDS = 5
# What provokes messages rather than expects them.
_NOT = {"errors_table.py", "quotations.py", "test_errors.py"} | {
    f"{of}_errors.py" for of in ("cluster", "host", "site")
}


def quoting(row: Row) -> set[str]:
    """Tests that have a part of what a row says between two gaps, or so many words of it."""
    parts = [one for one in map(_plain, row.literal) if len(one) >= _SHORTEST]
    words = [part.split(" ") for part in parts]
    runs = {" ".join(one[n : n + _WORDS]) for one in words for n in range(max(len(one) - _WORDS, 0) + 1)}
    return {
        test
        for quotation, test in _quotations()
        if any(quotation in part for part in parts) or any(run in quotation for run in runs if " " in run)
    }


@cache
def _quotations() -> list[tuple[str, str]]:
    return [
        (text, f"{path.relative_to(TESTS.parent)}::{name}")
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in _NOT
        for name, text in _texts(ast.parse(path.read_text()))
    ]


def _texts(module: ast.Module) -> Iterator[tuple[str, str]]:
    """Texts in a module of tests that may be expected of a message; patterns in their plain parts."""
    for statement in module.body:
        name = getattr(statement, "name", "")
        documented = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        said = ast.get_docstring(statement, clean=False) if documented else None
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != said:
                for part in re.split(r"\.[*+]\??|(?<!\\)[|()]|\n", node.value):
                    text = _plain(part)
                    if len(text) >= _SHORTEST and " " in text:
                        yield name, text


def _plain(text: str) -> str:
    """A part of a message, or of a pattern for one, in one form."""
    return re.sub(r"\s+", " ", text.replace("\\", "")).strip()
