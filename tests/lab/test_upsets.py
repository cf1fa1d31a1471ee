"""What goes wrong across sites: each upset ends in a right result or in an error, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client
from layout import opened, shared, write
from namespaces import FORBIDDEN, ROOT, isolation, launcher, mounted

from dask_pools import PoolUnavailableError, pool
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.errors import DataChangedError
from dask_pools.pins import resource
from intake_pools import load_from_catalog
from leftovers import eventually
from ways import CHUNKS, WAYS, Case, check, check_places, values

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("lazily")]


def slowly(block: np.ndarray) -> np.ndarray:
    time.sleep(0.2)
    return block


def worker_of(client: Client, name: str) -> int:
    """Identifier of the process of a worker of a pool."""
    return client.submit(os.getpid, resources={resource(name): 0}, pure=False).result()


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_worker_killed_in_the_middle_costs_time_only(kind, client, whereabouts):
    doomed = worker_of(client, "ecmwf")
    x, y = opened("ecmwf", kind), opened("eumetsat", kind)
    difference = client.compute((x.t.data.map_blocks(slowly) - y.t.data).sum(0))
    assert eventually(lambda: ({"ecmwf"}, ("ecmwf",)) in whereabouts.seen, 30)
    os.kill(doomed, signal.SIGKILL)
    assert not difference.done()
    result = difference.result(timeout=90)
    np.testing.assert_allclose(result, (values("ecmwf") - values("eumetsat")).sum(0))
    check_places(whereabouts)
    assert worker_of(client, "ecmwf") != doomed


def test_restarted_workers_are_at_their_site_again(client, whereabouts, folder):
    before = {kind: opened("ecmwf", kind) for kind in ("nc", "zarr")}
    client.restart()
    for kind, x in before.items():
        check(Case(x, opened("eumetsat", kind), client, folder), WAYS["dask.compute of like"], whereabouts)


def test_a_pool_that_has_been_scaled_to_nothing_comes_back_at_its_site(client, cluster, whereabouts):
    cluster.scale("ecmwf", 0)
    assert eventually(lambda: not cluster.pools["ecmwf"], 30)
    x = opened("ecmwf")
    np.testing.assert_allclose(x.t.sum().compute(), values("ecmwf").sum())
    check_places(whereabouts)


# A pool that is not there


def test_opening_in_a_missing_pool_is_refused_at_once(client):
    with pytest.raises(
        PoolUnavailableError, match=r"'dwd' has no workers\. Nobody connected.*dask worker tcp://"
    ):
        load_from_catalog("/srv/dwd/data.nc", data_centre="dwd")


def test_computing_in_a_missing_pool_is_refused_at_once(client):
    with pool("dwd"):
        there = da.ones((4, 4), chunks=2)
    with pytest.raises(PoolUnavailableError, match=r"'dwd' has no workers\. Nobody connected"):
        (there.sum() + opened("ecmwf").t.data.sum()).compute()


def _wait_for_workers(value: str | None) -> None:
    dask.config.set({"pools.wait-for-workers": value})


@pytest.fixture
def patience(client):
    """The scheduler waits two seconds for workers."""
    before = client.run_on_scheduler(dask.config.get, "pools.wait-for-workers")
    client.run_on_scheduler(_wait_for_workers, "2s")
    yield
    client.run_on_scheduler(_wait_for_workers, before)


def test_a_pool_that_leaves_in_the_middle_and_stays_away_ends_the_calculation(
    client, cluster, sites, patience
):
    shape = WorkerShape(resources={resource("visitor"): 1})
    visitor = cluster.sync(launcher(sites["ecmwf"]).launch, cluster.scheduler_address, "visitor-0", shape)
    try:
        x = load_from_catalog(str(shared("nc")), data_centre="visitor", chunks=CHUNKS)
        total = client.compute(x.t.data.map_blocks(slowly).sum())
        time.sleep(0.5)
        assert not total.done()
    finally:
        cluster.sync(visitor.close)
    with pytest.raises(PoolUnavailableError, match=r"'visitor' has no workers. None came within 2 s"):
        total.result(timeout=30)
    total.release()  # the exception that it keeps has a traceback, which keeps it


# Somebody else on the same scheduler

OTHER = """
import sys
import dask
from distributed import Client
from intake_pools import load_from_catalog

address, path = sys.argv[1:]
with Client(address), dask.config.set({"pools.eager-size": 0}):
    for _ in range(3):
        there = load_from_catalog(path, data_centre="eumetsat", chunks={"time": 6, "lat": 3})
        print(float(there.t.sum().compute()), flush=True)
"""


def test_a_second_client_with_other_pins_does_not_disturb_the_first(client, whereabouts, tmp_path):
    x = opened("ecmwf")
    stop = threading.Event()
    sums: list[float] = []

    def calculate() -> None:
        while not stop.is_set():
            sums.append(float((x.t + len(sums)).sum().compute()) - len(sums) * x.t.size)

    script = tmp_path / "other.py"
    script.write_text(OTHER)
    thread = threading.Thread(target=calculate)
    thread.start()
    try:
        other = subprocess.run(
            [sys.executable, script, client.scheduler.address, shared("nc")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=90,
            check=True,
        )
    finally:
        stop.set()
        thread.join()
    np.testing.assert_allclose([float(one) for one in other.stdout.split()], values("eumetsat").sum())
    assert len(sums) > 1
    np.testing.assert_allclose(sums, values("ecmwf").sum())
    check_places(whereabouts)


# Data that goes away


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("read_before", [True, False])
def test_data_deleted_after_opening_raises_and_never_reads_as_fill_values(
    kind, read_before, client, sites, folder
):
    path = Path(folder) / f"data.{kind}"
    there = sites["ecmwf"].from_outside(path)
    write("ecmwf", there)
    x = load_from_catalog(str(path), data_centre="ecmwf", chunks=CHUNKS)
    if read_before:
        assert x.t.min().compute() == values("ecmwf").min()
    shutil.rmtree(there) if there.is_dir() else there.unlink()
    with pytest.raises(DataChangedError, match="Open the entry again"):
        x.t.sum().compute()


# The end

KILLED = """
import json, os, time
from contextlib import ExitStack
import psutil
from namespaces import start_cluster, start_sites

with ExitStack() as stack:
    sites = stack.enter_context(start_sites(["ecmwf", "eumetsat"]))
    cluster = stack.enter_context(start_cluster(sites, {"ecmwf": 1}))
    client = cluster.get_client()
    busy = client.submit(time.sleep, 600)
    (sites["ecmwf"].from_outside("/srv/ecmwf") / "big").write_bytes(bytes(1_000_000))
    processes = {p.pid: p.create_time() for p in psutil.Process().children(recursive=True)}
    print(json.dumps([list(processes.items()), [site.mount for site in sites.values()]]), flush=True)
    time.sleep(600)
"""


def _lives(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_killed_outright_it_leaves_no_process_no_mount_and_no_file(tmp_path):
    if not isolation().is_real:
        pytest.skip(FORBIDDEN)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
        cwd=temporary,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            processes, mounts = json.loads(process.stdout.readline())
        finally:
            process.kill()
    # Two sites, a scheduler, a nanny with its worker.
    assert len(processes) >= 5
    assert eventually(lambda: not any(_lives(*one) for one in processes), 30)
    assert not mounted(mounts)
    # Every server of Dask makes these wherever temporary files are kept, and leaves them there.
    assert {path.name for path in temporary.rglob("*")} <= {"dask-scratch-space", "global.lock", "purge.lock"}
    assert list(ROOT.iterdir()) == []
