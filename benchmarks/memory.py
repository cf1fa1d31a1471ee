"""Memory of a large fan-in: pinned roots against the same ones without pins, in one pool.

Wanted: the peak of the workers' resident memory, summed, is at most 1.1 times that of plain Dask, for a
fan-in of more than ten times that peak. The third arm sends all pinned roots at once, as Dask does with tasks
that are tied to workers (``distributed.scheduler.worker-saturation: inf`` switches the queue off). The
workers have no memory limit, so nothing is spilled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import dask
import dask.array as da
import numpy as np
import psutil
from distributed import Client
from rich.console import Console
from rich.table import Table

from dask_pools import pool
from dask_pools.cluster import LocalPools

LIMIT = 1.1
CHUNK = (1, 1000, 1000)
"""8 MB of doubles."""


class Peak(threading.Thread):
    """Watches the resident memory of processes, summed."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self._processes = [psutil.Process(pid) for pid in pids]
        self._stopped = threading.Event()
        self.nbytes = 0

    def run(self) -> None:
        while not self._stopped.wait(0.01):
            self.nbytes = max(self.nbytes, sum(one.memory_info().rss for one in self._processes))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextmanager
def peak_of(client: Client) -> Iterator[Peak]:
    """Watch the workers inside the block."""
    peak = Peak(list(client.run(os.getpid).values()))
    peak.start()
    try:
        yield peak
    finally:
        peak.stop()


def fan_in(roots: int, pinned: bool) -> da.Array:
    """Mean of so many chunks, each made by a task of its own."""
    starts = da.arange(roots, chunks=1, dtype="f8")
    with pool("here") if pinned else nullcontext():
        values = starts.map_blocks(
            lambda start: np.full(CHUNK, start[0]),
            new_axis=(1, 2),
            chunks=((1,) * roots, CHUNK[1:2], CHUNK[2:3]),
            dtype="f8",
        )
    return values.mean(0)


def run(roots: int, pinned: bool, saturation: float) -> tuple[float, int]:
    """Seconds and peak in bytes, with workers of its own."""
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": saturation}),
        LocalPools({"here": 2}, threads_per_worker=2, memory_limit=None) as cluster,
        cluster.get_client() as client,
    ):
        fan_in(8, pinned).compute()
        mean = fan_in(roots, pinned)
        with peak_of(client) as peak:
            start = time.perf_counter()
            result = mean.persist()
            result = result.compute()
            seconds = time.perf_counter() - start
        np.testing.assert_allclose(result, (roots - 1) / 2)
    return seconds, peak.nbytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roots", type=int, default=1200, help="how many chunks of 8 MB")
    parser.add_argument("--runs", type=int, default=5, help="of each arm, in turn")
    args = parser.parse_args()
    arms = {
        "plain Dask": (False, 1.1),
        "pinned": (True, 1.1),
        "pinned, without the queue": (True, float("inf")),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peaks: dict[str, list[int]] = {arm: [] for arm in arms}
    for _ in range(args.runs):
        for arm, (pinned, saturation) in arms.items():
            taken, peak = run(args.roots, pinned, saturation)
            seconds[arm].append(taken)
            peaks[arm].append(peak)

    plain = statistics.median(peaks["plain Dask"])
    total = args.roots * 8 * np.prod(CHUNK)
    title = (
        f"Fan-in of {args.roots} chunks, {total / 1e9:.1f} GB: {total / plain:.0f} × the peak of plain Dask"
    )
    table = Table("arm", "peak / MB", "/ plain", "seconds", title=title)
    for arm in arms:
        peak = statistics.median(peaks[arm])
        table.add_row(
            arm, f"{peak / 1e6:.0f}", f"{peak / plain:.2f}", f"{statistics.median(seconds[arm]):.1f}"
        )
    Console().print(table)
    ratio = statistics.median(peaks["pinned"]) / plain
    print(f"Pinned, the peak is {ratio:.2f} × that of plain Dask; allowed are {LIMIT} ×.")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
