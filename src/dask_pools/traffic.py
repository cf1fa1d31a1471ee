"""What did cross: bytes that workers sent to other pools and to the client.

Each worker keeps an **account**: how many bytes of task results it sent to whom and received from whom, by
its own transfer logs, and what the shards of P2P rechunks and shuffles weighed, which travel beside these.
A worker that closes hands its account to the scheduler; of one that dies, the others know what they received.

Knows pools by the resources that workers offer; knows nothing of graphs.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
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
    duplicates : int
        Of `bytes`, those of results that the target had been sent before: fetched by several of its workers,
        stolen by one from another, or computed twice. At least so many, if a worker received more than
        `MOST_FETCHED` results.
    """

    source: str
    target: str
    bytes: int
    transfers: int
    duplicates: int = 0


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
    def duplicates(self) -> int:
        """Of the bytes that crossed, those of results that the same pool had been sent before."""
        return sum(flow.duplicates for flow in self.flows)

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
            return "\n".join(["Nothing left its pool.", *self._notes()])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{source:<{widths[0]}}  {target:<{widths[1]}}  {size:>{widths[2]}}  {count:>{widths[3]}}"
            for source, target, size, count in rows
        ]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        notes = []
        if self.duplicates:
            notes.append(f"Of this, {format_bytes(self.duplicates)} had been sent to the same pool before.")
        if self.incomplete:
            notes.append(f"Not all is counted: what {', '.join(self.incomplete)} sent is known in part.")
        return notes


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

Fetched = tuple[int, int, str]
"""A result that was received: a number that stands for its key, its bytes, and the address of the sender."""

MOST_FETCHED = 100_000
"""Of so many results a worker remembers that it received them: the latest, some 15 MB of memory."""


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
    fetched : tuple of Fetched
        The latest of the results received.
    fetches : int
        How many were received in all.
    """

    worker: str
    identity: str
    pools: tuple[str, ...]
    sent: Counts
    received: Counts
    shards: Counts
    complete: bool
    fetched: tuple[Fetched, ...] = ()
    fetches: int = 0

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
            fetched=_latest(self.fetched, self.fetches - earlier.fetches),
            fetches=self.fetches - earlier.fetches,
        )


def _latest(fetched: Collection[Fetched], number: int) -> tuple[Fetched, ...]:
    return tuple(islice(fetched, max(0, len(fetched) - number), None))


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
    before = _accounts(client, since={}, otherwise=sys.maxsize)
    try:
        yield measurement
    finally:
        if client.status == "running":
            received = {identity: account.fetches for identity, account in before.by_identity.items()}
            measurement._traffic = balance(_accounts(client, received), before)


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
    again = _duplicates(accounts, pools)
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
        flows=tuple(
            sorted(
                Flow(source, target, size, messages, again[source, target])
                for (source, target), (size, messages) in totals.items()
            )
        ),
        pools=tuple(sorted(map(_label, set(pools.values())))),
        incomplete=tuple(
            sorted({worker for worker, _ in died.values()} | {a.worker for a in accounts if not a.complete})
        ),
    )


def _duplicates(
    accounts: Iterable[Account], pools: Mapping[str, tuple[str, ...]]
) -> Counter[tuple[str, str]]:
    """Bytes of results that a pool received when it had received them already, by pair of pools."""
    again: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[int, tuple[str, ...]]] = set()
    for account in accounts:
        for key, nbytes, sender in account.fetched:
            source = pools.get(sender, ())
            if source == account.pools or set(source) & set(account.pools):
                continue
            if (key, account.pools) in seen:
                again[_label(source), _label(account.pools)] += nbytes
            seen.add((key, account.pools))
    return again


def _larger(known: tuple[int, int] | None, counts: tuple[int, int]) -> tuple[int, int]:
    return counts if known is None else max(known, counts)


def _label(pools: tuple[str, ...]) -> str:
    return "+".join(pools) or NO_POOL


def _accounts(client: Client, since: Mapping[str, int] | None = None, otherwise: int = 0) -> Accounts:
    """Ask all workers, and the scheduler for what those left that are gone.

    Workers list only what they received after as many results as `since` says, by identity, or `otherwise`.
    """
    # One that leaves at this moment answers with an error; the events tell what became of it.
    answers = client.run(account_of, since=since or {}, otherwise=otherwise, on_error="return")
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
    fetched = tuple((key, nbytes, sender) for key, nbytes, sender in event["fetched"])
    return Account(**{**event, **counts, "pools": tuple(event["pools"]), "fetched": fetched})


# On workers.


class _CountedLog(deque[dict[str, Any]]):
    """A transfer log that tells of what is logged, also when it pushes older entries out."""

    def __init__(
        self,
        entries: Iterable[dict[str, Any]],
        maxlen: int | None,
        count: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(maxlen=maxlen)
        self.count_entry = count
        for entry in entries:
            self.append(entry)

    def append(self, entry: dict[str, Any]) -> None:
        super().append(entry)
        self.count_entry(entry)


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
        self.fetched: deque[Fetched] = deque(maxlen=MOST_FETCHED)
        self.fetches = 0
        log = worker.transfer_outgoing_log
        self.complete = not (
            len(log) == log.maxlen
            and worker.transfer_outgoing_count_total - worker.transfer_outgoing_count > len(log)
        )
        worker.transfer_outgoing_log = _CountedLog(log, log.maxlen, self._result_sent)
        log = worker.transfer_incoming_log
        worker.transfer_incoming_log = _CountedLog(log, log.maxlen, self._received)
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

    def _result_sent(self, entry: Mapping[str, Any]) -> None:
        _add(self.sent, entry["who"] or CLIENT, entry["total"])

    def _received(self, entry: Mapping[str, Any]) -> None:
        who = entry["who"] or CLIENT
        _add(self.received, who, entry["total"])
        for key, nbytes in entry["keys"].items():
            # Not Python's own hash: that is another one in each process.
            number = int.from_bytes(blake2b(repr(key).encode(), digest_size=7).digest())
            self.fetched.append((number, nbytes, who))
            self.fetches += 1

    def _shards_sent(self, receiver: str, size: int) -> None:
        _add(self.shards, receiver, size)

    def account(self, worker: Worker, since: int = 0) -> Account:
        """State of the account at this moment; the first `since` of the results received are not listed."""
        return Account(
            worker.address,
            self.identity,
            pools_of_resources(worker.state.total_resources),
            dict(self.sent),
            dict(self.received),
            dict(self.shards),
            self.complete,
            _latest(self.fetched, max(0, self.fetches - since)),
            self.fetches,
        )


async def open_account(dask_worker: Worker) -> None:
    """Have a worker count from now on what it sends, if it does not yet; for ``client.run(open_account)``."""
    if TOPIC not in dask_worker.plugins:
        await dask_worker.plugin_add(plugin=Bookkeeper(), name=TOPIC, catch_errors=False)


async def account_of(
    dask_worker: Worker, since: Mapping[str, int] | None = None, otherwise: int = 0
) -> Account:
    """Account of a worker, opened now if it has none; for ``client.run(account_of)``.

    Parameters
    ----------
    dask_worker : distributed.Worker
    since : dict of str to int, optional
        By identity, how many of the results received need not be listed.
    otherwise : int, optional
        As many for workers that are not in `since`.
    """
    await open_account(dask_worker)
    loop = asyncio.get_running_loop()
    patience = loop.time() + _SETTLE_SECONDS
    while dask_worker.transfer_outgoing_count and loop.time() < patience:
        await asyncio.sleep(0.005)
    keeper: Bookkeeper = dask_worker.plugins[TOPIC]
    return keeper.account(dask_worker, (since or {}).get(keeper.identity, otherwise))
