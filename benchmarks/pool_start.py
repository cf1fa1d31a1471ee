"""How soon pools are there: from nothing to a first result, and several pools that are asked for at once.

Wanted: a local pool takes at most 1.1 times as long as Dask's LocalCluster of the same size, with the same
nanny, from nothing to the first result; and three pools whose launchers take 5, 6 and 8 seconds are all there
after at most 1.2 times 8 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import operator
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

from dask_pools.cluster import LocalPools, PoolCluster, PoolSpec
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.provision import ensure_workers
from simulated import WorkerHere, worker_here

START_LIMIT, SLOWEST_LIMIT = 1.1, 1.2
DELAYS = {"near": 5.0, "far": 6.0, "queued": 8.0}


class SlowLauncher:
    """Starts workers in this process, after a while."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> WorkerHere:
        await asyncio.sleep(self.delay)
        return WorkerHere(await worker_here(scheduler, name, dict(shape.resources)))


def to_first_result(make: Callable[[], AbstractContextManager[Any]], **requirements: Any) -> float:
    """Seconds from nothing to the result of one task."""
    start = time.perf_counter()
    with make() as cluster, Client(cluster) as client:
        assert client.submit(operator.add, 1, 2, **requirements).result() == 3
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each arm, in turn")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    quiet = {"silence_logs": logging.ERROR, "dashboard_address": None}
    arms: dict[str, Callable[[], float]] = {
        "LocalCluster": lambda: to_first_result(
            lambda: LocalCluster(n_workers=args.workers, threads_per_worker=1, processes=True, **quiet)
        ),
        "LocalPools": lambda: to_first_result(
            lambda: LocalPools({"here": args.workers}, **quiet), resources={"pool-here": 0}
        ),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for run in range(args.runs + 1):
        for arm in sorted(arms, reverse=bool(run % 2)):
            passed = arms[arm]()
            if run:
                seconds[arm].append(passed)
    plain, ours = (statistics.median(seconds[arm]) for arm in arms)
    start = ours / plain

    pools = {pool: PoolSpec(SlowLauncher(delay), workers=0) for pool, delay in DELAYS.items()}
    with PoolCluster(pools, silence_logs=logging.ERROR) as cluster:
        client = cluster.get_client()
        began = time.perf_counter()
        ensure_workers(client, *pools)
        together = (time.perf_counter() - began) / max(DELAYS.values())

    table = Table("from", "to", "baseline s", "s", "ratio", "wanted", title="How soon pools are there")
    table.add_row(
        "nothing", "first result", f"{plain:.2f}", f"{ours:.2f}", f"{start:.2f}", f"≤ {START_LIMIT}"
    )
    slowest = max(DELAYS.values())
    table.add_row(
        "no workers",
        "three pools",
        f"{slowest:.2f}",
        f"{together * slowest:.2f}",
        f"{together:.2f}",
        f"≤ {SLOWEST_LIMIT}",
    )
    Console().print(table)
    return int(start > START_LIMIT or together > SLOWEST_LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
