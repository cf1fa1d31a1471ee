"""One worker of a pool, as `distributed.SpecCluster` expects it; its launcher does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from dask_pools.cluster.launchers import Finder, Lasting, LaunchedWorker, Launcher, Queued, WorkerShape
from dask_pools.errors import PoolUnavailableError

__all__ = ["PoolWorker"]


# Seconds that a launcher may take to clean up after it was told to stop.
CLEANING = 30.0


def _in_short(error: BaseException) -> str:
    """Say what an exception says, or rather the one that it came from: Dask wraps them."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".rstrip(".: ")


class PoolWorker(ProcessInterface):  # type: ignore[misc]  # distributed publishes no type for it
    """One worker of a pool.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler.
    name : str
        Of the worker.
    pool : str
    launcher : Launcher
    shape : WorkerShape
    timeout : float, optional
        Seconds in which its launcher has to deliver; None for no limit.
    found_by : mapping, optional
        Handle of a worker that another process had started, to be found instead of started.

    Attributes
    ----------
    failure : str or None
        Why it did not start.
    on_end : callable or None
        Called with it and the reason when it ends although nobody has closed it.
    asked, joined : float
        When it was asked for, and when it had joined, in seconds of the monotonic clock; 0 before that.
    """

    status: Status

    def __init__(
        self,
        scheduler: str,
        name: str,
        pool: str,
        launcher: Launcher,
        shape: WorkerShape,
        timeout: float | None = None,
        found_by: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.name = name
        self.pool = pool
        self.launcher = launcher
        self.shape = shape
        self.timeout = timeout
        self.found_by = found_by
        self.failure: str | None = None
        self.on_end: Callable[[PoolWorker, str], None] | None = None
        self.asked = time.monotonic()
        self.joined = 0.0
        self._launching: asyncio.Future[LaunchedWorker] | None = None
        self._launched: LaunchedWorker | None = None
        self._withdrawn = False
        self._watching: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[object] | None = None

    async def start(self) -> None:
        """Launch it, and keep the reason if that fails.

        Raises
        ------
        PoolUnavailableError
            If that fails, takes longer than its time-out, or is not wanted any more.
        """
        if self._withdrawn:
            raise self._failed("it was withdrawn", None)
        self._launching = asyncio.ensure_future(self._launch())
        try:
            async with asyncio.timeout(self.timeout) as limit:
                # Cancelled with this, and awaited: a launcher has to clean up.
                self._launched = await self._launching
        except TimeoutError as error:
            if limit.expired():
                raise self._failed(f"it did not come within {self.timeout:g} s", error) from error
            raise self._failed(_in_short(error), error) from error
        except asyncio.CancelledError:
            if not self._withdrawn:
                raise
            raise self._failed("it was withdrawn", None) from None
        except Exception as error:
            raise self._failed(_in_short(error), error) from error
        self._watching = asyncio.ensure_future(self._watch(self._launched))
        await super().start()

    async def _launch(self) -> LaunchedWorker:
        if self.found_by is None:
            return await self.launcher.launch(self.scheduler, self.name, self.shape)
        if not isinstance(self.launcher, Finder):
            raise LookupError("its launcher starts workers that cannot be found again")
        return await self.launcher.find(self.scheduler, self.name, self.shape, self.found_by)

    @property
    def handle(self) -> dict[str, Any] | None:
        """What its launcher can find it by in another process; None if it ends with this one."""
        return self._launched.handle if isinstance(self._launched, Lasting) else None

    @property
    def overdue(self) -> str | None:
        """Why it is to be given up, if it has been launched and should have joined by now."""
        if self.joined or self.status != Status.running:
            return None
        if self.timeout is not None and time.monotonic() - self.asked > self.timeout:
            return f"it did not join within {self.timeout:g} s"
        launched: object = self._launched
        return launched.overdue if isinstance(launched, Queued) else None

    def _failed(self, why: str, error: BaseException | None) -> PoolUnavailableError:
        self.status = Status.failed
        self.failure = f"worker {self.name}: {why}"
        return PoolUnavailableError(self.pool, (), f"Starting some failed: {self.failure}.")

    async def close(self) -> None:
        """Stop it, or its being started."""
        self._withdrawn = True
        if self._watching is not None:
            self._watching.cancel()
        if self._launching is not None and not self._launching.done():
            self._launching.cancel()
            await asyncio.wait([self._launching], timeout=CLEANING)
            # A launcher that does not heed this delivers all the same, and what it delivers is closed.
            if self._launching.done():
                self._take(self._launching)
            else:
                self._launching.add_done_callback(self._take)
        if self._launched is not None:
            await self._stop(self._launched)
        await super().close()

    def _stop(self, launched: LaunchedWorker) -> asyncio.Future[object]:
        # Once, whoever asks, and everyone waits for it.
        self._closing = self._closing or asyncio.ensure_future(launched.close())
        return self._closing

    def _take(self, launching: asyncio.Future[LaunchedWorker]) -> None:
        if not launching.cancelled() and launching.exception() is None:
            self._launched = launching.result()
            self._stop(self._launched)

    async def logs(self) -> str:
        """Ask its launcher for what it wrote."""
        return "" if self._launched is None else await self._launched.logs()

    async def _watch(self, launched: LaunchedWorker) -> None:
        why = await launched.ended()
        if self.on_end is not None and not self._withdrawn:
            self.on_end(self, why)
