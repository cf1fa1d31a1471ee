"""Ending a process when the one that started it is gone, for whatever reason.

The two are joined by the child's standard input: a pipe on which the parent writes nothing more, and which
the system closes when the parent ends. Nannies have this module as one of Dask's preloads.
"""

import os
import signal
import threading
from collections.abc import Callable

STDIN = 0


def when_orphaned(end: Callable[[], None]) -> None:
    """Call `end` in a thread when standard input closes."""

    def watch() -> None:
        # Not through sys.stdin: a thread that holds its lock when the interpreter ends brings that down.
        while os.read(STDIN, 4096):
            pass
        end()

    threading.Thread(target=watch, name="dask-pools-tether", daemon=True).start()


def dask_setup(nanny: object) -> None:
    """Tie a nanny, with its worker, to the process that started it as the leader of a process group.

    In a container it is the first process, to which no other there can do anything, and all end with it.
    """
    first = os.getpid() == 1
    when_orphaned(lambda: os._exit(1) if first else os.killpg(os.getpgrp(), signal.SIGKILL))
