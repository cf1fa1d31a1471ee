"""Looking for what a test leaves behind, and waiting for it to go."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children() -> list[psutil.Process]:
    """Processes that this one has started, by whatever way, and that are still there.

    Python's own resource tracker is left out: it comes with the first process and goes with the last.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in str(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
