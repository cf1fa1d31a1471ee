import asyncio
import os
import pickle
import shutil
import time
import warnings

import dask
import distributed
import numpy as np
import pytest
import xarray as xr
import zarr

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError, MisplacedTaskError
from intake_pools import load_from_catalog, stores
from intake_pools.opening import LazyCoordinateWarning

KINDS = ["netcdf3", "netcdf4", "zarr2", "zarr3"]


def quietly(kind):
    """Say that the metadata is not consolidated; xarray would try and warn."""
    return {"consolidated": False} if kind == "zarr3" else {}


def replace(path, write):
    """Write a file or store anew, as rsync or an editor would: beside the old one, then in its place."""
    beside = path.with_name(f"{path.name}.new")
    write(beside)
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(beside, path)


def assert_same(encoding, other):
    assert list(encoding) == list(other)
    for key, value in encoding.items():
        assert value == other[key] or (np.isnan(value) and np.isnan(other[key]))


def load(path, data_centre="ecmwf", **kwargs):
    return load_from_catalog(str(path), data_centre=data_centre, **kwargs)


@pytest.fixture
def blind(monkeypatch):
    """Let this process open or look at no data: whoever does so is to be a worker."""

    def refuse(*args, **kwargs):
        raise AssertionError("the client touched the data")

    for name in ("version_of", "stamp_of", "_open", "source_of", "opened", "reopened", "expand"):
        monkeypatch.setattr(stores, name, refuse)
    monkeypatch.setattr(xr, "open_dataset", refuse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eager", ["0 B", "1 MiB"])
def test_what_comes_back_is_what_xarray_opens_there(write, client, ecmwf, forecast, named, kind, eager):
    write(forecast, ecmwf / named, kind)
    engine = "zarr" if kind.startswith("zarr") else None
    with xr.open_dataset(ecmwf / named, engine=engine, chunks={}, **quietly(kind)) as stock:
        with dask.config.set({"pools.eager-size": eager}):
            ours = load(named)
        assert ours.encoding["source"] == stock.encoding["source"]
        assert set(ours.coords) == set(stock.coords)
        for name, variable in stock.variables.items():
            assert_same(ours.variables[name].encoding, variable.encoding)
            if (eager == "0 B" or name in stock.data_vars) and variable.ndim and name not in stock.xindexes:
                assert ours[name].chunks == variable.chunks
            else:
                assert ours[name].chunks is None
        xr.testing.assert_identical(ours.compute(), stock.compute())


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", KINDS)
def test_the_client_touches_no_data(write, client, ecmwf, forecast, named, kind, request):
    write(forecast, ecmwf / named, kind)
    request.getfixturevalue("blind")
    import matplotlib

    matplotlib.use("Agg")
    ds = load(named)
    assert "height" in repr(ds)
    assert ds["crs"].load().item() == 4326
    assert ds["issued"].values == np.datetime64("2026-01-01T12")
    ds["lat"].plot()
    ds["area"].plot()
    ds["t"].mean("time").plot()
    assert ds._repr_html_()
    assert float(ds["t"].mean()) == pytest.approx(float(forecast["t"].mean()))
    xr.testing.assert_allclose(ds.isel(time=[0, 3], lon=2).compute(), forecast.isel(time=[0, 3], lon=2))
    ds.close()
    assert ds["t"].sum().compute() == pytest.approx(forecast["t"].sum().item(), rel=1e-5)


@pytest.mark.usefixtures("lazily")
def test_chunks_are_read_in_the_pool_and_both_carriers_say_so(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    ds = load(named)
    assert get_pool(ds) == "ecmwf"
    layer = ds["t"].data.dask.layers[ds["t"].data.name]
    assert layer.annotations["resources"] == {"pool-ecmwf": 0}
    assert ds["t"].data.name.startswith("read-t@ecmwf-")


@pytest.mark.usefixtures("lazily")
def test_an_ambient_pool_or_annotation_does_not_move_an_entry(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    with dask.annotate(resources={"pool-eumetsat": 0, "GPU": 0}, priority=3):
        ds = load(named)
    layer = ds["t"].data.dask.layers[ds["t"].data.name]
    assert layer.annotations == {"resources": {"pool-ecmwf": 0, "GPU": 0}, "priority": 3}


def test_one_path_in_two_data_centres_is_two_datasets(write, client, ecmwf, eumetsat, named):
    field = xr.DataArray(np.full((40, 100), 1.0), dims=("y", "x"), name="v").to_dataset()
    write(field, ecmwf / named)
    write(field + 1, eumetsat / named)
    with dask.config.set({"pools.eager-size": 0}):
        x, y = load(named)["v"], load(named, "eumetsat")["v"]
        assert x.data.name != y.data.name
        assert (x - y).sum().compute() == -4000


@pytest.mark.usefixtures("lazily")
def test_one_file_in_two_data_centres_has_two_names(write, client, tmp_path, forecast):
    write(forecast, tmp_path / "a.nc")
    x, y = load(tmp_path / "a.nc"), load(tmp_path / "a.nc", "eumetsat")
    assert x["t"].data.name != y["t"].data.name


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_file_has_the_same_names_and_a_changed_one_new_names(
    write, client, ecmwf, forecast, named, kind
):
    write(forecast, ecmwf / named, kind)
    first, again = load(named), load(named)
    assert first["t"].data.name == again["t"].data.name
    replace(ecmwf / named, lambda path: write(forecast.assign(t=forecast["t"] + 1), path, kind))
    changed = load(named)
    assert changed["t"].data.name != first["t"].data.name
    assert float(changed["t"].mean() - forecast["t"].mean()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(
        DataChangedError, match=rf"of {named} cannot be read: version .* Open the entry again"
    ):
        first["t"].sum().compute()


@pytest.mark.usefixtures("lazily")
def test_a_file_that_nobody_reads_any_more_can_be_written_by_others(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    before = load(named)["t"]
    assert before.mean().compute() == pytest.approx(forecast["t"].mean().item(), rel=1e-5)
    deadline = time.monotonic() + 20
    while True:
        try:
            write(forecast.assign(t=forecast["t"] * 0), ecmwf / named)
            break
        except PermissionError:  # HDF5's lock: a worker has it open
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert load(named)["t"].sum().compute() == 0


@pytest.mark.usefixtures("lazily")
def test_names_follow_what_decides_the_content_and_nothing_else(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    name = load(named)["t"].data.name
    assert load(ecmwf / named)["t"].data.name == name
    assert load(named, chunks={"time": 2})["t"].data.name == name  # that is what is stored
    assert load(named, chunks={"time": 3})["t"].data.name != name
    assert load(named, version="2")["t"].data.name != name
    assert load(named, xarray_kwargs={"mask_and_scale": False})["t"].data.name != name
    assert load(named)["packed"].data.name != name


@pytest.mark.usefixtures("lazily")
def test_a_stated_version_gives_new_names_to_chunks_that_were_rewritten_in_place(
    write, client, ecmwf, forecast, named
):
    write(forecast, ecmwf / named, "zarr3")
    first = load(named, version="a")["t"]
    later = (forecast[["t"]] * 0).drop_vars(["area", "height", "lat", "lon", "time"])
    later.isel(time=slice(0, 2)).to_zarr(ecmwf / named, region={"time": slice(0, 2)}, consolidated=False)
    # Such a change leaves no mark in the metadata.
    assert load(named, version="a")["t"].data.name == first.data.name
    assert load(named, version="b")["t"].data.name != first.data.name


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", KINDS)
def test_data_that_is_gone_is_an_error_and_never_fill_values(write, client, ecmwf, forecast, named, kind):
    write(forecast, ecmwf / named, kind)
    ds = load(named)
    if kind.startswith("zarr"):
        shutil.rmtree(ecmwf / named)
    else:
        (ecmwf / named).unlink()
    with pytest.raises(DataChangedError, match="version none"):
        ds["t"].sum().compute()


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_lost_its_pin_is_not_read_on_a_worker_of_another_pool(
    write, client, ecmwf, eumetsat, forecast, named, kind
):
    write(forecast, ecmwf / named, kind)
    write(forecast.assign(t=forecast["t"] * 0), eumetsat / named, kind)
    recipe = _recipe(load(named)["t"])
    lost = client.submit(lambda: recipe[0:1], resources={"pool-eumetsat": 0}, pure=False)
    # Not result(): what it raises would keep the future alive.
    error = lost.exception()
    assert isinstance(error, MisplacedTaskError)
    assert f"t[0:1] of {named} lives in pool 'ecmwf', but was about to be accessed on worker" in str(error)
    kept = client.submit(lambda: recipe[0:1], resources={"pool-ecmwf": 0}, pure=False)
    np.testing.assert_allclose(kept.result(), forecast["t"][0:1])


def _recipe(array):
    from intake_pools.mosaics import RemoteVariable

    task = next(iter(array.data.dask.to_dict().values()))
    (recipe,) = [part.value for part in task.args if isinstance(getattr(part, "value", None), RemoteVariable)]
    return recipe


@pytest.mark.usefixtures("lazily")
def test_an_absent_chunk_of_a_zarr_that_is_there_is_its_fill_value(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named, "zarr3")
    chunk = ecmwf / named / "t" / "c" / "0" / "0" / "0"
    assert chunk.exists()
    chunk.unlink()
    assert np.isnan(load(named)["t"][:2].values).all()


@pytest.mark.usefixtures("lazily")
def test_a_zarr_that_vanishes_while_it_is_open_gives_no_fill_values(write, tmp_path, forecast):
    write(forecast, tmp_path / "a", "zarr2")
    source = stores.source_of(str(tmp_path / "a"), "zarr", {}, {})
    dataset = stores.reopened(source).dataset
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(stores.StoreGone):
        dataset["t"].values  # noqa: B018


@pytest.mark.usefixtures("lazily")
def test_an_opened_dataset_is_small(write, client, ecmwf, named):
    names = [f"v{number}" for number in range(20)]
    shape = (10, 50, 50)
    many = xr.Dataset({name: (("time", "y", "x"), np.zeros(shape)) for name in names})
    write(many, ecmwf / named)
    assert len(pickle.dumps(load(named))) < 2500 * len(names)


def test_one_layer_a_variable_and_as_many_tasks_as_chunks(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    with dask.config.set({"pools.eager-size": 0}):
        graph = load(named)["t"].data.dask
    assert len(graph.layers) == 1
    assert len(graph) == 3


def test_small_coordinates_come_along_but_not_without_end_and_data_never(write, client, ecmwf, named):
    small = {f"c{number}": (("x",), np.zeros(1000)) for number in range(40)}
    write(xr.Dataset({"v": (("x",), np.arange(1000.0))}, coords=small), ecmwf / named)
    with dask.config.set({"pools.eager-size": "8 kB"}):
        ds = load(named)
    assert sum(array.chunks is None for array in ds.coords.values()) == 16
    assert ds["v"].chunks
    assert np.arange(900.0, 1000.0).tobytes() not in pickle.dumps(ds)
    with dask.config.set({"pools.eager-size": "7 kB"}):
        ds = load(named)
    assert all(array.chunks for array in ds.coords.values())


@pytest.mark.parametrize(
    "chunks",
    [{}, {"time": 4}, {"time": -1, "lat": 2}, "auto", 2, -1, {"time": "auto"}, {"time": (1, 5)}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The specified chunks separate")
@pytest.mark.usefixtures("lazily")
def test_chunks_are_those_that_xarray_chooses(write, client, ecmwf, forecast, named, chunks, kind):
    write(forecast, ecmwf / named, kind)
    ours = load(named, chunks=chunks)
    engine = "zarr" if kind.startswith("zarr") else None
    with xr.open_dataset(ecmwf / named, engine=engine, chunks=chunks, **quietly(kind)) as stock:
        assert {name: ours[name].chunks for name in ("t", "packed")} == {
            name: stock[name].chunks for name in ("t", "packed")
        }


@pytest.mark.usefixtures("lazily")
def test_what_is_stored_in_one_piece_is_cut_along_the_file(write, client, ecmwf, named):
    whole = xr.Dataset({"v": (("a", "b", "c"), np.zeros((6, 100, 100)))})
    write(whole, ecmwf / named, "netcdf3")
    with dask.config.set({"array.chunk-size": "170 kB"}):
        assert load(named)["v"].chunks == ((2, 2, 2), (100,), (100,))
    with dask.config.set({"array.chunk-size": "50 kB"}):
        assert load(named)["v"].chunks == ((1,) * 6, (50, 50), (100,))


@pytest.mark.usefixtures("lazily")
def test_groups_of_files_and_stores(client, ecmwf, forecast, named):
    forecast.to_netcdf(ecmwf / f"{named}.nc", group="a/b")
    forecast.to_zarr(ecmwf / f"{named}.zarr", group="a/b", consolidated=False)
    for version in (2, 3):
        path = ecmwf / f"{named}.{version}.zarr"
        forecast.to_zarr(path, group="a/b", zarr_format=version, consolidated=False)
        zarr.consolidate_metadata(zarr.storage.LocalStore(path))
    for path in (f"{named}.nc", f"{named}.zarr", f"{named}.2.zarr", f"{named}.3.zarr"):
        ds = load(path, xarray_kwargs={"group": "a/b"})
        xr.testing.assert_allclose(ds.compute(), forecast)


@pytest.mark.usefixtures("lazily")
def test_times_of_other_calendars_and_undecoded_ones(write, client, ecmwf, named):
    import cftime

    times = xr.date_range("2000-01-01", periods=4, calendar="360_day", use_cftime=True)
    write(xr.Dataset({"v": (("time",), np.arange(4.0))}, {"time": times}), ecmwf / named)
    assert isinstance(load(named)["time"].values[0], cftime.Datetime360Day)
    assert load(named, xarray_kwargs={"decode_times": False})["time"].dtype.kind in "if"
    lazy = xr.Dataset({"when": (("x",), times)})
    write(lazy, ecmwf / f"{named}2")
    ds = load(f"{named}2", chunks={"x": 2})
    assert ds["when"].chunks == ((2, 2),)
    assert list(ds["when"].values) == list(times)


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("how", ["by_coords", "nested"])
def test_several_files_are_combined_as_xarray_combines_them(write, client, ecmwf, forecast, named, how):
    forecast = forecast.drop_vars(["crs", "issued"])
    for number in range(3):
        write(forecast.isel(time=slice(2 * number, 2 * number + 2)), ecmwf / f"{named}-{number}.nc")
    options = {"combine": how} | ({"concat_dim": "time"} if how == "nested" else {})
    ours = load(f"{named}-*.nc", xarray_kwargs=options)
    listed = load_from_catalog(
        [f"{named}-{number}.nc" for number in range(3)], data_centre="ecmwf", xarray_kwargs=options
    )
    with xr.open_mfdataset(str(ecmwf / f"{named}-*.nc"), **options) as stock:
        assert ours["t"].chunks == listed["t"].chunks == stock["t"].chunks
        xr.testing.assert_identical(ours.compute(), stock.compute())
        xr.testing.assert_identical(listed.compute(), stock.compute())
    assert get_pool(ours) == "ecmwf"
    assert ours["t"].data.name == load(f"{named}-*.nc", xarray_kwargs=options)["t"].data.name


@pytest.mark.usefixtures("lazily")
def test_with_pins_off_an_entry_opens_unannotated_and_the_guard_still_guards(
    write, client, ecmwf, eumetsat, forecast, named
):
    write(forecast, ecmwf / named)
    with dask.config.set({"pools.propagate": False}):
        ds = load(named)
        (layer,) = ds["t"].data.dask.layers.values()
        assert not layer.annotations
        astray = client.compute(ds["t"].data.sum(), workers=_workers(client, "eumetsat"))
        assert isinstance(astray.exception(), MisplacedTaskError)
        assert client.compute(ds["t"].data.mean(), workers=_workers(client, "ecmwf")).result()


def _workers(client, pool):
    info = client.scheduler_info(n_workers=-1)["workers"]
    return [address for address, worker in info.items() if f"pool-{pool}" in worker["resources"]]


@pytest.mark.usefixtures("lazily")
def test_a_task_opens_entries_of_its_own_pool_and_of_another(write, client, ecmwf, eumetsat, forecast, named):
    write(forecast, ecmwf / named)

    def mean():
        return float(load(named)["t"].mean().compute())

    for pool in ("ecmwf", "eumetsat"):
        future = client.submit(mean, resources={f"pool-{pool}": 0}, pure=False)
        assert future.result(timeout=30) == pytest.approx(float(forecast["t"].mean()), rel=1e-5)


def test_inside_the_event_loop_the_way_out_is_named_and_works(write, pools, ecmwf, forecast, named):
    write(forecast, ecmwf / named)

    async def main():
        async with distributed.Client(pools.scheduler_address, asynchronous=True) as client:
            with pytest.raises(EntryError, match=r"await asyncio.to_thread\(entry.to_dask\)"):
                load(named)
            with dask.config.set({"pools.eager-size": 0}):
                ds = await asyncio.to_thread(load, named)
            return await client.compute(ds["t"].data.mean())

    assert asyncio.run(main()) == pytest.approx(float(forecast["t"].mean()), rel=1e-5)


@pytest.fixture
def series(write, ecmwf, named, forecast):
    """Ten files, one a day, and what xarray makes of them."""
    forecast = forecast.drop_vars(["crs", "issued"])
    later = forecast.assign_coords(time=forecast["time"] + np.timedelta64(6, "D"))
    days = xr.concat([forecast, later], "time", data_vars="minimal", coords="minimal")
    for number in range(10):
        write(days.isel(time=[number]), ecmwf / f"{named}-{number}.nc", "netcdf3")

    def stock(**options):
        return xr.open_mfdataset(str(ecmwf / f"{named}-*.nc"), **options)

    return f"{named}-*.nc", stock


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"combine": "nested", "concat_dim": "time"},
        {"combine": "nested", "concat_dim": "time", "data_vars": "minimal", "coords": "minimal"}
        | {"compat": "override"},
        {"combine": "nested", "concat_dim": "member"},
        {"combine_attrs": "drop_conflicts"},
        {"join": "override", "combine": "nested", "concat_dim": "time"},
    ],
    ids=lambda options: ",".join(map(str, options.values())) or "defaults",
)
def test_many_files_are_opened_in_batches_and_are_what_xarray_makes_of_them(series, client, options):
    pattern, stock = series
    ours = load(pattern, xarray_kwargs=options)
    # xarray computes while it combines. In this thread: sent to the scheduler, these graphs have equal keys
    # for different tasks (dask issue 9888), and some are left there.
    with dask.config.set(scheduler="sync"), stock(**options) as expected:
        chunks, expected_values = expected["t"].chunks, expected.compute()
    xr.testing.assert_identical(ours.compute(), expected_values)
    assert ours["t"].chunks == chunks
    for name in ("t", "packed"):
        assert len(ours[name].data.dask.layers) == 1
    assert get_pool(ours) == "ecmwf"


@pytest.mark.usefixtures("lazily")
def test_files_that_do_not_fit_batch_by_batch_are_combined_all_at_once(write, client, ecmwf, forecast, named):
    """In the order of their names, times go back and forth, and batches would overlap."""
    for number, day in enumerate([0, 3, 1, 4, 2, 5]):
        write(forecast[["t"]].isel(time=[day]), ecmwf / f"{named}-{number}.nc", "netcdf3")
    ours = load(f"{named}-*.nc")
    xr.testing.assert_allclose(ours["t"].compute(), forecast["t"])
    assert len(ours["t"].data.dask.layers) == 1


@pytest.mark.usefixtures("lazily")
def test_tiles_in_two_dimensions(write, client, ecmwf, forecast, named):
    parts = [forecast[["t"]].isel(time=[day], lon=lon) for day in range(6) for lon in (slice(2), slice(2, 5))]
    for number, part in enumerate(parts):
        write(part.drop_encoding(), ecmwf / f"{named}-{number:02}.nc", "netcdf3")
    ours = load(f"{named}-*.nc")
    xr.testing.assert_allclose(ours["t"].compute(), forecast["t"])
    assert len(ours["t"].data.dask.layers) == 1


@pytest.mark.usefixtures("lazily")
def test_files_with_gaps_are_filled_as_xarray_fills_them(write, client, ecmwf, forecast, named):
    """What takes more than laying pieces side by side is left to Dask's arrays, still in one layer."""
    write(forecast[["t"]].isel(time=slice(3), lat=slice(3)), ecmwf / f"{named}-0.nc", "netcdf3")
    write(forecast[["t"]].isel(time=slice(3, 6)), ecmwf / f"{named}-1.nc", "netcdf3")
    ours = load(f"{named}-*.nc", xarray_kwargs={"join": "outer"})
    with xr.open_mfdataset(str(ecmwf / f"{named}-*.nc"), join="outer") as expected:
        xr.testing.assert_identical(ours.compute(), expected.compute())
    (layer,) = ours["t"].data.dask.layers.values()
    assert layer.annotations["resources"] == {"pool-ecmwf": 0}
    assert get_pool(ours) == "ecmwf"


@pytest.mark.usefixtures("lazily")
def test_what_the_client_gets_of_many_files_is_small(write, client, ecmwf, named):
    field = xr.Dataset({f"v{n}": ("x", np.arange(3.0)) for n in range(5)}, {"x": np.arange(3)})
    for number in range(60):
        write(field.assign_coords(x=field["x"] + 3 * number), ecmwf / f"{named}-{number:02}.nc", "netcdf3")
    # 300 kB for 500 files of five variables each.
    assert len(pickle.dumps(load(f"{named}-*.nc"))) < 60 * 600 + 10_000


@pytest.mark.usefixtures("lazily")
def test_one_of_many_files_that_cannot_be_read_is_named(series, client, ecmwf):
    pattern, _ = series
    broken = ecmwf / pattern.replace("*", "7")
    broken.write_bytes(b"CDF nonsense")
    with pytest.raises(EntryError, match=r"is unreadable on worker"):
        load(pattern)
    broken.write_bytes(b"nonsense")
    with pytest.raises(EntryError, match=r"-7.nc .*is unreadable on worker|did not find a match|unreadable"):
        load(pattern)


@pytest.fixture
def openings(client, monkeypatch):
    """Names of the functions that the client had called in pools."""
    from intake_pools import opening, remembered

    called = []
    submit = opening._submit

    def counting(client, entry, function, *args):
        called.append(function.__name__)
        return submit(client, entry, function, *args)

    monkeypatch.setattr(opening, "_submit", counting)
    remembered.forget()
    return called


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", KINDS)
def test_opening_again_costs_one_look_at_the_version(write, client, ecmwf, forecast, named, kind, openings):
    write(forecast, ecmwf / named, kind)
    first = load(named)
    assert openings == ["_open"]
    first["lat"].attrs["units"] = first.attrs["title"] = "changed"
    first["height"].values[()] = 100
    openings.clear()
    again = load(named)
    assert openings == ["_unchanged"]
    xr.testing.assert_allclose(again.compute(), forecast)
    assert again.attrs["title"] == "a forecast"
    assert "units" not in again["lat"].attrs
    assert again["t"].data.name == first["t"].data.name


@pytest.mark.usefixtures("lazily")
def test_what_has_changed_since_or_is_asked_for_otherwise_is_opened_anew(
    write, client, ecmwf, forecast, named, openings
):
    write(forecast, ecmwf / named)
    load(named)
    replace(ecmwf / named, lambda path: write(forecast.assign(t=forecast["t"] * 2), path))
    openings.clear()
    xr.testing.assert_allclose(load(named)["t"].compute(), forecast["t"] * 2)
    assert openings == ["_unchanged", "_open"]
    openings.clear()
    load(named, chunks={"time": 1})
    with dask.annotate(priority=3):
        load(named)
    assert openings == ["_open", "_open"]


def test_a_new_file_of_a_pattern_is_noticed(series, client, ecmwf, openings):
    pattern, _ = series
    assert load(pattern).sizes["time"] == 10
    (ecmwf / pattern.replace("*", "9")).unlink()
    assert load(pattern).sizes["time"] == 9


def test_what_is_remembered_can_be_forgotten(write, client, ecmwf, forecast, named, openings):
    import intake

    from intake_pools import forget

    paths = [ecmwf / f"{named}-{number}.nc" for number in (1, 2)]
    for path in paths:
        write(forecast, path)

    def opened_anew():
        openings.clear()
        for path in paths:
            load(path)
        return [name == "_open" for name in openings if name != "_unchanged"], len(openings)

    opened_anew()
    assert opened_anew() == ([], 2)
    entry = intake.open_pooled_netcdf(str(paths[0]), data_centre="ecmwf")
    for what, number in (
        (None, 2),
        (entry, 1),
        (paths[1], 1),
        (f"{ecmwf}/{named}-*.nc", 2),
        (ecmwf, 2),
        (ecmwf / "other.nc", 0),
        (ecmwf / f"{named}-1", 0),
    ):
        assert forget(*([what] if what else [])) == number, what
        anew, _ = opened_anew()
        assert len(anew) == number, what


def test_what_shows_no_version_is_read_anew_after_it_was_forgotten(
    write, client, ecmwf, forecast, named, monkeypatch
):
    from intake_pools import forget

    def blindly(dask_worker=None):
        from intake_pools import stores

        stores.seeing = getattr(stores, "seeing", stores.version_of)
        stores.version_of = lambda source: stores.Version("")

    def again(dask_worker=None):
        from intake_pools import stores

        stores.version_of = stores.seeing

    workers = _workers(client, "ecmwf")
    path = ecmwf / named
    write(forecast, path)
    client.run(blindly, workers=workers)
    try:
        assert load(path).attrs["title"] == "a forecast"
        replace(path, lambda beside: write(forecast.assign_attrs(title="another"), beside))
        assert load(path).attrs["title"] == "a forecast"
        forget(path)
        assert load(path).attrs["title"] == "another"
    finally:
        client.run(again, workers=workers)
        forget(path)


@pytest.mark.parametrize(
    ("stored", "limit", "expected"),
    [
        ((1, 10, 20), 8 * 200 * 5, (5, 10, 20)),
        ((2, 10, 20), 8 * 200 * 5, (4, 10, 20)),
        ((2, 5, 20), 8 * 100, (2, 5, 20)),
        ((1, 5, 7), 8 * 70, (1, 5, 14)),
        ((1, 10, 20), 10**9, (30, 10, 20)),
    ],
    ids=str,
)
def test_automatic_chunks_are_whole_stored_chunks(stored, limit, expected):
    from intake_pools.recipes import chunks_of

    dims = ("time", "lat", "lon")
    variable = xr.Variable(dims, np.zeros((30, 10, 20)))
    variable.encoding["preferred_chunks"] = dict(zip(dims, stored, strict=True))
    assert tuple(sizes[0] for sizes in chunks_of(variable, "auto", 10**6, limit)) == expected


@pytest.mark.usefixtures("lazily")
def test_automatic_chunks_follow_the_memory_of_the_pool(write, client, ecmwf, forecast, named):
    write(forecast, ecmwf / named)  # two time steps a chunk

    workers = _workers(client, "ecmwf")

    def with_memory(limit, paused_at, dask_worker):
        manager = dask_worker.memory_manager
        before = manager.memory_limit, manager.memory_pause_fraction
        manager.memory_limit, manager.memory_pause_fraction = limit, paused_at
        return before

    # Sixteen chunks for each of two threads: one of two time steps, and hardly more. A worker that
    # looks at its memory meanwhile must not pause for having more than that.
    little = 2 * 16 * 2 * 4 * 5 * 4 + 1000
    (before,) = client.run(with_memory, little, False, workers=workers).values()
    try:
        assert load(named, chunks="auto")["t"].chunks[0] == (2, 2, 2)
    finally:
        client.run(with_memory, *before, workers=workers)
    assert load(named, chunks="auto", version="2")["t"].chunks[0] == (6,)


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", ["netcdf4", "zarr2", "zarr3"])
def test_a_tree_of_groups_is_what_xarray_opens(client, ecmwf, forecast, named, kind):
    import intake

    tree = xr.DataTree.from_dict(
        {"/": forecast[["lat", "lon"]], "/ocean": forecast[["t"]], "/ocean/deep": forecast[["packed"]] * 2}
    )
    path = ecmwf / named
    if kind == "netcdf4":
        tree.to_netcdf(path, engine="netcdf4")
    else:
        tree.to_zarr(path, zarr_format=int(kind[-1]), consolidated=kind == "zarr2")
    driver = "open_pooled_netcdf" if kind == "netcdf4" else "open_pooled_zarr"
    source = getattr(intake, driver)(named, data_centre="ecmwf")
    ours = source.to_datatree()
    assert set(ours.groups) == {"/", "/ocean", "/ocean/deep"}
    assert get_pool(ours["ocean/t"]) == "ecmwf"
    xr.testing.assert_allclose(ours.compute(), tree)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("kind", ["netcdf4", "zarr2"])
def test_a_coordinate_above_the_stated_size_stays_lazy_and_says_how_to_get_its_index(
    write, client, ecmwf, named, kind
):
    cells = xr.Dataset({"v": ("cell", np.arange(30_000.0))}, {"cell": np.arange(30_000) * 2, "time": [1]})
    write(cells, ecmwf / named, kind)
    with dask.config.set({"pools.index-size": "200 kB"}):
        with pytest.warns(LazyCoordinateWarning, match=r"'cell' .* has 234.38 kiB.*ds.set_xindex\('cell'\)"):
            ds = load(named, engine="zarr" if kind == "zarr2" else None)
        assert ds["cell"].chunks
        assert set(ds.xindexes) == {"time"}
        assert len(pickle.dumps(ds)) < 50_000
        with pytest.warns(LazyCoordinateWarning):
            load(named, engine="zarr" if kind == "zarr2" else None)
    xr.testing.assert_identical(ds.set_xindex("cell").compute(), cells)
    assert ds.set_xindex("cell").sel(cell=4)["v"].compute() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", LazyCoordinateWarning)
        assert set(load(named, engine="zarr" if kind == "zarr2" else None).xindexes) == {"cell", "time"}


def test_of_many_files_a_large_coordinate_that_all_have_stays_lazy(write, client, ecmwf, named):
    for number in range(3):
        cells = xr.Dataset({"v": (("time", "cell"), np.full((1, 3000), number))}, {"cell": np.arange(3000)})
        write(cells.assign_coords(time=[number]), ecmwf / f"{named}-{number}.nc")
    with dask.config.set({"pools.index-size": "20 kB"}), pytest.warns(LazyCoordinateWarning, match="'cell'"):
        ds = load(f"{named}-*.nc")
    assert set(ds.xindexes) == {"time"}
    assert ds["cell"].chunks
    with xr.open_mfdataset(str(ecmwf / f"{named}-*.nc")) as stock:
        xr.testing.assert_identical(ds.set_xindex("cell").compute(), stock.compute())
