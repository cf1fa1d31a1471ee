"""Every way to compute, on the same entry of two data centres, and what must be true of each.

For any cluster that has the pools ecmwf and eumetsat, wherever its scheduler runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import xarray as xr
import zarr
from dask.base import flatten
from distributed import Client

from dask_pools import pool
from whereabouts import Seen

SHAPE = (24, 6, 10)
"""time (three-hourly, so that there are days to resample to), lat, lon"""


def values(site: str) -> np.ndarray:
    return np.random.default_rng(len(site)).normal(size=SHAPE) + (1000 if site == "ecmwf" else 0)


def dataset(site: str) -> xr.Dataset:
    """What lies at a site."""
    time = np.datetime64("2020-01-01", "ns") + np.arange(SHAPE[0]) * np.timedelta64(3, "h")
    return xr.Dataset(
        {"t": (("time", "lat", "lon"), values(site))},
        coords={"time": time, "lat": np.arange(SHAPE[1]), "lon": np.arange(SHAPE[2])},
    )


CHUNKS = {"time": 6, "lat": 3}
"""Eight of them."""


@dataclass
class Case:
    """The same entry of two data centres, lazily and as NumPy has it."""

    x: xr.Dataset
    y: xr.Dataset
    client: Client
    folder: str
    """Where a worker of ecmwf can write."""

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
    """Store in ecmwf, and read what has been stored there."""
    there: dict[str, Any] = {"resources": {"pool-ecmwf": 0}, "pure": False}
    target = c.client.submit(
        zarr.create_array, f"{c.folder}/out.zarr", shape=z.shape, chunks=z.chunksize, dtype=z.dtype, **there
    ).result()
    rules = {"data_centres": {"ecmwf": {"prefixes": [f"{c.folder}/"]}}}
    with dask.config.set({"pools.data-centres": rules}):
        stored = da.store(z, target, **kwargs)
        if stored is not None:
            dask.compute(stored)
    return c.client.submit(np.asarray, target, **there).result()


def _months(x: xr.DataArray) -> xr.DataArray:
    return x.groupby("time.hour").mean()


async def _asynchronously(c: Case) -> Any:
    async with Client(c.client.scheduler.address, asynchronous=True) as client:
        return await client.compute((c.xd - c.yd).sum(0))


Way = Callable[[Case], tuple[Any, Any]]
"""Computes, and gives the result and what NumPy makes of the same data."""

WAYS: dict[str, Way] = {
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
P2P: dict[str, Way] = {
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


def check(case: Case, way: Way, whereabouts: Seen) -> None:
    """Check the values, and that every loading task ran in the pool of its data."""
    both = way(case)
    check_places(whereabouts)
    check_values(both)


def check_places(whereabouts: Seen) -> None:
    seen = whereabouts.seen
    assert seen, "no loading task was seen"
    for reads, ran in seen:
        assert reads == set(ran)


def check_values(both: tuple[Any, Any]) -> None:
    result, expected = both
    for got, want in zip(
        result if isinstance(result, tuple) else [result],
        expected if isinstance(expected, tuple) else [expected],
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want))
