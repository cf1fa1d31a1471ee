"""`dask pools`: the group of this project's commands. It finds them by entry point and knows none of them."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

__all__ = ["COMMANDS", "PluginGroup", "pools"]

COMMANDS = "dask_pools.commands"
"""Entry point group of the sub-commands."""


class PluginGroup(click.Group):
    """Group whose sub-commands are entry points, each loaded only when it is needed.

    One that cannot be loaded, say because an optional dependency is missing, is still listed, with the
    reason; the others are not disturbed.
    """

    def __init__(self, *args: Any, plugins: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plugins = plugins

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the sub-commands, sorted."""
        return sorted({*super().list_commands(ctx), *entry_points(group=self.plugins).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Sub-command of this name, or None."""
        if command := super().get_command(ctx, cmd_name):
            return command
        for entry_point in entry_points(group=self.plugins, name=cmd_name):
            return _load(entry_point)
        return None


def _load(entry_point: EntryPoint) -> click.Command:
    # Somebody else's code: whatever it raises must not take the other commands down with it.
    try:
        command = entry_point.load()
    except Exception as error:
        return _broken(entry_point, f"{type(error).__name__}: {error}")
    if not isinstance(command, click.Command):
        return _broken(entry_point, f"{entry_point.value} is a {type(command).__name__}, not a click command")
    return command


def _broken(entry_point: EntryPoint, reason: str) -> click.Command:
    owner = entry_point.dist.name if entry_point.dist else "an unknown distribution"

    def refuse(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(
            f"`{entry_point.name}`, which {owner} provides, cannot be loaded: {reason}"
        )

    return click.Command(
        entry_point.name,
        callback=refuse,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        short_help=f"(cannot be loaded: {reason})",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


@click.group(cls=PluginGroup, plugins=COMMANDS)
def pools() -> None:
    """Work on data where it lives: pools of Dask workers, one beside each data centre."""
