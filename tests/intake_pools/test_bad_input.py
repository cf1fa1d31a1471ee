"""What cannot be opened is said where the user called, in one message, without the traceback of a worker."""

import traceback
from functools import partial

import intake
import pytest
import xarray as xr

from dask_pools.errors import EntryError, PoolUnavailableError, UnlocatedError
from intake_pools import load_from_catalog


def refusal(path, data_centre="ecmwf", driver=None, **arguments):
    """The error that opening raises; it has neither a cause nor frames of other libraries."""
    if driver:
        opened = getattr(intake, f"open_{driver}")(str(path), data_centre=data_centre, **arguments).to_dask
    else:
        opened = partial(load_from_catalog, str(path), data_centre=data_centre, **arguments)
    with pytest.raises(EntryError) as caught:
        opened()
    assert caught.value.__cause__ is None
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not any("xarray" in frame.filename or "distributed" in frame.filename for frame in frames)
    return str(caught.value)


@pytest.mark.parametrize("driver", [None, "pooled_netcdf", "pooled_zarr", "pooled_xarray"])
def test_a_missing_file_names_entry_pool_worker_and_directory(client, ecmwf, driver):
    message = refusal("none.nc", driver=driver)
    assert message.startswith("none.nc (none.nc) cannot be opened in pool 'ecmwf': there is no ")
    assert f"{ecmwf}/none.nc on worker tcp://127.0.0.1:" in message
    assert message.endswith(f"Its working directory is {ecmwf}.")


def test_an_absolute_path_has_no_need_of_a_directory(client, ecmwf):
    assert "working directory" not in refusal(ecmwf / "none.nc")


def test_a_pattern_that_nothing_matches(client, ecmwf):
    assert f"in pool 'ecmwf': nothing matches {ecmwf}/none-*.nc" in refusal("none-*.nc")


@pytest.mark.parametrize("driver", ["pooled_netcdf", "pooled_xarray"])
def test_a_file_that_is_not_netcdf(client, ecmwf, named, driver):
    (ecmwf / named).write_text("station,temperature\n")
    message = refusal(named, driver=driver)
    if driver == "pooled_netcdf":
        assert f"{named} is not NetCDF: it begins with b'station,'. Name the engine that reads it" in message
    else:
        assert "did not find a match in any of xarray's currently installed IO backends" in message


def test_an_empty_file(client, ecmwf, named):
    (ecmwf / named).write_bytes(b"")
    assert "is not NetCDF: it begins with b''" in refusal(named, driver="pooled_netcdf")


def test_a_netcdf_file_that_breaks_off(client, ecmwf, named, forecast, write):
    write(forecast, ecmwf / named)
    content = (ecmwf / named).read_bytes()
    (ecmwf / named).write_bytes(content[: len(content) // 2])
    message = refusal(named, driver="pooled_netcdf")
    assert "it is unreadable on worker tcp://" in message
    assert "NetCDF: HDF error" in message


def test_a_directory_is_no_netcdf_file(client, ecmwf, named):
    (ecmwf / named).mkdir()
    assert "is a directory, not a file; for zarr take the driver pooled_zarr" in refusal(
        named, driver="pooled_netcdf"
    )


@pytest.mark.parametrize("arguments", [{"driver": "pooled_zarr"}, {"xarray_kwargs": {"engine": "zarr"}}])
def test_a_file_that_is_no_zarr_store(client, ecmwf, named, forecast, write, arguments):
    write(forecast, ecmwf / named)
    assert f"{ecmwf}/{named} is a file, and no zip of a zarr store: it begins with b'\\x89HDF" in refusal(
        named, **arguments
    )


def test_a_directory_without_zarr(client, ecmwf, named):
    (ecmwf / named).mkdir()
    assert f"{ecmwf}/{named} has no zarr metadata (zarr.json, .zmetadata, .zgroup)" in refusal(
        named, driver="pooled_zarr"
    )


@pytest.mark.parametrize("kind", ["netcdf4", "zarr2", "zarr3"])
def test_a_missing_group_is_named_with_those_that_are_there(client, ecmwf, named, forecast, kind):
    if kind == "netcdf4":
        forecast.to_netcdf(ecmwf / named, group="winds/upper")
    else:
        forecast.to_zarr(ecmwf / named, group="winds/upper", zarr_format=int(kind[-1]), consolidated=False)
    message = refusal(named, xarray_kwargs={"group": "winds/lower"})
    assert "it has no group 'winds/lower'" in message
    assert "Groups there: winds, winds/upper" in message


def test_an_option_that_xarray_does_not_have(client, ecmwf, named, forecast, write):
    write(forecast, ecmwf / named)
    message = refusal(named, xarray_kwargs={"decode_tims": False})
    assert "xarray_kwargs has something that its engine does not take" in message
    assert "decode_tims" in message


def test_an_engine_that_is_not_installed(client, ecmwf, named, forecast, write):
    write(forecast, ecmwf / named)
    assert "unrecognized engine 'netcdf5'" in refusal(named, engine="netcdf5")


def test_chunks_of_a_dimension_that_it_does_not_have(client, ecmwf, named, forecast, write):
    write(forecast, ecmwf / named)
    assert "chunks names 'tiem', which is no dimension of it; its dimensions are: " in refusal(
        named, chunks={"tiem": 1}
    )


def test_files_that_cannot_be_combined(client, ecmwf, named):
    for number in range(2):
        xr.Dataset({"v": ("x", [1.0, 2.0])}).to_netcdf(ecmwf / f"{named}-{number}.nc")
    assert "its 2 files cannot be combined: Could not find any dimension coordinates" in refusal(
        f"{named}-*.nc"
    )
    assert "combine is 'sideways'; it should be" in refusal(
        f"{named}-*.nc", xarray_kwargs={"combine": "sideways"}
    )


def test_a_url_of_an_unknown_protocol(client):
    assert "Protocol not known: gopher" in refusal("gopher://host/a.nc", engine="h5netcdf")


def test_a_url_without_a_data_centre():
    with pytest.raises(UnlocatedError, match=r"No data centre hosts s3://b/a\.zarr\. Prefixes in .*: s3://c"):
        load_from_catalog("s3://b/a.zarr", data_centres={"data_centres": {"c": {"prefixes": ["s3://c"]}}})


def test_a_pool_that_nobody_can_start(client):
    with pytest.raises(
        PoolUnavailableError, match=r"Pool 'eumetsta' has no workers.*Did you mean 'eumetsat'\?"
    ):
        load_from_catalog("a.nc", data_centre="eumetsta")
