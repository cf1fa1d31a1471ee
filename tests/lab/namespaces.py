"""Sites on one machine that truly cannot see each other's data: each in a mount name space of its own.

A site is a process that does nothing but keep its name space. In there, a file system in memory lies over
`ROOT`, so the same absolute path holds other data at each site and nothing for everybody else. When the
process ends, because it is told to or because whoever started it is gone, nothing has to be tidied up: mount
and files go with the last process that is in the name space. It knows nothing of what is computed.
"""

from __future__ import annotations

import logging
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dask_pools.cluster import PoolCluster, PoolSpec
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.local import LOOPBACK, LocalLauncher
from dask_pools.cluster.scheduler_process import SchedulerProcess
from intake_pools.demo.isolation import Isolation, find_isolation

ROOT = Path("/srv")
"""Where sites have their data. Debian, and whoever follows the same standard, has it and leaves it empty."""

FORBIDDEN = "mount name spaces are forbidden here, as this user and in a user name space"

# The shell becomes the process that keeps the name space, until its standard input closes.
_KEEP = (
    'mount -t tmpfs -o mode=755,size=64m "$1" "$2" && cd "$2" && mkdir -p "$3" shared scratch && cd "$3" && '
    "echo ready && exec cat"
)


@cache
def isolation() -> Isolation:
    """What this machine allows this user; found by trying."""
    return find_isolation()


@dataclass(frozen=True)
class Site:
    """A data centre, as its workers see it."""

    name: str
    mount: str
    """What its file system is called in the list of mounts."""
    keeper: subprocess.Popen[str]

    @property
    def inside(self) -> tuple[str, ...]:
        """Beginning of a command that runs the rest of it at the site, in the directory of its data."""
        user = ["--user", "--preserve-credentials"] if isolation() is Isolation.USER_NAMESPACES else []
        return ("nsenter", "--target", str(self.keeper.pid), *user, "--mount", "--wd")

    def from_outside(self, path: str | Path) -> Path:
        """Where the test can reach what the site has at an absolute path, in order to lay it out."""
        return Path(f"/proc/{self.keeper.pid}/root{path}")


@contextmanager
def start_sites(names: Iterable[str]) -> Iterator[dict[str, Site]]:
    """Start sites that have, below `ROOT`, a directory of their name, and ``shared`` and ``scratch``."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_start_site(name)) for name in names}


@contextmanager
def _start_site(name: str) -> Iterator[Site]:
    mount = f"intake-pools-lab-{name}-{uuid.uuid4().hex}"
    with subprocess.Popen(
        [*isolation().hiding(), "sh", "-c", _KEEP, "sh", mount, str(ROOT), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for the test run, which ends it in order.
        start_new_session=True,
    ) as keeper:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "ready\n":
            raise RuntimeError(f"Site {name} did not start; what it said is above.")
        yield Site(name, mount, keeper)


@contextmanager
def start_cluster(sites: Mapping[str, Site], threads: Mapping[str, int]) -> Iterator[PoolCluster]:
    """Start a scheduler in a process of its own, and a worker of so many threads at each of these sites."""
    scheduler = {"host": LOOPBACK, "port": 0, "dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    with PoolCluster(
        {name: PoolSpec(launcher(sites[name]), WorkerShape(threads=n)) for name, n in threads.items()},
        scheduler={
            "cls": SchedulerProcess,
            "options": {"options": scheduler, "silence_logs": logging.CRITICAL},
        },
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


def launcher(site: Site) -> LocalLauncher:
    """Start workers at a site.

    They are killed with the thread that starts them. Left to itself, a worker that is busy with a task gives
    it half a minute to finish.
    """
    prefix = (*site.inside, "setpriv", "--pdeathsig", "KILL")
    return LocalLauncher(str(ROOT / "scratch"), prefix=prefix, log_level=logging.CRITICAL)


def mounted(names: Iterable[str]) -> set[str]:
    """Those of these file systems that some process on this machine still has mounted."""
    lists = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            lists.append(path.read_text())
        except OSError:  # ended meanwhile
            continue
    return {name for name in names if any(name in one for one in lists)}
