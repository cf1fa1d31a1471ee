"""What tests of launchers with real systems share: the file of a page, as a cluster.

Each module says by its `described` what that file is on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from calculations import values
from distributed import Client

from dask_pools.cluster import PoolCluster
from dask_pools.data_centres import parse


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of what the pools have, and of what their workers write."""
    place = tmp_path_factory.mktemp("place")
    for number, name in enumerate(("ecmwf", "eumetsat")):
        (place / name).mkdir()
        values(number).to_netcdf(place / name / "data.nc")
    (place / "scratch").mkdir()
    return place


@pytest.fixture(scope="module")
def cluster(described: str) -> Iterator[PoolCluster]:
    """Cluster of the file."""
    with PoolCluster(parse(described, "data-centres.yaml")) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: PoolCluster) -> Iterator[Client]:
    with cluster.get_client() as client:
        yield client
