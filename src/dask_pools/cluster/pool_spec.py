"""What a pool of a cluster is to be like, and reading it from a data-centres file.

Plain data: it starts nothing, and knows launchers only as something that a pool has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from dask_pools import data_centres, pins
from dask_pools.cluster.launchers import Launcher, WorkerShape
from dask_pools.cluster.launchers.site import AtSite, only_at_its_site
from dask_pools.data_centres import DataCentres
from dask_pools.errors import DataCentresError
from dask_pools.workers import Workers

__all__ = ["PoolSpec", "Provision", "check_count", "check_spec", "file_of", "pool_spec", "pool_specs"]

Provision = Literal["auto", "ask", "never"]


@dataclass(frozen=True)
class PoolSpec:
    """One pool of a cluster: what its workers are like, how they are started, how many there are."""

    launcher: Launcher
    """Starts them."""

    worker: WorkerShape = field(default_factory=WorkerShape)
    """What each is like."""

    workers: int = 1
    """How many to start with."""

    minimum: int = 0
    """How many it keeps while it adapts; also how many (but at least one) come up when it has none and is
    wanted."""

    maximum: int | None = None
    """The most there can be; None for no limit."""

    provision: Provision = "auto"
    """Whether workers come as soon as they are wanted, after somebody has been asked, or never by themselves;
    what `PoolCluster.scale` says counts in each case."""

    askers: tuple[str, ...] | None = None
    """Names of the users who may ask for it when it has no workers; None for whoever is connected. They say
    who they are themselves: this keeps order among colleagues, and nobody out."""

    max_hours: float | None = None
    """Hours that its workers may run in all, added up, while the cluster lives; then they stop. None for no
    limit."""

    timeout: float | None = None
    """Seconds to wait for a first worker, and in which one that is being started has to join; None: wait for
    the first as long as ``pools.wait-for-workers`` says, and for the rest without limit."""

    idle: float | None = None
    """Seconds without a task after which a worker may go while the pool adapts; None: as
    ``pools.idle-timeout`` says."""


def check_spec(pool: str, spec: PoolSpec) -> None:
    """Refuse a pool that cannot be.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        Naming the pool, the field and what it may be.
    """
    pins.check_name(pool)
    if not isinstance(spec, PoolSpec):
        raise TypeError(f"Pool {pool!r} is {spec!r}; give a PoolSpec, or a data-centres file for all pools.")
    check_count(pool, spec.workers, spec.maximum)
    check_count(pool, spec.minimum, spec.maximum)
    if spec.provision not in get_args(Provision):
        known = ", ".join(map(repr, get_args(Provision)))
        raise ValueError(f"Pool {pool!r} cannot have provision={spec.provision!r}: use one of {known}.")
    for limit in ("max_hours", "timeout", "idle"):
        value = getattr(spec, limit)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise ValueError(f"Pool {pool!r} cannot have {limit}={value!r}: give a number above 0, or None.")


def check_count(pool: str, count: int, maximum: int | None = None) -> None:
    """Refuse a number of workers that a pool cannot have.

    Raises
    ------
    ValueError
        If `count` is not a whole number from 0 to `maximum`.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"Pool {pool!r} cannot have {count!r} workers: give a whole number from 0 on.")
    if maximum is not None and count > maximum:
        raise ValueError(f"Pool {pool!r} cannot have {count} workers: it has a maximum of {maximum}.")


def pool_specs(
    given: DataCentres | str | os.PathLike[str], launchers: Mapping[str, Launcher] | None = None
) -> dict[str, PoolSpec]:
    """Read from a data-centres file what pools there can be, and how their workers are started.

    Parameters
    ----------
    given : DataCentres or path
        Data centres without a ``workers:`` section get no pool.
    launchers : mapping of str to Launcher, optional
        Launchers of pools, in place of those that their sections would make.

    Returns
    -------
    dict of str to PoolSpec
        By data centre. Each starts with its minimum of workers.

    Raises
    ------
    DataCentresError
        If the file is wrong, or no data centre in it says how to get workers.
    ImportError
        If a launcher needs a package that is not there; says how to install it.
    """
    launchers = launchers or {}
    known = data_centres.load(given)
    sections = {name: one.workers for name, one in known.data_centres.items() if one.workers is not None}
    if not sections:
        raise DataCentresError(
            f"{known.origin} does not say how to get workers. Add to a data centre in it, for processes on "
            "this machine: workers: {launcher: local}"
        )
    return {
        pool: pool_spec(pool, workers, launchers.get(pool) or _launcher(known, pool, workers))
        for pool, workers in sections.items()
    }


def pool_spec(pool: str, workers: Workers, launcher: Launcher | None = None) -> PoolSpec:
    """Make a pool of a ``workers:`` section, with its own launcher or another."""
    return PoolSpec(
        launcher=launcher or workers.options.launcher(pool, workers),
        worker=WorkerShape(
            threads=workers.threads,
            memory_limit=workers.memory,
            directory=workers.directory,
            env=dict(workers.env),
            resources=dict(workers.resources),
        ),
        workers=workers.minimum,
        minimum=workers.minimum,
        maximum=workers.maximum,
        provision=workers.provision,
        askers=workers.askers,
        max_hours=workers.max_hours,
        timeout=workers.timeout,
        idle=workers.idle,
    )


def file_of(given: DataCentres | str | os.PathLike[str]) -> str | None:
    """Path of the file that data centres come from; None if they come from several, or from elsewhere."""
    path = os.path.abspath(os.path.expanduser(given.origin if isinstance(given, DataCentres) else given))
    return path if os.path.isfile(path) else None


def _launcher(known: DataCentres, pool: str, workers: Workers) -> Launcher:
    """Make the launcher of a pool whose workers are started from here."""
    if known.data_centres[pool].site is not None and isinstance(workers.options, AtSite):
        raise only_at_its_site(pool, workers)
    launcher: Launcher = workers.options.launcher(pool, workers)
    return launcher
