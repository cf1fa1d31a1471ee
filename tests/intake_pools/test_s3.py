"""An object store, over HTTP: moto's server on this machine."""

import pickle
import uuid

import dask
import fsspec
import pytest
import xarray as xr

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError
from intake_pools import load_from_catalog

pytestmark = pytest.mark.usefixtures("lazily")

SECRET = "hush-hush-hush"


@pytest.fixture
def options(endpoint):
    return {"key": "testing-key", "secret": SECRET, "client_kwargs": {"endpoint_url": endpoint}}


@pytest.fixture
def bucket(options):
    fs = fsspec.filesystem("s3", **options)
    name = f"ecmwf-{uuid.uuid4().hex}"
    fs.mkdir(name)
    return name


RULES = {"data_centres": {"ecmwf": {"prefixes": ["s3://ecmwf-"]}}}


def load(url, options, **kwargs):
    return load_from_catalog(url, data_centres=RULES, storage_options=options, **kwargs)


@pytest.fixture
def put(tmp_path, bucket, options, write):
    def put(dataset, kind):
        suffix = ".zarr" if kind.startswith("zarr") else ".nc"
        path = tmp_path / f"{uuid.uuid4().hex}{suffix}"
        write(dataset, path, kind)
        fs = fsspec.filesystem("s3", **options)
        target = f"{bucket}/a{suffix}"
        if fs.exists(target):
            fs.rm(target, recursive=True)
        fs.put(str(path), target, recursive=suffix == ".zarr")
        return f"s3://{target}"

    return put


KINDS = ["netcdf3", "netcdf4", "zarr2", "zarr3"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_opened_and_read_in_its_pool(client, put, options, forecast, kind):
    url = put(forecast, kind)
    ds = load(url, options)
    assert get_pool(ds) == "ecmwf"
    assert ds.encoding["source"] == url
    assert ds["t"].chunks
    xr.testing.assert_allclose(ds.compute(), forecast)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rewritten_object_has_new_names_and_the_old_ones_are_refused(client, put, options, forecast, kind):
    url = put(forecast, kind)
    first = load(url, options)["t"]
    assert load(url, options)["t"].data.name == first.data.name
    # A change of the attributes too, since rewritten chunks of a zarr alone leave no mark but the time.
    put(forecast.assign(t=forecast["t"] * 0).assign_attrs(title="later"), kind)
    second = load(url, options)["t"]
    assert second.data.name != first.data.name
    assert second.sum().compute() == 0
    with pytest.raises(DataChangedError, match="cannot be read: version"):
        first.sum().compute()


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_a_zarr_that_was_deleted_is_an_error_and_never_fill_values(client, put, options, forecast, kind):
    url = put(forecast, kind)
    ds = load(url, options)
    fsspec.filesystem("s3", **options).rm(url, recursive=True)
    with pytest.raises(DataChangedError, match="version none"):
        ds["t"].sum().compute()


def test_a_pattern_of_objects(client, put, options, forecast):
    url = put(forecast, "netcdf4")
    ds = load(url.replace("a.nc", "*.nc"), options)
    xr.testing.assert_allclose(ds.compute(), forecast)


def test_a_cached_chain_is_located_by_its_end(client, put, options, forecast):
    url = put(forecast, "netcdf4")
    for chained in (f"simplecache::{url}", f"simplecache::{url}".replace("a.nc", "*.nc")):
        ds = load(chained, {"s3": options}, engine="h5netcdf")
        assert get_pool(ds) == "ecmwf"
        xr.testing.assert_allclose(ds.compute(), forecast)


@pytest.mark.parametrize("what", ["a.nc", "a.zarr"])
def test_a_missing_object_is_named(client, bucket, options, what):
    with pytest.raises(EntryError, match=rf"there is no s3://{bucket}/{what} on worker"):
        load(f"s3://{bucket}/{what}", options)


def test_a_missing_bucket_is_named(client, options):
    with pytest.raises(EntryError, match=r"a.nc .* cannot be opened in pool 'ecmwf'"):
        load("s3://ecmwf-none/a.nc", options)


def test_secrets_are_in_no_name_repr_description_or_message(client, put, options, forecast, tmp_path):
    import intake

    url = put(forecast, "zarr3")
    ds = load(url, options)
    graph = ds["t"].mean("time").data.dask
    shown = [repr(ds), ds._repr_html_(), str(dict(graph)), repr(graph), graph._repr_html_()]
    shown += [repr(layer) for layer in graph.layers.values()] + [str(key) for key in graph]
    shown += [str(ds.encoding), *(str(variable.encoding) for variable in ds.variables.values())]

    rules = tmp_path / "rules.yaml"
    rules.write_text("data_centres: {ecmwf: {prefixes: ['s3://ecmwf-']}}")
    with dask.config.set({"pools.data-centres": str(rules)}):
        source = intake.open_pooled_zarr(url, storage_options=options)
        shown += [repr(source), source.yaml(), str(source.describe()), repr(source._resolved())]
        catalogue = tmp_path / "cat.yaml"
        catalogue.write_text(
            f"sources: {{a: {{driver: pooled_zarr, args: {{urlpath: '{url}', storage_options: {options}}}}}}}"
        )
        source = intake.open_catalog(str(catalogue)).a
        assert source.storage_options["secret"] == SECRET
        shown += [repr(source), source.yaml(), str(source.describe()), str(source.discover())]
        with pytest.raises(EntryError) as caught:
            source(urlpath=f"{url}/none").to_dask()
        shown.append(str(caught.value))
    for text in shown:
        assert SECRET not in text
        assert "testing-key" not in text


def test_the_names_do_not_depend_on_secrets(client, put, options, forecast):
    url = put(forecast, "netcdf4")
    assert load(url, options)["t"].data.name == load(url, {**options, "secret": "another"})["t"].data.name


def test_wrong_credentials_are_not_read_through_those_of_another(client, put, options, forecast):
    """What one user opened is not what another gets: options are compared, and not only names."""
    from intake_pools import stores

    url = put(forecast, "netcdf4")
    mine = stores.source_of(url, "h5netcdf", {}, options)
    yours = stores.source_of(url, "h5netcdf", {}, {**options, "secret": "another"})
    assert mine.token == yours.token
    assert stores.reopened(mine).dataset is stores.reopened(mine).dataset
    assert stores.reopened(mine).dataset is not stores.reopened(yours).dataset


def test_a_recipe_shows_no_secret_and_takes_them_along(client, put, options, forecast):
    recipe = load(put(forecast, "netcdf4"), options)["t"].data
    (layer,) = recipe.dask.layers.values()
    assert SECRET.encode() in pickle.dumps(layer)
    assert SECRET not in repr(layer.indices)


def test_a_tree_of_groups_of_an_object(client, bucket, options, forecast, tmp_path):
    from intake_pools.entries import entry_of
    from intake_pools.opening import open_tree

    tree = xr.DataTree.from_dict({"/": forecast[["lat", "lon"]], "/ocean/deep": forecast[["packed"]]})
    tree.to_netcdf(tmp_path / "tree.nc", engine="netcdf4")
    fsspec.filesystem("s3", **options).put(str(tmp_path / "tree.nc"), f"{bucket}/tree.nc")
    ours = open_tree(entry_of(f"s3://{bucket}/tree.nc", data_centres=RULES, storage_options=options))
    xr.testing.assert_allclose(ours.compute(), tree)
