"""Workers and whole pools that are lost, come back or join in the middle of a calculation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, get_worker

from dask_pools import pool
from dask_pools.cluster import LocalPools
from dask_pools.scheduler import NAME
from leftovers import eventually

N = 40


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Client of two pools that are there to be broken, the current one."""
    with (
        LocalPools({"ecmwf": 1, "eumetsat": 1}, threads_per_worker=1) as cluster,
        cluster.get_client() as client,
    ):
        yield client


def slow(name: str) -> da.Array:
    """Numbers from 0 on; each task makes sure that it runs in its pool."""

    def make(value: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        assert f"pool-{name}" in get_worker().state.total_resources
        return value

    with pool(name):
        return da.arange(N, chunks=1).map_blocks(make, dtype=int)


def kill(client: Client, name: str, most: int | None = None) -> None:
    """Kill the workers of a pool, all or so many, and the nannies that would bring them back."""
    workers = client.scheduler_info()["workers"].items()
    of_pool = [address for address, worker in workers if f"pool-{name}" in worker["resources"]]
    for address in of_pool[:most]:
        (pid,) = client.run(os.getpid, workers=[address]).values()
        os.killpg(os.getpgid(pid), signal.SIGKILL)


def in_memory(client: Client) -> int:
    return sum(len(worker.has_what) for worker in client.cluster.scheduler.workers.values())


def check_state(client: Client) -> None:
    """What the plugin keeps for a calculation goes with it."""
    scheduler = client.cluster.scheduler
    assert eventually(lambda: not scheduler.tasks)
    plugin = scheduler.plugins[NAME]
    assert eventually(lambda: not plugin._missing)
    assert not plugin._queue._roots
    assert not plugin._queue._ready
    assert set(plugin.status()["pools"]) == {"ecmwf", "eumetsat"}


def test_a_pool_that_is_lost_whole_and_comes_back_costs_time_only(client):
    # One of ten results of ecmwf is needed at eumetsat.
    x, y = slow("ecmwf"), slow("eumetsat")
    future = client.compute((x[::10].sum() + y).sum() + x.sum())
    assert eventually(lambda: in_memory(client) > 8)
    kill(client, "ecmwf")
    # The cluster starts another.
    assert future.result(timeout=60) == N * sum(range(0, N, 10)) + 2 * sum(range(N))
    del future
    check_state(client)


def test_workers_that_join_half_way_share_the_work_of_their_pool(client):
    x, y = slow("ecmwf"), slow("eumetsat")
    future = client.compute(x.sum() + y.sum())
    assert eventually(lambda: in_memory(client) > 4)
    client.cluster.scale("ecmwf", 2)
    assert future.result(timeout=60) == 2 * sum(range(N))
    del future
    check_state(client)


def test_a_worker_that_is_killed_half_way_costs_time_only(client):
    client.cluster.scale("ecmwf", 2)
    client.wait_for_workers(3, timeout=60)
    x, y = slow("ecmwf"), slow("eumetsat")
    future = client.compute((x[::10].sum() + y).sum() + x.sum())
    assert eventually(lambda: in_memory(client) > 8, 20)
    kill(client, "ecmwf", most=1)
    assert future.result(timeout=60) == N * sum(range(0, N, 10)) + 2 * sum(range(N))
    del future
    check_state(client)


def test_two_clients_with_different_pins_do_not_disturb_each_other(client):
    with Client(client.cluster, set_as_default=False) as other:
        mine, theirs = slow("ecmwf"), slow("eumetsat")
        futures = [client.compute(mine.sum()), other.compute(theirs.sum())]
        assert [future.result(timeout=60) for future in futures] == [sum(range(N))] * 2
        with dask.config.set({"pools.propagate": False}):
            # Whoever switches pins off does so for what is sent then.
            free = other.compute(da.ones(4, chunks=1).sum())
        again = client.compute(slow("eumetsat").max())
        assert (free.result(timeout=60), again.result(timeout=60)) == (4, N - 1)
        del futures, free, again
    check_state(client)
