"""Stock Intake and a catalogue; nothing of this project is imported to open it."""

import pickle
import subprocess
import sys

import dask
import intake
import numpy as np
import pytest
import xarray as xr
import yaml

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError

CATALOGUE = """
metadata:
  data_centres_file: data-centres.yaml
sources:
  predictions:
    description: a forecast
    driver: pooled_netcdf
    args:
      urlpath: {netcdf}
      data_centre: ecmwf
      chunks: {{time: 4}}
  by_metadata:
    driver: pooled_zarr
    args: {{urlpath: "{zarr}", consolidated: false}}
    metadata: {{data_centre: ecmwf}}
  by_rule:
    driver: pooled_xarray
    args:
      urlpath: "{absolute}"
      engine: h5netcdf
      xarray_kwargs: {{decode_times: false}}
  beside:
    driver: pooled_netcdf
    args: {{urlpath: "{{{{ CATALOG_DIR }}}}/a.nc"}}
  by_parameter:
    driver: pooled_netcdf
    args: {{urlpath: "{{{{ name }}}}", data_centre: "{{{{ where }}}}"}}
    parameters:
      name: {{description: of the file, type: str, default: {netcdf}}}
      where: {{description: data centre, type: str, default: ecmwf}}
"""


@pytest.fixture
def catalogue(tmp_path, named, ecmwf, forecast, write):
    write(forecast, ecmwf / f"{named}.nc")
    write(forecast, ecmwf / f"{named}.zarr", "zarr3")
    path = tmp_path / "catalogue.yaml"
    path.write_text(
        CATALOGUE.format(netcdf=f"{named}.nc", zarr=f"{named}.zarr", absolute=ecmwf / f"{named}.nc")
    )
    (tmp_path / "data-centres.yaml").write_text(
        yaml.dump(
            {
                "data_centres": {
                    "ecmwf": {"prefixes": [str(ecmwf)]},
                    "eumetsat": {"prefixes": [str(tmp_path)]},
                }
            }
        )
    )
    return intake.open_catalog(str(path))


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("name", ["predictions", "by_metadata", "by_rule", "by_parameter"])
def test_stock_intake_opens_an_entry_in_its_pool(client, catalogue, forecast, name):
    ds = catalogue[name].to_dask()
    assert get_pool(ds) == "ecmwf"
    np.testing.assert_allclose(ds["t"].values, forecast["t"])


@pytest.mark.parametrize(
    ("name", "where", "why"),
    [
        ("predictions", "ecmwf", "stated by data_centre of the entry"),
        ("by_metadata", "ecmwf", "stated by data_centre in the entry's metadata"),
        ("by_rule", "ecmwf", "data-centres.yaml, line 4"),
        ("beside", "eumetsat", "data-centres.yaml, line 7"),
        ("by_parameter", "ecmwf", "stated by data_centre of the entry"),
    ],
)
def test_an_entry_says_where_it_lives_and_why_before_it_is_opened(catalogue, name, where, why):
    source = catalogue[name]
    assert source.data_centre == where
    assert why in source.location.evidence


def test_an_entry_without_a_word_or_rule_falls_back_to_the_default_file(tmp_path):
    (tmp_path / "rules.yaml").write_text("data_centres: {here: {prefixes: [/data]}}")
    (tmp_path / "cat.yaml").write_text("sources: {a: {driver: pooled_netcdf, args: {urlpath: /data/a.nc}}}")
    with dask.config.set({"pools.data-centres": str(tmp_path / "rules.yaml")}):
        assert intake.open_catalog(str(tmp_path / "cat.yaml")).a.data_centre == "here"


def test_a_nested_catalogue_takes_the_rules_of_the_one_around_it(tmp_path):
    (tmp_path / "rules.yaml").write_text("data_centres: {here: {prefixes: [/data]}}")
    (tmp_path / "inner.yaml").write_text("sources: {a: {driver: pooled_netcdf, args: {urlpath: /data/a.nc}}}")
    (tmp_path / "outer.yaml").write_text(
        "metadata: {data_centres_file: rules.yaml}\n"
        "sources: {inner: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/inner.yaml'}}}"
    )
    assert intake.open_catalog(str(tmp_path / "outer.yaml")).inner.a.data_centre == "here"


@pytest.mark.usefixtures("lazily")
def test_reconfiguring_an_entry_changes_it(client, catalogue):
    assert catalogue.predictions.to_dask()["t"].chunks[0] == (4, 2)
    assert catalogue.predictions(chunks={"time": 3}).to_dask()["t"].chunks[0] == (3, 3)
    assert catalogue.by_parameter(where="eumetsat").data_centre == "eumetsat"
    assert catalogue.predictions(data_centre="eumetsat").data_centre == "eumetsat"


def test_reconfiguring_with_what_the_driver_does_not_have_is_an_error(catalogue):
    with pytest.raises(EntryError, match=r"pooled_netcdf has no argument 'chunk' .*Did you mean 'chunks'\?"):
        catalogue.predictions(chunk={"time": 3})


@pytest.mark.parametrize("driver", ["pooled_netcdf", "pooled_zarr", "pooled_xarray"])
def test_an_unknown_argument_is_an_error_that_names_the_nearest_and_all(tmp_path, driver):
    (tmp_path / "cat.yaml").write_text(
        f"sources: {{a: {{driver: {driver}, args: {{urlpath: a.nc, data_center: ecmwf}}}}}}"
    )
    catalogue = intake.open_catalog(str(tmp_path / "cat.yaml"))
    with pytest.raises(EntryError) as caught:
        catalogue["a"]
    assert str(caught.value).startswith(
        f"{driver} has no argument 'data_center' (of a.nc). Did you mean 'data_centre'? It has: "
    )
    for known in ("chunks", "data_centre", "storage_options", "urlpath", "version", "xarray_kwargs"):
        assert known in str(caught.value)


def test_an_entry_without_urlpath_is_an_error(tmp_path):
    (tmp_path / "cat.yaml").write_text("sources: {a: {driver: pooled_netcdf}}")
    with pytest.raises(EntryError, match="pooled_netcdf needs urlpath"):
        intake.open_catalog(str(tmp_path / "cat.yaml"))["a"]


def test_discover_says_what_is_in_it(client, catalogue):
    found = catalogue.predictions.discover()
    assert found["dtype"]["t"] == "float32"
    assert found["shape"] == {"time": 6, "lat": 4, "lon": 5}
    assert found["metadata"]["data_centre"] == "ecmwf"
    assert found["metadata"]["title"] == "a forecast"
    with catalogue.predictions as source:
        assert source.shape["time"] == 6


def test_read_loads_everything(client, catalogue, forecast):
    ds = catalogue.predictions.read()
    assert all(array.chunks is None for array in ds.values())
    xr.testing.assert_allclose(ds, forecast)
    assert catalogue.predictions.read_chunked().equals(ds)


def test_a_source_describes_itself_survives_pickling_and_its_own_yaml(client, catalogue, tmp_path, forecast):
    source = catalogue.predictions
    description = source.describe()
    assert description["name"] == "predictions"
    assert description["args"]["chunks"] == {"time": 4}
    assert pickle.loads(pickle.dumps(source)).data_centre == "ecmwf"
    (tmp_path / "again.yaml").write_text(source.yaml())
    again = intake.open_catalog(str(tmp_path / "again.yaml")).predictions
    xr.testing.assert_allclose(again.read(), forecast)
    assert "pooled_netcdf" in repr(source)


def test_drivers_work_without_a_catalogue(client, ecmwf, forecast, named, write):
    write(forecast, ecmwf / named)
    source = intake.open_pooled_netcdf(named, data_centre="ecmwf")
    xr.testing.assert_allclose(source.read(), forecast)
    assert source.describe()["args"] == {"urlpath": named, "data_centre": "ecmwf"}


def test_opening_an_entry_again_sees_what_has_changed(client, catalogue, ecmwf, named, forecast, write):
    before = catalogue.predictions.to_dask()
    write(forecast.assign(t=forecast["t"] * 0), ecmwf / "new.nc")
    (ecmwf / "new.nc").replace(ecmwf / f"{named}.nc")
    assert catalogue.predictions.to_dask()["t"].sum().compute() == 0
    with pytest.raises(DataChangedError):
        before["t"].sum().compute()


STOCK = """
import sys, intake
assert not {{"intake_pools", "dask_pools"}} & set(sys.modules)
catalogue = intake.open_catalog({path!r})
assert catalogue.a.data_centre == "here"
ds = catalogue.a.to_dask()
print(float(ds["t"].sum()))
"""


def test_a_catalogue_needs_no_import_of_this_project(tmp_path, forecast, write):
    write(forecast, tmp_path / "a.nc")
    path = tmp_path / "cat.yaml"
    path.write_text(
        "sources: {a: {driver: pooled_netcdf, args: {urlpath: '{{ CATALOG_DIR }}/a.nc', data_centre: here}}}"
    )
    done = subprocess.run(
        [sys.executable, "-c", STOCK.format(path=str(path))], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(forecast["t"].sum().item(), rel=1e-5)


@pytest.mark.usefixtures("lazily")
def test_grib_is_read_through_its_own_engine(client, ecmwf, named):
    pytest.importorskip("cfgrib")
    import eccodes

    message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    eccodes.codes_set(message, "shortName", "2t")
    values = np.full(eccodes.codes_get_size(message, "values"), 280.0)
    eccodes.codes_set_values(message, values)
    with (ecmwf / f"{named}.grib").open("wb") as file:
        eccodes.codes_write(message, file)
    eccodes.codes_release(message)
    source = intake.open_pooled_xarray(
        f"{named}.grib", engine="cfgrib", data_centre="ecmwf", xarray_kwargs={"indexpath": ""}
    )
    ds = source.to_dask()
    assert ds["t2m"].chunks
    np.testing.assert_allclose(ds["t2m"].values, 280.0, rtol=1e-4)
