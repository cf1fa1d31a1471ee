"""Making sure that a pool has workers before it is used: asking for some, waiting, or refusing at once.

The scheduler knows which pools have workers and who can bring up more (`dask_pools.scheduler`). This module
asks it on behalf of a user, and puts its answers into words. It starts nothing itself.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask.utils import parse_timedelta
from distributed import Client
from rich.console import Console

from dask_pools import config, pins
from dask_pools.errors import PoolUnavailableError
from dask_pools.propagate import connect, connect_async

__all__ = ["ensure_workers", "ensure_workers_async"]

# Seconds between two looks at a pool that is being waited for.
POLL = 0.2


def ensure_workers(client: Client, pool: str, timeout: float | str | None = None) -> None:
    """Return when `pool` has a worker, having asked for some if it has none.

    Parameters
    ----------
    client : distributed.Client
        For one that is used asynchronously await `ensure_workers_async`.
    pool : str
    timeout : float or str, optional
        Seconds to wait at most, or a time such as ``"2 min"``; ``pools.wait-for-workers`` if not given.

    Raises
    ------
    PoolUnavailableError
        At once if nobody can start workers for it, or trying to has failed; else when the time is up.
    ValueError
        If `pool` cannot be the name of a pool.
    """
    pins.check_name(pool)
    connect(client)
    limit = _seconds(timeout)
    start = time.monotonic()

    def settled() -> bool:
        return bool(client.sync(_settled, client, pool, time.monotonic() - start, limit))

    # Before anything is shown: what cannot be had is refused at once.
    if settled():
        return
    with _waiting(pool, limit) as show:
        while not settled():
            show(time.monotonic() - start)
            time.sleep(POLL)


async def ensure_workers_async(client: Client, pool: str, timeout: float | str | None = None) -> None:
    """`ensure_workers` for a client that is used asynchronously; it shows no progress."""
    pins.check_name(pool)
    await connect_async(client)
    limit = _seconds(timeout)
    start = time.monotonic()
    while not await _settled(client, pool, time.monotonic() - start, limit):
        await asyncio.sleep(POLL)


def _seconds(timeout: float | str | None) -> float:
    return config.wait_for_workers() if timeout is None else float(parse_timedelta(timeout))


async def _settled(client: Client, pool: str, waited: float, limit: float) -> bool:
    """Whether the pool has workers; False means to go on waiting.

    Raises
    ------
    PoolUnavailableError
        If waiting longer is of no use, as the scheduler says.
    """
    answer: str | bool = await client.scheduler.pools_request(pool=pool, waited=waited, patience=limit)
    if isinstance(answer, str):
        existing = (await client.scheduler.pools_status())["pools"]
        raise PoolUnavailableError(pool, existing, answer)
    return answer


@contextmanager
def _waiting(pool: str, limit: float) -> Iterator[Any]:
    """Show on stderr that something is being waited for; gives a function to call with the seconds so far."""
    console = Console(stderr=True)
    text = f"Waiting for workers of pool {pool!r}, at most {limit:g} s"
    if not console.is_terminal:
        print(text, file=sys.stderr)
        yield lambda waited: None
        return
    with console.status(text) as status:
        yield lambda waited: status.update(f"{text} ({waited:.0f} s so far)")
