"""Pinned roots wait for room in their pool, and nothing waits for ever."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, SchedulerPlugin, wait

from dask_pools import PoolUnavailableError, connect, pool
from dask_pools.cluster import LocalPools
from dask_pools.queueing import HELD
from leftovers import eventually


class Busiest(SchedulerPlugin):
    """The most tasks that the scheduler had given to any worker at once."""

    name = "busiest-worker-of-this-test"

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.tasks = 0

    def transition(self, key, start, finish, *args, **kwargs):
        if finish == "processing":
            self.tasks = max(self.tasks, *(len(w.processing) for w in self.scheduler.workers.values()))


@contextmanager
def watched(scheduler: Scheduler) -> Iterator[Busiest]:
    busiest = Busiest(scheduler)
    scheduler.add_plugin(busiest)
    try:
        yield busiest
    finally:
        scheduler.remove_plugin(busiest.name)


def roots(name: str, n: int, seconds: float = 0.0) -> da.Array:
    """As many numbers from 0 on, each made by a task in this pool."""

    def make(value: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return value

    with pool(name):
        return da.arange(n, chunks=1).map_blocks(make, dtype=int)


@pytest.mark.parametrize("saturation", [1.0, 2.0, math.inf])
def test_no_worker_is_sent_more_roots_than_worker_saturation_says(pools, client, monkeypatch, saturation):
    monkeypatch.setattr(pools.scheduler, "WORKER_SATURATION", saturation)
    a, b = roots("ecmwf", 40), roots("eumetsat", 40)
    with watched(pools.scheduler) as busiest:
        assert dask.compute(a.sum(), b.sum()) == (780, 780)
    # Two threads each. Consumers of what is there are sent at once, and come on top.
    if math.isinf(saturation):
        assert busiest.tasks > 20
    else:
        assert busiest.tasks <= 2 * saturation + 2


def test_what_loads_waits_in_line_however_few_there_are(pools, client, monkeypatch):
    """Four chunks for two threads may be four large ones."""
    monkeypatch.setattr(pools.scheduler, "WORKER_SATURATION", 1.0)
    with pool("ecmwf"):
        x = da.from_array(np.ones(4), chunks=1, inline_array=True)
    with watched(pools.scheduler) as busiest:
        assert x.map_blocks(lambda chunk: time.sleep(0.1) or chunk, dtype=float).sum().compute() == 4
    assert busiest.tasks <= 3  # two threads, and a consumer of what is there


def test_results_are_consumed_before_further_roots_are_made(pools, client):
    most = 0

    class Held(SchedulerPlugin):
        name = "results-held-in-this-test"

        def transition(self, key, start, finish, *args, **kwargs):
            nonlocal most
            in_memory = sum(
                "made-here" in str(one.key) for w in pools.scheduler.workers.values() for one in w.has_what
            )
            most = max(most, in_memory)

    with pool("ecmwf"):
        made = [dask.delayed(int)(i, dask_key_name=f"made-here-{i}") for i in range(60)]
        read = [dask.delayed(lambda i: i + 1)(one) for one in made]
    pools.scheduler.add_plugin(plugin := Held())
    try:
        assert sum(dask.compute(*read)) == 1830
    finally:
        pools.scheduler.remove_plugin(plugin.name)
    assert most < 10


def test_a_worker_of_two_pools_has_one_count_of_slots():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=None,
            resources={"pool-ecmwf": 1, "pool-eumetsat": 1},
        ) as cluster,
        Client(cluster) as client,
    ):
        connect(client)
        a, b = roots("ecmwf", 30), roots("eumetsat", 30)
        with watched(cluster.scheduler) as busiest:
            assert dask.compute(a.sum(), b.sum()) == (435, 435)
        assert busiest.tasks <= 3 + 2


def test_waiting_in_line_is_not_taken_for_lack_of_workers(pools, client, monkeypatch):
    monkeypatch.setattr(pools.scheduler, "no_workers_timeout", 0.6)
    x = roots("ecmwf", 48, seconds=0.05).persist()
    while pools.scheduler.unrunnable:
        pools.scheduler.loop.add_callback(pools.scheduler._check_no_workers)
        time.sleep(0.05)
    assert x.sum().compute() == 1128


def test_roots_of_a_missing_pool_fail_with_its_name(client):
    with pytest.raises(PoolUnavailableError, match="'nowhere'"):
        roots("nowhere", 50).sum().compute()


def test_cancelled_roots_leave_the_line(pools, client):
    future = client.compute(roots("ecmwf", 60, seconds=0.05).sum())
    assert eventually(lambda: len(pools.scheduler.unrunnable) > 30)
    future.cancel()
    del future
    assert eventually(lambda: not pools.scheduler.tasks)
    assert roots("ecmwf", 30).sum().compute() == 435


@pytest.fixture(scope="module")
def pair() -> Iterator[Client]:
    """Client of a pool of two workers of one thread, the current one."""
    with LocalPools({"ecmwf": 2}, threads_per_worker=1) as cluster, cluster.get_client() as client:
        yield client


@pytest.fixture
def unstolen(pair: Client) -> Iterator[None]:
    """No task moves to another worker because that one is idle."""
    stealing = pair.cluster.scheduler.extensions["stealing"]
    pair.cluster.sync(stealing.stop)
    yield
    pair.cluster.sync(stealing.start)


@pytest.mark.usefixtures("unstolen")
def test_without_a_queue_neighbours_go_to_one_worker(pair, monkeypatch):
    monkeypatch.setattr(pair.cluster.scheduler, "WORKER_SATURATION", math.inf)
    x = roots("ecmwf", 40).persist()
    wait(x)
    holders = [list(pair.cluster.scheduler.tasks[key].who_has) for key in x.__dask_keys__()]
    # Dealt out one by one it would be about 20.
    assert 1 <= sum(one != other for one, other in itertools.pairwise(holders)) <= 8


def test_nothing_is_lost_when_workers_come_and_go(pair):
    scheduler = pair.cluster.scheduler
    x = roots("ecmwf", 60, seconds=0.05).persist()
    assert eventually(lambda: sum(len(w.has_what) for w in scheduler.workers.values()) > 6)
    # One is killed and comes back, one is new.
    pids = pair.run(os.getpid)
    os.kill(pids[min(pids)], signal.SIGKILL)
    pair.cluster.scale("ecmwf", 3)
    wait(x)
    assert x.sum().compute() == 1770
    assert not any(HELD in (one.resource_restrictions or {}) for one in scheduler.tasks.values())


def test_a_fault_in_the_queue_sends_everything(pools, client, monkeypatch):
    def fail(self, pool):
        raise RuntimeError("a fault made for this test")

    monkeypatch.setattr("dask_pools.queueing.RootQueue._room", fail)
    assert roots("ecmwf", 40).sum().compute() == 780
