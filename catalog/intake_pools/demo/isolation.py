"""How far the demo's two sites are kept apart: by name spaces where that is allowed, else by directories.

In a mount name space of its own, a site's worker finds an empty directory in the other site's place.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import dask

from dask_pools.cluster import LocalPools

__all__ = ["Isolation", "find_isolation", "start_pools"]

# The shell runs inside the new name space: it hides each directory up to "--", then becomes the worker.
_HIDE = (
    'while [ "$1" != -- ]; do mount -t tmpfs -o ro,size=4k hidden "$1" || exit; shift; done; shift; exec "$@"'
)


# A machine that has other things to do may take long to start a worker.
PATIENCE = "5 min"


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

    def hiding(self, *directories: Path | str) -> list[str]:
        """Beginning of a command that runs the rest of it where `directories` are empty."""
        user = ["--user", "--map-root-user"] if self is Isolation.USER_NAMESPACES else []
        start = ["unshare", *user, "--mount", "--propagation", "private", "sh", "-c", _HIDE, "sh"]
        return [*start, *map(str, directories), "--"]


def find_isolation() -> Isolation:
    """Return the strongest isolation that this machine allows this user; found by trying."""
    with tempfile.TemporaryDirectory() as hidden:
        for isolation in (Isolation.NAMESPACES, Isolation.USER_NAMESPACES):
            with suppress(OSError, subprocess.TimeoutExpired):
                tried = subprocess.run(
                    [*isolation.hiding(hidden), "true"], capture_output=True, timeout=10, check=False
                )
                if tried.returncode == 0:
                    return isolation
    return Isolation.DIRECTORIES


@contextmanager
def start_pools(directories: Mapping[str, Path], isolation: Isolation) -> Iterator[LocalPools]:
    """Make a pool for each site, without workers; those that come have two threads.

    Parameters
    ----------
    directories : mapping of str to pathlib.Path
        Directory of each site, by data centre.
    isolation : Isolation
    """
    prefixes = {
        name: isolation.hiding(*(other for site, other in directories.items() if site != name))
        for name in directories
    }
    with (
        tempfile.TemporaryDirectory(prefix="intake-pools-demo-") as scratch,
        # Dask leaves an empty directory behind wherever it keeps temporary files.
        dask.config.set({"temporary-directory": scratch, "pools.wait-for-workers": PATIENCE}),
        LocalPools(
            dict.fromkeys(directories, 0),
            threads_per_worker=2,
            directories=directories,
            prefixes=prefixes if isolation.is_real else None,
            # What the demo shows going wrong is told by the demo; the workers need not log it as well.
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster
