"""Which entry of a catalogue has a path or URL, and how to open that path as the entry says.

It reads entries as plain data; nothing is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fsspec.utils import glob_translate

from dask_pools.errors import EntryError, PoolsError
from dask_pools.places import place_of
from intake_pools.entries import Entry
from intake_pools.urls import is_pattern, public_url

__all__ = ["entry_with"]

# Catalogues nested deeper than this are not looked into.
_DEEPEST = 8


@dataclass(frozen=True)
class _Match:
    """An entry that has a path: `exactness` 2 if its URL is the path, 1 if the path is one of its files."""

    name: str
    entry: Entry
    exactness: int
    length: int


def entry_with(path: str | os.PathLike[str], catalogue: Any) -> Entry | None:
    """Find the entry whose URL is a path, or contains it.

    An entry's URL contains a path if it is a pattern that matches it, or a directory or store above it. The
    closest entry wins: the URL itself, then one of several files, then the nearest directory.

    Parameters
    ----------
    path : str or path
    catalogue
        As `intake_pools.open_catalog` opens them.

    Returns
    -------
    Entry or None
        The entry itself if its URL is the path. Else one for the path alone, with the entry's settings; below
        a zarr store, for the group there. None if no entry has it.

    Raises
    ------
    EntryError
        If several entries have it equally closely and say different things.
    """
    given = str(os.fspath(path))
    place = str(place_of(given))
    found: list[_Match] = []
    for name, entry in _entries(catalogue, "", 0):
        found += _matches(name, entry, given, place)
    if not found:
        return None
    best = max((match.exactness, match.length) for match in found)
    first, *others = [match for match in found if (match.exactness, match.length) == best]
    for other in others:
        if replace(other.entry, name=first.entry.name, location=first.entry.location) != first.entry:
            raise EntryError(
                f"{public_url(given)} is in {first.name} and in {other.name} of the catalogue, which open it "
                f"differently. Open one of them by its name: cat[{first.name!r}].to_dask()."
            )
    return first.entry


def _entries(catalogue: Any, prefix: str, depth: int) -> Iterator[tuple[str, Entry]]:
    for name, place, _ in catalogue.summary():
        try:
            if place == "catalogue" and depth < _DEEPEST:
                yield from _entries(catalogue[name], f"{prefix}{name}.", depth + 1)
            elif place not in ("catalogue", "Intake", "unlocated", "unsupported"):
                yield prefix + name, catalogue.plain_entry(name)
        except PoolsError:
            continue  # what cannot be used is not what is looked for


def _matches(name: str, entry: Entry, given: str, place: str) -> Iterator[_Match]:
    copies = entry.replicas or (entry,)
    for copy in copies:
        for part in copy.parts or (copy,):
            if len(copy.urls) == 1 and str(place_of(copy.urls[0])) == place:
                # Of the first copy the path is the entry's own; of others, that copy is meant.
                whole = entry if copy is copies[0] else copy
                yield _Match(name, whole, 2, len(place))
                continue
            for url in part.urls:
                if (match := _inside(name, part, url, given, place)) is not None:
                    yield match


def _inside(name: str, part: Entry, url: str, given: str, place: str) -> _Match | None:
    """Match with one of the URLs of an entry, as far as it has the path among others or below it."""
    own = str(place_of(url))
    # What combines several files is of no use for one.
    alone = replace(part, urls=(given,), combining={}, replicas=(), parts=())
    if own == place or (is_pattern(url) and re.fullmatch(glob_translate(own), place)):
        return _Match(name, alone, 1, len(own))
    if is_pattern(url) or not place.startswith(own.rstrip("/") + "/"):
        return None
    if part.engine == "zarr" or own.endswith(".zarr"):
        below = place[len(own.rstrip("/")) + 1 :]
        group = "/".join(filter(None, [str(part.xarray_kwargs.get("group") or "").strip("/"), below]))
        alone = replace(alone, urls=(url,), xarray_kwargs={**part.xarray_kwargs, "group": group})
    return _Match(name, alone, 0, len(own))
