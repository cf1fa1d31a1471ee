"""The scheduler plugin: everything that has to live on the scheduler.

It pins what arrives without a pin although its key or its inputs have one (the backstop), keeps P2P rechunks
inside the pool of their consumers, holds pinned roots back while their pool is busy (`queueing`), fails tasks
whose pool has no workers instead of letting them wait for ever, refuses what would move too much although
nobody placed it (`budget`), passes requests for workers on to whoever can
start some, and looks at the version of workers that join. It knows pools by the resources that workers offer;
it knows neither data centres nor launchers.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from dask.typing import Key
from distributed import Scheduler
from distributed.core import error_message
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps, loads
from distributed.protocol.serialize import Serialize, Serialized, deserialize
from tornado.ioloop import PeriodicCallback

import dask_pools
from dask_pools import budget, pins
from dask_pools.config import propagating, wait_for_workers
from dask_pools.dask_internals import P2PBarrierTask, TaskState
from dask_pools.errors import MixedPoolsError, PoolUnavailableError, VersionMismatchError
from dask_pools.queueing import RootQueue
from dask_pools.traffic import open_account

logger = logging.getLogger(__name__)

NAME = "dask-pools"
"""Name of the plugin on the scheduler; one is enough."""

CHECK_SECONDS = 0.25
OWNER_SECONDS = 10.0
"""An owner that has not been heard of for so long is taken to be gone."""


@dataclass
class Owner:
    """Whoever can start workers: a `PoolCluster`."""

    supply: dict[str, int | None]
    """For each pool it knows the largest number of workers, or None."""
    failed: dict[str, str]
    """For each pool that it could not start workers for, why."""
    heard: float
    """When it was last heard of, in seconds of the monotonic clock."""


@dataclass
class _Missing:
    """A pool without workers that tasks or clients wait for."""

    since: float
    requested: bool = False
    tasks: set[Key] = field(default_factory=set)


class PoolsPlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Keeps pins, and what depends on them, true on the scheduler."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}
        self.seen: set[str] = set()
        self.mismatched: dict[str, str] = {}
        self._missing: dict[str, _Missing] = {}
        self._barriers: set[Key] = set()
        self._checks: set[asyncio.Task[None]] = set()
        self._next_check = 0.0

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to watch; distributed calls this where a client registers the plugin."""
        self.attach(scheduler)

    def attach(self, scheduler: Scheduler) -> None:
        """Begin to watch `scheduler`."""
        self.scheduler = scheduler
        self._queue = RootQueue(scheduler, self._workers_of)
        scheduler.handlers.update(
            pools_status=self.status, pools_request=self.request, pools_supply=self.supply
        )
        for address, worker in scheduler.workers.items():
            if offered := pins.pools_of_resources(worker.resources):
                self.seen.update(offered)
                self._check_version(address)
        check = PeriodicCallback(self._check, CHECK_SECONDS * 1000)
        scheduler.periodic_callbacks[NAME] = check
        check.start()

    async def close(self) -> None:
        """Stop to watch."""
        if check := self.scheduler.periodic_callbacks.pop(NAME, None):
            check.stop()

    # What clients and clusters ask; the names of the handlers are part of the protocol.

    def status(self) -> dict[str, Any]:
        """Pools, who can supply them, and what is wanted, as plain values."""
        now = monotonic()
        self._forget_owners(now)
        pools: dict[str, dict[str, int]] = {}
        for worker in self.scheduler.workers.values():
            for pool in pins.pools_of_resources(worker.resources):
                if worker.address in self._workers_of(pool):
                    counts = pools.setdefault(pool, {"workers": 0, "threads": 0})
                    counts["workers"] += 1
                    counts["threads"] += worker.nthreads
        return {
            "version": dask_pools.__version__,
            "pools": pools,
            "seen": sorted(self.seen),
            "supplied": {pool: n for owner in self.owners.values() for pool, n in owner.supply.items()},
            "failed": {pool: why for owner in self.owners.values() for pool, why in owner.failed.items()},
            "wanted": {pool: now - missing.since for pool, missing in self._missing.items()},
            "mismatched": dict(self.mismatched),
        }

    def request(self, pool: str, waited: float, patience: float) -> str | bool:
        """Ask for workers of `pool`, having waited some seconds of those that one is ready to wait.

        Returns
        -------
        str or bool
            True if it has workers, False if some may come, or why nobody should wait longer.
        """
        if self._workers_of(pool):
            return True
        if reason := self._reason_to_give_up(pool, waited, patience):
            return reason
        self._missing.setdefault(pool, _Missing(monotonic())).requested = True
        return False

    def supply(
        self, owner: str, supply: Mapping[str, int | None], failed: Mapping[str, str]
    ) -> dict[str, list[str]]:
        """Hear from an owner what it can supply and what failed; answers which pools are wanted."""
        self.owners[owner] = Owner(dict(supply), dict(failed), monotonic())
        return {"wanted": sorted(self._missing)}

    # Graphs that arrive.

    def update_graph(
        self, scheduler: Scheduler, *, tasks: Iterable[Key], keys: Collection[Key], **_: Any
    ) -> None:
        """Pin new tasks that lack a pin, before any of them is sent to a worker."""
        if not propagating():
            return
        free: dict[Key, TaskState] = {}
        pinned: list[TaskState] = []
        barriers: list[TaskState] = []
        for key in tasks:
            task = scheduler.tasks.get(key)
            if (
                task is None
                or task.state != "released"
                or pins.ANYWHERE.items() <= (task.annotations or {}).items()
            ):
                continue
            required = pins.pool_of_resources(task.resource_restrictions)
            # The name says where the data lives; a requirement may be that of an ambient pool() block.
            if named := pins.pools_of_task(key, task.run_spec):
                if named != {required}:
                    self._pin(task, named)
                pinned.append(task)
            elif required:
                pinned.append(task)
            else:
                free[key] = task
            if isinstance(task.run_spec, P2PBarrierTask):
                barriers.append(task)
        if free and (pinned or self._near_pins(free)):
            self._follow_inputs(free)
        for barrier in barriers:
            self._barriers.add(barrier.key)
            self._keep_in_pool(barrier)
        arrived = (*pinned, *free.values())
        if not budget.refuse(scheduler, keys, arrived):
            self._queue.hold(arrived)

    def transition(self, key: Key, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Follow what happens to tasks."""
        self._queue.transition(key, start, finish)

    def _near_pins(self, free: Mapping[Key, TaskState]) -> bool:
        """Whether any of these tasks reads a pinned result of an earlier graph."""
        return any(
            pins.pool_of_resources(source.resource_restrictions)
            for task in free.values()
            for source in task.dependencies
        )

    def _follow_inputs(self, free: dict[Key, TaskState]) -> None:
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
                self._pin(task, {min(held, key=lambda pool: (-held[pool], pool))})

    def _pin(self, task: TaskState, pools: Iterable[str]) -> None:
        """Pin a task; to several pools only if it was fused from tasks of several."""
        rest = pins.without_pool({"resources": task.resource_restrictions or {}}).get("resources", {})
        task.resource_restrictions = {**rest, **{pins.resource(pool): 0 for pool in pools}}
        task.annotations = {**(task.annotations or {}), "resources": task.resource_restrictions}

    # P2P: distributed spreads the outputs of a P2P rechunk or shuffle over all workers that its barrier may
    # run on, and ties each to one of them. Workers of other pools could never run the outputs.

    def _keep_in_pool(self, barrier: TaskState) -> None:
        for task in (*barrier.dependents, barrier):
            if pool := pins.pool_of_resources(task.resource_restrictions):
                # A join of two frames has two barriers, and both have to be where its outputs are.
                self._pin(barrier, {pool})
                barrier.worker_restrictions = self._workers_of(pool) or None
                return

    def _refresh_barriers(self) -> None:
        for key in list(self._barriers):
            barrier = self.scheduler.tasks.get(key)
            if barrier is None:
                self._barriers.discard(key)
            elif isinstance(barrier.run_spec, P2PBarrierTask):
                self._keep_in_pool(barrier)

    # Workers that come and go. A pool counts a worker only when its version is known to be ours: the guard
    # and the opener run there.

    def _workers_of(self, pool: str) -> set[str]:
        """Addresses of the workers of `pool` that pinned tasks may be sent to."""
        offers = self.scheduler.resources.get(pins.resource(pool), {})
        return {worker for worker, offered in offers.items() if offered >= 0}

    def _offer(self, worker: str, *, open_: bool) -> None:
        """Have the scheduler send pinned tasks to a worker, or not."""
        for name, quantity in self.scheduler.workers[worker].resources.items():
            if name.startswith(pins.RESOURCE_PREFIX):
                # A pin requires 0 of the resource, so a worker that offers less gets none.
                self.scheduler.resources[name][worker] = quantity if open_ else -1

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Hold pinned tasks back from a worker that joins until its version is known."""
        if pins.pools_of_resources(scheduler.workers[worker].resources):
            self._offer(worker, open_=False)
            # Not awaited: a worker answers nothing before the scheduler has greeted it, which is after this.
            self._check_version(worker)

    def _check_version(self, worker: str) -> None:
        check = asyncio.create_task(self._admit(worker))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _admit(self, worker: str) -> None:
        """Send pinned tasks to a worker if it has our version of this package, else tell everybody."""
        while (version := await self._version_of(worker)) is None:
            if worker not in self.scheduler.workers:
                return
            await asyncio.sleep(1)
        if version == dask_pools.__version__:
            await self._open_account(worker)
        state = self.scheduler.workers.get(worker)
        if state is None:
            return
        if version != dask_pools.__version__:
            self._offer(worker, open_=False)
            self.mismatched[worker] = version
            error = VersionMismatchError({f"worker {worker}": version}, dask_pools.__version__)
            logger.error("%s", error)
            # Clients show events of this topic as warnings.
            self.scheduler.log_event("warn", f"Worker {worker} gets no pinned tasks. {error}")
            return
        self._offer(worker, open_=True)
        for pool in pins.pools_of_resources(state.resources):
            self.seen.add(pool)
            self._missing.pop(pool, None)
        self._refresh_barriers()
        self.scheduler.transitions(
            self.scheduler.bulk_schedule_unrunnable_after_adding_worker(state), f"pools-admit-{monotonic()}"
        )
        self._queue.fill()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Note that a worker left."""
        self.mismatched.pop(worker, None)
        self._refresh_barriers()

    async def _version_of(self, worker: str) -> str | None:
        """Version of this package on a worker; None if it left meanwhile."""
        question = dumps(partial(pkgutil.resolve_name, "dask_pools:__version__"))
        try:
            answer = await asyncio.wait_for(self.scheduler.rpc(worker).run(function=question), timeout=30)
        except (TimeoutError, OSError):
            return None
        if answer["status"] != "OK":
            return "not installed"
        result = answer["result"]
        if isinstance(result, Serialized):  # a scheduler does not unpack what passes through it
            result = deserialize(result.header, result.frames)
        elif isinstance(result, Serialize):  # from a worker in the same process
            result = result.data
        return str(loads(result) if isinstance(result, bytes) else result)

    async def _open_account(self, worker: str) -> None:
        """Have a worker count what it sends, P2P included, from before its first pinned task."""
        try:
            await asyncio.wait_for(self.scheduler.rpc(worker).run(function=dumps(open_account)), timeout=30)
        except (TimeoutError, OSError):
            # It left, or is very busy: then it begins when somebody asks for the traffic.
            logger.info("Worker %s did not open an account of its traffic.", worker)

    # Pools without workers.

    def _forget_owners(self, now: float) -> None:
        for name, owner in list(self.owners.items()):
            if now - owner.heard > OWNER_SECONDS:
                del self.owners[name]

    def _check(self) -> None:
        """Ask for pools that tasks wait for, and fail those tasks if nobody will bring workers."""
        now = monotonic()
        if now < self._next_check:
            return
        for missing in self._missing.values():
            missing.tasks.clear()
        stuck: dict[Key, tuple[str, ...]] = {}
        self._queue.keep_waiting()
        # There may be a million tasks, which require few different things.
        looked: dict[tuple[str, ...], tuple[tuple[str, ...], list[str]]] = {}
        for task in self.scheduler.unrunnable:
            required = tuple(task.resource_restrictions or ())
            if required not in looked:
                pools = pins.pools_of_resources(task.resource_restrictions)
                looked[required] = pools, [pool for pool in pools if not self._workers_of(pool)]
            pools, lacking = looked[required]
            for pool in lacking:
                self._missing.setdefault(pool, _Missing(now)).tasks.add(task.key)
            if len(pools) > 1 and not lacking:
                stuck[task.key] = pools
        errors: dict[Key, Exception] = {
            key: MixedPoolsError(f"What task {key!r} reads, which Dask fused into one task,", pools)
            for key, pools in stuck.items()
        }
        for pool, missing in list(self._missing.items()):
            if self._workers_of(pool):
                del self._missing[pool]
            elif reason := self._reason_to_give_up(pool, now - missing.since, wait_for_workers()):
                existing = self.status()["pools"]
                errors.update(dict.fromkeys(missing.tasks, PoolUnavailableError(pool, existing, reason)))
                del self._missing[pool]
            elif not missing.tasks and not missing.requested:
                del self._missing[pool]
        if errors:
            self._fail(errors)
        # A look at very many tasks is not to keep the scheduler from its work.
        self._next_check = monotonic() + 10 * (monotonic() - now)

    def _reason_to_give_up(self, pool: str, waited: float, patience: float) -> str | None:
        """Say why nobody should wait longer for workers of `pool`, and what to type; None: go on waiting."""
        self._forget_owners(monotonic())
        start = (
            f"one in that data centre: dask worker {self.scheduler.address} "
            f"--resources {pins.resource(pool)}=1."
        )
        for owner in self.owners.values():
            if pool in owner.failed:
                return f"Starting some failed: {owner.failed[pool]}."
        if refused := [
            f"{worker} ({version})"
            for worker, version in self.mismatched.items()
            if pool in pins.pools_of_resources(self.scheduler.workers[worker].resources)
        ]:
            return (
                f"Workers that joined for it have another version of intake-pools than this scheduler: "
                f"{', '.join(sorted(refused))}. On each of them: "
                f"pip install intake-pools=={dask_pools.__version__}."
            )
        supplied = {
            other for owner in self.owners.values() for other, most in owner.supply.items() if most != 0
        }
        joining = any(pool in pins.pools_of_resources(w.resources) for w in self.scheduler.workers.values())
        if pool not in supplied and pool not in self.seen and not joining:
            near = difflib.get_close_matches(pool, sorted(supplied | self.seen), n=1)
            asleep = sorted(other for other in supplied if not self._workers_of(other))
            return (
                "Nobody connected can start any. "
                + (f"Did you mean {near[0]!r}? Otherwise start {start}" if near else f"Start {start}")
                + (f" Pools that can be had: {', '.join(map(repr, asleep))}." if asleep else "")
            )
        if waited > patience:
            how = (
                f"cluster.scale({pool!r}, 1) asks for one again, cluster.get_logs() may say what went wrong."
                if pool in supplied
                else f"It had some earlier. To start {start}"
            )
            return f"None came within {patience:g} s (setting pools.wait-for-workers). {how}"
        return None

    def _fail(self, errors: Mapping[Key, Exception]) -> None:
        stimulus_id = f"pools-{monotonic()}"
        recommendations: dict[Key, str] = {}
        for message in {str(error) for error in errors.values()}:
            logger.error("%s", message)
        for key, error in errors.items():
            recommendations.update(
                self.scheduler.transition(
                    key,
                    "erred",
                    exception=error_message(error)["exception"],
                    cause=key,
                    stimulus_id=stimulus_id,
                )
            )
        self.scheduler.transitions(recommendations, stimulus_id=stimulus_id)


def install(scheduler: Scheduler) -> PoolsPlugin:
    """Add the plugin to a scheduler of this process, unless it has it; to be called in its event loop."""
    plugin: PoolsPlugin | None = scheduler.plugins.get(NAME)
    if plugin is None:
        plugin = PoolsPlugin()
        scheduler.add_plugin(plugin, idempotent=True)
        plugin.attach(scheduler)
    return plugin


def install_here(dask_scheduler: Scheduler) -> None:
    """Add the plugin; for ``client.run_on_scheduler(install_here)``."""
    install(dask_scheduler)


def install_from_thread(scheduler: Scheduler) -> None:
    """Add the plugin from another thread, such as the one that optimises graphs.

    The event loop does so before it goes on with a graph that is being optimised at this moment.
    """
    if NAME not in scheduler.plugins:
        scheduler.loop.add_callback(install, scheduler)


def dask_setup(scheduler: Scheduler) -> None:
    """Add the plugin to a scheduler started with ``dask scheduler --preload dask_pools.scheduler``."""
    install(scheduler)
