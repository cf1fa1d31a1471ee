"""`dask pools locate`, `dask pools catalog list` and `dask pools catalog check`."""

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dask_pools.cli import COMMANDS
from intake_pools import cli

RULES = """\
data_centres:
  ecmwf:
    prefixes: [/data/, /data/ecmwf/]
  eumetsat:
    prefixes: [s3://eumetsat-]
    endpoints: [https://s3.eumetsat.int]
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.yaml").write_text(RULES)
    return str(tmp_path / "rules.yaml")


def run(command, *arguments) -> Result:
    result = CliRunner().invoke(command, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_commands_are_plugins_of_dask_pools():
    assert {"catalog", "locate"} <= set(entry_points(group=COMMANDS).names)


def test_locate_prints_the_data_centre_the_rule_its_line_and_the_runners_up(rules):
    result = run(cli.locate, "/data/ecmwf/a.nc", "s3://me:hush@eumetsat-x/a", "--data-centres", rules)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"/data/ecmwf/a.nc: ecmwf, by prefix /data/ecmwf/ ({rules}, line 3)",
        f"  else ecmwf, by prefix /data/ ({rules}, line 3)",
        f"s3://eumetsat-x/a: eumetsat, by prefix s3://eumetsat- ({rules}, line 5)",
    ]


def test_locate_takes_an_endpoint(rules):
    result = run(cli.locate, "s3://x/a", "--data-centres", rules, "--endpoint", "https://s3.eumetsat.int")
    assert result.output.startswith("s3://x/a: eumetsat, by endpoint https://s3.eumetsat.int")


def test_locate_fails_on_what_is_not_located_after_saying_all(rules):
    result = run(cli.locate, "/elsewhere/a.nc", "/data/b.nc", "--data-centres", rules)
    assert result.exit_code == 1
    first, second, *_ = result.output.splitlines()
    assert first.startswith("/elsewhere/a.nc: not located. No data centre hosts /elsewhere/a.nc.")
    assert second.startswith("/data/b.nc: ecmwf")


def test_a_file_of_rules_that_is_missing_is_one_line(tmp_path):
    result = run(cli.locate, "/a", "--data-centres", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: The data-centres file .*none.yaml cannot be read: .*\n", result.output)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    (tmp_path / "nested.yaml").write_text("sources: {z: {driver: zarr, args: {urlpath: s3://eumetsat-x/z}}}")
    (tmp_path / "cat.yaml").write_text(
        "sources:\n"
        "  here: {driver: netcdf, args: {urlpath: /data/a.nc}}\n"
        "  table: {driver: csv, args: {urlpath: /data/a.csv}}\n"
        "  more: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/nested.yaml'}}\n"
    )
    return tmp_path / "cat.yaml"


def test_catalog_list_has_every_entry_nested_ones_too(catalogue, rules):
    result = run(cli.catalog, "list", catalogue, "--data-centres", rules)
    assert result.output.splitlines() == ["here\tecmwf", "table\tIntake", "more.z\teumetsat"]


def test_catalog_check_of_a_sound_catalogue_succeeds_with_a_table(catalogue, rules):
    result = run(cli.catalog, "check", catalogue, "--data-centres", rules)
    assert result.exit_code == 0, result.output
    assert "more.z" in result.output
    assert result.output.endswith("3 entries, 0 of them with a problem.\n")


def test_catalog_check_fails_for_what_cannot_be_located_or_used(catalogue, rules):
    catalogue.write_text(
        catalogue.read_text()
        + "  lost: {driver: netcdf, args: {urlpath: /elsewhere/a.nc}}\n"
        + "  bad: {driver: os.system}\n"
        + "  cycle: {driver: yaml_file_cat, args: {path: '{{ CATALOG_DIR }}/cat.yaml'}}\n"
    )
    result = run(cli.catalog, "check", catalogue, "--data-centres", rules)
    assert result.exit_code == 1
    assert result.output.endswith("6 entries, 3 of them with a problem.\n")
    for part in ("unlocated", "unsupported", "os.system", "is nested in itself"):
        assert part in result.output


def test_catalog_check_opens_entries_in_their_pools(client, pools, ecmwf, forecast, named, write, tmp_path):
    write(forecast, ecmwf / named)
    (tmp_path / "cat.yaml").write_text(
        f"sources:\n"
        f"  there: {{driver: netcdf, args: {{urlpath: {named}}}, metadata: {{data_centre: ecmwf}}}}\n"
        f"  gone: {{driver: netcdf, args: {{urlpath: none.nc}}, metadata: {{data_centre: ecmwf}}}}\n"
    )
    result = run(
        cli.catalog, "check", tmp_path / "cat.yaml", "--open", "--scheduler", pools.scheduler_address
    )
    assert result.exit_code == 1
    assert result.output.endswith("2 entries, 1 of them with a problem.\n")
    assert "there is no" in " ".join(result.output.split())
