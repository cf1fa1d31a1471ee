"""A cluster across data centres: the scheduler here, workers at control hosts that are reached over SSH.

Pools without a control host may be in it as well; their workers are started from this machine.
It connects with the sites of a data-centres file, has them joined by a network of the cluster's own, and
starts the workers through the sites' agents. A site that fails does not stop the others.
Whether a site is lost is decided by heartbeats between this process and the site's agent; Dask's own
time-outs are set above an outage, so that workers that are only cut off for a while are not given up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import dask
from distributed.core import Status
from distributed.utils import format_dashboard_link

from dask_pools import data_centres, pins
from dask_pools.cluster.launchers.site import AtSite, HostOptions
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import file_of, pool_specs
from dask_pools.cluster.record import SitesLeft, remove
from dask_pools.cluster.scheduler_process import LOOPBACK, scheduler_spec
from dask_pools.config import compression
from dask_pools.data_centres import DataCentres
from dask_pools.errors import DataCentresError, PoolsError, PoolUnavailableError
from dask_pools.network import SiteSection
from dask_pools.sites.networks import MeshNetwork, Network, TlsNetwork
from dask_pools.sites.site import Patience, Site
from dask_pools.sites.ssh import ControlHost

__all__ = ["MultiSiteCluster"]

logger = logging.getLogger(__name__)


class MultiSiteCluster(PoolCluster):
    """Pools at control hosts that are reached over SSH; the scheduler runs in this process.

    Every data centre that has a ``workers:`` section becomes a pool. Those with a ``site:`` have their
    workers started there, by its agent; those without, from this machine, as `PoolCluster` has them. Where a
    site fails, its pool has no workers and `failures` says why; the others go on.

    Parameters
    ----------
    given : path or DataCentres
        A data-centres file. With ``network: mesh`` a private network is made for the cluster, for which this
        machine has to be allowed to make one (`dask_pools.mesh`); with ``network: tls`` scheduler and workers
        reach each other directly, and encrypt, with certificates made for this cluster.
    host : str, optional
        With ``network: tls``, address of this machine that the sites reach the scheduler at; by default the
        one from which the first control host was reached.
    patience : Patience, optional
        How long a site may be silent before it is lost.
    ssh_config : path, optional
        Configuration of `ssh` to read in place of ``~/.ssh/config``.
    dashboard_address : str or None
        Where Dask's dashboard listens; without a host on the loopback interface. None: no dashboard.
    asynchronous : bool
        Whether it is used with ``async with`` and ``await``.
    silence_logs : int or None
        Level below which the scheduler logs nothing.
    on_step : callable, optional
        Called with a pool and what is being done at its site, in words, as that happens; from another thread.
    **kwargs
        Further arguments of `distributed.SpecCluster`, such as `name`.

    Attributes
    ----------
    sites : dict of str to Site

    Raises
    ------
    DataCentresError
        If the file is wrong, or has no pool at a site.
    MeshError, PlanError
        If the mesh cannot be made.
    ValueError
        If ``pools.compression`` is not known here.
    HostKeyError, SiteError, VersionMismatchError
        If no site at all can be reached.

    Examples
    --------
    >>> with MultiSiteCluster("data-centres.yaml") as cluster:  # doctest: +SKIP
    ...     client = cluster.get_client()
    """

    def __init__(
        self,
        given: DataCentres | str | os.PathLike[str],
        *,
        host: str | None = None,
        patience: Patience | None = None,
        ssh_config: str | os.PathLike[str] | None = None,
        dashboard_address: str | None = ":0",
        asynchronous: bool = False,
        silence_logs: int | None = logging.WARNING,
        on_step: Callable[[str, str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        known = data_centres.load(given)
        self._file = file_of(known)
        at_sites = _at_sites(known)
        self._patience = patience or Patience()
        self._network: Network = (
            TlsNetwork(host) if known.network == "tls" else MeshNetwork(known, list(at_sites))
        )
        self._dashboard = (
            None if dashboard_address is None else dashboard_address.rpartition(":")[0] or LOOPBACK
        )
        self._connected = False
        self._losing: set[asyncio.Future[None]] = set()
        config = os.fspath(ssh_config) if ssh_config is not None else None
        cluster = uuid.uuid4().hex
        self._on_step = on_step or (lambda pool, step: None)
        self.sites = self._sites_of(known, list(at_sites), cluster, config)
        self._sites_left = SitesLeft(cluster, tuple(at_sites), config)
        launchers = {name: options.at(self.sites[name]) for name, options in at_sites.items()}
        specs = pool_specs(known, launchers)
        self._at_start = {pool: spec.workers for pool, spec in specs.items()}
        # Only once their sites are known to be there.
        specs = {pool: replace(spec, workers=0) for pool, spec in specs.items()}
        self._settings: Any = dask.config.set(_settings(self._patience) | self._network.settings)
        try:
            super().__init__(
                specs,
                scheduler=scheduler_spec("here", dashboard_address, silence_logs),
                asynchronous=asynchronous,
                silence_logs=silence_logs,
                security=self._network.security,
                **kwargs,
            )
        except BaseException:
            self._put_back()
            if not asynchronous and getattr(self, "status", None) != Status.closed:
                # Also after Ctrl-C, which leaves what was begun to go on in Dask's thread.
                with suppress(Exception):
                    self.sync(self._leave_sites, callback_timeout=60)
                # Dask would leave that thread, and at the end of the program close what never began.
                self.status = Status.closed
                self._loop_runner.stop()
            raise

    def _sites_of(
        self, known: DataCentres, names: list[str], cluster: str, config: str | None
    ) -> dict[str, Site]:
        sites = {}
        for name in names:
            section = known.data_centres[name].site
            assert section is not None
            sites[name] = site = Site(
                name,
                control_host(section, config),
                cluster,
                self._patience,
                settings=_settings(self._patience),
                on_lost=self._site_lost,
            )
            site.on_step = partial(self._on_step, name)
            site.prepare = self._network.prepare
            site.attach_options = self._network.attach_options(name)
        return sites

    @property
    def dashboard_link(self) -> str:
        """Address of Dask's dashboard, or nothing if there is none. It is not where the scheduler listens."""
        port = self.scheduler_info.get("services", {}).get("dashboard")
        return str(format_dashboard_link(self._dashboard, port)) if self._dashboard and port else ""

    # Starting

    async def _start(self) -> None:
        first, self._connected = not self._connected, True
        if first:
            self._write_down()
            await self._connect()
        await super()._start()
        if first and self.status == Status.running:
            failures = self.failures
            for pool, count in self._at_start.items():
                if pool not in failures:
                    self._plan(pool, count)
            # One site's workers that do not start are no reason to stop.
            with suppress(PoolUnavailableError):
                await self._correct_state()

    async def _connect(self) -> None:
        """Connect with all sites, side by side."""
        sites = list(self.sites.values())
        answers = await asyncio.gather(*(site.connected() for site in sites), return_exceptions=True)
        wrong = {
            site.name: one for site, one in zip(sites, answers, strict=True) if isinstance(one, Exception)
        }
        try:
            if len(wrong) < len(sites):
                wrong |= await self._network.join([site for site in sites if site.name not in wrong])
            for error in wrong.values():
                if len(wrong) == len(sites) or not isinstance(error, PoolsError):
                    raise error
        except BaseException:
            await self._leave_sites()
            raise
        for pool, error in wrong.items():
            logger.warning("Site %s: %s", pool, error)
            self._on_step(pool, f"failed: {error}")
            # Reported until somebody asks for workers of it.
            self._standings[pool].give_up(str(error), time.monotonic())
        self.scheduler_spec["options"] |= self._network.scheduler()

    # Losing

    def _site_lost(self, site: Site, reason: str) -> None:
        losing = asyncio.ensure_future(self._unregister(site.name))
        self._losing.add(losing)
        losing.add_done_callback(self._losing.discard)

    async def _unregister(self, pool: str) -> None:
        """Have the scheduler do without the workers of a site, which it would wait for during an outage.

        That they have ended each of them knows from its site.
        """
        if self.status != Status.running:
            return
        known = (await self.scheduler_comm.identity(n_workers=-1))["workers"]
        for address, worker in known.items():
            if pins.resource(pool) in worker["resources"]:
                await self.scheduler_comm.unregister(address=address, stimulus_id=f"site-lost-{uuid.uuid4()}")

    # Closing

    async def _leave_sites(self) -> None:
        await asyncio.gather(*(site.close() for site in self.sites.values()), return_exceptions=True)
        await self._network.close()
        remove(self._owner)

    async def _close(self) -> None:
        try:
            await super()._close()
        finally:
            await self._leave_sites()
            self._put_back()

    def _put_back(self) -> None:
        """Put Dask's settings back, once."""
        settings, self._settings = self._settings, None
        if settings is not None:
            settings.__exit__(None, None, None)


def control_host(section: SiteSection, ssh_config: str | None) -> ControlHost:
    """Make of a ``site:`` section how its control host is reached."""
    return ControlHost(section.host, section.user, section.port, section.dask, section.directory, ssh_config)


def _at_sites(known: DataCentres) -> Mapping[str, AtSite]:
    """Find the pools at sites.

    Raises
    ------
    DataCentresError
        If there are none; if one says only half of what is needed, or workers of one could not be reached.
    """
    found: dict[str, AtSite] = {}
    for name, one in known.data_centres.items():
        if one.workers is None:
            continue
        options, launcher = one.workers.options, one.workers.launcher
        if one.site is None and isinstance(options, HostOptions):
            raise DataCentresError(
                f"{known.origin}: {name!r} does not say which its control host is. Add to it: "
                "site: {host: NAME}"
            )
        if one.site is not None and not isinstance(options, AtSite):
            raise DataCentresError(
                f"{known.origin}: at the control host of {name!r} nobody starts workers with `launcher: "
                f"{launcher}`. Set `launcher: host` or `launcher: docker` there; or take its `site:` out, "
                "and they are started from this machine."
            )
        if known.network == "mesh" and one.site is None and not options.here:
            raise DataCentresError(
                f"{known.origin}: workers of {name!r} (launcher: {launcher}) would not be on the cluster's "
                "mesh. Have them started on a control host (site: {host: NAME} and `launcher: host`), or, "
                "where all hosts reach each other directly, write `network: tls`."
            )
        if one.site is not None and isinstance(options, AtSite):
            found[name] = options
    if not found:
        raise DataCentresError(
            f"{known.origin} has no data centre with a control host and workers. Add to one of them: "
            "site: {host: NAME} and workers: {launcher: host}"
        )
    return found


def _settings(patience: Patience) -> dict[str, Any]:
    """Dask's settings for scheduler, workers and client.

    Its time-outs would give up a worker during an outage; and both ends of a connection have to name the same
    compression, or there is none.
    """
    limit = f"{patience.dask:g}s"
    return {
        "distributed.comm.timeouts.tcp": limit,
        "distributed.comm.timeouts.connect": limit,
        "distributed.scheduler.worker-ttl": limit,
        "distributed.comm.compression": compression(),
    }
