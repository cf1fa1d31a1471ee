"""Workers as processes on this machine, each under a Dask nanny that brings it back when it dies.

A worker is started by a command that works as ``dask worker`` does (`dask_pools.cluster.worker_process`). So
a script that makes a cluster needs no ``if __name__ == "__main__":``, as it would if Python spawned the
processes from this one; and the command can be wrapped into another that changes what the worker sees
(``unshare --mount …``).

Should this process be killed outright, nanny and worker end with it (`dask_pools.cluster.tether`).
"""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
import os
import signal
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dask

from dask_pools.cluster import tether
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.joining import joined, own_address, worker_command
from dask_pools.workers import LauncherOptions, Listed, Workers

__all__ = ["LocalLauncher", "LocalOptions", "LocalWorker"]

LOOPBACK = "127.0.0.1"

# Seconds. Imports from a cold disk on a busy machine can take half a minute.
START_TIMEOUT = 120.0
CLOSE_TIMEOUT = 5.0

# As Dask's nanny has it, where nobody has chosen one (dask/distributed #8400).
HASH_SEED = "6640"


@dataclass(frozen=True)
class LocalLauncher:
    """Start workers as processes on this machine.

    Parameters
    ----------
    scratch : str, optional
        Directory for what Dask spills to disk; Dask's own choice if not given.
    prefix : tuple of str
        Command that gets the worker's command as its last arguments and must replace itself by it.
    log_level : int
        Level from which on the workers log.
    timeout : float
        Seconds within which a worker has to join.
    host : str, optional
        Address that the workers listen on; by default the one that they reach the scheduler from, if what is
        sent there is encrypted. That of the loopback interface keeps them to this machine.
    """

    scratch: str | None = None
    prefix: tuple[str, ...] = ()
    log_level: int = logging.WARNING
    timeout: float = START_TIMEOUT
    host: str | None = None

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> LocalWorker:
        """Start a worker; it has joined the scheduler when this returns."""
        process = await asyncio.create_subprocess_exec(
            *self.prefix,
            *self._command(scheduler, name, shape),
            cwd=shape.directory,
            env=self._environment(shape),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A process group to stop nanny and worker by; and Ctrl-C in a terminal, which goes to every
            # process of its session, is to stop the user's calculation, not the workers.
            start_new_session=True,
        )
        worker = LocalWorker(process)
        try:
            await joined(scheduler, name, self.timeout, worker.ended())
        except BaseException:
            await worker.close()
            raise
        return worker

    def _command(self, scheduler: str, name: str, shape: WorkerShape) -> list[str]:
        return worker_command(
            scheduler,
            name,
            shape,
            python=(sys.executable, "-P"),  # what lies in the pool's directory is data, not code
            module="dask_pools.cluster.worker_process",
            options=(
                *(("--local-directory", self.scratch) if self.scratch else ()),
                *("--host", self.host or own_address(scheduler)),
                # Without a host Dask's status page would listen on all interfaces.
                *("--dashboard-address", f"{LOOPBACK}:0", "--no-dashboard"),
                *("--death-timeout", str(self.timeout)),
                # Given here, since `dask worker` passes over what is configured.
                *(f"--preload-nanny={one}" for one in (*_preloads("nanny"), tether.__name__)),
            ),
        )

    def _environment(self, shape: WorkerShape) -> dict[str, str]:
        # What this process can import, the workers can: they unpickle the tasks. Python's own places are left
        # out, for the sake of other programs that tasks may start.
        own = tuple({os.path.realpath(place) for place in sysconfig.get_paths().values()})
        path = [os.path.abspath(entry) for entry in sys.path]
        path = [entry for entry in path if not os.path.realpath(entry).startswith(own)]
        # What a nanny sets before it starts a worker, for Python's hashes, and libraries that read it when
        # they are loaded: here that is before there is a nanny.
        early = {"PYTHONHASHSEED": HASH_SEED} | {
            name: str(value)
            for name, value in dask.config.get("distributed.nanny.pre-spawn-environ").items()
            if value is not None
        }
        return {
            **early,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(self._config()),
            **shape.env,
        }

    def _config(self) -> dict[str, Any]:
        """Dask's settings here, as far as they can be written down; functions among them concern clients."""
        config = {key: value for key, value in dask.config.global_config.items() if _is_plain(value)}
        settings: dict[str, Any] = {
            # What the scheduler asks of each worker before it sends it tasks. More comes with the tasks that
            # need it: a worker that waited for all of it would join a second later.
            "distributed": {"worker": {"preload": [*_preloads("worker"), "dask_pools.traffic"]}}
        }
        if "version" not in config.get("logging", {}):  # else it is the user's own, and complete
            settings["logging"] = {"distributed": self.log_level}
        return dict(dask.config.merge(config, settings))


def _preloads(process: str) -> list[str]:
    """Read what the user has configured to be loaded into each worker or nanny."""
    configured = dask.config.get(f"distributed.{process}.preload")
    return [configured] if isinstance(configured, str) else list(configured)


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


class LocalOptions(LauncherOptions):
    """What ``local:`` may say in a data-centres file.

    Attributes
    ----------
    scratch : str or None
        Directory for what Dask spills to disk.
    prefix : tuple of str
        Command that the workers are started through, as of `LocalLauncher`.
    """

    scratch: str | None = None
    prefix: Listed = ()

    @property
    def here(self) -> bool:
        """They are."""
        return True

    def launcher(self, pool: str, workers: Workers) -> LocalLauncher:
        """Make the launcher of a pool."""
        return LocalLauncher(self.scratch, self.prefix, timeout=workers.timeout or START_TIMEOUT)


class LocalWorker:
    """A nanny with its worker, in processes of their own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said = ""
        self._forwarding = asyncio.create_task(self._forward())

    async def ended(self) -> str:
        """Wait until its nanny is no more, and say how it ended."""
        code = await self._process.wait()
        await asyncio.shield(self._forwarding)
        said = next((line for line in reversed(self._said.split("\n")) if line.strip()), "nothing")
        return f"its process ended with exit code {code}, saying: {said.strip()}"

    async def logs(self) -> str:
        """Get the last that nanny and worker wrote to stderr, at most 4,000 characters."""
        return self._said

    async def _forward(self) -> None:
        """Pass on what it writes to stderr, and keep the last of it."""
        assert self._process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := await self._process.stderr.read(2**16):
            text = decoder.decode(chunk)
            self._said = (self._said + text)[-4000:]
            with suppress(ValueError, OSError):  # stderr may have been closed here
                sys.stderr.write(text)

    async def close(self) -> None:
        """Ask both to close, and make sure that they are gone."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT)
        # Whoever is left of the group: a nanny that did not close, or a worker whose nanny was killed.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._forwarding
