"""A Dask cluster whose workers belong to pools.

One entry of `distributed.SpecCluster`'s specification is one worker of one pool (``ecmwf-0``). How it is
started is its launcher's business; how many there are is decided here: at the start, by
`PoolCluster.scale`, when the scheduler says that a pool without workers is wanted, and for pools that adapt
by what they have to do (`dask_pools.cluster.adapting`).
"""

from __future__ import annotations

import asyncio
import difflib
import html
import logging
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Literal

import dask
from dask.utils import parse_timedelta
from distributed import Client, Scheduler, SpecCluster
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import ProcessInterface
from distributed.utils import Log, Logs, NoOpAwaitable

from dask_pools import pins
from dask_pools.cluster.adapting import Bounds, decide
from dask_pools.cluster.pool_spec import PoolSpec, check_count, check_spec, file_of, pool_specs
from dask_pools.cluster.pool_worker import PoolWorker
from dask_pools.cluster.process import Process
from dask_pools.cluster.record import Held, PoolWish, Record, SitesLeft, remove, write
from dask_pools.cluster.scheduler_process import RunningScheduler, scheduler_spec
from dask_pools.cluster.standing import Standing
from dask_pools.cluster.widget import make_widget
from dask_pools.config import idle_timeout, in_seconds
from dask_pools.data_centres import DataCentres
from dask_pools.demand import PoolLoad
from dask_pools.errors import PoolUnavailableError
from dask_pools.propagate import connect, propagate_pools
from dask_pools.scheduler import Supply, install

__all__ = ["PoolCluster"]

logger = logging.getLogger(__name__)

# Seconds after which the scheduler answers a question for news when there is none.
POLL = 0.5

# Seconds that a worker has to last for its loss to be bad luck, no sign that the next will be lost too.
LASTING = 60.0


# Of `distributed.Security`.
_TLS_FILES = (
    "tls_ca_file",
    *(f"tls_{role}_{part}" for role in ("client", "scheduler", "worker") for part in ("cert", "key")),
)


class PoolCluster(SpecCluster):  # type: ignore[misc]  # distributed publishes no type for it
    """A Dask cluster whose workers belong to pools.

    Making one switches propagation on (`dask_pools.propagate_pools`), so that pins hold. While it lives, it
    answers for its pools: one of them that has no workers gets some as soon as somebody asks for it or
    computes on it.

    Parameters
    ----------
    pools : path, DataCentres, or mapping of str to PoolSpec
        A data-centres file, each of whose data centres with a `workers` section becomes a pool; or the pools
        themselves, by name.
    scheduler : {"here", "process"}, str or mapping
        Whether the scheduler runs in this process or in one of its own, on the loopback interface; the
        address of one that runs already, and stays (``"tls://…"``); or how to make it, as
        `distributed.SpecCluster` has it: ``{"cls": …, "options": {…}}``. A scheduler in this process or made
        for it gets this project's plugin; any other must bring it along
        (``--preload dask_pools.scheduler``).
    outlives : float or str, optional
        Seconds, or a time such as ``"1 h"``, for which a scheduler in a process of its own goes on when this
        process has died, so that another may take the cluster over (`dask_pools.cluster.adopt`). By default
        it ends with this process.
    orphan : Record, optional
        What is known of a cluster that is taken over; for `dask_pools.cluster.adopt`.
    asynchronous : bool
        Whether it is used with ``async with`` and ``await``.
    **kwargs
        Further arguments of `distributed.SpecCluster`.

    Raises
    ------
    DataCentresError
        If the data-centres file is wrong, or says nothing about workers.
    TypeError
        If a pool is no `PoolSpec`.
    ValueError
        If a name or a number does not do.
    PoolUnavailableError
        If a worker does not start.

    Examples
    --------
    >>> with PoolCluster("data-centres.yaml") as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    status: Status
    _file: str | None = None
    """Path of the data-centres file, by which this cluster can be found again."""
    _sites_left: SitesLeft | None = None
    """What would be at sites if this process died."""

    def __init__(
        self,
        pools: Mapping[str, PoolSpec] | DataCentres | str | os.PathLike[str],
        *,
        scheduler: Mapping[str, Any] | Literal["here", "process"] | str = "here",
        outlives: float | str | None = None,
        orphan: Record | None = None,
        asynchronous: bool = False,
        silence_logs: int | None = logging.WARNING,
        **kwargs: Any,
    ) -> None:
        self._pool_specs = dict(pools) if isinstance(pools, Mapping) else pool_specs(pools)
        if not isinstance(pools, Mapping):
            self._file = file_of(pools)
        if outlives is not None and scheduler != "process":
            raise ValueError("Only a scheduler in a process of its own outlives this: scheduler='process'.")
        if isinstance(scheduler, str) and "://" in scheduler:
            options = {"address": scheduler, "security": kwargs.get("security")}
            scheduler = {"cls": RunningScheduler, "options": options}
            kwargs.setdefault("shutdown_scheduler", False)
        elif isinstance(scheduler, str):
            seconds = None if outlives is None else in_seconds(outlives)
            scheduler = scheduler_spec(scheduler, silence_logs=silence_logs, outlives=seconds)
        for pool, spec in self._pool_specs.items():
            check_spec(pool, spec)
        propagate_pools()
        self._orphan = orphan
        self._owner = orphan.cluster if orphan else f"{type(self).__name__}-{uuid.uuid4()}"
        self._written: Record | None = orphan
        self._standings = {pool: Standing() for pool in self._pool_specs}
        self._supplying: asyncio.Task[None] | None = None
        # Starts and stops under way, and what of them has failed since somebody waited for all.
        self._changes: set[asyncio.Task[None]] = set()
        self._unreported: list[PoolUnavailableError] = []
        # Names of workers that are stopped, of those that go if their results can be moved, and of those that
        # were called off before they had joined.
        self._leaving: set[str] = set()
        self._retiring: set[str] = set()
        self._dismissed: set[str] = set(orphan.dismissed if orphan else ())
        self._events: list[dict[str, Any]] = []
        self._counted = time.monotonic()
        self._moves: set[asyncio.Future[list[str]]] = set()
        self._ending = False
        if orphan is None:
            workers = {
                name: self._worker_spec(pool)
                for pool, spec in self._pool_specs.items()
                for name in (f"{pool}-{number}" for number in range(spec.workers))
            }
        else:
            workers = {
                name: self._worker_spec(held.pool, held.handle) for name, held in orphan.workers.items()
            }
        try:
            super().__init__(
                workers=workers,
                scheduler=dict(scheduler),
                asynchronous=asynchronous,
                silence_logs=silence_logs or False,
                **kwargs,
            )
        except KeyboardInterrupt:
            # SpecCluster cleans up after exceptions only.
            with suppress(Exception):
                self.close(timeout=10)
            raise

    # What it consists of

    @property
    def pools(self) -> dict[str, list[str]]:
        """Names of the workers that have joined, by pool.

        The pools of this cluster are there even without workers; others are, if somebody else's workers
        offer them.
        """
        pools: dict[str, list[str]] = {pool: [] for pool in self._pool_specs}
        for worker in list(self.scheduler_info["workers"].values()):
            for pool in pins.pools_of_resources(worker["resources"]):
                pools.setdefault(pool, []).append(str(worker["name"]))
        return {pool: sorted(names) for pool, names in pools.items()}

    @property
    def pools_of_its_own(self) -> list[str]:
        """Names of the pools that this cluster can start workers for."""
        return list(self._pool_specs)

    def wanted(self, pool: str) -> int:
        """How many workers a pool of this cluster should have, those that have not joined yet among them.

        Raises
        ------
        ValueError
            If this cluster has no such pool.
        """
        self._check_pool(pool)
        return len(self._planned(pool))

    @property
    def failures(self) -> dict[str, str]:
        """Why pools have no workers although they should, by pool."""
        return {
            pool: standing.reason
            for pool, standing in self._standings.items()
            if standing.reason is not None and (standing.failed is not None or not self.pools[pool])
        }

    def __repr__(self) -> str:
        pools = ", ".join(f"{pool}: {self._describe(pool)}" for pool in self.pools) or "no pools"
        return f"<{type(self).__name__} {self.scheduler_address} — {pools}>"

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        rows = "".join(
            '<tr><td style="text-align: left;" colspan="2">'
            f"<strong>Pool {html.escape(pool)}:</strong> {html.escape(self._describe(pool))}</td></tr>"
            for pool in self.pools
        )
        return str(super()._repr_html_(cluster_status=rows + (cluster_status or "")))

    def _widget(self) -> Any:
        if not hasattr(self, "_cached_widget"):
            self._cached_widget = make_widget(self)
        return self._cached_widget

    def _describe(self, pool: str) -> str:
        joined = len(self.pools[pool])
        planned = len(self._planned(pool))
        text = f"{joined} worker{'' if joined == 1 else 's'}"
        if planned > joined:
            text += f" of {planned}"
        if pool in self._pool_specs:
            threads = self._pool_specs[pool].worker.threads
            text += f" × {threads} thread{'' if threads == 1 else 's'}"
            standing = self._standings[pool]
            if standing.bounds is not None:
                most = standing.bounds.maximum
                text += f", adapts from {standing.bounds.minimum}{'' if most is None else f' to {most}'}"
            if standing.failed is not None:
                text += f", failed: {standing.reason}"
        return text

    # Using it

    def get_client(self) -> Client:
        """Client of this cluster; the current one if there is one already."""
        client = super().get_client()
        if not client.asynchronous:
            connect(client)
        return client

    def scale(self, *args: str | int, **counts: int) -> Any:
        """Ask for a number of workers in a pool: ``scale("ecmwf", 4)`` or ``scale(ecmwf=4, eumetsat=2)``.

        Returns at once; the workers come and go meanwhile. What only the workers that go have in memory is
        moved to others of their pool first; if none is left, to other pools, unless it has to stay in its own
        (residency), which is computed again if it is needed. A pool that adapted does so no more.

        Raises
        ------
        TypeError
            If no pool is named.
        ValueError
            If this cluster has no such pool, the number does not do, or its hours are used up.
        """
        match args:
            case ():
                pass
            case (0,):
                # What Dask itself calls when it closes a cluster; it leaves no doubt about the pools.
                counts = dict.fromkeys(self._pool_specs, 0)
            case (str(pool), int(count)) if pool not in counts:
                counts = {pool: count, **counts}
            case _:
                example = next(iter(self._pool_specs), "ecmwf")
                raise TypeError(
                    "Say which pool is to have how many workers: "
                    f"cluster.scale({example!r}, 2). Pools: {self._known()}."
                )
        for pool, count in counts.items():
            self._check_pool(pool)
            check_count(pool, count, self._pool_specs[pool].maximum)
        for pool, count in counts.items():
            if count and self._standings[pool].spent:
                raise ValueError(f"Pool {pool!r} can have no workers: {self._standings[pool].reason}.")
        for pool, count in counts.items():
            self._standings[pool].bounds = None
            self._standings[pool].ask_anew()
            # Those that were about to go do so now, or they would still be there if they were to be kept.
            for name in [name for name in self._retiring if self.workers[name].pool == pool]:
                self.worker_spec.pop(name, None)
            self._plan(pool, count)
        self.loop.add_callback(self._apply)
        return NoOpAwaitable() if self.asynchronous else None

    def adapt(
        self,
        *pools: str,
        minimum: int | None = None,
        maximum: int | None = None,
        target_duration: float | str | None = None,
        idle: float | str | None = None,
    ) -> None:
        """Let pools grow and shrink with their work, as in ``adapt("ecmwf", minimum=0, maximum=8)``.

        A pool grows at once when it has work and no workers, and as far as it takes to do its work in the
        target duration. It shrinks by workers that have been idle for a while and whose results are not
        needed, or can be moved to others of the pool; a result never moves to another data centre for that.

        Parameters
        ----------
        *pools : str
            All of this cluster, if none is named.
        minimum, maximum : int, optional
            The fewest and the most workers, within what the pool itself allows, which is the default.
        target_duration : float or str, optional
            Seconds, or a time such as ``"10s"``; by default Dask's setting
            ``distributed.adaptive.target-duration``.
        idle : float or str, optional
            Seconds without a task after which a worker may go; by default what the pool says, else the
            setting ``pools.idle-timeout``.

        Raises
        ------
        TypeError
            If what should be a pool's name is a number, as Dask's own clusters have it.
        ValueError
            If this cluster has no such pool, or the numbers do not do.
        """
        if not all(isinstance(pool, str) for pool in pools):
            example = next(iter(self._pool_specs), "ecmwf")
            raise TypeError(
                "Say which pool is to adapt, and how far by name: "
                f"cluster.adapt({example!r}, minimum=0, maximum=4). Pools: {self._known()}."
            )
        bounds = {}
        for pool in pools or self._pool_specs:
            self._check_pool(pool)
            spec = self._pool_specs[pool]
            fewest = spec.minimum if minimum is None else minimum
            most = spec.maximum if maximum is None else maximum
            if most is not None:
                check_count(pool, most, spec.maximum)
            check_count(pool, fewest, most)
            unused = idle if idle is not None else spec.idle
            duration = target_duration or dask.config.get("distributed.adaptive.target-duration")
            if not (target := in_seconds(duration)):
                raise ValueError(f"target_duration={duration!r}: nothing is done in no time; give it some.")
            bounds[pool] = Bounds(
                minimum=fewest,
                maximum=most,
                target=target,
                idle=idle_timeout() if unused is None else in_seconds(unused),
            )
        for pool, bound in bounds.items():
            self._standings[pool].ask_anew()
            self._standings[pool].bounds = bound

    # What they wrote

    def logs(self, pool: str) -> Any:
        """Read the logs of the workers of a pool; of one that has not joined, what its launcher knows.

        Returns
        -------
        distributed.utils.Logs
            Text by name; with ``await`` where the cluster is used asynchronously.

        Raises
        ------
        ValueError
            If this cluster has no such pool.
        """
        self._check_pool(pool)
        return self.sync(self._logs_of, pool)

    async def _logs_of(self, pool: str) -> Logs:
        addresses = {
            address: str(worker["name"])
            for address, worker in self.scheduler_info["workers"].items()
            if pins.resource(pool) in worker["resources"]
        }
        logs = Logs()
        if addresses:
            answers = await self.scheduler_comm.worker_logs(workers=list(addresses))
            for address, lines in answers.items():
                # Of a worker that cannot answer there is the reason instead.
                text = lines if isinstance(lines, str) else "\n".join(line for _, line in lines)
                logs[addresses[address]] = Log(text)
        for name in self._planned(pool):
            worker = self.workers.get(name)
            if name not in logs and worker is not None:
                logs[name] = Log(await worker.logs())
        return Logs(sorted(logs.items()))

    # How many workers there should be

    def _known(self) -> str:
        return ", ".join(repr(pool) for pool in self._pool_specs) or "none"

    def _check_pool(self, pool: str) -> None:
        if pool in self._pool_specs:
            return
        nearest = difflib.get_close_matches(pool, self._pool_specs, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"This cluster has no pool {pool!r}.{hint} Its pools: {self._known()}.")

    def _worker_spec(self, pool: str, found_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
        spec = self._pool_specs[pool]
        shape = replace(spec.worker, resources={**spec.worker.resources, pins.resource(pool): 1})
        options = {"pool": pool, "launcher": spec.launcher, "shape": shape, "timeout": spec.timeout}
        if found_by is not None:
            options["found_by"] = found_by
        return {"cls": PoolWorker, "options": options}

    def _planned(self, pool: str) -> list[str]:
        """Names of the workers that the pool should have, the oldest first."""
        return [
            name
            for name, spec in list(self.worker_spec.items())
            if spec["options"].get("pool") == pool and name not in self._retiring
        ]

    def _plan(self, pool: str, count: int) -> None:
        """Change what should be; `_reconcile` then makes it so."""
        planned = self._planned(pool)
        joined = self.observed
        # Those that are not there yet go first, then the newest.
        for name in sorted(planned, key=lambda name: name not in joined)[count:]:
            self.worker_spec.pop(name, None)
        # A name is not given to a second worker while the first may still be known by it, or come by it.
        taken = {*self.worker_spec, *self.workers, *joined, *self._dismissed}
        number = 0
        for _ in range(count - len(planned)):
            while (name := f"{pool}-{number}") in taken:
                number += 1
            taken.add(name)
            self.worker_spec[name] = self._worker_spec(pool)

    def _reconcile(self) -> None:
        """Begin to stop the workers that should not be, and to start those that should; in its event loop.

        Nobody waits for the slowest: each start takes its own time, and so does stopping those of a pool.
        """
        going: defaultdict[str, list[str]] = defaultdict(list)
        for name in set(self.workers) - set(self.worker_spec) - self._leaving:
            going[self.workers[name].pool].append(name)
        for pool, names in going.items():
            self._leaving.update(names)
            self._begin(self._stop(pool, names))
        if self.status not in (Status.starting, Status.running):
            return
        now = time.monotonic()
        address = getattr(self.scheduler, "contact_address", None) or self.scheduler.address
        for name, spec in list(self.worker_spec.items()):
            standing = self._standings[spec["options"]["pool"]]
            if name in self.workers or now < standing.retry:
                continue
            self.workers[name] = worker = spec["cls"](address, name=name, **spec["options"])
            worker.on_end = self._end
            self._created.add(worker)
            self._tell("requested", worker.pool, worker=name)
            self._begin(self._start_worker(worker))

    async def _apply(self) -> None:
        """Begin what was asked for, and tell the scheduler, which may have refused it a moment ago."""
        self._reconcile()
        if self._is_served() and not self._ending:
            with suppress(OSError):
                await self._supply(0)

    def _begin(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) and self.status == Status.running:
            logger.error("Could not bring the workers to what they should be.", exc_info=error)

    async def _start_worker(self, worker: PoolWorker) -> None:
        try:
            await worker
            self._write_down()
        except PoolUnavailableError as error:
            if self.workers.get(worker.name) is not worker or worker.name in self._leaving:
                return
            del self.workers[worker.name]
            # It may come all the same.
            self._dismissed.add(worker.name)
            if self.worker_spec.pop(worker.name, None) is None:
                return
            if worker.found_by is not None:
                # It ended while nobody looked.
                self._tell("lost", worker.pool, worker=worker.name, why=worker.failure)
                self._plan(worker.pool, len(self._planned(worker.pool)) + 1)
                self._reconcile()
            else:
                self._fail(worker.pool, worker.failure or str(error), error)

    async def _stop(self, pool: str, names: list[str]) -> None:
        """Stop workers of a pool; those that have joined give their results away first."""
        joined = self.observed.intersection(names)
        self._dismissed.update(set(names) - joined)
        try:
            if joined and self._is_served():
                with suppress(OSError):  # a scheduler that has died has nothing to move
                    await self._retire(pool, joined, ordered=True)
        finally:
            await self._close_workers(names)
        self._tell("stopped", pool, workers=names)

    async def _close_workers(self, names: Iterable[str]) -> None:
        workers = [self.workers[name] for name in names if name in self.workers]
        try:
            await asyncio.gather(*(worker.close() for worker in workers))
        finally:
            for worker in workers:
                if self.workers.get(worker.name) is worker:
                    del self.workers[worker.name]
                self._leaving.discard(worker.name)
            self._write_down()

    def _is_served(self) -> bool:
        return bool(self.status == Status.running and self.scheduler.status == Status.running)

    async def _retire(self, pool: str, names: Iterable[str], *, ordered: bool) -> list[str]:
        """Have the scheduler take workers out of a pool; none where the cluster closes meanwhile."""
        move = asyncio.ensure_future(
            self.scheduler_comm.pools_retire(pool=pool, names=sorted(names), ordered=ordered)
        )
        self._moves.add(move)
        try:
            return list(await move)
        except asyncio.CancelledError:
            if not self._ending:
                raise
            return []
        finally:
            self._moves.discard(move)

    async def _let_go(self, pool: str, names: tuple[str, ...]) -> None:
        """Stop those of some idle workers whose results can be moved within the pool."""
        try:
            gone = await self._retire(pool, names, ordered=False)
            # Those of a name that was lost or taken out meanwhile are somebody else's business.
            gone = [name for name in gone if self.worker_spec.pop(name, None) is not None]
            self._leaving.update(gone)
        finally:
            self._retiring.difference_update(names)
        await self._close_workers(gone)

    async def _correct_state_internal(self) -> None:
        """Make the workers what they should be, and wait for that; in place of SpecCluster's own.

        That starts all before it looks at any; it passes names to the scheduler where addresses are expected,
        so that nothing is moved away from workers that go; and it takes a worker that did not start for one
        that did.
        """
        self._correct_state_waiting = None
        self._reconcile()
        while self._changes:
            await asyncio.wait(self._changes)
        await self._see_workers()
        failures, self._unreported = self._unreported, []
        if failures and not self._ending and self._orphan is None:
            raise failures[0]

    async def _see_workers(self) -> None:
        """Wait until this object has heard of the workers that the scheduler knows, a moment later."""
        if self.status != Status.running:
            return
        known = (await self.scheduler_comm.identity(n_workers=-1))["workers"].values()
        joined = {worker["name"] for worker in known} & set(self.worker_spec)
        for _ in range(100):
            if joined <= self.observed:
                break
            await asyncio.sleep(0.01)

    # What goes wrong

    def _fail(self, pool: str, reason: str, error: PoolUnavailableError | None = None) -> None:
        """Take note that a worker did not start or did not last, and try again later, or give up."""
        logger.warning("Could not start %s.", reason)
        self._tell("failed", pool, why=reason)
        others = any(
            worker.pool == pool and name not in self._leaving for name, worker in self.workers.items()
        )
        if self._standings[pool].fail(reason, time.monotonic(), others=others):
            self._plan(pool, len(self._planned(pool)) + 1)
            return
        for name in self._planned(pool):
            if name not in self.workers:
                del self.worker_spec[name]
        self._unreported.append(error or PoolUnavailableError(pool, (), f"Starting some failed: {reason}."))
        self._tell("given up", pool, why=reason)

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """Follow workers that come and go; in place of SpecCluster's own, which brings back all at once."""
        name = self.scheduler_info["workers"][msg]["name"] if op == "remove" else None
        Cluster._update_worker_status(self, op, msg)
        for joined in self.observed & set(self.workers):
            self._note_joined(self.workers[joined])
        if name in self.workers and name not in self._leaving and name not in self._retiring:
            worker = self.workers[name]
            # A nanny may bring it back.
            delay = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
            asyncio.get_running_loop().call_later(delay, self._lose, worker)

    def _end(self, worker: PoolWorker, why: str) -> None:
        """Give up a worker whose launcher says that it is no more."""
        name = worker.name
        if self._is_served() and self.workers.get(name) is worker and name not in self._leaving:
            self._replace(worker, why)

    def _lose(self, worker: PoolWorker) -> None:
        """Give up a worker that has left and not come back."""
        name = worker.name
        if (
            self.status != Status.running
            or self.workers.get(name) is not worker
            or name in self.observed
            or name in self._leaving
        ):
            return
        self._replace(worker, "it was lost")

    def _replace(self, worker: PoolWorker, why: str) -> None:
        """Close a worker that is of no use, and have another one in its place."""
        name = worker.name
        self._dismissed.add(name)
        self._leaving.add(name)
        wanted = self.worker_spec.pop(name, None) is not None
        self._begin(self._close_workers([name]))
        if not wanted:
            return
        if worker.joined and time.monotonic() - worker.joined > LASTING:
            self._tell("lost", worker.pool, worker=name)
            self._plan(worker.pool, len(self._planned(worker.pool)) + 1)
        else:
            self._fail(worker.pool, f"worker {name}: {why}")

    def _look_after(self) -> None:
        """Notice the workers that have joined, those that should have, and the hours that they run."""
        now = time.monotonic()
        passed, self._counted = now - self._counted, now
        observed = self.observed
        for name, worker in list(self.workers.items()):
            standing = self._standings[worker.pool]
            if name in observed:
                standing.seconds += passed
                self._note_joined(worker)
            elif name not in self._leaving and (overdue := worker.overdue):
                self._replace(worker, overdue)
        for pool, spec in self._pool_specs.items():
            standing = self._standings[pool]
            if standing.spend(spec.max_hours, now):
                self._tell("given up", pool, why=standing.reason)
                self._plan(pool, 0)

    def _note_joined(self, worker: PoolWorker) -> None:
        """Note that a worker has joined, the first time: its pool is one whose workers do start."""
        if not worker.joined:
            worker.joined = time.monotonic()
            self._standings[worker.pool].proven = True
            seconds = round(worker.joined - worker.asked, 1)
            self._tell("joined", worker.pool, worker=worker.name, seconds=seconds)

    def _tell(self, action: str, pool: str, **details: Any) -> None:
        """Have the scheduler log an event with the next report."""
        self._events.append({"action": action, "pool": pool, **details})

    # Being found again

    def _record(self) -> Record | None:
        """Say what is to be known of this cluster by whoever finds it; None if nothing would be left."""
        process = getattr(self.scheduler, "outliving", None)
        workers = {
            name: Held(worker.pool, handle)
            for name, worker in self.workers.items()
            if (handle := worker.handle) is not None
        }
        if self._file is None or not (workers or process or self._sites_left):
            return None
        return Record(
            cluster=self._owner,
            owner=Process.current(),
            file=self._file,
            scheduler=self.scheduler_address,
            scheduler_process=process,
            scheduler_stays=not self.shutdown_scheduler,
            tls={
                name: path
                for name in _TLS_FILES
                if (path := getattr(self.security, name)) and os.path.isfile(path)
            },
            pools={
                pool: PoolWish(
                    wanted=len(self._planned(pool)),
                    adapts=None if standing.bounds is None else asdict(standing.bounds),
                    # Not to be written down twice a second.
                    hours=round(standing.seconds / 3600, 2),
                )
                for pool, standing in self._standings.items()
            },
            workers=workers,
            dismissed=tuple(sorted(self._dismissed)),
            sites=self._sites_left,
        )

    def _write_down(self) -> None:
        """Have what is written down of this cluster be as it is."""
        if self._file is None or self._ending or (record := self._record()) == self._written:
            return
        self._written = record
        try:
            if record is None:
                remove(self._owner)
            else:
                write(record)
        except OSError as error:
            logger.warning("This cluster will not be found should this process die: %s", error)

    # Answering for the pools

    async def _start(self) -> None:
        await super()._start()
        if self.status != Status.running or self._supplying is not None:
            return
        try:
            if isinstance(self.scheduler, Scheduler):
                install(self.scheduler)
            if self._orphan is not None:
                self._take_over(self._orphan)
            # Once now: who connects next must not be told that nobody answers for the pools.
            await self._supply(0)
            self._write_down()
        except Exception:
            self.status = Status.failed
            await self._close()
            raise
        self._supplying = asyncio.create_task(self._keep_supplying())

    def _take_over(self, orphan: Record) -> None:
        """Want of each pool what was wanted before."""
        for pool, wish in orphan.pools.items():
            if pool in self._pool_specs:
                self._standings[pool].bounds = None if wish.adapts is None else Bounds(**wish.adapts)
                self._standings[pool].seconds = 3600 * wish.hours
                self._plan(pool, wish.wanted)

    async def _keep_supplying(self) -> None:
        while self.status == Status.running:
            try:
                await self._supply(POLL)
                self._look_after()
                self._reconcile()
                self._write_down()
                # News may come one upon the other.
                await asyncio.sleep(0.02)
            except OSError:
                # The scheduler may be gone, or busy; the cluster stays as it is, and so does the question.
                logger.debug("Could not ask the scheduler for wanted pools.", exc_info=True)
                await asyncio.sleep(POLL)
            except Exception:
                # One pool's trouble is not to be the end of all; but nobody else would hear of it.
                logger.log(
                    logging.ERROR if self._is_served() else logging.DEBUG,
                    "Could not look after the pools; trying again.",
                    exc_info=True,
                )
                await asyncio.sleep(POLL)

    async def _supply(self, patience: float) -> None:
        """Tell the scheduler how the pools of this cluster stand, and change what it says is to change."""
        events, self._events = self._events, []
        answer = await self.scheduler_comm.pools_supply(
            owner=self._owner,
            pools={pool: asdict(report) for pool, report in self._reports().items()},
            names={name: worker.pool for name, worker in self.workers.items() if name not in self._leaving},
            dismissed=sorted(self._dismissed),
            events=events,
            patience=patience,
        )
        for name, why in answer["rejected"].items():
            if name in self.workers and name not in self._leaving:
                # The next will be no better.
                self._standings[self.workers[name].pool].proven = False
                self._replace(self.workers[name], why)
        for pool in answer["wanted"]:
            spec, standing = self._pool_specs.get(pool), self._standings.get(pool)
            if spec is None or standing is None or spec.maximum == 0 or self._planned(pool):
                continue
            if not standing.refuses(time.monotonic()):
                standing.ask_anew()
                self._plan(pool, max(1, spec.minimum))
        for pool, load in answer["loads"].items():
            if (bounds := self._standings[pool].bounds) is not None:
                self._adapt(pool, PoolLoad.of(load), bounds)

    def _reports(self) -> dict[str, Supply]:
        """Tell of all pools how they stand. There may be many workers, which are looked at once."""
        observed = self.observed
        requested: Counter[str] = Counter()
        starting: Counter[str] = Counter()
        for name, worker in self.workers.items():
            if name not in self._leaving:
                requested[worker.pool] += 1
                starting[worker.pool] += name not in observed
        wanted = Counter(
            spec["options"].get("pool")
            for name, spec in self.worker_spec.items()
            if name not in self._retiring
        )
        return {
            pool: self._report(pool, wanted[pool], requested[pool], starting[pool])
            for pool in self._pool_specs
        }

    def _report(self, pool: str, wanted: int, requested: int, starting: int) -> Supply:
        spec, standing, now = self._pool_specs[pool], self._standings[pool], time.monotonic()
        return Supply(
            maximum=spec.maximum,
            provision=spec.provision,
            timeout=spec.timeout,
            askers=spec.askers,
            first=max(1, spec.minimum),
            wanted=wanted,
            requested=requested,
            starting=starting,
            failed=standing.reason if standing.failed is not None else None,
            failed_for=0.0 if standing.failed is None else now - standing.failed,
            refuses=standing.refuses(now),
            idle=None if standing.bounds is None else standing.bounds.idle,
            hours=standing.seconds / 3600,
        )

    def _adapt(self, pool: str, load: PoolLoad, bounds: Bounds) -> None:
        """Let a pool grow or shrink, if it should."""
        standing, spec = self._standings[pool], self._pool_specs[pool]
        planned = self._planned(pool)
        # Of workers that were started by others there may be some as well; they come and go as they like.
        load = replace(load, workers=tuple(one for one in load.workers if one.name in planned))
        joined = {worker.name for worker in load.workers}
        decision = decide(load, len(planned) - len(joined), bounds, spec.worker.threads)
        if decision.wanted > len(planned):
            if not planned and not bounds.minimum and spec.provision != "auto":
                return  # somebody has to ask, or to agree
            if standing.rests(time.monotonic()):
                return
            if standing.failed is not None:
                standing.ask_anew()
            self._plan(pool, decision.wanted)
        for name in [name for name in reversed(planned) if name not in joined][: decision.withdraw]:
            self.worker_spec.pop(name, None)
        if decision.go:
            self._retiring.update(decision.go)
            self._begin(self._let_go(pool, decision.go))

    async def _close(self) -> None:
        self._ending = True
        for move in self._moves:
            move.cancel()
        if self._supplying is not None:
            self._supplying.cancel()
            with suppress(asyncio.CancelledError):
                await self._supplying
            self._supplying = None
        try:
            await self._close_all()
        finally:
            # Nothing is left even if closing was upset.
            for worker in list(self._created):
                with suppress(Exception):
                    await worker.close()
            if isinstance(self.scheduler, ProcessInterface):
                await self.scheduler.close()
            if self._written is not None:
                remove(self._owner)

    async def _close_all(self) -> None:
        """Close as SpecCluster does, also when the scheduler has died: it would insist on an answer."""
        if self.status == Status.running and self.scheduler.status != Status.running:
            self.shutdown_scheduler = False
        try:
            await super()._close()
        except OSError:
            if not self.shutdown_scheduler or self.scheduler is None:
                raise
            logger.debug("Lost the scheduler while closing.", exc_info=True)
            self.shutdown_scheduler = False
            await self.scheduler.close()
            self.status = Status.failed  # from which SpecCluster closes like from running
            await super()._close()
