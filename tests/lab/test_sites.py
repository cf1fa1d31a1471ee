"""Data that only its own site's workers can see: the main job on it, from a client that can see none."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import dask
import intake
import numpy as np
import pytest
import xarray as xr
from layout import observations, opened, predictions, shared
from namespaces import ROOT, mounted

from dask_pools import MisplacedTaskError, get_pool
from dask_pools.pins import resource
from intake_pools.shipped import shipped
from ways import values

pytestmark = pytest.mark.lab

DATA = {
    "ecmwf": ROOT / "ecmwf" / "predictions.nc",
    "eumetsat": ROOT / "eumetsat" / "observations.nc",
}


def read(path: Path | str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def contents(paths: list[str]) -> dict[str, int]:
    """Tell those of the files that are there, and what is in them from something else."""
    there = {}
    for path in paths:
        with suppress(FileNotFoundError):
            there[path] = crc32(read(path))
    return there


@pytest.fixture
def catalogue(tmp_path):
    """The catalogue of the README, which is shipped, at the paths of these sites."""
    for name in ("weather.yaml", "weather-data-centres.yaml"):
        (tmp_path / name).write_text(shipped(name).read_text().replace("/srv/data/", f"{ROOT}/"))
    return intake.open_catalog(str(tmp_path / "weather.yaml"))


@pytest.mark.parametrize("path", [*DATA.values(), shared("nc"), shared("zarr") / "zarr.json"], ids=str)
def test_neither_client_nor_scheduler_can_see_the_data(client, path):
    with pytest.raises(FileNotFoundError):
        read(path)
    with pytest.raises(FileNotFoundError):
        client.run_on_scheduler(read, str(path))
    assert client.run_on_scheduler(os.getpid) != os.getpid()


def test_each_site_sees_its_own_data_and_not_the_others(client):
    paths = [*map(str, DATA.values()), str(shared("nc"))]
    ecmwf, eumetsat = (
        client.submit(contents, paths, resources={resource(pool): 0}, pure=False).result() for pool in DATA
    )
    assert set(ecmwf) == {str(DATA["ecmwf"]), str(shared("nc"))}
    assert set(eumetsat) == {str(DATA["eumetsat"]), str(shared("nc"))}
    assert ecmwf[str(shared("nc"))] != eumetsat[str(shared("nc"))]


def test_the_calculation_of_the_readme_equals_numpys(catalogue, client, whereabouts):
    assert (catalogue.predictions.data_centre, catalogue.observations.data_centre) == ("ecmwf", "eumetsat")
    difference = (
        catalogue.predictions.to_dask().mean("realization").isel(height=10) - catalogue.observations.to_dask()
    )
    result = difference.compute()
    forecast, observed = (one.air_temperature.values.astype("f8") for one in (predictions(), observations()))
    np.testing.assert_allclose(result.air_temperature, forecast.mean(0)[10] - observed, atol=1e-3)
    seen = whereabouts.seen
    assert {"ecmwf", "eumetsat"} == set().union(*(reads for reads, _ in seen))
    assert all(reads == set(ran) for reads, ran in seen)


@pytest.mark.usefixtures("client", "lazily")
@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_one_path_in_two_data_centres_is_two_datasets(kind):
    x, y = opened("ecmwf", kind), opened("eumetsat", kind)
    assert (get_pool(x), get_pool(y)) == ("ecmwf", "eumetsat")
    assert x.t.data.name != y.t.data.name
    difference, a, b = dask.compute((x - y).t.sum(), x.t, y.t)
    np.testing.assert_array_equal(a, values("ecmwf"))
    np.testing.assert_array_equal(b, values("eumetsat"))
    np.testing.assert_allclose(difference, (values("ecmwf") - values("eumetsat")).sum())


@pytest.mark.usefixtures("client")
def test_looking_at_a_dataset_needs_no_data_at_the_client(catalogue):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ds = catalogue.predictions.to_dask()
    assert ds.air_temperature.chunks
    assert "forecast_reference_time" in repr(ds)
    assert "air_temperature" in ds._repr_html_()
    assert ds.latitude_longitude.load().item() == 0
    assert ds.forecast_reference_time.values == np.datetime64("2020-01-01T06")
    (line,) = ds.latitude.plot()
    np.testing.assert_array_equal(line.get_ydata(), predictions().latitude)
    mesh = ds.land.plot()
    np.testing.assert_array_equal(np.ravel(mesh.get_array()), predictions().land.values.ravel())
    matplotlib.pyplot.close("all")
    ds.close()
    assert ds.air_temperature.isel(realization=0).shape == (12, 160, 200)


@pytest.mark.usefixtures("client", "lazily")
@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_with_pins_off_the_guard_raises(kind):
    x = opened("ecmwf", kind)
    with dask.config.set({"pools.propagate": False}), pytest.raises(MisplacedTaskError, match="'ecmwf'"):
        x.t.sum().compute()
    np.testing.assert_allclose((x.t + 1).sum().compute(), (values("ecmwf") + 1).sum())


def test_the_name_spaces_keep_their_mounts_to_themselves(sites, client):
    own = Path("/proc/self/mountinfo").read_text()
    names = {site.mount for site in sites.values()}
    assert not any(name in own for name in names)
    assert mounted(names) == names
    assert not any(ROOT.iterdir())


@pytest.mark.usefixtures("client")
def test_stock_xarray_cannot_do_it():
    with pytest.raises(FileNotFoundError):
        xr.open_dataset(DATA["ecmwf"], chunks={})
