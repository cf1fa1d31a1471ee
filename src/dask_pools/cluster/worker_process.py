"""``dask worker`` in a process that imports Dask once, for the nanny and for its worker.

Dask's nanny starts its worker as another interpreter, which imports what the nanny has imported already.
Here the process makes a copy of itself after importing, before it has any thread or event loop. The copy is
the server of the start method "forkserver" of `multiprocessing`, and the worker is a copy of that, at first
and whenever the nanny brings it back: it joins sooner, and what was imported is in memory once.

It knows of Dask and `multiprocessing` only, and nothing of pools.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from multiprocessing import forkserver
from typing import Any

import dask

__all__ = ["main"]

METHOD = "distributed.worker.multiprocessing-method"


def main() -> None:
    """Be ``dask worker``, with its arguments."""
    from distributed.cli import dask_worker

    # What its worker has as preload is imported for it here.
    from dask_pools import dask_internals, traffic  # noqa: F401

    # Who has chosen another way to start processes gets that one.
    if dask.config.get(METHOD) == "spawn" and _serve_forks():
        dask.config.set({METHOD: "forkserver"})
        dask_internals.import_nothing_for_forks()
    dask_worker.main()


def _serve_forks() -> bool:
    """Copy this process; the copy listens for this one, as what `multiprocessing` starts itself does.

    The attributes that are set here are not public: they are those of Python 3.11 to 3.13. From 3.14 on, and
    where there is no place for a socket, the worker is another interpreter as ever.
    """
    known: Any = forkserver._forkserver
    # A lock that another thread holds would be held in the copy for ever.
    if sys.version_info >= (3, 14) or threading.active_count() > 1:
        return False
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            address = _listen_unseen(listening)
        except OSError:  # the path is too long for a socket, the disk full, or there is no /proc
            return False
        ended, alive = os.pipe()
        if (process := os.fork()) == 0:
            os.close(alive)
            try:
                # Until this process and all workers are gone.
                forkserver.main(os.dup(listening.fileno()), ended, [])
            finally:
                os._exit(0)
        os.close(ended)
    known._forkserver_address, known._forkserver_alive_fd, known._forkserver_pid = address, alive, process
    return True


def _listen_unseen(listening: socket.socket) -> str:
    """Have a socket listen where only this process can connect; the path by which it does.

    Its file is gone at once, so nobody else can ask for a copy, and nothing is left however all this ends.
    Who opened it before still reaches it, by the links of proc(5).

    Raises
    ------
    OSError
        If that does not work here.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "fork")
        listening.bind(path)
        address = f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}"
    listening.listen()
    with socket.socket(socket.AF_UNIX) as trial:
        trial.connect(address)
        listening.accept()[0].close()
    return address


if __name__ == "__main__":
    main()
