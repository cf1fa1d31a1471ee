"""Pins, on the scheduler, what arrives without a pin although its name or its inputs have one.

Placement (`dask_pools.placement`) has seen most graphs before; this is for the others: plain dicts,
``client.submit``, frames, graphs that Dask was told not to optimise. It keeps P2P rechunks and shuffles
inside the pool of their consumers, too. It knows tasks and pools, and not who starts workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dask.typing import Key
from distributed import Scheduler

from dask_pools import pins
from dask_pools.dask_internals import P2PBarrierTask, TaskState


class Backstop:
    """Pins tasks that have arrived at a scheduler.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    workers_of : callable
        Gives the addresses of the workers of a pool that tasks may be sent to.
    """

    def __init__(self, scheduler: Scheduler, workers_of: Callable[[str], set[str]]) -> None:
        self._scheduler = scheduler
        self._workers_of = workers_of
        self._barriers: set[Key] = set()

    def pin(self, keys: Iterable[Key]) -> list[TaskState]:
        """Pin those of some tasks that lack a pin; returns those it looked at.

        Parameters
        ----------
        keys : iterable of Key
            Tasks of one graph; those that are not new, or may run anywhere, are left alone.
        """
        free: dict[Key, TaskState] = {}
        pinned: list[TaskState] = []
        barriers: list[TaskState] = []
        for key in keys:
            task = self._scheduler.tasks.get(key)
            if task is None or task.state != "released":
                continue
            if type(task.resource_restrictions) is pins.Placement:
                pinned.append(task)
            elif pins.runs_anywhere(task.annotations):
                continue
            # The name says where the data lives; a requirement may be that of an ambient pool() block.
            elif named := pins.pools_of_task(key, task.run_spec):
                if named != {pins.pool_of_resources(task.resource_restrictions)}:
                    _pin(task, named)
                pinned.append(task)
            elif pins.pool_of_resources(task.resource_restrictions):
                pinned.append(task)
            else:
                free[key] = task
            if isinstance(task.run_spec, P2PBarrierTask):
                barriers.append(task)
        if free and (pinned or _near_pins(free)):
            _follow_inputs(free)
        for barrier in barriers:
            self._barriers.add(barrier.key)
            self._keep_in_pool(barrier)
        return [*pinned, *free.values()]

    def refresh_barriers(self) -> None:
        """Follow workers that came or went: tell P2P barriers which ones their pool has."""
        for key in list(self._barriers):
            barrier = self._scheduler.tasks.get(key)
            if barrier is None:
                self._barriers.discard(key)
            elif isinstance(barrier.run_spec, P2PBarrierTask):
                self._keep_in_pool(barrier)

    def _keep_in_pool(self, barrier: TaskState) -> None:
        # distributed spreads the outputs of a P2P rechunk or shuffle over all workers that its barrier may
        # run on, and ties each to one of them. Workers of other pools could never run the outputs.
        for task in (*barrier.dependents, barrier):
            if pool := pins.pool_of_resources(task.resource_restrictions):
                # A join of two frames has two barriers, and both have to be where its outputs are.
                _pin(barrier, {pool})
                barrier.worker_restrictions = self._workers_of(pool) or None
                return


def _near_pins(free: Mapping[Key, TaskState]) -> bool:
    """Whether any of these tasks reads a pinned result of an earlier graph."""
    return any(
        pins.pool_of_resources(source.resource_restrictions)
        for task in free.values()
        for source in task.dependencies
    )


def _follow_inputs(free: Mapping[Key, TaskState]) -> None:
    """Pin each of these tasks to the pool that holds most of its inputs, in bytes."""
    # Inputs before their consumers, without recursion: graphs are deep.
    stack = list(free.values())
    done: set[Key] = set()
    while stack:
        task = stack[-1]
        waiting = [s for s in task.dependencies if s.key in free and s.key not in done]
        if waiting and task.key not in done:
            stack.extend(waiting)
            continue
        stack.pop()
        if task.key in done:
            continue
        done.add(task.key)
        held: dict[str, float] = {}
        for source in task.dependencies:
            if pool := pins.pool_of_resources(source.resource_restrictions):
                held[pool] = held.get(pool, 0) + source.get_nbytes()
        if held:
            _pin(task, {min(held, key=lambda pool: (-held[pool], pool))})


def _pin(task: TaskState, pools: Iterable[str]) -> None:
    """Pin a task; to several pools only if it was fused from tasks of several."""
    rest = pins.without_pool({"resources": task.resource_restrictions or {}}).get("resources", {})
    task.resource_restrictions = {**rest, **{pins.resource(pool): 0 for pool in pools}}
    task.annotations = {**(task.annotations or {}), "resources": task.resource_restrictions}
