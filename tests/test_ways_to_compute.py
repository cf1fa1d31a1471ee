"""Pins hold for every way to compute: each loading task runs in the pool of its data, whatever the way."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
import xarray as xr
from dask.base import flatten, tokenize
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, wait

import dask_pools.scheduler
from dask_pools import MisplacedTaskError, get_pool, pool
from dask_pools.cluster import LocalPools
from dask_pools.pins import pinned
from intake_pools import load_from_catalog
from intake_pools.recipes import RemoteVariable
from whereabouts import Whereabouts

SHAPE = (24, 6, 10)
"""time (three-hourly, so that there are days to resample to), lat, lon"""


def values(site: str) -> np.ndarray:
    return np.random.default_rng(len(site)).normal(size=SHAPE) + (1000 if site == "ecmwf" else 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPools]:
    """Data lies in both pools; eumetsat has more idle threads, so a task that is free would go there."""
    directories = {site: tmp_path_factory.mktemp(site) for site in ("ecmwf", "eumetsat")}
    time = np.datetime64("2020-01-01", "ns") + np.arange(SHAPE[0]) * np.timedelta64(3, "h")
    for site, directory in directories.items():
        ds = xr.Dataset(
            {"t": (("time", "lat", "lon"), values(site))},
            coords={"time": time, "lat": np.arange(SHAPE[1]), "lon": np.arange(SHAPE[2])},
        )
        ds.to_netcdf(directory / "data.nc")
        ds.to_zarr(directory / "data.zarr", zarr_format=2)
    with LocalPools({"ecmwf": 1, "eumetsat": 2}, threads_per_worker=1, directories=directories) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connected(cluster: LocalPools) -> Iterator[Client]:
    with cluster.get_client() as client, dask.config.set({"pools.eager-size": "0 B"}):
        yield client


@pytest.fixture
def whereabouts(cluster: LocalPools, connected: Client) -> Iterator[Whereabouts]:
    plugin = Whereabouts()
    connected.register_plugin(plugin, name="whereabouts")
    try:
        yield cluster.scheduler.plugins["whereabouts"]
    finally:
        connected.unregister_scheduler_plugin("whereabouts")


def opened(site: str, kind: str = "nc") -> xr.Dataset:
    return load_from_catalog(f"data.{kind}", data_centre=site, chunks={"time": 6, "lat": 3})


@dataclass
class Case:
    """The same entry of two data centres, lazily and as NumPy has it."""

    x: xr.Dataset
    y: xr.Dataset
    client: Client
    folder: Path

    @property
    def a(self) -> np.ndarray:
        return values("ecmwf")

    @property
    def b(self) -> np.ndarray:
        return values("eumetsat")

    @property
    def xd(self) -> da.Array:
        return self.x.t.data

    @property
    def yd(self) -> da.Array:
        return self.y.t.data

    @property
    def loaded(self) -> tuple[xr.DataArray, xr.DataArray]:
        return self.x.t.copy(data=self.a), self.y.t.copy(data=self.b)


def _stored(c: Case, z: da.Array, **kwargs: Any) -> np.ndarray:
    """Store into an array in the memory of a worker of each pool."""
    import zarr

    target = zarr.create_array(str(c.folder / "out.zarr"), shape=z.shape, chunks=z.chunksize, dtype=z.dtype)
    with pool(None):
        stored = da.store(z, target, **kwargs)
    if stored is not None:
        dask.compute(stored)
    return target[:]


def _months(x: xr.DataArray) -> xr.DataArray:
    return x.groupby("time.hour").mean()


async def _asynchronously(c: Case) -> Any:
    async with Client(c.client.cluster.scheduler_address, asynchronous=True) as client:
        return await client.compute((c.xd - c.yd).sum(0))


WAYS: dict[str, Callable[[Case], tuple[Any, Any]]] = {
    ".compute() of a Dataset": lambda c: ((c.x - c.y).mean("time").compute().t, (c.a - c.b).mean(0)),
    ".compute() of a DataArray": lambda c: ((c.x.t + 1).compute(), c.a + 1),
    ".load()": lambda c: (c.y.t.copy().load(), c.b),
    ".persist()": lambda c: ((c.x - c.y).persist().t.sum("time").values, (c.a - c.b).sum(0)),
    ".persist() of each": lambda c: (
        (c.x.persist() - c.y.persist()).t.sum("time").values,
        (c.a - c.b).sum(0),
    ),
    "np.asarray": lambda c: (np.asarray(c.xd.mean(0)), c.a.mean(0)),
    "dask.array": lambda c: ((c.xd.sum(0) * c.yd.max(0)).compute(), c.a.sum(0) * c.b.max(0)),
    "dask.compute of like": lambda c: (dask.compute(c.xd.sum(0), c.yd.sum(0)), (c.a.sum(0), c.b.sum(0))),
    "dask.compute of unlike": lambda c: (
        dask.compute(c.xd.sum(), dask.delayed(np.sum)(c.yd), c.x.t.max()),
        (c.a.sum(), c.b.sum(), c.a.max()),
    ),
    "dask.persist": lambda c: (dask.persist(c.xd + c.yd)[0].compute(), c.a + c.b),
    "client.compute": lambda c: (c.client.compute((c.xd - c.yd).std(0)).result(), (c.a - c.b).std(0)),
    "client.persist": lambda c: (c.client.persist(c.xd - c.yd).compute(), c.a - c.b),
    "client.get": lambda c: (
        c.client.get(dict((c.xd - c.yd).sum().dask), list(flatten((c.xd - c.yd).sum().__dask_keys__())))[0],
        (c.a - c.b).sum(),
    ),
    "asynchronous client": lambda c: (asyncio.run(_asynchronously(c)), (c.a - c.b).sum(0)),
    "optimize_graph=False": lambda c: (
        (c.xd - c.yd).sum(0).compute(optimize_graph=False),
        (c.a - c.b).sum(0),
    ),
    "delayed(f)(array)": lambda c: (dask.delayed(np.mean)(c.xd).compute(), c.a.mean()),
    "delayed of several": lambda c: (
        dask.delayed(sum)([dask.delayed(np.sum)(c.xd), dask.delayed(np.sum)(c.yd)]).compute(),
        c.a.sum() + c.b.sum(),
    ),
    "to_delayed": lambda c: (sum(dask.compute(*[d.sum() for d in c.xd.to_delayed().ravel()])), c.a.sum()),
    "to_delayed across": lambda c: (
        sum(dask.compute(*[d.sum() for d in (c.xd + c.yd).to_delayed().ravel()])),
        (c.a + c.b).sum(),
    ),
    "dask.optimize": lambda c: (dask.optimize((c.xd + c.yd).sum(0))[0].compute(), (c.a + c.b).sum(0)),
    "dask.optimize, then more": lambda c: (
        (dask.optimize(c.xd + c.yd)[0] * 2).sum(0).compute(),
        2 * (c.a + c.b).sum(0),
    ),
    "dask.optimize of a Dataset": lambda c: (dask.optimize(c.x + c.y)[0].t.compute(), c.a + c.b),
    "dask.bag": lambda c: (
        db.from_delayed([dask.delayed(list)(d) for d in c.xd[:, 0, 0].to_delayed()]).sum().compute(),
        c.a[:, 0, 0].sum(),
    ),
    "dask.dataframe": lambda c: (
        c.x.to_dask_dataframe()["t"].sum().compute(),
        c.a.sum(),
    ),
    "da.store": lambda c: (_stored(c, c.xd - 1), c.a - 1),
    "da.store(compute=False)": lambda c: (_stored(c, c.yd - 1, compute=False), c.b - 1),
    "rolling": lambda c: (
        c.x.t.rolling(time=3).mean().compute(),
        c.loaded[0].rolling(time=3).mean(),
    ),
    "resample": lambda c: (
        (c.x.t.resample(time="D").mean() - c.y.t.resample(time="D").mean()).compute(),
        c.loaded[0].resample(time="D").mean() - c.loaded[1].resample(time="D").mean(),
    ),
    "groupby with flox": lambda c: (
        (_months(c.x.t) - _months(c.y.t)).compute(),
        _months(c.loaded[0]) - _months(c.loaded[1]),
    ),
    "groupby without flox": lambda c: (_without_flox(c), _months(c.loaded[0]) - _months(c.loaded[1])),
    "concat across pools": lambda c: (
        xr.concat([c.x.t, c.y.t], "site").mean("time").compute(),
        np.stack([c.a.mean(0), c.b.mean(0)]),
    ),
    "where with a mask made on the fly": lambda c: (
        xr.where(c.y.t > 0, c.x.t, 0).sum("lat").compute(),
        np.where(c.b > 0, c.a, 0).sum(1),
    ),
    "apply_ufunc": lambda c: (
        xr.apply_ufunc(np.hypot, c.x.t, c.y.t, dask="parallelized", output_dtypes=["f8"]).compute(),
        np.hypot(c.a, c.b),
    ),
    "map_blocks": lambda c: (c.x.t.map_blocks(lambda block: block * 3, template=c.x.t).compute(), c.a * 3),
    "map_overlap": lambda c: (da.map_overlap(lambda block: block + 1, c.xd, depth=1).compute(), c.a + 1),
    "reductions with NaN": lambda c: (da.nanmean(c.xd, axis=0).compute(), c.a.mean(0)),
    "tensordot": lambda c: (
        da.tensordot(c.xd, c.yd, axes=([1, 2], [1, 2])).compute(),
        np.tensordot(c.a, c.b, axes=([1, 2], [1, 2])),
    ),
    "slices": lambda c: (c.x.isel(time=3, lat=slice(1, 3)).t.compute(), c.a[3, 1:3]),
    "rechunk by tasks": lambda c: (_rechunked(c, "tasks"), (c.a - c.b).mean(0)),
    "inside another pool": lambda c: (_inside(c), c.a.mean(0)),
}
P2P: dict[str, Callable[[Case], tuple[Any, Any]]] = {
    "rechunk by P2P": lambda c: (_rechunked(c, "p2p"), (c.a - c.b).mean(0)),
    "P2P across pools": lambda c: (
        da.concatenate([c.xd, c.yd]).rechunk((48, 2, 10), method="p2p").mean(0).compute(),
        np.concatenate([c.a, c.b]).mean(0),
    ),
    "P2P as Dask chooses": lambda c: (c.xd.rechunk((24, 2, 2)).sum(0).compute(), c.a.sum(0)),
}
"""Ways that need the scheduler plugin for more than pins."""
FLAT = {"client.get", "dask.dataframe"}
"""Ways in which Dask sends bare tasks: the name is their only carrier, and the plugin what reads it."""


def _without_flox(c: Case) -> xr.DataArray:
    with xr.set_options(use_flox=False):
        return (_months(c.x.t) - _months(c.y.t)).compute()


def _rechunked(c: Case, method: str) -> np.ndarray:
    x, y = (z.rechunk((24, 2, 10), method=method) for z in (c.xd, c.yd))
    return (x - y).mean(0).compute()


def _inside(c: Case) -> np.ndarray:
    with pool("eumetsat"):
        return c.xd.mean(0).compute()


def check(case: Case, way: Callable[[Case], tuple[Any, Any]], whereabouts: Whereabouts) -> None:
    both = way(case)
    assert whereabouts.seen, "no loading task was seen"
    for reads, ran in whereabouts.seen:
        assert reads == set(ran)
    check_values(both)


def check_values(both: tuple[Any, Any]) -> None:
    result, expected = both
    for got, want in zip(
        result if isinstance(result, tuple) else [result],
        expected if isinstance(expected, tuple) else [expected],
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("way", {**WAYS, **P2P}.values(), ids={**WAYS, **P2P})
def test_every_loading_task_runs_where_its_data_lives(way, kind, connected, whereabouts, tmp_path):
    case = Case(opened("ecmwf", kind), opened("eumetsat", kind), connected, tmp_path)
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
        check_values(WAYS[way](Case(x, y, connected, tmp_path)))
    else:
        check(Case(x, y, connected, tmp_path), WAYS[way], whereabouts)


@pytest.mark.parametrize("way", [n for n in WAYS if n not in FLAT])
def test_without_the_backstop_nothing_changes(way, connected, whereabouts, without_backstop, tmp_path):
    check(Case(opened("ecmwf"), opened("eumetsat"), connected, tmp_path), WAYS[way], whereabouts)


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


def test_restarting_the_workers_keeps_pins(connected, whereabouts, tmp_path):
    connected.restart()
    case = Case(opened("ecmwf"), opened("eumetsat"), connected, tmp_path)
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
