"""`dask pools`: sub-commands come from entry points, and a broken one disturbs nobody."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import click
import pytest
from click.testing import CliRunner

from dask_pools import cli


@click.command()
def fine() -> None:
    """Say that all is well."""
    click.echo("all is well")


@pytest.fixture
def plugins(monkeypatch):
    """Three plugins: one that works, one that cannot be imported, one that is no command."""
    found = EntryPoints(
        EntryPoint(name, value, cli.COMMANDS)
        for name, value in {
            "fine": f"{__name__}:fine",
            "missing": "no_such_module:command",
            "odd": "math:pi",
        }.items()
    )
    monkeypatch.setattr(cli, "entry_points", lambda **selection: found.select(**selection))


def run(*arguments: str):
    return CliRunner().invoke(cli.pools, arguments)


@pytest.mark.usefixtures("plugins")
def test_a_broken_plugin_does_not_disturb_the_others():
    assert run("fine").output == "all is well\n"
    listing = run("--help")
    assert listing.exit_code == 0
    assert "Say that all is well." in listing.output
    assert "missing" in listing.output


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    "arguments", [("missing",), ("missing", "--an-option", "value"), ("missing", "--help")]
)
def test_a_broken_plugin_says_why_when_it_is_called(arguments):
    result = run(*arguments)
    assert result.exit_code == 1
    assert "No module named 'no_such_module'" in result.output


@pytest.mark.usefixtures("plugins")
def test_an_entry_point_that_is_no_command_says_so():
    result = run("odd")
    assert result.exit_code == 1
    assert "math:pi is a float, not a click command" in result.output


@pytest.mark.usefixtures("plugins")
def test_an_unknown_command_is_refused():
    result = run("nothing")
    assert result.exit_code == 2
    assert "No such command 'nothing'" in result.output


def test_the_demo_is_found_without_being_imported_by_the_group():
    assert "demo" in cli.pools.list_commands(click.Context(cli.pools))
