"""Where a target is, without a cluster."""

from __future__ import annotations

import dask
import dask.array as da
import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

from dask_pools import dask_internals, data_centres, targets
from dask_pools.errors import MixedPoolsError, UnlocatedError

HERE = data_centres.parse("data_centres: {ecmwf: {prefixes: [/data/ecmwf, 's3://ecmwf-']}}", "/etc/a.yaml")
THERE = data_centres.parse("data_centres: {eumetsat: {prefixes: [/data, /data/ecmwf/b]}}", "/etc/b.yaml")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(targets, "_remembered", {})


@pytest.mark.parametrize(
    ("url", "pool"),
    [
        ("/data/ecmwf/x.zarr", "ecmwf"),
        ("file:///data/ecmwf/x.zarr", "ecmwf"),
        ("s3://ecmwf-a/x.zarr", "ecmwf"),
        ("s3://elsewhere/x.zarr", None),
        ("memory://x.zarr", None),
    ],
)
def test_rules_locate_a_target_as_they_locate_data(url, pool):
    assert targets.locate(url, ((HERE,), ()), "-") == pool


@pytest.mark.parametrize("url", ["/tmp/x.zarr", "x.zarr", "file:///tmp/x.zarr", "/data/ecmwf/../x"])
def test_a_path_that_no_rule_locates_is_refused(url):
    with pytest.raises(UnlocatedError, match=r"client: `do this`.*/data/ecmwf \(ecmwf\)"):
        targets.locate(url, ((HERE,), ()), "`do this`")


def test_default_rules_are_asked_after_those_of_catalogues():
    assert targets.locate("/data/ecmwf/b", ((HERE,), (THERE,)), "-") == "ecmwf"
    assert targets.locate("/data/other", ((HERE,), (THERE,)), "-") == "eumetsat"


def test_catalogues_that_contradict_each_other_are_refused():
    with pytest.raises(MixedPoolsError, match=r"/data/ecmwf/b.*'ecmwf', 'eumetsat'"):
        targets.locate("/data/ecmwf/b", ((HERE, THERE), ()), "-")


def test_the_rules_of_a_file_are_remembered_as_they_were_read_last(tmp_path):
    path = tmp_path / "data-centres.yaml"
    for name in ("ecmwf", "eumetsat"):
        path.write_text(f"data_centres: {{{name}: {{prefixes: [/data]}}}}")
        targets.remember(str(path))
    targets.remember({"data_centres": {"ecmwf": {"prefixes": ["/one"]}}})
    targets.remember({"data_centres": {"ecmwf": {"prefixes": ["/two"]}}})
    targets.remember(None)
    assert {path: targets.locate(path, targets.rules(), "-") for path in ("/data", "/one", "/two")} == {
        "/data": "eumetsat",
        "/one": "ecmwf",
        "/two": "ecmwf",
    }


def test_the_default_file_is_read_again_when_it_has_changed(tmp_path):
    path = tmp_path / "data-centres.yaml"
    with dask.config.set({"pools.data-centres": str(path)}):
        assert targets.rules_to_send() == ((), ())  # it is not there
        for name in ("ecmwf", "eumetsat"):
            path.write_text(f"data_centres: {{{name}: {{prefixes: [/data]}}}}")
            assert targets.locate("/data/x", targets.rules(), "-") == name
            assert targets.rules()[1][0] is targets.rules()[1][0]


def test_the_place_of_every_kind_of_target_is_found(tmp_path):
    path = str(tmp_path / "x")
    array = zarr.create_array(path, name="a", shape=3, chunks=3, dtype="f8")
    assert targets.url_of(tmp_path / "x") == path
    assert targets.url_of(array) == f"{path}/a"
    assert targets.url_of(zarr.storage.LocalStore(path)) == path
    assert targets.url_of(fsspec.get_mapper(path)) == f"file://{path}"
    assert targets.url_of(fsspec.get_mapper("memory://x")).startswith("memory://")
    assert targets.url_of(zarr.storage.FsspecStore.from_url(f"file://{path}")) == f"file://{path}"
    assert targets.url_of(xr.backends.zarr.ZarrArrayWrapper(array)) == f"{path}/a"
    with h5py.File(path + ".h5", "w") as file:
        assert targets.url_of(file.create_dataset("a", shape=3, dtype="f8")) == path + ".h5"
    with netCDF4.Dataset(path + ".nc", "w") as file:
        assert targets.url_of(file.createVariable("a", "f8")) == path + ".nc"


@pytest.mark.parametrize("target", [np.zeros(3), {}, zarr.storage.MemoryStore(), None, object()])
def test_what_has_no_place_is_left_alone(target):
    assert targets.url_of(target) is None


def test_stores_that_dask_makes_are_recognised(tmp_path):
    """Assumption of `dask_internals.store_targets`: which function stores, and where its target stands."""
    array = zarr.create_array(tmp_path / "x", shape=4, chunks=2, dtype="f8")
    stored = da.store(da.ones(4, chunks=2) + 1, array, lock=False, compute=False)
    layer = stored.dask.layers[stored.name]
    assert dask_internals.store_targets(layer) == {None: array}
    assert dask_internals.store_targets(dict(layer)) == {(stored.name, 0): array, (stored.name, 1): array}
    others = [one for name, one in stored.dask.layers.items() if name != stored.name]
    assert all(dask_internals.store_targets(one) == {} for one in others)


def test_tasks_are_tied_to_their_targets(tmp_path):
    rules = data_centres.load({"data_centres": {"ecmwf": {"prefixes": [str(tmp_path)]}}})
    array = zarr.create_array(tmp_path / "x", shape=4, chunks=2, dtype="f8")
    stored = da.store(da.ones(4, chunks=2), array, lock=False, compute=False)
    layer = stored.dask.layers[stored.name]
    assert targets.pools_of_stores(layer, ((rules,), ())) == "ecmwf"
    assert targets.pools_of_stores(dict(layer), ((rules,), ())) == dict.fromkeys(layer, "ecmwf")
    unplaced = da.store(da.ones(4, chunks=2), np.zeros(4), lock=False, compute=False)
    assert targets.pools_of_stores(unplaced.dask.layers[unplaced.name], ((), ())) is None
