"""What each client has opened, so that opening it again costs a look at its version and no more.

It knows neither workers nor files: whether what is remembered still holds is found out in the pool.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import xarray as xr
from dask.base import tokenize
from distributed import Client

from intake_pools.entries import Entry
from intake_pools.recipes import Limits
from intake_pools.stores import State

__all__ = ["Opening", "drop", "forget", "get", "pools", "put", "state_of"]

# Entries of a client. Each is the size of its metadata and coordinates.
_KEPT = 128


@dataclass(frozen=True)
class Opening:
    """An entry that was opened.

    Attributes
    ----------
    dataset : xarray.Dataset
    state : str
        Differs when any of its files has another version, or there are others.
    engine : str or None
        That reads all of its files; None if several do.
    pool : str or None
        Where it was opened, if that is not where the entry lives: what its references point to is elsewhere.
    led_out : dict of str to str
        Paths that symbolic links lead out of the directory that places them, and where they lead.
    """

    dataset: xr.Dataset
    state: str
    engine: str | None
    pool: str | None = None
    led_out: Mapping[str, str] = field(default_factory=dict)

    def copy(self) -> xr.Dataset:
        """Copy the Dataset so that nothing that is done to the copy changes what is remembered."""
        return self.dataset.copy(deep=True)


@dataclass(frozen=True)
class _Kept:
    entry: Entry
    limits: Limits
    opening: Opening


_kept: WeakKeyDictionary[Client, OrderedDict[str, _Kept]] = WeakKeyDictionary()
_lock = threading.Lock()


def state_of(states: Iterable[State]) -> str:
    """Hash of the states of files, in their order."""
    return str(tokenize([(state.source.url, state.version.text) for state in states]))


def get(client: Client, entry: Entry, limits: Limits) -> Opening | None:
    """Get what a client remembers of an entry, by all of its content, secrets among it; else None."""
    with _lock:
        mine = _kept.get(client)
        kept = None if mine is None else mine.get(_key(entry))
        if kept is None or kept.entry != entry or kept.limits != limits:
            return None
        assert mine is not None
        mine.move_to_end(_key(entry))
        return kept.opening


def put(client: Client, entry: Entry, limits: Limits, opening: Opening) -> None:
    """Remember an entry for a client, in place of what was remembered of it."""
    with _lock:
        mine = _kept.setdefault(client, OrderedDict())
        mine[_key(entry)] = _Kept(entry, limits, opening)
        mine.move_to_end(_key(entry))
        while len(mine) > _KEPT:
            mine.popitem(last=False)


def pools(client: Client) -> set[str]:
    """Pools of the entries that a client has opened."""
    with _lock:
        return {kept.entry.location.data_centre for kept in (_kept.get(client) or {}).values()}


def drop(client: Client, entry: Entry) -> None:
    """Forget what a client has of an entry."""
    with _lock:
        _kept.setdefault(client, OrderedDict()).pop(_key(entry), None)


def forget(concerns: Callable[[Entry], bool] = lambda entry: True) -> tuple[list[Client], int]:
    """Forget entries, of all clients of this process.

    Parameters
    ----------
    concerns : callable, optional
        Which; by default all.

    Returns
    -------
    clients : list of distributed.Client
        All that have opened something.
    number : int
        How many entries were forgotten.
    """
    number = 0
    with _lock:
        for mine in _kept.values():
            for key in [key for key, kept in mine.items() if concerns(kept.entry)]:
                del mine[key]
                number += 1
        return list(_kept), number


def _key(entry: Entry) -> str:
    content: Any = (entry.name, entry.urls, entry.location.data_centre, entry.engine, entry.version)
    options = (
        entry.chunks,
        entry.xarray_kwargs,
        entry.combining,
        entry.patterns,
        sorted(map(str, entry.storage_options)),
    )
    return str(tokenize(content, options))
