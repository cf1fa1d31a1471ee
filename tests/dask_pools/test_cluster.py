"""Local pools on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, get_worker
from distributed.core import Status

from dask_pools import PoolUnavailableError, pins
from dask_pools.cluster import LocalPools, PoolCluster, PoolSpec
from dask_pools.cluster.launchers import LaunchedWorker, WorkerShape
from dask_pools.cluster.launchers.local import LocalLauncher
from leftovers import children, eventually


def in_pool(pool: str) -> dict[str, Any]:
    """Arguments of `Client.submit` for a new task in a pool."""
    return {"resources": {pins.resource(pool): 0}, "pure": False}


def offered() -> dict[str, float]:
    return dict(get_worker().state.total_resources)


@pytest.fixture(scope="module")
def own_pools() -> Iterator[LocalPools]:
    """Pools of this module's own, to break."""
    with LocalPools({"ecmwf": 1, "eumetsat": 0}) as cluster:
        yield cluster


@pytest.fixture
def small(own_pools: LocalPools) -> Iterator[LocalPools]:
    """A pool of one worker and one of none, with a client that is the current one."""
    own_pools.scale(ecmwf=1, eumetsat=0)
    assert eventually(lambda: own_pools.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": []})
    with Client(own_pools):
        yield own_pools


# Directories


def test_a_relative_path_exists_in_one_pool_only(client: Client, site_dirs: dict[str, Path]) -> None:
    (site_dirs["ecmwf"] / "predictions.txt").write_text("of ecmwf")
    seen = {pool: client.submit(os.path.exists, "predictions.txt", **in_pool(pool)) for pool in site_dirs}
    assert client.gather(seen) == {"ecmwf": True, "eumetsat": False}


def test_each_pool_works_in_its_own_directory(client: Client, site_dirs: dict[str, Path]) -> None:
    found = client.gather({pool: client.submit(os.getcwd, **in_pool(pool)) for pool in site_dirs})
    assert found == {pool: str(directory.resolve()) for pool, directory in site_dirs.items()}


def test_directories_that_were_not_given_are_temporary() -> None:
    with LocalPools({"ecmwf": 0, "eumetsat": 0}) as cluster:
        directories = list(cluster.directories.values())
        assert len(set(directories)) == 2
        assert all(directory.is_dir() for directory in directories)
    assert not any(directory.exists() for directory in directories)


# What it consists of


def test_pools_lists_the_workers_by_pool(pools: LocalPools) -> None:
    assert pools.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"]}


def test_repr_tells_the_address_and_the_workers_of_each_pool(pools: LocalPools) -> None:
    assert pools.scheduler_address in repr(pools)
    assert "ecmwf: 1 worker × 2 threads, eumetsat: 1 worker × 2 threads" in repr(pools)
    page = pools._repr_html_()
    assert "Pool eumetsat:" in page
    assert "1 worker × 2 threads" in page


def test_get_client_gives_the_same_client_again(pools: LocalPools, client: Client) -> None:
    assert pools.get_client() is client


def test_the_dashboard_has_a_link_to_this_machine(pools: LocalPools) -> None:
    assert pools.dashboard_link.startswith("http://127.0.0.1:")


def test_without_a_dashboard_there_is_no_link() -> None:
    with LocalPools({}, dashboard_address=None) as cluster:
        assert cluster.dashboard_link == ""
        assert cluster.get_client().scheduler_info()["workers"] == {}


def test_everything_listens_on_the_loopback_interface_only(pools: LocalPools) -> None:
    listening = [
        connection.laddr.ip
        for process in [psutil.Process(), *children()]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 7  # scheduler and dashboard; nanny, worker and its status page twice, at least
    assert set(listening) == {"127.0.0.1"}


def test_workers_share_the_memory_of_the_machine(pools: LocalPools) -> None:
    limits = [worker["memory_limit"] for worker in pools.scheduler_info["workers"].values()]
    assert sum(limits) <= psutil.virtual_memory().total


def test_logs_name_scheduler_and_workers(pools: LocalPools) -> None:
    assert {"Scheduler", *pools.scheduler_info["workers"]} <= set(pools.get_logs())


def test_workers_get_resources_environment_and_a_command_around_them_as_well() -> None:
    with LocalPools(
        {"ecmwf": 1}, resources={"GPU": 2}, env={"SITE": "here"}, prefixes={"ecmwf": ["env", "ROOM=1"]}
    ) as cluster:
        client = cluster.get_client()
        assert client.submit(offered).result() == {"GPU": 2, "pool-ecmwf": 1}
        assert client.gather([client.submit(os.getenv, name) for name in ("SITE", "ROOM")]) == ["here", "1"]


# How many workers


def test_scale_changes_one_pool_and_leaves_the_other(small: LocalPools) -> None:
    small.scale("ecmwf", 2)
    assert small.wanted("ecmwf") == 2
    assert eventually(lambda: small.pools == {"ecmwf": ["ecmwf-0", "ecmwf-1"], "eumetsat": []})
    small.scale(ecmwf=1)
    assert eventually(lambda: small.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": []})


def test_scaling_down_keeps_what_was_computed(small: LocalPools) -> None:
    small.scale("ecmwf", 2)
    assert eventually(lambda: len(small.pools["ecmwf"]) == 2)
    client = small.get_client()
    (leaving,) = (
        address for address, w in client.scheduler_info()["workers"].items() if w["name"] == "ecmwf-1"
    )
    runs = client.submit(time.time, workers=[leaving], pure=False)
    value = runs.result()
    small.scale("ecmwf", 1)
    assert eventually(lambda: small.pools["ecmwf"] == ["ecmwf-0"])
    assert runs.result() == value


@pytest.mark.parametrize("arguments", [(3,), ("ecmwf",), (2, "ecmwf"), ("ecmwf", "2"), (0.5,)])
def test_scale_without_a_pool_says_what_to_type(pools: LocalPools, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"cluster\.scale\('ecmwf', 2\).*'ecmwf', 'eumetsat'"):
        pools.scale(*arguments)


def test_scale_of_an_unknown_pool_names_the_nearest(pools: LocalPools) -> None:
    with pytest.raises(ValueError, match=r"no pool 'ecwmf'.*Did you mean 'ecmwf'\?.*'eumetsat'"):
        pools.scale("ecwmf", 1)


def test_scale_to_less_than_nothing_is_refused(pools: LocalPools) -> None:
    with pytest.raises(ValueError, match="-1"):
        pools.scale("ecmwf", -1)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "é", ".."])
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be the name"):
        LocalPools({name: 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directories": {"ecwmf": "/"}}, "'ecwmf'.*Pools: 'ecmwf'"),
        ({"directories": {"ecmwf": "/nowhere"}}, "'/nowhere', which is not a directory"),
        ({"prefixes": {"ecwmf": []}}, "prefixes names 'ecwmf'"),
        ({"scheduler": "there"}, "'here' or 'process'"),
        ({"threads_per_worker": 0}, "threads_per_worker"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalPools({"ecmwf": 1}, **arguments)


@pytest.mark.parametrize("count", [-1, 1.5, "2", True])
def test_a_wrong_number_of_workers_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        LocalPools({"ecmwf": count})


# Pools that are wanted


def test_a_pool_without_workers_gets_some_when_a_graph_needs_it(small: LocalPools) -> None:
    with dask.annotate(resources={"pool-eumetsat": 0}):
        where = dask.delayed(os.getcwd)()
    assert where.compute() == str(small.directories["eumetsat"])
    assert small.pools["eumetsat"] == ["eumetsat-0"]


class Refusing:
    """A launcher whose place has no room."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> LaunchedWorker:
        self.asked.append(name)
        raise OSError("no quota left")


def pool_cluster(scratch: Path, **pools: PoolSpec) -> PoolCluster:
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    return PoolCluster(pools, scheduler={"cls": "distributed.Scheduler", "options": options})


def test_the_reason_why_a_worker_did_not_start_reaches_the_user(tmp_path: Path) -> None:
    launcher = Refusing()
    with pool_cluster(tmp_path, full=PoolSpec(launcher, workers=0)) as cluster:
        client = cluster.get_client()
        with pytest.raises(PoolUnavailableError, match=r"'full'.*full-0: OSError: no quota left"):
            client.submit(os.getcwd, **in_pool("full")).result(timeout=20)
        assert len(launcher.asked) == 1
        assert cluster.pools == {"full": []}


def test_a_cluster_whose_first_worker_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PoolUnavailableError, match=r"'full'.*no quota left"):
        pool_cluster(tmp_path, full=PoolSpec(Refusing(), workers=1))


def test_the_maximum_of_a_pool_holds(tmp_path: Path) -> None:
    spec = PoolSpec(LocalLauncher(str(tmp_path)), workers=0, maximum=1)
    with pool_cluster(tmp_path, small=spec) as cluster, pytest.raises(ValueError, match="maximum of 1"):
        cluster.scale("small", 2)


# What goes wrong


def test_a_killed_worker_comes_back_and_the_calculation_goes_on(small: LocalPools) -> None:
    client = small.get_client()
    first = client.submit(os.getpid, **in_pool("ecmwf")).result()
    os.kill(first, signal.SIGKILL)
    second, where = client.gather([client.submit(f, **in_pool("ecmwf")) for f in (os.getpid, os.getcwd)])
    assert second != first
    assert where == str(small.directories["ecmwf"])


def test_after_a_restart_workers_have_their_directory_and_resource(small: LocalPools) -> None:
    client = small.get_client()
    client.restart()
    assert client.submit(os.getcwd, **in_pool("ecmwf")).result() == str(small.directories["ecmwf"])
    assert client.submit(offered).result() == {"pool-ecmwf": 1}


def test_an_exception_inside_the_block_leaves_no_process() -> None:
    before = {process.pid for process in children()}
    with pytest.raises(ZeroDivisionError), LocalPools({"ecmwf": 1}):
        raise ZeroDivisionError
    assert {process.pid for process in children()} <= before


def test_closing_twice_is_closing_once() -> None:
    cluster = LocalPools({})
    cluster.close()
    cluster.close()


# The scheduler in a process of its own


def test_a_scheduler_of_its_own_serves_pools_and_leaves_no_process() -> None:
    before = {process.pid for process in children()}
    with LocalPools({"ecmwf": 1, "eumetsat": 0}, scheduler="process") as cluster:
        client = cluster.get_client()
        assert client.run_on_scheduler(os.getpid) not in {os.getpid(), *before}
        with dask.annotate(resources={"pool-eumetsat": 0}):
            where = dask.delayed(os.getcwd)()
        assert where.compute() == str(cluster.directories["eumetsat"])
        with pytest.raises(PoolUnavailableError, match="'nowhere'"):
            client.submit(os.getcwd, **in_pool("nowhere")).result(timeout=20)
    assert {process.pid for process in children()} <= before


def test_closing_works_after_its_scheduler_was_killed() -> None:
    before = {process.pid for process in children()}
    with LocalPools({"ecmwf": 1}, scheduler="process") as cluster:
        os.kill(cluster.scheduler.pid, signal.SIGKILL)
        assert eventually(lambda: cluster.scheduler.status == Status.closed)
    assert eventually(lambda: {process.pid for process in children()} <= before)


SCRIPT = """
import json, sys, time
import psutil
from dask_pools.cluster import LocalPools

cluster = LocalPools({"ecmwf": 1}, scheduler=sys.argv[1])
print(json.dumps([process.pid for process in psutil.Process().children(recursive=True)]), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that has no ``if __name__ == "__main__"`` and does not close its cluster."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("scheduler", ["here", "process"])
def test_nothing_survives_when_the_client_is_killed(scheduler: str, script: Path) -> None:
    with subprocess.Popen([sys.executable, script, scheduler, "60"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        process.kill()
    assert len(pids) >= 2
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_plain_script_works_and_leaves_no_process(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "here", "0"], capture_output=True, check=True, timeout=110)
    pids = json.loads(done.stdout)
    assert len(pids) >= 2
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert done.stderr == b""


# Asynchronous use


def test_pools_can_be_used_asynchronously() -> None:
    async def use() -> tuple[str, Path]:
        async with (
            LocalPools({"ecmwf": 1}, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await cluster.scale("ecmwf", 1)
            return await client.submit(os.getcwd, **in_pool("ecmwf")), cluster.directories["ecmwf"]

    where, directory = asyncio.run(use())
    assert where == str(directory)
    assert not directory.exists()
