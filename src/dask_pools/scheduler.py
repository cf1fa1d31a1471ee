"""The scheduler plugin: everything that has to live on the scheduler.

It pins what arrives without a pin although its key or its inputs have one (`backstop`), holds pinned roots
back while their pool is busy (`queueing`), fails tasks whose pool has no workers instead of letting them wait
for ever, refuses what would move too much although nobody placed it (`budget`), passes requests for workers
on to whoever can start some, tells them how much each pool has to do (`demand`), takes workers out of pools
(`retirement`), and looks at the version of workers that join. It knows pools by the resources that workers
offer, and neither data centres nor launchers.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
from dask_pools.backstop import Backstop
from dask_pools.config import propagating, wait_for_workers
from dask_pools.dask_internals import TaskPrefix, TaskState
from dask_pools.demand import Gauge
from dask_pools.errors import MixedPoolsError, PoolUnavailableError, VersionMismatchError
from dask_pools.queueing import RootQueue
from dask_pools.retirement import retire
from dask_pools.traffic import open_account

logger = logging.getLogger(__name__)

NAME = "dask-pools"
"""Name of the plugin on the scheduler; one is enough."""

CHECK_SECONDS = 0.25
OWNER_SECONDS = 10.0
"""An owner that has not been heard of for so long is taken to be gone."""


TOPIC = "dask-pools"
"""Topic of the scheduler's events under which what happens to pools is told."""

NO_POOLS = "the scheduler there has no pools; start it with --preload dask_pools.scheduler"
"""What is wrong with a scheduler without the plugin."""


@dataclass(frozen=True)
class Supply:
    """One pool, as whoever can start workers for it tells."""

    maximum: int | None = None
    """The most workers that there can be."""
    provision: str = "auto"
    """Whether workers come by themselves, after somebody has been asked, or never."""
    timeout: float | None = None
    """Seconds to wait for a first worker; None: as those who wait wish."""
    askers: tuple[str, ...] | None = None
    """Users who may ask for workers; None for everybody."""
    first: int = 1
    """How many come when it has none and is wanted."""
    wanted: int = 0
    """How many workers there should be."""
    requested: int = 0
    """How many its launcher has been asked for, those that have joined among them."""
    starting: int = 0
    """How many of these have not joined yet."""
    failed: str | None = None
    """Why there are fewer than there should be, if that was given up."""
    failed_for: float = 0.0
    """Seconds since then."""
    refuses: bool = False
    """Whether that is so recent that who asks now is to be told, instead of a new attempt."""
    idle: float | None = None
    """If it adapts, the seconds without a task after which a worker may go."""
    hours: float = 0.0
    """Hours that its workers have run, added up."""

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Supply:
        """Make one of what arrived over the wire."""
        askers = message.get("askers")
        return cls(**{**message, "askers": None if askers is None else tuple(askers)})


@dataclass
class Owner:
    """Whoever can start workers: a `PoolCluster`."""

    pools: dict[str, Supply]
    names: dict[str, str]
    """For each worker that it is starting or has started, its pool."""
    dismissed: set[str]
    """Names of workers that it does not want any more; they may come all the same."""
    heard: float
    """When it was last heard of, in seconds of the monotonic clock."""


@dataclass
class _Missing:
    """A pool without workers that tasks or clients wait for."""

    since: float
    requested: bool = False
    """Whether somebody asked who may ask."""
    loose: bool = False
    """Whether tasks that may run anywhere wait for a worker, of this pool as well as of any."""
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
        self._checks: set[asyncio.Task[None]] = set()
        self._next_check = 0.0
        self._rejected: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._news = asyncio.Event()

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to watch; distributed calls this where a client registers the plugin."""
        self.attach(scheduler)

    def attach(self, scheduler: Scheduler) -> None:
        """Begin to watch `scheduler`."""
        self.scheduler = scheduler
        self._backstop = Backstop(scheduler, self._workers_of)
        self._queue = RootQueue(scheduler, self._workers_of)
        self._gauge = Gauge(scheduler, self._workers_of)
        scheduler.handlers.update(
            pools_status=self.status,
            pools_request=self.request,
            pools_supply=self.supply,
            pools_retire=self.retire,
            retire_workers=self.retire_workers,
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
        supplies = self._supplies()
        loads = self._gauge.measure({*supplies, *pools, *self._missing})
        return {
            "version": dask_pools.__version__,
            "pools": pools,
            "seen": sorted(self.seen),
            "supplied": {pool: supply.maximum for pool, supply in supplies.items()},
            "supplies": {pool: asdict(supply) for pool, supply in supplies.items()},
            "failed": {pool: supply.failed for pool, supply in supplies.items() if supply.failed},
            "wanted": {pool: now - missing.since for pool, missing in self._missing.items()},
            "loads": {pool: load.message() for pool, load in loads.items()},
            "mismatched": dict(self.mismatched),
        }

    def _supplies(self) -> dict[str, Supply]:
        return {pool: supply for owner in self.owners.values() for pool, supply in owner.pools.items()}

    def request(
        self,
        pools: Iterable[str],
        waited: float,
        patience: float | None,
        default_patience: float,
        provision: str | None = None,
        approved: bool = False,
        user: str = "",
    ) -> dict[str, dict[str, Any]]:
        """Ask for workers of some pools, having waited some seconds.

        Parameters
        ----------
        pools : iterable of str
        waited : float
            Seconds.
        patience : float or None
            Seconds that one is ready to wait; None: as many as a pool is said to take.
        default_patience : float
            Seconds to wait where that is not said.
        provision : {"auto", "ask", "never"}, optional
            Replaces what a pool is set to, unless that is ``"never"``.
        approved : bool
            Whether somebody has been asked and agrees.
        user : str
            Who asks.

        Returns
        -------
        dict
            For each pool: whether it has workers (``ready``); whether somebody has to agree first (``ask``);
            why nobody should wait longer (``refused``); for how long to wait at most (``patience``); how many
            workers have been ``requested``, come ``first``, and there can be (``maximum``).
        """
        self._forget_owners(monotonic())
        answers: dict[str, dict[str, Any]] = {}
        for pool in pools:
            supply = self._supplies().get(pool)
            limit = patience
            if limit is None:
                limit = supply.timeout if supply and supply.timeout else default_patience
            answer: dict[str, Any] = {"ready": False, "ask": False, "refused": None, "requested": 0}
            answer |= {"patience": limit, "first": 1, "maximum": None}
            answers[pool] = answer
            self._gauge.asked(pool)
            if self._workers_of(pool):
                answer["ready"] = True
                continue
            if supply is not None:
                answer |= {
                    "requested": supply.requested,
                    "first": supply.first,
                    "maximum": supply.maximum,
                }
            policy = supply.provision if supply else "auto"
            if provision is not None and policy != "never":
                policy = provision
            coming = self._is_coming(pool)
            refused = self._reason_to_give_up(pool, waited, limit)
            if refused is None and not coming:
                refused = self._not_allowed(pool, supply, policy, user)
            if refused is not None:
                answer["refused"] = refused
            elif policy == "ask" and not approved and not coming:
                answer["ask"] = True
            else:
                missing = self._missing.setdefault(pool, _Missing(monotonic()))
                if not missing.requested:
                    missing.requested = True
                    self.scheduler.log_event(TOPIC, {"action": "asked", "pool": pool, "user": user})
                    self._news.set()
        return answers

    def _is_coming(self, pool: str) -> bool:
        """Whether workers of a pool have been asked for already, so that nobody has to agree any more."""
        supply = self._supplies().get(pool)
        missing = self._missing.get(pool)
        return bool(supply and supply.wanted) or bool(missing and missing.requested)

    def _not_allowed(self, pool: str, supply: Supply | None, policy: str, user: str) -> str | None:
        """Say why a pool may not be brought up by asking, and what to type; None if it may."""
        scale = f"Whoever runs the cluster can: cluster.scale({pool!r}, 1)."
        if policy == "never":
            return f"It is not to be brought up by asking (provision: never). {scale}"
        if supply is not None and supply.askers is not None and user not in supply.askers:
            if user:
                return f"{user!r} is not among those who may ask for it. {scale}"
            ask = f"dask_pools.provision.ensure_workers(client, {pool!r}) asks in your name."
            return f"Only some may ask for it (askers), and tasks do not say whose they are: {ask} {scale}"
        return None

    async def supply(
        self,
        owner: str,
        pools: Mapping[str, Mapping[str, Any]],
        names: Mapping[str, str],
        dismissed: Iterable[str],
        events: Iterable[Mapping[str, Any]] = (),
        patience: float = 0.0,
    ) -> dict[str, Any]:
        """Hear from an owner how its pools stand; answers what they have to do, and which are wanted.

        Parameters
        ----------
        owner : str
        pools : mapping of str to mapping
            `Supply`, by pool.
        names : mapping of str to str
            For each worker that it is starting or has started, its pool.
        dismissed : iterable of str
            Names of workers that are to be sent home should they come.
        events : iterable of mapping
            What has happened.
        patience : float
            Seconds to wait with the answer unless there is news.
        """
        supplied = {pool: Supply.of(supply) for pool, supply in pools.items()}
        self.owners[owner] = Owner(supplied, dict(names), set(dismissed), monotonic())
        for event in events:
            self.scheduler.log_event(TOPIC, dict(event))
        for address, worker in list(self.scheduler.workers.items()):
            self._send_home(address, str(worker.name))
            if address in self.mismatched:
                self._reject_old(address)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), patience)
        self._news.clear()
        rejected = {name: why for name, why in self._rejected.items() if name in names}
        for name in rejected:
            del self._rejected[name]
        for pool in self._missing:
            self._gauge.asked(pool)
        idle = {pool: one.idle for pool, one in supplied.items() if one.idle is not None}
        loads = self._gauge.measure(idle, idle)  # nobody asks about those that do not adapt
        return {
            "wanted": [pool for pool in sorted(self._missing) if self._may_come(pool)],
            "rejected": rejected,
            "loads": {pool: load.message() for pool, load in loads.items()},
        }

    def _may_come(self, pool: str) -> bool:
        """Whether the workers that a pool lacks may be started now."""
        missing, supply = self._missing[pool], self._supplies().get(pool)
        return missing.requested or supply is None or (supply.provision == "auto" and supply.askers is None)

    async def retire(self, pool: str, names: Iterable[str], ordered: bool) -> list[str]:
        """Take workers out of a pool (`dask_pools.retirement.retire`); answers with the names of those gone.

        Parameters
        ----------
        pool : str
        names : iterable of str
        ordered : bool
            Whether they go even if they have a task, or a result that nobody in the pool can take over.
        """
        wanted = set(names)
        addresses = {
            address: str(w.name) for address, w in self.scheduler.workers.items() if w.name in wanted
        }
        await self._take_out(pool, addresses, ordered=ordered)
        # Those that had left already are gone as well.
        return sorted(wanted - {addresses[a] for a in addresses if a in self.scheduler.workers})

    async def _take_out(
        self, pool: str, addresses: Mapping[str, str], *, ordered: bool, close: bool = False
    ) -> list[str]:
        """Take workers, names by address, out of a pool; the addresses of those gone."""
        self._leaving.update(addresses)
        try:
            gone, kept = await retire(
                self.scheduler, list(addresses), lambda: self._workers_of(pool), ordered=ordered, close=close
            )
        finally:
            self._leaving.difference_update(addresses)
        self.scheduler.log_event(
            TOPIC,
            {
                "action": "retired",
                "pool": pool,
                "workers": [addresses[address] for address in gone],
                "kept": [addresses[address] for address in kept],
            },
        )
        if kept:
            self._queue.fill()
        return gone

    async def retire_workers(
        self,
        workers: Iterable[str] | None = None,
        *,
        names: Iterable[Any] | None = None,
        close_workers: bool = False,
        remove: bool = True,
        stimulus_id: str | None = None,
        **choice: Any,
    ) -> dict[str, Any]:
        """Retire workers, those of pools within their pools; in place of Dask's own, which knows none.

        Workers ask for it when their time is up (``--lifetime``), and so does `Client.retire_workers`.

        Parameters
        ----------
        workers, names, close_workers, remove, stimulus_id, **choice
            As of `distributed.Scheduler.retire_workers`.

        Returns
        -------
        dict
            Those retired, by address.
        """
        scheduler = self.scheduler
        if names is not None:
            chosen = set(map(str, names))
            found = [one for one in scheduler.workers.values() if str(one.name) in chosen]
        else:
            chosen = set(scheduler.workers_to_close(**choice) if workers is None else workers)
            found = [one for one in scheduler.workers.values() if one.address in chosen]
        identities = {one.address: one.identity() for one in found}
        others: list[str] = []
        of_pools: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for one in found:
            pools = pins.pools_of_resources(one.resources)
            # Actors cannot be moved: Dask keeps workers that have some. It also knows how to move results
            # away from a worker that stays.
            if pools and remove and not one.actors:
                of_pools[pools[0]][one.address] = str(one.name)
            else:
                others.append(one.address)
        gone = await asyncio.gather(
            *(
                self._take_out(pool, addresses, ordered=True, close=close_workers)
                for pool, addresses in of_pools.items()
            )
        )
        retired = {address: identities[address] for several in gone for address in several}
        if others:
            retired |= await scheduler.retire_workers(
                others, close_workers=close_workers, remove=remove, stimulus_id=stimulus_id
            )
        return retired

    # Graphs that arrive.

    def update_graph(
        self, scheduler: Scheduler, *, tasks: Iterable[Key], keys: Collection[Key], **_: Any
    ) -> None:
        """Pin new tasks that lack a pin, before any of them is sent to a worker."""
        if not propagating():
            return
        arrived = self._backstop.pin(tasks)
        if budget.refuse(scheduler, keys, arrived):
            return
        # There may be a million tasks, of few groups, which mostly require the same.
        alike: dict[tuple[str, ...], list[TaskState]] = {}
        for task in arrived:
            alike.setdefault((task.group_key, *(task.resource_restrictions or ())), []).append(task)
        self._foresee(several[0] for several in alike.values())
        self._queue.hold(alike.values())

    def _foresee(self, tasks: Iterable[TaskState]) -> None:
        """Ask for all the pools that new tasks need, of which these are samples, before any is sent."""
        needed = set()
        for task in tasks:
            for pool in pins.pools_of_resources(task.resource_restrictions):
                self._gauge.expect(task, pool)
                needed.add(pool)
        supplies = self._supplies()
        for pool in needed:
            if pool in supplies and not self._workers_of(pool):
                self._missing.setdefault(pool, _Missing(monotonic()))
                self._news.set()

    def transition(self, key: Key, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Follow what happens to tasks."""
        self._queue.transition(key, start, finish)
        if finish == "processing":
            self._gauge.sent(key)

    # Workers that come and go. A pool counts a worker only when its version is known to be ours: the guard
    # and the opener run there.

    def _workers_of(self, pool: str) -> set[str]:
        """Addresses of the workers of `pool` that pinned tasks may be sent to."""
        offers = self.scheduler.resources.get(pins.resource(pool), {})
        return {worker for worker, offered in offers.items() if offered >= 0 and worker not in self._leaving}

    def _offer(self, worker: str, *, open_: bool) -> None:
        """Have the scheduler send pinned tasks to a worker, or not."""
        for name, quantity in self.scheduler.workers[worker].resources.items():
            if name.startswith(pins.RESOURCE_PREFIX):
                # A pin requires 0 of the resource, so a worker that offers less gets none.
                self.scheduler.resources[name][worker] = quantity if open_ else -1

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Hold pinned tasks back from a worker that joins until its version is known."""
        state = scheduler.workers[worker]
        self._gauge.joined(worker)
        if pins.pools_of_resources(state.resources):
            self._offer(worker, open_=False)
        if self._send_home(worker, str(state.name)):
            return
        if pins.pools_of_resources(state.resources):
            # Not awaited: a worker answers nothing before the scheduler has greeted it, which is after this.
            self._check_version(worker)

    def _send_home(self, address: str, name: str) -> bool:
        """Close a worker that its owner does not want any more, or that is not what it asked for."""
        offered = pins.pools_of_resources(self.scheduler.workers[address].resources)
        for owner in self.owners.values():
            if name in owner.dismissed:
                why = "it came after its request had been withdrawn"
            elif name in owner.names and owner.names[name] not in offered:
                pools = ", ".join(map(repr, offered)) or "no pool"
                why = f"it offers {pools} instead of {owner.names[name]!r}"
                self._reject(name, why)
            else:
                continue
            logger.warning("Worker %s is sent home: %s.", name, why)
            self.scheduler.log_event(TOPIC, {"action": "sent home", "worker": name, "why": why})
            self.scheduler.close_worker(address)
            return True
        return False

    def _reject(self, name: str, why: str) -> None:
        """Tell whoever started a worker that it is of no use."""
        if any(name in owner.names for owner in self.owners.values()):
            self._rejected[name] = why
            self._news.set()

    def _reject_old(self, address: str) -> None:
        """Tell whoever started a worker of another version that it is of no use."""
        name = str(self.scheduler.workers[address].name)
        self._reject(
            name, f"it has intake-pools {self.mismatched[address]}, but {dask_pools.__version__} is needed"
        )

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
            self._reject_old(worker)
            return
        self._offer(worker, open_=True)
        for pool in pins.pools_of_resources(state.resources):
            self.seen.add(pool)
            self._missing.pop(pool, None)
        self._backstop.refresh_barriers()
        self.scheduler.transitions(
            self.scheduler.bulk_schedule_unrunnable_after_adding_worker(state), f"pools-admit-{monotonic()}"
        )
        self._queue.fill()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Note that a worker left."""
        self.mismatched.pop(worker, None)
        self._gauge.left(worker)
        self._leaving.discard(worker)
        self._backstop.refresh_barriers()

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
            missing.loose = False
        stuck: dict[Key, tuple[str, ...]] = {}
        self._queue.keep_waiting()
        # There may be a million tasks, which require few different things.
        looked: dict[tuple[str, ...], tuple[tuple[str, ...], list[str]]] = {}
        queued: dict[str, Counter[TaskPrefix]] = {}
        loose = bool(self.scheduler.queued)
        for task in self.scheduler.unrunnable:
            required = tuple(task.resource_restrictions or ())
            if required not in looked:
                pools = pins.pools_of_resources(task.resource_restrictions)
                looked[required] = pools, [pool for pool in pools if not self._workers_of(pool)]
            pools, lacking = looked[required]
            loose = loose or not pools
            for pool in pools:
                queued.setdefault(pool, Counter())[task.prefix] += 1
            for pool in lacking:
                if pool not in self._missing:
                    self._missing[pool] = _Missing(now)
                    self._news.set()
                self._missing[pool].tasks.add(task.key)
            if len(pools) > 1 and not lacking:
                stuck[task.key] = pools
        self._gauge.set_queued(queued)
        if loose and not self.scheduler.workers:
            self._wake_any(now)
        to_come = self._gauge.pools_to_come()
        errors: dict[Key, Exception] = {
            key: MixedPoolsError(f"What task {key!r} reads, which Dask fused into one task,", pools)
            for key, pools in stuck.items()
        }
        for pool, missing in list(self._missing.items()):
            if self._workers_of(pool):
                del self._missing[pool]
            elif not missing.tasks and not missing.requested and not missing.loose:
                # Tasks that wait for others keep it wanted; they fail when it is their turn.
                if pool not in to_come or self._reason_to_give_up(pool, 0.0, 1.0):
                    del self._missing[pool]
            elif reason := self._reason_to_fail(pool, missing, now):
                existing = self.status()["pools"]
                errors.update(dict.fromkeys(missing.tasks, PoolUnavailableError(pool, existing, reason)))
                del self._missing[pool]
        if errors:
            self._fail(errors)
        # A look at very many tasks is not to keep the scheduler from its work.
        self._next_check = monotonic() + 10 * (monotonic() - now)

    def _wake_any(self, now: float) -> None:
        """Ask for a worker for tasks that may run anywhere, where there is none at all."""
        for pool, supply in self._supplies().items():
            if supply.provision == "auto" and supply.askers is None and supply.maximum != 0:
                self._missing.setdefault(pool, _Missing(now)).loose = True
                self._news.set()
                return

    def _reason_to_fail(self, pool: str, missing: _Missing, now: float) -> str | None:
        """Say why tasks should wait no longer for workers of `pool`; None: go on waiting."""
        supply = self._supplies().get(pool)
        limit = supply.timeout if supply and supply.timeout else wait_for_workers()
        if reason := self._reason_to_give_up(pool, now - missing.since, limit):
            return reason
        if self._is_coming(pool) or self._may_come(pool) or supply is None:
            return None
        ask = (
            f"It is brought up only when somebody agrees (provision: {supply.provision}). "
            if supply.provision == "ask"
            else ""
        )
        return (
            self._not_allowed(pool, supply, supply.provision, "")
            or f"{ask}dask_pools.provision.ensure_workers(client, {pool!r}) asks you."
        )

    def _reason_to_give_up(self, pool: str, waited: float, patience: float) -> str | None:
        """Say why nobody should wait longer for workers of `pool`, and what to type; None: go on waiting."""
        self._forget_owners(monotonic())
        start = (
            f"one in that data centre: dask worker {self.scheduler.address} "
            f"--resources {pins.resource(pool)}=1."
        )
        supplies = self._supplies()
        if pool in supplies and supplies[pool].refuses:
            return f"Starting some failed: {supplies[pool].failed}."
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
        supplied = {other for other, supply in supplies.items() if supply.maximum != 0}
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
                f"cluster.scale({pool!r}, 1) asks for one again; cluster.logs({pool!r}) may say why."
                if pool in supplied
                else f"It had some earlier. To start {start}"
            )
            return (
                f"None came within {patience:g} s (its timeout, or the setting pools.wait-for-workers). {how}"
            )
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
