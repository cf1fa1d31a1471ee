"""Files and stores of a web server, a real one on this machine."""

import logging
import shutil

import dask
import numpy as np
import pytest
import xarray as xr
from webserver import serving

from dask_pools import get_pool
from dask_pools.errors import DataChangedError, EntryError, PoolsError, UnreadableError
from intake_pools import load_from_catalog, open_catalog
from intake_pools.locate import locate

pytestmark = pytest.mark.usefixtures("lazily")

RULES = {"data_centres": {"ecmwf": {"hosts": ["127.0.0.1"]}}}
SECRET = "hush-hush-hush"
KINDS = ["netcdf3", "netcdf4", "zarr2", "zarr3"]


@pytest.fixture
def web(tmp_path):
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def put(tmp_path, write, web):
    """Write a Dataset where the server has it; gives its URL."""

    def put(dataset, kind, consolidated=True):
        name = "a.zarr" if kind.startswith("zarr") else "a.nc"
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        write(dataset, tmp_path / name, kind)
        if kind == "zarr3" and consolidated:
            import zarr

            zarr.consolidate_metadata(tmp_path / name)
        return f"{web.url}/{name}"

    return put


def load(url, **kwargs):
    return load_from_catalog(url, data_centres=RULES, **kwargs)


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("kind", KINDS)
def test_a_url_is_located_by_its_host_and_read_in_its_pool(client, put, forecast, kind):
    url = put(forecast, kind)
    ds = load(url)
    assert get_pool(ds) == "ecmwf"
    assert ds.encoding["source"] == url
    assert ds["t"].chunks
    xr.testing.assert_allclose(ds.compute(), forecast)


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_opened_is_remembered_until_it_changes(client, put, forecast, web, kind):
    url = put(forecast, kind)
    first = load(url)["t"]
    web.requests.clear()
    assert load(url)["t"].data.name == first.data.name
    again = len(web.requests)
    assert again <= (2 if kind.startswith("netcdf") else 12), web.requests
    put(forecast.assign(t=forecast["t"] * 0).assign_attrs(title="later"), kind)
    second = load(url)["t"]
    assert second.data.name != first.data.name
    assert second.sum().compute() == 0
    with pytest.raises(DataChangedError, match="cannot be read: version"):
        first.sum().compute()


def test_a_version_is_seen_by_the_size_where_a_server_gives_no_more(client, put, forecast, web):
    web.etags = False
    url = put(forecast, "netcdf3")
    first = load(url)["t"]
    put(forecast.assign_attrs(title="a longer title than before, which makes a longer file"), "netcdf3")
    assert load(url)["t"].data.name != first.data.name


def test_a_server_that_sends_no_parts_is_named_with_the_way_out_which_works(client, put, forecast, web):
    web.ranges = False
    # More than is fetched at once whatever is asked for.
    field = np.random.default_rng(0).random((50, 20_000))
    url = put(xr.Dataset({"v": (("time", "x"), field)}), "netcdf4")
    with pytest.raises(EntryError, match=r"sends no parts of a file .* Write simplecache:: before its URL"):
        load(url)
    ds = load(f"simplecache::{url}", engine="h5netcdf")
    assert get_pool(ds) == "ecmwf"
    assert float(ds["v"][-1].mean()) == pytest.approx(field[-1].mean())


@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_copy_of_what_has_been_written_anew_is_not_read(client, put, forecast, cache):
    url = f"{cache}::{put(forecast, 'netcdf4')}"
    first = load(url)
    assert first["t"].sum().compute() == pytest.approx(float(forecast["t"].sum()), rel=1e-5)
    put(forecast.assign(t=forecast["t"] * 0).assign_attrs(title="later"), "netcdf4")
    second = load(url)
    assert second["t"].data.name != first["t"].data.name
    assert second["t"].sum().compute() == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "there is no http://127.0.0.1"),
        (403, r"may not read it: ClientResponseError: 403"),
        (500, r"ClientResponseError: 500"),
    ],
)
@pytest.mark.parametrize("kind", ["netcdf4", "zarr2"])
def test_what_the_server_says_is_what_the_user_hears(client, put, forecast, web, status, message, kind):
    url = put(forecast, kind)
    web.status = status
    with pytest.raises(EntryError, match=message):
        load(url)


def test_a_chunk_that_the_server_refuses_is_an_error_and_never_a_fill_value(client, put, forecast, web):
    ds = load(put(forecast, "zarr2"))
    for number, status in enumerate((403, 500)):
        web.status = status
        with pytest.raises(UnreadableError, match=rf"of a.zarr cannot be read: .*{status}"):
            ds["t"][2 * number].compute()
    web.status = 404
    with pytest.raises(DataChangedError):
        ds["t"].sum().compute()


def test_a_store_that_cannot_be_listed_is_not_taken_for_an_empty_one(client, put, forecast, web):
    url = put(forecast, "zarr3", consolidated=False)
    with pytest.raises(EntryError, match="no consolidated metadata"):
        load(url)


def test_credentials_work_and_are_shown_nowhere(client, put, forecast, web, tmp_path, caplog, capfd):
    url = put(forecast, "netcdf4")
    web.account = f"user:{SECRET}"
    inside = url.replace("http://", f"http://user:{SECRET}@")
    web.header = ("X-Api-Key", SECRET)
    options = {"headers": {"X-Api-Key": SECRET}}
    with caplog.at_level(logging.DEBUG):
        ds = load(inside, storage_options=options)
        xr.testing.assert_allclose(ds.compute(), forecast)
        graph = ds["t"].mean("time").data.dask
        shown = [repr(ds), ds._repr_html_(), str(dict(graph)), repr(graph), str(ds.encoding)]
        shown += [str(key) for key in graph]
        for broken in (inside.replace("a.nc", "b.nc"), inside.replace(SECRET, f"{SECRET}x")):
            with pytest.raises(EntryError) as caught:
                load(broken, storage_options=options)
            shown.append(str(caught.value))
        store = load(
            put(forecast, "zarr2").replace("http://", f"http://user:{SECRET}@"), storage_options=options
        )
        web.status = 403
        with pytest.raises(UnreadableError, match="403") as refused:
            store["t"].sum().compute()
        shown += [str(refused.value), repr(refused.value)]
        web.status = None
        catalogue = tmp_path / "cat.yaml"
        catalogue.write_text(
            f"sources: {{a: {{driver: netcdf, args: {{urlpath: '{inside}', storage_options: {options}}}}}}}"
        )
        cat = open_catalog(catalogue, data_centres=RULES)
        assert cat.a.to_dask().sizes["time"] == 6
        shown += [repr(cat), repr(cat.a), cat.a.yaml(), str(cat.a.describe())]
    output = capfd.readouterr()  # of the workers, too
    assert "UnreadableError" in output.err
    shown += [caplog.text, output.err, output.out]
    for text in shown:
        assert SECRET not in text


def test_many_files_of_a_server(client, put, forecast, web, tmp_path):
    url = put(forecast.isel(time=slice(3)), "netcdf4")
    shutil.move(tmp_path / "a.nc", tmp_path / "b.nc")
    put(forecast.isel(time=slice(3, None)), "netcdf4")
    from intake_pools.entries import entry_of
    from intake_pools.opening import open_entry

    with dask.config.set({"pools.eager-size": 0}):
        ds = open_entry(entry_of([url.replace("a.nc", "b.nc"), url], data_centres=RULES, engine="netcdf"))
        xr.testing.assert_allclose(ds[["t"]].compute(), forecast[["t"]])
        web.listing = True
        ds = load(url.replace("a.nc", "*.nc"))
    xr.testing.assert_allclose(ds[["t"]].compute(), forecast[["t"]])


def test_credentials_in_the_url_of_a_catalogue_or_of_rules_are_in_no_message(web, tmp_path):
    at = web.url.replace("://", f"://me:{SECRET}@")
    for fail in (
        lambda: open_catalog(f"{at}/none.yaml?token={SECRET}"),
        lambda: open_catalog(f"{at}/none*.yaml"),
        lambda: locate("/data/a", data_centres=f"{at}/none.yaml?token={SECRET}"),
    ):
        with pytest.raises(PoolsError, match=r"none\*?\.yaml") as caught:
            fail()
        assert SECRET not in str(caught.value)
    (tmp_path / "rules.yaml").write_text("data_centres: {ecmwf: {prefixes: [/data/]}}")
    evidence = locate("/data/a", data_centres=f"{at}/rules.yaml").evidence
    assert evidence == f"prefix /data/ ({web.url}/rules.yaml, line 1)"
