"""What the source can say when something is wrong, and what docs/errors.md says that it can say.

A message is found where an error is made: in a call of one of the project's classes, in the ``__str__`` of
those that put their text together themselves, in ``raise`` of Python's own where a user meets them, and in
functions called ``…complaint``, ``…diagnosis`` or ``…silent``, which return such texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dask_pools import errors

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "errors.md"

_OURS = frozenset(errors.__all__)
# Where a scientist meets Python's own exceptions as well, and as part of what; elsewhere they are a
# programmer's.
_ALSO_PYTHONS = {
    "src/dask_pools/places.py": "DataCentresError",
    "src/dask_pools/pins.py": "DataCentresError",
    "src/dask_pools/data_centres.py": "DataCentresError",
    "catalog/intake_pools/documents.py": "EntryError",
    "catalog/intake_pools/": "Python's own",
}
# The demo and the commands print what they have to say.
_NOT = ("catalog/intake_pools/demo/", "catalog/intake_pools/cli.py", "catalog/intake_pools/__init__.py")
_PYTHONS = frozenset(
    ("ValueError", "TypeError", "RuntimeError", "NotImplementedError", "FileNotFoundError", "OSError")
)
_COMPLAINTS = {"data_centres": "DataCentresError", "dask_pools/mesh/": "MeshError"}
"""What functions that return texts return them for; elsewhere it is `EntryError`."""
# What makes an error of what they are given.
_MAKERS = {"_wrong": "EntryError", "_Failure": "EntryError"}

_GAP = "\0"
"""Stands for whatever is filled in."""


@dataclass(frozen=True)
class Message:
    """A text in the source: class of the error, where it is made, and the text with gaps."""

    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: str
    text: str
    when: str
    what_to_do: str

    @property
    def literal(self) -> list[str]:
        """Its text without the words in braces, which stand for anything."""
        return re.split(r"\{[a-z][a-z ]*\}", self.text)

    def is_of(self, message: Message) -> bool:
        """Whether it is about this message of the source."""
        pattern = ".*?".join(map(re.escape, self.literal))
        return message.kind == self.kind and re.fullmatch(pattern, message.text, re.DOTALL) is not None

    def occurs_in(self, text: str) -> bool:
        """Whether a message that was heard has it, perhaps as a part; what is filled in is not looked at."""
        # A part has lost its full stop.
        parts = [part for part in self.literal if part]
        parts[-1] = parts[-1].rstrip(". ") or parts[-1]
        return re.search(".*?".join(map(re.escape, parts)), text, re.DOTALL) is not None


def rows() -> list[Row]:
    """Rows of docs/errors.md."""
    found, kind = [], ""
    for line in TABLE.read_text().splitlines():
        if heading := re.match(r"## (.*)", line):
            kind = heading[1].strip("`")
        elif cells := re.fullmatch(r"\| (`+) ?(.+?) ?\1 \|(.*?)\|(.*?)\|", line):
            found.append(Row(kind, cells[2].replace("\\|", "|"), cells[3].strip(), cells[4].strip()))
    return found


def messages() -> list[Message]:
    """All messages in the source."""
    found: list[Message] = []
    for directory in ("src", "catalog"):
        for path in sorted((ROOT / directory).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(_NOT):
                found += _messages_in(ast.parse(path.read_text()), name)
    return found


def _messages_in(tree: ast.Module, name: str) -> Iterator[Message]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            kind = _kind(node.func)
            if kind in _OURS and not _puts_itself_together(kind) and node.args:
                yield from _message(kind, name, node.args[0])
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            kind = _kind(node.exc.func)
            shown_as = next((of for part, of in _ALSO_PYTHONS.items() if name.startswith(part)), None)
            if kind in _PYTHONS and shown_as is not None:
                yield from _message(shown_as, name, node.exc.args[0])
        elif isinstance(node, ast.ClassDef) and node.name in _OURS:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__str__":
                    yield from _returned(node.name, name, method)
        elif isinstance(node, ast.FunctionDef) and node.name.endswith(("complaint", "diagnosis", "silent")):
            kind = next((of for part, of in _COMPLAINTS.items() if part in name), "EntryError")
            yield from _returned(kind, name, node)


def _kind(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return _MAKERS.get(function.attr, function.attr)
    return _MAKERS.get(function.id, function.id) if isinstance(function, ast.Name) else ""


def _puts_itself_together(kind: str) -> bool:
    return "__str__" in vars(getattr(errors, kind))


def _returned(kind: str, name: str, function: ast.FunctionDef) -> Iterator[Message]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield from _message(kind, name, node.value)


def _message(kind: str, name: str, value: ast.expr) -> Iterator[Message]:
    text = _text(value)
    # What another function has put together is found there.
    if len(re.sub(r"\W", "", text)) > 4:
        yield Message(kind, f"{name}, line {value.lineno}", text)


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return "".join(_text(part) for part in value.values)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "rstrip":
        return _text(value.func.value)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _text(value.left) + _text(value.right)
    return _GAP
