"""What placement adds to the scheduler's handling of a graph: seconds and bytes a task.

Wanted: at most 15 % more time than Dask alone takes for the same graph, growing linearly with its tasks, and
at most 200 bytes a task more memory than the same graph takes with annotations of Dask's own. The most that
was in use meanwhile, by either, is told beside it.

Each measurement is a process of its own with a scheduler and no workers: nothing runs, only the handling is
measured, from the arrival of the graph until all its tasks have a state. What counts is the time of the
processor, which is what it takes on a machine that does nothing else: one thread works at a time. The arms
take turns, and the ratio is the median of those of each turn. The graph takes the data of two sites together,
and at each place its spread in time; Dask fuses it as much either way.

The graph grows by places, and its length in time is always the same, for the sake of Dask's own ordering of
tasks: that lists for each task all the roots it depends on, and all the leaves that depend on it. Here each
place has its own, so many whatever the number of places, and Dask alone is linear. With a mean over all
places each of n tasks would depend on all the roots, Dask alone would take n², and whatever is added would
look small.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from distributed import Client, LocalCluster, Scheduler
from rich.console import Console
from rich.table import Table

from dask_pools import pool
from dask_pools.pins import source_name
from dask_pools.scheduler import NAME, install_here

ARMS = ("dask", "annotated", "pools")
SITES = ("ecmwf", "eumetsat")
WANTED = {"time": 1.15, "memory": 200, "growth": 1.2}
"""Growth: the power of the number of tasks that the time rises by; n log n would be 1.1 at these sizes."""


STEPS = 20
"""Chunks in time, at each site."""


def source(site: str, tiles: int, pinned: bool) -> da.Array:
    """Array of `STEPS` by `tiles` chunks, whose loading tasks are pinned, or not."""
    shape = (STEPS * 10, tiles * 10)
    token = tokenize(site, shape)
    name = source_name("t", site, token) if pinned else f"load-{token}"
    # Dask alone is not to have our optimiser, which `pool` switches on.
    with pool(site) if pinned else nullcontext():
        return da.map_blocks(
            _load, chunks=((10,) * STEPS, (10,) * tiles), dtype="f8", meta=np.empty((0, 0)), name=name
        )


def _load(block_info: object = None) -> np.ndarray:
    return np.zeros((10, 10))


def program(tasks: int, pinned: bool) -> da.Array:
    tiles = max(tasks // 187, 1)
    both = da.concatenate([source(site, tiles, pinned) for site in SITES])
    return ((both - both.mean(0)) ** 2).mean(0)


def resident(what: str) -> int:
    """Bytes of memory that this process has resident (VmRSS) or had at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise LookupError(what)


class Stopwatch:
    """Measures the processor time of each graph that a scheduler of this process handles."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.seconds = 0.0
        self._done = threading.Event()
        update_graph = scheduler.stream_handlers["update-graph"]

        async def timed(**message: Any) -> None:
            start = time.process_time()
            await update_graph(**message)
            self.seconds = time.process_time() - start
            self._done.set()

        scheduler.stream_handlers["update-graph"] = timed

    def wait(self) -> None:
        """Wait until the next graph has been handled."""
        self._done.wait()
        self._done.clear()


def measure(arm: str, tasks: int) -> NoReturn:
    """Have a scheduler in this process handle one graph; print what it took, and end this process."""
    dask.config.set({"pools.wait-for-workers": "1h"})
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        stopwatch = Stopwatch(cluster.scheduler)
        if arm == "pools":
            # Not `connect`, which would have the client wait for workers.
            client.run_on_scheduler(install_here)
            client.run_on_scheduler(_expect_workers)
        else:
            dask.config.config.pop("array_optimize", None)
        annotations = {"resources": {"any": 0}} if arm == "annotated" else {}
        for size in (200, tasks):  # the first one warms up
            graph = program(size, arm == "pools")
            before = resident("VmRSS")
            with dask.annotate(**annotations):
                future = client.compute(graph)
            stopwatch.wait()
            peak = resident("VmHWM")
            # What has been freed, and the C library keeps for later, is nobody's.
            ctypes.CDLL(None).malloc_trim(0)
            after = resident("VmRSS")
        found = {
            "tasks": handled(client)["tasks"],
            "seconds": stopwatch.seconds,
            "bytes": after - before,
            "peak": peak - before,
        }
        print(json.dumps(found), flush=True)
        # Not by closing: to release a million tasks that wait takes longer than to handle them.
        os._exit(0)
    raise AssertionError(future)


def _expect_workers(dask_scheduler: Scheduler) -> None:
    """Have tasks wait for the pools: how they are given up is not measured here."""
    dask_scheduler.plugins[NAME].seen.update(SITES)


def handled(client: Client) -> dict[str, float]:
    """What the scheduler says of the graph it took last."""
    updates = [event for _, event in client.get_events("scheduler") if event.get("action") == "update-graph"]
    return dict(updates[-1]["metrics"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--runs", type=int, help="runs of each arm, in turn; by default the fewer the larger a graph is"
    )
    parser.add_argument("--arm", choices=ARMS, help="measure one arm of one size, and print it as JSON")
    args = parser.parse_args()
    if args.arm:
        measure(args.arm, args.sizes[0])
    table = Table(
        "tasks",
        "Dask µs/task",
        "with pools",
        "ratio",
        "bytes/task added",
        "peak added",
        "grows as",
        title="Placement: speed",
    )
    met = True
    before: tuple[float, float] | None = None
    for size in args.sizes:
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for run in range(args.runs or min(max(500_000 // size, 1), 15)):
            for arm in ARMS[:: 1 if run % 2 else -1]:
                command = [sys.executable, __file__, "--arm", arm, "--sizes", str(size)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[arm].append(json.loads(out.splitlines()[-1]))

        def per_task(arm: str, what: str, found: dict[str, list[dict[str, float]]] = found) -> float:
            return statistics.median(one[what] / one["tasks"] for one in found[arm])

        turns = zip(found["pools"], found["dask"], strict=True)
        ratio = statistics.median(
            (ours["seconds"] / ours["tasks"]) / (dasks["seconds"] / dasks["tasks"]) for ours, dasks in turns
        )
        added = per_task("pools", "bytes") - per_task("annotated", "bytes")
        peak = per_task("pools", "peak") - per_task("annotated", "peak")
        met &= ratio <= WANTED["time"] and added <= WANTED["memory"]
        tasks, seconds = found["pools"][0]["tasks"], per_task("pools", "seconds") * found["pools"][0]["tasks"]
        power = ""
        if before is not None:
            growth = math.log(seconds / before[1]) / math.log(tasks / before[0])
            met &= growth <= WANTED["growth"]
            power = f"n^{growth:.2f}"
        before = tasks, seconds
        table.add_row(
            f"{tasks:,.0f}",
            f"{per_task('dask', 'seconds') * 1e6:.0f}",
            f"{per_task('pools', 'seconds') * 1e6:.0f}",
            f"{ratio:.2f}",
            f"{added:.0f}",
            f"{peak:.0f}",
            power,
        )
    Console().print(table)
    sys.exit(not met)


if __name__ == "__main__":
    main()
