"""The text of a catalogue as plain data: fast, and with nothing but named errors.

Knows YAML, and neither Intake nor what a catalogue means.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from dask_pools.data_centres import yaml_complaint
from dask_pools.errors import EntryError

__all__ = ["read_document", "read_text"]

# libyaml's loader, where PyYAML was built with it: ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        loader = _Loader(text)
        try:
            with _collector_paused():
                data = loader.get_single_data()
        finally:
            loader.dispose()
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


def read_text(url: str, storage_options: dict[str, Any] | None = None) -> str:
    """Read a catalogue's file, on disk or at any URL that fsspec knows.

    Raises
    ------
    EntryError
        If it cannot be read.
    """
    import fsspec

    from intake_pools.entries import public_url

    try:
        with fsspec.open(url, "rb", **(storage_options or {})) as file:
            content: bytes = file.read()
        return content.decode("utf-8-sig")
    except Exception as error:  # whatever the file system of a URL raises
        reason = getattr(error, "strerror", None) or public_url(str(error)) or type(error).__name__
        raise EntryError(f"The catalogue {public_url(url)} cannot be read: {reason}.") from None
