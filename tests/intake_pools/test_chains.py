"""Chains of URLs, and the ways in which stores and files are laid out."""

import shutil
import uuid
import zipfile

import fsspec
import pytest
import xarray as xr
import zarr

from dask_pools import get_pool
from dask_pools.errors import EntryError
from intake_pools import load_from_catalog
from intake_pools.locate import locate

pytestmark = pytest.mark.usefixtures("lazily")


@pytest.fixture
def options(endpoint):
    return {"key": "testing-key", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}


@pytest.fixture
def bucket(options):
    name = f"ecmwf-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **options).mkdir(name)
    return name


@pytest.fixture
def archive(tmp_path, forecast, write):
    """A zip archive with a file and a store in it."""

    def pack(dataset):
        write(dataset, tmp_path / "a.nc")
        write(dataset, tmp_path / "a.zarr", "zarr2")
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as made:
            for path in [tmp_path / "a.nc", *(tmp_path / "a.zarr").rglob("*")]:
                made.write(path, f"inside/{path.relative_to(tmp_path)}")
        return tmp_path / "all.zip"

    return pack


RULES = {
    "data_centres": {"ecmwf": {"prefixes": ["s3://ecmwf-", "/tmp/"]}, "eumetsat": {"prefixes": ["s3://b/"]}}
}

CHAINS = [
    "simplecache::{end}/a.nc",
    "filecache::{end}/a.nc",
    "blockcache::{end}/a.nc",
    "simplecache::{end}/a.zarr",
    "zip://inside/a.nc::{end}/all.zip",
    "zip://inside/a.zarr::{end}/all.zip",
    "zip://inside/a.nc::simplecache::{end}/all.zip",
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("where", ["s3", "file"])
def test_chains_are_located_by_their_end_and_see_what_is_written_anew(
    client, archive, forecast, bucket, options, tmp_path, chain, where
):
    end = f"s3://{bucket}" if where == "s3" else str(tmp_path)
    given = {"s3": options} if where == "s3" else {}

    def put(dataset):
        archive(dataset)
        if where == "s3":
            fs = fsspec.filesystem("s3", **options)
            if "zarr" in chain and "zip" not in chain:
                fs.put(str(tmp_path / "a.zarr"), f"{bucket}/", recursive=True)
            else:
                name = "all.zip" if "zip" in chain else "a.nc"
                fs.put(str(tmp_path / name), f"{bucket}/{name}")

    put(forecast)
    url = chain.format(end=end)
    engine = "zarr" if "zarr" in url else "h5netcdf"
    first = load_from_catalog(url, data_centres=RULES, storage_options=given, engine=engine)
    assert get_pool(first) == "ecmwf"
    xr.testing.assert_allclose(first.compute(), forecast)
    put(forecast.assign(t=forecast["t"] * 0).assign_attrs(title="later"))
    second = load_from_catalog(url, data_centres=RULES, storage_options=given, engine=engine)
    assert second.attrs["title"] == "later"
    assert second["t"].data.name != first["t"].data.name
    assert second["t"].sum().compute() == 0


def test_the_endpoint_of_the_last_link_counts():
    known = {
        "data_centres": {"osn": {"endpoints": ["https://osn.example.org"]}, "aws": {"prefixes": ["s3://b/"]}}
    }
    at_osn = {"s3": {"client_kwargs": {"endpoint_url": "https://osn.example.org"}}}
    for chain in (
        "simplecache::s3://b/a.nc",
        "reference::s3://b/a.json",
        "zip://a.nc::simplecache::s3://b/a.zip",
    ):
        assert locate(chain, data_centres=known, storage_options=at_osn).data_centre == "osn"
        assert locate(chain, data_centres=known).data_centre == "aws"
    for name in ("target_options", "ref_storage_args"):
        told = {
            "fo": "s3://b/a.json",
            name: at_osn["s3"],
            "remote_options": {"endpoint_url": "https://x.org"},
        }
        assert locate("reference://", data_centres=known, storage_options=told).data_centre == "osn"


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("asked", [True, False, None])
def test_consolidated_or_not(client, forecast, ecmwf, named, zarr_format, stored, asked):
    forecast.to_zarr(ecmwf / named, zarr_format=zarr_format, consolidated=stored)
    kwargs = {"engine": "zarr", "data_centre": "ecmwf", "xarray_kwargs": {"consolidated": asked}}
    if asked and not stored:
        with pytest.raises(EntryError, match="onsolidated"):
            load_from_catalog(named, **kwargs)
        return
    xr.testing.assert_allclose(load_from_catalog(named, **kwargs).compute(), forecast)


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_group_of_a_store_is_consolidated_as_its_root_is(client, forecast, ecmwf, named, consolidated):
    forecast.to_zarr(ecmwf / named, group="a/b", zarr_format=2, consolidated=False)
    if consolidated:
        zarr.consolidate_metadata(ecmwf / named, zarr_format=2)
    ds = load_from_catalog(named, engine="zarr", data_centre="ecmwf", xarray_kwargs={"group": "a/b"})
    xr.testing.assert_allclose(ds.compute(), forecast)
    shutil.rmtree(ecmwf / named)


def test_groups_of_hdf5_by_either_engine_and_through_a_chain(client, forecast, ecmwf, named):
    xr.DataTree.from_dict({"/": xr.Dataset({"n": 1}), "/a/b": forecast}).to_netcdf(ecmwf / named)
    path = f"{ecmwf}/{named}"
    for url, engine in ((path, "netcdf4"), (path, "h5netcdf"), (f"simplecache::{path}", "h5netcdf")):
        for group in ("a/b", "/a/b/"):
            ds = load_from_catalog(url, engine=engine, data_centre="ecmwf", xarray_kwargs={"group": group})
            xr.testing.assert_allclose(ds[["t", "area"]].compute(), forecast[["t", "area"]])
        with pytest.raises(EntryError, match=r"no group 'c'.* Groups there: a, a/b"):
            load_from_catalog(url, engine=engine, data_centre="ecmwf", xarray_kwargs={"group": "c"})
