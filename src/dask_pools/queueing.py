"""Holding back pinned root tasks until a worker of their pool has room, as Dask does with those without pins.

Dask keeps root tasks in a queue on the scheduler and sends each when a thread becomes free, after the tasks
that consume what is there already; so results do not pile up in memory. But its queue knows no restrictions:
tasks with any are all sent at once. Here they wait in a queue for each pool, by Dask's own priorities and
its setting ``distributed.scheduler.worker-saturation``. Where that is infinite, there is no queue, and roots
are dealt out in blocks, so that those whose results go together are on one worker; this, too, Dask does.

While it waits, a task requires a resource that no worker offers. So for Dask it is a task that cannot run
yet, whoever looks at it, and nothing private of the scheduler is changed.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeGuard

from dask.typing import Key
from distributed import Scheduler
from distributed.core import Status

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import TaskState, WorkerState

logger = logging.getLogger(__name__)

HELD = "pools-held-back"
"""The resource that no worker offers."""


def _runs(worker: WorkerState | None) -> TypeGuard[WorkerState]:
    return worker is not None and worker.status == Status.running


def is_held(task: TaskState) -> bool:
    """Whether a task waits for room in its pool."""
    return HELD in (task.resource_restrictions or ())


@dataclass
class _Block:
    """Roots of one group that go to one worker."""

    worker: str
    left: int


class RootQueue:
    """Root tasks of every pool that wait for room.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    workers_of : callable
        Gives the addresses of the workers of a pool that tasks may be sent to.
    """

    def __init__(self, scheduler: Scheduler, workers_of: Callable[[str], set[str]]) -> None:
        self._scheduler = scheduler
        self._workers_of = workers_of
        # Every task that is to wait when it can run, also again after its result was lost.
        self._roots: dict[Key, str] = {}
        # Those that could run, for each pool: priority, a number that breaks ties, key. Tasks that need
        # not run any more are still in there, and left out when their turn comes.
        self._ready: dict[str, list[tuple[tuple[float, ...], int, Key]]] = {}
        self._numbers = itertools.count()
        self._required: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}
        # The block that is being dealt out, for each group of tasks in each pool.
        self._blocks: dict[tuple[str, str], _Block] = {}
        self._filling = False

    def hold(self, arrived: Iterable[Sequence[TaskState]]) -> None:
        """Hold back those of some new tasks that are roots, before any of them is sent.

        What a root is follows Dask (`distributed.scheduler.SchedulerState.is_rootish`): what loads data, and
        one of a group of tasks that is more than twice as large as there are threads, here of its pool, and
        reads little.

        Parameters
        ----------
        arrived : iterable of sequences of TaskState
            In each those of one group that require the same.
        """
        threads: dict[str, int] = {}
        for tasks in arrived:
            pool = pins.pool_of_resources(tasks[0].resource_restrictions)
            if pool is None:
                continue
            if pool not in threads:
                threads[pool] = self._threads(pool)
            group = dask_internals.is_group_of_roots(self._scheduler, tasks[0].group, threads[pool])
            for task in tasks if group else filter(dask_internals.makes_data, tasks):
                if dask_internals.may_be_queued(task):
                    self._roots[task.key] = pool
                    self._mark(task)

    def transition(self, key: Key, start: str, finish: str) -> None:
        """Follow what happens to tasks; to be called for every transition."""
        if not self._roots:
            return
        if finish == "no-worker":
            if pool := self._roots.get(key):
                self._push(self._scheduler.tasks[key], pool)
                self._fill_soon()
        elif finish == "waiting":
            # For the first time, or because its result was lost with a worker.
            if key in self._roots and not is_held(task := self._scheduler.tasks[key]):
                self._mark(task)
        elif finish == "forgotten":
            self._roots.pop(key, None)
        if start == "processing":
            self._fill_soon()

    def fill(self) -> None:
        """Send as many of those that wait as there is room for."""
        self._filling = False
        try:
            for pool in list(self._ready):
                self._fill_pool(pool)
        except Exception:
            logger.exception("Could not hold pinned tasks back; they are all sent now.")
            self._let_go()

    def keep_waiting(self) -> None:
        """Have Dask not take those that wait for tasks that cannot run (``no-workers-timeout``)."""
        if not self._scheduler.no_workers_timeout:
            return
        now = monotonic()
        unrunnable = self._scheduler.unrunnable
        for pool, ready in self._ready.items():
            if self._workers_of(pool):
                for _, _, key in ready:
                    task = self._scheduler.tasks.get(key)
                    # Taken out and put in again: Dask relies on the longest waiting being first.
                    if task is not None and unrunnable.pop(task, None) is not None:
                        unrunnable[task] = now

    def _mark(self, task: TaskState) -> None:
        self._require(task, {**(task.resource_restrictions or {}), HELD: 1})

    def _unmark(self, task: TaskState) -> None:
        required = task.resource_restrictions or {}
        self._require(task, {name: n for name, n in required.items() if name != HELD})

    def _require(self, task: TaskState, resources: dict[str, float]) -> None:
        # Few different ones, of a million tasks: nobody changes them, so tasks share them.
        task.resource_restrictions = self._required.setdefault(tuple(resources.items()), resources)

    def _push(self, task: TaskState, pool: str) -> None:
        entry = (task.priority, next(self._numbers), task.key)
        heapq.heappush(self._ready.setdefault(pool, []), entry)

    def _fill_soon(self) -> None:
        # After all that follows from the present event: consumers of a result go before further roots.
        if self._ready and not self._filling:
            self._filling = True
            self._scheduler.loop.asyncio_loop.call_soon(self.fill)

    def _fill_pool(self, pool: str) -> None:
        ready = self._ready[pool]
        queueing = not math.isinf(self._scheduler.WORKER_SATURATION)
        room = self._room(pool) if queueing else len(ready)
        while ready and room > 0:
            _, _, key = heapq.heappop(ready)
            task = self._scheduler.tasks.get(key)
            if task is None or task.state != "no-worker" or not is_held(task):
                continue
            self._unmark(task)
            if not queueing:
                task.worker_restrictions = self._next_of_block(task, pool)
            self._scheduler.transitions({key: "processing"}, f"pools-queue-{monotonic()}")
            task.worker_restrictions = None
            if task.state == "no-worker":
                # It needs something else that is lacking, or its pool has no workers.
                self._mark(task)
                self._push(task, pool)
                break
            room -= 1
        if not ready:
            del self._ready[pool]
            self._blocks.clear()

    def _next_of_block(self, task: TaskState, pool: str) -> set[str] | None:
        """Worker for the next root of a group, as `SchedulerState.decide_worker_rootish_queuing_disabled`."""
        running = [ws for ws in map(self._scheduler.workers.get, self._workers_of(pool)) if _runs(ws)]
        if not running:
            return None
        group = (task.group_key, pool)
        block = self._blocks.get(group)
        if block is None or not block.left or not any(ws.address == block.worker for ws in running):
            least = min(running, key=partial(self._scheduler.worker_objective, task))
            size = math.floor(len(task.group) / self._threads(pool) * least.nthreads)
            block = self._blocks[group] = _Block(least.address, max(1, size))
        block.left -= 1
        return {block.worker}

    def _threads(self, pool: str) -> int:
        return sum(self._scheduler.workers[worker].nthreads for worker in self._workers_of(pool))

    def _room(self, pool: str) -> int:
        """Tasks that the workers of a pool can take, as Dask counts it."""
        return sum(
            dask_internals.free_slots(self._scheduler, self._scheduler.workers[worker])
            for worker in self._workers_of(pool)
        )

    def _let_go(self) -> None:
        waiting = [self._scheduler.tasks[key] for key in self._roots if key in self._scheduler.tasks]
        self._roots.clear()
        self._ready.clear()
        for task in waiting:
            self._unmark(task)
        self._scheduler.transitions(
            {task.key: "processing" for task in waiting if task.state == "no-worker"},
            f"pools-queue-{monotonic()}",
        )
