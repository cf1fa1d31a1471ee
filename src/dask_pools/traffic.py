"""What did cross: bytes of task results that workers sent to other pools and to the client.

The numbers come from the workers' own logs of what they sent. A worker that has left took its log with it,
and the shards of P2P rechunks and shuffles travel beside these logs: neither is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Worker

from dask_pools.pins import RESOURCE_PREFIX

__all__ = ["CLIENT", "Flow", "Measurement", "Traffic", "measure_traffic", "traffic"]

CLIENT = "(client)"
"""Where bytes went that no worker asked for. The name cannot be a pool's."""

NO_POOL = "(no pool)"
"""Stands for workers that belong to no pool."""


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
    """Bytes of task results that left their pool.

    Attributes
    ----------
    flows : tuple of Flow
        One for each pair of pools between which something was sent, sorted. What stayed inside a pool is not
        in it.
    pools : tuple of str
        Every pool that has workers, also those that sent nothing.
    incomplete : tuple of str
        Workers that sent more than their logs remember (``distributed.admin.low-level-log-length``), or that
        left in the meantime. Some of what they sent is missing here.
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
        return [f"Not all is counted: the logs of {', '.join(self.incomplete)} have gaps."]


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


@dataclass(frozen=True)
class _Mark:
    """Where the log of one worker stood at some moment."""

    last: tuple[float, float] | None
    """Start and stop of the newest entry."""
    sent: int
    """Transfers that the worker had ever begun."""


@dataclass(frozen=True)
class _Sent:
    """What one worker sent since a mark."""

    pools: tuple[str, ...]
    to: dict[str | None, tuple[int, int]]
    """Address of the receiver (None: not a worker) to bytes and transfers."""
    complete: bool


def traffic(client: Client | None = None) -> Traffic:
    """Bytes that crossed between pools, and to the client, since the workers started.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the one in use.
    """
    return _traffic(_synchronous(client), {})


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
    marks = client.run(_mark)
    try:
        yield measurement
    finally:
        if client.status == "running":
            measurement._traffic = _traffic(client, marks)


def _synchronous(client: Client | None) -> Client:
    client = client or Client.current()
    if client.asynchronous:
        raise TypeError(
            "Traffic is measured through a synchronous client: Client(address) in another thread will do."
        )
    return client


def _traffic(client: Client, marks: Mapping[str, _Mark]) -> Traffic:
    sent: dict[str, _Sent] = client.run(_sent_since, marks)
    pools = {address: worker.pools for address, worker in sent.items()}
    totals: dict[tuple[str, str], list[int]] = {}
    for worker in sent.values():
        for receiver, (size, transfers) in worker.to.items():
            # A worker that has left since is not in `pools`; what it took counts as crossed.
            target = pools.get(receiver, ()) if receiver is not None else None
            if target is not None and (target == worker.pools or set(target) & set(worker.pools)):
                continue
            total = totals.setdefault(
                (_label(worker.pools), CLIENT if target is None else _label(target)), [0, 0]
            )
            total[0] += size
            total[1] += transfers
    gone = marks.keys() - sent.keys()
    return Traffic(
        flows=tuple(sorted(Flow(*pair, *total) for pair, total in totals.items())),
        pools=tuple(sorted({_label(worker.pools) for worker in sent.values()})),
        incomplete=tuple(sorted(gone | {address for address, worker in sent.items() if not worker.complete})),
    )


def _label(pools: tuple[str, ...]) -> str:
    return "+".join(pools) or NO_POOL


def _moment(entry: Mapping[str, Any]) -> tuple[float, float]:
    return entry["start"], entry["stop"]


def _mark(dask_worker: Worker) -> _Mark:
    log = dask_worker.transfer_outgoing_log
    return _Mark(_moment(log[-1]) if log else None, dask_worker.transfer_outgoing_count_total)


def _sent_since(marks: Mapping[str, _Mark], dask_worker: Worker) -> _Sent:
    mark = marks.get(dask_worker.address, _Mark(None, 0))
    to: dict[str | None, tuple[int, int]] = {}
    found, logged = mark.last is None, 0
    for entry in reversed(dask_worker.transfer_outgoing_log):
        if _moment(entry) == mark.last:
            found = True
            break
        size, transfers = to.get(entry["who"], (0, 0))
        to[entry["who"]] = size + entry["total"], transfers + 1
        logged += 1
    # The log is bounded: once it is full, an entry that is gone was pushed out by newer ones.
    full = len(dask_worker.transfer_outgoing_log) == dask_worker.transfer_outgoing_log.maxlen
    overflowed = full and (not found or dask_worker.transfer_outgoing_count_total - mark.sent > logged)
    pools = tuple(
        sorted(
            name.removeprefix(RESOURCE_PREFIX)
            for name in dask_worker.state.total_resources
            if name.startswith(RESOURCE_PREFIX)
        )
    )
    return _Sent(pools, to, complete=not overflowed)
