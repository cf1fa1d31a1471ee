"""Names of files with fields, whose values become coordinates."""

import dask
import numpy as np
import pytest
import xarray as xr

from dask_pools import get_pool
from dask_pools.errors import EntryError
from intake_pools import open_catalog
from intake_pools.entries import entry_of
from intake_pools.opening import open_entry

pytestmark = pytest.mark.usefixtures("lazily")


def month(model, year, first=None):
    """Three values of a model in a year."""
    first = year if first is None else first
    times = np.array([f"{first}-01-0{day}" for day in (1, 2, 3)], dtype="datetime64[ns]")
    number = year * 10 + {"a": 1, "b": 2}[model]
    return xr.Dataset(
        {"v": (("time", "x"), np.full((3, 4), float(number)))}, {"time": times, "x": np.arange(4)}
    )


@pytest.fixture
def opened(client, ecmwf, named, tmp_path):
    """Write files of models and years, and open them by a pattern in a catalogue."""

    def opened(files, pattern, args=""):
        (ecmwf / named).mkdir()
        for name, dataset in files.items():
            dataset.to_netcdf(ecmwf / named / name, engine="scipy")
        (tmp_path / "cat.yaml").write_text(
            f"sources: {{a: {{driver: netcdf, args: {{urlpath: '{ecmwf}/{named}/{pattern}' {args}}}}}}}"
        )
        known = {"data_centres": {"ecmwf": {"prefixes": [str(ecmwf)]}}}
        ds = open_catalog(tmp_path / "cat.yaml", data_centres=known)["a"].to_dask()
        assert get_pool(ds) == "ecmwf"
        return ds

    return opened


def test_a_field_that_goes_with_another_coordinate_is_a_coordinate_along_it(opened):
    files = {f"v_{year}.nc": month("a", year) for year in (2001, 2002)}
    ds = opened(files, "v_{year:d}.nc")
    assert ds.sizes == {"time": 6, "x": 4}
    assert ds["year"].dims == ("time",)
    assert list(ds["year"].values) == [2001] * 3 + [2002] * 3
    assert ds["v"].sel(time="2002-01-02", x=1).compute() == 20021


def test_a_field_that_alone_tells_files_apart_is_a_dimension(opened):
    ds = opened({f"v_{model}.nc": month(model, 2001) for model in "ab"}, "v_{model}.nc")
    assert dict(ds.sizes) == {"model": 2, "time": 3, "x": 4}
    assert float(ds["v"].sel(model="b").mean()) == 20012
    assert list(ds["model"].values) == ["a", "b"]


def test_both_at_once(opened):
    files = {f"{model}/v_{year}.nc": month(model, year) for model in "ab" for year in (2001, 2002)}
    flat = {name.replace("/", "-"): one for name, one in files.items()}
    ds = opened(flat, "{model}-v_{year:d}.nc")
    assert dict(ds.sizes) == {"model": 2, "time": 6, "x": 4}
    assert float(ds["v"].sel(model="b", time="2002-01-01").mean()) == 20022


def test_how_they_are_combined_can_be_said(opened):
    files = {f"v_{model}.nc": month(model, 2001).drop_vars("time") for model in "ab"}
    ds = opened(files, "v_{model}.nc", ", combine: nested, concat_dim: model")
    assert list(ds["model"].values) == ["a", "b"]
    assert float(ds["v"].sel(model="b").mean()) == 20012


def test_times_in_names_and_one_file_alone(opened):
    ds = opened({"v_20010203.nc": month("a", 2001)}, "v_{day:%Y%m%d}.nc")
    assert ds["day"].values == np.datetime64("2001-02-03")
    assert ds["v"].dims == ("time", "x")


def test_a_new_file_of_the_pattern_is_noticed(opened, ecmwf, named, tmp_path):
    opened({f"v_{year}.nc": month("a", year) for year in (2001, 2002)}, "v_{year:d}.nc")
    month("a", 2003).to_netcdf(ecmwf / named / "v_2003.nc", engine="scipy")
    known = {"data_centres": {"ecmwf": {"prefixes": [str(ecmwf)]}}}
    ds = open_catalog(tmp_path / "cat.yaml", data_centres=known)["a"].to_dask()
    assert ds.sizes["time"] == 9


def test_a_pattern_for_files_that_are_listed_and_braces_that_are_braces(client, ecmwf, named):
    (ecmwf / named).mkdir()
    for model in "ab":
        month(model, 2001).to_netcdf(ecmwf / named / f"v_{model}.nc", engine="scipy")
    listed = [f"{ecmwf}/{named}/v_{model}.nc" for model in "ba"]
    entry = entry_of(listed, data_centre="ecmwf", path_as_pattern=f"{ecmwf}/{named}/v_{{model}}.nc")
    with dask.config.set({"pools.eager-size": 0}):
        assert list(open_entry(entry)["model"].values) == ["a", "b"]
    with pytest.raises(EntryError, match="does not match the pattern"):
        open_entry(entry_of(listed, data_centre="ecmwf", path_as_pattern="/elsewhere/{model}.nc"))
    odd = f"{ecmwf}/{named}/{{model}}.nc"
    month("a", 2001).to_netcdf(odd, engine="scipy")
    assert open_entry(entry_of(odd, data_centre="ecmwf", path_as_pattern=False)).sizes["time"] == 3


@pytest.mark.parametrize(
    ("url", "asked", "message"),
    [
        ("/d/*_{year}.nc", True, "has fields beside"),
        ("simplecache::s3://b/{year}.nc", True, "has fields beside"),
        ("/d/a.nc", "/d/a.nc", "has no field"),
        ("/d/a.nc", 3, "should be true, false or a pattern"),
    ],
)
def test_a_pattern_that_says_nothing_is_an_error(url, asked, message):
    with pytest.raises(EntryError, match=message):
        entry_of(url, data_centre="ecmwf", path_as_pattern=asked)


def test_both_generations_see_the_same(client, ecmwf, named, tmp_path):
    (ecmwf / named).mkdir()
    for model in "ab":
        month(model, 2001).to_netcdf(ecmwf / named / f"v_{model}.nc", engine="scipy")
    url = f"{ecmwf}/{named}/v_{{model}}.nc"
    (tmp_path / "one.yaml").write_text(f"sources: {{a: {{driver: netcdf, args: {{urlpath: '{url}'}}}}}}")
    (tmp_path / "two.yaml").write_text(
        f"version: 2\naliases: {{a: r}}\ndata: {{d: {{datatype: 'intake.readers.datatypes:NetCDF3', "
        f"kwargs: {{url: '{url}'}}}}}}\nentries: {{r: {{reader: "
        "'intake.readers.readers:XArrayPatternReader', "
        "kwargs: {args: ['{data(d)}']}}}\n"
    )
    known = {"data_centres": {"ecmwf": {"prefixes": [str(ecmwf)]}}}
    one, two = (open_catalog(tmp_path / name, data_centres=known)["a"] for name in ("one.yaml", "two.yaml"))
    xr.testing.assert_identical(one.to_dask().compute(), two.read().compute())
    assert one.to_dask()["v"].data.name == two.to_dask()["v"].data.name
