"""Launchers on real processes, by the data-centres files that the documentation shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from distributed import get_worker

from dask_pools import pins
from dask_pools.cluster import PoolCluster, pool_specs
from dask_pools.cluster.launchers.joining import worker_command
from dask_pools.data_centres import parse
from documented import PAGES, shown


def in_pool(pool: str) -> dict[str, Any]:
    """Arguments of `Client.submit` for a new task in a pool."""
    return {"resources": {pins.resource(pool): 0}, "pure": False}


def whoami() -> tuple[str, int, str, int]:
    worker = get_worker()
    return worker.name, worker.state.nthreads, os.getenv("OMP_NUM_THREADS", ""), os.nice(0)


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "README"))
def test_the_file_of_every_page_is_valid(page: str) -> None:
    assert pool_specs(parse(shown(page), f"{page}.md"))


def test_the_page_on_local_gives_a_cluster_whose_workers_are_as_it_says(tmp_path: Path) -> None:
    here = os.nice(0)
    path = tmp_path / "data-centres.yaml"
    path.write_text(shown("local", **{"/tmp": str(tmp_path)}))
    with PoolCluster(path) as cluster, cluster.get_client() as client:
        assert cluster.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": []}
        found = client.gather([client.submit(whoami, **in_pool(pool)) for pool in ("ecmwf", "eumetsat")])
        assert found == [("ecmwf-0", 2, "2", here), ("eumetsat-0", 1, "1", min(here + 10, 19))]
        [limit] = {
            w["memory_limit"] for w in cluster.scheduler_info["workers"].values() if w["nthreads"] == 2
        }
        assert limit == 2**30
        assert any(tmp_path.iterdir())  # the scratch directory


def test_a_command_of_a_worker_leaves_out_what_is_not_said() -> None:
    from dask_pools.cluster.launchers import WorkerShape

    command = worker_command("tcp://127.0.0.1:1", "a-0", WorkerShape())
    assert command[3:] == ["tcp://127.0.0.1:1", "--name", "a-0", "--nthreads", "1", "--memory-limit", "0"]
