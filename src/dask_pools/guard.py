"""The guard: where a chunk is read, make sure that this is a worker of the pool that holds it.

It is the last line behind the annotation, the name of the key and the scheduler plugin: if all three were
lost, a chunk is not read in the wrong place, where a file of the same name may hold something else. It knows
workers and their resources, and nothing of files.
"""

from __future__ import annotations

from distributed import get_worker

from dask_pools.errors import MisplacedTaskError
from dask_pools.pins import resource

__all__ = ["on_worker_of"]


def on_worker_of(pool: str, entry: str, chunk: str) -> bool:
    """Whether this is a task on a worker of `pool`.

    Parameters
    ----------
    pool : str
        The pool that holds the data.
    entry, chunk : str
        What is about to be read or written, for the message.

    Returns
    -------
    bool
        True in a task on a worker that offers the pool's resource. False outside any worker, where Dask's
        threaded and synchronous schedulers read: the caller then has to compare the version of the data.

    Raises
    ------
    MisplacedTaskError
        In a task on any other worker.
    """
    try:
        worker = get_worker()
    except ValueError:
        return False
    if resource(pool) in worker.state.total_resources:
        return True
    raise MisplacedTaskError(entry, chunk, worker.address, pool)
