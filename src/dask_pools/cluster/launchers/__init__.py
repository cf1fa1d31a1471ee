"""Starting workers of a pool: one file a way of doing it, all behind the protocol below.

A launcher knows how to start one Dask worker somewhere (a process, a container, a batch job). It knows
neither how many workers a pool should have nor which pools there are: that is the cluster's business.

A data-centres file names launchers by entry point (`dask_pools.workers.LAUNCHERS`): a class of options, which
checks what the file says when it is read, and makes the launcher when workers are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

__all__ = ["Finder", "Lasting", "LaunchedWorker", "Launcher", "Queued", "WorkerShape"]


@dataclass(frozen=True)
class WorkerShape:
    """What each worker of a pool is like, wherever it is started."""

    threads: int = 1
    """Tasks that it runs at once."""

    memory_limit: int | None = None
    """Bytes after which Dask restarts it; None for no limit."""

    directory: str | None = None
    """Directory that the tasks run in, on the machine of the worker; None leaves it to the launcher."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to set, besides those that the place gives it."""

    resources: Mapping[str, float] = field(default_factory=dict)
    """Dask worker resources that it offers; the cluster adds that of its pool."""


class LaunchedWorker(Protocol):
    """A worker that a launcher started."""

    async def ended(self) -> str:
        """Wait until it is no more, without having been closed; then say why, in words for the user.

        A launcher that cannot find out waits for ever.
        """
        ...

    async def logs(self) -> str:
        """Get the last that it wrote, as far as the launcher can see it; without any, say where it is."""
        ...

    async def close(self) -> object:
        """Stop it, and return when no process of it is left.

        To be called once, and also after it has `ended`: something of it may still be there.
        """
        ...


class Launcher(Protocol):
    """A way of starting workers."""

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> LaunchedWorker:
        """Start one worker.

        Return when it has joined the scheduler or, where it has to queue first, when it has its place: then
        whoever asked for it looks after its joining, and `LaunchedWorker.ended` tells if it will not. An
        exception means that nothing was left behind; its message reaches the user. So does being cancelled:
        then, too, nothing may be left behind.

        Parameters
        ----------
        scheduler : str
            Address of the scheduler.
        name : str
            What the worker is to call itself; unique in the cluster.
        shape : WorkerShape
        """
        ...


@runtime_checkable
class Queued(Protocol):
    """A `LaunchedWorker` that may have to wait for its turn before it starts."""

    @property
    def overdue(self) -> str | None:
        """Why it should have joined by now, in words for the user; None while it may still come."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """A `LaunchedWorker` that does not end with the process that started it."""

    @property
    def handle(self) -> dict[str, Any]:
        """What its launcher finds it by in another process; can be written as JSON, and holds no secrets."""
        ...


@runtime_checkable
class Finder(Protocol):
    """A `Launcher` whose workers are `Lasting`."""

    async def find(
        self, scheduler: str, name: str, shape: WorkerShape, handle: Mapping[str, Any]
    ) -> LaunchedWorker:
        """Find a worker that another process, which has died, had started.

        Parameters
        ----------
        scheduler, name, shape
            As it was started with.
        handle : mapping
            That of the worker.

        Raises
        ------
        LookupError
            If it has ended, as far as that can be told; its message says how.
        """
        ...
