"""The agent: what runs on a control host for the life of one cluster.

It starts and stops workers through launchers, says how the site is, and takes everything down by itself when
it has not heard from its cluster for a stated time. It outlives the SSH channel that it was started by: the
cluster attaches to it again through a socket that only this user can reach. Should the agent be killed
outright, its workers end with it (`dask_pools.cluster.tether`); ``dask pools site down`` removes the files
that it leaves.

Where the cluster has a mesh, it brings up this host's part of it, and gives each worker an address there.

It knows nothing of SSH, nor of how workers are started.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv6Address
from typing import Any

import dask

import dask_pools
from dask_pools.cluster.launchers import LaunchedWorker, Launcher, WorkerShape
from dask_pools.errors import MeshError
from dask_pools.mesh.host import HostMesh
from dask_pools.mesh.plan import WORKERS
from dask_pools.sites import protocol
from dask_pools.sites.addresses import check_scheduler
from dask_pools.sites.home import Home
from dask_pools.sites.protocol import Lines, ProtocolError

__all__ = ["Agent", "MakeLauncher", "Surroundings"]

logger = logging.getLogger(__name__)

# Seconds. An agent that is started and never greeted ends after this.
UNGREETED = 60.0

# Seconds that taking down may last. Workers get some to end by themselves, and are killed then.
TAKE_DOWN = protocol.STOPPING

# Bytes. A log that nobody reads must not fill the disk.
LONGEST_LOG = 10_000_000

# Answers that are kept in case their cluster asks for them again.
ANSWERS = 1000


@dataclass(frozen=True)
class Surroundings:
    """What a launcher on the control host needs to know of it."""

    cluster: str
    scratch: str
    """Directory for what workers spill."""
    listen: str
    """Address that workers listen on."""
    options: Mapping[str, Any]
    """The launcher's own, as the data-centres file has them."""
    hand_over: Callable[[int], None] | None = None
    """Lets a process with a network of its own have that address, which is one on the mesh; None if it is
    not. Raises `MeshError`."""


MakeLauncher = Callable[[Surroundings], Launcher]


class _Channel:
    """One attachment of the cluster."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, report: protocol.Report) -> None:
        # A channel that is gone is no reason to stop: the cluster will come back and ask again.
        with suppress(OSError, RuntimeError):
            self._writer.write(protocol.encode(report))

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError, RuntimeError, TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), 1)


class Agent:
    """The agent of one cluster on one control host.

    Parameters
    ----------
    home : Home
        Its directory, made and locked.
    launchers : mapping of str to callable
        How to start workers, by the names that the protocol has.
    address : str, optional
        Of this host, as the cluster reached it.
    udp_port : int, optional
        The UDP port that comes in to the name spaces which the agent is in, in place of the one that the plan
        has.
    """

    def __init__(
        self,
        home: Home,
        launchers: Mapping[str, MakeLauncher],
        address: str | None = None,
        udp_port: int | None = None,
    ) -> None:
        self._home = home
        self._udp_port = udp_port
        self._launchers = launchers
        self._address = address
        self._heard = time.monotonic()
        self._lost_after = UNGREETED
        self._beat = 5.0
        self._found = False
        self._channel: _Channel | None = None
        self._workers: dict[str, LaunchedWorker] = {}
        self._starting: dict[str, asyncio.Task[Any]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, str] = {}
        self._mesh: HostMesh | None = None
        self._meshing = asyncio.Lock()
        self._over = False
        self._addresses: dict[str, IPv6Address] = {}
        self._answers: dict[int, asyncio.Task[protocol.Report]] = {}
        self._end: asyncio.Future[str] | None = None

    async def serve(self) -> None:
        """Be there for the cluster until it says that it is over, or is lost."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(one, self._finish, f"it got {one.name}")
        # The directory is closed to others already; this closes the socket too.
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._attached, self._home.socket)
        finally:
            os.umask(before)
        beating = asyncio.create_task(self._watch())
        try:
            reason = await self._end
            logger.info("Ending: %s.", reason)
            await self._take_down()
            if self._channel is not None:
                self._channel.send(protocol.Leaving(reason=reason))
        finally:
            beating.cancel()
            server.close()
            if self._channel is not None:
                await self._channel.close()
            self._home.remove()

    def _finish(self, reason: str) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(reason)

    async def _watch(self) -> None:
        """Say that all is well, and notice when there is nobody to say it to."""
        said = time.monotonic()
        while True:
            await asyncio.sleep(min(self._beat, self._lost_after) / 4)
            now = time.monotonic()
            if now - self._heard > self._lost_after:
                self._finish(f"it has not heard from its cluster for {self._lost_after:g} s")
                return
            if now - said >= self._beat / 2 and self._channel is not None:
                said = now
                self._channel.send(self._health())
                self._shorten_log()

    def _health(self) -> protocol.Health:
        try:
            free = shutil.disk_usage(self._home.scratch).free
        except OSError:
            free = 0
        return protocol.Health(workers=tuple(sorted(self._workers)), free=free, load=os.getloadavg()[0])

    def _shorten_log(self) -> None:
        with suppress(OSError):
            if self._home.log.stat().st_size > LONGEST_LOG:
                os.truncate(self._home.log, 0)  # it is only ever appended to

    # The channel

    async def _attached(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = _Channel(writer)
        try:
            if _user_of(writer) != os.getuid():
                channel.send(protocol.Refused(reason="This agent belongs to another user."))
                return
            await self._listen(reader, channel)
        except ProtocolError as error:
            logger.warning("A channel was refused: %s", error)
            channel.send(protocol.Refused(reason=str(error)))
        except OSError:
            pass  # the channel broke; the cluster makes another
        finally:
            if self._channel is channel:
                self._channel = None
            await channel.close()
            if not self._found:
                self._finish("whoever had it started left without a greeting")

    async def _listen(self, reader: asyncio.StreamReader, channel: _Channel) -> None:
        lines = Lines()
        while piece := await reader.read(2**16):
            for line in lines.feed(piece):
                order = protocol.read_order(line)
                if isinstance(order, protocol.Hello):
                    await self._greet(order, channel)
                elif self._channel is not channel:
                    raise ProtocolError(
                        "The channel has to begin with a greeting, and is over with the next."
                    )
                self._heard = time.monotonic()
                if not isinstance(order, protocol.Hello | protocol.Beat):
                    self._carry_out(order)

    async def _greet(self, hello: protocol.Hello, channel: _Channel) -> None:
        if hello.cluster != self._home.cluster:
            raise ProtocolError(f"This is the agent of cluster {self._home.cluster}.")
        channel.send(
            protocol.Welcome(
                version=dask_pools.__version__,
                host=socket.gethostname(),
                user=getpass.getuser(),
                pid=os.getpid(),
                address=self._address,
                log=str(self._home.log),
                found=self._found,
            )
        )
        # The newest counts: one that the cluster has lost may take minutes to be noticed here.
        before, self._channel = self._channel, channel
        if before is not None and before is not channel:
            await before.close()
        self._found = True
        self._beat, self._lost_after = hello.beat, hello.lost_after
        dask.config.set(hello.settings)
        channel.send(self._health())
        for name, ended in self._ended.items():
            channel.send(protocol.Ended(name=name, reason=ended))

    # Orders

    def _carry_out(self, order: Any) -> None:
        """Begin with an order; one that is known already is only answered."""
        known = self._answers.get(order.number)
        if known is None:
            known = self._answers[order.number] = asyncio.create_task(self._answer(order))
            if len(self._answers) > ANSWERS:
                del self._answers[next(iter(self._answers))]
            known.add_done_callback(self._report)
        elif known.done():
            self._report(known)

    def _report(self, answered: asyncio.Task[protocol.Report]) -> None:
        if not answered.cancelled() and self._channel is not None:
            self._channel.send(answered.result())

    async def _answer(self, order: Any) -> protocol.Report:
        step = order.step
        logger.info("%s.", step[0].upper() + step[1:])
        try:
            return await self._act(order)
        except asyncio.CancelledError:
            return protocol.Failed(number=order.number, step=step, reason="it was called off")
        except Exception as error:
            logger.warning("%s failed: %s", step, error)
            return protocol.Failed(number=order.number, step=step, reason=str(error) or type(error).__name__)

    async def _act(self, order: Any) -> protocol.Report:
        match order:
            case protocol.MakeKey():
                return await self._make_key(order)
            case protocol.RaiseMesh():
                return await self._raise_mesh(order)
            case protocol.JoinMesh():
                return await self._join_mesh(order)
            case protocol.TrustKey():
                await self._trust_key(order)
            case protocol.StartWorker():
                await self._start_worker(order)
            case protocol.StopWorker():
                await self._stop_worker(order.name)
            case _:
                await self._take_all_down()
        return protocol.Done(number=order.number)

    async def _start_worker(self, order: protocol.StartWorker) -> None:
        check_scheduler(order.scheduler, str(self._mesh.router.prefix) if self._mesh else None)
        if order.name in self._workers or order.name in self._starting:
            raise ValueError("there is one of this name already")
        if order.launcher not in self._launchers:
            raise ValueError(f"this site has no launcher {order.launcher!r}")
        listen, hand_over = await self._listens(order)
        launcher = self._launchers[order.launcher](
            Surroundings(self._home.cluster, str(self._home.scratch), listen, order.options, hand_over)
        )
        shape = WorkerShape(**order.shape.model_dump())
        task = asyncio.ensure_future(launcher.launch(order.scheduler, order.name, shape))
        self._starting[order.name] = task
        try:
            self._workers[order.name] = worker = await task
        except BaseException:
            await self._give_back(order.name)
            raise
        finally:
            del self._starting[order.name]
        self._watching[order.name] = asyncio.create_task(self._watch_worker(order.name, worker))

    async def _watch_worker(self, name: str, worker: LaunchedWorker) -> None:
        self._ended[name] = reason = await worker.ended()
        logger.warning("Worker %s ended: %s", name, reason)
        if self._channel is not None:
            self._channel.send(protocol.Ended(name=name, reason=reason))

    async def _stop_worker(self, name: str) -> None:
        if starting := self._starting.get(name):
            starting.cancel()
            await asyncio.wait([starting])
        if watching := self._watching.pop(name, None):
            watching.cancel()
        if worker := self._workers.get(name):
            await worker.close()
            self._workers.pop(name, None)
        self._ended.pop(name, None)
        await self._give_back(name)

    async def _listens(self, order: protocol.StartWorker) -> tuple[str, Callable[[int], None] | None]:
        """Address for a worker to listen on, of its own in the mesh where there is one; how to hand it on."""
        if order.listen is not None:
            return order.listen, None
        if self._mesh is None:
            return self._address or "127.0.0.1", None
        taken = set(self._addresses.values())
        network = self._mesh.router.network
        own = next(one for n in range(len(taken) + 1) if (one := network[WORKERS + n]) not in taken)
        self._addresses[order.name] = own
        await asyncio.to_thread(self._mesh.add_address, own)
        return f"[{own}]", partial(self._mesh.hand_over, own)

    async def _give_back(self, name: str) -> None:
        """Let the address of a worker go."""
        address = self._addresses.pop(name, None)
        if address is not None and self._mesh is not None:
            with suppress(MeshError):  # the interface may just be made again
                await asyncio.to_thread(self._mesh.remove_address, address)

    async def _raise_mesh(self, order: protocol.RaiseMesh) -> protocol.Report:
        async with self._meshing:
            return await self._raise(order)

    async def _raise(self, order: protocol.RaiseMesh) -> protocol.Report:
        if self._over:
            raise MeshError("Everything is being taken down here.")
        if self._mesh is not None:
            await asyncio.to_thread(self._mesh.lower)
            self._mesh = None
        router = replace(order.router, port=self._udp_port or order.router.port)
        mesh = HostMesh(router, self._home.mesh)
        offer = await asyncio.to_thread(mesh.raise_)
        self._mesh = mesh
        return protocol.Offered(number=order.number, offer=offer)

    async def _join_mesh(self, order: protocol.JoinMesh) -> protocol.Report:
        if self._mesh is None:
            raise MeshError("This host has no part of a mesh yet.")
        router = replace(order.router, port=self._mesh.router.port)
        await asyncio.to_thread(self._mesh.update, router, order.offers, order.preshared)
        missing = {} if order.wait is None else await asyncio.to_thread(self._mesh.missing, order.wait)
        return protocol.Joined(number=order.number, missing=missing)

    async def _make_key(self, order: protocol.MakeKey) -> protocol.Report:
        try:
            from dask_pools.sites.certificates import make_key
        except ImportError as error:
            raise RuntimeError(
                f"{error}. `network: tls` needs it on every control host: pip install 'intake-pools[sites]'"
            ) from None
        key = make_key(socket.gethostname())
        self._home.write(self._home.key, key.private)
        return protocol.SigningRequest(number=order.number, request=key.request)

    async def _trust_key(self, order: protocol.TrustKey) -> None:
        self._home.write(self._home.certificate, order.certificate.encode())
        self._home.write(self._home.authority, order.authority.encode())
        # Workers inherit Dask's settings; these name files, and hold nothing secret themselves.
        tls = {"key": str(self._home.key), "cert": str(self._home.certificate)}
        dask.config.set(
            {
                "distributed.comm.require-encryption": True,
                "distributed.comm.tls.ca-file": str(self._home.authority),
                **{f"distributed.comm.tls.worker.{one}": path for one, path in tls.items()},
            }
        )

    # The end

    async def _take_all_down(self) -> None:
        await self._take_down()
        # After the answer, which is sent when this has returned.
        asyncio.get_running_loop().call_later(0.1, self._finish, "its cluster is over")

    async def _take_down(self) -> None:
        names = {*self._starting, *self._workers}
        stopping = [asyncio.create_task(self._stop_worker(name)) for name in names]
        if stopping:
            done, late = await asyncio.wait(stopping, timeout=TAKE_DOWN)
            for task in late:
                task.cancel()
            for task in done:
                if error := task.exception():
                    logger.warning("A worker could not be stopped: %s", error)
        self._over = True
        async with self._meshing:
            mesh, self._mesh = self._mesh, None
            if mesh is None:
                return
            try:
                await asyncio.to_thread(mesh.lower)
            except MeshError as error:
                logger.warning("The mesh could not be taken down: %s", error)


def _user_of(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", credentials)[1])
