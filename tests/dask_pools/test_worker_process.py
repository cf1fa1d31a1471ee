"""Workers on this machine are copies of what their nannies have imported."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from distributed import Client, LocalCluster

from dask_pools.cluster import LocalPools


def is_copy() -> bool:
    """Whether this process has the command of its nanny, not one of its own."""
    return "dask_pools.cluster.worker_process" in psutil.Process().cmdline()


def surroundings() -> tuple[int, dict[str, str]]:
    """What Dask's nannies set before they start a worker: how texts are hashed, and threads of libraries."""
    names = ("PYTHONHASHSEED", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return hash("ecmwf"), {name: os.environ[name] for name in names}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there it is another interpreter, as with Dask alone")
def test_a_worker_is_a_copy_of_its_nannys_process_also_when_it_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with LocalPools({"ecmwf": 1}) as cluster, cluster.get_client() as client:
        [first] = client.run(os.getpid).values()
        assert all(client.run(is_copy).values())
        os.kill(first, signal.SIGKILL)
        assert client.submit(os.getpid, pure=False).result(60) != first
        assert all(client.run(is_copy).values())
        # Nobody else can have one: there is no file to connect to.
        assert not any(path.is_socket() for path in tmp_path.rglob("*"))


def test_workers_have_the_surroundings_that_dasks_own_have() -> None:
    with LocalCluster(n_workers=1, dashboard_address=None) as cluster, Client(cluster) as client:
        expected = client.submit(surroundings).result(60)
    with LocalPools({"ecmwf": 1}) as pools, pools.get_client() as client:
        assert client.submit(surroundings).result(60) == expected


def test_where_there_is_no_place_for_a_socket_a_worker_is_another_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("long" * 30)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(place))
    with LocalPools({"ecmwf": 1}) as cluster, cluster.get_client() as client:
        assert client.submit(os.getenv, "TMPDIR").result(60) == str(place)
        assert not any(client.run(is_copy).values())
