"""Workers as processes on this machine, each under a Dask nanny that brings it back when it dies.

The nannies live in the client's process. Should that be killed outright, the workers notice that their end
of a pipe to it has closed, and exit.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from distributed import Nanny, Worker, WorkerPlugin

from dask_pools.cluster.launchers import LaunchedWorker, WorkerShape

__all__ = ["LocalLauncher"]

LOOPBACK = "127.0.0.1"

# A process that has not joined by then never will: it is on this machine, and so is the scheduler.
START_TIMEOUT = 60.0


class WorkingDirectory(WorkerPlugin):  # type: ignore[misc]  # distributed publishes no type for it
    """Move the worker's process to the directory of its pool.

    A plugin given to the worker itself runs before the first task, comes back whenever the nanny restarts
    the worker, and stops the worker from starting if it fails; a preload would only log the failure.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def setup(self, worker: Worker) -> None:
        """Change the directory of the process."""
        os.chdir(self.directory)


@dataclass(frozen=True)
class LocalLauncher:
    """Start workers as processes on this machine that listen on the loopback interface only.

    Parameters
    ----------
    scratch : str
        Directory for what Dask spills to disk.
    silence_logs : int or None
        Level below which the workers log nothing.
    """

    scratch: str
    silence_logs: int | None = logging.WARNING

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> LaunchedWorker:
        """Start a nanny, which starts the worker; both have joined when this returns."""
        plugins = [] if shape.directory is None else [WorkingDirectory(shape.directory)]
        nanny: LaunchedWorker = await Nanny(
            scheduler,
            name=name,
            nthreads=shape.threads,
            memory_limit=shape.memory_limit,
            resources=dict(shape.resources),
            env=dict(shape.env),
            host=LOOPBACK,
            local_directory=self.scratch,
            death_timeout=START_TIMEOUT,
            silence_logs=self.silence_logs,
            dashboard=False,
            plugins=plugins,
        )
        return nanny
