"""How scheduler and workers of a cluster reach each other across sites, and why nobody else can listen.

One class a way, all with the same few methods, which a cluster calls as its sites come and go. They know the
sites, and nothing of Dask but what makes its connections safe.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import socket
import tempfile
from collections.abc import Set
from pathlib import Path
from typing import Any, Protocol

from distributed import Security

from dask_pools.data_centres import DataCentres
from dask_pools.errors import SiteError
from dask_pools.mesh.described import described_sites
from dask_pools.mesh.host import HostMesh, Offer, remove_leftovers
from dask_pools.mesh.plan import PlanError, make_plan, to_blame
from dask_pools.network import SCHEDULER
from dask_pools.sites import protocol
from dask_pools.sites.certificates import Authority, make_key
from dask_pools.sites.site import Site

__all__ = ["MeshNetwork", "Network", "TlsNetwork"]

# Seconds until hosts have shaken hands: one that was called too early calls again after 5, and then again.
HANDSHAKES = 20.0


class Network(Protocol):
    """A way for scheduler and workers to reach each other."""

    security: Security | None
    """What Dask's connections need."""

    def attach_options(self, site: str) -> tuple[str, ...]:
        """Options of the command that starts the agent of a site."""
        ...

    async def prepare(self, site: Site) -> None:
        """Do what a site needs with a new agent, before workers are started there.

        Raises
        ------
        PoolsError
            If the site cannot be reached this way.
        """
        ...

    async def join(self, sites: list[Site]) -> dict[str, Exception]:
        """Join the sites that could be connected with, at the start; what went wrong, by the site's name."""
        ...

    def scheduler(self) -> dict[str, Any]:
        """Arguments for `distributed.Scheduler`, once sites are connected."""
        ...

    async def close(self) -> None:
        """Take down what was made on this machine."""
        ...


class TlsNetwork:
    """Hosts reach each other directly, and Dask encrypts, with certificates made for this cluster.

    Parameters
    ----------
    host : str, optional
        Address of this machine, as the sites reach it; by default the one by which it reached the first.
    """

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self._authority = Authority()
        self._files = tempfile.TemporaryDirectory(prefix="dask-pools-", ignore_cleanup_errors=True)
        self.security: Security | None = self._own_security()

    def _own_security(self) -> Security:
        """Make the key of this process; the files are for it alone."""
        key = make_key(socket.gethostname())
        directory = Path(self._files.name)
        files = {
            "key.pem": key.private,
            "certificate.pem": self._authority.sign(key.request).encode(),
            "authority.pem": self._authority.certificate.encode(),
        }
        for name, content in files.items():
            with open(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        own = {"key": str(directory / "key.pem"), "cert": str(directory / "certificate.pem")}
        return Security(
            require_encryption=True,
            tls_ca_file=str(directory / "authority.pem"),
            **{
                f"tls_{role}_{part}": path
                for role in ("client", "scheduler", "worker")
                for part, path in own.items()
            },
        )

    def attach_options(self, site: str) -> tuple[str, ...]:
        """None are needed."""
        return ()

    async def prepare(self, site: Site) -> None:
        """Have a site make a key, and give it a certificate for that."""
        asked = await site.ask(lambda number: protocol.MakeKey(number=number))
        certificate = self._authority.sign(asked.request)
        await site.ask(
            lambda number: protocol.TrustKey(
                number=number, certificate=certificate, authority=self._authority.certificate
            )
        )

    async def join(self, sites: list[Site]) -> dict[str, Exception]:
        """Note by which address this machine reaches sites."""
        self._host = self._host or next((site.own_address for site in sites if site.own_address), None)
        return {}

    def scheduler(self) -> dict[str, Any]:
        """Arguments for `distributed.Scheduler`."""
        return {"host": self._host, "protocol": "tls://", "security": self.security}

    async def close(self) -> None:
        """Remove the key."""
        self._files.cleanup()


class MeshNetwork:
    """A WireGuard network of the cluster's own, from the router of each site to every other.

    Parameters
    ----------
    known : DataCentres
    names : list of str
        The sites that may join.

    Raises
    ------
    PlanError
        If they cannot be joined.
    """

    def __init__(self, known: DataCentres, names: list[str]) -> None:
        self.security: Security | None = None
        self._described = {site.name: site for site in described_sites(known, names)}
        self._plan = make_plan(self._described.values(), secrets.randbits(64))
        self._own = HostMesh(self._plan.router(SCHEDULER))
        self._offers: dict[str, Offer] = {}
        self._sites: dict[str, Site] = {}
        self._joined = False
        self._one_at_a_time = asyncio.Lock()
        self._preshared: dict[frozenset[str], str] = {}
        self._telling: set[asyncio.Future[dict[str, str]]] = set()

    def attach_options(self, site: str) -> tuple[str, ...]:
        """Have the agent start where it can make an interface, and the port for that come in there."""
        described = self._described[site]
        if not described.reachable:
            return ("--mesh",)
        return ("--mesh", "--udp-port", str(described.port or 0))

    async def prepare(self, site: Site) -> None:
        """Bring up a site's part. After the start, the others are told of it at once."""
        if site.name not in self._plan:
            self._plan = self._plan.join(self._described[site.name])
        router = self._plan.router(site.name)
        answer = await site.ask(lambda number: protocol.RaiseMesh(number=number, router=router))
        self._offers[site.name], self._sites[site.name] = answer.offer, site
        for pair in [pair for pair in self._preshared if site.name in pair]:
            del self._preshared[pair]
        if not self._joined:
            return
        if error := (await self._tell_all()).get(site.name):
            raise error
        missing = await self._tell(site.name, HANDSHAKES)
        # Of the others, some may be away just now, or lost; without a way to the scheduler it is of no use.
        needed = {SCHEDULER, self._plan.relay(SCHEDULER, site.name)}
        needed |= {one.name for one in self._sites.values() if one.state == "connected"}
        if said := [text for name, text in missing.items() if name in needed]:
            raise _apart(site, said[0])

    async def join(self, sites: list[Site]) -> dict[str, Exception]:
        """Bring up this machine's part, tell every host of the others, and wait until they have met."""
        wrong: dict[str, Exception] = {}
        for name in self._described.keys() - {SCHEDULER, *self._sites}:
            wrong |= self._do_without(name)
        await asyncio.to_thread(remove_leftovers)  # of clusters whose process was killed
        self._offers[SCHEDULER] = await asyncio.to_thread(self._own.raise_)
        while True:
            found = await self._tell_all()
            self._joined = True
            found |= await self._apart_from_others({*wrong, *found})
            if not found:
                return wrong
            wrong |= found
            for name in found:
                wrong |= self._do_without(name)

    def _do_without(self, name: str) -> dict[str, Exception]:
        """Plan without a site; what is wrong with those that could talk to the scheduler only through it."""
        self._offers.pop(name, None)
        if name in self._sites:
            self._sites[name].prepare_again()
        try:
            self._plan = self._plan.leave(name)
        except PlanError:  # without it others cannot be joined, and it may still come
            lost = [other for other in self._sites if self._plan.relay(SCHEDULER, other) == name]
            for other in lost:
                self._sites[other].prepare_again()
            return {
                other: _apart(
                    self._sites[other],
                    f"it and the machine of the scheduler only go out (`reach: nat`), and {name!r}, through "
                    "which they could talk, is not there; see what is said about that",
                )
                for other in lost
            }
        return {}

    async def _apart_from_others(self, but: Set[str]) -> dict[str, Exception]:
        """Wait until hosts have met, but for some; what is wrong with those that keep others waiting."""
        names = [name for name in self._offers if name not in but]
        answers = await asyncio.gather(
            *(self._tell(name, HANDSHAKES) for name in names), return_exceptions=True
        )
        failed: dict[str, Exception] = {}
        missing: dict[tuple[str, str], str] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, dict):
                missing |= {(name, other): text for other, text in answer.items() if other in names}
            elif isinstance(answer, Exception) and name != SCHEDULER:
                failed[name] = answer
            else:
                raise answer
        reachable = {name for name, site in self._described.items() if site.reachable}
        missing = {pair: text for pair, text in missing.items() if failed.keys().isdisjoint(pair)}
        for name, text in to_blame(missing, SCHEDULER, reachable).items():
            failed[name] = _apart(self._sites[name], text)
        return failed

    async def _tell_all(self) -> dict[str, Exception]:
        """Tell every host of the others, those that are called before those that call; what goes wrong."""
        failed: dict[str, Exception] = {}
        async with self._one_at_a_time:
            order = [name for name in self._plan.order if name in self._offers]
            called = [name for name in order if self._described[name].reachable]
            # Two that call each other at the same time have to try again, after 5 s: one at a time.
            for names in (*([name] for name in called), order[len(called) :]):
                now = [name for name in names if name == SCHEDULER or self._sites[name].state == "connected"]
                answers = await asyncio.gather(*(self._tell(name) for name in now), return_exceptions=True)
                for name, answer in zip(now, answers, strict=True):
                    if isinstance(answer, Exception) and name != SCHEDULER:
                        failed[name] = answer
                    elif isinstance(answer, BaseException):
                        raise answer
                for name in set(names) - set(now):
                    # When it is back; a site that is lost meanwhile has nothing to be told.
                    later = asyncio.ensure_future(self._tell(name))
                    self._telling.add(later)
                    later.add_done_callback(self._told)
        return failed

    def _told(self, told: asyncio.Future[dict[str, str]]) -> None:
        self._telling.discard(told)
        if not told.cancelled():
            told.exception()

    async def _tell(self, name: str, wait: float | None = None) -> dict[str, str]:
        """Tell one host of the others; with whom it has no connection after some seconds, and why."""
        router = self._plan.router(name)
        offers = tuple(offer for site, offer in self._offers.items() if site != name)
        preshared = {peer.name: key for peer in router.peers if (key := self._preshared_of(name, peer.name))}
        if name == SCHEDULER:
            await asyncio.to_thread(self._own.update, router, offers, preshared)
            return {} if wait is None else await asyncio.to_thread(self._own.missing, wait)
        joined = await self._sites[name].ask(
            lambda number: protocol.JoinMesh(
                number=number, router=router, offers=offers, preshared=preshared, wait=wait
            )
        )
        return dict(joined.missing)

    def _preshared_of(self, one: str, other: str) -> str | None:
        """Key that two sites share, if either wants one; made here, it travels to both through SSH."""
        if not (self._described[one].preshared_key or self._described[other].preshared_key):
            return None
        pair = frozenset((one, other))
        if pair not in self._preshared:
            self._preshared[pair] = base64.b64encode(secrets.token_bytes(32)).decode()
        return self._preshared[pair]

    def scheduler(self) -> dict[str, Any]:
        """Arguments for `distributed.Scheduler`: it listens inside the mesh only, where all is encrypted."""
        return {"host": f"[{self._plan.address(SCHEDULER)}]", "protocol": "tcp://"}

    @property
    def prefix(self) -> str:
        """Network of the cluster."""
        return str(self._plan.prefix)

    async def close(self) -> None:
        """Take down this machine's part."""
        for told in list(self._telling):
            told.cancel()
        await asyncio.to_thread(self._own.lower)


def _apart(site: Site, text: str) -> SiteError:
    return SiteError(site.host.host, "joining the mesh", text)
