"""docs/errors.md has every error message; each is produced here or in a test that quotes it; none is stale.

Whoever adds an error adds a row under its class, and a test that expects it in its own words, or a case
below; the tests say which is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import fsspec
import numpy as np
import pytest
import xarray as xr
import yaml
import zarr
from distributed import Client
from zarr.core.buffer import default_buffer_prototype

from cluster_errors import of_arguments, of_commands, of_launchers, of_pools, of_sections
from dask_pools import data_centres, errors, pins
from dask_pools.cluster import multi_site
from dask_pools.cluster.pool_spec import pool_specs
from dask_pools.mesh.described import described_sites
from dask_pools.sites import addresses
from errors_table import TABLE, Row, messages, rows
from host_errors import of_hosts
from intake_pools import (
    filesystems,
    icechunk_stores,
    load_from_catalog,
    open_catalog,
    references,
    stores,
    writing,
)
from intake_pools.drivers import PooledNetCDFSource
from intake_pools.entries import entry_of
from intake_pools.locate import locate
from intake_pools.lookup import entry_with
from intake_pools.opening import open_tree
from intake_pools.readers import PooledReader
from intake_pools.shipped import shipped
from quotations import quoting
from site_errors import of_site_commands, of_sites


def test_every_message_in_the_source_has_a_row():
    known = rows()
    missing = [
        f"{message.where}, {message.kind}: {message.text.replace(chr(0), '{…}')}"
        for message in messages()
        if not message.says_nothing and not any(row.is_of(message) for row in known)
    ]
    advice = f"Add a row to {TABLE.name}, under its class, with a word in braces for whatever is filled in:\n"
    assert not missing, advice + "\n".join(missing)


def test_nothing_is_passed_on_of_which_nobody_knows_where_it_comes_from():
    unknown = [
        f"{message.where}: {message.source}"
        for message in messages()
        if message.says_nothing and message.passed_on is None
    ]
    assert not unknown, "Say in PASSED_ON of errors_table.py where these words come from:\n" + "\n".join(
        unknown
    )


def test_every_row_is_of_a_message_in_the_source_and_complete():
    known = messages()
    stale = [row.text for row in rows() if not any(row.is_of(message) for message in known)]
    assert not stale, "Nobody says this any more; take it out:\n" + "\n".join(stale)
    for row in rows():
        assert row.when, row
        assert row.what_to_do, row
        literal = "".join(row.literal)
        assert sum(map(str.isalpha, literal)) >= 6, f"This would fit everything: {row.text}"


RULES = {"data_centres": {"here": {"prefixes": ["/data/"], "parameters": {"M": "/data/m"}}}}

# Texts of data-centres files.
FILES_OF_RULES = [
    "",
    "a: [",
    "\x01",
    "data_centres: 2026-99-99",
    "data_centres: &a [*a]",
    "[" * 40 + "]" * 40,
    "{[a]: b}",
    "data_centres: {a: {}}\ndata_centres: {b: {}}",
    "data_centres: {a: {prefixe: []}}",
    "costs: {}",
    "data_centres: []",
    "data_centres: {a: {prefixes: [$POOLS_NOT_SET/a]}}",
    "data_centres: {a: {prefixes: [/a$]}}",
    "data_centres: {a: {prefixes: [/a]}, b: {prefixes: [/a]}}",
    "data_centres: {a b: {}}",
    "data_centres: {a: {parameters: {CATALOG_DIR: /a}}}",
    "data_centres: {a: {}}\ncosts: {b: {a: 1.0}}",
    "data_centres: {a: {}}\ncosts: {a: {a: -1.0}}",
    "data_centres: {a: {prefixes: ['']}}",
    "data_centres: {a: {regions: ['*']}}",
    "data_centres: {a: {prefixes: [a]}}",
    "data_centres: {a: {globs: ['a*']}}",
    "data_centres: {a: {prefixes: ['https://exa-']}}",
    "data_centres: {a: {globs: [/a/b]}}",
    "data_centres: {a: {globs: ['https://*.org/a']}}",
    "data_centres: {a: {globs: ['/**']}}",
    "data_centres: {a: {globs: ['/a/**/b/**']}}",
    "data_centres: {a: {globs: ['/a/[b']}}",
    "data_centres: {a: {globs: ['/a/[z-a]*']}}",
    "data_centres: {a: {hosts: ['a/b']}}",
    "data_centres: {a: {site: {host: h, relay: b}}}",
    "data_centres: {scheduler: {site: {host: h}}}",
    "data_centres: {a: {endpoints: ['a b']}}",
]

# Texts of catalogues.
FILES = [
    "sources: {a: [}",
    "sources: {}\nsources: {}",
    "sources: 2026-99-99",
    "sources: " + "[" * 200 + "]" * 200,
    "",
    "- a",
    "sources: []",
    "sources: {}\nmetadata: a",
    "version: 2\nentries: []",
    "metadata: {data_centres_file: [a]}\nsources: {a: {driver: netcdf, args: {urlpath: /data/a}}}",
]

# Entries of catalogues of version 1.
ENTRIES = [
    "5",
    "{args: {}}",
    "{driver: os.system}",
    "{driver: shapefile, args: {urlpath: /data/a}}",
    "{driver: textfiles, args: {urlpath: /data/a, decoder: os.system}}",
    "{driver: csv, args: {}}",
    "{cls: os.system}",
    "{driver: xarray, args: {urlpath: /data/a, xarray_kwargs: {backend_kwargs: {indexpath: /tmp/a}}}}",
    "{driver: netcdf, args: [a]}",
    "{driver: netcdf, args: {urlpath: 's3://a/b', storage_options: 5}}",
    "{driver: netcdf, args: {urlpath: 's3://a/b', storage_options: {session: os.system}}}",
    f"{{driver: netcdf, args: {{urlpath: 's3://a/b', storage_options: {'{s3: ' * 25}{{}}{'}' * 25}}}}}",
    f"{{driver: netcdf, args: {{urlpath: 's3://a/b', xarray_kwargs: {'{a: ' * 25}{{}}{'}' * 25}}}}}",
    "{driver: netcdf, args: {5: a}}",
    "{driver: yaml_file_cat, args: {path: 5}}",
    "{driver: netcdf, args: {urlpath: /data/a, path_as_pattern: 5}}",
    "{driver: netcdf, args: {urlpath: '{{ M }}/{{ N }}'}, parameters: {N: {default: env(HOME)}}}",
    "{driver: netcdf, args: {urlpath: '{{ M }}/a', data_centre: there}}",
    "{driver: netcdf, args: {urlpath: /data/a}, parameters: [a]}",
    "{driver: netcdf, args: {urlpath: /data/a}, parameters: {p: a}}",
    "{driver: netcdf, args: {urlpath: /data/a}, parameters: {p: {type: os}}}",
    "{driver: netcdf, args: {urlpath: /data/a}, parameters: {p: {allowed: a}}}",
    "{driver: netcdf, args: {urlpath: /data/a}, parameters: {p: {type: int, min: a}}}",
    "{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: {type: int, default: 5, max: 3}}}",
    "{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: {default: '{{ q }}'}}}",
    "{driver: netcdf, args: {urlpath: '{{ p }}'}, parameters: {p: {type: int, allowed: [1]}}}",
    "{driver: netcdf, args: {urlpath: '{{ env(HOME) }}'}}",
    "{driver: netcdf, args: {urlpath: '{{ }}'}}",
    f"{{driver: netcdf, args: {{urlpath: '{{{{ {'(' * 5000}1{')' * 5000} }}}}'}}}}",
    "{driver: netcdf, args: {urlpath: '{{ p }}'}}",
    "{driver: netcdf, args: {urlpath: '{{ 1 / 0 }}'}}",
    f"{{driver: netcdf, args: {{urlpath: '{{{{ p }}}}{'a' * 200_000}'}}}}",
    f"{{driver: zarr, args: {{urlpath: '{'{{ p }}' * 9999}'}}, parameters: {{p: {{default: aaaaaaaaaaa}}}}}}",
    "{driver: netcdf, args: {urlpath: '{{ \"a\".zfill(9999999) }}'}}",
    "{driver: netcdf, args: {urlpath: '{{ \"%9999d\" % 1 }}'}}",
    "{driver: netcdf, args: {urlpath: 's3://a/b', storage_options: {client_kwargs: 5}}}",
    "{driver: netcdf, args: {urlpath: 's3://a/b', storage_options: {key: {a: [{}]}}}}",
    "{driver: netcdf, args: {urlpath: 'gs://a/b', storage_options: {token: /etc/passwd}}}",
    "{driver: netcdf, args: {urlpath: 'gs://a/b', storage_options: {endpoint_url: 'https://a'}}}",
    "{driver: netcdf, args: &a {urlpath: /data/a, more: *a}}",
    "{driver: pooled_netcdf, args: {}}",
    "{driver: pooled_netcdf, args: {urlpath: /data/a, chunk: {}}}",
]

# Parts of catalogues of version 2.
ENTRIES2 = [
    {"entries": {"a": 5}},
    {"entries": {"a": {"reader": "os:system"}}},
    {"entries": {"a": {"reader": "intake.readers.readers:PandasCSV", "kwargs": {"args": 5}}}},
    {"entries": {"a": {"reader": "intake.readers.readers:PandasCSV", "kwargs": {1: 5}}}},
    {"data": {"d": {"datatype": "os:system"}}},
    {"data": {"d": 5}},
    {"data": {"d": {"datatype": "intake.readers.datatypes:CSV", "kwargs": {"url": "/data/a"}}}},
    {"data": {"d": {"datatype": "intake.readers.datatypes:HDF5", "kwargs": {"size": 5}}}},
    {"data": {"d": {"datatype": "intake.readers.datatypes:HDF5", "kwargs": 5}}},
    {"kwargs": {"args": 5}},
    {"kwargs": {"args": ["{data(d)}"], 5: 5}},
    {"kwargs": {"args": ["{data(other)}"]}},
    {"kwargs": {"args": ["{data(a)}"]}},
    {"kwargs": {"args": ["{data(d)}"], "engine": "{p.__class__}"}},
    {"kwargs": {"args": ["{data(d)}"], "engine": "{p}" * 9}, "user_parameters": {"p": "a" * 20_000}},
    {"user_parameters": {"p": {"cls": "os:system"}}},
    {"user_parameters": {"p": {"dtype": "os"}}},
    {"steps": 5},
    {"steps": [5]},
    {"steps": [["a", [], {}]]},
    {"steps": [["{data(d)}", [], {}]]},
    {"steps": [["{data(e)}", [], {}], ["{func(os:system)}", [], {}]]},
    {
        "steps": [
            ["{data(e)}", [], {}],
            ["{func(intake.readers.transform:Method)}", [], {"method_name": "pipe"}],
        ]
    },
]


def catalogue_of_version_2(part: dict[str, Any]) -> dict[str, Any]:
    hdf5 = {"datatype": "intake.readers.datatypes:HDF5", "kwargs": {"url": "/data/a"}}
    reader = {"reader": "intake.readers.readers:XArrayDatasetReader", "kwargs": {"args": ["{data(d)}"]}}
    made: dict[str, Any] = {"version": 2, "data": {"d": hdf5}, "entries": {"a": reader, "e": reader}}
    if "steps" in part:
        made["entries"]["a"] = {"reader": "intake.readers.convert:Pipeline", "kwargs": part}
    elif "kwargs" in part:
        made["entries"]["a"] = {**reader, **part}
    else:
        made.update(part)
    return made


# What is said about data.
SAID: list[dict[str, Any]] = [
    {"urlpath": [5]},
    {"urlpath": []},
    {"urlpath": "/data/a", "parts": ["/data/b"]},
    {"parts": 5},
    {"replicas": [{"url": "/data/a"}]},
    {"urlpath": "/data/a", "storage_options": 5},
    {"urlpath": "/data/a", "xarray_kwargs": {"cache": True}},
    {"urlpath": "/data/a", "xarray_kwargs": {"mode": "w"}},
    {"urlpath": "/data/a", "engine": 5},
    {"urlpath": "/data/a", "version": []},
    {"urlpath": "/data/a", "residency": "go"},
    {"urlpath": "/data/a", "chunks": "a"},
    {"urlpath": "/data/a", "chunks": {"x": 1.5}},
    {"urlpath": "/data/a", "path_as_pattern": "/data/a"},
    {"urlpath": "/data/*{year}.nc", "path_as_pattern": True},
    {"urlpath": ["/data/a|icechunk://branch.x", "/data/b|icechunk://tag.y"]},
    {"urlpath": "/data/a|icechunk://branch.x", "storage_options": {"branch": "x"}},
    {"urlpath": "/other/a"},
    {"urlpath": "a.nc"},
    {"urlpath": "/data/a", "data_centre": "there"},
    {"urlpath": "/data/a", "data_centre": "a b"},
]


def use(catalogue: Any) -> None:
    source = catalogue["a"]
    if hasattr(source, "location"):
        source.location  # noqa: B018


def of_catalogues(directory: Path) -> Iterator[Callable[[], Any]]:
    """Ways to read and use catalogues that end in an error."""

    def made(text: str, name: str = "cat.yaml", **options: Any) -> Any:
        (directory / name).write_text(text)
        return open_catalog(directory / name, **{"data_centres": RULES, **options})

    for text in FILES_OF_RULES:
        yield partial(data_centres.parse, text, "rules.yaml", environment={})
    yield lambda: data_centres.read(directory / "none.yaml")
    yield lambda: data_centres.load(5)  # type: ignore[arg-type]
    yield lambda: data_centres.load([])
    yield lambda: data_centres.load([RULES, {"data_centres": {"here": {"parameters": {"M": "/x"}}}}])
    for text in FILES:
        yield lambda text=text: use(made(text, data_centres=None))  # type: ignore[misc]
    for text in ENTRIES:
        yield lambda text=text: use(made(f"sources: {{a: {text}}}"))  # type: ignore[misc]
    for part in ENTRIES2:
        yield lambda part=part: use(made(yaml.safe_dump(catalogue_of_version_2(part))))  # type: ignore[misc]
    options = {"p": {"cls": "intake.readers.user_parameters:OptionsUserParameter", "options": [1]}}
    yield lambda: use(made(yaml.safe_dump(catalogue_of_version_2({"user_parameters": options})))(p=2))
    machines = {"data": {"d": {"datatype": "intake.readers.datatypes:HDF5", "kwargs": {"url": "{M}{N}"}}}}
    yield lambda: use(
        made(
            yaml.safe_dump(catalogue_of_version_2(machines)),
            data_centres={
                "data_centres": {"a": {"parameters": {"M": "/a"}}, "b": {"parameters": {"N": "/b"}}}
            },
        )
    )
    for said in SAID:
        yield lambda said=said: entry_of(**said, data_centres=RULES)  # type: ignore[misc]
    yield lambda: entry_of("/data/a")
    yield (
        lambda: (
            entry_of("/data/a", data_centres=RULES, replicas=["/data/b"])
            and load_from_catalog("/data/a", data_centres=RULES, chunks=5.5)
        )
    )
    yield lambda: open_catalog(directory / "none.yaml")
    yield lambda: open_catalog([])
    yield lambda: load_from_catalog("/data/a", data_centres=RULES, catalog=5)
    yield lambda: open_catalog("nosuchprotocol://a/*.yaml")
    yield lambda: open_catalog(directory / "none*.yaml")

    def nested(depth: int) -> Any:
        for level in range(depth):
            path = f"{{{{ CATALOG_DIR }}}}/{level + 1}.yaml"
            entry = {"driver": "yaml_file_cat", "args": {"path": path}}
            (directory / f"{level}.yaml").write_text(yaml.safe_dump({"sources": {"a": entry}}))
        (directory / f"{depth}.yaml").write_text((directory / "0.yaml").read_text())
        catalogue = open_catalog(directory / "0.yaml")
        for _ in range(depth + 1):
            catalogue = catalogue["a"]
            len(catalogue)

    yield lambda: nested(1)
    yield lambda: nested(22)
    zarrs = "sources: {a: {driver: zarr, args: {urlpath: /data/a}}}"
    yield lambda: made(zarrs) and made(zarrs, "b.yaml") and open_catalog(directory / "[a-c]*.yaml")
    yield lambda: open_catalog([directory / "cat.yaml", directory / "cat.yaml"])
    two = yaml.safe_dump(catalogue_of_version_2({}))
    yield lambda: made(two, "two.yaml") and open_catalog([directory / "two.yaml", directory / "two.yaml"])
    yield lambda: made("plugins: {source: [{module: none_such}]}\nsources: {}", allow_code=True)
    yield lambda: made(two.replace("HDF5", "none"), allow_code=True)["a"]
    yield lambda: made("version: 2\nentries: 5", allow_code=True)
    text = "sources: {a: {driver: textfiles, args: {urlpath: /data/a}}}"
    yield lambda: made(text).plain_entry("a")
    twice = "a: {driver: zarr, args: {urlpath: /data/a}}, b: {driver: netcdf, args: {urlpath: /data/a}}"
    yield lambda: entry_with("/data/a", made(f"sources: {{{twice}}}"))
    yield PooledReader()._resolved
    yield lambda: PooledNetCDFSource("/data/a", data_centre="here", chunky=5)
    yield lambda: locate("/data/a", "there", RULES)
    yield lambda: shipped("none.yaml")
    yield lambda: pins.check_name("a b")


def of_references(directory: Path) -> Iterator[Callable[[], Any]]:
    """References that cannot be used."""
    path = directory / "references.json"

    def load(content: Any) -> Any:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return references.load(f"reference::{path}", {}).targets()

    yield lambda: load("{")
    yield lambda: load([])
    yield lambda: load({"refs": {}, "gen": [{"key": "a"}]})
    yield lambda: load({"refs": {}, "templates": {"u": "{{ a }}"}})
    yield lambda: load({"version": 1, "refs": {"a": ["{{u}}/b"]}, "templates": {"v": "a"}})


def of_clusters() -> Iterator[Callable[[], Any]]:
    """Files that make no cluster; none of them gets as far as to start something."""

    def rules(**one: Any) -> Any:
        return data_centres.load({"data_centres": {"a": one}})

    yield lambda: pool_specs(rules())
    yield lambda: pool_specs(rules(site={"host": "h"}, workers={"launcher": "host"}))
    yield lambda: multi_site._at_sites(rules())
    yield lambda: multi_site._at_sites(rules(site={"host": "h"}, workers={"launcher": "local"}))
    yield lambda: multi_site._at_sites(
        rules(workers={"launcher": "command", "command": {"start": "{worker}", "stop": "x"}})
    )
    yield lambda: multi_site._at_sites(rules(workers={"launcher": "host"}))
    twice = {name: {"site": {"host": "login"}} for name in ("ecmwf", "eumetsat")}
    yield lambda: described_sites(data_centres.load({"data_centres": twice}))
    yield lambda: data_centres.merge(
        [rules(workers={"launcher": "local"}), rules(workers={"launcher": "local", "threads": 2})]
    )
    yield lambda: addresses.check_scheduler("tcp://192.0.2.1:8786")


def not_installed() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icechunk_stores, "find_spec", lambda name: None)
        icechunk_stores.snapshot_of("/data/a", {})


def of_data(directory: Path, dataset: xr.Dataset) -> Iterator[Callable[[], Any]]:
    """Ways to open and write data in pool `ecmwf`, which sees `directory`, that end in an error."""
    dataset.to_netcdf(directory / "errors.nc", engine="netcdf4")
    (directory / "errors.txt").write_text("not data")
    (directory / "empty.zarr").mkdir()
    load = partial(load_from_catalog, data_centre="ecmwf")
    yield lambda: load(directory / "none.nc")
    yield lambda: load(directory / "none*.nc")
    yield lambda: load(directory / "errors.txt", engine="netcdf")
    fsspec.filesystem("memory").pipe("/errors", b"not data")
    yield lambda: stores.source_of("memory://errors", None, {}, {})
    yield lambda: load("https://127.0.0.1:9/a.grib", engine="cfgrib", storage_options={"a": 1})
    yield lambda: load(directory / "empty.zarr", engine="netcdf")
    yield lambda: load(directory / "empty.zarr")
    yield lambda: load(directory / "errors.nc", xarray_kwargs={"group": "none"})
    yield lambda: load(directory / "errors.nc", xarray_kwargs={"none": 1})
    yield lambda: load(directory / "errors.nc", chunks={"none": 1})
    yield lambda: load(directory / "errors.nc", xarray_kwargs={"combine": "none"})
    yield lambda: icechunk_stores.snapshot_of("https://127.0.0.1:9/a", {})
    yield not_installed
    tree = partial(entry_of, data_centre="ecmwf")
    yield lambda: open_tree(tree([str(directory / "errors.nc"), "/b"]))
    yield lambda: open_tree(tree(str(directory / "none.nc")))
    yield lambda: open_tree(tree(str(directory / "errors.nc")), "eumetsat")

    def forbidden() -> None:
        # Root may read everything, so no permissions will do.
        from intake_pools import opening

        def refuse(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        entry = entry_of(str(directory / "errors.nc"), data_centre="ecmwf")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stores, "sources_of", refuse)
            patch.setattr(opening, "default_client", suppress)
            opening._result(opening._open(entry, opening._limits("ecmwf")), entry, "here")

    yield forbidden

    async def inside() -> None:
        async with Client(asynchronous=True, processes=False, n_workers=0, dashboard_address=None):
            load(directory / "errors.nc")

    yield lambda: asyncio.run(inside())

    def dies() -> None:
        from intake_pools import opening

        entry = entry_of(str(directory / "errors.nc"), data_centre="ecmwf")
        opening._result(
            opening._in_pool(dask.distributed.default_client(), entry, lambda _: 1 / 0), entry, "in its pool"
        )

    yield dies

    def gone_meanwhile() -> None:
        dataset.to_netcdf(directory / "errors2.nc", engine="netcdf4")
        opened = load(directory / "errors2.nc")
        os.remove(directory / "errors2.nc")
        opened["v"].compute()

    yield gone_meanwhile
    source = stores.Source(str(directory / "empty.zarr"), "zarr", {}, {}, "")
    chunk = stores._guarded_store(source, stores.Version("")).get("v/0", default_buffer_prototype())
    yield partial(asyncio.run, chunk)

    def without_length() -> None:
        files = SimpleNamespace(open=lambda *_: SimpleNamespace(size=None))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filesystems, "file_system", lambda *_: (files, "a"))
            filesystems.open_file("https://127.0.0.1:9/a.nc", {}, "")

    yield without_length
    x = load(directory / "errors.nc", chunks={"x": 1})["v"].data

    class Other:
        datastore = object()

    yield lambda: writing._part(x, Other(), None, {})

    def gone() -> None:
        with writing._netcdf_variable(str(directory / "none.nc"), dict, dict, "v"):
            pass

    yield gone
    array = zarr.create_array(str(directory / "gone.zarr"), shape=(1,), dtype="f4")
    os.rename(directory / "gone.zarr", directory / "gone")
    yield lambda: writing._zarr_array(array)


def said(provoke: Callable[[], Any]) -> tuple[str, str]:
    """Section of the table and message of the error that comes of it."""
    try:
        provoke()
    except Exception as error:
        kind = type(error).__name__
        return SAME.get(kind, kind), str(error)
    what = provoke.args if isinstance(provoke, partial) else provoke.__defaults__ or provoke.__code__
    return "", f"nothing is said by {what}"


SAME = {"HostKeyError": "SiteError", "PlanError": "MeshError"}


def test_every_row_is_what_is_said(client, pools, tmp_path, short_path, site_dirs):
    dataset = xr.Dataset({"v": ("x", np.arange(3.0))})
    with dask.config.set({"pools.eager-size": 0}):
        provoked = [*of_catalogues(tmp_path), *of_references(tmp_path), *of_clusters()]
        provoked += [*of_hosts(tmp_path), *of_data(site_dirs["ecmwf"], dataset)]
        provoked += [*of_sites(short_path), *of_site_commands(short_path), *of_sections(), *of_launchers()]
        provoked += [*of_pools(pools, client), *of_arguments(), *of_commands(tmp_path)]
        heard = [said(one) for one in provoked]
    strangers = [(kind, text) for kind, text in heard if not any(_says(row, kind, text) for row in rows())]
    assert not strangers, "No row is like this:\n" + "\n".join(map(str, strangers))
    missing = [
        row.text
        for row in rows()
        if not any(_says(row, kind, text) for kind, text in heard) and not quoting(row)
    ]
    assert not missing, "\n".join(["No case here produces, and no test quotes:", *missing])


def _says(row: Row, kind: str, text: str) -> bool:
    """Whether a message is a row's, or has it inside; classes are those of the message as a whole."""
    return (kind == row.kind or kind not in errors.__all__) and row.occurs_in(text)
