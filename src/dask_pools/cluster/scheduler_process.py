"""Schedulers outside of this process: in one of its own on this machine, or wherever one runs already.

The client writes to the child's standard input what the scheduler needs, and keeps that open for as long as
it lives; when it closes, the scheduler does (`dask_pools.cluster.tether`), at once or when nobody has
answered for its pools for some time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import dask
from distributed import Scheduler, Security
from distributed.core import Status, connect
from distributed.deploy.spec import ProcessInterface

import dask_pools
from dask_pools.cluster.process import Process
from dask_pools.cluster.tether import when_orphaned
from dask_pools.errors import VersionMismatchError
from dask_pools.scheduler import NO_POOLS, install

__all__ = ["RunningScheduler", "SchedulerProcess", "scheduler_spec"]

LOOPBACK = "127.0.0.1"

START_TIMEOUT = 60.0
CLOSE_TIMEOUT = 5.0

# Not `-m`: the package imports this module, which would then exist twice.
COMMAND = [sys.executable, "-c", "from dask_pools.cluster.scheduler_process import main; main()"]


def scheduler_spec(
    where: str,
    dashboard_address: str | None = ":0",
    silence_logs: int | None = logging.WARNING,
    outlives: float | None = None,
) -> dict[str, Any]:
    """Describe to `distributed.SpecCluster` a scheduler that listens on the loopback interface only.

    Parameters
    ----------
    where : {"here", "process"}
        In this process, or in one of its own.
    dashboard_address : str or None
        Where Dask's dashboard listens; without a host on the loopback interface. None: no dashboard.
    silence_logs : int or None
        Level below which a scheduler in a process of its own logs nothing.
    outlives : float, optional
        Seconds without anybody who answers for its pools after which one in a process of its own ends; by
        default it ends with this process.

    Raises
    ------
    ValueError
        If `where` is something else.
    """
    if where not in ("here", "process"):
        raise ValueError(f"scheduler={where!r} is not known: use 'here' or 'process'.")
    # Dask takes an address without a host for "on every interface", and none at all for port 8787.
    dashboard = dashboard_address or ":0"
    options = {
        "host": LOOPBACK,
        "port": 0,
        "dashboard": dashboard_address is not None,
        "dashboard_address": LOOPBACK + dashboard if dashboard.startswith(":") else dashboard,
    }
    if where == "here":
        return {"cls": Scheduler, "options": options}
    made = {"options": options, "silence_logs": silence_logs, "outlives": outlives}
    return {"cls": SchedulerProcess, "options": made}


class SchedulerProcess(ProcessInterface):  # type: ignore[misc]  # distributed publishes no type for it
    """A scheduler in a subprocess, as `distributed.SpecCluster` expects one.

    Parameters
    ----------
    options : mapping
        Arguments of `distributed.Scheduler`.
    silence_logs : int or None
        Level below which it logs nothing.
    outlives : float, optional
        Seconds for which it goes on when this process has died, unless another answers for its pools.
    """

    status: Status

    def __init__(
        self,
        options: Mapping[str, Any],
        silence_logs: int | None = logging.WARNING,
        outlives: float | None = None,
    ) -> None:
        super().__init__()
        self.options = dict(options)
        self.silence_logs = silence_logs
        self.outlives = outlives
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and wait for its address.

        Raises
        ------
        RuntimeError
            If the process ends instead, with what it said.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal goes to every process of the session: it should stop the user's
            # calculation, not the scheduler.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        order = {
            "options": self.options,
            "silence_logs": self.silence_logs,
            "outlives": self.outlives,
            # Pickled apart, to be read with the path in force.
            "config": pickle.dumps(dask.config.global_config),
            # What the client can import, the scheduler can: it unpickles the graphs.
            "path": [os.path.abspath(entry) for entry in sys.path],
        }
        try:
            process.stdin.write(pickle.dumps(order))
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
            answer = json.loads(line or '{"error": "it ended without a word; see what it wrote to stderr"}')
        except (OSError, TimeoutError) as error:
            answer = {"error": f"{type(error).__name__} {error}"}
        if "error" in answer:
            await self.close()
            raise RuntimeError(f"The scheduler's own process did not start: {answer['error']}")
        self.address = answer["address"]
        self._watching = asyncio.create_task(self._watch())
        await super().start()

    @property
    def pid(self) -> int | None:
        """Identifier of the process, or None before it was started."""
        return self._process.pid if self._process else None

    @property
    def outliving(self) -> Process | None:
        """The process, if it outlives this one."""
        return Process.of(self._process.pid) if self._process and self.outlives is not None else None

    async def _watch(self) -> None:
        """Notice that the process has ended, so that closing the cluster does not wait for its answers."""
        assert self._process is not None
        await self._process.wait()
        if self.status == Status.running:
            self.status = Status.closed
        self._event_finished.set()

    async def close(self) -> None:
        """Ask the scheduler to close, and make sure that its process is gone."""
        process = self._process
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), CLOSE_TIMEOUT)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._watching is not None:
            await self._watching
        await super().close()


class RunningScheduler(ProcessInterface):  # type: ignore[misc]  # distributed publishes no type for it
    """A scheduler that runs already, as `distributed.SpecCluster` expects one.

    Parameters
    ----------
    address : str
    process : Process, optional
        That of the scheduler, if it is to end with the cluster.
    security : distributed.Security, optional
    """

    status: Status

    def __init__(
        self, address: str, process: Process | None = None, security: Security | None = None
    ) -> None:
        super().__init__()
        self.address = address
        self.outliving = process
        self._security = security or Security()
        self._comm: Any = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make sure that it is there and has pools.

        Raises
        ------
        OSError
            If it cannot be reached, or lacks this project's plugin.
        VersionMismatchError
            If its plugin is of another version.
        """
        self._comm = await connect(self.address, **self._security.get_connection_args("client"))
        try:
            await self._comm.write({"op": "pools_status", "reply": True})
            answer = await self._comm.read()
            if not isinstance(answer, Mapping) or "loads" not in answer:
                raise OSError(NO_POOLS)
            if answer["version"] != dask_pools.__version__:
                raise VersionMismatchError({"the scheduler": answer["version"]}, dask_pools.__version__)
        except BaseException:
            self._comm.abort()
            raise
        self._watching = asyncio.create_task(self._watch())
        await super().start()

    async def _watch(self) -> None:
        """Notice that it has ended."""
        with suppress(OSError):
            await self._comm.read()  # nothing more is asked, so nothing comes before the end
        if self.status == Status.running:
            self.status = Status.closed
        self._event_finished.set()

    async def close(self) -> None:
        """Let go of it; of one that ends with the cluster, make sure that it is gone."""
        if self._watching is not None:
            self._watching.cancel()
            self._comm.abort()
        if self.outliving is not None:
            await asyncio.to_thread(self.outliving.end, CLOSE_TIMEOUT)
        await super().close()


def main() -> None:
    """Run in the child: read the order, be the scheduler, end when standard input closes."""
    order = pickle.load(sys.stdin.buffer)
    sys.path[:] = order["path"]
    dask.config.update(dask.config.global_config, pickle.loads(order["config"]))
    if order["silence_logs"]:
        logging.getLogger("distributed").setLevel(order["silence_logs"])
    asyncio.run(_serve(order["options"], order["outlives"]))


async def _serve(options: dict[str, Any], outlives: float | None) -> None:
    orphaned = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        with suppress(RuntimeError):  # the loop has closed already
            loop.call_soon_threadsafe(orphaned.set)
        if outlives is None:
            time.sleep(CLOSE_TIMEOUT)
            os._exit(1)

    when_orphaned(end)
    try:
        scheduler = await Scheduler(**options)
        plugin = install(scheduler)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise SystemExit(1) from error
    print(json.dumps({"address": scheduler.address}), flush=True)
    # Nobody reads the pipe from here on: what is printed must not fill it and block.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    ends = [asyncio.create_task(scheduler.finished()), asyncio.create_task(orphaned.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    heard = time.monotonic()
    while outlives is not None and not ends[0].done() and time.monotonic() - heard < outlives:
        await asyncio.wait(ends[:1], timeout=min(1.0, outlives))
        heard = max([heard, *(owner.heard for owner in plugin.owners.values())])
    with suppress(TimeoutError):
        await asyncio.wait_for(scheduler.close(), CLOSE_TIMEOUT)
