"""One entry in both versions of Intake, catalogues for several machines, and URLs in chains."""

from pathlib import Path

import intake
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner
from intake.readers import search
from intake.readers.datatypes import HDF5, Zarr
from intake.readers.readers import XArrayDatasetReader

from dask_pools import get_pool
from dask_pools.errors import EntryError
from intake_pools import open_catalog
from intake_pools.cli import catalog
from intake_pools.drivers import PooledNetCDFSource, PooledZarrSource
from intake_pools.readers import PooledReader

VERSION1 = """\
sources:
  data: {{driver: {driver}, args: {{urlpath: '{{{{ CATALOG_DIR }}}}/{name}', chunks: {{time: 3}}}}}}
"""
MACHINES = VERSION1.replace("CATALOG_DIR", "DATA_PATH")
VERSION2 = """\
version: 2
aliases: {{}}
metadata: {{}}
user_parameters: {{}}
data:
  d: {{datatype: 'intake.readers.datatypes:{datatype}', metadata: {{}}, user_parameters: {{}},
      kwargs: {{url: '{{CATALOG_DIR}}/{name}'}}}}
entries:
  data: {{reader: 'intake.readers.readers:XArrayDatasetReader', metadata: {{}}, user_parameters: {{}},
         output_instance: 'xarray:Dataset', kwargs: {{args: ['{{data(d)}}'], chunks: {{time: 3}}}}}}
"""


def pins(dataset: xr.Dataset) -> dict[str, tuple[str, list[str]]]:
    """Pool and names of tasks of every variable that is read in a pool."""
    return {
        str(name): (get_pool(array), sorted(map(str, array.__dask_graph__())))
        for name, array in dataset.variables.items()
        if array.chunks
    }


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", ["netcdf4", "zarr3"])
def test_one_entry_is_the_same_in_both_versions_and_in_python(client, ecmwf, forecast, named, write, kind):
    directory = ecmwf / f"generations-{named}"
    directory.mkdir()
    write(forecast, directory / "data", kind)
    netcdf = kind == "netcdf4"
    names = {
        "name": "data",
        "driver": "netcdf" if netcdf else "zarr",
        "datatype": "HDF5" if netcdf else "Zarr",
    }
    (directory / "one.yaml").write_text(VERSION1.format(**names))
    (directory / "two.yaml").write_text(VERSION2.format(**names))
    rules = {"data_centres": {"ecmwf": {"prefixes": [str(directory)]}}}
    url = str(directory / "data")
    made = intake.entry.Catalog()
    made["data"] = XArrayDatasetReader((HDF5 if netcdf else Zarr)(url=url), chunks={"time": 3})
    made.to_yaml_file(str(directory / "made.yaml"))
    source = PooledNetCDFSource if netcdf else PooledZarrSource
    opened = [
        open_catalog(directory / "one.yaml", data_centres=rules)["data"].to_dask(),
        open_catalog(directory / "two.yaml", data_centres=rules)["data"].to_dask(),
        open_catalog(directory / "made.yaml", data_centres=rules)["data"].to_dask(),
        source(url, chunks={"time": 3}, data_centre="ecmwf").to_dask(),
        PooledReader((HDF5 if netcdf else Zarr)(url=url), chunks={"time": 3}, data_centres=rules).read(),
    ]
    first = opened[0]
    assert {pool for pool, _ in pins(first).values()} == {"ecmwf"}
    for other in opened[1:]:
        assert pins(other) == pins(first)
        xr.testing.assert_identical(other, first)
    xr.testing.assert_allclose(first.compute(), forecast)


def test_a_reader_of_version_2_opens_all_groups(client, ecmwf, forecast, named):
    tree = xr.DataTree.from_dict({"/": forecast[["lat"]], "/ocean": forecast[["t"]]})
    tree.to_netcdf(ecmwf / named, engine="netcdf4")
    (ecmwf / f"{named}.yaml").write_text(
        VERSION2.format(name=named, datatype="HDF5").replace("{time: 3}", "{}")
    )
    rules = {"data_centres": {"ecmwf": {"prefixes": [str(ecmwf)]}}}
    ours = open_catalog(ecmwf / f"{named}.yaml", data_centres=rules)["data"].to_datatree()
    assert set(ours.groups) == {"/", "/ocean"}
    xr.testing.assert_allclose(ours.compute(), tree)


@pytest.mark.parametrize("version", [1, 2])
def test_a_large_catalogue_shows_its_first_entries(tmp_path, rules, version):
    import yaml

    if version == 1:
        entry = {"driver": "zarr", "args": {"urlpath": "/data/a"}}
        made = {"sources": {f"a{number:03}": entry for number in range(70)}}
    else:
        data = {"datatype": "intake.readers.datatypes:Zarr", "kwargs": {"url": "/data/a"}}
        entry = {"reader": "intake.readers.readers:XArrayDatasetReader", "kwargs": {"args": ["{data(d)}"]}}
        made = {
            "version": 2,
            "data": {"d": data},
            "entries": {f"a{number:03}": entry for number in range(70)},
        }
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(made))
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    lines = repr(catalogue).splitlines()
    assert lines[0].endswith(": 70 entries>")
    assert lines[1] == "  a000: ecmwf"
    assert lines[60:] == ["  a059: ecmwf", "  and 10 more"]
    assert catalogue._repr_html_().count("<tr>") == 62
    assert len(list(catalogue.summary())) == 70


@pytest.mark.usefixtures("lazily")
def test_a_pipeline_of_version_2_starts_in_the_pool(client, ecmwf, forecast, named, write):
    write(forecast, ecmwf / named)
    catalogue = intake.entry.Catalog()
    reader = XArrayDatasetReader(HDF5(url=str(ecmwf / named)), chunks={})
    catalogue["mean"] = reader.t.mean("time")
    catalogue["first"] = reader.isel(time=0)["t"]
    path = ecmwf / f"{named}.yaml"
    catalogue.to_yaml_file(str(path))
    ours = open_catalog(path, data_centres={"data_centres": {"eumetsat": {"prefixes": [str(ecmwf)]}}})
    made = ours.mean.read()
    assert get_pool(made) == "eumetsat"
    xr.testing.assert_allclose(made.compute(), forecast["t"].mean("time"))
    xr.testing.assert_allclose(ours["first"].read().compute(), forecast["t"].isel(time=0))
    assert sorted(ours) == ["first", "mean"]
    assert list(ours.search("isel")) == ["first"]
    assert list(ours.search(search.Any(search.Text("isel"), search.Text("lat")))) == ["first"]
    assert sorted(ours.search(search.And(search.Importable(), search.Text("Method")))) == ["first", "mean"]


def test_a_parameter_of_version_2_is_filled_in_and_checked(tmp_path):
    text = VERSION2.format(name="{year}.nc", datatype="HDF5").replace(
        "user_parameters: {}\ndata",
        "user_parameters:\n  year: {cls: 'intake.readers.user_parameters:OptionsUserParameter', dtype: int,\n"
        "         default: 2025, options: [2025, 2026], description: ''}\ndata",
    )
    (tmp_path / "two.yaml").write_text(text)
    catalogue = open_catalog(
        tmp_path / "two.yaml", data_centres={"data_centres": {"x": {"prefixes": [str(tmp_path)]}}}
    )
    assert catalogue.plain_entry("data").urls == (f"{tmp_path}/2025.nc",)
    assert catalogue(year=2026).plain_entry("data").urls == (f"{tmp_path}/2026.nc",)
    with pytest.raises(EntryError, match="its parameter 'year' cannot be 1999"):
        catalogue(year=1999)["data"]


RULES = """\
data_centres:
  ecmwf:
    prefixes: [/data/, "s3://ecmwf-"]
    parameters: {DATA_PATH: /perm/era, OTHER: x}
  eumetsat:
    parameters:
      DATA_PATH: s3://archive/era
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.yaml").write_text(RULES)
    return str(tmp_path / "rules.yaml")


def copies(entry):
    return [(one.urls, one.location.data_centre) for one in entry.replicas or (entry,)]


@pytest.mark.parametrize("version", [1, 2])
def test_a_catalogue_for_several_machines_has_a_replica_wherever_its_parameter_has_a_value(
    tmp_path, rules, version
):
    if version == 1:
        text = MACHINES.format(driver="zarr", name="era5.zarr")
    else:
        text = VERSION2.replace("CATALOG_DIR", "DATA_PATH").format(datatype="Zarr", name="era5.zarr")
    (tmp_path / "cat.yaml").write_text(text)
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    entry = catalogue.plain_entry("data")
    assert copies(entry) == [
        (("/perm/era/era5.zarr",), "ecmwf"),
        (("s3://archive/era/era5.zarr",), "eumetsat"),
    ]
    assert [one.location.evidence for one in entry.replicas] == [
        f"stated by parameter DATA_PATH ({rules}, line 4)",
        f"stated by parameter DATA_PATH ({rules}, line 7)",
    ]
    assert "data: ecmwf, eumetsat" in repr(catalogue)


def test_a_parameters_value_of_the_users_own_leaves_one_copy_and_the_rules_to_decide(tmp_path, rules):
    text = MACHINES.format(driver="zarr", name="a.zarr")
    (tmp_path / "cat.yaml").write_text(text)
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    assert copies(catalogue.data(DATA_PATH="/data/mine")._resolved()) == [(("/data/mine/a.zarr",), "ecmwf")]


def test_parameters_that_no_data_centre_has_all_of_are_named(tmp_path, rules):
    (tmp_path / "cat.yaml").write_text(
        "sources:\n"
        "  both: {driver: zarr, args: {urlpath: '{{ DATA_PATH }}/{{ OTHER }}'}}\n"
        "  none: {driver: zarr, args: {urlpath: '{{ NOWHERE }}/x'}}\n"
    )
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    assert copies(catalogue.plain_entry("both")) == [(("/perm/era/x",), "ecmwf")]
    with pytest.raises(EntryError, match=r"'NOWHERE' is undefined.*`parameters:` of the data-centres file"):
        catalogue.plain_entry("none")


@pytest.mark.parametrize(
    ("url", "data_centre"),
    [
        ("reference::/data/refs/era5.json", "ecmwf"),
        ("simplecache::s3://ecmwf-open/a.nc", "ecmwf"),
        ("zip://a.nc::simplecache::s3://ecmwf-open/a.zip", "ecmwf"),
        ("['/data/a*.nc', /data/b.nc]", "ecmwf"),
        ("[/data/a.nc]", "ecmwf"),
    ],
)
def test_chains_and_lists_are_located_by_what_is_at_their_end(tmp_path, rules, url, data_centre):
    quoted = url if url.startswith("[") else f"'{url}'"
    (tmp_path / "cat.yaml").write_text(f"sources: {{a: {{driver: netcdf, args: {{urlpath: {quoted}}}}}}}")
    assert open_catalog(tmp_path / "cat.yaml", data_centres=rules).a.data_centre == data_centre


def test_a_catalogue_of_version_2_can_be_nested_in_one_of_version_1_and_has_its_rules(tmp_path):
    nested = {
        "version": 2,
        "data": {"d": {"datatype": "intake.readers.datatypes:HDF5", "kwargs": {"url": "/data/a.nc"}}},
        "entries": {
            "a": {"reader": "intake.readers.readers:XArrayDatasetReader", "kwargs": {"args": ["{data(d)}"]}}
        },
    }
    (tmp_path / "in.yaml").write_text(yaml.safe_dump(nested))
    (tmp_path / "own.yaml").write_text("data_centres: {own: {prefixes: [/data/]}}")
    (tmp_path / "cat.yaml").write_text(
        "metadata: {data_centres_file: own.yaml}\nsources:\n"
        "  two: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/in.yaml'}}\n"
        "  one: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/one.yaml'}}\n"
    )
    (tmp_path / "one.yaml").write_text("sources: {b: {driver: zarr, args: {urlpath: /data/b}}}")
    catalogue = open_catalog(tmp_path / "cat.yaml")
    assert [place for _, place, _ in catalogue.summary()] == ["catalogue", "catalogue"]
    assert list(catalogue.two) == ["a"]
    assert catalogue["two"]["a"].data_centre == catalogue.two.search("a")["a"].data_centre == "own"
    assert catalogue.one.b.data_centre == "own"
    assert set(catalogue.walk()) == {"two", "one", "one.b"}
    assert set(catalogue.search("b")) >= {"one.b"}
    assert "own" in repr(catalogue.two)
    assert "own" in catalogue.two._repr_html_()
    listed = CliRunner().invoke(catalog, ["list", str(tmp_path / "cat.yaml")])
    assert listed.output.splitlines() == ["two.a\town", "one.b\town"]


def test_a_list_that_lives_in_two_data_centres_has_parts(tmp_path, rules):
    Path(rules).write_text(RULES + "    prefixes: [/sat/]\n")
    (tmp_path / "cat.yaml").write_text(
        "sources: {a: {driver: netcdf, args: {urlpath: [/data/a.nc, /sat/b.nc]}}}"
    )
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    assert [part.location.data_centre for part in catalogue.plain_entry("a").parts] == ["ecmwf", "eumetsat"]
    assert "a: ecmwf, eumetsat" in repr(catalogue)


def test_what_stock_intake_rejects_but_yaml_allows_still_gives_its_other_entries(tmp_path, rules):
    (tmp_path / "cat.yaml").write_text(
        "plugins: {source: [{module: not_installed_anywhere}]}\n"
        "common: &common\n  driver: netcdf\n  metadata: {tags: [ocean]}\n"
        "sources:\n"
        "  merged:\n    <<: *common\n    args: {urlpath: /data/a.nc}\n"
        "  unknown: {driver: a_driver_of_nobodys, args: {urlpath: /data/b.nc}}\n"
        "  misplaced:\n"
        "    driver: zarr\n"
        "    args: {urlpath: /data/c.zarr, metadata: {owner: me}, chunks: {use_cftime: true, time: 5}}\n"
        "  auto: {driver: zarr, args: {urlpath: /data/d.zarr, chunks: auto, consolidated: true}}\n"
    )
    with pytest.raises(Exception, match=r"found|module|Duplicate|construct"):
        intake.open_catalog(str(tmp_path / "cat.yaml"))
    catalogue = open_catalog(tmp_path / "cat.yaml", data_centres=rules)
    assert list(catalogue) == ["merged", "unknown", "misplaced", "auto"]
    assert catalogue.merged.data_centre == "ecmwf"
    assert catalogue.merged.metadata == {"tags": ["ocean"]}
    misplaced = catalogue.misplaced
    assert (misplaced.chunks, misplaced.xarray_kwargs) == ({"time": 5}, {"use_cftime": True})
    assert misplaced.metadata == {"owner": "me"}
    assert catalogue.auto.chunks == "auto"
    assert catalogue.auto.xarray_kwargs == {"consolidated": True}
    with pytest.raises(EntryError, match=r"unknown of .* its driver is 'a_driver_of_nobodys'"):
        catalogue.unknown.to_dask()


def test_several_files_make_one_catalogue(tmp_path, rules):
    for name in ("one", "two"):
        (tmp_path / f"cat-{name}.yaml").write_text(
            f"sources: {{{name}: {{driver: zarr, args: {{urlpath: /data/{name}}}}}}}"
        )
    for given in (f"{tmp_path}/cat-*.yaml", [tmp_path / "cat-one.yaml", tmp_path / "cat-two.yaml"]):
        catalogue = open_catalog(given, data_centres=rules)
        assert sorted(catalogue) == ["one", "two"]
        assert catalogue.two.data_centre == "ecmwf"
        assert "one: ecmwf" in repr(catalogue)
    with pytest.raises(EntryError, match="have an entry 'one'"):
        open_catalog([tmp_path / "cat-one.yaml"] * 2)
    with pytest.raises(EntryError, match=r"Nothing matches .*none\*.yaml"):
        open_catalog(f"{tmp_path}/none*.yaml")


@pytest.mark.parametrize(
    "path", ["['{{ CATALOG_DIR }}/in-a.yaml', '{{ CATALOG_DIR }}/in-b.yaml']", "{{ CATALOG_DIR }}/in-*.yaml"]
)
def test_several_files_nested_as_one_have_the_rules_of_the_outer_one(tmp_path, rules, path):
    for name in ("a", "b"):
        (tmp_path / f"in-{name}.yaml").write_text(
            f"sources: {{{name}: {{driver: zarr, args: {{urlpath: /data/{name}}}}}}}"
        )
    path = path if path.startswith("[") else f"'{path}'"
    (tmp_path / "cat.yaml").write_text(
        f"metadata: {{data_centres_file: {rules}}}\n"
        f"sources: {{both: {{driver: yaml_files_cat, args: {{path: {path}}}}}}}"
    )
    catalogue = open_catalog(tmp_path / "cat.yaml")
    assert sorted(catalogue.both) == ["a", "b"]
    assert catalogue.both.b.data_centre == "ecmwf"
    assert set(catalogue.walk()) == {"both", "both.a", "both.b"}
    assert "a: ecmwf" in repr(catalogue.both)
    listed = CliRunner().invoke(catalog, ["list", str(tmp_path / "cat.yaml")])
    assert listed.output.splitlines() == ["both.a\tecmwf", "both.b\tecmwf"]


def test_rules_of_the_setting_and_of_the_catalogue_merge(tmp_path):
    import dask

    (tmp_path / "own.yaml").write_text("data_centres: {own: {prefixes: [/own]}}")
    (tmp_path / "cat.yaml").write_text(
        "metadata: {data_centres_file: own.yaml}\nsources:\n"
        "  a: {driver: zarr, args: {urlpath: /own/a}}\n  b: {driver: zarr, args: {urlpath: /set/b}}\n"
    )
    with dask.config.set({"pools.data-centres": {"data_centres": {"set": {"prefixes": ["/set"]}}}}):
        catalogue = open_catalog(tmp_path / "cat.yaml")
        assert (catalogue.a.data_centre, catalogue.b.data_centre) == ("own", "set")


def test_a_catalogue_survives_pickling_and_reads_its_file_again_when_it_has_changed(tmp_path, rules):
    import pickle

    path = tmp_path / "cat.yaml"
    path.write_text("sources: {a: {driver: zarr, args: {urlpath: /data/a}}}")
    catalogue = open_catalog(path, data_centres=rules)
    assert pickle.loads(pickle.dumps(catalogue)).a.data_centre == "ecmwf"
    assert pickle.loads(pickle.dumps(catalogue.a)).urlpath == "/data/a"
    path.write_text("sources: {b: {driver: zarr, args: {urlpath: /data/b}}}")
    catalogue.force_reload()
    assert list(catalogue) == ["b"]


@pytest.mark.usefixtures("lazily")
def test_a_reader_of_ours_survives_stock_intakes_own_files(client, ecmwf, forecast, named, write, tmp_path):
    write(forecast, ecmwf / named)
    catalogue = intake.entry.Catalog()
    catalogue["a"] = PooledReader(HDF5(url=named), chunks={}, data_centre="ecmwf")
    catalogue["b"] = catalogue["a"].isel(time=0)
    catalogue.to_yaml_file(str(tmp_path / "two.yaml"))
    for opened in (intake.open_catalog(str(tmp_path / "two.yaml")), open_catalog(tmp_path / "two.yaml")):
        assert opened["a"].data_centre == "ecmwf"
        assert get_pool(opened["a"].to_dask()) == "ecmwf"
        assert opened["b"].read().sizes == {"lat": 4, "lon": 5}


def test_secrets_in_an_entry_of_version_2_are_in_no_repr_and_are_used(tmp_path):
    options = "{key: hush-hush, secret: hush-hush, client_kwargs: {aws_session_token: hush-hush}}"
    text = VERSION2.format(name="a", datatype="Zarr").replace("{CATALOG_DIR}", "s3://b")
    (tmp_path / "two.yaml").write_text(text.replace("b/a'", f"b/a', storage_options: {options}"))
    rules = {"data_centres": {"ecmwf": {"prefixes": ["s3://b"]}}}
    catalogue = open_catalog(tmp_path / "two.yaml", data_centres=rules)
    reader = catalogue["data"]
    for shown in (catalogue, reader, reader.data, reader.kwargs, reader.to_entry(), reader._resolved()):
        assert "hush" not in repr(shown)
    assert reader._resolved().storage_options["client_kwargs"] == {"aws_session_token": "hush-hush"}
    again = intake.entry.Catalog()
    again["data"] = reader
    again.to_yaml_file(str(tmp_path / "again.yaml"))
    assert open_catalog(tmp_path / "again.yaml", data_centres=rules)["data"]._resolved() == reader._resolved()
