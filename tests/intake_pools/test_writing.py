"""Writing pinned data where its target is."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

import dask_pools
from dask_pools import targets
from dask_pools.cluster import LocalPools
from dask_pools.errors import MisplacedTaskError, MixedPoolsError, UnlocatedError
from intake_pools import load_from_catalog, writing

pytestmark = [
    pytest.mark.usefixtures("lazily"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]


class Places(SchedulerPlugin):
    """Notes the pool in which each task ran."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.ran: dict[str, set[str]] = {}
        self.workers: dict[str, set[str]] = {}

    def transition(self, key, start, finish, *args, worker=None, **kwargs):
        if start == "processing" and finish in ("memory", "erred") and worker in self.scheduler.workers:
            name = str(key[0] if isinstance(key, tuple) else key)
            self.workers.setdefault(name, set()).add(worker)
            for pool in self.scheduler.workers[worker].resources:
                self.ran.setdefault(name, set()).add(pool.removeprefix("pool-"))

    def of(self, word: str) -> set[str]:
        """Pools in which tasks ran whose name has a word in it."""
        return set().union(*(pools for name, pools in self.ran.items() if word in name), set())

    def workers_of(self, word: str) -> set[str]:
        """Workers that such tasks ran on."""
        return set().union(*(workers for name, workers in self.workers.items() if word in name), set())


@pytest.fixture
def places(pools, client) -> Iterator[Places]:
    plugin = Places(pools.scheduler)
    pools.scheduler.add_plugin(plugin, name="places")
    yield plugin
    pools.scheduler.remove_plugin("places")


@pytest.fixture
def centres(site_dirs, tmp_path) -> Iterator[Path]:
    """Rules by which each pool holds its own directory; the default ones for the test."""
    path = tmp_path / "data-centres.yaml"
    path.write_text(
        "data_centres:\n" + "".join(f"  {name}: {{prefixes: [{at}]}}\n" for name, at in site_dirs.items())
    )
    with dask.config.set({"pools.data-centres": str(path)}):
        yield path


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Start every test without rules of others."""
    monkeypatch.setattr(targets, "_remembered", {})


@pytest.fixture
def pinned(write, forecast, ecmwf, named, client, centres) -> xr.Dataset:
    """A forecast that ecmwf holds."""
    path = ecmwf / f"{named}.nc"
    write(forecast, path)
    return load_from_catalog(path)


def files(*directories: Path) -> set[str]:
    return {
        str(Path(root) / name) for top in directories for root, _, names in os.walk(top) for name in names
    }


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_store_is_written_where_it_lives(pinned, forecast, eumetsat, named, places, zarr_format):
    target = eumetsat / named
    assert (pinned + 0).assign_attrs(pinned.attrs).to_zarr(target, zarr_format=zarr_format) is None
    assert places.of("store.t@") == places.of("create-") == {"eumetsat"}
    assert places.of("read-t@ecmwf") <= {"ecmwf"}
    with xr.open_zarr(target) as written:
        xr.testing.assert_allclose(written.load(), forecast)
        assert written.attrs == forecast.attrs


def test_what_is_packed_where_it_is_read_is_packed_where_it_is_written(pinned, forecast, ecmwf, named):
    target = ecmwf / named
    pinned.drop_encoding().to_zarr(
        target, encoding={"packed": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1}}
    )
    assert zarr.open_group(target)["packed"].dtype == "i2"
    with xr.open_zarr(target, mask_and_scale=True) as written:
        np.testing.assert_allclose(written["packed"], forecast["packed"])
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_data_is_computed_where_it_is_and_crosses_to_where_it_is_written(pinned, eumetsat, named, places):
    (pinned["t"] * 2).mean("lat").to_zarr(eumetsat / named)
    assert places.of("mean_agg") | places.of("read-t@ecmwf") == {"ecmwf"}
    assert places.of("store.t@") == {"eumetsat"}


@pytest.mark.parametrize("kind", ["dataset", "dataarray"])
def test_what_is_not_computed_yet_is_written_there_later(pinned, forecast, eumetsat, named, places, kind):
    target = eumetsat / named
    array = pinned[["t"]] if kind == "dataset" else pinned["t"]
    delayed = array.to_zarr(target, compute=False)
    assert np.isnan(zarr.open_group(target)["t"][:]).all()
    assert not places.of("store.t@")
    assert dask.compute(delayed, pinned["t"].max())[1] == forecast["t"].max()
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(target) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_a_store_is_appended_to(pinned, forecast, eumetsat, named, places):
    target = eumetsat / named
    first, last = slice(0, 4), slice(4, 6)
    pinned.isel(time=first).to_zarr(target)
    pinned.isel(time=last).to_zarr(target, append_dim="time")
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(target) as written:
        xr.testing.assert_allclose(written.load(), forecast)


@pytest.mark.parametrize("region", ["auto", {"time": slice(2, 4)}])
def test_a_region_is_written(pinned, forecast, ecmwf, named, region):
    target = ecmwf / named
    whole = pinned[["t"]].drop_vars(["area", "height"])
    (whole * 0).to_zarr(target)
    whole.isel(time=slice(2, 4)).drop_vars(["lat", "lon"]).to_zarr(target, region=region)
    expected = np.zeros((6, 4, 5))
    expected[2:4] = forecast["t"][2:4]
    with xr.open_zarr(target) as written:
        np.testing.assert_array_equal(written["t"], expected)


def test_a_store_that_exists_is_refused_as_xarray_refuses_it(pinned, forecast, eumetsat, named):
    target = eumetsat / named
    pinned.to_zarr(target)
    with pytest.raises(Exception) as stock:  # noqa: PT011  # which one is xarray's business
        forecast.to_zarr(target, mode="w-")
    with pytest.raises(type(stock.value)) as ours:
        (pinned[["t"]] * 0).to_zarr(target, mode="w-")
    assert str(ours.value) == str(stock.value)
    # No frame of a worker in the traceback.
    assert not any("_create" in str(entry.name) for entry in ours.traceback)
    with xr.open_zarr(target) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_chunks_that_would_race_are_refused_as_xarray_refuses_them(pinned, eumetsat, named):
    with pytest.raises(ValueError, match="safe_chunks"):
        pinned[["t"]].to_zarr(eumetsat / named, encoding={"t": {"chunks": (3, 4, 5)}})


WRITES = {
    "Dataset.to_zarr": lambda ds, path: ds.to_zarr(path),
    "Dataset.to_zarr, later": lambda ds, path: ds.to_zarr(path, compute=False),
    "Dataset.to_zarr, file:": lambda ds, path: ds.to_zarr(f"file://{Path(path).absolute()}"),
    "Dataset.to_zarr, store": lambda ds, path: ds.to_zarr(zarr.storage.LocalStore(path)),
    "Dataset.to_netcdf": lambda ds, path: ds.to_netcdf(path),
    "DataArray.to_zarr": lambda ds, path: ds["t"].to_zarr(path),
    "DataArray.to_netcdf": lambda ds, path: ds["t"].to_netcdf(path),
    "Array.to_zarr": lambda ds, path: ds["t"].data.to_zarr(str(path)),
    "dask.array.to_zarr": lambda ds, path: da.to_zarr(ds["t"].data, str(path)),
    "save_mfdataset": lambda ds, path: xr.save_mfdataset([ds], [path]),
    "DataTree.to_zarr": lambda ds, path: xr.DataTree(ds).to_zarr(path),
    "persisted": lambda ds, path: (ds[["t"]] + 1).persist().to_zarr(path),
}


# These two are absolute in any case.
RELATIVE = set(WRITES) - {"Dataset.to_zarr, file:", "Dataset.to_zarr, store"}


@pytest.mark.parametrize(
    ("way", "relative"),
    [(way, False) for way in WRITES] + [(way, True) for way in WRITES if way in RELATIVE],
)
def test_a_path_that_nothing_locates_is_refused_before_anything_is_written(
    pinned, site_dirs, named, tmp_path, monkeypatch, way, relative
):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path, *site_dirs.values())
    with pytest.raises(UnlocatedError, match="To write it at the client") as raised:
        WRITES[way](pinned, named if relative else tmp_path / named)
    assert named in str(raised.value)
    assert "compute(" in str(raised.value)
    assert str(site_dirs["ecmwf"]) in str(raised.value)
    assert files(tmp_path, *site_dirs.values()) == before


def test_the_way_to_write_at_the_client_works(pinned, forecast, tmp_path):
    with pytest.raises(UnlocatedError) as raised:
        pinned.to_netcdf(str(tmp_path / "here.nc"))
    assert f"`ds.compute().to_netcdf({str(tmp_path / 'here.nc')!r})`" in str(raised.value)
    pinned.compute().to_netcdf(str(tmp_path / "here.nc"))
    with xr.open_dataset(tmp_path / "here.nc") as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_a_relative_path_is_relative_to_the_workers_of_the_pool_that_is_stated(
    pinned, forecast, eumetsat, named, places
):
    with dask_pools.pool("eumetsat"):
        pinned[["t"]].to_zarr(named)
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(eumetsat / named) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_a_pool_that_is_stated_beats_the_rules(pinned, ecmwf, named, places):
    with dask_pools.pool("eumetsat"):
        pinned["t"].to_zarr(ecmwf / named)
    assert places.of("store.t@") == places.of("create-") == {"eumetsat"}


def test_the_rules_of_the_catalogue_hold_for_what_is_written(
    write, forecast, client, ecmwf, eumetsat, named, places
):
    write(forecast, ecmwf / named)
    rules = {"data_centres": {"ecmwf": {"prefixes": [str(ecmwf)]}, "eumetsat": {"prefixes": [str(eumetsat)]}}}
    dataset = load_from_catalog(ecmwf / named, data_centres=rules)
    dataset["t"].to_zarr(eumetsat / f"{named}.zarr")
    assert places.of("store.t@") == {"eumetsat"}


def test_rules_that_contradict_each_other_are_refused(write, forecast, client, ecmwf, eumetsat, named):
    write(forecast, ecmwf / named)
    for name in ("ecmwf", "eumetsat"):
        rules = {"data_centres": {name: {"prefixes": [str(ecmwf), str(eumetsat)]}}}
        dataset = load_from_catalog(ecmwf / named, data_centres=rules)
    with pytest.raises(MixedPoolsError, match=r"'ecmwf', 'eumetsat'"):
        dataset["t"].to_zarr(eumetsat / f"{named}.zarr")
    assert not (eumetsat / f"{named}.zarr").exists()


def test_persisted_data_is_written_where_the_target_is(pinned, forecast, eumetsat, named, places):
    (pinned[["t"]] + 1).persist().to_zarr(eumetsat / named)
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(eumetsat / named) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"] + 1)


@pytest.mark.parametrize("name", [None, "t", "lat"])
def test_an_array_is_written_under_the_name_that_xarray_gives_it(pinned, forecast, ecmwf, named, name):
    pinned["t"].rename(name).to_netcdf(ecmwf / named)
    assert xr.open_dataarray(ecmwf / named).name == name
    np.testing.assert_array_equal(xr.open_dataarray(ecmwf / named), forecast["t"])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"engine": "h5netcdf", "unlimited_dims": ["time"]},
        {"format": "NETCDF3_64BIT", "unlimited_dims": ["time"]},
    ],
    ids=["netcdf4", "h5netcdf", "netcdf3"],
)
def test_a_netcdf_file_is_written_where_it_lives(pinned, forecast, eumetsat, named, places, how):
    target = eumetsat / named
    times_two = pinned[["t", "packed", "crs"]] * 2
    times_two.to_netcdf(target, encoding={"packed": {"dtype": "i2", "scale_factor": 0.1}}, **how)
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_dataset(target) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"] * 2)
        np.testing.assert_allclose(written["packed"], forecast["packed"] * 2)


def _meet(block: np.ndarray) -> np.ndarray:
    """Return the same block when two workers have come to this."""
    if block.size == 0:  # Dask asks for the type of the result
        return block
    Path(f"met-{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(Path().glob("met-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return block


def test_two_workers_write_one_netcdf_file(write, site_dirs, named):
    data = np.random.default_rng(0).random((12, 30))
    source = xr.Dataset({name: (("time", "x"), data + i) for i, name in enumerate("abc")})
    path = site_dirs["ecmwf"] / f"{named}.nc"
    source.to_netcdf(path, encoding={name: {"chunksizes": (1, 30)} for name in "abc"})
    with (
        LocalPools({"ecmwf": 2}, threads_per_worker=2, directories={"ecmwf": path.parent}) as cluster,
        Client(cluster) as client,
        client.as_current(),
        dask_pools.pool("ecmwf"),
    ):
        plugin = Places(cluster.scheduler)
        cluster.scheduler.add_plugin(plugin, name="places")
        dataset = load_from_catalog(path, data_centre="ecmwf")
        # Each worker waits for the other one, so that neither writes everything before the other has begun.
        together = xr.apply_ufunc(_meet, dataset * 2, dask="parallelized", output_dtypes=[float])
        delayed = together.to_netcdf(f"{named}-2.nc", group="one/two", compute=False)
        dask.compute(delayed)
        assert len(plugin.workers_of("store.a@")) == 2
    with xr.open_dataset(site_dirs["ecmwf"] / f"{named}-2.nc", group="one/two") as written:
        xr.testing.assert_identical(written.load(), source * 2)


def test_several_files_are_written_where_each_lives(pinned, forecast, ecmwf, eumetsat, named, places):
    parts = [pinned[["t"]].isel(time=slice(0, 3)), pinned[["t"]].isel(time=slice(3, 6))]
    xr.save_mfdataset(parts, [ecmwf / f"{named}-0", eumetsat / f"{named}-1"])
    assert places.of("store.t@") == {"ecmwf", "eumetsat"}
    for at, part in ((ecmwf / f"{named}-0", slice(0, 3)), (eumetsat / f"{named}-1", slice(3, 6))):
        with xr.open_dataset(at) as written:
            np.testing.assert_array_equal(written["t"], forecast["t"].isel(time=part))


def test_what_is_stored_is_not_returned(pinned, ecmwf, named):
    with pytest.raises(NotImplementedError, match="return_stored=True would read"):
        pinned["t"].data.to_zarr(str(ecmwf / named), return_stored=True)
    assert not (ecmwf / named).exists()


def test_netcdf_into_an_object_store_is_refused(pinned, ecmwf):
    with dask_pools.pool("ecmwf"), pytest.raises(ValueError, match="Use to_zarr"):
        pinned.to_netcdf("s3://ecmwf-x/a.nc")


def test_netcdf_by_scipy_is_refused(pinned, ecmwf, named):
    with pytest.raises(NotImplementedError, match=r"several processes\. Leave it out"):
        pinned.to_netcdf(ecmwf / named, engine="scipy", format="NETCDF3_64BIT")
    assert not (ecmwf / named).exists()


@pytest.mark.parametrize("chunks", [(2, 4, 5), ((1, 3, 2), 4, 5)], ids=["even", "uneven"])
@pytest.mark.filterwarnings("ignore:The array uses irregular chunk sizes")
def test_a_dask_array_is_written_where_its_target_is(pinned, forecast, eumetsat, named, places, chunks):
    target = str(eumetsat / named)
    array = pinned["t"].data.rechunk(chunks)
    assert array.to_zarr(target, component="here", compute=False) is not None
    array.to_zarr(target, component="there")
    assert places.of("create-") == places.of("store.there@") == {"eumetsat"}
    np.testing.assert_array_equal(zarr.open_group(target)["there"], forecast["t"])


@pytest.mark.parametrize("later", [False, True])
def test_an_array_of_zarr_is_written_where_it_lives(pinned, forecast, eumetsat, named, places, later):
    target = zarr.create_array(eumetsat / named, shape=(6, 4, 5), chunks=(2, 4, 5), dtype="f4")
    array = pinned["t"].data + 1
    if later:
        dask.compute(dask.delayed(len)([da.store(array, target, lock=False, compute=False)]))
    else:
        da.store(array, target, lock=False)
    assert places.of("store-map") | places.of("store_map@") == {"eumetsat"}
    np.testing.assert_array_equal(target[:], forecast["t"] + 1)


def test_an_array_of_zarr_that_nothing_locates_is_not_written(pinned, tmp_path, named):
    target = zarr.create_array(tmp_path / named, shape=(6, 4, 5), chunks=(2, 4, 5), dtype="f4")
    before = files(tmp_path)
    for compute in (True, False):
        with pytest.raises(UnlocatedError, match="To write it at the client"):
            dask.compute(pinned["t"].data.store(target, lock=False, compute=compute))
    assert files(tmp_path) == before


def test_a_chunk_is_not_written_on_a_worker_of_another_pool(pinned, client, pools, eumetsat, named):
    delayed = pinned[["t"]].to_zarr(eumetsat / named, compute=False)
    before = files(eumetsat)
    (ecmwf,) = (a for a, w in pools.scheduler.workers.items() if "pool-ecmwf" in w.resources)
    with dask.config.set({"pools.propagate": False}):
        future = client.compute(delayed, workers=[ecmwf])
        error = future.exception()
    future.release()
    assert isinstance(error, MisplacedTaskError)
    assert error.pool == "eumetsat"
    assert files(eumetsat) == before


def test_a_store_that_is_gone_is_not_made_anew(pinned, eumetsat, named):
    delayed = pinned[["t"]].to_zarr(eumetsat / named, compute=False)
    shutil.rmtree(eumetsat / named)
    with pytest.raises(FileNotFoundError, match=named):
        delayed.compute()
    assert not (eumetsat / named).exists()


def test_data_without_pins_is_written_as_xarray_and_dask_do(client, forecast, tmp_path, named):
    writing.install()
    dataset = forecast.chunk(time=2).drop_encoding()
    assert isinstance(dataset.to_zarr(tmp_path / "a"), xr.backends.ZarrStore)
    dataset.to_zarr(tmp_path / "b", compute=False).compute()
    dataset["t"].data.to_zarr(str(tmp_path / "c"))
    # One chunk: with several, xarray 2026.9 can lock up on workers of several threads, since the order in
    # which it takes its locks differs from task to task.
    dataset[["t"]].chunk(time=-1).to_netcdf(tmp_path / "d")
    for written in (
        xr.open_zarr(tmp_path / "a"),
        xr.open_zarr(tmp_path / "b"),
        xr.open_dataset(tmp_path / "d"),
    ):
        np.testing.assert_array_equal(written["t"], forecast["t"])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "c"), forecast["t"])


def test_targets_in_memory_are_left_alone(pinned, forecast):
    store = zarr.storage.MemoryStore()
    with dask.config.set(scheduler="threads"):
        pinned[["lat"]].to_zarr(store)
        target = np.zeros((6, 4, 5))
        da.store(da.from_array(forecast["t"].values, chunks=2), target)
    assert "lat" in zarr.open_group(store)
    np.testing.assert_array_equal(target, forecast["t"])


def test_pins_switched_off_leave_writing_to_xarray(write, client, forecast, ecmwf, tmp_path, named):
    write(forecast, ecmwf / named)
    with dask.config.set({"pools.propagate": False}):
        dataset = load_from_catalog(ecmwf / named, data_centre="ecmwf")
        assert isinstance(dataset[["lat"]].to_zarr(tmp_path / named), xr.backends.ZarrStore)
        # Its lazy parts are kept from other pools by the guard, so they are not read here.
        dataset["t"].to_zarr(tmp_path / "later", compute=False)
    assert (tmp_path / "later").exists()


def test_without_a_cluster_data_is_written_here(write, forecast, tmp_path, named):
    write(forecast, tmp_path / named)
    dataset = load_from_catalog(tmp_path / named, data_centre="ecmwf")
    dataset.to_zarr(tmp_path / "out")
    da.store(dataset["t"].data, target := np.zeros((6, 4, 5)))
    with xr.open_zarr(tmp_path / "out") as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])
    np.testing.assert_array_equal(target, forecast["t"])


def test_wrapping_twice_is_wrapping_once():
    writing.install()
    once = xr.Dataset.to_zarr
    writing.install()
    assert xr.Dataset.to_zarr is once
    assert not hasattr(once.__wrapped__, "__wrapped__")
    assert "zarr" in (once.__doc__ or "")


@pytest.fixture
def bucket(endpoint: str) -> dict[str, object]:
    """Options that reach a bucket ``ecmwf-written`` of an S3 service on this machine."""
    options = {"key": "somebody", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    fsspec.filesystem("s3", **options).mkdirs("ecmwf-written", exist_ok=True)
    return options


def test_an_object_store_is_written_by_the_data_centre_that_hosts_it(
    pinned, forecast, eumetsat, named, places, bucket
):
    url = f"s3://ecmwf-written/{named}"
    rules = {"data_centres": {"eumetsat": {"prefixes": ["s3://ecmwf-"]}}}
    with dask.config.set({"pools.data-centres": rules}):
        delayed = pinned[["t"]].to_zarr(url, storage_options=bucket, compute=False)
    assert "hush-hush" not in repr(dict(delayed.dask))
    delayed.compute()
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(url, storage_options=bucket) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_an_object_store_that_nothing_locates_is_written_from_where_the_data_is(
    pinned, forecast, named, bucket
):
    # It is the same place from everywhere.
    url = f"s3://ecmwf-written/{named}"
    pinned[["t"]].to_zarr(url, storage_options=bucket)
    with xr.open_zarr(url, storage_options=bucket) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_texts_and_times_and_empty_variables_are_written(write, client, centres, ecmwf, eumetsat, named):
    source = xr.Dataset(
        {
            "station": ("x", np.array(["Exeter", "Darmstadt", "Reading"], dtype=object)),
            "seen": ("x", np.array(["2026-01-01", "2026-01-02", "NaT"], dtype="datetime64[ns]")),
            "nothing": (("x", "none"), np.zeros((3, 0))),
        }
    )
    source.to_netcdf(ecmwf / named)
    dataset = load_from_catalog(ecmwf / named)
    assert dataset["seen"].chunks is not None
    dataset.to_zarr(eumetsat / f"{named}.zarr")
    dataset.to_netcdf(eumetsat / f"{named}.nc")
    for written in (xr.open_zarr(eumetsat / f"{named}.zarr"), xr.open_dataset(eumetsat / f"{named}.nc")):
        xr.testing.assert_equal(written.load(), source)
        written.close()


def test_inside_the_event_loop_the_way_out_is_named_and_works(client, pools, ecmwf, named):
    async def write():
        async with Client(pools.scheduler_address, asynchronous=True):
            with dask_pools.pool("ecmwf"):
                array = xr.DataArray(da.zeros(3), name="a")
                with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
                    array.to_zarr(named)
                assert not (ecmwf / named).exists()
                await asyncio.to_thread(array.to_zarr, named)

    writing.install()
    asyncio.run(write())
    assert (zarr.open_group(ecmwf / named)["a"][:] == 0).all()


def test_a_task_may_write_in_another_pool(pinned, forecast, client, eumetsat, named, places):
    dataset = pinned[["t"]]

    def write() -> None:
        writing.install()
        with dask_pools.pool("eumetsat"):
            dataset.to_zarr(named)

    client.submit(write, resources={"pool-ecmwf": 0}, pure=False).result(timeout=60)
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_zarr(eumetsat / named) as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])


def test_what_is_computed_by_threads_is_written_here(write, forecast, client, tmp_path, named):
    write(forecast, tmp_path / named)
    dataset = load_from_catalog(tmp_path / named, data_centre="ecmwf")
    with dask.config.set(scheduler="threads"):
        dataset[["t"]].to_zarr(tmp_path / "a")
        array = zarr.create_array(tmp_path / "b", shape=(6, 4, 5), chunks=(2, 4, 5), dtype="f4")
        dataset["t"].data.store(array, lock=False)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a")["t"], forecast["t"])
    np.testing.assert_array_equal(array, forecast["t"])


def test_a_tree_is_refused_and_the_way_to_write_it_works(pinned, forecast, eumetsat, named, places):
    tree = xr.DataTree.from_dict({"/": pinned[["t"]], "/child": pinned[["packed"]].drop_encoding()})
    path = eumetsat / named
    with pytest.raises(NotImplementedError, match="Write its datasets one by one") as raised:
        tree.to_zarr(path)
    assert not path.exists()
    _, advice, _ = str(raised.value).split("`")
    exec(advice, {"tree": tree, "path": path})
    assert places.of("store.t@") == {"eumetsat"}
    with xr.open_datatree(path, engine="zarr") as written:
        np.testing.assert_array_equal(written["t"], forecast["t"])
        np.testing.assert_allclose(written["child/packed"], forecast["packed"])
