"""Have opened anew what was opened before: by the clients of this process, and by the workers."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from functools import partial

from distributed import Client
from fsspec.utils import glob_translate

from dask_pools.places import place_of
from intake_pools import remembered, stores
from intake_pools.located import Located
from intake_pools.urls import is_pattern

__all__ = ["forget"]


def forget(what: Located | str | os.PathLike[str] | None = None) -> int:
    """Have opened anew what was opened before.

    Versions are compared on every opening, so this is for what shows none: servers without ETags, chunks that
    were rewritten in place, file systems that lie about times. Datasets that are open already stay as they
    are; to keep the names of their results apart from those of new ones, state another ``version``.

    Parameters
    ----------
    what : entry, path or URL, optional
        An entry of a catalogue; or a path or URL, which stands for whatever has it: itself, as one of its
        files, or below it. By default everything.

    Returns
    -------
    int
        How many entries the clients of this process have forgotten.
    """
    if what is None:
        names: list[str] | None = None
    elif isinstance(what, Located):
        entry = what._resolved()
        names = sorted({url for copy in (entry, *entry.replicas) for url in copy.urls})
    else:
        names = [os.fspath(what)]
    concerns = partial(_concerns, names)
    clients, number = remembered.forget(lambda entry: any(map(concerns, entry.urls)))
    for client in clients:
        _forget_on_workers(client, concerns)
    # For those who open without a cluster.
    stores.forget(concerns)
    return number


def _forget_on_workers(client: Client, concerns: Callable[[str], bool]) -> None:
    """Have the workers close what they have open: of what shows no version they would go on to read that."""
    if client.status == "running" and not client.asynchronous:
        # A worker that cannot be reached has nothing open.
        client.run(_close_here, concerns, on_error="ignore")


async def _close_here(concerns: Callable[[str], bool]) -> None:
    # Closing waits for whoever reads; the worker's event loop does not.
    await asyncio.to_thread(stores.forget, concerns)


def _concerns(names: Iterable[str] | None, url: str) -> bool:
    """Whether a URL, perhaps a pattern, is one of those names, has it among its files, or is below it."""
    if names is None:
        return True
    own = str(place_of(url))
    return any(_related(own, str(place_of(name))) for name in names)


def _related(own: str, named: str) -> bool:
    if own == named or own.startswith(named.rstrip("/") + "/"):
        return True
    return _matches(own, named) or _matches(named, own)


def _matches(pattern: str, path: str) -> bool:
    return is_pattern(pattern) and re.fullmatch(glob_translate(pattern), path) is not None
