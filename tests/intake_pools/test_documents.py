"""Catalogues are read as PyYAML reads them, only faster; whatever is in them, only named errors come out."""

import string
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import PUBLISHED

from dask_pools import data_centres
from dask_pools.errors import DataCentresError, EntryError, PoolsError
from intake_pools import documents, open_catalog

ODD = [
    "a: 1\nb: [1, 2.5, yes, no, 010, 0x1f, 1_000, 1:30, ~, null, '1', 2026-01-02, .inf, 1e3, =x]\n",
    "c: &x {d: [1, [2, {e: f}]]}\ng: *x\nh: [*x, *x]\n",
    "a: &r\n  b: 1\nc:\n  <<: *r\n  d: 2\n",
    "a: {<<: {b: 1}, b: 2}\n",
    "a: |\n  text\n  more\nb: >\n  folded\n  text\nc: \"q\\n\"\n",
    "a: !!str 1\nb: !!set {x, y}\nc: !!binary aGk=\n",
    "? a\n: 1\n? b\n",
    "a:\nb: {}\nc: []\n1: one\n1.5: x\n~: none\ntrue: y\n",
    "- a\n- - b\n  - c: d\n    e: [f]\n- {}\n",
    "just text", "", "---\na: 1\n", "--- \n# nothing\n", "%YAML 1.1\n---\na: 1\n...\n",
]  # fmt: skip


@pytest.mark.parametrize("text", [*(path.read_text() for path in sorted(PUBLISHED.rglob("*.yaml"))), *ODD])
def test_a_document_reads_as_pyyaml_reads_it(text):
    assert documents._read(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: &x {b: *x}", "&x [*x]"])
def test_what_contains_itself_still_does(text):
    made = documents._read(text)
    inner = made["a"] if isinstance(made, dict) else made
    assert (inner["b"] if isinstance(inner, dict) else inner[0]) is inner


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(plain, st.booleans())
def test_whatever_can_be_written_is_read_back(value, flow):
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)
    assert documents._read(text) == yaml.safe_load(text)


# What means something in a catalogue, to put together as nobody would.
words = st.sampled_from(
    [
        *("sources", "driver", "args", "urlpath", "parameters", "metadata", "description", "default", "type"),
        *("chunks", "storage_options", "xarray_kwargs", "path", "cls", "replicas", "parts", "data_centre"),
        *("entries", "data", "aliases", "user_parameters", "reader", "datatype", "kwargs", "steps", "name"),
        *("data_centres_file", "plugins", "residency", "consolidated", "class", "min", "max", "allowed"),
        *("version", "a", "b"),
    ]
)
values = st.one_of(
    st.sampled_from(
        [
            *("netcdf", "zarr", "csv", "yaml_file_cat", "xarray", "os.system", "/data/a.nc", "s3://b/c"),
            *("{{ p }}", "{{", "{% if %}", "{{ '%d' % p }}", "{data(a)}", "{data(b)}", "{p}", "{p.x}", "str"),
            *("int", "list[str]", "reference::/a.json", "*", "intake.readers.readers:XArrayDatasetReader"),
            *("intake.readers.datatypes:HDF5", "intake.readers.convert:Pipeline", "{func(os:system)}"),
            *("auto", "stay", 2, 1, None, True, "", "env(HOME)"),
        ]
    ),
    st.text(string.printable, max_size=12),
    st.integers(),
    st.dates(),
)
trees = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=20,
)
entry = st.fixed_dictionaries(
    {}, optional={"driver": values, "args": trees, "parameters": trees, "metadata": trees, "cls": values}
)
version1 = st.fixed_dictionaries(
    {"sources": st.dictionaries(words, entry | trees, max_size=4)}, optional={"metadata": trees}
)
version2 = st.fixed_dictionaries(
    {
        "version": st.just(2),
        "entries": st.dictionaries(
            words,
            st.fixed_dictionaries(
                {"reader": values, "kwargs": trees}, optional={"user_parameters": trees, "metadata": trees}
            )
            | trees,
            max_size=3,
        )
        | trees,
        "data": st.dictionaries(
            words, st.fixed_dictionaries({"datatype": values, "kwargs": trees}), max_size=3
        )
        | trees,
        "aliases": trees,
        "user_parameters": trees,
        "metadata": trees,
    }
)
fuzzing = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
RULES = {"data_centres": {"x": {"prefixes": ["/data/"], "parameters": {"p": "/data/x"}}}}


# Sound ones, of which a part is replaced.
SOUND = [
    yaml.safe_load(text)
    for text in (
        """
metadata: {parameters: {m: {description: d, type: str, default: a, allowed: [a, b]}}}
sources:
  a:
    driver: netcdf
    args: {urlpath: ['{{ CATALOG_DIR }}/{{ m }}*.nc', '/data/{{ p }}.nc'], chunks: {time: 1},
           xarray_kwargs: {engine: netcdf4, combine: nested, concat_dim: t}, storage_options: {anon: true}}
    parameters: {p: {type: int, default: 1, min: 0, max: 3, description: ''}}
    metadata: {data_centre: x}
  b:
    driver: pooled_zarr
    args: {parts: [/data/a, {urlpath: /data/b, data_centre: x, version: 1}], residency: stay, version: 3,
           replicas: [/data/c, {urlpath: /data/d, engine: zarr, chunks: auto}], consolidated: true, group: g}
  c: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/other.yaml'}}
  d: {driver: csv, args: {urlpath: /data/x, csv_kwargs: {}}}
""",
        """
version: 2
aliases: {x: data}
metadata: {}
user_parameters:
  year: {cls: 'intake.readers.user_parameters:OptionsUserParameter', dtype: int, default: 2025,
         options: [2025, 2026], description: ''}
data:
  d: {datatype: 'intake.readers.datatypes:HDF5', user_parameters: {q: 1}, kwargs: {url: '/data/{year}'}}
entries:
  data: {reader: 'intake.readers.readers:XArrayDatasetReader', kwargs: {args: ['{data(d)}'], chunks: {}}}
  p:
    reader: 'intake.readers.convert:Pipeline'
    kwargs: {steps: [['{data(data)}', [], {}],
                     ['{func(intake.readers.transform:Method)}', [time], {method_name: mean}]]}
  c: {reader: 'intake.readers.readers:PandasCSV', kwargs: {args: ['{data(d)}']}}
""",
    )
]


def spoilt(tree: Any, random: Random, part: Any) -> Any:
    """Copy of a tree with something in it replaced, or under another name."""
    if not tree or not isinstance(tree, dict | list) or random.random() < 0.1:
        return part
    at = random.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    copy = tree.copy()
    if isinstance(copy, dict) and random.random() < 0.1:
        copy[random.choice(["args", "metadata", "data", "x", 1])] = copy.pop(at)
    else:
        copy[at] = spoilt(tree[at], random, part)
    return copy


def use(path: Path) -> None:
    """Everything that can be done with a catalogue without opening data; only named errors may come out."""
    try:
        catalogue: Any = open_catalog(path, data_centres=RULES)
    except PoolsError:
        return
    repr(catalogue)
    catalogue._repr_html_()
    catalogue.walk(depth=3)
    list(catalogue.search("a"))
    for name in list(catalogue):
        with suppress(PoolsError):
            catalogue.plain_entry(name)
        with suppress(PoolsError):
            repr(catalogue[name])


@fuzzing
@given(version1 | version2 | trees)
def test_of_a_catalogue_that_makes_no_sense_only_named_errors_come(tmp_path, tree):
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(tree))
    use(tmp_path / "cat.yaml")


@fuzzing
@given(
    st.sampled_from(SOUND),
    st.randoms(use_true_random=False),
    trees | st.sampled_from([[None], {1: 2}, "\0", "[", "a::b", 1e400, "{data(d)}", "{data(data)}", 2**70]),
)
def test_of_a_sound_catalogue_with_a_part_replaced_only_named_errors_come(tmp_path, sound, random, part):
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(spoilt(sound, random, part)))
    use(tmp_path / "cat.yaml")


@fuzzing
@given(st.binary(max_size=60) | st.text("{}[]&*!|>:-,#'\" \n\tab1<%@`?", max_size=40).map(str.encode))
def test_of_a_file_that_is_no_catalogue_only_named_errors_come(tmp_path, content):
    for start in (b"", b"sources:\n  a: "):
        (tmp_path / "cat.yaml").write_bytes(start + content)
        use(tmp_path / "cat.yaml")


rules = st.dictionaries(
    st.sampled_from(["a", "b", "c c", ""]),
    st.dictionaries(
        st.sampled_from(
            ["prefixes", "globs", "hosts", "endpoints", "regions", "parameters", "residency", "x"]
        ),
        st.lists(values | st.text("/:*?[]!.~$s3@%ab", max_size=10), max_size=3) | trees,
        max_size=3,
    )
    | trees,
    max_size=3,
)


@fuzzing
@given(
    st.fixed_dictionaries({"data_centres": rules}, optional={"costs": trees, "version": values}) | trees,
    st.text("/:*?[]!.~$s3@%ab", max_size=12),
)
def test_of_data_centres_that_make_no_sense_only_named_errors_come(tree, url):
    try:
        known = data_centres.parse(yaml.safe_dump(tree), "f.yaml")
    except DataCentresError:
        return
    known.matches(url, {"endpoint_url": url})
    known.nearest(url)


@fuzzing
@given(st.text("{}[]&*!|>:-,#'\" \n\tab1<%@`?$", max_size=40))
def test_of_a_file_that_is_no_data_centres_file_only_named_errors_come(text):
    for start in ("", "data_centres:\n  a: "):
        with suppress(DataCentresError):
            data_centres.parse(start + text, "f.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 5000, "- " * 50_000, "a: " + "[" * 400 + "]" * 400])
def test_a_document_that_is_nested_too_deeply_is_a_named_error(tmp_path, text):
    # The tag makes the second one a document for the whole of PyYAML's loader.
    for start in ("", "sources: {a: ", "b: !!str c\nsources: {a: "):
        (tmp_path / "cat.yaml").write_text(start + text)
        with pytest.raises(EntryError, match=r"nested more than 100 levels deep|not well-formed"):
            open_catalog(tmp_path / "cat.yaml")
    with pytest.raises(DataCentresError):
        data_centres.parse(text, "f.yaml")
