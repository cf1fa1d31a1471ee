"""References (kerchunk's) to pieces of other files: chunks come from there, or there is an error."""

import json
import os
import shutil
import uuid

import fsspec
import numpy as np
import pytest
import xarray as xr
from webserver import serving

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError, PoolsError, UnreadableError
from intake_pools import load_from_catalog, open_catalog, references
from intake_pools.locate import locate

pytestmark = pytest.mark.usefixtures("lazily")


@pytest.fixture
def field():
    rng = np.random.default_rng(1)
    return xr.Dataset(
        {"t": (("time", "x"), rng.random((8, 500)), {"units": "K"})},
        {"time": np.arange(8), "x": np.arange(500)},
    )


def refer(path, url):
    """References to a NetCDF file, as if it were at a URL."""
    from kerchunk.hdf import SingleHdf5ToZarr

    with open(path, "rb") as file:
        return SingleHdf5ToZarr(file, url, inline_threshold=0).translate()


@pytest.fixture
def at_home(tmp_path, field):
    """A directory with a NetCDF file and references to it."""
    field.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"t": {"chunksizes": (2, 500)}})
    (tmp_path / "a.json").write_text(json.dumps(refer(tmp_path / "a.nc", str(tmp_path / "a.nc"))))
    return tmp_path


def rules(**prefixes):
    return {"data_centres": {name: {"prefixes": given} for name, given in prefixes.items()}}


def load(url, data_centres, **kwargs):
    return load_from_catalog(url, data_centres=data_centres, **kwargs)


WAYS = {
    "chain": lambda path: (f"reference::{path}", {}),
    "fo": lambda path: ("reference://", {"fo": str(path), "remote_options": {"asynchronous": True}}),
    "written out": lambda path: ("reference://", {"fo": json.loads(path.read_text())}),
}


@pytest.mark.parametrize("way", WAYS)
def test_references_are_located_by_their_end_and_read_in_their_pool(client, at_home, field, way):
    url, options = WAYS[way](at_home / "a.json")
    known = rules(ecmwf=[str(at_home)])
    ds = load(url, known, engine="zarr", storage_options=options)
    assert get_pool(ds) == "ecmwf"
    xr.testing.assert_identical(ds.compute(), field)
    assert locate(url, data_centres=known, storage_options=options).data_centre == "ecmwf"


def test_entries_as_people_write_them(client, at_home, field):
    (at_home / "cat.yaml").write_text(f"""
sources:
  one:
    driver: zarr
    args:
      urlpath: "reference://"
      consolidated: false
      storage_options:
        fo: "{at_home}/a.json"
        remote_protocol: file
        remote_options: {{asynchronous: true}}
  two:
    driver: netcdf
    args:
      urlpath: "reference://"
      xarray_kwargs:
        engine: zarr
        backend_kwargs: {{consolidated: false, storage_options: {{fo: "{at_home}/a.json"}}}}
  three:
    driver: intake_xarray.xzarr.ZarrSource
    args: {{urlpath: ["reference::{at_home}/a.json"], consolidated: false}}
  four:
    driver: netcdf
    args: {{urlpath: "{at_home}/a.json", xarray_kwargs: {{engine: kerchunk}}}}
""")
    cat = open_catalog(at_home / "cat.yaml", data_centres=rules(eumetsat=[str(at_home)]))
    for name in cat:
        ds = cat[name].to_dask()
        assert get_pool(ds) == "eumetsat"
        xr.testing.assert_identical(ds.compute(), field)


def test_a_target_that_is_gone_or_another_is_an_error_and_never_fill_values(client, at_home, field):
    known = rules(ecmwf=[str(at_home)])
    ds = load(f"reference::{at_home}/a.json", known)
    os.rename(at_home / "a.nc", at_home / "b.nc")
    with pytest.raises(DataChangedError, match=r"version none \(no .*a.nc"):
        ds["t"].sum().compute()
    with pytest.raises(EntryError, match=r"there is no .*a.nc on worker"):
        load(f"reference::{at_home}/a.json", known)
    (field * 0).to_netcdf(at_home / "a.nc", engine="h5netcdf", encoding={"t": {"chunksizes": (2, 500)}})
    with pytest.raises(DataChangedError, match="version"):
        ds["t"].sum().compute()


def test_a_target_that_is_gone_among_too_many_to_be_looked_at_is_an_error(
    client, at_home, field, monkeypatch
):
    """Each of many files is looked at when it is read, and not before."""
    found = json.loads((at_home / "a.json").read_text())
    for number in range(40):
        shutil.copy(at_home / "a.nc", at_home / f"{number}.nc")
        found["refs"][f"t/{number}.1"] = [str(at_home / f"{number}.nc"), 0, 10]
    (at_home / "a.json").write_text(json.dumps(found))
    ds = load(f"reference::{at_home}/a.json", rules(ecmwf=[str(at_home)]))
    os.remove(at_home / "a.nc")
    with pytest.raises(UnreadableError, match=r"a\.nc"):
        ds["t"].sum().compute()


def test_an_absent_reference_is_a_fill_value(client, at_home, field):
    found = json.loads((at_home / "a.json").read_text())
    del found["refs"]["t/1.0"]
    (at_home / "a.json").write_text(json.dumps(found))
    ds = load(f"reference::{at_home}/a.json", rules(ecmwf=[str(at_home)]))
    assert np.isnan(ds["t"][2:4].compute()).all()
    xr.testing.assert_identical(ds["t"][4:].compute(), field["t"][4:])


@pytest.fixture
def bucket(endpoint):
    """A bucket, and the options of its store."""
    options = {"key": "testing-key", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    name = f"eumetsat-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **options).mkdir(name)
    return name, options


def test_targets_in_another_data_centre_than_the_references_are_read_there(client, at_home, field, bucket):
    name, options = bucket
    fs = fsspec.filesystem("s3", **options)
    fs.put(str(at_home / "a.nc"), f"{name}/a.nc")
    (at_home / "a.json").write_text(json.dumps(refer(at_home / "a.nc", f"s3://{name}/a.nc")))
    known = rules(ecmwf=[str(at_home)], eumetsat=["s3://eumetsat-"])
    given = {"remote_protocol": "s3", "remote_options": options}
    ds = load(f"reference::{at_home}/a.json", known, storage_options=given)
    assert get_pool(ds) == "eumetsat"
    xr.testing.assert_identical(ds.compute(), field)
    again = load(f"reference::{at_home}/a.json", known, storage_options=given)
    assert again["t"].data.name == ds["t"].data.name
    stated = load(f"reference::{at_home}/a.json", known, storage_options=given, data_centre="ecmwf")
    assert get_pool(stated) == "ecmwf"
    for text in (repr(ds), str(dict(ds["t"].data.dask)), str(ds.encoding)):
        assert "hush" not in text
    # What is refused, then what is gone: of other classes than a missing file.
    fs.rm(f"{name}/a.nc")
    with pytest.raises(UnreadableError, match=r"a\.nc") as caught:
        ds["t"].sum().compute()
    assert "hush" not in str(caught.value)


def test_references_and_targets_of_a_web_server(client, at_home, field):
    with serving(at_home) as web:
        (at_home / "a.json").write_text(json.dumps(refer(at_home / "a.nc", f"{web.url}/a.nc")))
        known = {"data_centres": {"ecmwf": {"hosts": ["127.0.0.1"]}}}
        ds = load(f"reference::{web.url}/a.json", known)
        xr.testing.assert_identical(ds.compute(), field)
        for status in (403, 404, 500):
            web.status = status
            with pytest.raises(UnreadableError, match=r"a\.nc"):
                ds["t"].sum().compute()
        web.status = None
        # A whole file would be taken for the piece that was asked for.
        web.ranges = False
        with pytest.raises(UnreadableError, match="sends no parts of a file"):
            ds["t"].sum().compute()


def test_targets_in_several_data_centres_ask_for_a_word(client, at_home):
    found = refer(at_home / "a.nc", str(at_home / "a.nc"))
    found["refs"]["t/0.0"][0] = "/data/eumetsat/b.nc"
    (at_home / "a.json").write_text(json.dumps(found))
    known = rules(ecmwf=[str(at_home)], eumetsat=["/data/eumetsat/"])
    with pytest.raises(
        EntryError, match=r"point to several data centres: 'ecmwf' .*, 'eumetsat' .*State the one"
    ):
        load(f"reference::{at_home}/a.json", known)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gen": [{"key": "t/{{i}}.0", "url": "x", "dimensions": {"i": {"stop": 4}}}]},
            "have to be generated",
        ),
        ({"templates": {"u": "{{ cycler }}"}}, "themselves to be filled in"),
        ({"templates": {"v": "x"}, "refs": {"t/0.0": ["{{u}}/a.nc", 0, 8]}}, "which it does not define"),
        ({"refs": ["t/0.0"]}, "no set of references"),
    ],
)
def test_references_that_would_have_to_be_run_are_refused(client, at_home, change, message):
    found = json.loads((at_home / "a.json").read_text())
    (at_home / "a.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(EntryError, match=message):
        load(f"reference::{at_home}/a.json", rules(ecmwf=[str(at_home)]))


def test_templates_are_filled_in(client, at_home, field):
    found = json.loads((at_home / "a.json").read_text())
    found["templates"] = {"u": str(at_home)}
    for one in found["refs"].values():
        if isinstance(one, list):
            one[0] = "{{u}}/a.nc"
    (at_home / "a.json").write_text(json.dumps(found))
    ds = load(f"reference::{at_home}/a.json", rules(ecmwf=[str(at_home)]))
    xr.testing.assert_identical(ds.compute(), field)


@pytest.mark.filterwarnings("ignore:.*fastparquet", "ignore:.*infer_string")
def test_references_in_parquet(client, at_home, field):
    from kerchunk.df import refs_to_dataframe

    refs_to_dataframe(json.loads((at_home / "a.json").read_text()), str(at_home / "a.parq"), record_size=2)
    known = rules(ecmwf=[str(at_home)])
    ds = load(f"reference::{at_home}/a.parq", known)
    xr.testing.assert_identical(ds.compute(), field)
    part = at_home / "a.parq" / "t" / "refs.1.parq"
    kept = part.read_bytes()
    part.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(PoolsError, match=r"refs.1.parq cannot be read"):
        load(f"reference::{at_home}/a.parq", known)["t"][4:].sum().compute()
    part.write_bytes(kept)
    found = references._parquet(str(at_home / "a.parq"), fsspec.filesystem("file"))
    assert found.record_size == 2  # it has looked at what is there
    os.remove(part)
    with pytest.raises(references.BrokenReferences, match="a part of the references, is gone"):
        found.open_refs("t", 1)
    part.write_bytes(kept)
    ds = load(f"reference::{at_home}/a.parq", known)
    os.remove(at_home / "a.nc")
    with pytest.raises(UnreadableError, match=r"a\.nc"):
        ds["t"].sum().compute()
