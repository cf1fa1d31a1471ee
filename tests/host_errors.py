"""Ways to make hosts refuse, for tests/test_errors.py: no interface is made, no packet leaves this machine.

What a host may lack (IPv6, a program, the right to make interfaces) is hidden from our code for as long as
the call takes; the refusals of real hosts are in tests/lab.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dask_pools.cluster.launchers import docker
from dask_pools.errors import MeshError
from dask_pools.mesh import host, rootless, wireguard
from dask_pools.mesh.host import HostMesh, Offer
from dask_pools.mesh.plan import Site, make_plan
from dask_pools.sites import protocol, ssh
from dask_pools.sites.agent import Agent
from dask_pools.sites.home import Home

Provocation = Callable[[], Any]

PLAN = make_plan([Site("client"), Site("ecmwf", "open", "127.0.0.1")], seed=20)
ROUTER = PLAN.router("ecmwf")
KEY = "A" * 43 + "="
OFFER, OFFER_OF_ECMWF = Offer("client", KEY, 1000), Offer("ecmwf", KEY, 1000)


@contextmanager
def patched(*changes: tuple[object, str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in changes:
            patch.setattr(owner, name, value)
        yield


def under(provocation: Provocation, *changes: tuple[object, str, Any]) -> Provocation:
    """The same, while attributes have other values."""

    def run() -> None:
        with patched(*changes):
            provocation()

    return run


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


def of_hosts(directory: Path) -> Iterator[Provocation]:
    """Hosts that can make no mesh, in the order of docs/errors.md."""
    yield from _of_directories(directory)
    yield from _of_plans(directory)
    yield from _of_users()
    yield from _of_commands()
    yield from _of_interfaces(directory)
    yield lambda: asyncio.run(Agent._join_mesh(SimpleNamespace(_mesh=None), None))  # type: ignore[arg-type]
    yield lambda: asyncio.run(_raised_after_the_end(Agent(Home("a-cluster", str(directory)), {})))
    yield _closed_port


async def _raised_after_the_end(agent: Agent) -> None:
    await agent._take_down()
    await agent._raise_mesh(protocol.RaiseMesh(number=1, router=ROUTER))


def _of_directories(directory: Path) -> Iterator[Provocation]:
    shared = directory / "shared" / ROUTER.interface
    shared.mkdir(parents=True)
    shared.chmod(0o755)
    yield HostMesh(ROUTER, shared.parent).raise_
    (directory / "file").write_text("")
    yield HostMesh(ROUTER, directory / "file").raise_
    yield partial(HostMesh.resume, ROUTER.interface, directory / "none")
    yield partial(HostMesh(ROUTER, directory / "none")._write_secret, "key", "")

    def taken() -> None:
        own = directory / "taken" / ROUTER.interface
        own.mkdir(parents=True, mode=0o700)
        held = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            HostMesh(ROUTER, own.parent).raise_()
        finally:
            os.close(held)

    yield taken


def _of_plans(directory: Path) -> Iterator[Provocation]:
    mesh = HostMesh(ROUTER, directory / "plans")
    other = replace(ROUTER, interface="dp-other")
    yield lambda: mesh.update(other, [])
    yield lambda: mesh.update(ROUTER, [], {"client": "no key"})
    yield lambda: mesh.add_address(IPv6Address("2001:db8::1"))
    own = PLAN.worker("ecmwf", 0)
    yield partial(mesh.hand_over, own, 2**22)  # there are no such numbers
    yield partial(mesh.hand_over, own, os.getpid())
    yield lambda: docker._first_process("no-such-container")
    yield from (_silent(site, offers, directory) for site in PLAN for offers in ([], [OFFER, OFFER_OF_ECMWF]))


def _silent(site: str, offers: list[Offer], directory: Path) -> Provocation:
    """A peer that does not answer, or does not call."""
    mesh = HostMesh(PLAN.router(site), directory / "silent")
    mesh._saved = replace(mesh._saved, offers=tuple(offers))
    return under(partial(mesh.wait, 0.0), (mesh, "_connected", set))


def _of_users() -> Iterator[Provocation]:
    may_not = (rootless, "can_make_interfaces", lambda: False)
    yield under(rootless.entry, may_not, (rootless.shutil, "which", lambda name: None))
    pasta = (rootless.shutil, "which", lambda name: f"/usr/bin/{name}")
    yield under(partial(rootless.entry, 53), may_not, pasta)
    failing = (rootless.subprocess, "run", raising(OSError("operation not permitted")))
    yield under(rootless.entry, may_not, pasta, failing)


def _of_commands() -> Iterator[Provocation]:
    yield lambda: wireguard.run(["false"])
    yield lambda: wireguard.run(["dask-pools-has-no-such-command"])
    yield under(lambda: wireguard.run(["sleep", "60"]), (wireguard, "PATIENCE", 0.01))
    yield lambda: wireguard.resolve("host.invalid", "ecmwf")

    def taken() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", 0))
            wireguard.free_port(other.getsockname()[1])

    yield taken


def _of_interfaces(directory: Path) -> Iterator[Provocation]:
    class Proc(io.StringIO):
        """What the system says of its addresses."""

        read_text = io.StringIO.read

    mesh = HostMesh(ROUTER, directory / "interfaces")
    yield under(mesh._check_alone, (host, "Path", raising(FileNotFoundError())))
    of_client = f"{int(PLAN.address('client')):032x} 05 40 00 80 dp-client\n"
    yield under(mesh._check_alone, (host, "Path", lambda path: Proc(of_client)))
    yield lambda: host._write_system(directory / "no-such-setting", "1")

    def made(*changes: tuple[object, str, Any]) -> Provocation:
        def run() -> None:
            interface = wireguard.Interface("dp-none")
            try:
                interface.create()
            finally:
                interface.close()

        no_kernel = (wireguard, "run", raising(MeshError("Unknown device type.")))
        return under(run, no_kernel, *changes)

    yield made((wireguard, "TUN", str(directory / "no-tun")))
    tun = (wireguard.fcntl, "ioctl", lambda *_: 0)
    anything = (wireguard, "TUN", os.devnull)
    yield made(tun, anything, (wireguard.subprocess, "Popen", raising(FileNotFoundError())))
    ended = partial(subprocess.Popen, ["false"])
    yield made(tun, anything, (wireguard.Interface, "_start", lambda self: ended()))


def _closed_port() -> None:
    """Connect where nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]

    async def connect() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(ssh.connect(ssh.ControlHost("127.0.0.1", port=port), 5))

    asyncio.run(connect())
