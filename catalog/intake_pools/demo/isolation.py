"""How far the demo's two sites are kept apart: by name spaces where that is allowed, else by directories.

In a mount name space of its own, a site's worker finds an empty directory in the other site's place. Knows
how to start workers so; knows nothing of the data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from distributed import Scheduler, Worker

from dask_pools.cluster import LocalPools, PoolCluster, PoolSpec
from dask_pools.cluster.launchers import WorkerShape

__all__ = ["Isolation", "find_isolation", "start_pools"]

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 60.0
CLOSE_TIMEOUT = 5.0

# The shell runs inside the new name space: it hides each directory up to "--", then becomes the worker.
_HIDE = (
    'while [ "$1" != -- ]; do mount -t tmpfs -o ro,size=4k hidden "$1" || exit; shift; done; shift; exec "$@"'
)
# -P: the worker's directory is full of data, and no place to import from.
_WORKER = [sys.executable, "-P", "-c", "from intake_pools.demo.isolation import main; main()"]


class Isolation(Enum):
    """What keeps the workers of one site from the data of the other. The value says so to people."""

    NAMESPACES = "mount name spaces: each site's workers see an empty directory in place of the other site"
    USER_NAMESPACES = (
        "user and mount name spaces: each site's workers see an empty directory in place of the other site"
    )
    DIRECTORIES = (
        "working directories: each site's workers run where its data is. Mount name spaces are not allowed "
        "here, so with an absolute path they could read the other site's"
    )

    @property
    def is_real(self) -> bool:
        """Whether a site's workers truly cannot read the other's data."""
        return self is not Isolation.DIRECTORIES

    @property
    def command(self) -> list[str]:
        """Beginning of a command that runs the rest of it in a name space."""
        user = ["--user", "--map-root-user"] if self is Isolation.USER_NAMESPACES else []
        return ["unshare", *user, "--mount", "--propagation", "private", "sh", "-c", _HIDE, "sh"]


def find_isolation() -> Isolation:
    """Return the strongest isolation that this machine allows this user; found by trying."""
    with tempfile.TemporaryDirectory() as hidden:
        for isolation in (Isolation.NAMESPACES, Isolation.USER_NAMESPACES):
            with suppress(OSError, subprocess.TimeoutExpired):
                tried = subprocess.run(
                    [*isolation.command, hidden, "--", "true"], capture_output=True, timeout=10, check=False
                )
                if tried.returncode == 0:
                    return isolation
    return Isolation.DIRECTORIES


@contextmanager
def start_pools(directories: Mapping[str, Path], workers: int, isolation: Isolation) -> Iterator[PoolCluster]:
    """Start a pool at each site.

    Parameters
    ----------
    directories : mapping of str to pathlib.Path
        Directory of each site, by data centre.
    workers : int
        Single-threaded workers at each site.
    isolation : Isolation
    """
    # What the demo shows going wrong is told by the demo; the workers need not log it as well.
    silence = logging.CRITICAL
    if not isolation.is_real:
        with LocalPools(
            dict.fromkeys(directories, workers), directories=directories, silence_logs=silence
        ) as cluster:
            yield cluster
        return
    with (
        tempfile.TemporaryDirectory(prefix="intake-pools-demo-") as scratch,
        PoolCluster(
            {
                name: PoolSpec(
                    NamespaceLauncher(
                        isolation,
                        tuple(str(other) for site, other in directories.items() if site != name),
                        scratch,
                    ),
                    WorkerShape(directory=str(directory)),
                    workers=workers,
                )
                for name, directory in directories.items()
            },
            scheduler={"cls": Scheduler, "options": {"host": LOOPBACK, "port": 0, "dashboard": False}},
            silence_logs=silence,
        ) as cluster,
    ):
        yield cluster


@dataclass(frozen=True)
class NamespaceLauncher:
    """Start workers on this machine that cannot see some of its directories.

    Parameters
    ----------
    isolation : Isolation
    hidden : tuple of str
        Directories that are empty for these workers.
    scratch : str
        Directory for what Dask spills to disk.
    """

    isolation: Isolation
    hidden: tuple[str, ...]
    scratch: str

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> NamespacedWorker:
        """Start a worker, which has joined when this returns."""
        process = await asyncio.create_subprocess_exec(
            *self.isolation.command,
            *self.hidden,
            "--",
            *_WORKER,
            cwd=shape.directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the demo, which then stops its workers.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = NamespacedWorker(process)
        order = {"scheduler": scheduler, "name": name, "scratch": self.scratch, "shape": asdict(shape)}
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
            joined = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
        except BaseException:
            await worker.close()
            raise
        if not joined:
            await worker.close()
            raise RuntimeError("its process ended at once; what it said is above")
        return worker


@dataclass
class NamespacedWorker:
    """A worker in a name space, joined to this process by its standard input."""

    process: asyncio.subprocess.Process

    async def close(self) -> None:
        """Close the pipe, which the worker takes as the order to end; see to it that it does."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), CLOSE_TIMEOUT)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


def main() -> None:
    """Run in the name space: read the order, be the worker, end when standard input closes."""
    order = json.loads(sys.stdin.readline())
    asyncio.run(_serve(order))


async def _serve(order: dict[str, Any]) -> None:
    shape = order["shape"]
    orphaned = asyncio.Event()
    threading.Thread(target=_watch_parent, args=(asyncio.get_running_loop(), orphaned), daemon=True).start()
    worker = await Worker(
        order["scheduler"],
        name=order["name"],
        nthreads=shape["threads"],
        memory_limit=shape["memory_limit"],
        resources=shape["resources"],
        local_directory=order["scratch"],
        host=LOOPBACK,
        silence_logs=logging.CRITICAL,
        dashboard=False,
    )
    print("joined", flush=True)
    ends = [asyncio.create_task(worker.finished()), asyncio.create_task(orphaned.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await worker.close()


def _watch_parent(loop: asyncio.AbstractEventLoop, orphaned: asyncio.Event) -> None:
    sys.stdin.buffer.read()
    with suppress(RuntimeError):  # the loop has closed already
        loop.call_soon_threadsafe(orphaned.set)
    # A worker that is still looking for its scheduler would go on doing so.
    time.sleep(CLOSE_TIMEOUT)
    os._exit(1)
