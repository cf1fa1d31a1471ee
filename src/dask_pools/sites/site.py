"""The cluster's end of a site: a connection with its agent that is kept, and made again when it breaks.

Both sides say something at least every few seconds. A cluster that hears nothing makes the connection again
and finds the same agent, with its workers; what it had asked for meanwhile it asks again. After a stated time
without the agent the site is *lost*: the agent, which has not heard of its cluster for as long, has taken
everything down by then. Whoever owns the site is told, and may connect again, with a new agent.

It knows neither Dask nor what a worker is.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

from dask.utils import format_bytes

import dask_pools
from dask_pools.errors import HostKeyError, SiteError, VersionMismatchError
from dask_pools.sites import protocol, ssh
from dask_pools.sites.protocol import Lines, OtherProtocolError, ProtocolError
from dask_pools.sites.ssh import Command, ControlHost

__all__ = ["Patience", "Site", "State"]

logger = logging.getLogger(__name__)

State = Literal["new", "connected", "away", "lost", "closed"]

# Seconds until the first word of an agent. It imports much, from a disk that may be slow.
GREETING = 90.0
# Seconds between two attempts to connect again: at first, and at most.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
# Seconds that an attempt to connect again may last: one made behind a cut line would outlast the cut.
RECONNECT = 10.0
# Seconds to wait for an agent that is told to take everything down.
DOWN = 45.0
# Bytes. With less than these a disk is as good as full.
LEAST_FREE = 64 * 2**20


@dataclass(frozen=True)
class Patience:
    """How soon and how long silence is taken for what. Seconds."""

    beat: float = 5.0
    """Each side says something at least as often as this. Silence of three times as long, and the connection
    is made again."""

    lost_after: float = 120.0
    """Silence after which the agent takes everything down, and the site is lost for the cluster."""

    @property
    def dask(self) -> float:
        """What Dask's own time-outs have to be, so that it does not give up workers that will be back."""
        return 2 * self.lost_after + 60


class _Broken(Exception):
    """The channel is of no use any more; another may be."""


class _Gone(Exception):
    """There is no agent any more, and nothing that it had started."""


class Site:
    """A control host with its agent, as one cluster has it.

    Parameters
    ----------
    name : str
        The data centre's.
    host : ControlHost
        How to reach it.
    cluster : str
        The cluster's name, by which its agent is found.
    patience : Patience, optional
    settings : mapping, optional
        Settings of Dask for the workers, by their dotted names.
    on_lost : callable, optional
        Called with the site and the reason when it is lost.
    """

    def __init__(
        self,
        name: str,
        host: ControlHost,
        cluster: str,
        patience: Patience | None = None,
        settings: Mapping[str, Any] | None = None,
        on_lost: Callable[[Site, str], None] | None = None,
    ) -> None:
        self.name, self.host, self.cluster = name, host, cluster
        self.patience = patience or Patience()
        self.settings = dict(settings or {})
        self.on_lost = on_lost
        self.attach_options: tuple[str, ...] = ()
        """More options of the command that starts the agent."""
        self.prepare: Callable[[Site], Awaitable[None]] | None = None
        """Called with the site once for every agent, before anything else is asked of it."""
        self.state: State = "new"
        self.welcome: protocol.Welcome | None = None
        """The agent's, of the last connection."""
        self.health: protocol.Health | None = None
        """The last that the agent said about it."""
        self.own_address: str | None = None
        """Of this machine, on the way to the control host."""
        self.on_step: Callable[[str], None] | None = None
        """Called with what is being done at the site, in words, whenever that is something else."""
        self._heard = 0.0
        self._number = 0
        self._asked: dict[int, tuple[Any, asyncio.Future[Any]]] = {}
        self._ended: dict[str, asyncio.Future[str]] = {}
        self._command: Command | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._prepared: int | None = None
        self._first: asyncio.Future[None] | None = None
        self._starting: asyncio.Future[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<Site {self.name} at {self.host.host}: {self.state}>"

    # For its owner

    async def connected(self) -> protocol.Welcome:
        """Connect, if there is no connection yet; the agent's greeting.

        A connection that is being made again is not waited for. A site that was lost is connected anew.

        Raises
        ------
        HostKeyError, SiteError, VersionMismatchError
            If that is not possible.
        """
        async with self._connecting:
            if self.state == "closed":
                raise SiteError(self.host.host, "connecting", "the cluster is closed")
            if self.state in ("new", "lost"):
                if self._first is None or self._first.done():
                    self.state, self._prepared = "new", None
                    self._first = asyncio.get_running_loop().create_future()
                    # If nobody waits any more, nobody wants to know.
                    self._first.add_done_callback(lambda first: first.cancelled() or first.exception())
                    self._keeping = asyncio.create_task(self._keep(self._first))
                # Who waits for it may be cancelled. It goes on: an agent that is on its way has to be told
                # that it is not wanted, or it waits for its cluster for long.
                await asyncio.shield(self._first)
            assert self.welcome is not None
            if self.prepare is not None and self._prepared != self.welcome.pid:
                await self.prepare(self)
                self._prepared = self.welcome.pid
            return self.welcome

    async def ask(self, order: Callable[[int], Any]) -> Any:
        """Give an order and wait for its answer, through as many connections as that takes.

        Parameters
        ----------
        order : callable
            Makes it, from its number.

        Raises
        ------
        SiteError
            If it is not carried out, or the site is lost meanwhile.
        """
        if self._closing or self.state in ("new", "lost", "closed"):
            state = "closed" if self._closing else self.state
            raise SiteError(self.host.host, "giving an order", f"the site is {state}")
        return await self._ask(order)

    async def _ask(self, order: Callable[[int], Any]) -> Any:
        self._number += 1
        number = self._number
        asked = order(number)
        self.tell(asked.step)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = (asked, answer)
        try:
            self._say(asked)
            report = await answer
        finally:
            self._asked.pop(number, None)
        if isinstance(report, protocol.Failed):
            raise SiteError(self.host.host, report.step, report.reason, report.command, report.said)
        return report

    def prepare_again(self) -> None:
        """Have it prepared anew before anything else is asked of it."""
        self._prepared = None

    async def ended(self, worker: str) -> str:
        """Wait until a worker has ended by itself, or with its site; why."""
        if worker not in self._ended:
            self._ended[worker] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._ended[worker])

    def forget(self, worker: str) -> None:
        """Let go of what is known of a worker."""
        if waited := self._ended.pop(worker, None):
            waited.cancel()

    async def close(self) -> None:
        """Have the agent take everything down, if it can be reached; else it does so by itself, later."""
        self._closing = True
        if self._starting is not None:
            # It has been greeted, if it has come so far, and would wait for its cluster for long.
            await asyncio.wait([self._starting], timeout=DOWN)
        if self.state in ("connected", "away"):
            with suppress(SiteError, TimeoutError):
                limit = DOWN if self.state == "connected" else 3 * self.patience.beat
                await asyncio.wait_for(self._ask(lambda number: protocol.TakeDown(number=number)), limit)
        self.state = "closed"
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
        self._give_up("the cluster is closed")

    def tell(self, step: str) -> None:
        """Tell whoever wants to know what is being done at the site."""
        if self.on_step is not None:
            self.on_step(step)

    @property
    def problem(self) -> str | None:
        """What is wrong there, which others than the cluster can mend; None if nothing is known."""
        if self.health is None or self.welcome is None or self.health.free >= LEAST_FREE:
            return None
        return (
            f"The disk of {self.host.host} to which its workers spill has {format_bytes(self.health.free)} "
            f"left (at {posixpath.dirname(self.welcome.log)}). Results that do not fit into memory cannot be "
            "kept there. Make room, or set `directory:` of the site to a place that has some."
        )

    # Keeping the connection

    async def _keep(self, first: asyncio.Future[None]) -> None:
        """Connect again and again, until the site is lost or closed."""
        pause = SHORTEST_PAUSE
        reason = "no connection"
        while True:
            try:
                await self._converse(first)
            except (VersionMismatchError, HostKeyError, _Gone) as error:
                reason = str(error)
                if not first.done():
                    self._command = None
                    first.set_exception(self._first_error(error))
                    return
                break
            except (_Broken, SiteError, ProtocolError, OSError) as error:
                if not first.done():
                    first.set_exception(self._first_error(error))
                    return
                reason = str(error)
            finally:
                self._command = None
            if self.state == "connected":
                logger.warning("The connection to site %s broke (%s); making it again.", self.name, reason)
                self.state, pause = "away", SHORTEST_PAUSE
            # A little longer than the agent waits: when the site is called lost, nothing runs there.
            if time.monotonic() - self._heard > self.patience.lost_after + self.patience.beat:
                reason = f"it has not answered for {self.patience.lost_after:g} s; the last was: {reason}"
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.state = "lost"
        logger.warning("Site %s is lost: %s", self.name, reason)
        self._give_up(f"the site is lost: {reason}")
        if self.on_lost is not None:
            self.on_lost(self, reason)

    def _first_error(self, error: Exception) -> Exception:
        if isinstance(error, SiteError | VersionMismatchError):
            return error
        return SiteError(self.host.host, "speaking with the agent", str(error), self._attach(again=False))

    def _give_up(self, reason: str) -> None:
        for _, answer in list(self._asked.values()):
            if not answer.done():
                answer.set_exception(SiteError(self.host.host, "waiting for an answer", reason))
        for waited in list(self._ended.values()):
            if not waited.done():
                waited.set_result(reason)

    def _attach(self, again: bool) -> str:
        directory = f" --directory {shlex.quote(self.host.directory)}" if self.host.directory else ""
        # `dask:` of the data-centres file may be a command of several words.
        options = " ".join((*self.attach_options, *(("--again",) if again else ())))
        return f"{self.host.dask} pools site attach {self.cluster}{directory} {options}".rstrip()

    async def _converse(self, first: asyncio.Future[None]) -> None:
        """Be connected, until that breaks."""
        command = self._attach(again=first.done())
        limit = RECONNECT if first.done() else ssh.CONNECT_TIMEOUT
        async with AsyncExitStack() as stack:
            self.tell("connecting by SSH")
            connection = await stack.enter_async_context(ssh.connect(self.host, self.patience.beat, limit))
            self.tell("starting its agent")
            running = await stack.enter_async_context(ssh.run(connection, self.host, command))
            self.own_address = str(connection.get_extra_info("sockname")[0])
            lines = Lines()
            self._starting = first
            running.write(protocol.encode(self._hello()))
            self.welcome, reports = await self._greeted(running, lines, command)
            self._heard = time.monotonic()
            self._command, self.state = running, "connected"
            for asked, _ in list(self._asked.values()):
                self._say(asked)
            if not first.done():
                first.set_result(None)
            beating = asyncio.create_task(self._beat(running))
            try:
                for report in reports:
                    self._take(report)
                await self._listen(running, lines)
            finally:
                beating.cancel()

    def _hello(self) -> protocol.Hello:
        return protocol.Hello(
            version=dask_pools.__version__,
            cluster=self.cluster,
            beat=self.patience.beat,
            lost_after=self.patience.lost_after,
            settings=self.settings,
        )

    async def _greeted(
        self, running: Command, lines: Lines, command: str
    ) -> tuple[protocol.Welcome, list[Any]]:
        """Wait for the agent's greeting; that, and what came with it."""
        reports: list[Any] = []
        try:
            async with asyncio.timeout(GREETING):
                while not reports:
                    piece = await running.read()
                    if not piece:
                        raise await self._not_started(running, command)
                    reports += [protocol.read_report(line) for line in lines.feed(piece)]
        except TimeoutError:
            raise SiteError(
                self.host.host, "waiting for its agent", f"no answer within {GREETING:g} s", command
            ) from None
        except OtherProtocolError as error:
            raise self._mismatch(f"{error.version} (protocol {error.protocol})") from None
        except ProtocolError as error:
            raise SiteError(
                self.host.host,
                "starting its agent",
                f"what came back is not from the agent. {error} Does something else write to standard output "
                "there, such as ~/.bashrc?",
                command,
            ) from None
        match reports[0]:
            case protocol.Welcome(version=version) as welcome:
                if version != dask_pools.__version__:
                    raise self._mismatch(version)
                return welcome, reports[1:]
            case protocol.Refused(reason=reason, gone=True):
                raise _Gone(reason)
            case protocol.Refused(reason=reason):
                raise SiteError(self.host.host, "starting its agent", reason, command)
            case _:
                raise _Broken("the agent did not begin with a greeting")

    def _mismatch(self, version: str) -> VersionMismatchError:
        return VersionMismatchError({f"control host {self.host.host}": version}, dask_pools.__version__)

    async def _not_started(self, running: Command, command: str) -> Exception:
        """Say why the command that starts the agent ended without a word of it."""
        status, said = await running.ended()
        if status is None:
            return _Broken("the connection broke")
        missing = status == 127 or "No such command" in said or "No module named" in said
        if missing:
            reason = (
                f"intake-pools {dask_pools.__version__} is not there, or `{self.host.dask}` is not its "
                f"command. Type there: pip install 'intake-pools[sites]=={dask_pools.__version__}', and if "
                "that is not where SSH logins look, set `dask: /its/bin/dask` of the site"
            )
        else:
            reason = f"the command ended with exit code {status}"
        return SiteError(self.host.host, "starting its agent", reason, command, said)

    async def _beat(self, running: Command) -> None:
        """Say that the cluster is there, and let go of a connection on which nothing is heard."""
        while True:
            await asyncio.sleep(self.patience.beat / 2)
            if time.monotonic() - self._heard > 3 * self.patience.beat:
                running.close()
                return
            with suppress(OSError):
                running.write(protocol.encode(protocol.Beat()))

    async def _listen(self, running: Command, lines: Lines) -> None:
        while True:
            silence = self._heard + 3 * self.patience.beat - time.monotonic()
            try:
                piece = await asyncio.wait_for(running.read(), max(silence, 0.01))
            except TimeoutError:
                raise _Broken(f"nothing was heard for {3 * self.patience.beat:g} s") from None
            if not piece:
                raise _Broken("the connection was closed")
            self._heard = time.monotonic()
            for line in lines.feed(piece):
                self._take(protocol.read_report(line))

    def _take(self, report: Any) -> None:
        match report:
            case protocol.Health():
                before, self.health = self.problem, report
                if self.problem is not None and before is None:
                    logger.warning("Site %s: %s", self.name, self.problem)
            case protocol.Ended(name=name, reason=reason):
                waited = self._ended.get(name)
                if waited is not None and not waited.done():
                    waited.set_result(reason)
            case protocol.Refused(reason=reason):
                raise _Broken(reason)
            case protocol.Leaving(reason=reason):
                raise _Gone(f"its agent has taken everything down: {reason}")
            case (
                protocol.Done()
                | protocol.Failed()
                | protocol.SigningRequest()
                | protocol.Offered()
                | protocol.Joined()
            ):
                asked = self._asked.get(report.number)
                if asked is not None and not asked[1].done():
                    asked[1].set_result(report)
            case _:
                pass  # a second greeting changes nothing

    def _say(self, order: Any) -> None:
        # What cannot be said now is said again with the next connection.
        if self._command is not None:
            with suppress(OSError):
                self._command.write(protocol.encode(order))
