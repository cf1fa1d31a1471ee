"""`dask pools status`: how the pools of a running cluster stand, by the word of its scheduler.

It knows the scheduler's address and nothing of how the cluster was made.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from dask.utils import format_bytes
from distributed import Security
from distributed.core import connect
from rich import box
from rich.console import Console
from rich.table import Table

from dask_pools.config import in_seconds
from dask_pools.demand import PoolLoad
from dask_pools.scheduler import NO_POOLS, Supply

__all__ = ["PoolStatus", "ask", "read", "status"]


@dataclass(frozen=True)
class PoolStatus:
    """How one pool stands."""

    pool: str
    running: int
    """Workers that have joined and get tasks."""
    supply: Supply | None
    """What whoever can start workers for it says; None if nobody connected can."""
    load: PoolLoad
    """What it has to do."""
    wanted_for: float | None
    """Seconds for which somebody has been wanting its workers while it has none; None if that is not so."""

    @property
    def held(self) -> int:
        """Bytes of the results that its workers hold."""
        return sum(worker.nbytes for worker in self.load.workers)

    @property
    def remark(self) -> str:
        """What is out of the ordinary, in words."""
        if self.supply is None:
            return "not ours to start"
        if self.supply.failed is not None:
            return f"failed {self.supply.failed_for:.0f} s ago"
        if self.wanted_for is not None:
            return f"wanted for {self.wanted_for:.0f} s"
        return "adapts" if self.supply.idle is not None else ""


def read(answer: Mapping[str, Any]) -> list[PoolStatus]:
    """Read what a scheduler with this project's plugin says of its pools."""
    return [
        PoolStatus(
            pool=pool,
            running=answer["pools"].get(pool, {}).get("workers", 0),
            supply=Supply.of(answer["supplies"][pool]) if pool in answer["supplies"] else None,
            load=PoolLoad.of(load),
            wanted_for=answer["wanted"].get(pool),
        )
        for pool, load in sorted(answer["loads"].items())
    ]


async def ask(address: str, timeout: float, security: Security | None = None) -> list[PoolStatus]:
    """Ask a scheduler how its pools stand.

    Parameters
    ----------
    address : str
    timeout : float
        Seconds.
    security : distributed.Security, optional
        What a scheduler with TLS is reached with; by default what Dask is configured with.

    Raises
    ------
    OSError
        If it cannot be reached in time, or has not this project's plugin.
    """
    async with asyncio.timeout(timeout):
        secured = (security or Security()).get_connection_args("client")
        comm = await connect(address, timeout=timeout, **secured)
        try:
            await comm.write({"op": "pools_status", "reply": True})
            answer = await comm.read()
        finally:
            comm.abort()
    if not isinstance(answer, Mapping) or "loads" not in answer:
        raise OSError(NO_POOLS)
    return read(answer)


def _seconds(value: str) -> float:
    try:
        return in_seconds(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def _whereabouts(address: str | None) -> tuple[str, Security | None]:
    """Find the cluster that is meant: one that is up here has what it is reached with."""
    from dask_pools.cluster.up import NothingUpError, whereabouts

    try:
        return whereabouts(address)
    except NothingUpError as error:
        if address is None:
            raise click.ClickException(str(error)) from None
        return address, None


@click.command()
@click.argument("address", required=False)
@click.option(
    "--timeout",
    type=_seconds,
    metavar="TIME",
    default="10s",
    show_default=True,
    help="How long to wait for the scheduler.",
)
def status(address: str | None, timeout: float) -> None:
    """How the pools of the cluster stand whose scheduler is at ADDRESS (tcp://…), or that is up here.

    For each pool: the workers that there should be, those its launcher has been asked for, those of them that
    have not joined yet, and those that run tasks; tasks that wait and tasks sent to workers, with the time
    that one thread would take for both; and the bytes of the results that its workers hold.
    """
    address, security = _whereabouts(address)
    try:
        pools = asyncio.run(ask(address, timeout, security))
    except (OSError, ValueError, TypeError) as error:  # the last for one with TLS, by Dask without any
        raise click.ClickException(f"No answer from {address}: {error or type(error).__name__}.") from error
    table = Table(box=box.SIMPLE)
    table.add_column("pool")
    for name in ("wanted", "requested", "starting", "running", "waiting", "sent", "work", "held"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in pools:
        counts = (
            ("–",) * 3
            if one.supply is None
            else (str(one.supply.wanted), str(one.supply.requested), str(one.supply.starting))
        )
        table.add_row(
            one.pool,
            *counts,
            str(one.running),
            str(one.load.queued),
            str(one.load.processing),
            f"{one.load.seconds:.0f} s",
            format_bytes(one.held),
            one.remark,
        )
    # Where there is no terminal, nothing is cut to the width of one.
    console = Console(width=None if sys.stdout.isatty() else 250)
    console.print(table)
    for one in pools:
        if one.supply is not None and one.supply.failed is not None:
            console.print(f"{one.pool}: {one.supply.failed}", markup=False, highlight=False, soft_wrap=True)
