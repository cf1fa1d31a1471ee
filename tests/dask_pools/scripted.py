"""A launcher for tests only: it does what its script says, with workers that live in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from distributed import Worker

from dask_pools.cluster import PoolCluster, PoolSpec
from dask_pools.cluster.launchers import WorkerShape

LOCAL = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}


class ScriptedWorker:
    """A worker that a script started."""

    def __init__(self, deaf: bool = False) -> None:
        self.worker: Worker | None = None
        self.deaf = deaf
        self.closed = False

    @property
    def runs(self) -> bool:
        return self.worker is not None and self.worker.status.name != "closed"

    async def ended(self) -> str:
        while self.worker is None:
            await asyncio.sleep(0.01)
        await self.worker.finished()
        return "it was killed by the script"

    async def logs(self) -> str:
        return "nothing but the script"

    async def close(self) -> None:
        self.closed = True
        if self.worker is not None and not self.deaf:
            await self.worker.close(executor_wait=False)


class Scripted:
    """Starts a worker as the next word of its script says, and plainly when there is none left.

    The words: ``"refuse <text>"`` raises OSError with that text; ``"hang"`` never returns; ``"queue"``
    returns at once, and the worker comes when `deliver` is called, stopped or not; ``"pool <name>"``
    delivers a worker of that pool instead of the one asked for; ``"lifetime <time>"`` one that leaves after
    that time, as those of a queue with a time limit do.
    """

    def __init__(self, *script: str, delay: float = 0.0) -> None:
        self.script = list(script)
        self.delay = delay
        self.asked: list[str] = []
        self.cancelled = 0
        self.launched: list[ScriptedWorker] = []
        self.queued: dict[str, tuple[ScriptedWorker, str, WorkerShape]] = {}

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> ScriptedWorker:
        self.asked.append(name)
        word, _, rest = (self.script.pop(0) if self.script else "").partition(" ")
        try:
            await asyncio.sleep(1e6 if word == "hang" else self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if word == "refuse":
            raise OSError(rest)
        launched = ScriptedWorker(deaf=word == "queue")
        self.launched.append(launched)
        if word == "queue":
            self.queued[name] = launched, scheduler, shape
            return launched
        resources = {f"pool-{rest}": 1.0} if word == "pool" else shape.resources
        lifetime = rest if word == "lifetime" else None
        launched.worker = await self._worker(scheduler, name, shape, resources, lifetime)
        return launched

    async def deliver(self, name: str) -> Worker:
        """Have the worker join that was queued under this name."""
        launched, scheduler, shape = self.queued.pop(name)
        launched.worker = await self._worker(scheduler, name, shape, shape.resources)
        return launched.worker

    async def _worker(
        self,
        scheduler: str,
        name: str,
        shape: WorkerShape,
        resources: Mapping[str, float],
        lifetime: str | None = None,
    ) -> Worker:
        return await Worker(
            scheduler,
            name=name,
            nthreads=shape.threads,
            resources=dict(resources),
            host="127.0.0.1",
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            lifetime=lifetime,
        )


def cluster_of(**pools: PoolSpec) -> PoolCluster:
    """Cluster of these pools, with its scheduler in this process."""
    options: dict[str, Any] = {"cls": "distributed.Scheduler", "options": LOCAL}
    return PoolCluster(pools, scheduler=options)
