"""Ways in which control hosts and their agents fail, for tests/test_errors.py: nothing is connected with.

Both ends are the real ones, each with something else in place of the other; the failures of real hosts are in
tests/lab.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import click

from dask_pools import data_centres
from dask_pools.cluster import orphans
from dask_pools.errors import SiteError
from dask_pools.sites import agent as agents
from dask_pools.sites import cli, home, protocol, site, ssh
from dask_pools.sites.agent import Agent
from dask_pools.sites.certificates import Authority, make_key
from dask_pools.sites.home import Home
from dask_pools.sites.protocol import Lines
from dask_pools.sites.site import Site
from dask_pools.sites.ssh import ControlHost
from host_errors import Provocation, patched, raising, under

HOST = ControlHost("login.example.org")


def running(coroutine: Callable[[], Any]) -> Provocation:
    """Run something that a loop has to run."""
    return lambda: asyncio.run(coroutine())


class Heard:
    """A command on a control host that says something, and ends."""

    def __init__(self, *said: bytes, status: int | None = 1, wrote: str = "", silent: bool = False) -> None:
        self._said, self._end, self._silent = list(said), (status, wrote), silent

    async def read(self) -> bytes:
        """What it says next."""
        if self._said:
            return self._said.pop(0)
        return await asyncio.Event().wait() if self._silent else b""

    async def ended(self) -> tuple[int | None, str]:
        """How it ends."""
        return self._end

    async def __aenter__(self) -> Heard:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass


def of_sites(directory: Path) -> Iterator[Provocation]:
    """Sites that cannot be used, roughly in the order of docs/errors.md."""
    yield from _of_ssh()
    yield from _of_starting()
    yield from _of_agents(directory)
    yield from _of_protocol()
    yield from _of_homes(directory)


def _of_ssh() -> Iterator[Provocation]:
    async def connect(to: ControlHost = HOST) -> None:
        async with ssh.connect(to, 5):
            pass

    refusals = [asyncssh.PermissionDenied("no"), ConnectionRefusedError(), TimeoutError()]
    for refusal in refusals:
        yield under(running(connect), (ssh.asyncssh, "connect", raising(refusal)))
    yield running(partial(connect, ControlHost("login.example.org", config="/dev/null/config")))


def _site() -> Site:
    return Site("a", HOST, "a-cluster")


def _of_starting() -> Iterator[Provocation]:
    def greeted(heard: Heard) -> Provocation:
        return running(lambda: _site()._greeted(heard, Lines(), "attach"))

    done = protocol.encode(protocol.Done(number=1))
    for heard in (Heard(), Heard(status=127), Heard(status=None), Heard(b"Welcome!\n"), Heard(done)):
        yield greeted(heard)
    yield under(greeted(Heard(silent=True)), (site, "GREETING", 0.01))

    def listened(*said: bytes, **how: Any) -> Provocation:
        return running(lambda: _site()._listen(Heard(*said, **how), Lines()))

    yield listened()
    yield listened(silent=True)
    yield listened(protocol.encode(protocol.Leaving(reason="it got SIGTERM")))
    closed = _site()
    closed.state = "closed"
    yield running(closed.connected)
    yield running(partial(_site().ask, protocol.TakeDown))

    def taken_down() -> None:
        known = data_centres.load({"data_centres": {"a": {"site": {"host": "login.example.org"}}}})
        left = SimpleNamespace(cluster="a-cluster", ssh_config=None)
        with patched((ssh, "connect", lambda *_: Heard()), (ssh, "run", lambda *_: Heard())):
            asyncio.run(orphans._end_agent(left, known, "a", print))

    yield taken_down


def _of_agents(directory: Path) -> Iterator[Provocation]:
    at = str(directory)

    def agent() -> Agent:
        return Agent(Home("a-cluster", at), {})

    class Channel:
        """Where reports go; a refusal is raised."""

        def send(self, report: Any) -> None:
            if isinstance(report, protocol.Refused | protocol.Failed):
                raise SiteError(HOST.host, "asking its agent", report.reason)

        async def close(self) -> None:
            pass

    def heard(line: bytes) -> Provocation:
        async def listen() -> None:
            reader = asyncio.StreamReader()
            reader.feed_data(line)
            reader.feed_eof()
            await agent()._listen(reader, Channel())

        return running(listen)

    yield heard(
        protocol.encode(protocol.Hello(version="1", cluster="other-cluster", beat=1.0, lost_after=9.0))
    )
    yield heard(protocol.encode(protocol.Beat()))

    def ending(work: Callable[[Agent], Any]) -> Provocation:
        async def run() -> None:
            one = agent()
            one._end = asyncio.get_running_loop().create_future()
            await work(one)
            raise SiteError(HOST.host, "serving", await one._end)

        return running(run)

    def forgotten(one: Agent) -> Any:
        one._lost_after = -1.0
        return one._watch()

    yield ending(forgotten)
    nobody = (agents, "_user_of", lambda _: os.getuid()), (agents, "_Channel", lambda _: Channel())

    async def left(one: Agent) -> None:
        reader = asyncio.StreamReader()
        reader.feed_eof()
        await one._attached(reader, None)

    yield under(ending(left), *nobody)
    strangers = (agents, "_user_of", lambda _: -1), (agents, "_Channel", lambda _: Channel())
    yield under(running(lambda: agent()._attached(None, None)), *strangers)

    def order(**more: Any) -> protocol.StartWorker:
        shape = protocol.Shape()
        return protocol.StartWorker(number=1, name="w", scheduler="tcp://127.0.0.1:1", shape=shape, **more)

    async def called_off() -> None:
        one = agent()
        with patched((one, "_start_worker", lambda _: _cancelled())):
            Channel().send(await one._answer(order()))

    async def _cancelled() -> None:
        raise asyncio.CancelledError

    yield running(called_off)

    def twice() -> Any:
        one = agent()
        one._workers["w"] = SimpleNamespace()
        return one._start_worker(order())

    yield running(twice)
    yield running(lambda: agent()._start_worker(order()))
    yield lambda: Authority().sign("no request")

    def forged() -> None:
        own, other = make_key("a").request, make_key("b").request
        Authority().sign(_mixed(own, other))

    yield forged


def _mixed(own: str, other: str) -> str:
    """A request for a certificate with the signature of another one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    one, two = (x509.load_pem_x509_csr(text.encode()) for text in (own, other))
    der = one.public_bytes(Encoding.DER)
    length = len(one.signature)
    assert der.endswith(one.signature)
    forged = der[:-length] + two.signature[:length].ljust(length, b"\0")
    return x509.load_der_x509_csr(forged).public_bytes(Encoding.PEM).decode()


def _of_protocol() -> Iterator[Provocation]:
    yield partial(protocol.read_order, b'{"kind": "coffee"}')
    yield partial(protocol.read_order, json.dumps({"kind": "hello", "protocol": 99}).encode())
    yield partial(Lines().feed, b"a" * protocol.LIMIT)
    yield partial(protocol.encode, protocol.Refused(reason="a" * protocol.LIMIT))
    yield partial(protocol.encode, protocol.Refused(reason="\ud800"))


def _of_homes(directory: Path) -> Iterator[Provocation]:
    yield partial(Home, "a-cluster", path=Path("/" + "a" * 200))
    one = Home("b-cluster", str(directory))
    yield partial(cli._connect, one)
    yield under(partial(cli._connect, one), (one, "in_use", lambda: True), (cli, "START_TIMEOUT", -1.0))
    (directory / "not-a-directory").write_text("")
    yield Home("a-cluster", str(directory / "not-a-directory")).make
    (open_to_all := directory / "open").mkdir()
    yield partial(home._own, open_to_all)
    yield partial(_refused, "attach", ["a-cluster", "--again", "--directory", str(directory)])
    full = OSError(28, "No space left on device")
    yield under(partial(_refused, "attach", ["a-cluster"]), (cli, "_remove_mesh", raising(full)))


def _refused(command: str, arguments: list[str]) -> None:
    """What a command that clusters call writes when it refuses."""

    def refuse(reason: str, gone: bool = False) -> None:
        raise SiteError(HOST.host, "starting its agent", reason)

    with patched((cli, "_refuse", refuse)):
        cli.site.main([command, *arguments], standalone_mode=False)


def of_site_commands(directory: Path) -> Iterator[Provocation]:
    """Commands on control hosts, and what else they say."""
    yield partial(cli._named, click.Context(cli.site), cli.site, "no")
    taken = (Home, "make", lambda self: False)
    arguments = ["agent", "a-cluster", str(directory)]
    yield under(partial(cli.site.main, arguments, standalone_mode=False), taken)
