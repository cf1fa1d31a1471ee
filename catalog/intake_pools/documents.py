"""The text of a catalogue as plain data: fast, and with nothing but named errors.

Knows YAML, and neither Intake nor what a catalogue means.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from yaml.nodes import MappingNode, Node, ScalarNode

from dask_pools.data_centres import yaml_complaint
from dask_pools.errors import EntryError

__all__ = ["read_document", "read_text"]

# libyaml's loader, where PyYAML was built with it: ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Parser: Any = getattr(getattr(yaml, "_yaml", None), "CParser", None)

# Catalogues have some ten levels. The time that libyaml takes grows with the square of the depth: a minute
# for 100,000 brackets.
_DEEPEST = 100


class _Loader(_Base):  # type: ignore[misc]  # either of two classes
    """PyYAML's safe loader, which notices keys that are there twice."""

    def construct_mapping(self, node: Node, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value!r} is there twice", key.start_mark
                        )
                    seen.add((key.tag, key.value))
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


class _Unusual(Exception):
    """A document has what only the whole of PyYAML's loader understands."""


def _fast(text: str) -> Any:
    """Read a document from libyaml's events, without a tree of nodes between: in half the time and memory.

    Understands what nearly all catalogues are made of, and gives the same as PyYAML's safe loader.

    Raises
    ------
    _Unusual
        If there is anything else in it: a tag, ``<<``, a key that is there twice or is no scalar, a second
        document.
    """
    parser = _Parser(text)
    try:
        get = parser.get_event
        if not isinstance(get(), StreamStartEvent) or not isinstance(get(), DocumentStartEvent):
            raise _Unusual
        made = _build(get)
        if not isinstance(get(), DocumentEndEvent) or not isinstance(get(), StreamEndEvent):
            raise _Unusual
        return made
    finally:
        parser.dispose()


def _build(get: Callable[[], Any]) -> Any:
    values = _Values()
    anchors: dict[str, Any] = {}
    # The containers that are open, each with the key that waits for its value.
    stack: list[tuple[Any, Any]] = []
    within: Any = None
    key: Any = _NO_KEY
    while True:
        event = get()
        kind = type(event)
        if kind is ScalarEvent:
            # libyaml leaves the tag out where there is none.
            if event.tag is not None:
                raise _Unusual
            value = values[event.value] if event.implicit[0] else event.value
            if event.anchor is not None:
                anchors[event.anchor] = value
            is_open = False
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            if event.tag is not None:
                raise _Unusual
            _check_depth(len(stack))
            value = {} if kind is MappingStartEvent else []
            if event.anchor is not None:
                anchors[event.anchor] = value
            is_open = True
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            if not stack:
                return within
            within, key = stack.pop()
            continue
        elif kind is AliasEvent:
            value, is_open = anchors[event.anchor], False
        else:
            raise _Unusual
        if within is None:
            if not is_open:
                return value
            within, key = value, _NO_KEY
            continue
        if type(within) is list:
            within.append(value)
            waiting = _NO_KEY
        elif key is _NO_KEY:
            if is_open or kind is AliasEvent or value is _MERGE or value in within:
                raise _Unusual
            key = value
            continue
        else:
            within[key] = value
            waiting = _NO_KEY
        if is_open:
            stack.append((within, waiting))
            within = value
        key = _NO_KEY


def _check_depth(depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


_NO_KEY = object()
_MERGE = object()


class _Values(dict[str, Any]):
    """Values of plain scalars: what YAML takes for numbers, dates and the like. Most occur more than once."""

    _loader: Any = yaml.SafeLoader("")

    def __missing__(self, text: str) -> Any:
        tag = self._loader.resolve(ScalarNode, text, (True, False))
        if tag == "tag:yaml.org,2002:str":
            value: Any = text
        elif tag == "tag:yaml.org,2002:merge":
            value = _MERGE
        elif tag == "tag:yaml.org,2002:value":
            raise _Unusual
        else:
            value = self._loader.yaml_constructors[tag](self._loader, ScalarNode(tag, text))
        # Names of entries and URLs occur once.
        if len(text) < 24 and len(self) < 10_000:
            self[text] = value
        return value


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from looking through millions of objects, of which none is garbage.

    Counted, so that of several threads the last one switches it on again.
    """
    global _paused, _was_on
    with _lock:
        if _paused == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _lock:
            _paused -= 1
            if _paused == 0 and _was_on:
                gc.enable()


_lock = threading.Lock()
_paused = 0
_was_on = True


def read_document(text: str, origin: str) -> dict[str, Any]:
    """Read the text of a catalogue.

    Parameters
    ----------
    text : str
    origin : str
        Path or URL, for messages.

    Raises
    ------
    EntryError
        If it is not YAML, or no mapping; the message has the line.
    """
    # What Intake 0.4 wrote; a tag that no loader knows.
    text = text.replace("!template ", "")
    data: Any = None
    try:
        with _collector_paused():
            data = _read(text)
    except yaml.YAMLError as error:
        raise EntryError(f"Catalogue {yaml_complaint(error, origin)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # Such as the date 2026-99-99, which is a date by its form.
        raise EntryError(f"Catalogue {origin} cannot be read: {error}.") from None
    if data is None:
        raise EntryError(f"{origin} is not an Intake catalogue: there is nothing in it.")
    if not isinstance(data, dict):
        raise EntryError(
            f"{origin} is not an Intake catalogue: it should be a mapping with `sources:`, not a "
            f"{type(data).__name__}."
        )
    return data


def _read(text: str) -> Any:
    if _Parser is not None:
        try:
            return _fast(text)
        except (_Unusual, KeyError, TypeError):  # an alias of nothing, a key that cannot be one
            pass
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        _check_depth(depth)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_text(url: str, storage_options: dict[str, Any] | None = None) -> str:
    """Read a catalogue's file, on disk or at any URL that fsspec knows.

    Raises
    ------
    EntryError
        If it cannot be read.
    """
    import fsspec

    from intake_pools.filesystems import cause_of
    from intake_pools.urls import public_url, without_secrets

    try:
        with fsspec.open(url, "rb", **(storage_options or {})) as file:
            content: bytes = file.read()
        return content.decode("utf-8-sig")
    except Exception as error:  # whatever the file system of a URL raises
        # fsspec takes every failure of a web server for a missing file, and names only that.
        cause = cause_of(error)
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        if isinstance(cause, FileNotFoundError) and "://" in url:
            reason = "it is not there"
        reason = without_secrets(reason.rstrip("."), storage_options or {}, [url])
        raise EntryError(f"The catalogue {public_url(url)} cannot be read: {reason}.") from None
