import subprocess
import sys

import dask
import pytest

from dask_pools import get_pool
from dask_pools.errors import DataCentresError, EntryError
from intake_pools import load_from_catalog, open_catalog

ENTRY = "sources: {a: {driver: pooled_netcdf, args: {urlpath: /data/a.nc}}}"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{}", "it has no `driver:`, such as netcdf or zarr"),
        ("3", "it is 3, not a mapping"),
        ("{driver: netcf}", "its driver is 'netcf', which is not supported.* Did you mean 'netcdf'?"),
        ("{driver: [1, 2]}", r"its driver is \[1, 2\], which is not supported"),
        ("{driver: netcdf}", "needs urlpath"),
        ("{driver: netcdf, args: [1]}", r"`args:` is \[1\], not a mapping"),
        ("{driver: netcdf, args: {urlpath: a, 1: 2}}", "an argument is called 1"),
        ("{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: [p]}", "not a mapping of names"),
        ("{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: 1}}", "should be a mapping with"),
        ("{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: {type: x}}}", "is of type 'x'"),
        ("{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: {type: int, default: x}}}", "x"),
        ("{driver: netcdf, args: {urlpath: '{{ p }}'}}", "'p' is undefined"),
        ("{driver: textfiles, args: {urlpath: a, decoder: os.system}}", "is not handed decoder"),
        ("{driver: yaml_file_cat}", "its path is None"),
        ("{driver: yaml_file_cat, args: {path: /none.yaml}}", "The catalogue /none.yaml cannot be read"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_used_says_why_and_the_others_are_there(tmp_path, entry, message):
    (tmp_path / "cat.yaml").write_text(
        f"sources:\n  bad: {entry}\n  a: {{driver: netcdf, args: {{urlpath: /a}}}}\n"
    )
    catalogue = open_catalog(
        tmp_path / "cat.yaml", data_centres={"data_centres": {"x": {"prefixes": ["/a"]}}}
    )
    assert list(catalogue) == ["bad", "a"]
    assert catalogue.a.data_centre == "x"
    assert "a: x" in repr(catalogue)
    with pytest.raises(EntryError, match=message):
        catalogue.bad.data_centre.title()


def test_a_catalogue_lists_its_entries(tmp_path):
    (tmp_path / "cat.yaml").write_text(ENTRY)
    assert list(open_catalog(tmp_path / "cat.yaml")) == ["a"]


def test_rules_given_when_opening_beat_those_that_the_catalogue_names(tmp_path):
    (tmp_path / "own.yaml").write_text("data_centres: {own: {prefixes: [/data]}}")
    (tmp_path / "cat.yaml").write_text("metadata: {data_centres_file: own.yaml}\n" + ENTRY)
    given = {"data_centres": {"given": {"prefixes": ["/data"]}}}
    assert open_catalog(tmp_path / "cat.yaml", data_centres=given).a.data_centre == "given"
    assert open_catalog(tmp_path / "cat.yaml").a.data_centre == "own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources:\n  a: [", r"Catalogue .*cat.yaml, line 3, column 1: not well-formed YAML: .*expected"),
        ("sources:\n\ta: 1", r"Catalogue .*cat.yaml, line 2, column 1: not well-formed YAML: "),
        ("sources: {a: {driver: csv}, a: {driver: csv}}", r"line 1, column 29: .*the key 'a' is there twice"),
        ("", r"cat.yaml is not an Intake catalogue: there is nothing in it"),
        ("- a", r"cat.yaml is not an Intake catalogue: it should be a mapping with `sources:`, not a list"),
        ("a: 1", r"cat.yaml is not an Intake catalogue: `sources:` is missing"),
        ("sources: [a]", r"cat.yaml is not an Intake catalogue: `sources:` is of type list"),
        ("sources: {a: 2026-99-99}", r"Catalogue .*cat.yaml cannot be read: month must be in 1..12"),
        ("version: 2\nentries: []", r"cat.yaml is not an Intake catalogue: `entries:` is of type list"),
    ],
)
def test_a_malformed_catalogue_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "cat.yaml").write_text(text)
    with pytest.raises(EntryError, match=message):
        open_catalog(tmp_path / "cat.yaml")


def test_a_data_centres_file_that_is_missing_is_named_when_an_entry_needs_it(tmp_path):
    (tmp_path / "cat.yaml").write_text("metadata: {data_centres_file: none.yaml}\n" + ENTRY)
    with pytest.raises(DataCentresError, match=rf"The data-centres file {tmp_path}/none.yaml cannot be read"):
        open_catalog(tmp_path / "cat.yaml").a.to_dask()


@pytest.mark.usefixtures("lazily")
@pytest.mark.parametrize("kind", ["netcdf4", "zarr3"])
def test_load_from_catalog_opens_a_path_by_the_rules_alone(client, tmp_path, forecast, write, kind):
    rules = tmp_path / "data-centres.yaml"
    rules.write_text(f"data_centres: {{eumetsat: {{prefixes: [{tmp_path}/data]}}}}")
    (tmp_path / "data").mkdir()
    write(forecast, tmp_path / "data" / "anything", kind)
    with dask.config.set({"pools.data-centres": str(rules)}):
        ds = load_from_catalog(tmp_path / "data" / "anything")
    assert get_pool(ds) == "eumetsat"
    assert float(ds["t"].max()) == pytest.approx(float(forecast["t"].max()))
    assert get_pool(load_from_catalog(tmp_path / "data" / "anything", data_centres=rules)) == "eumetsat"


def test_importing_the_package_loads_none_of_what_only_catalogues_need():
    code = (
        "import sys, intake_pools; "
        "print([name for name in ('intake', 'pydantic', 'zarr', 'fsspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
