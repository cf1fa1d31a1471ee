"""load_from_catalog with a catalogue: the entry whose URL is, or contains, the path."""

import dask
import pytest
import xarray as xr

from dask_pools import get_pool, pins
from dask_pools.errors import EntryError, UnlocatedError
from intake_pools import load_from_catalog, open_catalog
from intake_pools.lookup import entry_with

CATALOGUE = """
sources:
  forecast:
    driver: netcdf
    args: {urlpath: /data/ecmwf/forecast.nc, chunks: {time: 3}}
  days:
    driver: pooled_netcdf
    args: {urlpath: "/data/ecmwf/days/*.nc", chunks: {time: 1}, concat_dim: time, combine: nested}
  listed:
    driver: pooled_netcdf
    args: {urlpath: [/data/ecmwf/a.nc, /data/eumetsat/c.nc], residency: stay}
  store:
    driver: zarr
    args: {urlpath: /data/eumetsat/store.zarr, consolidated: false}
  twice:
    driver: pooled_netcdf
    args: {urlpath: /data/ecmwf/days/special.nc}
  spanning:
    driver: pooled_netcdf
    args: {parts: [/data/ecmwf/forecast.nc, /data/eumetsat/b.nc], residency: stay, chunks: {time: 7}}
  first:
    driver: pooled_netcdf
    args: {urlpath: /data/ecmwf/same.nc, chunks: {x: 1}}
  second:
    driver: pooled_netcdf
    args: {urlpath: /data/ecmwf/same.nc, chunks: {x: 2}}
"""
RULES = {
    "data_centres": {"ecmwf": {"prefixes": ["/data/ecmwf/"]}, "eumetsat": {"prefixes": ["/data/eumetsat/"]}}
}


@pytest.fixture
def cat(tmp_path):
    (tmp_path / "cat.yaml").write_text(CATALOGUE)
    return open_catalog(tmp_path / "cat.yaml", data_centres=RULES)


def test_the_entry_whose_url_is_the_path_is_taken_as_it_is(cat):
    for path in (
        "/data/ecmwf/forecast.nc",
        "/data/ecmwf/../ecmwf//forecast.nc",
        "file:///data/ecmwf/forecast.nc",
    ):
        assert entry_with(path, cat) == cat.plain_entry("forecast")
    assert entry_with("/data/ecmwf/days/*.nc", cat) == cat.plain_entry("days")


def test_a_file_of_a_pattern_or_list_has_the_settings_of_its_entry_but_is_opened_alone(cat):
    entry = entry_with("/data/ecmwf/days/3.nc", cat)
    assert (entry.urls, entry.chunks, entry.combining) == (("/data/ecmwf/days/3.nc",), {"time": 1}, {})
    listed = entry_with("/data/eumetsat/c.nc", cat)
    assert (listed.urls, listed.location.data_centre) == (("/data/eumetsat/c.nc",), "eumetsat")
    assert listed.stays
    assert entry_with("/data/ecmwf/days/deeper/3.nc", cat) is None


def test_a_path_below_a_store_is_a_group_of_it(cat):
    entry = entry_with("/data/eumetsat/store.zarr/ocean/surface", cat)
    assert entry.urls == ("/data/eumetsat/store.zarr",)
    assert entry.xarray_kwargs == {"consolidated": False, "group": "ocean/surface"}


def test_the_closest_entry_wins_and_ties_that_differ_are_an_error(cat):
    assert entry_with("/data/ecmwf/days/special.nc", cat) == cat.plain_entry("twice")
    # One file of an entry in two data centres is no more than one of an entry in one.
    assert entry_with("/data/ecmwf/forecast.nc", cat) == cat.plain_entry("forecast")
    with pytest.raises(EntryError, match=r"is in first and in second of the catalogue.*cat\['first'\]"):
        entry_with("/data/ecmwf/same.nc", cat)


def test_what_no_entry_has_is_not_found(cat):
    assert entry_with("/data/ecmwf/other.nc", cat) is None
    assert entry_with("/data/ecmwf/forecast.nc2", cat) is None


def test_a_path_is_opened_as_its_entry_says_and_what_is_said_here_beats_it(
    client, write, ecmwf, forecast, named, tmp_path
):
    write(forecast, ecmwf / named)
    (tmp_path / "cat.yaml").write_text(
        f"sources: {{a: {{driver: netcdf, args: {{urlpath: {ecmwf / named}, chunks: {{time: 3}}}}}}}}"
    )
    rules = {"data_centres": {"ecmwf": {"prefixes": [f"{ecmwf}/"], "residency": "stay"}}}
    with dask.config.set({"pools.catalog": str(tmp_path / "cat.yaml"), "pools.eager-size": 0}):
        ds = load_from_catalog(ecmwf / named, data_centres=rules)
        assert ds["t"].chunks[0] == (3, 3)
        assert get_pool(ds) == "ecmwf"
        assert pins.stays(ds["t"].data.name)
        with dask.config.set({"pools.here": "ecmwf"}):
            xr.testing.assert_allclose(ds.compute(), forecast)
        other = load_from_catalog(ecmwf / named, data_centres=rules, chunks={"time": 2}, residency="free")
        assert other["t"].chunks[0] == (2, 2, 2)
        assert not pins.stays(other["t"].data.name)
        write(forecast, ecmwf / f"{named}-alone")
        alone = load_from_catalog(ecmwf / f"{named}-alone", data_centres=rules)
        assert get_pool(alone) == "ecmwf"


def test_what_no_entry_has_is_located_by_the_rules_of_the_catalogue(
    client, write, ecmwf, forecast, named, tmp_path
):
    write(forecast, ecmwf / named)
    (tmp_path / "rules.yaml").write_text(f"data_centres: {{ecmwf: {{prefixes: [{ecmwf}]}}}}")
    (tmp_path / "cat.yaml").write_text("metadata: {data_centres_file: rules.yaml}\nsources: {}")
    with dask.config.set({"pools.data-centres": {"data_centres": {"own": {"prefixes": ["/own/"]}}}}):
        assert get_pool(load_from_catalog(ecmwf / named, catalog=tmp_path / "cat.yaml")) == "ecmwf"
        with pytest.raises(
            UnlocatedError, match=r"in .*rules.yaml and the data centres given: [^:]*ecmwf"
        ) as said:
            load_from_catalog("/other/a.nc", catalog=tmp_path / "cat.yaml")
    assert str(said.value).count("the data centres given") == 1
