"""How many workers a pool should have, by what it has to do: one function over plain numbers.

Pools grow at once, as far as their work asks for, and shrink slowly: a worker goes when it has had no task
for a while, so that a load that comes and goes does not start and stop workers all the time. It never goes
while only it, or only its pool, holds a result that somebody still wants and nobody of the pool can take.

This module knows neither clusters nor schedulers, and keeps nothing between two decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dask_pools.demand import PoolLoad, WorkerLoad

__all__ = ["Bounds", "Decision", "decide", "workers_needed"]

FULL = 0.6
"""Share of their memory that results may fill before there should be more workers; Dask's own threshold."""


@dataclass(frozen=True)
class Bounds:
    """How far and how fast a pool adapts."""

    minimum: int = 0
    """The fewest workers."""
    maximum: int | None = None
    """The most workers; None for no limit."""
    target: float = 5.0
    """Seconds in which what is to be done should be done: the shorter, the more workers."""
    idle: float = 60.0
    """Seconds without a task after which a worker may go."""


@dataclass(frozen=True)
class Decision:
    """What is to be done about the workers of a pool."""

    wanted: int
    """How many there should be, besides those that go; never less than there are."""
    go: tuple[str, ...] = ()
    """Names of workers that may go, if their results can be moved within the pool."""
    withdraw: int = 0
    """How many of the requested ones that have not joined yet are needed no more."""


def workers_needed(load: PoolLoad, bounds: Bounds, threads: int) -> int:
    """Count the workers that the work of a pool asks for, within its bounds.

    As `distributed.Scheduler.adaptive_target` has it: enough threads to do in the target duration what can be
    done now, not more than there are tasks, and more workers where results fill the memory.

    Parameters
    ----------
    load : PoolLoad
    bounds : Bounds
    threads : int
        Of one worker.
    """
    tasks = load.queued + load.processing
    by_time = min(tasks, math.ceil(load.seconds / bounds.target))
    needed = math.ceil(by_time / max(1, threads))
    held = sum(worker.nbytes for worker in load.workers)
    memory = max((worker.memory for worker in load.workers), default=0)
    if tasks and memory:
        needed = max(needed, math.ceil(held / (FULL * memory)))
    if tasks or load.later:
        needed = max(needed, 1)
    needed = max(needed, bounds.minimum)
    return needed if bounds.maximum is None else min(needed, bounds.maximum)


def decide(load: PoolLoad, starting: int, bounds: Bounds, threads: int = 1) -> Decision:
    """Decide on the workers of a pool.

    Parameters
    ----------
    load : PoolLoad
        What it has to do, and its workers, without those that are about to go.
    starting : int
        Workers that have been requested and have not joined yet.
    bounds : Bounds
    threads : int
        Of one worker.
    """
    needed = workers_needed(load, bounds, threads)
    present = len(load.workers) + starting
    if needed >= present:
        return Decision(needed)
    # Requests that stand in a queue are not taken back because there is nothing to do at the moment.
    withdraw = min(starting, present - needed) if load.quiet >= bounds.idle else 0
    # Those who have not come yet cannot take over any results, and may never come.
    spare = min(len(load.workers), present - withdraw - needed)
    if load.queued:
        spare = 0
    go = _choose(load.workers, spare, bounds.idle)
    return Decision(present - withdraw - len(go), go, withdraw)


def _choose(workers: Sequence[WorkerLoad], most: int, idle: float) -> tuple[str, ...]:
    """Choose workers that may go: idle for long enough, those that hold least first."""
    candidates = sorted((w for w in workers if w.idle >= idle), key=lambda w: (w.sole, w.nbytes, w.name))
    room = sum(FULL * worker.memory for worker in workers)
    limited = all(worker.memory for worker in workers)
    held = sum(worker.nbytes for worker in workers)
    staying = len(workers)
    go: list[str] = []
    for worker in candidates[: max(0, most)]:
        # The last ones of a pool go only if they hold nothing that is not elsewhere too.
        alone = staying == 1
        if alone and any(one.sole for one in workers):
            break
        room -= FULL * worker.memory
        if not alone and limited and held > room:
            break
        go.append(worker.name)
        staying -= 1
    return tuple(go)
