"""What each pool has to do, as plain numbers: measured on the scheduler, read by whoever decides on workers.

It counts tasks and estimates their time as Dask's own adaptivity does, but for each pool by itself, and with
the tasks that wait in line for room in their pool (`dask_pools.queueing`). It starts and stops nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from dask.typing import Key
from distributed import Scheduler

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import TaskPrefix, TaskState, WorkerState

__all__ = ["Gauge", "PoolLoad", "WorkerLoad"]


@dataclass(frozen=True)
class WorkerLoad:
    """One worker of a pool."""

    name: str
    threads: int
    idle: float
    """Seconds since it had a task, or joined; 0 while it has one, or an actor."""
    nbytes: int
    """Bytes of the results that it holds."""
    memory: int
    """Bytes that it may use; 0 for no limit."""
    sole: bool
    """Whether it holds a result that only workers of this pool hold."""


@dataclass(frozen=True)
class PoolLoad:
    """What a pool has to do, and who is there to do it."""

    queued: int = 0
    """Tasks that cannot run for want of workers, or wait in line for room."""
    processing: int = 0
    """Tasks that its workers have been sent."""
    seconds: float = 0.0
    """How long one thread would take for both."""
    later: bool = False
    """Whether tasks of it wait for the results of others."""
    quiet: float = 0.0
    """Seconds since anything was to be done in it, or somebody asked for it."""
    workers: tuple[WorkerLoad, ...] = ()

    def message(self) -> dict[str, Any]:
        """Make plain values of it; not by `dataclasses.asdict`, which copies each of many numbers deeply."""
        return {**vars(self), "workers": [dict(vars(worker)) for worker in self.workers]}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> PoolLoad:
        """Make one of what arrived over the wire."""
        workers = tuple(WorkerLoad(**worker) for worker in message["workers"])
        return cls(**{**message, "workers": workers})


class Gauge:
    """Measures what pools have to do.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    workers_of : callable
        Gives the addresses of the workers of a pool that tasks may be sent to.
    """

    def __init__(self, scheduler: Scheduler, workers_of: Callable[[str], set[str]]) -> None:
        self._scheduler = scheduler
        self._workers_of = workers_of
        self._queued: dict[str, Counter[TaskPrefix]] = {}
        # Pools of the tasks of each group. Dask counts the states of a group's tasks, so nobody has to
        # follow every task for the sake of those that run later.
        self._groups: dict[str, set[str]] = {}
        self._busy: dict[str, float] = {}
        self._noisy: dict[str, float] = {}

    def expect(self, task: TaskState, pool: str) -> None:
        """Take note of a new task that will run in a pool."""
        self._groups.setdefault(task.group_key, set()).add(pool)

    def asked(self, pool: str) -> None:
        """Take note that somebody is about to use a pool."""
        self._noisy[pool] = monotonic()

    def sent(self, key: Key) -> None:
        """Take note that a task was sent to a worker."""
        task = self._scheduler.tasks.get(key)
        if task is not None and task.processing_on is not None:
            self._busy[task.processing_on.address] = monotonic()

    def joined(self, worker: str) -> None:
        """Take note of a new worker: it has been idle since now."""
        self._busy[worker] = monotonic()

    def left(self, worker: str) -> None:
        """Forget a worker."""
        self._busy.pop(worker, None)

    def set_queued(self, queued: dict[str, Counter[TaskPrefix]]) -> None:
        """Take over how many tasks of each prefix cannot run yet, by pool."""
        self._queued = queued

    def pools_to_come(self) -> set[str]:
        """Pools that have tasks which wait for the results of others."""
        found: set[str] = set()
        for name, pools in list(self._groups.items()):
            group = self._scheduler.task_groups.get(name)
            if group is None:
                del self._groups[name]
            elif group.states["waiting"] or group.states["queued"] or group.states["no-worker"]:
                found |= pools
        return found

    def measure(self, pools: Iterable[str], idle: Mapping[str, float] | None = None) -> dict[str, PoolLoad]:
        """Measure some pools.

        Parameters
        ----------
        pools : iterable of str
        idle : mapping of str to float, optional
            For each pool the seconds without a task from which on it matters what a worker holds; of others
            it is not looked at, since there may be very much.
        """
        now = monotonic()
        later = self.pools_to_come()
        return {pool: self._measure(pool, pool in later, now, (idle or {}).get(pool)) for pool in pools}

    def _measure(self, pool: str, later: bool, now: float, idle: float | None) -> PoolLoad:
        counts = self._queued.get(pool) or Counter()
        workers = [
            worker for address in self._workers_of(pool) if (worker := self._scheduler.workers.get(address))
        ]
        queued = sum(counts.values())
        processing = sum(len(worker.processing) for worker in workers)
        seconds = sum(worker.occupancy for worker in workers) + sum(
            number * dask_internals.expected_duration(self._scheduler, prefix)
            for prefix, number in counts.items()
        )
        if queued or processing or later or pool not in self._noisy:
            self._noisy[pool] = now
        latest = max([self._noisy[pool], *(self._busy.get(worker.address, 0.0) for worker in workers)])
        return PoolLoad(
            queued=queued,
            processing=processing,
            seconds=seconds,
            later=later,
            quiet=now - latest,
            workers=tuple(self._worker(worker, now, idle) for worker in workers),
        )

    def _worker(self, worker: WorkerState, now: float, idle: float | None) -> WorkerLoad:
        busy = worker.processing or worker.long_running or worker.actors
        unused = 0.0 if busy else now - self._busy.setdefault(worker.address, now)
        return WorkerLoad(
            name=str(worker.name),
            threads=worker.nthreads,
            idle=unused,
            nbytes=worker.nbytes,
            memory=worker.memory_limit,
            # Without a reason to look it is taken to be needed.
            sole=idle is None or unused < idle or self._holds_alone(worker),
        )

    def _holds_alone(self, worker: WorkerState) -> bool:
        """Whether a worker holds a result that no worker of another pool holds."""
        own = {name for name in worker.resources if name.startswith(pins.RESOURCE_PREFIX)}
        return any(
            all(own & holder.resources.keys() for holder in task.who_has or ()) for task in worker.has_what
        )
