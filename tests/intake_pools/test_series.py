"""Files that are like the one before are not examined again, and come out as if they had been."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from dask_pools.errors import DataChangedError
from intake_pools import recipes, stores
from intake_pools.entries import entry_of
from intake_pools.mosaics import Mosaic
from intake_pools.netcdf_lock import LOCK
from intake_pools.series import Series
from intake_pools.stores import Source

LIMITS = recipes.Limits(eager=2000, chunk=2**27, annotations={}, index=math.inf)


def made(number: int, steps: int = 4) -> xr.Dataset:
    """Some days of a series, with bounds, a mask, a grid mapping, and coordinates of all kinds."""
    rng = np.random.default_rng(number)
    days = np.datetime64("2000-01-01", "ns") + np.arange(4 * number, 4 * number + steps) * np.timedelta64(
        1, "D"
    )
    shape = (steps, 20, 30)
    edges = np.stack([days, days + np.timedelta64(1, "D")], axis=1)
    return xr.Dataset(
        {
            "t": (("time", "y", "x"), rng.random(shape, dtype="f4"), {"units": "K", "valid": np.arange(3)}),
            "packed": (("time", "y", "x"), rng.integers(0, 100, shape) / 10),
            "time_bnds": (("time", "b"), edges),
            "crs": ((), 4326, {"grid_mapping_name": "latitude_longitude"}),
        },
        {
            "time": ("time", days, {"bounds": "time_bnds"}),
            "y": np.linspace(0, 19, 20),
            "x": np.linspace(0, 29, 30),
            "area": (("y",), rng.random(20) * 0 + 3),
            "lat": (("y", "x"), np.ones((20, 30))),
            "height": 2.0,
        },
        {"title": f"days {number}"},
    )


ENCODING = {
    "t": {"chunksizes": (2, 20, 30), "zlib": True},
    "packed": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1, "chunksizes": (2, 20, 30)},
    "time": {"units": "days since 2000-01-01", "chunksizes": (4,)},
    "time_bnds": {"units": "days since 2000-01-01", "chunksizes": (4, 2)},
}


def write(path: Path, dataset: xr.Dataset, **encoding: Any) -> Source:
    encoding = {name: how for name, how in {**ENCODING, **encoding}.items() if name in dataset.variables}
    with LOCK.own:  # beside the thread that closes idle files
        dataset.to_netcdf(path, engine="netcdf4", unlimited_dims=["time"], encoding=encoding)
    with LOCK, netCDF4.Dataset(path, "a") as file:
        # As the conventions have it: bounds say nothing of their units.
        for name in ("units", "calendar"):
            if "time_bnds" in file.variables and name in file["time_bnds"].ncattrs():
                file["time_bnds"].delncattr(name)
    return source(path)


def source(path: Path, **kwargs: Any) -> Source:
    return stores.source_of(str(path), None, kwargs, {})


@pytest.fixture(autouse=True)
def nothing_stays_open(tmp_path: Path) -> Iterator[None]:
    yield
    stores.forget(lambda url: url.startswith(str(tmp_path)))


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that xarray is asked to open."""
    names: list[str] = []
    stock = stores.reopened

    def noting(source: Source, *args: Any) -> Any:
        names.append(Path(source.url).name)
        return stock(source, *args)

    monkeypatch.setattr(stores, "reopened", noting)
    return names


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert found.attrs == expected.attrs
    assert found.encoding == expected.encoding
    assert list(found.variables) == list(expected.variables)
    assert set(found.coords) == set(expected.coords)
    assert set(found.xindexes) == set(expected.xindexes)
    for name, variable in expected.variables.items():
        one = found.variables[name]
        assert (type(one), one.dims, one.dtype, one.shape) == (
            type(variable), variable.dims, variable.dtype, variable.shape,
        ), name  # fmt: skip
        xr.testing.assert_identical(xr.Dataset(attrs=one.attrs), xr.Dataset(attrs=variable.attrs))
        # What several files have in common comes from the first of them.
        source = {} if isinstance(variable.data, Mosaic) else {"source": None}
        assert repr({**one.encoding, **source}) == repr({**variable.encoding, **source}), name
        if isinstance(variable.data, Mosaic):
            assert one.data.grid == variable.data.grid, name
            assert list(one.data.states.flat) == list(variable.data.states.flat)
        else:
            assert one.equals(variable), name


def change(name: str, dataset: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
    """A second file that is unlike the first in one thing."""
    encoding: dict[str, Any] = {}
    match name:
        case "an attribute":
            dataset["t"].attrs["units"] = "degC"
        case "an attribute that is an array":
            dataset["t"].attrs["valid"] = np.arange(3.0)
        case "its packing":
            encoding["packed"] = {"dtype": "i2", "scale_factor": 0.2, "_FillValue": -1}
        case "its mask":
            encoding["packed"] = {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -2}
        case "its type":
            dataset["t"] = dataset["t"].astype("f8")
        case "its chunks":
            encoding["t"] = {"chunksizes": (1, 20, 30), "zlib": True}
        case "another variable":
            dataset["more"] = dataset["t"] * 2
        case "a variable less":
            dataset = dataset.drop_vars("packed")
        case "what is a coordinate":
            dataset = dataset.reset_coords("area")
        case "another dimension":
            dataset = dataset.isel(y=slice(10))
            encoding["t"] = encoding["packed"] = {}
        case "the units of its bounds":
            encoding["time"] = encoding["time_bnds"] = {"units": "hours since 1999-01-01"}
        case "its calendar":
            encoding["time"] = {"units": "days since 2000-01-01", "calendar": "noleap"}
        case _:
            raise ValueError(name)
    return dataset, encoding


UNLIKE = [
    "an attribute", "an attribute that is an array", "its packing", "its mask", "its type", "its chunks",
    "another variable", "a variable less", "what is a coordinate", "another dimension",
    "the units of its bounds", "its calendar",
]  # fmt: skip


@pytest.fixture
def compare(tmp_path: Path, examined: list[str]) -> Callable[..., list[str]]:
    """Open files as a series; what comes must be as if each were opened alone; those that xarray examined."""

    def compare(*files: Source) -> list[str]:
        entry = entry_of(str(tmp_path / "*.nc"), data_centre="ecmwf")
        states, datasets = Series(entry, LIMITS).open(files, together=False)
        examined_ones = list(examined)
        for file, state, dataset in zip(files, states, datasets, strict=True):
            whole = stores.reopened(file)
            assert state == stores.State(file, whole.version)
            assert_same(dataset, recipes.dataset_of(whole, entry, LIMITS))
        return examined_ones

    return compare


def test_files_that_differ_in_values_only_are_examined_once(tmp_path, compare):
    first, second, third = (made(number) for number in range(3))
    second["area"], third["height"] = second["area"] + 1, 10.0
    files = [write(tmp_path / f"{n}.nc", one) for n, one in enumerate([first, second, third])]
    files.append(write(tmp_path / "3.nc", made(3, steps=7)))
    assert compare(*files) == ["0.nc"]


def test_each_file_may_count_time_from_a_date_of_its_own(tmp_path, compare):
    files = []
    for number in range(3):
        one = made(number).drop_vars("time_bnds")
        del one["time"].attrs["bounds"]
        path = tmp_path / f"{number}.nc"
        one.to_netcdf(
            path, encoding={"time": {"units": f"hours since 2000-01-0{number + 1}"}}, engine="netcdf4"
        )
        files.append(source(path))
    assert compare(*files) == ["0.nc"]


@pytest.mark.parametrize("what", UNLIKE)
def test_a_file_that_is_unlike_the_first_is_examined(tmp_path, compare, what):
    second, encoding = change(what, made(1))
    files = [write(tmp_path / "0.nc", made(0)), write(tmp_path / "1.nc", second, **encoding)]
    third, encoding = change(what, made(2))
    files.append(write(tmp_path / "2.nc", third, **encoding))
    # The third is like the second.
    assert compare(*files) == ["0.nc", "1.nc"]


COMBINING: list[dict[str, Any]] = [
    {}, {"combine": "nested", "concat_dim": "time"}, {"concat_dim": "time", "data_vars": "minimal"},
    {"data_vars": "all", "join": "exact"},
]  # fmt: skip


@pytest.mark.parametrize("combining", COMBINING)
def test_files_that_follow_one_another_are_what_xarray_combines(tmp_path, combining):
    files = []
    for number, steps in enumerate([4, 4, 7, 5]):
        one = made(2 * number, steps).drop_vars(["crs", "lat"])
        files.append(write(tmp_path / f"{number}.nc", one))
    entry = entry_of(str(tmp_path / "*.nc"), data_centre="ecmwf", xarray_kwargs=combining)
    states, (together,) = Series(entry, LIMITS).open(files)
    again, apart = Series(entry, LIMITS).open(files, together=False)
    assert states == again
    assert len(apart) == 4
    assert_same(together, recipes.combined(apart, entry))


def change_order(name: str, parts: list[xr.Dataset]) -> tuple[list[xr.Dataset], dict[str, Any]]:
    """Three parts that do not just follow one another."""
    match name:
        case "not in their order":
            return parts[::-1], {}
        case "at the same times":
            return [parts[0], parts[0], parts[1]], {}
        case "times of one backwards":
            return [parts[0].isel(time=slice(None, None, -1)), *parts[1:]], {}
        case "another coordinate differs":
            return [parts[0], parts[1].assign_coords(height=3.0), parts[2]], {}
        case "a new dimension":
            return parts, {"concat_dim": "run"}
        case "all coordinates":
            return parts, {"coords": "all"}
        case "attributes":
            return parts, {"combine_attrs": "drop"}
        case "no comparison":
            return parts, {"compat": "override", "coords": "minimal"}
        case _:
            return [one.assign(crs=5) for one in parts], {}


@pytest.mark.parametrize(
    "name",
    [
        "not in their order", "at the same times", "times of one backwards", "another coordinate differs",
        "a new dimension", "all coordinates", "attributes", "no comparison",
        "a variable without time",
    ],
)  # fmt: skip
def test_whatever_takes_one_of_its_rules_is_left_to_xarray(tmp_path, name):
    parts, combining = change_order(name, [made(number).drop_vars(["crs", "lat"]) for number in range(3)])
    files = [write(tmp_path / f"{number}.nc", one) for number, one in enumerate(parts)]
    entry = entry_of(str(tmp_path / "*.nc"), data_centre="ecmwf", xarray_kwargs=combining)
    _, datasets = Series(entry, LIMITS).open(files)
    assert len(datasets) == 3


def test_texts_are_left_to_xarray(tmp_path, compare):
    files = []
    for number in range(2):
        one = made(number).assign_coords(station=("y", np.array([f"s{n}" for n in range(20)])))
        files.append(write(tmp_path / f"{number}.nc", one))
    assert compare(*files) == ["0.nc", "1.nc"]


def test_a_file_that_is_gone_or_broken_is_said_as_before(tmp_path):
    series = Series(entry_of(str(tmp_path / "*.nc"), data_centre="ecmwf"), LIMITS)
    first = write(tmp_path / "0.nc", made(0))
    (tmp_path / "1.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(OSError, match=r"HDF|NetCDF"):
        series.open([first, source(tmp_path / "1.nc")])
    with pytest.raises(FileNotFoundError):
        series.open([first, Source(str(tmp_path / "2.nc"), "netcdf4", {}, {}, "token")])


def never(found: str) -> Exception:
    return AssertionError(found)


def read(file: Source, name: str) -> xr.Variable:
    return stores.opened(file, stores.version_of(file), never, name).variables[name].load()


@pytest.mark.parametrize("name", ["t", "packed", "time", "time_bnds", "lat", "height", "crs"])
@pytest.mark.parametrize("kwargs", [{}, {"mask_and_scale": False}, {"decode_times": False}])
def test_who_reads_one_variable_gets_what_xarray_makes_of_it(tmp_path, name, kwargs):
    write(tmp_path / "0.nc", made(0))
    expected = xr.open_dataset(tmp_path / "0.nc", engine="netcdf4", **kwargs).variables[name].load()
    found = read(source(tmp_path / "0.nc", **kwargs), name)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.dtype == expected.dtype


def test_one_variable_of_a_group_and_one_of_characters(tmp_path):
    path = tmp_path / "0.nc"
    made(0).to_netcdf(path, group="a/b", engine="netcdf4")
    assert read(source(path, group="a/b"), "t").equals(made(0)["t"].variable)
    xr.Dataset({"s": ("x", np.array([b"ab", b"cd"]))}).to_netcdf(tmp_path / "1.nc", engine="netcdf4")
    assert read(source(tmp_path / "1.nc"), "s").values.tolist() == [b"ab", b"cd"]


def test_the_other_variables_are_not_looked_at_until_several_are_wanted(tmp_path):
    file = write(tmp_path / "0.nc", made(0))
    version = stores.version_of(file)
    names = ["t", "packed", "lat", "height", "crs"]
    found = [set(stores.opened(file, version, never, name).variables) for name in names]
    assert found[:4] == [{name} for name in names[:4]]
    assert set(names) < found[4]
    # From now on that one serves everybody.
    assert set(stores.opened(file, version, never, "t").variables) == found[4]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_part_of_a_file_that_was_written_anew_is_not_read_as_it_was(tmp_path, in_place):
    file = write(tmp_path / "0.nc", made(0))
    version = stores.version_of(file)
    assert read(file, "t").equals(made(0)["t"].variable)
    write(tmp_path / "1.nc", made(1))
    if in_place:
        (tmp_path / "0.nc").write_bytes((tmp_path / "1.nc").read_bytes())
    else:
        (tmp_path / "1.nc").replace(tmp_path / "0.nc")

    def changed(found: str) -> Exception:
        return DataChangedError("entry", "t[0]", version.text, found)

    with pytest.raises(DataChangedError):
        stores.opened(file, version, changed, "t")
    assert read(file, "t").equals(made(1)["t"].variable)
    # And a series, whatever this process has open of the old one.
    files = [write(tmp_path / "0_.nc", made(0)), file]
    _, (*_, dataset) = Series(entry_of("*", data_centre="ecmwf"), LIMITS).open(files, together=False)
    assert dataset["time"].equals(made(1)["time"])
