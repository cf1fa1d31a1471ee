"""`dask pools site`: what runs on a control host; the cluster types it there through SSH.

`attach` connects its standard input and output with the agent of a cluster, starting that where there is
none. The agent is a process of its own, in a session of its own, so that it stays when the channel breaks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click
from pydantic import TypeAdapter

from dask_pools.cluster.launchers import Launcher
from dask_pools.errors import MeshError
from dask_pools.mesh.host import CARRY_ON, remove_leftovers
from dask_pools.mesh.rootless import entry
from dask_pools.mesh.wireguard import free_port
from dask_pools.sites import protocol
from dask_pools.sites.agent import Agent, MakeLauncher, Surroundings
from dask_pools.sites.home import Home, HomeError, homes

__all__ = ["site"]

# Seconds until an agent that was just started answers; a disk may be slow and a machine busy.
START_TIMEOUT = 60.0
# Seconds until one that is told to take everything down is gone: its own limit, and some.
DOWN_TIMEOUT = 45.0

DIRECTORY = click.option(
    "--directory",
    type=click.Path(file_okay=False),
    help="Where agents keep their files, in place of the directory for temporary files.",
)


def _host(surroundings: Surroundings) -> Launcher:
    from dask_pools.cluster.launchers.local import LocalLauncher

    return LocalLauncher(surroundings.scratch, host=surroundings.listen)


def _docker(surroundings: Surroundings) -> Launcher:
    from dask_pools.cluster.launchers.docker import DockerOptions

    options = DockerOptions(**surroundings.options)
    return options.of(host=surroundings.listen, hand_over=surroundings.hand_over, tethered=True)


LAUNCHERS: dict[str, MakeLauncher] = {"host": _host, "docker": _docker}
"""How workers are started, by the names that the protocol has."""


@click.group()
def site() -> None:
    """Serve a cluster on this control host; clusters call this through SSH."""


def _named(context: click.Context, parameter: click.Parameter, cluster: str) -> str:
    """Take the name of a cluster, which is that of a directory, and nothing else."""
    try:
        return TypeAdapter(protocol.ClusterName).validate_python(cluster)
    except ValueError:
        raise click.BadParameter("a cluster's name has 8 to 64 small letters, digits and -") from None


@site.command()
@click.argument("cluster", callback=_named)
@click.option("--again", is_flag=True, help="Only if its agent runs already.")
@click.option("--mesh", is_flag=True, help="Start the agent where it can make a mesh.")
@click.option("--udp-port", type=int, help="UDP port at which others reach this host; 0 for any.")
@DIRECTORY
def attach(cluster: str, again: bool, mesh: bool, udp_port: int | None, directory: str | None) -> None:
    """Connect standard input and output with the agent of CLUSTER, and start that if it does not run."""
    try:
        home = Home(cluster, directory)
        starting = None
        _remove_mesh(home)
        if home.make():
            if again:
                home.remove()
                _refuse(f"The agent of cluster {cluster} does not run any more.", gone=True)
            starting = _start(home, mesh, udp_port)
        _bridge(_connect(home, starting))
    except (HomeError, MeshError) as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or home.path} cannot be used: {error.strerror or error}.")


@site.command(name="list")
@DIRECTORY
def list_agents(directory: str | None) -> None:
    """List the agents that run here as this user, and what killed ones have left."""
    try:
        for home in homes(directory):
            state = "runs" if home.in_use() else "was killed; `dask pools site down` removes what it left"
            click.echo(f"{home.cluster}  {state}  {home.path}")
    except HomeError as error:
        raise click.ClickException(str(error)) from None


@site.command()
@click.argument("clusters", nargs=-1)
@DIRECTORY
def down(clusters: tuple[str, ...], directory: str | None) -> None:
    """Take down the agents of CLUSTERS, or of all, with all that they started, and remove their files."""
    try:
        found = [home for home in homes(directory) if not clusters or home.cluster in clusters]
        for home in found:
            if home.in_use():
                _tell_to_end(home)
            _remove_mesh(home)
            if home.make():
                home.remove()
            else:
                raise click.ClickException(
                    f"The agent of {home.cluster} has not ended within {DOWN_TIMEOUT:g} s; see {home.log}."
                )
            click.echo(f"{home.cluster}  is down")
        if not clusters:
            # The scheduler's part of meshes, where its process was killed.
            for interface in remove_leftovers():
                click.echo(f"{interface}  is removed")
    except HomeError as error:
        raise click.ClickException(str(error)) from None


def _remove_mesh(home: Home) -> None:
    """Remove the interface that an agent has left which was killed."""
    if home.mesh.is_dir() and not home.in_use():
        remove_leftovers(home.mesh)


@site.command(hidden=True)
@click.argument("cluster", callback=_named)
@click.argument("path", type=click.Path(file_okay=False, path_type=Path))
@click.option("--udp-port", type=int)
@click.option("--address")
def agent(cluster: str, path: Path, udp_port: int | None, address: str | None) -> None:
    """Be the agent of CLUSTER, in the name spaces that `attach` has started this in."""
    home = Home(cluster, path=path)
    if not home.make():
        raise click.ClickException("There is one already.")
    _serve(home, address, udp_port)


def _start(home: Home, mesh: bool, udp_port: int | None) -> int:
    """Start the agent; its process."""
    try:
        # Of an agent that was killed, what kept the port may just be ending.
        port = None if udp_port is None else free_port(udp_port or None, CARRY_ON)
        inside = entry(port) if mesh else ()
    except MeshError:
        home.remove()
        raise
    starting = os.fork()
    if starting == 0:
        _be_agent(home, inside, port)
    # The lock is the agent's now, and would otherwise be this process's as well.
    home.release()
    return starting


def _be_agent(home: Home, inside: tuple[str, ...], udp_port: int | None) -> NoReturn:
    """Go on as the agent, in a session of its own, with nothing of the channel.

    With the beginning of a command that leads to other name spaces, the agent is a program in there.
    """
    status = 1
    try:
        os.setsid()
        log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, to in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, to)
        if inside:
            home.release()
            own = [sys.executable, "-P", "-m", "dask", "pools", "site", "agent"]
            port = ["--udp-port", str(udp_port)] if udp_port else []
            address = ["--address", there] if (there := _address()) else []
            os.execvp(inside[0], [*inside, *own, home.cluster, str(home.path), *port, *address])
        _serve(home, _address(), None)
        status = 0
    except BaseException:
        logging.getLogger(__name__).exception("The agent ended.")
    finally:
        # Not through what the calling process would still do at its end.
        os._exit(status)


def _serve(home: Home, address: str | None, udp_port: int | None) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    logging.raiseExceptions = False  # a full disk is no reason to stop
    asyncio.run(Agent(home, LAUNCHERS, address, udp_port).serve())


def _address() -> str | None:
    """Address of this host that SSH came in by; sshd tells (sshd(8), SSH_CONNECTION)."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[2] if len(connection) == 4 else None


def _connect(home: Home, starting: int | None = None) -> socket.socket:
    """Connect with the agent, which may only just be starting, as a child of this process."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(os.fspath(home.socket))
            return channel
        except OSError as error:
            channel.close()
            # In this order: while it is about to take the lock, a look at that might be in its way.
            if (starting is None or os.waitpid(starting, os.WNOHANG)[0]) and not home.in_use():
                said = _last_line(home)
                raise HomeError(f"The agent ended as it started{': ' + said if said else ''}.") from None
            if time.monotonic() > deadline:
                raise HomeError(f"The agent does not answer: {error.strerror}. See {home.log}.") from None
        time.sleep(0.02)


def _last_line(home: Home) -> str:
    with suppress(OSError):
        lines = home.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def _bridge(channel: socket.socket) -> None:
    """Copy both ways, until either end closes."""
    with channel, selectors.DefaultSelector() as selector:
        ways = {0: channel.fileno(), channel.fileno(): 1}
        for source in ways:
            selector.register(source, selectors.EVENT_READ)
        with suppress(OSError):  # an end that is gone
            while True:
                for key, _ in selector.select():
                    piece = os.read(key.fd, 2**16)
                    if not piece:
                        return
                    while piece:
                        piece = piece[os.write(ways[key.fd], piece) :]


def _refuse(reason: str, gone: bool = False) -> NoReturn:
    sys.stdout.buffer.write(protocol.encode(protocol.Refused(reason=reason, gone=gone)))
    sys.stdout.flush()
    raise SystemExit(1)


def _tell_to_end(home: Home) -> None:
    """End the agent that has this directory, and wait until it is gone."""
    channel = _connect(home)
    with channel:
        pid = _process_of(channel)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT
    while home.in_use() and time.monotonic() < deadline:
        time.sleep(0.05)


def _process_of(channel: socket.socket) -> int:
    import struct

    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
