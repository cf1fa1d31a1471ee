"""Defaults of this project's `dask.config` settings, under ``pools``."""

from __future__ import annotations

import math
import re
from typing import Any

import dask
from dask.utils import parse_bytes, parse_timedelta

DEFAULTS: dict[str, Any] = {
    "pools": {
        # False switches pins off altogether, for comparison: tasks run wherever Dask likes.
        "propagate": True,
        # Path of the data-centres file to use where a catalogue names none.
        "data-centres": None,
        # Path or URL of the catalogue in which load_from_catalog looks for what is said about a path.
        "catalog": None,
        # Whether an S3 store is asked for the region of a bucket that no rule knows.
        "ask-regions": False,
        # Whether one worker of each pool is asked if it can see a URL that no rule knows; the fastest counts.
        "probe": False,
        # How long to wait for workers of a pool that has none, at opening and at computing.
        "wait-for-workers": "60s",
        # Whether workers come when they are wanted ("auto"), after the user was asked ("ask"), or not at all
        # ("never"); None: as each pool says.
        "provision": None,
        # A pool that adapts lets a worker go that has had no task for so long.
        "idle-timeout": "60s",
        # Coordinates and other variables up to this size come with the metadata when an entry is opened.
        "eager-size": "64 KiB",
        # Coordinates with an index come along up to this size; larger ones stay lazy, without an index.
        "index-size": "64 MiB",
        # Data centres in the order in which replicas are taken from them, other things being equal.
        "prefer": [],
        # Whether replicas in pools that have workers are compared when one of them is opened.
        "compare-replicas": True,
        # Data centre in which the client runs: what must stay there may come to it as it is. None: in none.
        "here": None,
        # A computation that would move more bytes between pools is refused before any of its tasks runs.
        "transfer-budget": None,
        # How what Dask sends in a cluster across sites is compressed, where that makes it a good deal
        # smaller: "zstd", "lz4" or whatever else Dask knows. False: not at all.
        "compression": "zstd",
    }
}

dask.config.update_defaults(DEFAULTS)


def propagating() -> bool:
    """Whether pins are in force (``pools.propagate``)."""
    return bool(dask.config.get("pools.propagate"))


def wait_for_workers() -> float:
    """Seconds to wait for workers of a pool that has none (``pools.wait-for-workers``)."""
    return in_seconds(dask.config.get("pools.wait-for-workers"))


PROVISIONS = ("auto", "ask", "never")
"""What there is to say about whether workers come when they are wanted."""


def check_provision(how: str | None) -> str | None:
    """Return `how` if it says whether workers come when they are wanted, or nothing.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if how is not None and how not in PROVISIONS:
        raise ValueError(f"provision={how!r} is not known: use one of {', '.join(map(repr, PROVISIONS))}.")
    return how


def provision() -> str | None:
    """Whether workers come when they are wanted (``pools.provision``); None: as each pool says."""
    return check_provision(dask.config.get("pools.provision"))


def idle_timeout() -> float:
    """Seconds without a task after which a worker of a pool that adapts may go (``pools.idle-timeout``)."""
    return in_seconds(dask.config.get("pools.idle-timeout"))


def in_seconds(time: float | str) -> float:
    """Seconds in a number or in words such as ``"90 s"``, ``"10 min"`` or ``"2 h"``.

    Raises
    ------
    ValueError
        If it is neither, negative, or without end.
    """
    # Dask knows minutes as "m" and "minutes" only.
    words = re.sub(r"(?<![a-z])min$", "m", time.strip().lower()) if isinstance(time, str) else time
    try:
        seconds = float(parse_timedelta(words))
    except (ValueError, LookupError, TypeError, AttributeError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{time!r} is no time; write one as in 90 s, 10 min or 2 h")
    return seconds


def in_bytes(size: str | int) -> int:
    """Bytes in a number or in words such as ``"500 MB"``.

    Raises
    ------
    ValueError
        If it is neither, or negative.
    """
    try:
        nbytes = int(parse_bytes(size))
    except (ValueError, TypeError, AttributeError):
        nbytes = -1
    if nbytes < 0:
        raise ValueError(f"A budget of {size!r} cannot be understood: say it in bytes, or as in '500 MB'.")
    return nbytes


def transfer_budget() -> int | None:
    """Bytes that one computation may move between pools (``pools.transfer-budget``); None: any."""
    budget = dask.config.get("pools.transfer-budget")
    return None if budget is None else in_bytes(budget)


def compression() -> str | bool:
    """How what is sent between sites is compressed (``pools.compression``); False: not at all.

    Raises
    ------
    ValueError
        If that is not known here.
    """
    from distributed.protocol.compression import compressions

    how = dask.config.get("pools.compression") or False
    if how not in compressions:
        known = ", ".join(sorted(repr(one) for one in compressions if isinstance(one, str)))
        raise ValueError(f"pools.compression: {how!r} is not known here: use one of {known}, or False.")
    return how if how is False else str(how)
