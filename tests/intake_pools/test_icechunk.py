"""Repositories of Icechunk: local ones, and ones in an object store over HTTP."""

import shutil
import uuid

import fsspec
import numpy as np
import pytest
import xarray as xr

from dask_pools import get_pool
from dask_pools.errors import EntryError, UnreadableError
from intake_pools import load_from_catalog, open_catalog

icechunk = pytest.importorskip("icechunk")
pytestmark = pytest.mark.usefixtures("lazily")


def field(value):
    """A variable whose greatest value is known, in chunks too large to be kept inside manifests."""
    values = np.random.default_rng(0).random((4, 20_000)) * value
    values[:, 0] = value
    return xr.Dataset({"v": (("time", "x"), values)}, {"time": np.arange(4)})


def commit(repository, dataset, group=None):
    session = repository.writable_session("main")
    encoding = {"v": {"chunks": (1, 20_000)}}
    dataset.to_zarr(session.store, mode="w", group=group, consolidated=False, encoding=encoding)
    return session.commit("a change")


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits, the first of them tagged, and a branch with another one."""
    made = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    made.create_tag("v1", commit(made, field(1)))
    commit(made, field(2))
    made.create_branch("test", made.lookup_tag("v1"))
    return made


def load(url, **kwargs):
    return load_from_catalog(url, data_centre="ecmwf", engine="zarr", **kwargs)


def test_branches_tags_and_snapshots(client, repository, tmp_path):
    snapshot = repository.lookup_tag("v1")
    path = tmp_path / "repo"
    found = {
        "": 2,
        "|icechunk:": 2,
        "|icechunk://branch.main/": 2,
        "|icechunk://branch.test": 1,
        "|icechunk://tag.v1/": 1,
        "|icechunk:@tag.v1": 1,
        f"|icechunk://{snapshot}/": 1,
    }
    names = {}
    for suffix, value in found.items():
        ds = load(f"{path}{suffix}")
        assert get_pool(ds) == "ecmwf"
        xr.testing.assert_identical(ds.compute(), field(value))
        names.setdefault(value, set()).add(ds["v"].data.name)
    for reference in ({"branch": "test"}, {"tag": "v1"}, {"snapshot_id": snapshot}):
        ds = load(path, storage_options=reference)
        assert ds["v"].max().compute() == 1


def test_an_opened_snapshot_stays_and_a_new_one_is_seen(client, repository, tmp_path):
    first = load(tmp_path / "repo")
    commit(repository, field(3))
    second = load(tmp_path / "repo")
    assert second["v"].data.name != first["v"].data.name
    assert first["v"].max().compute() == 2
    assert second["v"].max().compute() == 3
    assert first["v"].min().compute() == field(2)["v"].min()
    assert load(tmp_path / "repo")["v"].data.name == second["v"].data.name


def test_groups(client, repository, tmp_path):
    commit(repository, field(5), group="a/b")
    assert load(f"{tmp_path}/repo|icechunk://branch.main/a/b")["v"].max().compute() == 5
    assert load(f"{tmp_path}/repo", xarray_kwargs={"group": "a/b"})["v"].max().compute() == 5
    with pytest.raises(EntryError, match=r"no group 'c'.* Groups there: a, a/b"):
        load(f"{tmp_path}/repo|icechunk://branch.main/c")


def test_what_is_gone_is_an_error_and_never_fill_values(client, repository, tmp_path):
    ds = load(tmp_path / "repo")
    shutil.rmtree(tmp_path / "repo" / "chunks")
    with pytest.raises(UnreadableError, match="not found"):
        ds["v"].sum().compute()
    shutil.rmtree(tmp_path / "repo")
    with pytest.raises(EntryError, match="there is no"):
        load(f"{tmp_path}/repo|icechunk:")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("repo|icechunk://branch.x", {}, r"has no branch 'x' .*\)\. Branches: main, test; tags: v1"),
        ("repo|icechunk://tag.x", {}, r"no tag 'x'"),
        ("repo|icechunk://ABCDEFGHJKMNPQRSTVWX", {}, r"no snapshot 'ABCDEFGHJKMNPQRSTVWX'"),
        ("repo|icechunk:", {"tag": "v1"}, "both"),
        ("repo", {"tag": "v1", "branch": "main"}, r"is asked for by branch and tag; one of them would do"),
        ("repo|icechunk:|zarr3:", {}, r"has more after \|icechunk: than a state"),
    ],
)
def test_a_state_that_is_not_there_is_named_with_those_that_are(
    client, repository, tmp_path, url, options, message
):
    with pytest.raises(EntryError, match=message):
        load(f"{tmp_path}/{url}", storage_options=options)


def test_a_repository_in_an_object_store_as_a_catalogue_has_it(client, endpoint, tmp_path):
    options = {"key": "testing-key", "secret": "hush-hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    bucket = f"ecmwf-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **options).mkdir(bucket)
    made = icechunk.Repository.create(
        icechunk.s3_storage(
            bucket=bucket, prefix="a/repo", region="us-east-1", endpoint_url=endpoint, allow_http=True,
            force_path_style=True, access_key_id="testing-key", secret_access_key="hush-hush-hush",
        )
    )  # fmt: skip
    made.create_tag("v1", commit(made, field(1)))
    commit(made, field(2))
    (tmp_path / "cat.yaml").write_text(f"""
sources:
  head:
    driver: zarr
    args: {{urlpath: "s3://{bucket}/a/repo", storage_options: {options}}}
  tagged:
    driver: zarr
    args: {{urlpath: "s3://{bucket}/a/repo|icechunk://tag.v1/", storage_options: {options}}}
""")
    cat = open_catalog(
        tmp_path / "cat.yaml", data_centres={"data_centres": {"ecmwf": {"prefixes": ["s3://ecmwf-"]}}}
    )
    for name, value in (("head", 2), ("tagged", 1)):
        assert cat[name].data_centre == "ecmwf"
        ds = cat[name].to_dask()
        xr.testing.assert_identical(ds.compute(), field(value))
        for text in (repr(ds), str(dict(ds["v"].data.dask)), str(ds.encoding)):
            assert "hush" not in text
    fsspec.filesystem("s3", **options).rm(f"{bucket}/a/repo/chunks", recursive=True)
    with pytest.raises(UnreadableError) as caught:
        ds["v"].sum().compute()
    assert "hush" not in str(caught.value)
