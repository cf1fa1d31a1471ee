"""What is written down of a running cluster, so that it can be found when the process that made it has died.

One file a cluster, in this user's directory for state (``$XDG_STATE_HOME/dask-pools``), which nobody else can
look into. It is there only while something would outlive that process: a scheduler, workers that their
launcher can find again, agents at sites. It knows neither clusters nor launchers.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dask_pools.cluster.process import Process

__all__ = ["Held", "PoolWish", "Record", "SitesLeft", "claim", "orphans", "records", "remove", "write"]


@dataclass(frozen=True)
class Held:
    """A worker that outlives the process that started it."""

    pool: str
    handle: dict[str, Any]
    """What its launcher finds it by."""


@dataclass(frozen=True)
class PoolWish:
    """What is wanted of a pool, and what it has used."""

    wanted: int
    """How many workers it should have."""
    adapts: dict[str, Any] | None = None
    """How far, if it adapts: fields of `dask_pools.cluster.adapting.Bounds`."""
    hours: float = 0.0
    """How long its workers have run, added up."""


@dataclass(frozen=True)
class SitesLeft:
    """Agents at sites, which take everything down by themselves some time after they lost their cluster."""

    cluster: str
    """By which the agents know it."""
    names: tuple[str, ...]
    ssh_config: str | None = None


@dataclass(frozen=True)
class Record:
    """One cluster."""

    cluster: str
    """Its identifier."""
    owner: Process
    """The process that answers for its pools."""
    file: str
    """Path of its data-centres file."""
    scheduler: str
    """Address."""
    scheduler_process: Process | None = None
    """That of the scheduler, if it outlives the owner and ends with the cluster."""
    scheduler_stays: bool = False
    """Whether it is somebody else's, and stays when the cluster ends."""
    tls: dict[str, str] = field(default_factory=dict)
    """Arguments of `distributed.Security`, if they are files."""
    pools: dict[str, PoolWish] = field(default_factory=dict)
    workers: dict[str, Held] = field(default_factory=dict)
    """By name."""
    dismissed: tuple[str, ...] = ()
    """Names of workers that are not wanted, should they come."""
    sites: SitesLeft | None = None

    @property
    def scheduler_may_live(self) -> bool:
        """Whether the scheduler did not end with the owner."""
        return self.scheduler_process is not None or self.scheduler_stays


_RECORD = TypeAdapter(Record)


def _directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be passed over (XDG Base Directory Specification).
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "dask-pools"


def _path(cluster: str) -> Path:
    return _directory() / f"{cluster}.json"


def write(record: Record) -> None:
    """Write down how a cluster is now.

    Raises
    ------
    OSError
        If that is not possible.
    """
    path = _path(record.cluster)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(_RECORD.dump_json(record))
    new.replace(path)


def remove(cluster: str) -> None:
    """Remove what is written down of a cluster."""
    with suppress(OSError):
        _path(cluster).unlink()


def records() -> Iterator[Record]:
    """Give what is written down of this user's clusters; what cannot be read is passed over."""
    for path in sorted(_directory().glob("*.json")):
        with suppress(OSError, ValidationError):
            yield _RECORD.validate_json(path.read_bytes())


def claim(cluster: str) -> bool:
    """Make a cluster whose owner has died one of this process; False where somebody else was faster.

    Who cannot do with it what was to be done writes it down again as it was.
    """
    lock = os.open(_directory(), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            found = _RECORD.validate_json(_path(cluster).read_bytes())
        except (OSError, ValidationError):
            return False
        if found.owner.lives:
            return False
        write(replace(found, owner=Process.current()))
        return True
    finally:
        os.close(lock)


def orphans(address: str | None = None) -> list[Record]:
    """Find clusters whose owner has died.

    Parameters
    ----------
    address : str, optional
        That of the scheduler, if only one is meant.
    """
    return [
        record
        for record in records()
        if record.owner.is_here
        and not record.owner.lives
        and (address is None or record.scheduler == address)
    ]
