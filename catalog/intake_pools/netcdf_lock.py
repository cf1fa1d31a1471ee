"""One lock for all that this process does with the NetCDF and HDF5 libraries, which know no threads.

xarray locks the reading of data, but neither the reading of metadata when a file is opened, nor what other
processes' Datasets do here: a thread that opens a file beside one that reads another is enough for a crash
(pydata/xarray issues 4100 and 9779). This lock is held for all of an opening, and handed to xarray for all
that comes later.
"""

from __future__ import annotations

import threading

from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

__all__ = ["LOCK"]


class NetCDFLock:
    """A lock that its thread may take again, and that holds the one of xarray meanwhile.

    xarray takes the lock that it is handed while it opens, so it has to be reentrant, which its own is not.
    Holding that one too keeps away Datasets that the user opened with xarray alone.
    """

    def __init__(self) -> None:
        self._own = threading.RLock()
        self._depth = 0

    @property
    def own(self) -> threading.RLock:
        """The part that xarray does not take: for what is to be alone and has no way to be handed a lock."""
        return self._own

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock; returns whether that was possible."""
        if not self._own.acquire(blocking):
            return False
        if self._depth == 0 and not NETCDF4_PYTHON_LOCK.acquire(blocking):
            self._own.release()
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        """Give it back, once for every time that it was taken."""
        self._depth -= 1
        if self._depth == 0:
            NETCDF4_PYTHON_LOCK.release()
        self._own.release()

    def locked(self) -> bool:
        """Whether some thread has it."""
        return self._depth > 0

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


LOCK = NetCDFLock()
