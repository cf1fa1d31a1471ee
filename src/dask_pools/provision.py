"""Making sure that a pool has workers before it is used: asking for some, waiting, or refusing at once.

The scheduler knows which pools have workers and who can bring up more (`dask_pools.scheduler`). This module
asks it on behalf of a user, and puts its answers into words. It starts nothing itself.
"""

from __future__ import annotations

import asyncio
import difflib
import sys
import time
from collections.abc import Iterator, Mapping
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
    connect(client)
    if _has_workers(pins.check_name(pool), client.sync(client.scheduler.pools_status)):
        return
    limit = _seconds(timeout)
    start = time.monotonic()

    def settled() -> bool:
        answer = client.sync(client.scheduler.pools_request, pool=pool)
        return _settled(pool, answer, client.scheduler.address, time.monotonic() - start, limit)

    # Before anything is shown: what cannot be had is refused at once.
    if settled():
        return
    with _waiting(pool, limit) as show:
        while not settled():
            show(time.monotonic() - start)
            time.sleep(POLL)


async def ensure_workers_async(client: Client, pool: str, timeout: float | str | None = None) -> None:
    """`ensure_workers` for a client that is used asynchronously; it shows no progress."""
    await connect_async(client)
    pins.check_name(pool)
    limit = _seconds(timeout)
    start = time.monotonic()
    while True:
        answer = await client.scheduler.pools_request(pool=pool)
        if _settled(pool, answer, client.scheduler.address, time.monotonic() - start, limit):
            return
        await asyncio.sleep(POLL)


def _seconds(timeout: float | str | None) -> float:
    return config.wait_for_workers() if timeout is None else float(parse_timedelta(timeout))


def _has_workers(pool: str, answer: Mapping[str, Any]) -> bool:
    return pool in answer["pools"]


def _settled(pool: str, answer: Mapping[str, Any], address: str, waited: float, limit: float) -> bool:
    """Whether the pool has workers, by the scheduler's answer; False means to go on waiting.

    Raises
    ------
    PoolUnavailableError
        If waiting longer is of no use.
    """
    if _has_workers(pool, answer):
        return True
    if reason := answer["failed"].get(pool):
        raise PoolUnavailableError(pool, answer["pools"], f"Starting some failed: {reason}.")
    supplied = pool in answer["supplied"] and answer["supplied"][pool] != 0
    if not supplied and pool not in answer["seen"]:
        known = {*answer["pools"], *answer["seen"], *answer["supplied"]}
        nearest = difflib.get_close_matches(pool, sorted(known), n=1)
        hint = f"Did you mean {nearest[0]!r}? Otherwise start" if nearest else "Start"
        asleep = sorted(set(answer["supplied"]) - set(answer["pools"]) - {pool})
        others = f" Pools that can be had: {', '.join(map(repr, asleep))}." if asleep else ""
        raise PoolUnavailableError(
            pool,
            answer["pools"],
            f"Nobody connected can start any. {hint} one in that data centre: "
            f"{command(pool, address)}.{others}",
        )
    if waited >= limit:
        how = (
            f"cluster.scale({pool!r}, 1) asks for one again, cluster.get_logs() may say what went wrong"
            if supplied
            else f"it had some earlier; to start one in that data centre: {command(pool, address)}"
        )
        raise PoolUnavailableError(
            pool, answer["pools"], f"None came within {limit:g} s (setting pools.wait-for-workers): {how}."
        )
    return False


def command(pool: str, address: str) -> str:
    """Command to type in a data centre: it starts a worker of `pool` for the scheduler at `address`."""
    return f"dask worker {address} --resources {pins.resource(pool)}=1"


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
