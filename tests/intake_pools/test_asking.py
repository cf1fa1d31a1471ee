"""Where something is that no rule knows: asked of its store, or of the workers."""

import json
import logging
import socket
import urllib.parse
import urllib.request
import uuid

import dask
import fsspec
import pytest
import xarray as xr

from dask_pools import get_pool
from dask_pools.errors import UnlocatedError
from intake_pools import load_from_catalog
from intake_pools.locate import locate

RULES = {"data_centres": {"ecmwf": {"regions": ["s3:eu-west-2"]}, "eumetsat": {"prefixes": ["/sat/"]}}}


@pytest.mark.parametrize(("region", "located"), [("eu-west-2", True), ("eu-north-1", False)])
def test_the_region_of_a_bucket_is_asked_of_its_store_if_that_is_switched_on(endpoint, region, located):
    options = {"key": "k", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    name = f"b-{uuid.uuid4().hex}"
    store = fsspec.filesystem("s3", **options, skip_instance_cache=True)
    store.call_s3("create_bucket", Bucket=name, CreateBucketConfiguration={"LocationConstraint": region})
    with pytest.raises(UnlocatedError):
        locate(f"s3://{name}/a", data_centres=RULES, storage_options=options)
    with dask.config.set({"pools.ask-regions": True}):
        if not located:
            with pytest.raises(UnlocatedError):
                locate(f"s3://{name}/a", data_centres=RULES, storage_options=options)
            return
        found = locate(f"s3://{name}/a", data_centres=RULES, storage_options=options)
    assert found.data_centre == "ecmwf"
    assert found.evidence == (
        "region s3:eu-west-2 (the data centres given), of the region that the store names: eu-west-2"
    )


@pytest.fixture(scope="module")
def google():
    """Google's store as an emulator has it."""
    pytest.importorskip("gcsfs")
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.mark.parametrize(("region", "located"), [("US-CENTRAL1", True), ("EU", False)])
def test_the_region_of_a_bucket_of_googles_is_asked_of_its_store(google, region, located):
    name = f"b-{uuid.uuid4().hex}"
    # The emulator takes a location only from those who change a bucket.
    for method, path, what in (
        ("POST", "b?project=p", {"name": name}),
        ("PATCH", f"b/{name}", {"location": region}),
    ):
        request = urllib.request.Request(
            f"{google}/storage/v1/{path}",
            json.dumps(what).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        urllib.request.urlopen(request).close()
    known = {"data_centres": {"gcp": {"regions": ["gs:us-central1"]}, "aws": {"regions": ["s3:us-central1"]}}}
    options = {"token": "anon", "project": "p", "endpoint_url": google}
    with dask.config.set({"pools.ask-regions": True}):
        if not located:
            with pytest.raises(UnlocatedError):
                locate(f"gs://{name}/a", data_centres=known, storage_options=options)
            return
        found = locate(f"gcs://{name}/a", data_centres=known, storage_options=options)
    assert found.data_centre == "gcp"
    assert "of the region that the store names: us-central1" in found.evidence


@pytest.mark.parametrize("suffix", ["zarr", "nc"])
def test_data_in_googles_store_is_opened_and_read(google, alone, lazily, forecast, write, tmp_path, suffix):
    """As far as an emulator goes: neither Google's own answers nor its credentials were ever met."""
    write(forecast, tmp_path / f"a.{suffix}", "zarr2" if suffix == "zarr" else "netcdf4")
    bucket = f"ecmwf-{uuid.uuid4().hex}"
    store = f"{google}/upload/storage/v1/b/{bucket}/o?uploadType=media&name="
    sent = [(f"{google}/storage/v1/b?project=p", json.dumps({"name": bucket}).encode(), "application/json")]
    for path in (file for file in tmp_path.rglob("*") if file.is_file()):
        name = urllib.parse.quote(str(path.relative_to(tmp_path)), safe="")
        sent.append((store + name, path.read_bytes(), "application/octet-stream"))
    for url, data, kind in sent:
        request = urllib.request.Request(url, data, {"Content-Type": kind}, method="POST")
        urllib.request.urlopen(request).close()
    known = {"data_centres": {"ecmwf": {"prefixes": ["gs://ecmwf-"]}}}
    options = {"token": "anon", "project": "p", "endpoint_url": google}
    opened = load_from_catalog(f"gcs://{bucket}/a.{suffix}", data_centres=known, storage_options=options)
    assert get_pool(opened) == "ecmwf"
    xr.testing.assert_allclose(opened.compute(), forecast)


def test_a_store_that_does_not_answer_locates_nothing(endpoint):
    options = {"key": "k", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    with dask.config.set({"pools.ask-regions": True}), pytest.raises(UnlocatedError):
        locate(f"s3://none-{uuid.uuid4().hex}/a", data_centres=RULES, storage_options=options)


def test_the_pool_whose_worker_sees_a_file_is_found_by_asking_if_that_is_switched_on(
    client, eumetsat, forecast, named, write
):
    write(forecast, eumetsat / named)
    with pytest.raises(UnlocatedError):
        locate(named, data_centres=RULES)
    with dask.config.set({"pools.probe": True}):
        found = locate(named, data_centres=RULES)
        assert found.data_centre == "eumetsat"
        assert found.rule.kind == "probe"
        assert "asked of one worker of each pool" in found.evidence
        assert load_from_catalog(named).sizes["time"] == 6
        with pytest.raises(UnlocatedError):
            locate(f"none-{named}", data_centres=RULES)


def test_of_two_pools_that_see_a_file_the_other_is_a_runner_up(client, tmp_path, forecast, write):
    write(forecast, tmp_path / "a.nc")
    with dask.config.set({"pools.probe": True}):
        found = locate(tmp_path / "a.nc", data_centres=RULES)
    assert {found.data_centre, *(rule.data_centre for rule in found.runners_up)} == {"ecmwf", "eumetsat"}


def test_without_a_client_nobody_is_asked(alone, monkeypatch):
    def nobody():
        raise ValueError("No clients found")

    monkeypatch.setattr("distributed.default_client", nobody)
    with dask.config.set({"pools.probe": True}), pytest.raises(UnlocatedError):
        locate("a.nc", data_centres=RULES)
