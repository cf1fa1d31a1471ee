"""The budget for what was not placed: graphs that Dask was told not to optimise, dicts, and frames.

A graph that is placed is held to the budget there, by the sizes of its arrays. Of others nobody knows
beforehand how large their results will be. So what they would move counts as it is if it is in memory
already; if anything else would cross, the graph is refused whatever the budget.

Knows the tasks on the scheduler and their pins. Until what was asked for has failed, all tasks of a refused
graph require a resource that no worker offers, so that none of them runs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from time import monotonic

from dask.typing import Key
from distributed import Scheduler

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import TaskState
from dask_pools.errors import TransferBudgetError

logger = logging.getLogger(__name__)

ANNOTATION = "pools-budget"
"""Annotation by which the budget of the client, in bytes, travels with a graph that is not placed."""

REFUSED = "pools-refused"
"""The resource that no worker offers."""


def refuse(scheduler: Scheduler, wanted: Collection[Key], tasks: Collection[TaskState]) -> bool:
    """Refuse new tasks if they move more than the budget that came with them; returns whether they were.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    wanted : collection of keys
        The results that the client asked for.
    tasks : collection of TaskState
        The new tasks, pinned, before any of them is sent to a worker.
    """
    budget: int | None = None
    for key in wanted:
        if (task := scheduler.tasks.get(key)) is not None and task.annotations:
            budget = task.annotations.get(ANNOTATION, budget)
    if budget is None:
        return False
    known, unknown = _crossings(tasks)
    if sum(known.values()) <= budget and not unknown:
        return False
    crossings = {**known, **dict.fromkeys(unknown, 0)}
    largest = sorted(crossings, key=lambda crossing: (-crossings[crossing], str(crossing)))[:3]
    error = TransferBudgetError(
        None if unknown else sum(known.values()),
        budget,
        (f"{source} → {target} {key!r}" for key, source, target in largest),
    )
    for task in tasks:
        task.resource_restrictions = {**(task.resource_restrictions or {}), REFUSED: 1}
    # The scheduler is in the middle of taking the graph, and will send what can run.
    scheduler.loop.asyncio_loop.call_soon(_fail, scheduler, wanted, tasks, error)
    return True


def _fail(
    scheduler: Scheduler, wanted: Collection[Key], tasks: Collection[TaskState], error: TransferBudgetError
) -> None:
    """Fail what was asked for, and leave the tasks that it needs as they would be had nobody asked for it.

    Other graphs may share them.
    """
    logger.error("%s", error)
    refused = {task.key for task in tasks}
    for key in wanted:
        if key in refused and key in scheduler.tasks:
            dask_internals.fail_unsent(scheduler, key, error, f"pools-budget-{monotonic()}")
    for task in tasks:
        required = task.resource_restrictions or {}
        task.resource_restrictions = {name: n for name, n in required.items() if name != REFUSED}


_Crossing = tuple[Key, str, str]
"""A result, its pool, and one that reads it."""


def _crossings(tasks: Iterable[TaskState]) -> tuple[dict[_Crossing, int], set[_Crossing]]:
    """List what these tasks read from other pools: what is in memory with its bytes, and what is not."""
    known: dict[_Crossing, int] = {}
    unknown: set[_Crossing] = set()
    for task in tasks:
        pool = pins.pool_of_resources(task.resource_restrictions)
        if pool is None:
            continue
        for source in task.dependencies:
            homes = _homes(source)
            if not homes or pool in homes:
                continue
            crossing = (source.key, homes[0], pool)
            if source.nbytes >= 0:
                known[crossing] = source.nbytes
            else:
                unknown.add(crossing)
    return known, unknown


def _homes(task: TaskState) -> tuple[str, ...]:
    """Pools that hold the result of a task, or that will make it."""
    if task.who_has:
        return tuple(pool for worker in task.who_has for pool in pins.pools_of_resources(worker.resources))
    pool = pins.pool_of_resources(task.resource_restrictions)
    return () if pool is None else (pool,)
