"""Workers that live in the process of a benchmark, where two cores cannot hold as many processes.

For the benchmarks of pools that come and go. It measures nothing.
"""

from __future__ import annotations

from distributed import Worker

__all__ = ["WorkerHere", "worker_here"]


async def worker_here(scheduler: str, name: str, resources: dict[str, float]) -> Worker:
    """Start a worker of one thread in this process."""
    return await Worker(
        scheduler,
        name=name,
        nthreads=1,
        resources=resources,
        host="127.0.0.1",
        dashboard=False,
        memory_limit=0,
    )


class WorkerHere:
    """A worker in this process, as launchers deliver them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def ended(self) -> str:
        await self.worker.finished()
        return "it was closed"

    async def logs(self) -> str:
        return ""

    async def close(self) -> None:
        await self.worker.close(executor_wait=False)
