"""Workers reach what the client cannot, and open entries before their other work."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import xarray as xr
from distributed import Client, Event

from dask_pools import get_pool
from dask_pools.cluster import LocalPools
from intake_pools import load_from_catalog, open_catalog

pytestmark = pytest.mark.usefixtures("lazily")

# Of the workers' environment, and of no entry, catalogue or setting of the client.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key-of-the-pool", "AWS_SECRET_ACCESS_KEY": "secret-of-the-pool"}
NOWHERE = "http://127.0.0.1:9"
# Nobody will be there the next time either.
ONCE = {"retries": {"max_attempts": 0}}


@pytest.fixture(scope="module")
def connected(endpoint: str) -> Iterator[Client]:
    """A client of two one-threaded workers, who alone know where an object store is and may read it."""
    env = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    with (
        LocalPools({"ecmwf": 2}, env=env, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def there(connected: Client) -> Iterator[Client]:
    with connected.as_current():
        yield connected


@pytest.fixture
def shut_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """This process has no credentials for any object store, and reaches none."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize("kind", ["netcdf4", "zarr3"])
def test_with_credentials_and_a_store_that_only_the_workers_have(
    there, endpoint, forecast, write, tmp_path, request, kind
):
    suffix = "zarr" if kind == "zarr3" else "nc"
    write(forecast, tmp_path / f"a.{suffix}", kind)
    owner = {"key": "owner", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    store = fsspec.filesystem("s3", **owner)
    bucket = f"ecmwf-{uuid.uuid4().hex}"
    store.mkdir(bucket)
    store.put(str(tmp_path / f"a.{suffix}"), f"{bucket}/a.{suffix}", recursive=kind == "zarr3")
    request.getfixturevalue("shut_out")

    # Without credentials, and with some, but no way to the store.
    for options in ({}, {"key": "any", "secret": "any-any"}):
        with pytest.raises(Exception, match=r"credentials|connect"):
            fsspec.filesystem("s3", **options, config_kwargs=ONCE, skip_instance_cache=True).ls(bucket)

    url = f"s3://{bucket}/a.{suffix}"
    (tmp_path / "cat.yaml").write_text(
        f"sources: {{a: {{driver: {suffix.replace('nc', 'netcdf')}, "
        f"args: {{urlpath: '{url}', chunks: {{time: 2}}}}}}}}"
    )
    rules = {"data_centres": {"ecmwf": {"prefixes": ["s3://ecmwf-"]}}}
    entry = open_catalog(tmp_path / "cat.yaml", data_centres=rules)["a"]
    assert not entry._resolved().storage_options
    ds = entry.to_dask()
    assert get_pool(ds) == "ecmwf"
    assert ds["t"].chunks[0] == (2, 2, 2)
    xr.testing.assert_allclose(ds.compute(), forecast)
    assert float(ds["t"].mean()) == pytest.approx(float(forecast["t"].mean()))


def wait_for(name: str, started: str) -> None:
    Event(started).set()
    Event(name).wait("60s")


@pytest.fixture
def workers(there: Client) -> list[str]:
    return sorted(there.scheduler_info(n_workers=-1)["workers"])


def occupy(client: Client, worker: str, until: str) -> Any:
    """Have a worker do something that ends with an event; returns when it does."""
    started = f"started-{uuid.uuid4().hex}"
    future = client.submit(wait_for, until, started, workers=[worker], pure=False)
    assert Event(started, client=client).wait("60s")
    return future


def test_an_entry_is_opened_by_the_worker_that_is_free(there, workers, forecast, write, tmp_path):
    write(forecast, tmp_path / "a.nc")
    until = f"until-{uuid.uuid4().hex}"
    busy = [occupy(there, workers[0], until)]
    # More than it can do, and nobody else may.
    busy += [there.submit(wait_for, until, "any", workers=[workers[0]], pure=False) for _ in range(3)]
    try:
        # Whoever was given to the busy worker would wait until this is over.
        ds = load_from_catalog(tmp_path / "a.nc", data_centre="ecmwf")
        assert float(ds["t"].mean()) == pytest.approx(float(forecast["t"].mean()))
        assert busy[0].status == "pending"
    finally:
        Event(until, client=there).set()
        there.gather(busy)


def test_an_entry_is_opened_before_what_has_been_waiting_for_longer(
    there, workers, forecast, write, tmp_path
):
    write(forecast, tmp_path / "a.nc")
    first, later = f"first-{uuid.uuid4().hex}", f"later-{uuid.uuid4().hex}"
    busy = [occupy(there, worker, first) for worker in workers]
    # If one of these came before the opening, its worker would have no room for that until `later`.
    resources = {"pool-ecmwf": 0}
    busy += [there.submit(wait_for, later, "any", resources=resources, pure=False) for _ in range(20)]
    opened: list[xr.Dataset] = []

    def open_it() -> None:
        with there.as_current():
            opened.append(load_from_catalog(tmp_path / "a.nc", data_centre="ecmwf"))

    def asked(dask_scheduler: Any) -> bool:
        return any(str(key).startswith("open-a.nc") for key in dask_scheduler.tasks)

    thread = threading.Thread(target=open_it)
    thread.start()
    try:
        while not there.run_on_scheduler(asked):
            assert thread.is_alive()
        Event(first, client=there).set()
        thread.join(60)
        assert opened
        assert {future.status for future in busy[2:]} == {"pending"}
    finally:
        Event(first, client=there).set()
        Event(later, client=there).set()
        there.gather(busy)
        thread.join(60)


def dying_once(flag: str) -> None:
    """Have the first worker that looks at a file die of it; whoever has seen that goes on as before."""
    import os

    from intake_pools import stores

    look = stores.version_of

    def deadly(source: stores.Source) -> stores.Version:
        stores.version_of = look
        if not os.path.exists(flag):
            open(flag, "w").close()
            os._exit(1)
        return look(source)

    stores.version_of = deadly


def test_an_entry_whose_worker_dies_while_it_is_opened_is_opened_by_another(
    there, workers, forecast, write, tmp_path
):
    write(forecast, tmp_path / "a.nc")
    there.run(dying_once, str(tmp_path / "died"))
    ds = load_from_catalog(tmp_path / "a.nc", data_centre="ecmwf")
    assert (tmp_path / "died").exists()
    xr.testing.assert_allclose(ds.compute(), forecast)
    # For the tests that come after this one.
    there.wait_for_workers(len(workers), timeout=60)
