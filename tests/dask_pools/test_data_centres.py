from pathlib import Path

import dask
import pytest

from dask_pools import data_centres
from dask_pools.errors import DataCentresError

FILE = """\
data_centres:
  ecmwf:
    prefixes: [/data/ecmwf/, "s3://ecmwf-"]
  eumetsat:
    prefixes:
      - /data/eumetsat
      - /data/ecmwf/lent/
      - s3://archive/level-2
      - https://data.eumetsat.int/store
"""


@pytest.fixture(scope="module")
def rules():
    return data_centres.parse(FILE, "data-centres.yaml")


def host(rules, url):
    matching = rules.matches(url)
    return matching[0].data_centre if matching else None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/ecmwf/a.nc", "ecmwf"),
        ("/data/ecmwf", "ecmwf"),
        ("/data//ecmwf/./a.nc", "ecmwf"),
        ("//data/ecmwf/a.nc", "ecmwf"),
        ("file:///data/ecmwf/a.nc", "ecmwf"),
        ("local:///data/ecmwf/a.nc", "ecmwf"),
        ("/data/eumetsat/deep/er/a.nc", "eumetsat"),
        ("s3://ecmwf-open/a.zarr", "ecmwf"),
        ("s3a://ecmwf-open/a.zarr", "ecmwf"),
        ("S3://ecmwf-open/a.zarr", "ecmwf"),
        ("s3://archive/level-2/x", "eumetsat"),
        ("https://data.eumetsat.int/store/a.nc?token=x", "eumetsat"),
        ("https://DATA.eumetsat.int:443/store/a.nc", "eumetsat"),
        ("https://me:secret@data.eumetsat.int/store/a.nc", "eumetsat"),
    ],
)
def test_what_is_below_a_prefix_is_hosted_there(rules, url, expected):
    assert host(rules, url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "/data/ecmwf2/a.nc",
        "/data/ecmwf.bak",
        "/data/eumetsat2",
        "/data",
        "/",
        "s3://ecmwf/a",
        "s3://archive/level-22/x",
        "s3://archive",
        "gs://ecmwf-open/a",
        "http://data.eumetsat.int/store/a.nc",
        "https://data.eumetsat.int.example.org/store/a.nc",
        "https://data.eumetsat.int@example.org/store/a.nc",
        "https://data.eumetsat.int/other",
        "data/ecmwf/a.nc",
        "a.nc",
        "",
    ],
)
def test_what_only_looks_like_a_prefix_is_not_hosted_there(rules, url):
    assert host(rules, url) is None


@pytest.mark.parametrize(
    "url",
    [
        "/data/ecmwf/../other/a.nc",
        "/data/ecmwf/x/../../../etc/passwd",
        "../data/ecmwf/a.nc",
        "file:///data/ecmwf/../a.nc",
        "s3://archive/level-2/../secret",
        "https://data.eumetsat.int/store/../a.nc",
        "https://data.eumetsat.int/store/%2e%2E/a.nc",
    ],
)
def test_dots_do_not_lead_out_of_a_prefix(rules, url):
    assert host(rules, url) is None


def test_dots_do_not_lead_from_bucket_to_bucket(rules):
    assert host(rules, "s3://ecmwf-open/../../archive/level-2/x") == "ecmwf"


def test_the_longest_prefix_wins_and_the_others_follow(rules):
    matching = rules.matches("/data/ecmwf/lent/a.nc")
    assert [rule.data_centre for rule in matching] == ["eumetsat", "ecmwf"]


def test_a_chain_of_urls_lives_where_its_end_is(rules):
    assert host(rules, "simplecache::s3://ecmwf-open/a.nc") == "ecmwf"
    assert host(rules, "zip://a.nc::/data/eumetsat/b.zip") == "eumetsat"
    assert host(rules, "s3://ecmwf-open/a.nc::/elsewhere") is None


def test_a_stem_hosts_every_bucket_that_begins_so_and_a_whole_name_only_its_own():
    rules = data_centres.load(
        {"data_centres": {"stem": {"prefixes": ["s3://a-"]}, "whole": {"prefixes": ["s3://a-b", "s3://c"]}}}
    )
    assert host(rules, "s3://a-x/y") == "stem"
    assert host(rules, "s3://a-bc/y") == "stem"
    assert host(rules, "s3://a-b/y") == "whole"
    assert host(rules, "s3://c-d/y") is None


def test_a_scheme_alone_hosts_all_its_buckets():
    rules = data_centres.load({"data_centres": {"any": {"prefixes": ["s3://"]}}})
    assert host(rules, "s3://whatever/x") == "any"
    assert host(rules, "gs://whatever/x") is None


def test_a_rule_says_where_it_is_written(rules):
    assert str(rules.matches("/data/ecmwf/a.nc")[0]) == "prefix /data/ecmwf/ (data-centres.yaml, line 3)"
    assert str(rules.matches("s3://archive/level-2/x")[0]) == (
        "prefix s3://archive/level-2 (data-centres.yaml, line 8)"
    )


def test_the_nearest_prefix_is_the_one_that_looks_most_alike(rules):
    assert rules.nearest("/data/ecmfw/a.nc").pattern == "/data/ecmwf/"
    assert rules.nearest("https://data.eumetsat.org/store/x").pattern == "https://data.eumetsat.int/store"
    assert rules.nearest("gopher://nothing/alike") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_centres: {a: {prefixs: []}}", r"line 1: unknown key '.*a.prefixs'. Did you mean 'prefixes'"),
        ("data_centers: {}", r"line 1: unknown key 'data_centers'. Did you mean 'data_centres'\?"),
        ("other: 1\ndata_centres: {}", r"line 1: unknown key 'other'. Allowed here: version, data_c"),
        ("{}", r"key 'data_centres' is missing. The file should read: data_centres: "),
        ("", r"f.yaml is empty. It should read: data_centres: "),
        ("- a", r"the file should be a mapping, not \['a'\]"),
        ("data_centres: [a]", r"line 1: data_centres should be a mapping of names to data centres, not"),
        ("data_centres:\n  a:", r"line 2: data_centres.a should be a mapping, not None"),
        ("data_centres:\n  a:\n    prefixes: /a", r"line 3: .*prefixes should be a list of paths"),
        ("data_centres:\n  a:\n    prefixes:\n    - 1", r"line 4: .*prefixes\[0\] should be a path or URL"),
        ("data_centres:\n  a b: {}", r"line 1: data_centres: 'a b' cannot be the name of a pool"),
        ("data_centres: {a: {prefixes: [x/y]}}", r"'x/y' is neither an absolute path nor a URL"),
        ("data_centres: {a: {prefixes: ['']}}", r"a prefix is empty"),
        ("data_centres: {a: {prefixes: ['https://data-']}}", r"no whole host name"),
        ("data_centres: {a: {}\n", r"f.yaml, line 2, column 1: not well-formed YAML: .*expected ',' or '}'"),
        ("data_centres:\n\t- x", r"f.yaml, line 2, column 1: not well-formed YAML: found character '\\t'"),
        ("data_centres:\n  a: {}\n  a: {}", r"line 3: key 'data_centres.a' is there twice, first on line 2"),
        ("data_centres: &x\n  a: *x", r"an alias contains itself"),
        ("? [a]\n: 1", r"line 1: a key must be a plain word"),
        ("data_centres: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_key_and_what_is_allowed(text, message):
    with pytest.raises(DataCentresError, match=message):
        data_centres.parse(text, "f.yaml")


@pytest.mark.parametrize(
    ("one", "other"), [("/a/b", "/a/b/"), ("s3://b", "s3a://b/"), ("/a", "file:///a"), ("s3://x-", "s3://x-")]
)
def test_one_prefix_in_two_data_centres_is_an_error_that_names_both(one, other):
    text = f"data_centres:\n  a:\n    prefixes:\n    - {one}\n  b:\n    prefixes:\n    - {other}\n"
    with pytest.raises(DataCentresError) as caught:
        data_centres.parse(text, "f.yaml")
    assert str(caught.value) == (
        f"f.yaml, line 7: prefix {other!r} of data centre 'b' is also a prefix of 'a': prefix {one} "
        "(f.yaml, line 4). A prefix belongs to one data centre; remove one of the two or make it longer."
    )


def test_a_merge_key_is_understood():
    rules = data_centres.parse(
        "data_centres:\n  a: &a\n    prefixes: [/a]\n  b:\n    <<: *a\n    prefixes: [/b]\n", "f.yaml"
    )
    assert host(rules, "/b/x") == "b"


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(
        DataCentresError, match=r"data-centres file .*/none.yaml cannot be read: No such file"
    ):
        data_centres.read(tmp_path / "none.yaml")


def test_a_file_is_read_from_disk_and_from_a_url(tmp_path: Path):
    path = tmp_path / "data-centres.yaml"
    path.write_text(FILE)
    assert data_centres.read(path).names == ["ecmwf", "eumetsat"]
    assert data_centres.read(f"file://{path}").names == ["ecmwf", "eumetsat"]


def test_the_setting_names_the_default_file(tmp_path: Path):
    path = tmp_path / "data-centres.yaml"
    path.write_text(FILE)
    with dask.config.set({"pools.data-centres": str(path)}):
        known = data_centres.default()
    assert known is not None
    assert known.origin == str(path)
    with dask.config.set({"pools.data-centres": None}):
        assert data_centres.default() is None
