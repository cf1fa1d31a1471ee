"""Pools on this machine: the cluster to start with, and to test on."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dask.utils import parse_bytes
from distributed import system

from dask_pools import pins
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.local import LocalLauncher
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import PoolSpec, check_count
from dask_pools.cluster.scheduler_process import scheduler_spec

__all__ = ["LocalPools"]


class LocalPools(PoolCluster):
    """Pools of worker processes on this machine, each pool in a directory of its own.

    A relative path such as ``predictions.nc`` then exists in one pool and nowhere else. All listen on the
    loopback interface only.

    Parameters
    ----------
    pools : mapping of str to int
        How many workers each pool starts with. A pool of 0 gets some when it is needed.
    threads_per_worker : int
    memory_limit : "auto", int, str or None
        Bytes that each worker may use (``"4 GiB"``). ``"auto"``: an equal share of this machine's memory.
        None: no limit.
    directories : mapping of str to path, optional
        Directories that the tasks of each pool run in. A pool that is not named here gets a temporary one,
        which is removed when the cluster closes.
    prefixes : mapping of str to sequence of str, optional
        Command through which the workers of a pool are started, to change what they see of the machine. It
        gets theirs as its last arguments and must replace itself by it, as ``("unshare", "--mount")`` does.
    env : mapping of str to str, optional
        Environment variables for all workers.
    resources : mapping of str to float, optional
        Dask resources that each worker offers, besides that of its pool.
    scheduler : {"here", "process"}
        Whether the scheduler runs in this process, or in one of its own, where it is not held up by what
        this one computes.
    dashboard_address : str or None
        Where Dask's dashboard listens; port 0 stands for any free one, and no host for this machine only.
        None: no dashboard.
    asynchronous : bool
        Whether it is used with ``async with`` and ``await``.
    silence_logs : int or None
        Level below which scheduler and workers log nothing.
    **kwargs
        Further arguments of `distributed.SpecCluster`, such as `name`.

    Attributes
    ----------
    directories : dict of str to Path
        Where the tasks of each pool run.

    Raises
    ------
    ValueError
        If an argument does not do; the message says what would.
    PoolUnavailableError
        If a worker does not start.

    Examples
    --------
    >>> with LocalPools({"ecmwf": 2, "eumetsat": 2}) as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        pools: Mapping[str, int],
        *,
        threads_per_worker: int = 1,
        memory_limit: str | int | None = "auto",
        directories: Mapping[str, str | os.PathLike[str]] | None = None,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        env: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
        scheduler: Literal["here", "process"] = "here",
        dashboard_address: str | None = ":0",
        asynchronous: bool = False,
        silence_logs: int | None = logging.WARNING,
        **kwargs: Any,
    ) -> None:
        for pool, count in pools.items():
            _check_name(pool)
            check_count(pool, count)
        _check_known("directories", directories or {}, pools)
        _check_known("prefixes", prefixes or {}, pools)
        given = {pool: _existing(pool, directory) for pool, directory in (directories or {}).items()}
        making = scheduler_spec(scheduler, dashboard_address, silence_logs)
        if not isinstance(threads_per_worker, int) or threads_per_worker < 1:
            raise ValueError(f"threads_per_worker={threads_per_worker!r}: give a whole number from 1 on.")
        self._dashboard = dashboard_address is not None
        self._temporary = tempfile.TemporaryDirectory(prefix="dask-pools-", ignore_cleanup_errors=True)
        try:
            root = Path(self._temporary.name)
            self.directories = {
                pool: given[pool] if pool in given else _make(root / "pools" / pool) for pool in pools
            }
            scratch = str(_make(root / "scratch"))
            log_level = silence_logs or logging.INFO
            memory = _memory(memory_limit, pools)
            super().__init__(
                {
                    pool: PoolSpec(
                        launcher=LocalLauncher(scratch, tuple((prefixes or {}).get(pool, ())), log_level),
                        worker=WorkerShape(
                            threads=threads_per_worker,
                            memory_limit=memory,
                            directory=str(self.directories[pool]),
                            env=dict(env or {}),
                            resources=dict(resources or {}),
                        ),
                        workers=count,
                    )
                    for pool, count in pools.items()
                },
                scheduler=making,
                asynchronous=asynchronous,
                silence_logs=silence_logs,
                **kwargs,
            )
        except BaseException:
            self._temporary.cleanup()
            raise

    @property
    def dashboard_link(self) -> str:
        """Address of Dask's dashboard, or nothing if there is none."""
        return str(super().dashboard_link) if self._dashboard else ""

    async def _close(self) -> None:
        try:
            await super()._close()
        finally:
            self._temporary.cleanup()


def _check_name(pool: str) -> None:
    if pins.check_name(pool) in (".", ".."):
        raise ValueError(f"{pool!r} cannot be the name of a local pool: its directory is to have that name.")


def _check_known(argument: str, names: Iterable[str], pools: Iterable[str]) -> None:
    for name in names:
        if name not in pools:
            known = ", ".join(repr(pool) for pool in pools) or "none"
            raise ValueError(f"{argument} names {name!r}, which is not a pool here. Pools: {known}.")


def _existing(pool: str, directory: str | os.PathLike[str]) -> Path:
    if not Path(directory).is_dir():
        raise ValueError(f"directories[{pool!r}] is {os.fspath(directory)!r}, which is not a directory.")
    return Path(directory).resolve()


def _make(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _memory(limit: str | int | None, pools: Mapping[str, int]) -> int | None:
    """Bytes for each worker."""
    if limit is None:
        return None
    if limit != "auto":
        return int(parse_bytes(limit))
    # A pool without workers may get one later.
    return int(system.MEMORY_LIMIT) // max(1, sum(max(1, count) for count in pools.values()))
