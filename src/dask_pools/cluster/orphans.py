"""Clusters whose process has died: taking them over, and ending what they have left.

What there was is read from what was written down (`dask_pools.cluster.record`). Nothing is touched whose
identity is not certain: processes by number and beginning, jobs and containers by what their launchers know
them by, workers at sites by their agents.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from typing import Any

from distributed import Security

from dask_pools import data_centres
from dask_pools.cluster.launchers import Finder
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import pool_spec
from dask_pools.cluster.record import Record, SitesLeft, claim, orphans, remove, write
from dask_pools.cluster.scheduler_process import RunningScheduler
from dask_pools.data_centres import DataCentres
from dask_pools.errors import PoolsError, SiteError

__all__ = ["NoOrphanError", "adopt", "clean_up"]

# Seconds that a scheduler may take to end, and between two signs of life of a control host.
ENDING, KEEPALIVE = 5.0, 5.0


class NoOrphanError(PoolsError):
    """There is no cluster to take over, or not the one that is meant; the message says what to do."""


def adopt(address: str | None = None, **kwargs: Any) -> PoolCluster:
    """Take over a cluster whose process has died while its scheduler lives.

    Its workers go on as they are; of those that ended with their process new ones are started. Pools want and
    adapt as before. Whoever was connected with the scheduler may stay so.

    Parameters
    ----------
    address : str, optional
        Of its scheduler, where several could be meant.
    **kwargs
        Further arguments of `PoolCluster`.

    Raises
    ------
    NoOrphanError
        If there is none, several and none is named, or its scheduler has ended as well.
    DataCentresError
        If its data-centres file cannot be read any more, or lacks one of its pools.

    Examples
    --------
    >>> with adopt() as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """
    orphan = _the_one(address)
    known = data_centres.load(orphan.file)
    for name, held in orphan.workers.items():
        _section(known, held.pool, name)
    if not claim(orphan.cluster):
        raise NoOrphanError("Another process has just taken it over.")
    security = Security(require_encryption=True, **orphan.tls) if orphan.tls else None
    options = {"address": orphan.scheduler, "process": orphan.scheduler_process, "security": security}
    try:
        return PoolCluster(
            known,
            scheduler={"cls": RunningScheduler, "options": options},
            orphan=orphan,
            security=security,
            shutdown_scheduler=not orphan.scheduler_stays,
            **kwargs,
        )
    except BaseException as error:
        write(orphan)
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, OSError):
            raise _ended(orphan) from None
        raise


def _the_one(address: str | None) -> Record:
    """Find the orphan that is meant.

    Raises
    ------
    NoOrphanError
        If that is none, or cannot be taken over.
    """
    found = orphans(address)
    if not found and (others := orphans()):
        known = ", ".join(sorted(one.scheduler for one in others))
        raise NoOrphanError(f"None that has lost its process is at {address}. Those that have: {known}.")
    if not found:
        raise NoOrphanError("No cluster of yours on this machine has lost its process; `dask pools status`?")
    alive = [one for one in found if one.scheduler_may_live and _lives(one)]
    if not alive:
        raise _ended(found[0])
    if len(alive) > 1:
        known = ", ".join(sorted(one.scheduler for one in alive))
        raise NoOrphanError(f"Say which cluster is meant, by the address of its scheduler: {known}.")
    return alive[0]


def _lives(orphan: Record) -> bool:
    return orphan.scheduler_process is None or orphan.scheduler_process.lives


def _ended(orphan: Record) -> NoOrphanError:
    return NoOrphanError(
        f"The scheduler at {orphan.scheduler} has ended as well, so there is nothing to take over. "
        f"`dask pools down --all` ends what else is left; `dask pools up {shlex.quote(orphan.file)}` brings "
        "up a new cluster."
    )


def _section(known: DataCentres, pool: str, worker: str) -> Any:
    """Look up what a data-centres file says about workers of a pool.

    Raises
    ------
    NoOrphanError
        If nothing.
    """
    one = known.data_centres.get(pool)
    if one is None or one.workers is None:
        raise NoOrphanError(
            f"{known.origin} does not say any more how workers of {pool!r} are started, of which {worker} is "
            "one. Put it back, and try again."
        )
    return one.workers


def clean_up(say: Callable[[str], None]) -> bool:
    """End what clusters have left whose process has died.

    Parameters
    ----------
    say : callable
        Is told what is done, line by line.

    Returns
    -------
    bool
        Whether nothing is left.
    """
    done = [_clean_up(orphan, say) for orphan in orphans()]
    return all(done)


def _clean_up(orphan: Record, say: Callable[[str], None]) -> bool:
    if not claim(orphan.cluster):
        return True
    say(f"The cluster at {orphan.scheduler}, whose process {orphan.owner.pid} has died:")
    try:
        if (process := orphan.scheduler_process) is not None and process.end(ENDING):
            say(f"  scheduler: process {process.pid} has been ended")
        problems = asyncio.run(_end_all(orphan, say))
    except BaseException:
        write(orphan)
        raise
    if problems:
        for problem in problems:
            say(f"  {problem}")
        say("  What is left is still known: try again when that is mended.")
        write(orphan)
        return False
    say("  nothing is left")
    remove(orphan.cluster)
    return True


async def _end_all(orphan: Record, say: Callable[[str], None]) -> list[str]:
    """End workers and agents; what went wrong."""
    try:
        known = data_centres.load(orphan.file)
    except PoolsError as error:
        return [str(error)]
    ends = [_end_worker(orphan, known, name, say) for name in orphan.workers]
    if orphan.sites is not None:
        ends += [_end_agent(orphan.sites, known, name, say) for name in orphan.sites.names]
    wrong = [one for one in await asyncio.gather(*ends, return_exceptions=True) if one is not None]
    for one in wrong:
        if not isinstance(one, PoolsError | OSError | RuntimeError | ImportError):
            raise one
    if orphan.sites is not None:
        from dask_pools.mesh.host import remove_leftovers

        for interface in await asyncio.to_thread(remove_leftovers):
            say(f"  mesh: interface {interface} has been removed")
    return [str(one) for one in wrong]


async def _end_worker(orphan: Record, known: DataCentres, name: str, say: Callable[[str], None]) -> None:
    held = orphan.workers[name]
    spec = pool_spec(held.pool, _section(known, held.pool, name))
    if not isinstance(spec.launcher, Finder):
        raise NoOrphanError(f"Worker {name}: {known.origin} has another launcher for {held.pool!r} now.")
    try:
        worker = await spec.launcher.find(orphan.scheduler, name, spec.worker, held.handle)
    except LookupError as error:
        say(f"  worker {name}: {error}")
        return
    await worker.close()
    say(f"  worker {name}: has been ended")


async def _end_agent(left: SitesLeft, known: DataCentres, name: str, say: Callable[[str], None]) -> None:
    from dask_pools.cluster.multi_site import control_host
    from dask_pools.sites import ssh

    section = known.data_centres[name].site if name in known.data_centres else None
    if section is None:
        raise NoOrphanError(
            f"{known.origin} does not say any more where the site {name!r} is. Put it back, and try again."
        )
    host = control_host(section, left.ssh_config)
    directory = f" --directory {shlex.quote(host.directory)}" if host.directory else ""
    command = f"{host.dask} pools site down {left.cluster}{directory}"
    async with ssh.connect(host, KEEPALIVE) as connection, ssh.run(connection, host, command) as running:
        while await running.read():
            pass
        status, said = await running.ended()
    if status != 0:
        raise SiteError(host.host, "taking its agent down", said or f"exit status {status}", command)
    say(f"  site {name}: its agent has been ended, with all that it started")
