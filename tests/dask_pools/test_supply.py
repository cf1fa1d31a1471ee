"""Pools that grow, shrink and fail, with a launcher that follows a script (tests/dask_pools/scripted.py)."""

from __future__ import annotations

import operator
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import pytest
from distributed import Client, wait
from scripted import Scripted, cluster_of

from dask_pools import PoolUnavailableError, pool
from dask_pools.cluster import PoolCluster, PoolSpec, pool_cluster, standing
from dask_pools.provision import ensure_workers
from dask_pools.scheduler import TOPIC, PoolsPlugin
from leftovers import eventually


def events(cluster: PoolCluster, action: str) -> list[dict[str, Any]]:
    return [event for _, event in cluster.scheduler.get_events(TOPIC) if event["action"] == action]


GO = threading.Event()


RAN: list[int] = []


def when_told(value: int) -> int:
    GO.wait(60)
    RAN.append(value)
    return value


def numbers(name: str, n: int, seconds: float = 0.0) -> da.Array:
    """As many numbers from 0 on, each made by a task in this pool that takes so long."""

    def make(block: Any) -> Any:
        time.sleep(seconds)
        return block

    with pool(name):
        return da.arange(n, chunks=1).map_blocks(make, dtype=int)


# What goes wrong


def test_a_launcher_that_never_delivers_is_told_to_stop_and_asked_again_when_somebody_asks():
    launcher = Scripted("hang")
    with cluster_of(slow=PoolSpec(launcher, workers=0, timeout=0.5)) as cluster:
        client = cluster.get_client()
        with pytest.raises(PoolUnavailableError, match=r"'slow'.*slow-0: it did not come within 0\.5 s"):
            ensure_workers(client, "slow", timeout=60)
        assert launcher.cancelled == 1
        assert cluster.pools == {"slow": []}
        assert not cluster.workers
        cluster.scale("slow", 1)
        ensure_workers(client, "slow", timeout=60)
        # Who was called off may come yet, so its name is not given away.
        assert cluster.pools == {"slow": ["slow-1"]}


def test_a_worker_that_comes_after_its_request_was_withdrawn_is_sent_home():
    launcher = Scripted("queue")
    with cluster_of(queue=PoolSpec(launcher, workers=0)) as cluster:
        cluster.scale("queue", 1)
        assert eventually(lambda: bool(launcher.launched))
        assert cluster.pools == {"queue": []}
        cluster.scale("queue", 0)
        assert eventually(lambda: launcher.launched[0].closed)
        worker = cluster.sync(launcher.deliver, "queue-0")
        assert eventually(lambda: worker.status.name == "closed")
        assert not cluster.scheduler.workers
        assert eventually(lambda: len(events(cluster, "sent home")) == 1)
        assert events(cluster, "sent home")[0]["worker"] == "queue-0"


def test_of_several_workers_those_that_failed_are_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(standing, "LONGEST_PAUSE", 0.1)
    launcher = Scripted("", "refuse no node", "", "refuse no node")
    with cluster_of(ecmwf=PoolSpec(launcher, workers=3)) as cluster:
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 3)
        assert len(launcher.asked) == 5


def test_a_launcher_that_keeps_failing_makes_the_pool_failed_until_somebody_asks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(standing, "LONGEST_PAUSE", 0.1)
    launcher = Scripted("", *["refuse Quota of 1 node exceeded (QOS)"] * 50)
    with cluster_of(ecmwf=PoolSpec(launcher, workers=1)) as cluster:
        cluster.scale("ecmwf", 2)
        assert eventually(lambda: "failed: " in repr(cluster))
        assert "OSError: Quota of 1 node exceeded (QOS)" in repr(cluster)
        attempts = len(launcher.asked)
        assert attempts == 1 + standing.ATTEMPTS
        # What is there goes on working, and nothing is tried while it does.
        assert numbers("ecmwf", 20, 0.1).sum().compute() == 190
        assert len(launcher.asked) == attempts
        assert cluster.pools == {"ecmwf": ["ecmwf-0"]}
        launcher.script.clear()
        cluster.scale("ecmwf", 2)
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 2)
        assert "failed" not in repr(cluster)


def test_workers_of_another_pool_are_sent_home():
    launcher = Scripted("pool eumetsat")
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0)) as cluster:
        with pytest.raises(PoolUnavailableError, match="offers 'eumetsat' instead of 'ecmwf'"):
            ensure_workers(cluster.get_client(), "ecmwf", timeout=60)
        assert eventually(lambda: not cluster.scheduler.workers)
        assert eventually(lambda: launcher.launched[0].closed)
        cluster.scale("ecmwf", 1)
        assert eventually(lambda: cluster.pools == {"ecmwf": ["ecmwf-1"]})


def test_workers_of_an_old_version_are_sent_home(monkeypatch: pytest.MonkeyPatch):
    async def version(*_: object) -> str:
        return "0.0.1"

    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0)) as cluster:
        with monkeypatch.context() as patch:
            patch.setattr(PoolsPlugin, "_version_of", version)
            with pytest.raises(PoolUnavailableError, match=r"ecmwf.*0\.0\.1"):
                ensure_workers(cluster.get_client(), "ecmwf", timeout=60)
            assert eventually(lambda: not cluster.scheduler.workers and launcher.launched[0].closed)
        cluster.scale("ecmwf", 1)
        ensure_workers(cluster.get_client(), "ecmwf", timeout=60)


def test_workers_killed_in_the_middle_of_a_calculation_are_replaced_and_it_is_right():
    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=2)) as cluster, cluster.get_client() as client:
        total = client.compute(numbers("ecmwf", 60, 0.05).sum())
        assert eventually(lambda: len(cluster.scheduler.tasks) > 40)
        victim = launcher.launched[0].worker
        assert victim is not None
        cluster.sync(victim.close, executor_wait=False)
        assert total.result(timeout=60) == 1770
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 2)
        assert len(launcher.asked) == 3


def test_workers_whose_time_is_up_in_the_middle_of_a_calculation_are_replaced_and_it_is_right(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pool_cluster, "LASTING", 0)  # as if they had run for long
    launcher = Scripted("lifetime 1s", "lifetime 1s")
    with cluster_of(ecmwf=PoolSpec(launcher, workers=2)) as cluster, cluster.get_client() as client:
        assert client.compute(numbers("ecmwf", 80, 0.05).sum()).result(timeout=60) == 3160
        assert eventually(lambda: len(launcher.asked) == 4 and len(cluster.pools["ecmwf"]) == 2)


def test_a_worker_whose_time_is_up_gives_its_results_to_its_own_pool():
    launcher = Scripted()
    pools = {"ecmwf": PoolSpec(launcher, workers=2), "eumetsat": PoolSpec(Scripted(), workers=1)}
    with cluster_of(**pools) as cluster, cluster.get_client() as client:
        held = numbers("ecmwf", 20, 0.01).persist()
        wait(held)
        leaving = launcher.launched[0].worker
        assert leaving is not None
        assert leaving.data
        cluster.sync(leaving.close_gracefully)  # as its --lifetime would have it do
        kept = [task for task in cluster.scheduler.tasks.values() if task.state == "memory"]
        assert len(kept) >= 20  # nothing has to be computed again
        holders = {holder.name for task in kept for holder in task.who_has or ()}
        assert all(str(name).startswith("ecmwf-") for name in holders)
        assert leaving.name not in holders
        # Nor are there others where somebody else says who goes. A worker that has joined is one of the pool
        # when the scheduler knows its version.
        asked = client.scheduler.pools_status
        assert eventually(lambda: client.sync(asked)["pools"]["ecmwf"]["workers"] == 2)
        client.retire_workers(names=["ecmwf-1"])
        kept = [task for task in cluster.scheduler.tasks.values() if task.state == "memory"]
        assert len(kept) >= 20
        assert "eumetsat-0" not in {holder.name for task in kept for holder in task.who_has or ()}


def test_whatever_a_launcher_does_the_result_is_right_and_every_worker_is_counted(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(standing, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(standing, "ATTEMPTS", 50)  # so many faults at once would be the end of the pool
    launcher = Scripted("", "hang", "queue", "pool dwd", "refuse no node", "lifetime 1s")
    pools = {
        "ecmwf": PoolSpec(launcher, workers=1, timeout=5),
        "eumetsat": PoolSpec(Scripted(), workers=1),
    }
    with cluster_of(**pools) as cluster, cluster.get_client() as client:
        total = client.compute((numbers("ecmwf", 80, 0.05) + numbers("eumetsat", 80)).sum())
        cluster.scale("ecmwf", 6)
        assert eventually(lambda: not launcher.script)
        assert total.result(timeout=60) == 6320
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 6)
        [late] = launcher.queued
        assert late not in cluster.pools["ecmwf"]
        unwanted = cluster.sync(launcher.deliver, late)
        assert eventually(lambda: unwanted.status.name == "closed")

        def counted() -> bool:
            living = {one.worker.name for one in launcher.launched if one.worker and one.runs}
            there = {worker.name for worker in cluster.scheduler.workers.values()}
            return living == set(cluster.pools["ecmwf"]) and there == set(cluster.worker_spec)

        assert eventually(counted)
        assert len(cluster.pools["ecmwf"]) == 6
        assert launcher.cancelled == 1


def test_two_clients_that_ask_at_once_are_one_request():
    launcher = Scripted(delay=0.5)
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0)) as cluster:
        clients = [Client(cluster.scheduler_address, set_as_default=False) for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda client: ensure_workers(client, "ecmwf"), clients))
        for client in clients:
            client.close()
        assert launcher.asked == ["ecmwf-0"]


def test_a_request_while_the_pool_shrinks_to_nothing_brings_it_up_again():
    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=1)) as cluster, cluster.get_client():
        held = numbers("ecmwf", 10).persist()
        wait(held)
        cluster.scale("ecmwf", 0)
        # Nobody else could take what was held: it is computed again.
        assert held.sum().compute() == 45
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 1)
        assert launcher.launched[0].closed


def test_hours_are_a_limit():
    spec = PoolSpec(Scripted(), workers=1, max_hours=1e-4)
    with cluster_of(ecmwf=spec) as cluster:
        with pool("ecmwf"):
            endless = [cluster.get_client().submit(time.sleep, 0.5, pure=False) for _ in range(20)]
        assert eventually(lambda: "hours of workers are used up (max_hours)" in repr(cluster))
        # What was in the middle of a calculation ends with the reason, and does not wait for ever.
        with pytest.raises(PoolUnavailableError, match=r"used up \(max_hours\)"):
            endless[-1].result(timeout=60)
        assert eventually(lambda: not cluster.scheduler.workers)
        with pytest.raises(PoolUnavailableError, match=r"used up \(max_hours\)"):
            ensure_workers(cluster.get_client(), "ecmwf")
        with pytest.raises(ValueError, match="used up"):
            cluster.scale("ecmwf", 1)


def test_tasks_that_may_run_anywhere_wake_a_pool_where_all_are_asleep():
    launchers = Scripted(), Scripted()
    pools = dict(zip(("ecmwf", "eumetsat"), launchers, strict=True))
    with cluster_of(**{name: PoolSpec(one, workers=0) for name, one in pools.items()}) as cluster:
        assert cluster.get_client().submit(abs, -1).result(timeout=60) == 1
        assert [len(one.asked) for one in launchers] == [1, 0]


# Growing and shrinking


def test_a_pool_adapts_from_none_to_some_to_none_and_loses_no_result():
    GO.clear()
    RAN.clear()
    launcher = Scripted()
    pools = {"ecmwf": PoolSpec(launcher, workers=0), "eumetsat": PoolSpec(Scripted(), workers=1)}
    with cluster_of(**pools) as cluster, cluster.get_client() as client:
        cluster.adapt("ecmwf", maximum=3, target_duration="100ms", idle="1s")
        assert "adapts from 0 to 3" in repr(cluster)
        with pool("ecmwf"):
            held = [client.submit(when_told, number) for number in range(40)]
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 3)
        # All have been busy since they came, so none can have gone: each was asked for once.
        assert launcher.asked == ["ecmwf-0", "ecmwf-1", "ecmwf-2"]
        # From here on one is enough, however slow this machine is.
        cluster.adapt("ecmwf", maximum=3, target_duration="1 h", idle="1s")
        GO.set()
        assert client.gather(held) == list(range(40))
        # One is left, which holds everything: nothing was moved to the other pool to save it.
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 1)
        [last] = cluster.pools["ecmwf"]
        holders = {w.name for t in cluster.scheduler.tasks.values() for w in t.who_has or ()}
        assert holders == {last}
        with pool("ecmwf"):
            assert client.submit(sum, held).result() == 780
        assert cluster.pools["ecmwf"] == [last]
        assert len(launcher.asked) == 3
        assert sorted(RAN) == list(range(40))  # nothing had to be computed again
        del held
        assert eventually(lambda: cluster.pools["ecmwf"] == [])
        assert cluster.pools["eumetsat"] == ["eumetsat-0"]
        assert eventually(lambda: all(one.closed for one in launcher.launched))


def test_a_pool_keeps_a_worker_for_work_that_waits_for_another_pool():
    GO.clear()
    quick = PoolSpec(Scripted(), workers=0)
    with cluster_of(ecmwf=quick, eumetsat=PoolSpec(Scripted(), workers=1)) as cluster, cluster.get_client():
        cluster.adapt("ecmwf", idle="1s")
        with pool("eumetsat"):
            slow = dask.delayed(when_told, pure=False)(2)
        with pool("ecmwf"):
            waiting = dask.delayed(operator.add)(slow, 3).persist()
        # Asked for before the first task is sent, not when its turn comes.
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 1)
        time.sleep(3)  # longer than it may be idle
        assert cluster.pools["ecmwf"] == ["ecmwf-0"]
        GO.set()
        assert waiting.compute() == 5
        del waiting
        assert eventually(lambda: cluster.pools["ecmwf"] == [])


def test_a_pool_that_is_scaled_adapts_no_more():
    # Who says how many there are to be at least need not be asked as well.
    with cluster_of(ecmwf=PoolSpec(Scripted(), workers=0, provision="never")) as cluster:
        cluster.adapt(idle="100ms", minimum=1)
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 1)
        cluster.scale("ecmwf", 2)
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 2)
        assert "adapts" not in repr(cluster)


def test_adapt_checks_its_bounds():
    with cluster_of(ecmwf=PoolSpec(Scripted(), workers=0, maximum=4)) as cluster:
        with pytest.raises(ValueError, match="maximum of 4"):
            cluster.adapt("ecmwf", maximum=5)
        with pytest.raises(ValueError, match="no pool 'ecwmf'"):
            cluster.adapt("ecwmf")
        with pytest.raises(ValueError, match="maximum of 1"):
            cluster.adapt("ecmwf", minimum=2, maximum=1)
        with pytest.raises(ValueError, match="target_duration='0 s': nothing is done in no time"):
            cluster.adapt("ecmwf", target_duration="0 s")
        with pytest.raises(TypeError, match=r"cluster\.adapt\('ecmwf', minimum=0, maximum=4\)"):
            cluster.adapt(0, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Pool 'ecmwf' is 2; give a PoolSpec"):
        PoolCluster({"ecmwf": 2})  # type: ignore[dict-item]


def test_logs_of_a_pool_are_by_worker():
    with cluster_of(ecmwf=PoolSpec(Scripted("queue"), workers=2)) as cluster:
        assert eventually(lambda: len(cluster.pools["ecmwf"]) == 1)
        logs = cluster.logs("ecmwf")
        assert list(logs) == ["ecmwf-0", "ecmwf-1"]
        assert "nothing but the script" in logs.values()
        with pytest.raises(ValueError, match="no pool 'eumetsat'"):
            cluster.logs("eumetsat")
