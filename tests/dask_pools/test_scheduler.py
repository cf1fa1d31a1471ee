"""What the plugin does on the scheduler, with real workers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
from dask.array.optimization import optimize as stock
from dask.base import flatten, tokenize
from distributed import Client, LocalCluster, get_worker, wait

import dask_pools
from dask_pools import MixedPoolsError, PoolUnavailableError, VersionMismatchError, connect, pool
from dask_pools.cluster import LocalPools
from dask_pools.pins import source_name
from dask_pools.scheduler import NAME
from leftovers import eventually


def where() -> str:
    (offered,) = get_worker().state.total_resources
    return offered.removeprefix("pool-")


def test_submit_and_map_inside_a_pool_run_there(client):
    for name in ("ecmwf", "eumetsat"):
        with pool(name):
            assert client.submit(where, pure=False).result() == name
            assert set(client.gather(client.map(lambda _: where(), range(6), pure=False))) == {name}


def test_delayed_built_in_a_pool_runs_there_also_when_computed_in_another(client):
    with pool("ecmwf"):
        task = dask.delayed(where)()
    with pool("eumetsat"):
        assert task.compute() == "ecmwf"


def test_work_stays_in_its_pool_while_idle_workers_elsewhere_steal_what_is_free(client):
    def work(_: int, source: bytes) -> str:
        time.sleep(0.05)  # long enough for Dask to think it worth a move
        return where()

    with pool("ecmwf"):
        source = client.submit(bytes, 1000, pure=False)
        client.gather(client.map(work, range(4), source=source, pure=False))  # tells Dask how long they take
        pinned = client.map(work, range(40), source=source, pure=False)
    # The backstop would pin what reads a pinned result: these begin with one of nobody.
    start = client.submit(bytes, 1000, pure=False)
    free = client.map(work, range(40), source=start, pure=False)
    assert set(client.gather(pinned)) == {"ecmwf"}
    assert "eumetsat" in client.gather(free)


def test_a_pin_does_not_limit_how_many_tasks_run_at_once(tmp_path):
    def meet(_: int) -> int:
        # The barrier belongs to the worker, where all four tasks find it.
        barrier = get_worker().__dict__.setdefault("meeting", threading.Barrier(4))
        return int(barrier.wait(timeout=60) >= 0)

    with LocalPools({"ecmwf": 1}, threads_per_worker=4) as cluster, cluster.get_client(), pool("ecmwf"):
        assert sum(dask.compute(*[dask.delayed(meet, pure=False)(i) for i in range(4)])) == 4


def test_other_resources_are_required_as_well(client):
    with dask.annotate(resources={"GPU": 1}), pool("ecmwf"):
        x = da.ones(4, chunks=2, name="needs-a-gpu") + 1
    future = client.compute(x.sum())
    scheduler = client.cluster.scheduler
    assert eventually(lambda: any(scheduler.unrunnable), 30)
    assert all(
        task.resource_restrictions == {"GPU": 1, "pool-ecmwf": 0}
        for task in scheduler.tasks.values()
        if "needs-a-gpu" in str(task.key) or "add" in str(task.key)
    )
    future.cancel()


def test_bare_tasks_follow_the_name_of_the_key_and_then_their_inputs(client):
    a = source_name("x", "ecmwf", tokenize(1))
    b = source_name("x", "eumetsat", tokenize(2))
    graph = {
        a: (where,),
        b: (where,),
        "a-then": (lambda s: (s, where()), a),
        "b-then": (lambda s: (s, where()), b),
    }
    assert client.get(graph, ["a-then", "b-then"]) == [("ecmwf", "ecmwf"), ("eumetsat", "eumetsat")]


def test_results_kept_from_an_earlier_graph_pull_new_tasks_to_their_pool(client):
    with pool("eumetsat"):
        kept = client.persist(da.from_array(np.arange(8.0), chunks=4, name="kept-for-later"))
    ran = (kept.map_blocks(lambda block: np.array([where()] * len(block)), dtype="U8")).compute()
    assert set(ran) == {"eumetsat"}


class Lazy:
    shape, dtype, ndim = (4,), np.dtype("f8"), 1

    def __getitem__(self, index):
        return np.arange(4.0)[index]


def test_a_task_that_dask_fused_from_two_pools_is_refused_by_name(client):
    x, y = (
        da.from_array(Lazy(), chunks=2, name=source_name("x", name, tokenize(name)), inline_array=True)
        for name in ("ecmwf", "eumetsat")
    )
    fused = stock((x + y).dask, list(flatten((x + y).__dask_keys__())))
    with pytest.raises(MixedPoolsError, match="lies in several pools: 'ecmwf', 'eumetsat'"):
        client.get(fused, list(flatten((x + y).__dask_keys__())))


def test_a_pool_nobody_can_supply_fails_at_once_and_says_what_to_type(client):
    with pool("mars"):
        x = da.ones(4, chunks=2, name="on-mars")
    with (
        dask.config.set({"pools.wait-for-workers": "1h"}),  # it does not come to waiting
        pytest.raises(PoolUnavailableError) as error,
    ):
        x.sum().compute()
    assert (error.value.pool, error.value.existing) == ("mars", ("ecmwf", "eumetsat"))
    assert "dask worker tcp://" in str(error.value)
    assert "--resources pool-mars=1" in str(error.value)
    del error


def test_two_clients_with_different_pins_do_not_disturb_each_other(client):
    with Client(client.cluster.scheduler_address, set_as_default=False) as other:
        with pool("ecmwf"):
            mine = [dask.delayed(where, pure=False)() for _ in range(8)]
        with pool("eumetsat"):
            theirs = [dask.delayed(where, pure=False)() for _ in range(8)]
        futures = client.compute(mine), other.compute(theirs)
        assert set(client.gather(futures[0])) == {"ecmwf"}
        assert set(other.gather(futures[1])) == {"eumetsat"}


def test_graphs_without_pins_are_left_alone(client):
    x = client.persist(da.random.random((8, 8), chunks=4) + 1)
    wait(x)
    tasks = client.cluster.scheduler.tasks
    assert not any(tasks[key].resource_restrictions for key in flatten(x.__dask_keys__()))


def test_a_scheduler_without_the_plugin_gets_it_with_the_first_pinned_graph():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            resources={"pool-ecmwf": 1},
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster),
    ):
        with pool("ecmwf"):
            x = da.ones(4, chunks=2)
        assert NAME not in cluster.scheduler.plugins
        assert x.sum().compute() == 4
        assert NAME in cluster.scheduler.plugins


@contextmanager
def worker_with(preparation: str, address: str, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process in which something was done before Dask was imported."""
    script = textwrap.dedent(preparation) + textwrap.dedent(
        f"""
        import sys
        from distributed.cli.dask_worker import main
        sys.argv = ["dask-worker", {address!r}, "--no-nanny", "--nthreads", "1", "--no-dashboard",
                    "--host", "127.0.0.1", "--resources", "pool-{pool}=1", "--death-timeout", "60"]
        main()
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


OLD = "import dask_pools; dask_pools.__version__ = '0.0.1'"
ABSENT = "import sys; sys.modules['dask_pools'] = None"


@pytest.mark.parametrize(("preparation", "found"), [(OLD, "0.0.1"), (ABSENT, "not installed")])
def test_connecting_names_a_worker_without_our_version_and_what_to_install(preparation, found):
    with (
        LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
        worker_with(preparation, cluster.scheduler_address, "ecmwf"),
    ):
        client.wait_for_workers(1, timeout=60)
        with pytest.raises(VersionMismatchError) as error:
            connect(client)
    assert "worker tcp://127.0.0.1:" in str(error.value)
    assert f": {found}" in str(error.value)
    assert f"pip install intake-pools=={dask_pools.__version__}" in str(error.value)


def test_a_worker_that_joins_later_with_another_version_gets_no_pinned_task():
    with LocalPools({"eumetsat": 1}, threads_per_worker=1) as cluster, cluster.get_client() as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with worker_with(OLD, cluster.scheduler_address, "ecmwf"):
                plugin = cluster.scheduler.plugins[NAME]
                assert eventually(lambda: bool(plugin.mismatched), 60)
                with pool("ecmwf"):
                    x = da.ones(4, chunks=2, name="too-old")
                with pytest.raises(PoolUnavailableError, match=r"0\.0\.1"):
                    x.sum().compute()
                assert eventually(lambda: any("0.0.1" in str(w.message) for w in caught))
        assert client.status == "running"


def test_a_p2p_rechunk_uses_workers_that_joined_after_it_was_sent(tmp_path):
    with (
        LocalPools({"ecmwf": 1, "eumetsat": 1}, threads_per_worker=1) as cluster,
        cluster.get_client() as client,
    ):
        with pool("ecmwf"):
            x = da.from_array(np.arange(64.0).reshape(8, 8), chunks=(8, 1), name="rechunk-me")
            slow = x.map_blocks(lambda block: time.sleep(0.5) or block)
        future = client.compute(slow.rechunk((1, 8), method="p2p").sum(1))
        cluster.scale("ecmwf", 2)
        np.testing.assert_array_equal(future.result(timeout=90), np.arange(64.0).reshape(8, 8).sum(1))
