"""task_stream(): what ran where and when, as one picture with a band for each pool.

The scheduler notes when each task ran, and when a worker fetched what it needed from another one; this keeps
what happens in a ``with`` block and draws it. Shards of P2P rechunks and shuffles are not in those notes:
they are among the bytes that the picture tells, but have no lines.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes, key_split
from distributed import Client, get_task_stream

from dask_pools import pictures
from dask_pools.pictures import Picture
from dask_pools.pins import pools_of_resources
from dask_pools.traffic import NO_POOL, Measurement, Traffic, measure_traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Span", "TaskStream", "task_stream"]

ENOUGH = 1_000_000
"""Bytes; how long fewer take says more of the delay on a line than of what it carries."""


@dataclass(frozen=True)
class Span:
    """Something that a worker did.

    Attributes
    ----------
    pool, worker : str
        Where; the worker by its address.
    thread : int
        Number of the thread, counted from 0 on each worker.
    action : str
        ``"compute"``, ``"transfer"`` (fetching results for the task), ``"deserialize"``, ``"disk-read"`` or
        ``"disk-write"``.
    operation : str
        Name of the task, without its token.
    start, stop : float
        Seconds since the block began.
    source, source_pool : str
        Of transfers: where the results came from; otherwise empty.
    """

    pool: str
    worker: str
    thread: int
    action: str
    operation: str
    start: float
    stop: float
    source: str = ""
    source_pool: str = ""

    @property
    def crosses(self) -> bool:
        """Whether this is a transfer from another pool."""
        return self.action == "transfer" and self.source_pool != self.pool


class TaskStream:
    """What ran in a `task_stream` block; shows itself as a picture at the end of a notebook's cell."""

    def __init__(self, measured: Measurement) -> None:
        self._measured = measured
        self._spans: tuple[Span, ...] | None = None
        self._workers: dict[str, str] = {}

    @property
    def spans(self) -> tuple[Span, ...]:
        """All that was done, in the order in which it began.

        Raises
        ------
        RuntimeError
            If the block has not ended yet.
        """
        if self._spans is None:
            raise RuntimeError("The task stream is known when the `with task_stream()` block has ended.")
        return self._spans

    @property
    def traffic(self) -> Traffic:
        """What left its pool in the block."""
        return self._measured.traffic

    def costs(self) -> dict[str, dict[str, float]]:
        """Tell how long a byte took from one pool to another, for `costs` in a data-centres file.

        Returns
        -------
        dict of str to dict of str to float
            From, to: 1 for the quickest of all pairs, 2 where a byte took twice as long. Pairs that exchanged
            less than 1 MB are not in it.

        Notes
        -----
        Transfers of a pair that overlap in time count once. Shards of P2P have no times: where there are
        many, a pair seems quicker than it is.
        """
        busy: dict[tuple[str, str], float] = defaultdict(float)
        until: dict[tuple[str, str], float] = {}
        for span in self.spans:
            if span.crosses:
                pair = span.source_pool, span.pool
                busy[pair] += max(0.0, span.stop - max(span.start, until.get(pair, span.start)))
                until[pair] = max(span.stop, until.get(pair, span.stop))
        took = {
            pair: busy[pair] / nbytes
            for pair, nbytes in sorted(self.traffic.pairs.items())
            if nbytes >= ENOUGH and busy[pair] and NO_POOL not in pair
        }
        costs: dict[str, dict[str, float]] = {}
        for (source, target), seconds in took.items():
            costs.setdefault(source, {})[target] = round(seconds / min(took.values()), 2)
        return costs

    def visualize(self, filename: str | os.PathLike[str] | None = None) -> Picture:
        """Draw one lane for each worker, grouped by pool, with lines for transfers between pools.

        Parameters
        ----------
        filename : str or path, optional
            Where to save the picture; its ending says how: ``.svg``, ``.png`` or ``.pdf``.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If `filename` has another ending.
        """
        if filename is not None:
            pictures.check_filename(filename)
        picture = Picture(_draw(self.spans, self._workers, self.traffic))
        if filename is not None:
            picture.save(filename)
        return picture

    def _repr_svg_(self) -> str:
        return self.visualize()._repr_svg_()


@contextmanager
def task_stream(client: Client | None = None) -> Iterator[TaskStream]:
    """Note what runs where and when while the ``with`` block runs.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the one in use. Not for asynchronous clients.

    Yields
    ------
    TaskStream
        Can be drawn once the block has ended.

    Examples
    --------
    >>> with task_stream() as stream:  # doctest: +SKIP
    ...     difference.compute()
    >>> stream.visualize("stream.svg")  # doctest: +SKIP
    """
    client = client or Client.current()
    with measure_traffic(client) as measured:
        stream = TaskStream(measured)
        pools = _pools_of_workers(client)
        # Times are those of the workers' clocks, which Dask puts right only roughly: what ran just before may
        # seem to run inside.
        before = {_identity(note) for note in client.get_task_stream(start="10s")}
        with get_task_stream(client) as notes:
            yield stream
        # Workers that left have done something, those that came as well.
        pools |= _pools_of_workers(client)
        stream._workers = pools
        stream._spans = _spans([note for note in notes.data if _identity(note) not in before], pools)


def _identity(note: Mapping[str, Any]) -> tuple[Any, ...]:
    """Tell one run of a task from all others."""
    return (str(note["key"]), note["worker"], *(part["start"] for part in note["startstops"]))


def _pools_of_workers(client: Client) -> dict[str, str]:
    """Pool of every worker, by address; of several joined by ``+``."""
    return {
        address: "+".join(pools_of_resources(worker.get("resources"))) or NO_POOL
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
    }


def _spans(notes: Iterable[Mapping[str, Any]], pools: Mapping[str, str]) -> tuple[Span, ...]:
    threads: dict[str, dict[int, int]] = {}
    found = []
    for note in notes:
        worker = note["worker"]
        numbers = threads.setdefault(worker, {})
        thread = numbers.setdefault(note.get("thread") or 0, len(numbers))
        for part in note["startstops"]:
            source = part.get("source", "")
            found.append(
                Span(
                    pools.get(worker, NO_POOL),
                    worker,
                    thread,
                    part["action"],
                    str(key_split(note["key"])).partition("@")[0],
                    part["start"],
                    part["stop"],
                    source,
                    pools.get(source, NO_POOL) if source else "",
                )
            )
    if not found:
        return ()
    begin = min(span.start for span in found)
    found = [Span(**{**vars(span), "start": span.start - begin, "stop": span.stop - begin}) for span in found]
    return tuple(sorted(found, key=lambda span: (span.start, span.stop)))


_OPERATIONS = (
    "#4C78A8", "#72B7B2", "#54A24B", "#EECA3B", "#B279A2", "#9D755D", "#FF9DA6", "#BAB0AC"
)  # fmt: skip
"""For the operations that take most time, the longest first; the last stands for all others."""
_LANE, _GAP = 0.62, 0.34


def _draw(spans: tuple[Span, ...], workers: Mapping[str, str], traffic: Traffic) -> Any:
    busy = {span.worker: span.pool for span in spans}
    lanes = sorted(((pool, worker) for worker, pool in {**workers, **busy}.items()))
    pools = sorted({pool for pool, _ in lanes})
    top: dict[str, float] = {}
    y = 0.0
    bands: dict[str, tuple[float, float]] = {}
    for pool in pools:
        begin = y
        for _, worker in (lane for lane in lanes if lane[0] == pool):
            top[worker] = y
            y += _LANE
        bands[pool] = (begin, y)
        y += _GAP
    end = max((span.stop for span in spans), default=1.0)
    figure = pictures.new_figure(12.5, 1.9 + max(y - _GAP, _LANE))
    height = float(figure.get_size_inches()[1])
    axes = figure.add_axes((0.14, 0.55 / height, 0.66, 1 - (0.55 + 0.75) / height))
    axes.set_xlim(0, end * 1.01)
    axes.set_ylim(max(y - _GAP, _LANE) + 0.05, -0.05)
    colours = pictures.colours_of(pools)
    for pool, (begin, stop) in bands.items():
        axes.axhspan(begin, stop, facecolor=pictures.tint(colours[pool], 0.14), zorder=0)
        axes.text(
            -0.165, (begin + stop) / 2, pool, transform=axes.get_yaxis_transform(), color=colours[pool],
            fontsize=11, weight="bold", va="center", ha="left",
        )  # fmt: skip
    axes.set_yticks([top[worker] + _LANE / 2 for _, worker in lanes])
    axes.set_yticklabels([worker.rpartition(":")[2] for _, worker in lanes], fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    _bars(axes, spans, top)
    crossing = _lines(axes, spans, top)
    transfers = "1 transfer" if crossing == 1 else f"{crossing} transfers"
    figure.text(
        0.02, 1 - 0.28 / height,
        f"{format_bytes(traffic.crossed)} crossed between pools in {transfers}; "
        f"{format_bytes(traffic.to_client)} went to the client.",
        fontsize=11, weight="bold", color=pictures.INK, va="center",
    )  # fmt: skip
    return figure


def _bars(axes: Axes, spans: tuple[Span, ...], top: Mapping[str, float]) -> None:
    """Draw a bar for all that took a worker's time: tasks above, what they waited for thin below."""
    from matplotlib.patches import Patch

    seconds: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        if span.action == "compute":
            seconds[span.operation] += span.stop - span.start
    ranked = sorted(seconds, key=lambda name: -seconds[name])
    colour = {name: _OPERATIONS[min(n, len(_OPERATIONS) - 1)] for n, name in enumerate(ranked)}
    threads = dict.fromkeys((span.worker for span in spans), 1)
    for span in spans:
        threads[span.worker] = max(threads[span.worker], span.thread + 1)
    for span in spans:
        share = (_LANE - 0.06) / threads[span.worker]
        y = top[span.worker] + 0.03 + span.thread * share
        thin = span.action != "compute"
        axes.barh(
            y + (share * 0.86 if thin else share * 0.42),
            span.stop - span.start,
            left=span.start,
            height=share * (0.2 if thin else 0.8),
            color=pictures.CROSSING if span.crosses else pictures.FAINT if thin else colour[span.operation],
            edgecolor="white" if not thin else "none",
            linewidth=0.4,
            zorder=2,
        )
    shown = ranked[: len(_OPERATIONS) - 1]
    entries = [Patch(color=colour[name], label=name[:30]) for name in shown]
    if len(ranked) > len(shown):
        entries.append(Patch(color=_OPERATIONS[-1], label=f"{len(ranked) - len(shown)} others"))
    actions = {span.action for span in spans}
    if any(span.crosses for span in spans):
        entries.append(Patch(color=pictures.CROSSING, label="transfer between pools"))
    if actions - {"compute"}:
        entries.append(Patch(color=pictures.FAINT, label="other transfers, disk"))
    axes.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        fontsize=8,
        frameon=False,
        borderaxespad=0,
    )


def _lines(axes: Axes, spans: tuple[Span, ...], top: Mapping[str, float]) -> int:
    """Draw a line from worker to worker for each transfer between pools; returns their number."""
    seen = set()
    for span in spans:
        # One message that several tasks waited for is noted with each of them.
        what = (span.source, span.worker, span.start, span.stop)
        if not span.crosses or what in seen or span.source not in top:
            continue
        seen.add(what)
        down = top[span.worker] > top[span.source]
        axes.annotate(
            "",
            xy=(span.stop, top[span.worker] + (0.02 if down else _LANE - 0.02)),
            xytext=(span.start, top[span.source] + (_LANE - 0.02 if down else 0.02)),
            arrowprops={"arrowstyle": "-|>", "color": pictures.CROSSING, "linewidth": 1.0, "alpha": 0.8},
            zorder=3,
        )
    return len(seen)
