"""Pools whose workers are jobs of a real Slurm: two partitions are two data centres."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import pytest
from batch import QUOTA, Slurm
from calculations import calculate, in_pool
from distributed import Client, Security

from dask_pools import PoolUnavailableError
from dask_pools.cluster import PoolCluster, adopt, pool_specs
from dask_pools.cluster.launchers import jobqueue
from dask_pools.cluster.orphans import NoOrphanError, clean_up
from dask_pools.data_centres import parse
from documented import shown
from leftovers import eventually

pytestmark = pytest.mark.lab

LIVE = ("PENDING", "RUNNING", "COMPLETING")


@pytest.fixture(scope="module")
def described(slurm: Slurm, place: Path) -> str:
    """The file of the documentation, for this machine."""
    return shown(
        "slurm",
        **{
            "/opt/weather/bin/python": sys.executable,
            "/scratch/weather/logs": str(place),
            "/data/": f"{place}/",
            "interface: ib0": "interface: lo",
            "4 GiB": "1 GiB",
            "2 GiB": "1 GiB",
        },
    )


def test_two_partitions_are_two_data_centres_as_the_page_says(
    slurm: Slurm, cluster: PoolCluster, client: Client, described: str, place: Path
) -> None:
    calculate(client, described, [place / name / "data.nc" for name in ("ecmwf", "eumetsat")])
    jobs = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%j %P %k")
    assert sorted(jobs.splitlines()) == ["ecmwf-0 compute (null)", "eumetsat-0 archive dask"]
    asked = (os.getcwd, os.getpid)
    assert client.gather([client.submit(f, **in_pool("ecmwf")) for f in asked])[0] == str(place / "ecmwf")
    assert client.submit(os.getenv, "OMP_NUM_THREADS", **in_pool("ecmwf")).result() == "2"
    logs = cluster.sync(cluster.workers["ecmwf-0"]._launched.logs)
    assert "Start worker at" in logs
    ids = {worker._launched.job_id for worker in cluster.workers.values()}
    assert ids == set(slurm.jobs("RUNNING"))


def endless_once(mark: Path) -> Callable[[], str]:
    """Make a function that takes for ever the first time that it is run, and no time after that."""

    # In here, so that it is sent whole: jobs do not find this module.
    def run() -> str:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return "done"
        time.sleep(1000)
        return "never"

    return run


ENDS: dict[str, tuple[list[str], str]] = {
    "cancelled": (["scancel", "{id}"], r"CANCELLED"),
    # Slurm looks for jobs whose time is over every half minute.
    "time limit": (["scontrol", "update", "JobId={id}", "EndTime=now"], "TIMEOUT (TimeLimit)"),
    "node drained": (["scontrol", "update", "NodeName=lab", "State=DOWN", "Reason=test"], "NODE_FAIL"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_ends_in_the_middle_costs_time_only_and_the_reason_is_slurms(
    end: str, slurm: Slurm, cluster: PoolCluster, client: Client, tmp_path: Path
) -> None:
    command, reason = ENDS[end]
    pool = "eumetsat" if end == "time limit" else "ecmwf"
    mark = tmp_path / "started"
    result = client.submit(endless_once(mark), **in_pool(pool))
    assert eventually(mark.exists, 120)
    [worker] = [worker for worker in cluster.workers.values() if worker.pool == pool]
    ended = asyncio.run_coroutine_threadsafe(worker._launched.ended(), cluster.loop.asyncio_loop)
    slurm.run(*(word.format(id=worker._launched.job_id) for word in command))
    assert reason in ended.result(120)
    if end == "node drained":
        with suppress(RuntimeError):  # it may have come back by itself
            slurm.run("scontrol", "update", "NodeName=lab", "State=RESUME")
    assert result.result(120) == "done"
    assert worker._launched.job_id not in slurm.jobs(*LIVE)


def test_a_node_that_crashes_in_the_middle_costs_time_only(
    slurm: Slurm, cluster: PoolCluster, client: Client, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    result = client.submit(endless_once(mark), **in_pool("ecmwf"))
    assert eventually(mark.exists, 120)
    # Those that have joined, that is: of jobs that only start then Slurm may not notice that they are lost.
    wanted = {pool: cluster.wanted(pool) for pool in cluster.pools}
    assert eventually(lambda: {pool: len(names) for pool, names in cluster.pools.items()} == wanted, 120)
    lost = {worker._launched.job_id for worker in cluster.workers.values()}
    slurm.crash_node()
    assert result.result(240) == "done"

    # Every job that there is belongs to a worker that is counted, and none of them is one of those lost.
    def counted() -> set[str]:
        return {worker._launched.job_id for worker in list(cluster.workers.values()) if worker._launched}

    assert eventually(lambda: not lost & set(slurm.jobs(*LIVE)), 240), slurm.run("squeue", "--states=all")
    assert eventually(lambda: {pool: len(names) for pool, names in cluster.pools.items()} == wanted, 240)
    assert eventually(lambda: set(slurm.jobs("RUNNING")) == counted()), slurm.run("squeue", "--states=all")


def test_a_job_that_runs_without_its_worker_is_given_up(
    slurm: Slurm, described: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Slurm has it for a while if the node crashes while the job starts.
    monkeypatch.setattr(jobqueue, "JOINING", 1)
    before = set(slurm.jobs(*LIVE))
    text = described.replace("account: weather", "job_script_prologue: [sleep 1000]")
    with PoolCluster(parse(text, "slurm.md")) as cluster, cluster.get_client() as client:
        with pytest.raises(PoolUnavailableError, match=r"job \d+ has been running for \d+ s, and it has not"):
            client.submit(os.getpid, **in_pool("eumetsat")).result(timeout=120)
        assert eventually(lambda: set(slurm.jobs(*LIVE)) <= before)


def test_what_slurm_says_when_it_refuses_a_job_is_told_word_for_word(slurm: Slurm, described: str) -> None:
    text = described.replace("account: weather", "account: spent")
    with PoolCluster(parse(text, "slurm.md")) as cluster, cluster.get_client() as client:
        with pytest.raises(PoolUnavailableError) as caught:
            client.submit(os.getpid, **in_pool("eumetsat")).result(timeout=60)
        assert f"Slurm refuses the job, saying: sbatch: error: {QUOTA}\n" in str(caught.value)


@pytest.fixture
def closed(slurm: Slurm) -> Iterator[None]:
    """While jobs may be submitted to the partition of ecmwf, but none runs."""
    slurm.run("scontrol", "update", "PartitionName=compute", "State=DOWN")
    before = set(slurm.jobs(*LIVE))
    try:
        yield
        assert eventually(lambda: set(slurm.jobs(*LIVE)) <= before)
    finally:
        slurm.run("scontrol", "update", "PartitionName=compute", "State=UP")


@pytest.mark.usefixtures("closed")
def test_a_request_that_is_withdrawn_leaves_the_queue(slurm: Slurm, described: str) -> None:
    with PoolCluster(parse(described, "slurm.md")) as cluster:
        cluster.scale(ecmwf=2)
        assert eventually(lambda: len(slurm.jobs("PENDING")) == 2)
        assert eventually(lambda: "PENDING (PartitionDown)" in str(cluster.logs("ecmwf")))
        cluster.scale(ecmwf=1)
        assert eventually(lambda: len(slurm.jobs("PENDING")) == 1)


@pytest.mark.usefixtures("closed")
def test_a_job_that_waits_longer_than_it_may_is_taken_out_of_the_queue(described: str) -> None:
    text = described.replace("timeout: 30 min", "timeout: 2 s")
    with (
        PoolCluster(parse(text, "slurm.md")) as cluster,
        cluster.get_client() as client,
        pytest.raises(PoolUnavailableError, match=r"ecmwf.*did not join within 2 s"),
    ):
        client.submit(os.getpid, **in_pool("ecmwf")).result(timeout=60)


@pytest.mark.usefixtures("closed")
def test_a_request_that_is_withdrawn_as_it_is_submitted_leaves_no_job(slurm: Slurm, described: str) -> None:
    spec = pool_specs(parse(described, "slurm.md"))["ecmwf"]

    async def withdraw() -> None:
        launching = asyncio.ensure_future(spec.launcher.launch("tcp://127.0.0.1:9", "ecmwf-9", spec.worker))
        await asyncio.sleep(0)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching

    before = slurm.jobs("all")
    asyncio.run(withdraw())
    assert len(slurm.jobs("all")) == len(before) + 1


_OWNER = """
import os, signal, sys, time
from dask_pools.cluster import PoolCluster
from dask_pools.cluster.record import records
cluster = PoolCluster(sys.argv[1], **({"scheduler": "process", "outlives": "5 min"} if sys.argv[2:] else {}))
cluster.scale(**dict.fromkeys(sys.argv[2:] or ["ecmwf"], 1))
while sum(len(record.workers) for record in records()) < len(sys.argv[2:] or [1]):
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("closed")
def test_jobs_of_an_owner_that_was_killed_are_taken_over_or_taken_out_of_the_queue(
    slurm: Slurm, described: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "data-centres.yaml"
    path.write_text(described)
    before = set(slurm.jobs(*LIVE))

    def start_owner(*pools: str) -> None:
        ended = subprocess.run([sys.executable, "-c", _OWNER, path, *pools])
        assert ended.returncode == -signal.SIGKILL

    start_owner("ecmwf", "eumetsat")
    left = set(slurm.jobs(*LIVE)) - before
    assert len(left) == 2
    with adopt() as cluster, cluster.get_client() as client:
        assert {worker._launched.job_id for worker in cluster.workers.values()} == left
        assert client.submit(abs, -1, **in_pool("eumetsat")).result(120) == 1
        assert set(slurm.jobs(*LIVE)) - before == left
        cluster.scale(ecmwf=0)
        assert eventually(lambda: len(set(slurm.jobs(*LIVE)) - before) == 1)
    assert set(slurm.jobs(*LIVE)) <= before
    # Without its scheduler there is nothing to take over, and the job would wait for ever.
    start_owner()
    [job] = set(slurm.jobs(*LIVE)) - before
    with pytest.raises(NoOrphanError, match="has ended as well"):
        adopt()
    said: list[str] = []
    assert clean_up(said.append)
    assert said[1:] == ["  worker ecmwf-0: has been ended", "  nothing is left"]
    assert job not in slurm.jobs(*LIVE)


def test_jobs_of_a_scheduler_with_tls_join_it_by_the_files_that_dask_is_configured_with(
    slurm: Slurm, described: str, tmp_path: Path
) -> None:
    made = Security.temporary()
    settings: dict[str, Any] = {"require-encryption": True}
    roles = [f"{role}_{what}" for role in ("scheduler", "client", "worker") for what in ("cert", "key")]
    for part in ("ca_file", *roles):
        (tmp_path / part).write_text(getattr(made, f"tls_{part}"))
        (tmp_path / part).chmod(0o600)
        name = f"tls.{part.replace('_', '-' if part == 'ca_file' else '.')}"
        settings[name] = str(tmp_path / part)
    with dask.config.set({f"distributed.comm.{name}": value for name, value in settings.items()}):
        options = {
            "interface": "lo",
            "port": 0,
            "protocol": "tls",
            "security": Security(),
            "dashboard": False,
        }
        with (
            PoolCluster(
                parse(described, "slurm.md"),
                scheduler={"cls": "distributed.Scheduler", "options": options},
                security=Security(),
            ) as cluster,
            cluster.get_client() as client,
        ):
            assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
            pid = client.submit(os.getpid, **in_pool("eumetsat")).result()
            [address] = client.scheduler_info()["workers"]
            assert address.startswith("tls://")
            assert pid != os.getpid()
