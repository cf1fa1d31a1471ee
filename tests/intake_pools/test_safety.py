"""A catalogue is somebody else's text: nothing that it names is run, imported or looked up.

Each attack is first opened by `intake_pools.open_catalog`, which stops it before any object of Intake's
exists, and then by stock Intake, where it works: so the attack is a real one.
"""

import base64
import json
import os
import pickle
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import intake
import iris_sample_data
import pytest
import xarray as xr
from intake.readers.search import Importable
from intake.source import classes

from dask_pools.errors import DataCentresError, EntryError, PoolsError, UnreadableError
from intake_pools import open_catalog

RULES = {"data_centres": {"here": {"prefixes": ["/data/"]}}}


class Attack:
    """A module to import, a file that is there once code has run, and a secret in the environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.flag = directory / "flag"
        self.looked_for: list[str] = []

    def find_spec(self, name: str, *_: Any) -> None:
        """Python asks for every module that is to be imported; notes the one that should not be."""
        if name.startswith("evil"):
            self.looked_for.append(name)

    def write(self, text: str, name: str = "cat.yaml") -> str:
        path = self.directory / name
        path.write_text(
            textwrap.dedent(text).replace("@FLAG@", str(self.flag)).replace("@DIR@", str(self.directory))
        )
        return str(path)

    @property
    def worked(self) -> bool:
        return self.flag.exists() or "evil_module" in sys.modules


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attack]:
    (tmp_path / "evil_module.py").write_text(
        "from intake.readers.readers import BaseReader\n"
        "class Evil(BaseReader):\n    implements = set()\n    def __init__(self, *a, **k): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("POOLS_TEST_SECRET", "hush")
    attack = Attack(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [attack, *sys.meta_path])
    yield attack
    sys.modules.pop("evil_module", None)
    classes.pop("evil_module.Evil", None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classes of Intake's of which objects were made."""
    from intake.catalog.local import LocalCatalogEntry, UserParameter
    from intake.readers.datatypes import BaseData
    from intake.readers.entry import DataDescription, ReaderDescription
    from intake.readers.readers import BaseReader
    from intake.readers.user_parameters import BaseUserParameter
    from intake.source.base import DataSource

    names: list[str] = []

    def watch(kind: type) -> None:
        stock: Callable[..., None] = kind.__init__

        def noting(self: Any, *args: Any, **kwargs: Any) -> None:
            if not type(self).__name__.startswith("Pooled"):
                names.append(type(self).__name__)
            stock(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", noting)

    for kind in (
        LocalCatalogEntry, UserParameter, DataDescription, ReaderDescription, BaseData, BaseReader,
        BaseUserParameter, DataSource,
    ):  # fmt: skip
        watch(kind)
    return names


def use(catalogue: Any) -> None:
    """Do with a catalogue, and with its entry `a`, what a user does."""
    list(catalogue)
    repr(catalogue)
    catalogue.walk()
    source = catalogue["a"]
    getattr(source, "urlpath", None)
    if hasattr(source, "data"):
        source.data.url.startswith("/")


def stock_use(path: str) -> Any:
    try:
        catalogue = intake.open_catalog(path)
        source = catalogue["a"]
        return source["b"] if source.container == "catalog" else source
    except Exception as error:
        return error


ON_OPENING = {
    "a plugin": (
        """
        plugins: {source: [{module: evil_module}]}
        sources: {a: {driver: csv, args: {urlpath: /data/a}}}
        """,
        None,
    ),
    "a dotted driver": ("sources: {a: {driver: evil_module.Evil}}", "driver is 'evil_module.Evil'"),
    "a driver with a class": (
        "sources: {a: {driver: {x: {class: evil_module.Evil}}}}",
        "driver is a mapping to classes",
    ),
    "a call": (
        "sources: {a: {cls: os.system, args: ['touch @FLAG@'], kwargs: {}}}",
        "`cls:` names a class or function",
    ),
    "a parameter of a class, version 2": (
        """
        version: 2
        metadata: {}
        aliases: {}
        data: {}
        entries: {a: {reader: 'intake.readers.readers:XArrayDatasetReader', kwargs: {args: ['{data(b)}']},
                  user_parameters: {}, metadata: {}, output_instance: 'x:y'}}
        user_parameters: {p: {cls: 'evil_module:Evil', default: 1}}
        """,
        "parameter 'p' is of class 'evil_module:Evil'",
    ),
}
ON_USE = {
    "a template that reaches for os": (
        "sources: {a: {driver: netcdf, args: {urlpath: "
        "\"/data/{{ cycler.__init__.__globals__.os.popen('touch @FLAG@').read() }}\"}}}",
        "which is not run for a catalogue",
    ),
    "a reader, version 2": (
        """
        version: 2
        metadata: {}
        aliases: {}
        data: {}
        entries: {a: {reader: 'evil_module:Evil', kwargs: {}, user_parameters: {}, metadata: {},
                  output_instance: 'x:y'}}
        user_parameters: {}
        """,
        "reader is 'evil_module:Evil'",
    ),
    "a type of data, version 2": (
        """
        version: 2
        metadata: {}
        aliases: {}
        data: {d: {datatype: 'evil_module:Evil', kwargs: {}, metadata: {}, user_parameters: {}}}
        entries: {a: {reader: 'intake.readers.readers:XArrayDatasetReader', kwargs: {args: ['{data(d)}']},
                  user_parameters: {}, metadata: {}, output_instance: 'x:y'}}
        user_parameters: {}
        """,
        "data is of type 'evil_module:Evil'",
    ),
}


def test_searching_imports_nothing_either(attack, made):
    path = attack.write(ON_USE["a reader, version 2"][0])
    made.clear()
    assert list(open_catalog(path, data_centres=RULES).search(Importable())) == []
    assert not made
    assert not attack.worked
    assert not attack.looked_for
    # Stock Intake answers this by importing what the entry names.
    intake.open_catalog(path).search(Importable())
    assert attack.worked


@pytest.mark.parametrize("name", [*ON_OPENING, *ON_USE])
def test_what_a_catalogue_names_is_neither_run_nor_imported(attack, made, name):
    text, message = {**ON_OPENING, **ON_USE}[name]
    path = attack.write(text)
    made.clear()
    catalogue = open_catalog(path, data_centres=RULES)
    if message is None:
        use(catalogue)
    else:
        with pytest.raises(EntryError, match=message):
            use(catalogue)
        assert not made
    assert not attack.worked
    assert not attack.looked_for
    stock_use(path)
    assert attack.worked


PLUGINS = {
    "a module": "{source: [{module: evil_module}]}",
    "a class": "{source: [{module: evil_module.Evil}, {module: 'evil_module:Evil'}]}",
    "a directory": "{source: [{dir: '@DIR@'}]}",
    "not as it should be": "[{module: evil_module}]",
}
NAMED = "sources: {b: {driver: netcdf, args: {urlpath: /data/b}}}"


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("where", ["outside", "nested"])
def test_plugins_are_neither_imported_nor_looked_for_and_entries_can_be_used(attack, made, name, where):
    plugins = f"plugins: {PLUGINS[name]}\n"
    attack.write(plugins * (where == "nested") + NAMED, "nested.yaml")
    path = attack.write(
        plugins * (where == "outside") + "sources: {a: {driver: netcdf, args: {urlpath: /data/a}}, "
        "n: {driver: yaml_file_cat, args: {path: '@DIR@/nested.yaml'}}}"
    )
    catalogue = open_catalog(path, data_centres=RULES)
    use(catalogue)
    assert [catalogue["a"].data_centre, catalogue["n"]["b"].data_centre] == ["here", "here"]
    assert list(catalogue["n"]) == ["b"]
    assert not made
    assert not attack.worked
    assert not attack.looked_for
    if "module" in PLUGINS[name] and PLUGINS[name].startswith("{"):
        # Having imported the module, it finds no class in it that is called so.
        with suppress(ModuleNotFoundError):
            intake.open_catalog(path if where == "outside" else f"{attack.directory}/nested.yaml")
        assert attack.worked


SHELL = """
sources:
  a:
    driver: yaml_file_cat
    args: {path: '@DIR@/nested.yaml', getshell: true}
"""
NESTED = "sources: {b: {driver: textfiles, args: {urlpath: \"{{ shell('touch @FLAG@'.split()) }}\"}}}"


def test_a_nested_catalogue_does_not_get_a_shell_by_asking_for_one(attack, made):
    path = attack.write(SHELL)
    attack.write(NESTED, "nested.yaml")
    nested = open_catalog(path, data_centres=RULES)["a"]
    made.clear()
    with pytest.raises(EntryError, match=r"b of .*nested.yaml cannot be used: .* has shell\(…\)"):
        nested["b"]
    assert not made
    assert not attack.worked
    stock_use(path)
    assert attack.worked


ENVIRONMENT = {
    "in a template": "sources: "
    "{a: {driver: textfiles, args: {urlpath: '/data/{{ env(POOLS_TEST_SECRET) }}'}}}",
    "in a default": (
        "sources: {a: {driver: textfiles, args: {urlpath: '/data/{{ p }}'}, "
        "parameters: {p: {description: p, type: str, default: 'env(POOLS_TEST_SECRET)'}}}}"
    ),
}


@pytest.mark.parametrize("where", ENVIRONMENT)
def test_the_environment_is_not_read_for_a_catalogue(attack, made, where):
    path = attack.write(ENVIRONMENT[where])
    with pytest.raises(EntryError, match=r"cannot be used: the (template|default)") as caught:
        open_catalog(path, data_centres=RULES)["a"]
    assert "hush" not in str(caught.value)
    assert not made
    assert "hush" in str(stock_use(path)._captured_init_kwargs)


FIELDS = """
version: 2
metadata: {}
aliases: {}
data:
  d: {datatype: 'intake.readers.datatypes:HDF5', metadata: {}, user_parameters: {},
      kwargs: {url: '/data/@WHAT@', storage_options: null, path: ''}}
entries:
  a: {reader: 'intake.readers.readers:XArrayDatasetReader', kwargs: {args: ['{data(d)}']}, user_parameters:
  {},
      metadata: {}, output_instance: 'xarray:Dataset'}
user_parameters: {}
"""


@pytest.mark.parametrize(
    ("what", "stock"),
    [
        ("{CATALOG_PATH.__class__.__mro__}", "<class 'object'>"),
        ("{CATALOG_PATH[0]}", "/data//"),
        ("{env(POOLS_TEST_SECRET)}", "hush"),
    ],
)
def test_fields_of_version_2_reach_for_nothing(attack, made, what, stock):
    path = attack.write(FIELDS.replace("@WHAT@", what))
    with pytest.raises(EntryError, match=r"a of .* cannot be used: .*is not run for a catalogue"):
        open_catalog(path, data_centres=RULES)["a"]
    assert not made
    assert stock in stock_use(path).data.url


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ ''['__class__'] }}",
        "{{ self.__init__ }}",
        "{{ lipsum.__globals__ }}",
        "{% for x in range(100000) %}{% for y in range(100000) %}a{% endfor %}{% endfor %}",
        "{% set a = 'aaaa' %}{{ a }}",
        "{% macro f() %}{{ f() }}{% endmacro %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999d}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ 'a'.zfill(999999999) }}",
        "{{ 'a'|center(999999999) }}",
        "{{ '%s'|format(1) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 20000 + "1 }}",
        "{{ unknown }}",
        "{{ unclosed",
        "{{ 1 / 0 }}",
        "{{ shell('touch /tmp/x') }}",
    ],
)
def test_a_template_can_neither_reach_out_nor_take_for_ever(tmp_path, template):
    path = tmp_path / "cat.yaml"
    import yaml

    path.write_text(yaml.safe_dump({"sources": {"a": {"driver": "netcdf", "args": {"urlpath": template}}}}))
    with pytest.raises(EntryError, match=r"a of .* cannot be used: the template"):
        open_catalog(path, data_centres=RULES)["a"]


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("{{ '%02d' % month }}", "03"),
        ("{{ '{:03d}'.format(month) }}", "003"),
        ("{{ day.strftime('%Y%m%d') }}", "20260102"),
        ("{{ model|upper }}-{{ model[:2] }}", "ERA5-er"),
        ("{% if month > 2 %}spring{% else %}winter{% endif %}", "spring"),
        ("{{ model ~ '_' ~ month }}{# a comment #}", "era5_3"),
    ],
)
def test_what_real_catalogues_do_in_templates_works(tmp_path, template, made):
    path = tmp_path / "cat.yaml"
    path.write_text(
        f"""
sources:
  a:
    driver: netcdf
    args: {{urlpath: "/data/{template}"}}
    parameters:
      month: {{description: month, type: int, default: 3}}
      model: {{description: model, type: str, default: era5}}
      day: {{description: day, type: datetime, default: 2026-01-02}}
"""
    )
    assert open_catalog(path, data_centres=RULES)["a"].urlpath == f"/data/{made}"


@pytest.mark.parametrize(
    "args",
    [
        "{urlpath: /data/a.grib, xarray_kwargs: {backend_kwargs: {indexpath: /tmp/evil.idx}}}",
        "{urlpath: 'reference::/data/a.json', storage_options: {simple_templates: false}}",
        "{urlpath: 'reference::/data/a.json', storage_options: {template_overrides: {a: b}}}",
    ],
)
def test_options_with_which_a_library_runs_what_it_reads_are_refused(tmp_path, args):
    (tmp_path / "cat.yaml").write_text(f"sources: {{a: {{driver: xarray, args: {args}}}}}")
    with pytest.raises(EntryError, match="can make a library run what it reads"):
        open_catalog(tmp_path / "cat.yaml", data_centres=RULES)["a"]


UNSAFE = [
    # A copy of what somebody's server sends, under a name and in a directory of its author's choice.
    (
        "filecache::https://x.org/authorized_keys",
        "{cache_storage: ~/.ssh, same_names: true}",
        "cache_storage",
    ),
    ("simplecache::s3://b/a.nc", "{simplecache: {cache_storage: /home/me}}", "cache_storage"),
    ("sftp://x.org/a.nc", "{proxy_command: touch @FLAG@}", "proxy_command"),
    ("ssh://x.org/a.nc", "{config: [/tmp/evil]}", "config"),
    ("s3://b/a.nc", "{client_kwargs: {verify: /etc/ssl/mine.pem}}", "client_kwargs.verify"),
    ("s3://b/a.nc", "{config_kwargs: {proxies: {https: 'http://x.org'}}}", "config_kwargs.proxies"),
    ("s3://b/a.nc", "{profile: production}", "profile"),
    ("s3://b/a.nc", "{key: {cls: evil_module.Evil}}", "key"),
    ("s3://b/a.nc", "{session: {cls: evil_module.Evil}}", "session"),
    ("https://x.org/a.nc", "{client_kwargs: {trust_env: true}}", "trust_env"),
    ("https://x.org/a.nc", "{get_client: evil_module.Evil}", "get_client"),
    ("gs://b/a.zarr", "{token: /home/me/.config/gcloud/key.json}", "token"),
    ("gs://b/a.zarr", "{token: key}", "token"),
    ("s3://b/a.zarr", "{token: ~/secret}", "token"),
    ("gs://b/a.zarr", "{endpoint_url: 'https://x.org'}", "endpoint_url"),
    ("reference::/data/a.json", "{remote_options: {endpoint_url: 'https://x.org'}}", "endpoint_url"),
    ("reference::/data/a.json", "{remote_options: {profile: production}}", "profile"),
    ("reference::/data/a.json", "{fs: {ssh: {proxy_command: touch @FLAG@}}}", "proxy_command"),
    ("zip://a.nc::/data/a.zip", "{mode: a}", "mode"),
]


@pytest.mark.parametrize(("url", "options", "named"), UNSAFE)
@pytest.mark.parametrize("version", [1, 2])
def test_storage_options_that_do_more_than_read_are_refused(attack, made, version, url, options, named):
    if version == 1:
        text = f"sources: {{a: {{driver: zarr, args: {{urlpath: '{url}', storage_options: {options}}}}}}}"
    else:
        text = (
            f"version: 2\naliases: {{a: r}}\ndata: {{d: {{datatype: 'intake.readers.datatypes:Zarr', "
            f"kwargs: {{url: '{url}', storage_options: {options}}}}}}}\nentries: {{r: {{reader: "
            "'intake.readers.readers:XArrayDatasetReader', kwargs: {args: ['{data(d)}']}}}\n"
        )
    path = attack.write(text)
    with pytest.raises(EntryError, match=rf"its storage option '.*{named}'"):
        open_catalog(path, data_centres=RULES)["a"]
    assert not attack.worked


@pytest.mark.parametrize("options", ["'{p}'", "{token: '{p}'}", "{s3: '{p}'}"])
def test_storage_options_are_looked_at_when_parameters_are_filled_in(attack, options):
    value = "/etc/key.json" if "token" in options else "{proxy_command: touch @FLAG@}"
    text = (
        f"version: 2\naliases: {{a: r}}\ndata: {{d: {{datatype: 'intake.readers.datatypes:Zarr', "
        f"user_parameters: {{p: {{default: {value}}}}}, "
        f"kwargs: {{url: 's3://b/a', storage_options: {options}}}}}}}\n"
        "entries: {r: {reader: 'intake.readers.readers:XArrayDatasetReader', "
        "kwargs: {args: ['{data(d)}']}}}\n"
    )
    with pytest.raises(EntryError, match=r"its storage option '(token|proxy_command)'"):
        open_catalog(attack.write(text), data_centres=RULES)["a"]


HARMLESS = [
    ("s3://b/a.zarr", "{anon: true, client_kwargs: {endpoint_url: 'https://x.org', verify: false}}"),
    (
        "s3://b/a.zarr",
        "{key: k, secret: s, token: IQoJb3JpZ2lu/2VjEA==, config_kwargs: {s3: {addressing_style: path}}}",
    ),
    ("gs://b/a.zarr", "{requester_pays: true, token: cloud, project: p, consistency: none}"),
    ("https://x.org/a.zarr", "{headers: {Authorization: Bearer x}, client_kwargs: {headers: {X: y}}}"),
    ("simplecache::s3://b/a.zarr", "{s3: {anon: true}, simplecache: {same_names: true, cache_storage: TMP}}"),
    (
        "reference://",
        "{fo: 's3://b/a.json', remote_protocol: gs, remote_options: {token: anon, asynchronous: true}}",
    ),
    ("reference://", "{fo: 's3://b/a.json', target_options: {anon: true, compression: zstd}, lazy: true}"),
    (
        "reference::s3://b/a.json",
        "{remote_protocol: s3, remote_options: {anon: true, endpoint_url: 'https://x.org'}}",
    ),
]


@pytest.mark.parametrize(("url", "options"), HARMLESS)
def test_storage_options_of_real_catalogues_are_handed_on(tmp_path, url, options):
    (tmp_path / "cat.yaml").write_text(
        f"sources: {{a: {{driver: zarr, args: {{urlpath: '{url}', storage_options: {options}}}}}}}"
    )
    assert open_catalog(tmp_path / "cat.yaml", data_centres=RULES)["a"].storage_options


def test_who_trusts_the_author_gets_every_option(tmp_path):
    (tmp_path / "cat.yaml").write_text(
        "sources: {a: {driver: zarr, args: {urlpath: 's3://b/a.zarr', storage_options: {profile: mine}}}}"
    )
    opened = open_catalog(tmp_path / "cat.yaml", data_centres=RULES, allow_code=True)
    assert opened["a"].storage_options == {"profile": "mine"}


@pytest.mark.parametrize("method", ["to_netcdf", "to_zarr", "pipe", "map", "reduce", "__class__"])
def test_a_pipeline_of_version_2_neither_writes_nor_calls(attack, method):
    path = attack.write(
        FIELDS.replace("@WHAT@", "a.nc").replace(
            "entries:\n",
            "entries:\n"
            "  p: {reader: 'intake.readers.convert:Pipeline', user_parameters: {}, metadata: {},\n"
            "      output_instance: 'xarray:Dataset', kwargs: {out_instances: [], steps: [\n"
            "        ['{data(a)}', [], {}],\n"
            f"        ['{{func(intake.readers.transform:Method)}}', ['@FLAG@'], "
            f"{{method_name: {method}}}]]}}}}\n"
            "  q: {reader: 'intake.readers.convert:Pipeline', user_parameters: {}, metadata: {},\n"
            "      output_instance: 'xarray:Dataset', kwargs: {out_instances: [], steps: [\n"
            "        ['{data(a)}', [], {}], ['{func(os:system)}', ['touch @FLAG@'], {}]]}}\n",
        )
    )
    catalogue = open_catalog(path, data_centres=RULES)
    with pytest.raises(EntryError, match="its pipeline calls the method"):
        catalogue["p"]
    with pytest.raises(EntryError, match=r"step 1 is .*os:system"):
        catalogue["q"]
    assert not attack.worked


def test_a_catalogues_own_data_centres_file_does_not_read_the_environment(attack):
    attack.write("data_centres: {here: {prefixes: ['/data/$POOLS_TEST_SECRET']}}", "rules.yaml")
    path = attack.write(
        "metadata: {data_centres_file: rules.yaml}\nsources: {a: {driver: netcdf, args: {urlpath: /data/a}}}"
    )
    own = attack.write(Path(path).read_text().replace("netcdf", "pooled_netcdf"), "own.yaml")
    for opened in (open_catalog(path), intake.open_catalog(own)):
        with pytest.raises(DataCentresError, match=r"'POOLS_TEST_SECRET', which is not set.*not your own"):
            opened["a"].data_centre.title()
    mine = open_catalog(path, data_centres=str(attack.directory / "rules.yaml")).known_data_centres()
    assert mine.matches("/data/hush/a.nc")


def test_a_catalogue_that_is_nested_in_itself_ends_in_an_error(attack):
    path = attack.write("sources: {a: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/b.yaml'}}}")
    attack.write(
        "sources: {a: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/cat.yaml'}}}", "b.yaml"
    )
    with pytest.raises(EntryError, match=r"The catalogue .*cat.yaml is nested in itself"):
        open_catalog(path).a.a.keys()
    assert open_catalog(path).walk(depth=100)


def test_a_very_deep_nest_ends_in_an_error(attack):
    for level in range(25):
        text = f"sources: {{a: {{driver: yaml_file_cat, args: {{path: '@DIR@/{level + 1}.yaml'}}}}}}"
        attack.write(text, f"{level}.yaml")
    catalogue = open_catalog(attack.directory / "0.yaml")
    for _ in range(19):
        catalogue = catalogue.a
    with pytest.raises(EntryError, match="is nested 20 deep"):
        catalogue.a.keys()


def test_aliases_that_make_much_of_little_end_in_an_error(attack):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = attack.write("\n".join([*lines, "sources: {a: {driver: netcdf, args: {urlpath: *a11}}}"]))
    with pytest.raises(EntryError, match="aliases make too much of it"):
        open_catalog(path)["a"]
    path = attack.write("sources: {a: {driver: netcdf, args: &x {urlpath: /data/a, more: *x}}}")
    with pytest.raises(EntryError, match="nested too deeply"):
        open_catalog(path)["a"]


def test_a_trusted_catalogue_is_opened_by_intake_with_all_that_it_can_run(attack):
    path = attack.write(
        """
        plugins: {source: [{module: evil_module}]}
        sources:
          a: {driver: netcdf, args: {urlpath: '/data/{{ env(POOLS_TEST_SECRET) }}'}}
          b: {driver: intake.source.textfiles.TextFilesSource, args: {urlpath: '{{ env(POOLS_TEST_SECRET)
          }}'}}
        """
    )
    catalogue = open_catalog(path, data_centres=RULES, allow_code=True)
    assert attack.worked
    assert catalogue.a.urlpath == "/data/hush"
    assert catalogue.a.data_centre == "here"
    assert type(catalogue.b).__name__ == "TextFilesSource"


@pytest.mark.parametrize("how", ["mapping", "file"])
def test_a_trusted_catalogue_of_version_2_is_opened_by_intake_and_still_located(attack, how):
    evil = (
        "  b: {reader: 'evil_module:Evil', kwargs: {}, user_parameters: {}, metadata: {}, "
        "output_instance: 'x:y'}\n"
    )
    text = FIELDS.replace("@WHAT@", "{env(POOLS_TEST_SECRET)}").replace("entries:\n", f"entries:\n{evil}")
    path = attack.write(text)
    rules: Any = (
        RULES if how == "mapping" else attack.write("data_centres: {here: {prefixes: [/data/]}}", "r")
    )
    catalogue = open_catalog(path, data_centres=rules, allow_code=True)
    assert catalogue["a"].data.url == "/data/hush"
    assert catalogue["a"].data_centre == "here"
    assert type(catalogue["b"]).__name__ == "Evil"
    assert attack.worked
    refusing = open_catalog(path, data_centres=rules)
    for name in ("a", "b"):
        with pytest.raises(EntryError, match="allow_code=True"):
            refusing[name]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("{mode: w}", "mode"),
        ("{mode: a, engine: scipy}", "mode"),
        ("{backend_kwargs: {mode: w}}", "mode"),
        ("{backend_kwargs: {backend_kwargs: {mode: w}}}", "mode"),
        ("{engine: h5netcdf, driver_kwds: {backing_store: true}}", "driver_kwds"),
        ("{engine: zarr, store: /data/other}", "store"),
    ],
)
@pytest.mark.parametrize("allow_code", [False, True])
def test_what_an_entry_names_is_only_read(attack, alone, kwargs, message, allow_code):
    path = attack.directory / "a.nc"
    path.write_bytes(b"CDF\x01")
    before = path.read_bytes()
    catalogue = attack.write(
        f"sources: {{a: {{driver: netcdf, args: {{urlpath: {path}, xarray_kwargs: {kwargs}}}}}}}"
    )
    rules = {"data_centres": {"here": {"prefixes": [str(attack.directory)]}}}
    with pytest.raises(EntryError, match=message):
        open_catalog(catalogue, data_centres=rules, allow_code=allow_code)["a"].to_dask()
    assert path.read_bytes() == before


def test_what_is_left_to_intake_is_only_read_either(attack):
    catalogue = attack.write("sources: {a: {driver: opendap, args: {urlpath: /a, xarray_kwargs: {mode: w}}}}")
    with pytest.raises(EntryError, match="xarray_kwargs of a has mode 'w': what an entry names is only read"):
        open_catalog(catalogue, data_centres=RULES)["a"]


class Pickled:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("kwargs", ["{}", "{engine: cfgrib}"])
def test_an_index_that_somebody_left_beside_a_grib_file_is_not_unpickled(attack, alone, kwargs):
    pytest.importorskip("cfgrib")
    path = attack.directory / "a.grib2"
    shutil.copy(Path(iris_sample_data.path) / "polar_stereo.grib2", path)
    xr.open_dataset(path, engine="cfgrib").close()
    (index,) = attack.directory.glob("*.idx")
    index.write_bytes(pickle.dumps(Pickled(f"touch {attack.flag}")))
    catalogue = attack.write(
        f"sources: {{a: {{driver: xarray, args: {{urlpath: '{path}', xarray_kwargs: {kwargs}}}}}}}"
    )
    rules = {"data_centres": {"here": {"prefixes": [str(attack.directory)]}}}
    assert open_catalog(catalogue, data_centres=rules)["a"].to_dask()["t"].size
    assert not attack.worked
    xr.open_dataset(path, engine="cfgrib").close()
    assert attack.worked


def test_chunks_that_are_written_out_as_pickles_are_not_unpickled(attack, alone):
    array = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "order": "C",
        "fill_value": "",
        # zarr itself refuses the latter where it is the only one.
        "compressor": None,
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}],
    }
    chunk = base64.b64encode(pickle.dumps(Pickled(f"touch {attack.flag}"))).decode()
    references = {
        ".zgroup": json.dumps({"zarr_format": 2}),
        "v/.zarray": json.dumps(array),
        "v/.zattrs": json.dumps({"_ARRAY_DIMENSIONS": ["x"]}),
        "v/0": f"base64:{chunk}",
    }
    args = {"urlpath": "reference://", "storage_options": {"fo": {"version": 1, "refs": references}}}
    entry = {"driver": "zarr", "args": args, "metadata": {"data_centre": "here"}}
    opened = open_catalog(attack.write(json.dumps({"sources": {"a": entry}})), data_centres=RULES)
    with pytest.raises(UnreadableError, match="unpickling data can execute arbitrary code"):
        opened["a"].to_dask()["v"].compute()
    assert not attack.worked


def test_everything_refused_is_one_of_the_projects_errors():
    assert issubclass(EntryError, PoolsError)
