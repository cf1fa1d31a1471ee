"""Entries that exist more than once: which copy to open, and whether two copies are the same.

The choice falls on a copy whose pools have workers; among those, on one in a pool that the client has opened
something in already, so that less has to cross; then on the configured preference (``pools.prefer``), and at
last on the order in which the copies are stated. This module opens nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dask_pools.errors import EntryError
from intake_pools.entries import Entry

__all__ = ["ReplicaWarning", "difference", "in_order", "of"]


class ReplicaWarning(UserWarning):
    """A replica could not be opened; another one is."""


def of(entry: Entry, data_centre: str | None = None) -> Sequence[Entry]:
    """List the copies of an entry, or those in one data centre.

    Raises
    ------
    EntryError
        If there is none there; the message says where there are.
    """
    copies = entry.replicas or (entry,)
    if data_centre is None:
        return copies
    if there := [copy for copy in copies if _places(copy) == {data_centre}]:
        return there
    known = ", ".join(sorted({"+".join(sorted(_places(copy))) for copy in copies}))
    raise EntryError(f"{entry.name} has no replica in data centre {data_centre!r}. It is in: {known}.")


def in_order(
    copies: Sequence[Entry], served: Collection[str], in_use: Collection[str], preferred: Sequence[str]
) -> list[Entry]:
    """Sort copies, the one to open first.

    Parameters
    ----------
    copies : sequence of Entry
    served : collection of str
        Pools that have workers.
    in_use : collection of str
        Pools that the client has opened something in.
    preferred : sequence of str
        Data centres, the best first.
    """
    rank = {data_centre: number for number, data_centre in enumerate(reversed(preferred), 1)}

    def worth(copy: Entry) -> tuple[bool, bool, int]:
        places = _places(copy)
        return places <= set(served), places <= set(in_use), min(rank.get(place, 0) for place in places)

    return sorted(copies, key=worth, reverse=True)


def _places(entry: Entry) -> set[str]:
    return {part.location.data_centre for part in entry.parts or (entry,)}


def difference(one: xr.Dataset, other: xr.Dataset) -> str | None:
    """Say the first thing in which two copies differ: variables, shapes, types, coordinates; else None.

    Coordinates are compared as far as they came with the metadata; nothing is read.
    """
    if missing := sorted(map(str, set(one.variables) ^ set(other.variables))):
        return f"{missing[0]} is in one only"
    for name, variable in one.variables.items():
        counterpart = other.variables[name]
        if variable.sizes != counterpart.sizes:
            return f"{name} has the shape {dict(variable.sizes)} or {dict(counterpart.sizes)}"
        if _native(variable.dtype) != _native(counterpart.dtype):
            return f"{name} has the type {variable.dtype} or {counterpart.dtype}"
        in_memory = variable.chunks is None and counterpart.chunks is None
        if name in one.coords and in_memory and not _same(variable.values, counterpart.values):
            return f"coordinate {name} has other values"
    return None


def _native(dtype: Any) -> Any:
    return dtype.newbyteorder("=") if getattr(dtype, "kind", "O") in "iufcmM" else dtype


def _same(one: Any, other: Any) -> bool:
    if one.dtype.kind in "fcmM":
        return np.array_equal(one, other, equal_nan=True)
    return np.array_equal(one, other)
