"""Entries that are in more than one place, or must stay in theirs."""

import pickle
import warnings

import dask
import numpy as np
import pytest
import xarray as xr

from dask_pools import explain, get_pool, pins, pool
from dask_pools.errors import EntryError, MixedPoolsError, ResidencyError
from intake_pools import forget, load_from_catalog, opening, remembered
from intake_pools.entries import entry_of
from intake_pools.replicas import ReplicaWarning, in_order

pytestmark = pytest.mark.usefixtures("lazily")


@pytest.fixture(autouse=True)
def nothing_remembered():
    remembered.forget()


@pytest.fixture
def rules(ecmwf, eumetsat):
    return {
        "data_centres": {"ecmwf": {"prefixes": [f"{ecmwf}/"]}, "eumetsat": {"prefixes": [f"{eumetsat}/"]}}
    }


@pytest.fixture
def halves(write, ecmwf, eumetsat, named, forecast):
    """The first three days at one site, the last three at the other."""
    forecast = forecast.drop_vars(["crs", "issued"])
    write(forecast.isel(time=slice(3)), ecmwf / named)
    write(forecast.isel(time=slice(3, 6)), eumetsat / named)
    return [str(ecmwf / named), str(eumetsat / named)], forecast


@pytest.mark.parametrize("options", [{}, {"combine": "nested", "concat_dim": "time"}])
def test_a_list_that_spans_data_centres_is_one_dataset_and_each_part_is_read_in_its_own(
    client, halves, rules, options
):
    urls, forecast = halves
    ds = load_from_catalog(urls, data_centres=rules, xarray_kwargs=options)
    xr.testing.assert_allclose(ds.compute(), forecast)
    with pytest.raises(MixedPoolsError):
        get_pool(ds)
    layers = {pins.pool_of_name(name) for name in ds["t"].data.dask.layers} - {None}
    assert layers == {"ecmwf", "eumetsat"}
    assert float(ds["t"].mean()) == pytest.approx(float(forecast["t"].mean()))


def test_parts_with_options_of_their_own(client, halves, rules):
    (first, second), forecast = halves
    entry = entry_of(
        parts=[{"urlpath": first, "version": "1"}, {"urlpath": second, "data_centre": "eumetsat"}],
        data_centres=rules,
    )
    xr.testing.assert_allclose(opening.open_entry(entry).compute(), forecast)


def test_parts_that_do_not_fit_are_an_error_with_their_places(client, write, halves, rules, ecmwf, named):
    urls, forecast = halves
    write(forecast, ecmwf / named)
    with pytest.raises(
        EntryError, match=r"The parts of .* in ecmwf, eumetsat do not fit: its 2 files cannot"
    ):
        load_from_catalog(urls, data_centres=rules)


@pytest.fixture
def copies(write, ecmwf, eumetsat, named, forecast):
    """The same data at both sites, as NetCDF and as zarr."""
    write(forecast, ecmwf / named)
    write(forecast, eumetsat / f"{named}.zarr", "zarr2")
    return entry_of(
        named,
        name="forecast",
        data_centre="ecmwf",
        replicas=[{"urlpath": f"{named}.zarr", "data_centre": "eumetsat"}],
    )


def test_of_replicas_the_first_is_opened_and_another_on_request(client, copies, forecast):
    ds = opening.open_entry(copies)
    assert get_pool(ds) == "ecmwf"
    other = opening.open_entry(copies, data_centre="eumetsat")
    assert get_pool(other) == "eumetsat"
    xr.testing.assert_allclose(ds.compute(), forecast)
    xr.testing.assert_allclose(other.compute(), forecast)
    with pytest.raises(EntryError, match=r"in data centre .nowhere.. It is in: ecmwf, eumetsat"):
        opening.open_entry(copies, data_centre="nowhere")


def test_a_replica_where_other_data_is_open_is_nearer(client, write, copies, forecast, eumetsat, named):
    write(forecast, eumetsat / f"{named}-other")
    load_from_catalog(f"{named}-other", data_centre="eumetsat")
    assert get_pool(opening.open_entry(copies)) == "eumetsat"


def test_the_configured_preference_decides_where_nothing_else_does(client, copies):
    with dask.config.set({"pools.prefer": ["eumetsat", "ecmwf"]}):
        assert get_pool(opening.open_entry(copies)) == "eumetsat"


def test_a_pool_with_workers_comes_before_use_and_preference(copies):
    first, second = copies.replicas
    assert in_order([first, second], {"eumetsat"}, {"ecmwf"}, ["ecmwf"]) == [second, first]
    assert in_order([first, second], {"ecmwf", "eumetsat"}, {"eumetsat"}, ["ecmwf"]) == [second, first]
    assert in_order([first, second], set(), set(), []) == [first, second]


def test_a_replica_that_fails_falls_to_the_next_with_a_warning(client, copies, ecmwf, named, forecast):
    (ecmwf / named).unlink()
    with pytest.warns(ReplicaWarning, match="there is no .* The next replica is tried"):
        ds = opening.open_entry(copies)
    assert get_pool(ds) == "eumetsat"
    xr.testing.assert_allclose(ds.compute(), forecast)
    forget()  # else what is open at eumetsat decides
    with pytest.warns(ReplicaWarning, match="there is no .* The next replica is tried"):
        tree = opening.open_tree(copies)
    assert get_pool(tree["t"]) == "eumetsat"


def test_if_every_replica_fails_all_reasons_are_given(client, named):
    entry = entry_of(
        named, name="forecast", data_centre="ecmwf", replicas=[{"urlpath": named, "data_centre": "eumetsat"}]
    )
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(EntryError, match=r"None of the 2 replicas .*\(1\) .*ecmwf.*\(2\) .*eumetsat"),
    ):
        opening.open_entry(entry)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (lambda ds: ds.isel(time=slice(5)), "has the shape"),
        (lambda ds: ds.assign(t=ds["t"].astype("f8")), "t has the type float"),
        (lambda ds: ds.assign_coords(lat=ds["lat"] + 1), "coordinate lat has other values"),
        (lambda ds: ds.assign_coords(height=3.0), "coordinate height has other values"),
        (lambda ds: ds.drop_vars("packed"), "packed is in one only"),
    ],
    ids=["shape", "dtype", "index", "coordinate", "variable"],
)
def test_replicas_that_differ_are_an_error(client, write, copies, forecast, ecmwf, named, changed, complaint):
    write(changed(forecast), ecmwf / named)
    with pytest.raises(EntryError, match=f"The replicas of forecast differ: .*{complaint}"):
        opening.open_entry(copies)
    with dask.config.set({"pools.compare-replicas": False}):
        opening.open_entry(copies)


@pytest.mark.parametrize("files", ["one", "several", "with gaps"])
def test_what_stays_says_so_in_its_names_and_sends_no_small_data_along(
    client, write, ecmwf, forecast, named, files
):
    small = forecast[["t"]]
    paths = {
        "one": [small],
        "several": [small.isel(time=[0, 1]), small.isel(time=[2, 3])],
        "with gaps": [small.isel(time=[0], lat=[0, 1]), small.isel(time=[1], lat=[1, 2])],
    }[files]
    for number, part in enumerate(paths):
        write(part, ecmwf / f"{named}-{number}", "netcdf3")
    with dask.config.set({"pools.eager-size": "1 MiB"}):
        options = {"join": "outer"} if files == "with gaps" else {}
        ds = load_from_catalog(f"{named}-*", data_centre="ecmwf", residency="stay", xarray_kwargs=options)
    assert pins.stays(ds["t"].data.name)
    assert get_pool(ds) == "ecmwf"
    assert np.isfinite(ds["t"].mean().compute())
    assert small["t"].values[:1, :1, :3].tobytes() not in pickle.dumps(ds)
    free = load_from_catalog(f"{named}-*", data_centre="ecmwf", xarray_kwargs=options)
    assert not pins.stays(free["t"].data.name)


def test_raw_chunks_that_stay_are_refused_elsewhere_and_reduced_ones_are_not(
    client, write, ecmwf, eumetsat, forecast, named
):
    write(forecast, ecmwf / named)
    write(forecast, eumetsat / named)
    kept = load_from_catalog(named, data_centre="ecmwf", residency="stay")["t"]
    free = load_from_catalog(named, data_centre="eumetsat")["t"]
    # What it is combined with comes to it.
    assert float(abs(free - kept).max()) == 0
    mean = kept.mean("time")
    with pool("eumetsat"):
        astray, reduced = free - kept, mean * 2
    assert float(reduced.mean()) == pytest.approx(2 * float(forecast["t"].mean()))
    with pytest.raises(ResidencyError, match="'t' must stay in pool 'ecmwf'"):
        astray.compute()


def test_raw_values_that_stay_do_not_come_to_the_client_either(client, write, ecmwf, forecast, named):
    write(forecast, ecmwf / named)
    ds = load_from_catalog(named, data_centre="ecmwf", residency="stay")
    free = load_from_catalog(named, data_centre="ecmwf", version="2")
    kept = ds["t"].drop_vars("area")
    persisted = ds.persist().drop_vars("area")
    refused = "'t' must stay in pool 'ecmwf', but its values were asked for by the client"
    for ask in (
        kept.compute,
        ds.load,
        persisted["t"].compute,
        lambda: kept.values,
        lambda: dask.compute(free["t"], kept.data),
        lambda: kept.chunk(time=2).compute(),
        lambda: explain(kept),
    ):
        with pytest.raises(ResidencyError, match=refused):
            ask()
    # Coordinates and what is made of it may come, and it may itself where it is.
    np.testing.assert_allclose(ds["area"].compute(), forecast["area"])
    assert float(persisted["t"].mean()) == pytest.approx(float(forecast["t"].mean()))
    np.testing.assert_allclose(kept.isel(time=0).compute(), forecast["t"][0])

    def there():
        return float(load_from_catalog(named, data_centre="ecmwf", residency="stay")["t"].load().mean())

    with pool("ecmwf"):
        assert dask.delayed(there)().compute() == pytest.approx(float(forecast["t"].mean()))
    with dask.config.set({"pools.here": "eumetsat"}), pytest.raises(ResidencyError, match=r"'pools\.here'"):
        kept.compute()
    with dask.config.set({"pools.here": "ecmwf"}):
        np.testing.assert_allclose(kept.compute(), forecast["t"])


def test_the_data_centres_file_may_say_that_its_data_stays(client, write, ecmwf, forecast, named, rules):
    write(forecast, ecmwf / named)
    rules["data_centres"]["ecmwf"]["residency"] = "stay"
    assert pins.stays(load_from_catalog(ecmwf / named, data_centres=rules)["t"].data.name)
    freed = load_from_catalog(ecmwf / named, data_centres=rules, residency="free")
    assert not pins.stays(freed["t"].data.name)


@pytest.mark.parametrize("url", ["{link}/{name}", "{link}/{name}*", "file://{link}/{name}", "{file}"])
def test_a_link_into_what_another_data_centre_hosts_is_refused_unless_somebody_says_so(
    client, write, ecmwf, eumetsat, forecast, named, rules, tmp_path, url
):
    write(forecast, eumetsat / f"{named}.nc")
    link, file = ecmwf / f"{named}-link", ecmwf / f"{named}.nc"
    link.symlink_to(eumetsat)
    file.symlink_to(eumetsat / file.name)
    url = url.format(link=link, name=f"{named}.nc", file=file)
    with pytest.raises(
        EntryError, match=r"is a link out of prefix .* 'eumetsat' hosts by .*data_centre='ecmw"
    ):
        load_from_catalog(url, data_centres=rules)
    assert get_pool(load_from_catalog(url, data_centre="ecmwf", data_centres=rules)) == "ecmwf"
    assert get_pool(
        load_from_catalog(url, data_centres={"data_centres": {"ecmwf": {"globs": [f"{ecmwf}*/"]}}})
    )


def test_a_data_centres_own_links_are_followed(client, write, ecmwf, forecast, named, rules, tmp_path):
    """To a disk that no rule names, and of the directory that a rule names itself."""
    write(forecast, tmp_path / f"{named}.nc")
    (ecmwf / named).symlink_to(tmp_path)
    assert get_pool(load_from_catalog(ecmwf / named / f"{named}.nc", data_centres=rules)) == "ecmwf"
    rules["data_centres"]["eumetsat"]["prefixes"].append(f"{ecmwf}/elsewhere-{named}/")
    rules["data_centres"]["ecmwf"]["prefixes"].append(str(tmp_path / "data"))
    (elsewhere := ecmwf / f"elsewhere-{named}").mkdir()
    (tmp_path / "data").symlink_to(elsewhere)
    write(forecast, elsewhere / f"{named}.nc")
    assert get_pool(load_from_catalog(tmp_path / "data" / f"{named}.nc", data_centres=rules)) == "ecmwf"
