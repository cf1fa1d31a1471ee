"""Every way to compute, across sites that cannot see each other's data."""

from __future__ import annotations

import pytest
from layout import opened

from dask_pools import get_pool
from ways import P2P, WAYS, Case, check

pytestmark = pytest.mark.lab


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("way", {**WAYS, **P2P}.values(), ids={**WAYS, **P2P})
def test_every_loading_task_runs_where_only_it_can(way, kind, client, whereabouts, folder):
    case = Case(opened("ecmwf", kind), opened("eumetsat", kind), client, folder)
    assert get_pool(case.x) == "ecmwf"
    check(case, way, whereabouts)
