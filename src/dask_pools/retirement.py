"""Taking workers out of a pool without losing what they hold: their results move to others of the same pool.

Dask's own `retire_workers` moves results to any worker, which may be in another data centre. Here they stay
in their pool; where that cannot be, the worker stays, unless somebody ordered that it goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from time import monotonic

from dask.typing import Key
from distributed import Scheduler
from distributed.core import Status

from dask_pools import pins
from dask_pools.dask_internals import TaskState, WorkerState

__all__ = ["retire"]

logger = logging.getLogger(__name__)

AGAIN = 2.0
"""Seconds after which a worker is asked again to take over a result."""

PATIENCE = 300.0
"""Seconds after which a worker is kept whose results could not all be moved."""


async def retire(
    scheduler: Scheduler,
    addresses: Iterable[str],
    mates: Callable[[], set[str]],
    *,
    ordered: bool,
    close: bool = False,
) -> tuple[list[str], list[str]]:
    """Remove workers of one pool from a scheduler once others hold their results.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    addresses : iterable of str
    mates : callable
        Gives the addresses of the workers of the pool that tasks may be sent to.
    ordered : bool
        Whether they go in any case. Tasks that they have are then run elsewhere, and what no other worker of
        the pool can take moves to other pools, unless it has to stay in its own. If not, a worker that has a
        task, or that holds the only copy of a result which nobody in the pool can take, is kept.
    close : bool
        Whether those that are removed are told to end.

    Returns
    -------
    tuple of (list of str, list of str)
        Addresses of those removed, and of those kept. They run no new tasks meanwhile.
    """
    stimulus = f"pools-retire-{monotonic()}"
    leaving = {worker for address in addresses if (worker := scheduler.workers.get(address))}
    if not ordered:
        leaving = {one for one in leaving if not (one.processing or one.long_running or one.actors)}
    before = {worker: worker.status for worker in leaving}
    for worker in leaving:
        _set_status(scheduler, worker, Status.closing_gracefully, stimulus)
    kept: set[WorkerState] = set()
    asked: dict[Key, float] = {}
    deadline = monotonic() + PATIENCE
    while True:
        leaving = {worker for worker in leaving if scheduler.workers.get(worker.address) is worker}
        staying = {
            worker
            for address in mates()
            if (worker := scheduler.workers.get(address)) in scheduler.running and worker not in leaving
        }
        to_move, stuck = _to_move(scheduler, leaving, staying, ordered)
        if stuck and not ordered:
            # Others may be able to give their results to those that stay.
            kept |= stuck
            leaving -= stuck
            for worker in stuck:
                _set_status(scheduler, worker, before[worker], stimulus)
            continue
        if not to_move:
            break
        if monotonic() > deadline:
            logger.warning("Could not move %d results away from workers that go.", len(to_move))
            if not ordered:
                for worker in leaving:
                    _set_status(scheduler, worker, before[worker], stimulus)
                kept |= leaving
                leaving = set()
            break
        _move(scheduler, to_move, asked, stimulus)
        await asyncio.sleep(max(0.01, min(0.5, len(to_move) / 400)))
    for worker in leaving:
        await scheduler.remove_worker(worker.address, expected=True, close=close, stimulus_id=stimulus)
    return sorted(worker.address for worker in leaving), sorted(worker.address for worker in kept)


def _set_status(scheduler: Scheduler, worker: WorkerState, status: Status, stimulus: str) -> None:
    """Change what a worker may be given, on both sides, as Dask does when it retires one."""
    scheduler.handle_worker_status_change(status, worker, stimulus)
    if comm := scheduler.stream_comms.get(worker.address):
        comm.send({"op": "worker-status-change", "status": status.name, "stimulus_id": stimulus})


Places = list[tuple[TaskState, set[WorkerState]]]
"""Results, and the workers that each may go to."""


def _to_move(
    scheduler: Scheduler, leaving: set[WorkerState], staying: set[WorkerState], ordered: bool
) -> tuple[Places, set[WorkerState]]:
    """Find the results that have to move, and the workers that hold what cannot."""
    elsewhere = {worker for worker in scheduler.running if worker not in leaving}
    places: Places = []
    stuck: set[WorkerState] = set()
    for worker in leaving:
        for task in worker.has_what:
            holders = task.who_has or set()
            # A copy in another pool is enough only where this pool is to have no workers any more.
            if holders & (staying or elsewhere):
                continue
            targets = staying
            if not targets and ordered and not pins.stays(task.key):
                targets = elsewhere
            if task.actor or not targets:
                stuck.add(worker)
            else:
                places.append((task, targets))
    return places, stuck


def _move(scheduler: Scheduler, places: Places, asked: dict[Key, float], stimulus: str) -> None:
    """Ask workers to take over results, each the one that holds least."""
    now = monotonic()
    held: dict[WorkerState, int] = {}
    orders: defaultdict[WorkerState, list[Key]] = defaultdict(list)
    for task, targets in places:
        if now - asked.get(task.key, -AGAIN) < AGAIN:
            continue
        asked[task.key] = now
        least = min(targets, key=lambda worker: held.setdefault(worker, worker.nbytes))
        held[least] += task.get_nbytes()
        orders[least].append(task.key)
    for worker, keys in orders.items():
        scheduler.request_acquire_replicas(worker.address, keys, stimulus_id=stimulus)
