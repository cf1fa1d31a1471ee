"""What the source can say when something is wrong, and what docs/errors.md says that it can say.

A message is found where an error is made: in every call of an exception's class, be it the project's or
Python's; of the functions in `_MAKERS`, which make an error of a text that they are given; in the ``__str__``
of those that put their text together themselves; and where texts for errors are returned (`_RETURNED`). A
text that waits in a variable is looked up where it is assigned. What is passed on without a word that could
be found so is listed in `PASSED_ON`, with where those words come from: nothing gets past the table unseen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from dask_pools import errors

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "errors.md"

COMMANDS = "The command line"
PYTHONS_OWN = "Python's own"
_POOL, _FILE, _SITE = "PoolUnavailableError", "DataCentresError", "SiteError"

_OURS = frozenset(errors.__all__)
# Where the user meets what other exceptions say: by class and beginning of the path, a section of the table.
# The first that fits counts.
_OF_CLASSES = {
    "BadParameter": COMMANDS,
    "BrokenReferences": "UnreadableError",
    "CertificateError": _SITE,
    "ClickException": COMMANDS,
    "ConstructorError": "EntryError",
    "DemoError": COMMANDS,
    "HomeError": _SITE,
    "NoOrphanError": COMMANDS,
    "NothingUpError": COMMANDS,
    "OtherProtocolError": _SITE,
    "PlanError": "MeshError",
    "ProtocolError": _SITE,
    "SecurityError": "EntryError",
    "StoreGone": "DataChangedError",
    "UsageError": COMMANDS,
    "_Broken": _SITE,
    "_Gone": _SITE,
}
_PYTHONS = {
    "ValueError", "TypeError", "RuntimeError", "NotImplementedError", "LookupError", "OSError",
    "FileNotFoundError", "ImportError", "TimeoutError",
}  # fmt: skip
_OF_PYTHONS = {
    "ValueError src/dask_pools/cluster/launchers/": _FILE,
    "src/dask_pools/cluster/launchers/": _POOL,
    "src/dask_pools/cluster/pool_worker.py": _POOL,
    "src/dask_pools/data_centres.py": _FILE,
    "src/dask_pools/network.py": _FILE,
    "src/dask_pools/pins.py": _FILE,
    "src/dask_pools/places.py": _FILE,
    "src/dask_pools/sites/": _SITE,
    "src/dask_pools/workers.py": _FILE,
    "catalog/intake_pools/documents.py": "EntryError",
    "": PYTHONS_OWN,
}
# Classes and functions that make an error of a text: where it is among their arguments, or its name; and of
# functions the beginning of the path that they are meant in, and the section.
_TEXT_AT = {"SiteError": 2, "HostKeyError": 2, _POOL: 2, "UnreadableError": 2, "DataChangedError": 3}
_TEXT_AT["ConstructorError"] = 2
_MAKERS: dict[str, tuple[int | str, str, str]] = {
    "_Failure": (0, "catalog/", "EntryError"),
    "_apart": (1, "src/dask_pools/sites/", _SITE),
    "_error": (1, "src/dask_pools/workers.py", _FILE),
    "_failed": (0, "src/dask_pools/cluster/pool_worker.py", _POOL),
    "_refusal": (1, "catalog/", "EntryError"),
    "_refuse": (0, "src/dask_pools/sites/cli.py", _SITE),
    "_give_up": (0, "src/dask_pools/sites/site.py", _SITE),
    "_finish": (0, "src/dask_pools/sites/agent.py", _SITE),
    "_fail": (1, "src/dask_pools/cluster/pool_cluster.py", _POOL),
    "give_up": (0, "src/dask_pools/cluster/standing.py", _POOL),
    "_replace": (1, "src/dask_pools/cluster/pool_cluster.py", _POOL),
    "_wrong": (0, "catalog/", "EntryError"),
    "changed": (0, "catalog/", "DataChangedError"),
    "Failed": ("reason", "src/dask_pools/sites/", _SITE),
    "Refused": ("reason", "src/dask_pools/sites/", _SITE),
}
# Functions that return a text for an error, by the end of the path and the beginning or end of their names.
_RETURNED = {
    ("", "complaint"): "EntryError",
    ("", "diagnosis"): "EntryError",
    ("data_centres.py", "complaint"): _FILE,
    ("mesh/host.py", "silent"): "MeshError",
    ("scheduler.py", "_reason_to"): _POOL,
    ("scheduler.py", "_not_allowed"): _POOL,
    ("launchers/command.py", "_not_run"): _POOL,
    ("launchers/command.py", "_failed"): _POOL,
    ("launchers/command.py", "ended"): _POOL,
    ("launchers/docker.py", "ended"): _POOL,
    ("launchers/jobqueue.py", "ended"): _POOL,
    ("launchers/jobqueue.py", "overdue"): _POOL,
    ("cluster/pool_worker.py", "overdue"): _POOL,
    ("launchers/local.py", "ended"): _POOL,
    ("", "cannot"): _FILE,
}

_MOST = 64
"""Texts that one expression can be; each hint that may be there or not doubles them."""

# By the end of the path: what is passed on, and where its words come from, if not from an exception that was
# caught: that is either of this table or of a library.
PASSED_ON = {
    "launchers/command.py: ''": "nothing: this one waits for ever",
    "_failed(self._launcher.start, status, self._err.text or self._out.text)": "_failed of this table",
    "launchers/jobqueue.py: await future": "the words of Slurm",
    "launchers/joining.py: ending.result()": "ended() of the launchers",
    "cluster/orphans.py: said or f'exit status {status}'": "what the command wrote",
    "cluster/pool_cluster.py: overdue": "overdue of the worker",
    "cluster/pool_worker.py: launched.overdue if isinstance(launched, Queued) else None": "theirs",
    "cluster/pool_cluster.py: reason": "_fail",
    "cluster/pool_cluster.py: why": "ended() of the launchers",
    "cluster/pool_cluster.py: worker.failure or str(error)": "_failed of pool_worker",
    "cluster/standing.py: reason": "_fail of pool_cluster",
    "cluster/up.py: answer['error']": "what another process of this command says",
    "data_centres.py: complaints": "_complaint",
    "mesh/host.py: '\\n'.join(missing.values())": "_silent",
    "mesh/host.py: f'{start}. {self._unresolved[peer.name]}'": "resolve() of wireguard",
    "provision.py: reason": "_reason_to_give_up of the scheduler",
    "scheduler.py: reason": "_reason_to_give_up",
    "scheduler.py: self._not_allowed(pool, supply, supply.provision, '') or "
    "f'{ask}dask_pools.provision.ensure_workers(client, {pool!r}) asks you.'": "_not_allowed",
    "sites/cli.py: reason": "_refuse",
    "sites/networks.py: said[0]": "_silent of the mesh's host",
    "sites/networks.py: text": "_silent of the mesh's host, and _apart",
    "sites/protocol.py: spoken": "a number",
    "sites/site.py: report.reason": "the agent's Failed",
    "sites/site.py: reason": "the agent's Refused and Leaving, and _give_up",
    "sites/ssh.py: reason": "asyncssh's error, handed over",
    "dask_pools/workers.py: why": "cannot() of the launchers",
    "intake_pools/icechunk_stores.py: url": "a FileNotFoundError's name",
    "intake_pools/intake1.py: '; '.join(made.errors)": "errors of several copies, each of this table",
    "intake_pools/mosaics.py: found": "changed()",
    "intake_pools/mosaics.py: reason": "a library's error, and BrokenReferences",
    "intake_pools/opening.py: _diagnosis(cause, entry).rstrip('.')": "_diagnosis",
    "intake_pools/opening.py: complaint": "a library's error",
    "intake_pools/references.py: path": "a FileNotFoundError's name",
    "intake_pools/stores.py: now": "the version",
    "intake_pools/stores.py: held.version.text": "the version",
}

_GAP = "\0"
"""Stands for whatever is filled in."""


@dataclass(frozen=True)
class Message:
    """A text in the source: section of the table, where it is made, and the text with gaps."""

    kind: str
    where: str
    text: str
    source: str

    @property
    def says_nothing(self) -> bool:
        """Whether all of it is filled in."""
        return len(re.sub(r"\W|\d", "", self.text)) <= 4

    @property
    def passed_on(self) -> str | None:
        """Where its words come from, if it has none of its own; None if nobody knows."""
        if re.search(r"\b(error|cause)\b", self.source):
            return "an exception that was caught"
        found = [of for of, whence in PASSED_ON.items() if f"{self.where}: {self.source}".endswith(of)]
        return PASSED_ON[found[0]] if found else None


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
    """All messages in the source, also those of which nothing can be found."""
    paths = [path for directory in ("src", "catalog") for path in sorted((ROOT / directory).rglob("*.py"))]
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}
    constants = {
        node.targets[0].id: node.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    return [message for name, tree in trees.items() for message in _Reader(name, constants).of(tree)]


class _Reader:
    """Finds the messages of one file."""

    def __init__(self, name: str, constants: Mapping[str, ast.Constant]) -> None:
        self._name = name
        self._constants = constants
        self._functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []

    def of(self, node: ast.AST) -> Iterator[Message]:
        """Messages that are made in a part of the file, each once."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._functions.append(node)
            yield from self._returned(node)
        if isinstance(node, ast.Call):
            yield from self._made(node)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") == "reason":
            if self._name.startswith("src/dask_pools/cluster/"):
                yield from self._texts(_POOL, [node.value])
        elif isinstance(node, ast.ClassDef) and (kind := self._section(node.name)) is not None:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__str__":
                    yield from self._texts(kind, [one.value for one in _returns(method)])
        for child in ast.iter_child_nodes(node):
            yield from self.of(child)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._functions.pop()

    def _section(self, kind: str) -> str | None:
        """Section of the table for what exceptions of a class say in this file; None for no exception."""
        if kind in _OURS:
            return "SiteError" if kind == "HostKeyError" else kind
        if kind in _OF_CLASSES:
            return _OF_CLASSES[kind]
        if kind in _PYTHONS:
            return next(
                of
                for part, of in _OF_PYTHONS.items()
                if f"{kind} {self._name}".startswith((part, f"{kind} {part}"))
            )
        return None

    def _made(self, call: ast.Call) -> Iterator[Message]:
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        at: int | str = _TEXT_AT.get(name, 0)
        kind = self._section(name)
        if kind is not None and name in _OURS and name not in _TEXT_AT and _puts_itself_together(name):
            return
        if name in _MAKERS and self._name.startswith(_MAKERS[name][1]):
            at, _, kind = _MAKERS[name]
        if kind is None:
            return
        given = [word.value for word in call.keywords if word.arg == at]
        if isinstance(at, int):
            given = call.args[at : at + 1]
        # Two arguments of an OSError are a number and what the system says.
        if name in ("OSError", "FileNotFoundError") and len(call.args) > 1:
            return
        yield from self._texts(kind, given)

    def _returned(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Message]:
        kind = None
        for (path, name), of in _RETURNED.items():
            if self._name.endswith(path or ".py") and (
                function.name.startswith(name) or function.name.endswith(name)
            ):
                kind = of
        if kind is None:
            return
        if function.name == "cannot":
            values = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
            ]
            yield from self._texts(kind, values)
        else:
            yield from self._texts(kind, [one.value for one in _returns(function)])

    def _texts(self, kind: str, values: Sequence[ast.expr | None]) -> Iterator[Message]:
        for value in values:
            if value is None or (isinstance(value, ast.Constant) and value.value is None):
                continue
            for text in dict.fromkeys(self._read(value)):
                yield Message(kind, self._name, text, ast.unparse(value))

    def _read(self, value: ast.expr, above: frozenset[str] = frozenset()) -> Iterator[str]:
        """Texts that an expression can be, with gaps; `above` are the variables that it is the value of."""
        if isinstance(value, ast.IfExp | ast.BoolOp | ast.NamedExpr):
            several = {ast.IfExp: ("body", "orelse"), ast.BoolOp: ("values",), ast.NamedExpr: ("value",)}
            for name in several[type(value)]:
                given = getattr(value, name)
                for one in given if isinstance(given, list) else [given]:
                    yield from self._read(one, above)
        elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            for parts in product(self._read(value.left, above), self._read(value.right, above)):
                yield "".join(parts)
        elif isinstance(value, ast.JoinedStr):
            parts_of = [list(self._read(part, above)) for part in value.values]
            for parts in islice(product(*parts_of), _MOST):
                yield "".join(parts)
        elif isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name):
            yield from self._read(value.value, above)
        elif isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "rstrip":
            yield from self._read(value.func.value, above)
        elif isinstance(value, ast.Name) and (assigned := self._assigned(value.id)) and value.id not in above:
            for one in assigned:
                yield from self._read(one, above | {value.id})
        else:
            yield str(value.value) if isinstance(value, ast.Constant) else _GAP

    def _assigned(self, name: str) -> list[ast.expr]:
        """What a variable of the function that is being read is set to, or a constant of the source."""
        if name in self._constants:
            return [self._constants[name]]
        found: list[ast.expr] = []
        for node in ast.walk(self._functions[-1]) if self._functions else ():
            if isinstance(node, ast.Assign):
                found += [node.value for one in node.targets if getattr(one, "id", "") == name]
            elif isinstance(node, ast.NamedExpr) and node.target.id == name:
                found.append(node.value)
        return found


def _returns(function: ast.AST) -> Iterator[ast.Return]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Return))


def _puts_itself_together(kind: str) -> bool:
    return "__str__" in vars(getattr(errors, kind))
