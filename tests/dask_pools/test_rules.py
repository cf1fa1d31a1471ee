"""Which rule decides: kinds of rules beside prefixes, several files, the environment."""

import dask
import pytest

from dask_pools import data_centres
from dask_pools.errors import DataCentresError

FILE = """\
data_centres:
  a:
    prefixes: [/data/a/, "s3://both"]
    globs: ["/scratch/*/a/", "s3://site-??-a/", "/archive/**/level[12]/"]
    hosts: [data.a.org, "*.a.int"]
    regions: [eu-west-2, "gs:europe-west1"]
  b:
    prefixes: [/data/a/lent/]
    globs: ["/data/a/x*/"]
    hosts: [special.a.int]
    endpoints: ["https://s3.b.org", "http://127.0.0.1:9000/"]
    parameters: {DATA_PATH: /data/b}
    residency: stay
costs: {a: {b: 2.5}}
"""


@pytest.fixture(scope="module")
def rules():
    return data_centres.parse(FILE, "f.yaml")


@pytest.mark.parametrize(
    ("url", "kind", "expected"),
    [
        ("/scratch/me/a/x.nc", "glob", "a"),
        ("/scratch/me/a", "glob", "a"),
        ("s3://site-12-a/x", "glob", "a"),
        ("/archive/level1/x", "glob", "a"),
        ("/archive/deep/down/level2/x", "glob", "a"),
        ("/data/a/x1/y.nc", "glob", "b"),
        ("/data/a/y.nc", "prefix", "a"),
        ("/data/a/lent/y.nc", "prefix", "b"),
        ("https://data.a.org/x.nc", "host", "a"),
        ("https://data.a.org:8443/x.nc", "host", "a"),
        ("ssh://me@opendap.a.int/x.nc", "host", "a"),
        ("https://special.a.int/x.nc", "host", "b"),
    ],
)
def test_the_rule_that_covers_most_decides(rules, url, kind, expected):
    rule = rules.matches(url)[0]
    assert (rule.data_centre, rule.kind) == (expected, kind)


@pytest.mark.parametrize(
    "url",
    [
        "/scratch/me/you/a/x.nc",
        "/scratch/a/x.nc",
        "/scratch/me/ab/x.nc",
        "s3://site-123-a/x",
        "/archive/level3/x",
        "/archive/level1x",
        "/scratch/../scratch/a",
        "/scratch/me/../a/x",
        "/archive/level1/../../etc/passwd",
        "https://a.int/x",
        "https://evil-a.int/x",
        "https://data.a.org.example.org/x",
        "https://data.a.org@example.org/x",
        "s3://data.a.org/x",
    ],
)
def test_what_only_looks_alike_is_not_hosted(rules, url):
    assert rules.matches(url) == []


# Every way to write "one level up" that some server, proxy or file system understands.
UP = [
    "..", ".//..", "./..", "x/../..", "x//..//..",
    "%2e%2e", "%2E%2e", ".%2e", "%252e%252e", "%25252E.", "..%2f..", "..%5c..", "..\\..", "x\\..\\..",
    "..%252f..", "..;", "..;a=b", "%2e%2e;x", "x/..;/..",
]  # fmt: skip
# To file systems and object stores, what has these is a name like others, of what lies inside.
ENCODED = ("%", "\\", ";")
INSIDE = {
    "https://data.org/open/{}/shut/x.nc": [
        "prefixes: ['https://data.org/open/']",
        "globs: ['https://data.org/op*/']",
    ],
    "s3://bucket/open/{}/shut/x.zarr": ["prefixes: ['s3://bucket/open/']"],
    "/data/open/{}/shut/x.nc": ["prefixes: [/data/open/]", "globs: ['/data/op*/']"],
    "file:///data/open/{}/shut/x.nc": ["prefixes: [/data/open/]"],
    "simplecache::/data/open/{}/shut/x.nc": ["prefixes: [/data/open/]"],
}
OUT = [
    (inside, rule, up)
    for inside, rules in INSIDE.items()
    for rule in rules
    for up in UP
    if inside.startswith("https") or not any(sign in up for sign in ENCODED)
]


@pytest.mark.parametrize(("inside", "rule", "up"), OUT)
def test_no_way_to_write_a_level_up_leads_out_of_a_prefix_unseen(inside, rule, up):
    rules = data_centres.parse(f"data_centres: {{a: {{{rule}}}}}", "f.yaml")
    assert rules.matches(inside.format("deep")), "the rule would match what stays inside"
    assert rules.matches(inside.format(up)) == []
    # What comes back is inside.
    assert rules.matches(inside.replace("shut", "open").format(up))


def test_names_that_only_look_like_ways_up_are_inside(rules):
    for path in (
        "/data/a/...",
        "/data/a/..x/y",
        "/data/a/y..",
        "/data/a/%2e%2e/y",
        "/data/a/..\\..\\y",
        "//data//a/y",
    ):
        assert rules.matches(path)[0].data_centre == "a", path
    for url in ("https://data.a.org/a%20b/x..nc", "https://data.a.org/x;v=1/y"):
        assert rules.matches(url)[0].data_centre == "a", url


def test_the_other_rules_that_match_are_the_runners_up(rules):
    assert [str(rule) for rule in rules.matches("/data/a/x1/y.nc")] == [
        "glob /data/a/x*/ (f.yaml, line 9)",
        "prefix /data/a/ (f.yaml, line 3)",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "https://s3.b.org"},
        {"client_kwargs": {"endpoint_url": "https://S3.B.org:443/"}},
        {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"}},
    ],
)
def test_an_endpoint_that_is_listed_decides_since_buckets_of_one_name_are_many(rules, options):
    [rule] = rules.matches("s3://both/x", options)
    assert (rule.data_centre, rule.kind) == ("b", "endpoint")


def test_an_endpoint_that_is_not_listed_leaves_it_to_the_bucket(rules):
    [rule] = rules.matches("s3://both/x", {"endpoint_url": "https://elsewhere.org"})
    assert (rule.data_centre, rule.kind) == ("a", "prefix")
    assert rules.matches("/data/a/y", {"endpoint_url": "https://s3.b.org"})[0].data_centre == "a"


def test_regions_are_of_any_cloud_or_of_one(rules):
    assert rules.of_region("s3", "EU-west-2").data_centre == "a"
    assert rules.of_region("gs", "europe-west1").data_centre == "a"
    assert rules.of_region("s3", "europe-west1") is None


def test_costs_residency_and_parameters_are_typed(rules):
    assert rules.costs == {"a": {"b": 2.5}}
    assert rules.data_centres["b"].residency == "stay"
    assert rules.with_parameters(["DATA_PATH"]) == {"b": "parameter DATA_PATH (f.yaml, line 12)"}
    assert rules.with_parameters(["DATA_PATH", "OTHER"]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: {globs: [/x/y]}}", r"'/x/y' has no \*"),
        ("{a: {globs: ['x*']}}", "neither an absolute path nor a URL"),
        ("{a: {globs: ['/*']}}", "matches every path there is"),
        ("{a: {globs: ['/x/**/y/**/z']}}", r"has \*\* twice"),
        ("{a: {globs: ['/x/[a']}}", r"has a \[ without its \]"),
        ("{a: {globs: ['https://*.org/x']}}", "put hosts with"),
        ("{a: {hosts: ['https://x.org']}}", "is no host name"),
        ("{a: {endpoints: [x.org]}}", "is no endpoint"),
        ("{a: {regions: ['eu west']}}", "is no region"),
        ("{a: {parameters: {CATALOG_DIR: /x}}}", "cannot be the name of a parameter"),
        ("{a: {parameters: {X: 1}}}", r"a.parameters.X should be a path or URL, not 1"),
        ("{a: {residency: go}}", r"a.residency should be 'stay', or not there, not 'go'"),
        ("{a: {hosts: [x.org]}, b: {hosts: [X.org]}}", "host 'X.org' of .* also a host of 'a'"),
    ],
)  # fmt: skip
def test_a_rule_that_nothing_could_match_is_named(text, message):
    with pytest.raises(DataCentresError, match=rf"f.yaml, line 1: (?s:.*){message}"):
        data_centres.parse(f"data_centres: {text}", "f.yaml")


@pytest.mark.parametrize(
    ("costs", "message"),
    [("{a: {c: 1.0}}", "'c' is not among"), ("{a: {a: 0.0}}", "0.0 is no cost"), ("{a: {a: x}}", "a number")],
)
def test_a_wrong_cost_is_named(costs, message):
    with pytest.raises(DataCentresError, match=message):
        data_centres.parse(f"data_centres: {{a: {{}}}}\ncosts: {costs}", "f.yaml")


def test_the_environment_may_be_used_in_the_users_own_file(monkeypatch):
    monkeypatch.setenv("POOLS_TEST_DATA", "/home/me/data")
    text = "data_centres: {a: {prefixes: ['$POOLS_TEST_DATA/x', '${POOLS_TEST_DATA}2', '/a$$b']}}"
    known = data_centres.parse(text, "f.yaml")
    assert known.data_centres["a"].prefixes == ("/home/me/data/x", "/home/me/data2", "/a$b")


@pytest.mark.parametrize(
    ("value", "message"),
    [("$POOLS_TEST_NONE/x", "'POOLS_TEST_NONE', which is not set"), ("/a$", "a $ without")],
)
def test_a_variable_that_is_not_set_is_named_with_its_line(value, message):
    with pytest.raises(DataCentresError, match=r"f.yaml, line 3: data_centres.a.prefixes\[0\]") as caught:
        data_centres.parse(f"data_centres:\n  a:\n    prefixes: ['{value}']", "f.yaml")
    assert message in str(caught.value)


def test_files_and_the_setting_are_merged_and_each_rule_keeps_its_place(tmp_path):
    (tmp_path / "one.yaml").write_text("data_centres: {a: {prefixes: [/a], parameters: {X: /x}}}")
    (tmp_path / "two.yaml").write_text("data_centres:\n  a: {prefixes: [/b]}\n  b: {prefixes: [/a/b]}")
    both = [
        str(tmp_path / "one.yaml"),
        str(tmp_path / "two.yaml"),
        {"data_centres": {"c": {"hosts": ["c.org"]}}},
    ]
    with dask.config.set({"pools.data-centres": both}):
        known = data_centres.default()
    assert known.names == ["a", "b", "c"]
    assert known.data_centres["a"].parameters == {"X": "/x"}
    assert str(known.matches("/b/x")[0]) == f"prefix /b ({tmp_path}/two.yaml, line 2)"
    assert known.matches("/a/b/c")[0].data_centre == "b"
    assert known.matches("https://c.org/x")[0].origin == "the data centres given"


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            {"a": {"prefixes": ["/x"]}},
            {"b": {"prefixes": ["/x/"]}},
            "prefix '/x/' of data centre 'b' is also",
        ),
        (
            {"a": {"parameters": {"X": "1"}}},
            {"a": {"parameters": {"X": "2"}}},
            "parameter X of a is '2', but '1'",
        ),
    ],
)
def test_files_that_contradict_each_other_are_an_error(one, other, message):
    with pytest.raises(DataCentresError, match=message):
        data_centres.load([{"data_centres": one}, {"data_centres": other}])


def test_one_rule_in_two_files_for_one_data_centre_is_no_contradiction():
    same = {"data_centres": {"a": {"prefixes": ["/x"]}}}
    assert data_centres.load([same, same]).matches("/x/y")[0].data_centre == "a"
