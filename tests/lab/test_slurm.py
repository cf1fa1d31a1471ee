"""Pools whose workers are jobs of a real Slurm: two partitions are two data centres."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from batch import FORBIDDEN, QUOTA, Slurm, start_slurm
from distributed import Client, Scheduler

from dask_pools import PoolUnavailableError, pins
from dask_pools.cluster import PoolCluster, pool_specs
from dask_pools.cluster.launchers import jobqueue
from dask_pools.data_centres import parse
from documented import shown
from intake_pools import load_from_catalog
from leftovers import eventually
from whereabouts import watch

pytestmark = pytest.mark.lab

LIVE = ("PENDING", "RUNNING", "COMPLETING")

PATIENT = {
    "pools.wait-for-workers": "300 s",
    "pools.eager-size": "0 B",
    "distributed.deploy.lost-worker-timeout": "1 s",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Partitions called as in the documentation."""
    if os.geteuid() != 0:
        pytest.skip(FORBIDDEN)
    with (
        start_slurm(tmp_path_factory.mktemp("slurm"), ["compute", "archive Default=YES MaxTime=60"]) as slurm,
        pytest.MonkeyPatch.context() as patch,
        dask.config.set(PATIENT),
    ):
        for name, value in slurm.env.items():
            patch.setenv(name, value)
        patch.setattr(jobqueue, "POLL", 0.5)
        patch.setattr(jobqueue, "POLL_STOPPING", 0.2)
        yield slurm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of what the pools have, and of the jobs' logs."""
    place = tmp_path_factory.mktemp("place")
    for number, name in enumerate(("ecmwf", "eumetsat", "here")):
        (place / name).mkdir()
        values(number).to_netcdf(place / name / "data.nc")
    return place


@pytest.fixture(scope="module")
def described(place: Path) -> str:
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


@pytest.fixture(scope="module")
def cluster(slurm: Slurm, described: str) -> Iterator[PoolCluster]:
    with PoolCluster(parse(described, "slurm.md")) as cluster:
        yield cluster
    assert not slurm.jobs(*LIVE), slurm.run("squeue", "--states=all")


@pytest.fixture
def client(cluster: PoolCluster) -> Iterator[Client]:
    with cluster.get_client() as client:
        yield client


def values(number: int) -> xr.Dataset:
    field = np.random.default_rng(number).random((8, 20, 30))
    return xr.Dataset({"air_temperature": (("realization", "latitude", "longitude"), field)})


def in_pool(pool: str) -> dict[str, Any]:
    """Arguments of `Client.submit` for a new task in a pool."""
    return {"resources": {pins.resource(pool): 0}, "pure": False}


def calculate(client: Client, place: Path, rules: str, pools: list[str]) -> None:
    """Let the pools load what each has, and compare the sum of their means with NumPy's."""
    known = parse(rules, "data-centres.yaml")
    opened = [load_from_catalog(place / name / "data.nc", data_centres=known) for name in pools]
    with watch(client) as seen:
        result = sum(one.mean("realization") for one in opened).compute()
        reads = seen.seen
    expected = sum(values(number).air_temperature.values.mean(0) for number in range(len(pools)))
    np.testing.assert_allclose(result.air_temperature, expected)
    assert {frozenset(read) for read, _ in reads} == {frozenset((name,)) for name in pools}
    assert all(read == set(ran) for read, ran in reads)


def test_two_partitions_are_two_data_centres_as_the_page_says(
    slurm: Slurm, cluster: PoolCluster, client: Client, described: str, place: Path
) -> None:
    calculate(client, place, described, ["ecmwf", "eumetsat"])
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
    "node lost": (["scontrol", "update", "NodeName=lab", "State=DOWN", "Reason=test"], "NODE_FAIL"),
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
    if end == "node lost":
        with suppress(RuntimeError):  # it may have come back by itself
            slurm.run("scontrol", "update", "NodeName=lab", "State=RESUME")
    assert result.result(120) == "done"
    assert worker._launched.job_id not in slurm.jobs(*LIVE)


def test_what_slurm_says_when_it_refuses_a_job_is_told_word_for_word(slurm: Slurm, described: str) -> None:
    text = described.replace("account: weather", "account: spent")
    with PoolCluster(parse(text, "slurm.md")) as cluster, cluster.get_client() as client:
        with pytest.raises(PoolUnavailableError) as caught:
            client.submit(os.getpid, **in_pool("eumetsat")).result(timeout=60)
        assert f"Slurm refuses the job, saying: sbatch: error: {QUOTA}\n" in str(caught.value)


def start_while_closed(slurm: Slurm, described: str, use: Callable[..., Any], **changes: Any) -> None:
    """Have a worker started that will wait in the queue, and look that no job of it is left."""
    spec = pool_specs(parse(described, "slurm.md"))["ecmwf"]
    launcher = replace(spec.launcher, **changes)
    before = set(slurm.jobs(*LIVE))

    async def run() -> None:
        async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
            launching = asyncio.ensure_future(launcher.launch(scheduler.address, "ecmwf-9", spec.worker))
            await use(launching)
            assert not scheduler.workers

    slurm.run("scontrol", "update", "PartitionName=compute", "State=DOWN")
    try:
        asyncio.run(run())
        assert set(slurm.jobs(*LIVE)) <= before
    finally:
        slurm.run("scontrol", "update", "PartitionName=compute", "State=UP")


def test_a_request_that_is_withdrawn_leaves_the_queue(slurm: Slurm, described: str) -> None:
    async def withdraw(launching: asyncio.Future[Any]) -> None:
        while not await asyncio.to_thread(slurm.jobs, "PENDING"):
            await asyncio.sleep(0.1)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching

    start_while_closed(slurm, described, withdraw)


def test_a_request_that_is_withdrawn_as_it_is_submitted_leaves_no_job(slurm: Slurm, described: str) -> None:
    async def withdraw(launching: asyncio.Future[Any]) -> None:
        await asyncio.sleep(0)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching

    start_while_closed(slurm, described, withdraw)


def test_a_job_that_waits_longer_than_it_may_is_taken_out_of_the_queue(slurm: Slurm, described: str) -> None:
    async def wait(launching: asyncio.Future[Any]) -> None:
        with pytest.raises(TimeoutError, match="did not join the scheduler within 2 s"):
            await launching

    start_while_closed(slurm, described, wait, timeout=2.0)


THREE = """\
data_centres:
  ecmwf:
    prefixes: ["{place}/ecmwf"]
    workers:
      launcher: slurm
      memory: 1 GiB
      slurm: {{queue: compute, walltime: "00:10:00", log_directory: "{place}", interface: lo}}
  eumetsat:
    prefixes: ["{place}/eumetsat"]
    workers:
      launcher: command
      command: {{python: "{python}", start: "{{worker}}", stop: "true", options: [--host, 127.0.0.1]}}
  here:
    prefixes: ["{place}/here"]
    workers: {{launcher: local}}
"""


def test_one_file_with_slurm_a_command_and_local_processes_runs_one_calculation(
    slurm: Slurm, place: Path
) -> None:
    text = THREE.format(place=place, python=sys.executable)
    before = set(slurm.jobs(*LIVE))
    with PoolCluster(parse(text, "three.yaml")) as cluster, cluster.get_client() as client:
        assert not any(cluster.pools.values())
        cluster.scale(ecmwf=1, eumetsat=1, here=1)  # at once: opening brings them up one after the other
        calculate(client, place, text, ["ecmwf", "eumetsat", "here"])
        assert sorted(map(len, cluster.pools.values())) == [1, 1, 1]
    assert set(slurm.jobs(*LIVE)) <= before
