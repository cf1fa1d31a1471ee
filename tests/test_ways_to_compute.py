"""Pins hold for every way to compute: each loading task runs in the pool of its data, whatever the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, wait

import dask_pools.scheduler
from dask_pools import MisplacedTaskError, get_pool
from dask_pools.cluster import LocalPools
from dask_pools.pins import pinned
from intake_pools import load_from_catalog
from intake_pools.mosaics import RemoteVariable
from ways import CHUNKS, FLAT, P2P, WAYS, Case, check, check_values, dataset, values
from whereabouts import Seen, watch


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPools]:
    """Data lies in both pools; eumetsat has more idle threads, so a task that is free would go there."""
    directories = {site: tmp_path_factory.mktemp(site) for site in ("ecmwf", "eumetsat")}
    for site, directory in directories.items():
        dataset(site).to_netcdf(directory / "data.nc")
        dataset(site).to_zarr(directory / "data.zarr", zarr_format=2)
    with LocalPools({"ecmwf": 1, "eumetsat": 2}, threads_per_worker=1, directories=directories) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connected(cluster: LocalPools) -> Iterator[Client]:
    with cluster.get_client() as client, dask.config.set({"pools.eager-size": "0 B"}):
        yield client


@pytest.fixture
def whereabouts(connected: Client) -> Iterator[Seen]:
    with watch(connected) as seen:
        yield seen


def opened(site: str, kind: str = "nc") -> xr.Dataset:
    return load_from_catalog(f"data.{kind}", data_centre=site, chunks=CHUNKS)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("way", {**WAYS, **P2P}.values(), ids={**WAYS, **P2P})
def test_every_loading_task_runs_where_its_data_lives(way, kind, connected, whereabouts, tmp_path):
    case = Case(opened("ecmwf", kind), opened("eumetsat", kind), connected, str(tmp_path))
    assert get_pool(case.x) == "ecmwf"
    check(case, way, whereabouts)


def rebuilt(ds: xr.Dataset, *, annotated: bool, named: bool) -> xr.Dataset:
    """The same Dataset with one of the carriers of its pins taken away, or both."""
    array = ds.t.data
    site = get_pool(ds)
    if named:
        layers = {}
        for name, layer in array.dask.layers.items():
            layers[name] = copy.copy(layer)
            layers[name].annotations = layer.annotations if annotated else None
        graph = HighLevelGraph(layers, array.dask.dependencies)
        return ds.assign(t=ds.t.copy(data=da.Array(graph, array.name, array.chunks, meta=array._meta)))
    task = next(iter(array.dask.to_dict().values()))
    recipe = next(
        value for part in task.args if isinstance(value := getattr(part, "value", part), RemoteVariable)
    )
    with pinned(site if annotated else None):
        plain = da.from_array(
            recipe, chunks=array.chunks, name=f"plain-{tokenize(recipe)}", inline_array=True, meta=array._meta
        )
    return ds.assign(t=ds.t.copy(data=plain))


@pytest.fixture
def without_backstop(cluster: LocalPools, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dask_pools.scheduler, "install_from_thread", lambda scheduler: None)
    plugin = cluster.scheduler.plugins.pop(dask_pools.scheduler.NAME)
    try:
        yield
    finally:
        cluster.scheduler.plugins[dask_pools.scheduler.NAME] = plugin


@pytest.mark.parametrize(
    ("way", "lost"),
    [(way, lost) for way in WAYS for lost in ("annotation", "name") if lost != "name" or way not in FLAT],
)
def test_one_lost_carrier_changes_nothing(way, lost, connected, whereabouts, tmp_path):
    x, y = (
        rebuilt(opened(site), annotated=lost != "annotation", named=lost != "name")
        for site in ("ecmwf", "eumetsat")
    )
    if lost == "name":
        # The loading tasks cannot be told by their names here; the guard raises if one is misplaced.
        check_values(WAYS[way](Case(x, y, connected, str(tmp_path))))
    else:
        check(Case(x, y, connected, str(tmp_path)), WAYS[way], whereabouts)


@pytest.mark.parametrize("way", [n for n in WAYS if n not in FLAT])
def test_without_the_backstop_nothing_changes(way, connected, whereabouts, without_backstop, tmp_path):
    check(Case(opened("ecmwf"), opened("eumetsat"), connected, str(tmp_path)), WAYS[way], whereabouts)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_with_every_carrier_lost_the_guard_raises(kind, connected, without_backstop):
    x = rebuilt(opened("ecmwf", kind), annotated=False, named=False)
    with pytest.raises(MisplacedTaskError, match=r"t\[.*\] of .*data.* lives in pool 'ecmwf'") as error:
        x.t.sum().compute()
    assert "tcp://" in str(error.value)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_switched_off_the_guard_raises(kind, connected):
    x = opened("ecmwf", kind)
    with dask.config.set({"pools.propagate": False}), pytest.raises(MisplacedTaskError):
        x.t.sum().compute()
    np.testing.assert_allclose((x.t + 1).sum().compute(), (values("ecmwf") + 1).sum())


@pytest.mark.parametrize("part", ["dask_pools.propagate.read_layers", "dask_pools.placement.lower.place"])
@pytest.mark.parametrize("way", [n for n in WAYS if n not in FLAT])
def test_a_fault_in_placement_costs_the_arrangement_only(
    way, part, connected, whereabouts, monkeypatch, tmp_path
):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault made for this test")

    case = Case(opened("ecmwf"), opened("eumetsat"), connected, str(tmp_path))
    monkeypatch.setattr(part, fail)
    check(case, WAYS[way], whereabouts)


def test_restarting_the_workers_keeps_pins(connected, whereabouts, tmp_path):
    connected.restart()
    case = Case(opened("ecmwf"), opened("eumetsat"), connected, str(tmp_path))
    check(case, WAYS[".compute() of a Dataset"], whereabouts)


def test_persisted_parts_stay_in_their_pool(connected, cluster):
    x = opened("ecmwf").persist()
    wait(x)
    held = {
        tuple(cluster.scheduler.workers[worker].resources)
        for workers in connected.who_has(x.t.data).values()
        for worker in workers
    }
    assert held == {("pool-ecmwf",)}
