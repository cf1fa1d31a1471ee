"""`dask pools inside`: run a command where a mesh can be made, without root."""

from __future__ import annotations

import os

import click

from dask_pools.errors import MeshError
from dask_pools.mesh.rootless import entry

__all__ = ["inside"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--udp-port", type=int, help="UDP port that comes in from outside; none by default.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def inside(udp_port: int | None, command: tuple[str, ...]) -> None:
    """Run COMMAND where this user can make a mesh: in name spaces of its own, unless it is root.

    For the machine of the scheduler, if you are not root there: dask pools inside python script.py
    """
    try:
        start = entry(udp_port)
    except MeshError as error:
        raise click.ClickException(str(error)) from None
    try:
        os.execvp((*start, *command)[0], [*start, *command])
    except OSError as error:
        raise click.ClickException(f"{command[0]} cannot be started: {error.strerror}.") from None
