"""A Dask cluster whose workers belong to pools.

One entry of `distributed.SpecCluster`'s specification is one worker of one pool (``ecmwf-0``). How it is
started is its launcher's business; how many there are is decided here: at the start, by
`PoolCluster.scale`, and when the scheduler says that a pool without workers is wanted.
"""

from __future__ import annotations

import asyncio
import difflib
import html
import logging
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from distributed import Client, Scheduler, SpecCluster
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface
from distributed.utils import NoOpAwaitable

from dask_pools import pins
from dask_pools.cluster.launchers import LaunchedWorker, Launcher, WorkerShape
from dask_pools.cluster.pool_spec import PoolSpec, check_count, check_spec, pool_specs
from dask_pools.cluster.scheduler_process import scheduler_spec
from dask_pools.data_centres import DataCentres
from dask_pools.errors import PoolUnavailableError
from dask_pools.propagate import connect, propagate_pools
from dask_pools.scheduler import install

__all__ = ["PoolCluster"]

logger = logging.getLogger(__name__)

# Seconds between two questions to the scheduler for pools that are wanted.
POLL = 0.5

# Seconds for which a failed start is reported. Long enough for everyone who waits to see it; short enough for
# the next who asks to get a new attempt.
REPORT_FAILURE = 5.0


def _in_short(error: BaseException) -> str:
    """Say what an exception says, or rather the one that it came from: Dask wraps them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".rstrip(".: ")


class PoolWorker(ProcessInterface):  # type: ignore[misc]  # distributed publishes no type for it
    """One worker of a pool, as `distributed.SpecCluster` expects it; the launcher does the work."""

    def __init__(self, scheduler: str, name: str, pool: str, launcher: Launcher, shape: WorkerShape) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.name = name
        self.pool = pool
        self.launcher = launcher
        self.shape = shape
        self.failure: str | None = None
        self._launched: LaunchedWorker | None = None
        self._closing: asyncio.Future[object] | None = None

    async def start(self) -> None:
        """Launch it, and keep the reason if that fails."""
        try:
            self._launched = await self.launcher.launch(self.scheduler, self.name, self.shape)
        except Exception as error:
            self.status = Status.failed
            self.failure = f"worker {self.name}: {_in_short(error)}"
            raise PoolUnavailableError(self.pool, (), f"Starting some failed: {self.failure}.") from error
        await super().start()

    async def close(self) -> None:
        """Stop it."""
        if self._launched is not None:
            # Once, whoever asks, and everyone waits for it.
            self._closing = self._closing or asyncio.ensure_future(self._launched.close())
            await self._closing
        await super().close()


async def _started(worker: PoolWorker) -> PoolUnavailableError | None:
    """Start a worker; what there is to say if that fails."""
    try:
        await worker
    except PoolUnavailableError as error:
        return error
    return None


class PoolCluster(SpecCluster):  # type: ignore[misc]  # distributed publishes no type for it
    """A Dask cluster whose workers belong to pools.

    Making one switches propagation on (`dask_pools.propagate_pools`), so that pins hold. While it lives, it
    answers for its pools: one of them that has no workers gets some as soon as somebody asks for it or
    computes on it.

    Parameters
    ----------
    pools : path, DataCentres, or mapping of str to PoolSpec
        A data-centres file, each of whose data centres with a `workers` section becomes a pool; or the pools
        themselves, by name.
    scheduler : {"here", "process"} or mapping
        Whether the scheduler runs in this process or in one of its own, on the loopback interface; or how to
        make it, as `distributed.SpecCluster` has it: ``{"cls": …, "options": {…}}``. A scheduler in this
        process gets this project's plugin; any other must bring it along
        (``--preload dask_pools.scheduler``).
    asynchronous : bool
        Whether it is used with ``async with`` and ``await``.
    **kwargs
        Further arguments of `distributed.SpecCluster`.

    Raises
    ------
    DataCentresError
        If the data-centres file is wrong, or says nothing about workers.
    ValueError
        If a name or a number does not do.
    PoolUnavailableError
        If a worker does not start.

    Examples
    --------
    >>> with PoolCluster("data-centres.yaml") as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    status: Status

    def __init__(
        self,
        pools: Mapping[str, PoolSpec] | DataCentres | str | os.PathLike[str],
        *,
        scheduler: Mapping[str, Any] | Literal["here", "process"] = "here",
        asynchronous: bool = False,
        silence_logs: int | None = logging.WARNING,
        **kwargs: Any,
    ) -> None:
        self._pool_specs = dict(pools) if isinstance(pools, Mapping) else pool_specs(pools)
        if isinstance(scheduler, str):
            scheduler = scheduler_spec(scheduler, silence_logs=silence_logs)
        for pool, spec in self._pool_specs.items():
            check_spec(pool, spec)
        propagate_pools()
        self._owner = f"{type(self).__name__}-{uuid.uuid4()}"
        self._failures: dict[str, tuple[float, str]] = {}
        self._supplying: asyncio.Task[None] | None = None
        self._correcting: asyncio.Task[None] | None = None
        workers = {
            name: self._worker_spec(pool)
            for pool, spec in self._pool_specs.items()
            for name in (f"{pool}-{number}" for number in range(spec.workers))
        }
        try:
            super().__init__(
                workers=workers,
                scheduler=dict(scheduler),
                asynchronous=asynchronous,
                silence_logs=silence_logs or False,
                **kwargs,
            )
        except KeyboardInterrupt:
            # SpecCluster cleans up after exceptions only.
            with suppress(Exception):
                self.close(timeout=10)
            raise

    # What it consists of

    @property
    def pools(self) -> dict[str, list[str]]:
        """Names of the workers that have joined, by pool.

        The pools of this cluster are there even without workers; others are, if somebody else's workers
        offer them.
        """
        pools: dict[str, list[str]] = {pool: [] for pool in self._pool_specs}
        for worker in list(self.scheduler_info["workers"].values()):
            for pool in pins.pools_of_resources(worker["resources"]):
                pools.setdefault(pool, []).append(str(worker["name"]))
        return {pool: sorted(names) for pool, names in pools.items()}

    def __repr__(self) -> str:
        pools = ", ".join(f"{pool}: {self._describe(pool)}" for pool in self.pools) or "no pools"
        return f"<{type(self).__name__} {self.scheduler_address} — {pools}>"

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        rows = "".join(
            '<tr><td style="text-align: left;" colspan="2">'
            f"<strong>Pool {html.escape(pool)}:</strong> {html.escape(self._describe(pool))}</td></tr>"
            for pool in self.pools
        )
        return str(super()._repr_html_(cluster_status=rows + (cluster_status or "")))

    def _describe(self, pool: str) -> str:
        joined = len(self.pools[pool])
        planned = len(self._planned(pool))
        workers = f"{joined} worker{'' if joined == 1 else 's'}"
        if planned > joined:
            workers += f" of {planned}"
        if pool in self._pool_specs:
            threads = self._pool_specs[pool].worker.threads
            workers += f" × {threads} thread{'' if threads == 1 else 's'}"
        return workers

    # Using it

    def get_client(self) -> Client:
        """Client of this cluster; the current one if there is one already."""
        client = super().get_client()
        if not client.asynchronous:
            connect(client)
        return client

    def scale(self, *args: str | int, **counts: int) -> Any:
        """Ask for a number of workers in a pool: ``scale("ecmwf", 4)`` or ``scale(ecmwf=4, eumetsat=2)``.

        Returns at once; the workers come and go meanwhile. What only the workers that go have in memory is
        moved to others first.

        Raises
        ------
        TypeError
            If no pool is named.
        ValueError
            If this cluster has no such pool, or the number does not do.
        """
        match args:
            case ():
                pass
            case (0,):
                # What Dask itself calls when it closes a cluster; it leaves no doubt about the pools.
                counts = dict.fromkeys(self._pool_specs, 0)
            case (str(pool), int(count)) if pool not in counts:
                counts = {pool: count, **counts}
            case _:
                example = next(iter(self._pool_specs), "ecmwf")
                raise TypeError(
                    "Say which pool is to have how many workers: "
                    f"cluster.scale({example!r}, 2). Pools: {self._known()}."
                )
        for pool, count in counts.items():
            self._check_pool(pool)
            check_count(pool, count, self._pool_specs[pool].maximum)
        for pool, count in counts.items():
            self._plan(pool, count)
        self.loop.add_callback(self._correct_state_and_log)
        return NoOpAwaitable() if self.asynchronous else None

    def adapt(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: Dask's adaptivity counts workers without regard to pools."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot adapt: Dask would count workers without regard to pools. A pool "
            "that has no workers gets some when it is needed; for more, cluster.scale(pool, n)."
        )

    # How many workers there should be

    def _known(self) -> str:
        return ", ".join(repr(pool) for pool in self._pool_specs) or "none"

    def _check_pool(self, pool: str) -> None:
        if pool in self._pool_specs:
            return
        nearest = difflib.get_close_matches(pool, self._pool_specs, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"This cluster has no pool {pool!r}.{hint} Its pools: {self._known()}.")

    def _worker_spec(self, pool: str) -> dict[str, Any]:
        spec = self._pool_specs[pool]
        shape = replace(spec.worker, resources={**spec.worker.resources, pins.resource(pool): 1})
        return {"cls": PoolWorker, "options": {"pool": pool, "launcher": spec.launcher, "shape": shape}}

    def _planned(self, pool: str) -> list[str]:
        """Names of the workers that the pool should have, the oldest first."""
        return [name for name, spec in list(self.worker_spec.items()) if spec["options"].get("pool") == pool]

    def _plan(self, pool: str, count: int) -> None:
        """Change what should be; `_correct_state` then makes it so."""
        planned = self._planned(pool)
        joined = {worker["name"] for worker in list(self.scheduler_info["workers"].values())}
        # Those that are not there yet go first, then the newest.
        for name in sorted(planned, key=lambda name: name not in joined)[count:]:
            self.worker_spec.pop(name, None)
        # A name is not given to a second worker while the first may still be known by it.
        taken = {*planned, *self.workers, *joined}
        number = 0
        for _ in range(count - len(planned)):
            while (name := f"{pool}-{number}") in taken:
                number += 1
            taken.add(name)
            self.worker_spec[name] = self._worker_spec(pool)

    async def _correct_state_internal(self) -> None:
        """Stop the workers that should not be, and start those that should; in place of SpecCluster's own.

        That passes names to the scheduler where addresses are expected, so that nothing is moved away from
        workers that go; and it takes a worker that did not start for one that did.
        """
        async with self._lock:
            self._correct_state_waiting = None
            await self._stop(set(self.workers) - set(self.worker_spec))
            try:
                await self._start_workers(set(self.worker_spec) - set(self.workers))
            finally:
                await self._see_workers()

    async def _stop(self, names: set[str]) -> None:
        if names and self.status == Status.running and self.scheduler.status == Status.running:
            await self.scheduler_comm.retire_workers(names=list(names))
        await asyncio.gather(*(self.workers[name].close() for name in names if name in self.workers))
        for name in names:
            self.workers.pop(name, None)

    async def _start_workers(self, names: set[str]) -> None:
        address = getattr(self.scheduler, "contact_address", None) or self.scheduler.address
        starting = {}
        for name in names:
            spec = self.worker_spec[name]
            starting[name] = worker = spec["cls"](address, name=name, **spec["options"])
            self._created.add(worker)
        failures = await asyncio.gather(*(_started(worker) for worker in starting.values()))
        for (name, worker), failure in zip(starting.items(), failures, strict=True):
            if failure is None:
                self.workers[name] = worker
            else:
                # Not tried again before somebody asks.
                self.worker_spec.pop(name, None)
                self._failures[worker.pool] = (time.monotonic(), worker.failure)
                logger.warning("Could not start %s.", worker.failure)
        if error := next(filter(None, failures), None):
            raise error

    async def _see_workers(self) -> None:
        """Wait until this object has heard of the workers that the scheduler knows, a moment later."""
        if self.status != Status.running:
            return
        known = (await self.scheduler_comm.identity(n_workers=-1))["workers"].values()
        joined = {worker["name"] for worker in known} & set(self.worker_spec)
        for _ in range(100):
            if joined <= self.observed:
                break
            await asyncio.sleep(0.01)

    async def _correct_state_and_log(self) -> None:
        try:
            await self._correct_state()
        except PoolUnavailableError:
            pass  # logged already, and reported to the scheduler
        except Exception:
            if self.status == Status.running:
                logger.exception("Could not bring the workers to what they should be.")

    # Answering for the pools

    async def _start(self) -> None:
        await super()._start()
        if self.status != Status.running or self._supplying is not None:
            return
        try:
            if isinstance(self.scheduler, Scheduler):
                install(self.scheduler)
            # Once now: who connects next must not be told that nobody answers for the pools.
            await self._supply()
        except Exception:
            self.status = Status.failed
            await self._close()
            raise
        self._supplying = asyncio.create_task(self._keep_supplying())

    async def _keep_supplying(self) -> None:
        while self.status == Status.running:
            await asyncio.sleep(POLL)
            try:
                await self._supply()
                # Also workers that were lost for good. In the background: a scheduler that hears nothing
                # while a worker starts would forget this cluster.
                if set(self.worker_spec) - set(self.workers) and not self._lock.locked():
                    self._correcting = asyncio.create_task(self._correct_state_and_log())
            except Exception:
                # The scheduler may be gone, or busy; the cluster stays as it is, and so does the question.
                logger.debug("Could not ask the scheduler for wanted pools.", exc_info=True)

    async def _supply(self) -> None:
        """Tell the scheduler which pools this cluster can bring up, and bring up those that are wanted."""
        now = time.monotonic()
        self._failures = {
            pool: (when, reason)
            for pool, (when, reason) in self._failures.items()
            if now - when < REPORT_FAILURE
        }
        answer = await self.scheduler_comm.pools_supply(
            owner=self._owner,
            supply={pool: spec.maximum for pool, spec in self._pool_specs.items()},
            failed={pool: reason for pool, (_, reason) in self._failures.items()},
        )
        for pool in answer["wanted"]:
            spec = self._pool_specs.get(pool)
            if spec is None or pool in self._failures or spec.maximum == 0 or self._planned(pool):
                continue
            self._plan(pool, max(1, spec.minimum))

    async def _close(self) -> None:
        if self._supplying is not None:
            self._supplying.cancel()
            with suppress(asyncio.CancelledError):
                await self._supplying
            self._supplying = None
        try:
            await self._close_all()
        finally:
            # Nothing is left even if closing was upset.
            for worker in list(self._created):
                with suppress(Exception):
                    await worker.close()
            if isinstance(self.scheduler, ProcessInterface):
                await self.scheduler.close()

    async def _close_all(self) -> None:
        """Close as SpecCluster does, also when the scheduler has died: it would insist on an answer."""
        if self.status == Status.running and self.scheduler.status != Status.running:
            self.shutdown_scheduler = False
        try:
            await super()._close()
        except OSError:
            if not self.shutdown_scheduler or self.scheduler is None:
                raise
            logger.debug("Lost the scheduler while closing.", exc_info=True)
            self.shutdown_scheduler = False
            await self.scheduler.close()
            self.status = Status.failed  # from which SpecCluster closes like from running
            await super()._close()
