"""Opening and reading in this process, where no Dask client is connected."""

import dask
import pytest
import xarray as xr

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError
from intake_pools import load_from_catalog

pytestmark = pytest.mark.usefixtures("lazily", "alone")


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4", "zarr2", "zarr3"])
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_what_can_be_seen_here_is_opened_here_still_named_and_pinned(
    tmp_path, forecast, write, kind, scheduler
):
    write(forecast, tmp_path / "a", kind)
    ds = load_from_catalog(tmp_path / "a", data_centre="ecmwf")
    assert get_pool(ds) == "ecmwf"
    assert ds["t"].data.name.startswith("read-t@ecmwf-")
    with dask.config.set(scheduler=scheduler):
        xr.testing.assert_allclose(ds.compute(), forecast)


def test_what_cannot_be_seen_here_is_an_error_that_says_how_to_connect(tmp_path):
    with pytest.raises(EntryError) as caught:
        load_from_catalog(tmp_path / "a.nc", data_centre="ecmwf")
    message = str(caught.value)
    assert message.startswith(
        "a.nc lives in data centre 'ecmwf', and no Dask client is connected to reach it"
    )
    assert "`client = distributed.Client(ADDRESS)`" in message
    assert "--resources pool-ecmwf=1" in message
    assert "LocalPools({'ecmwf': 1}).get_client()" in message


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4", "zarr2", "zarr3"])
def test_a_file_that_is_another_than_was_opened_is_refused(tmp_path, forecast, write, kind):
    write(forecast, tmp_path / "a", kind)
    ds = load_from_catalog(tmp_path / "a", data_centre="ecmwf")
    assert ds["t"].sum().compute()
    write(forecast.assign(t=forecast["t"] * 0), tmp_path / "b", kind)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(DataChangedError, match=r"t\[.* of a cannot be read: version .* was opened, version"):
        ds["t"].sum().compute()
    assert load_from_catalog(tmp_path / "a", data_centre="ecmwf")["t"].sum().compute() == 0


def test_changing_what_was_opened_does_not_change_what_is_opened_next(tmp_path, forecast, write):
    write(forecast, tmp_path / "a")
    first = load_from_catalog(tmp_path / "a", data_centre="ecmwf")
    first.attrs["title"] = first["t"].attrs["units"] = "changed"
    first["lat"].attrs["units"] = "changed"
    again = load_from_catalog(tmp_path / "a", data_centre="ecmwf")
    assert again.attrs["title"] == "a forecast"
    assert again["t"].attrs["units"] == "K"
    assert "units" not in again["lat"].attrs
