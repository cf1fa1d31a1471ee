"""Workers on a control host: its agent starts and stops them, this asks for it.

How the agent does that is one of the launchers of this directory, which it runs at its end: as processes of
the control host (``host``), or as containers on it (``docker``). This module knows what the agent is asked
for, and not how the agent is reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dask_pools.cluster.launchers import WorkerShape
from dask_pools.errors import DataCentresError, SiteError
from dask_pools.sites import protocol
from dask_pools.workers import LauncherOptions, Workers

if TYPE_CHECKING:  # who only reads a data-centres file needs nothing that speaks SSH
    from dask_pools.sites.site import Site

__all__ = ["AtSite", "HostOptions", "SiteLauncher", "SiteWorker", "only_at_its_site"]

Kind = Literal["host", "docker"]


class AtSite(LauncherOptions):
    """Options of a launcher that an agent runs at its control host."""

    def at(self, site: Site) -> SiteLauncher:
        """Make the launcher of the pool at a site."""
        raise NotImplementedError

    def launcher(self, pool: str, workers: Workers) -> Any:
        """Refuse: without its control host there is no launcher.

        Raises
        ------
        DataCentresError
            Saying what starts workers at control hosts.
        """
        raise only_at_its_site(pool, workers)


def only_at_its_site(pool: str, workers: Workers) -> DataCentresError:
    """Say why workers cannot be started from here."""
    return DataCentresError(
        f"The workers of {pool!r} are started at a control host (launcher: {workers.launcher}), and a "
        "cluster has to connect with that: use dask_pools.cluster.MultiSiteCluster with this file."
    )


class HostOptions(AtSite):
    """What ``host:`` may say in a data-centres file.

    Attributes
    ----------
    listen : str or None
        Address of the control host that workers listen on; None for the one that SSH comes in by.
    """

    listen: str | None = None

    def at(self, site: Site) -> SiteLauncher:
        """Make the launcher of the pool at a site."""
        return SiteLauncher(site, "host", self.listen)


@dataclass(frozen=True)
class SiteLauncher:
    """Start workers through the agent of a site.

    Parameters
    ----------
    site : Site
        Connected with when the first worker is wanted.
    kind : {"host", "docker"}
        What the agent starts them by.
    listen : str, optional
        Address that the workers listen on; None for the one that SSH came in by.
    options : mapping, optional
        For what the agent starts them by.
    """

    site: Site
    kind: Kind = "host"
    listen: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> SiteWorker:
        """Start a worker; it has joined the scheduler when this returns.

        Raises
        ------
        SiteError
            If the site cannot be reached, or the worker does not start; or if the scheduler would speak to it
            without encryption.
        """
        await self.site.connected()
        worker = SiteWorker(self.site, name)
        try:
            await self.site.ask(
                lambda number: protocol.StartWorker(
                    number=number,
                    name=name,
                    scheduler=scheduler,
                    shape=protocol.Shape(**_plain(shape)),
                    launcher=self.kind,
                    listen=self.listen,
                    options=dict(self.options),
                )
            )
        except asyncio.CancelledError:
            await worker.close()
            raise
        self.site.tell(f"worker {name} has joined")
        return worker


def _plain(shape: WorkerShape) -> dict[str, Any]:
    plain = asdict(shape)
    return {**plain, "env": dict(shape.env), "resources": {k: float(v) for k, v in shape.resources.items()}}


class SiteWorker:
    """A worker that the agent of a site has started."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self._name = name

    async def ended(self) -> str:
        """Wait until it has ended, or its site is lost; why."""
        return await self._site.ended(self._name)

    async def logs(self) -> str:
        """Say where the last that it wrote is kept."""
        log = self._site.welcome.log if self._site.welcome else "the log of its agent"
        return f"On {self._site.host.host}: {log}"

    async def close(self) -> None:
        """Stop it; where its site cannot be reached, the agent does so when it has lost the cluster."""
        self._site.forget(self._name)
        if self._site.state not in ("connected", "away"):
            return
        limit = protocol.STOPPING if self._site.state == "connected" else 3 * self._site.patience.beat
        with suppress(SiteError, TimeoutError):
            stopping = self._site.ask(lambda number: protocol.StopWorker(number=number, name=self._name))
            await asyncio.wait_for(stopping, limit)
