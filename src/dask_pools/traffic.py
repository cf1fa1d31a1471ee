"""What did cross: bytes that workers sent to other pools and to the client.

Each worker keeps an **account**: how many bytes of task results it sent to whom and received from whom, by
its own transfer logs, and what the shards of P2P rechunks and shuffles weighed, which travel beside these.
A worker that closes hands its account to the scheduler; of one that dies, the others know what they received.

Knows pools by the resources that workers offer; knows nothing of graphs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Worker, WorkerPlugin

from dask_pools import dask_internals
from dask_pools.pins import pools_of_resources

__all__ = ["CLIENT", "Flow", "Measurement", "Traffic", "measure_traffic", "traffic"]

CLIENT = "(client)"
"""Where bytes went that no worker asked for. The name cannot be a pool's."""

NO_POOL = "(no pool)"
"""Stands for workers that belong to no pool."""

TOPIC = "dask-pools-traffic"
"""Topic of the events in which workers hand over their accounts; also the name of the plugin on workers."""

_SETTLE_SECONDS = 0.5
"""A worker logs a transfer when the receiver has confirmed it, which the receiver does not wait for."""


@dataclass(frozen=True, order=True)
class Flow:
    """What was sent from one pool to another, or to the client.

    Attributes
    ----------
    source, target : str
        Pools; `target` may be `CLIENT`, and workers without a pool count as `NO_POOL`. The pools of a worker
        that has several are joined by ``+``.
    bytes : int
        Size of the results in memory, which is what Dask counts; compression is not taken off.
    transfers : int
        How many messages carried them.
    """

    source: str
    target: str
    bytes: int
    transfers: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of task results, and of shards of P2P rechunks and shuffles, that left their pool.

    Attributes
    ----------
    flows : tuple of Flow
        One for each pair of pools between which something was sent, sorted. What stayed inside a pool is not
        in it.
    pools : tuple of str
        Every pool that has or had workers, also those that sent nothing.
    incomplete : tuple of str
        Workers that died without handing over their account, or whose logs had overflowed
        (``distributed.admin.low-level-log-length``) before anybody asked for one. Some of what they sent is
        missing here: what a dead worker sent to the client, and to workers that are dead too.
    """

    flows: tuple[Flow, ...] = ()
    pools: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()

    @property
    def left(self) -> dict[str, int]:
        """Bytes that left each pool, for other pools and for the client."""
        sent = Counter(dict.fromkeys(self.pools, 0))
        for flow in self.flows:
            sent[flow.source] += flow.bytes
        return dict(sent)

    @property
    def pairs(self) -> dict[tuple[str, str], int]:
        """Bytes for each pair of pools, from and to; without the client."""
        return {(flow.source, flow.target): flow.bytes for flow in self.flows if flow.target != CLIENT}

    @property
    def crossed(self) -> int:
        """Bytes that went from one pool to another."""
        return sum(flow.bytes for flow in self.flows if flow.target != CLIENT)

    @property
    def to_client(self) -> int:
        """Bytes that went to the client, directly or through the scheduler."""
        return sum(flow.bytes for flow in self.flows if flow.target == CLIENT)

    def __str__(self) -> str:
        rows = [("from", "to", "bytes", "transfers")]
        rows += [
            (flow.source, flow.target, format_bytes(flow.bytes), str(flow.transfers)) for flow in self.flows
        ]
        if not self.flows:
            return "\n".join(["Nothing left its pool.", *self._warning()])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{source:<{widths[0]}}  {target:<{widths[1]}}  {size:>{widths[2]}}  {count:>{widths[3]}}"
            for source, target, size, count in rows
        ]
        return "\n".join([*lines, *self._warning()])

    def _warning(self) -> list[str]:
        if not self.incomplete:
            return []
        return [f"Not all is counted: what {', '.join(self.incomplete)} sent is known in part."]


class Measurement:
    """Handle that `measure_traffic` gives; prints like its `traffic`."""

    def __init__(self) -> None:
        self._traffic: Traffic | None = None

    @property
    def traffic(self) -> Traffic:
        """What crossed inside the ``with`` block.

        Raises
        ------
        RuntimeError
            If the block has not ended yet.
        """
        if self._traffic is None:
            raise RuntimeError("The traffic is known when the `with measure_traffic()` block has ended.")
        return self._traffic

    def __str__(self) -> str:
        return "still measuring" if self._traffic is None else str(self._traffic)


Counts = dict[str, tuple[int, int]]
"""Address of a worker, or `CLIENT`, to bytes and messages."""


@dataclass(frozen=True)
class Account:
    """What one worker sent and received since it started.

    Attributes
    ----------
    worker : str
        Its address.
    identity : str
        Tells it from another worker that had the same address earlier.
    pools : tuple of str
    sent, received, shards : dict
        By the other side's address: results sent, results received, and P2P shards sent, each as bytes and
        messages.
    complete : bool
        Whether no transfer was forgotten before the account was opened.
    """

    worker: str
    identity: str
    pools: tuple[str, ...]
    sent: Counts
    received: Counts
    shards: Counts
    complete: bool

    def since(self, earlier: Account | None) -> Account:
        """Take off what an earlier state of this account has."""
        if earlier is None:
            return self
        return Account(
            self.worker,
            self.identity,
            self.pools,
            _less(self.sent, earlier.sent),
            _less(self.received, earlier.received),
            _less(self.shards, earlier.shards),
            # What was forgotten before the account was opened is of no concern here.
            complete=True,
        )


def _less(counts: Counts, earlier: Counts) -> Counts:
    return {
        who: (size - earlier.get(who, (0, 0))[0], messages - earlier.get(who, (0, 0))[1])
        for who, (size, messages) in counts.items()
    }


def traffic(client: Client | None = None) -> Traffic:
    """Bytes that crossed between pools, and to the client, since the workers started.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the one in use.
    """
    return balance(_accounts(_synchronous(client)))


@contextmanager
def measure_traffic(client: Client | None = None) -> Iterator[Measurement]:
    """Count the bytes that cross while the ``with`` block runs.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the one in use. Not for asynchronous clients.

    Yields
    ------
    Measurement
        Its `traffic` is known once the block has ended.

    Examples
    --------
    >>> with measure_traffic() as measured:  # doctest: +SKIP
    ...     difference.compute()
    >>> print(measured)  # doctest: +SKIP
    """
    client = _synchronous(client)
    measurement = Measurement()
    before = _accounts(client)
    try:
        yield measurement
    finally:
        if client.status == "running":
            measurement._traffic = balance(_accounts(client), before)


def _synchronous(client: Client | None) -> Client:
    client = client or Client.current()
    if client.asynchronous:
        raise TypeError(
            "Traffic is measured through a synchronous client: Client(address) in another thread will do."
        )
    return client


@dataclass(frozen=True)
class Accounts:
    """All accounts of a cluster at one moment.

    Attributes
    ----------
    by_identity : dict of str to Account
        Of workers that are there, and of those that closed.
    dead : dict of str to tuple of str and tuple of str
        Address and pools, by identity, of workers that are gone without having handed over an account.
    """

    by_identity: Mapping[str, Account]
    dead: Mapping[str, tuple[str, tuple[str, ...]]]


def balance(now: Accounts, before: Accounts | None = None) -> Traffic:
    """Tell what left its pool between two moments.

    Parameters
    ----------
    now : Accounts
    before : Accounts, optional
        By default the beginning.
    """
    earlier = {} if before is None else before.by_identity
    accounts = [account.since(earlier.get(identity)) for identity, account in now.by_identity.items()]
    # One that died meanwhile may have opened its account before anybody listened for events.
    died = {
        identity: (a.worker, a.pools) for identity, a in earlier.items() if identity not in now.by_identity
    }
    died |= {
        identity: who for identity, who in now.dead.items() if before is None or identity not in before.dead
    }
    pools = dict(died.values()) | {account.worker: account.pools for account in accounts}
    moved: dict[tuple[str, str], tuple[int, int]] = {}
    for account in accounts:
        for other, counts in account.sent.items():
            moved[account.worker, other] = _larger(moved.get((account.worker, other)), counts)
        for other, counts in account.received.items():
            # Both sides count the same; of a sender that died only the receiver's count is left.
            moved[other, account.worker] = _larger(moved.get((other, account.worker)), counts)
    sent = list(moved.items())
    sent += [((account.worker, other), n) for account in accounts for other, n in account.shards.items()]
    totals: dict[tuple[str, str], list[int]] = {}
    for (sender, receiver), (size, messages) in sent:
        source = pools.get(sender, ())
        if receiver != CLIENT:
            target = pools.get(receiver, ())
            if target == source or set(target) & set(source):
                continue
        if messages:
            total = totals.setdefault(
                (_label(source), CLIENT if receiver == CLIENT else _label(target)), [0, 0]
            )
            total[0] += size
            total[1] += messages
    return Traffic(
        flows=tuple(sorted(Flow(*pair, *total) for pair, total in totals.items())),
        pools=tuple(sorted(map(_label, set(pools.values())))),
        incomplete=tuple(
            sorted({worker for worker, _ in died.values()} | {a.worker for a in accounts if not a.complete})
        ),
    )


def _larger(known: tuple[int, int] | None, counts: tuple[int, int]) -> tuple[int, int]:
    return counts if known is None else max(known, counts)


def _label(pools: tuple[str, ...]) -> str:
    return "+".join(pools) or NO_POOL


def _accounts(client: Client) -> Accounts:
    """Ask all workers, and the scheduler for what those left that are gone."""
    # One that leaves at this moment answers with an error; the events tell what became of it.
    answers = client.run(account_of, on_error="return")
    found = {answer.identity: answer for answer in answers.values() if isinstance(answer, Account)}
    opened: dict[str, tuple[str, tuple[str, ...]]] = {}
    for _, event in client.get_events(TOPIC):
        event = dict(event)
        if event.pop("closed"):
            account = _from_event(event)
            found.setdefault(account.identity, account)
        else:
            opened[event["identity"]] = (event["worker"], tuple(event["pools"]))
    return Accounts(found, {identity: who for identity, who in opened.items() if identity not in found})


def _from_event(event: Mapping[str, Any]) -> Account:
    # On the wire tuples become lists.
    counts = {
        what: {who: (size, messages) for who, (size, messages) in event[what].items()}
        for what in ("sent", "received", "shards")
    }
    return Account(**{**event, **counts, "pools": tuple(event["pools"])})


# On workers.


class _CountedLog(deque[dict[str, Any]]):
    """A transfer log that counts what is logged, also when it pushes older entries out."""

    def __init__(self, entries: Iterable[dict[str, Any]], maxlen: int | None, counts: Counts) -> None:
        super().__init__(maxlen=maxlen)
        self.counts = counts
        for entry in entries:
            self.append(entry)

    def append(self, entry: dict[str, Any]) -> None:
        super().append(entry)
        _add(self.counts, entry["who"] or CLIENT, entry["total"])


def _add(counts: Counts, who: str, size: int) -> None:
    total, messages = counts.get(who, (0, 0))
    counts[who] = total + size, messages + 1


class Bookkeeper(WorkerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Keeps the account of one worker, and hands it over when the worker closes."""

    name = TOPIC

    def setup(self, worker: Worker) -> None:
        """Open the account; it begins with what the logs remember."""
        self.identity = uuid.uuid4().hex
        self.sent: Counts = {}
        self.received: Counts = {}
        self.shards: Counts = {}
        log = worker.transfer_outgoing_log
        self.complete = not (
            len(log) == log.maxlen
            and worker.transfer_outgoing_count_total - worker.transfer_outgoing_count > len(log)
        )
        worker.transfer_outgoing_log = _CountedLog(log, log.maxlen, self.sent)
        log = worker.transfer_incoming_log
        worker.transfer_incoming_log = _CountedLog(log, log.maxlen, self.received)
        self.stop_watching = dask_internals.watch_shards(worker.address, self._shards_sent)
        worker.log_event(
            TOPIC,
            {
                "closed": False,
                "worker": worker.address,
                "identity": self.identity,
                "pools": list(pools_of_resources(worker.state.total_resources)),
            },
        )

    def teardown(self, worker: Worker) -> None:
        """Hand the account over to the scheduler."""
        self.stop_watching()
        worker.log_event(TOPIC, {"closed": True, **vars(self.account(worker))})

    def _shards_sent(self, receiver: str, size: int) -> None:
        _add(self.shards, receiver, size)

    def account(self, worker: Worker) -> Account:
        """State of the account at this moment."""
        return Account(
            worker.address,
            self.identity,
            pools_of_resources(worker.state.total_resources),
            dict(self.sent),
            dict(self.received),
            dict(self.shards),
            self.complete,
        )


async def open_account(dask_worker: Worker) -> None:
    """Have a worker count from now on what it sends, if it does not yet; for ``client.run(open_account)``."""
    if TOPIC not in dask_worker.plugins:
        await dask_worker.plugin_add(plugin=Bookkeeper(), name=TOPIC, catch_errors=False)


async def account_of(dask_worker: Worker) -> Account:
    """Account of a worker, opened now if it has none; for ``client.run(account_of)``."""
    await open_account(dask_worker)
    loop = asyncio.get_running_loop()
    patience = loop.time() + _SETTLE_SECONDS
    while dask_worker.transfer_outgoing_count and loop.time() < patience:
        await asyncio.sleep(0.005)
    keeper: Bookkeeper = dask_worker.plugins[TOPIC]
    return keeper.account(dask_worker)
