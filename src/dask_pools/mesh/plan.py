"""The mesh of one cluster as plain data: sites, addresses, peers, routes, relays.

A function of what is said about the sites and of a random seed. It knows no keys, no interfaces, no SSH, and
imports the standard library only; `dask_pools.mesh.host` makes one host's part of it real.

Every cluster has a random /48 of unique local addresses (RFC 4193), every site a /64 of it, numbered as it
joined; in a site, 1 is the router (at site 0 the scheduler), and workers count from 11. Of two sites at least
one of which can be reached, each is a peer of the other. Two that only go out talk through a *relay*: a site
that can be reached, to which both have a tunnel anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from typing import Literal

__all__ = [
    "KEEPALIVE",
    "Endpoint",
    "Peer",
    "Plan",
    "PlanError",
    "Reach",
    "Router",
    "Site",
    "make_plan",
    "to_blame",
]

Reach = Literal["open", "nat", "port"]

KEEPALIVE = 5, 6
"""Seconds between packets that keep a tunnel alive, both ways and everywhere: a NAT does not forget it, and
whoever was restarted, or has a new address, is known again after so long.

The two ends of a tunnel have different ones. WireGuard starts the interval anew whenever the other end's
first message of a handshake comes in, and begins a handshake itself when it is over, without any jitter: two
ends that have called each other at the same time, so that neither gets an answer, would do so again after
exactly the same time, for ever."""

ROUTER, WORKERS = 0x1, 0x11
MOST_SITES = 0x10000


class PlanError(ValueError):
    """Such sites cannot be joined; the message says which, and what to change."""


@dataclass(frozen=True)
class Site:
    """A site, as far as the network goes."""

    name: str

    reach: Reach = "nat"
    """``open``: datagrams get in; ``port``: only those to `port`; ``nat``: only answers."""

    endpoint: str | None = None
    """Host name or address at which others reach it, unless `reach` is ``nat``."""

    port: int | None = None
    """UDP port that its router listens on; None for any free one."""

    relay: str | None = None
    """Site through which it talks to others that go out only; None for one that is chosen."""

    relays: bool = True
    """Whether others may talk through it, if it can be reached."""

    preshared_key: bool = False
    """Whether each of its tunnels has, besides the keys of both ends, one that the two share."""

    @property
    def reachable(self) -> bool:
        """Whether others can begin to talk to it."""
        return self.reach != "nat"


@dataclass(frozen=True)
class Endpoint:
    """Where a peer is to be found outside the mesh."""

    host: str
    port: int | None
    """UDP; None where the peer's host chooses one and tells."""


@dataclass(frozen=True)
class Peer:
    """The other end of a tunnel, as a router sees it."""

    name: str
    """Of its site."""

    endpoint: Endpoint | None
    """None for one that has to begin."""

    address: IPv6Address
    """Of its router in the mesh."""

    allowed: tuple[IPv6Network, ...]
    """What is sent to it, and accepted from it: its own site first, then those that it relays."""

    keepalive: int = KEEPALIVE[0]
    """Seconds between packets that this end sends, if there is nothing else to send."""


@dataclass(frozen=True)
class Router:
    """One site's part of a plan: all that its host has to know, besides keys."""

    site: str
    interface: str
    prefix: IPv6Network
    """Of the cluster."""

    network: IPv6Network
    """Of the site."""

    address: IPv6Address
    port: int | None
    """UDP port to listen on; None for any free one."""

    forwards: bool
    """Whether it passes on what others send each other."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class _Member:
    site: Site
    number: int


@dataclass(frozen=True)
class Plan:
    """Sites joined to a mesh; see `make_plan`.

    Iterating over it gives the names of the sites, that of the scheduler first.
    """

    prefix: IPv6Network
    _members: tuple[_Member, ...]
    _next: int
    """Numbers are never given twice, so that an address means one site for as long as the cluster lives."""

    def __iter__(self) -> Iterator[str]:
        return (member.site.name for member in self._members)

    @property
    def cluster(self) -> str:
        """What tells this cluster from others on the same hosts: ten hexadecimal digits."""
        return f"{int(self.prefix.network_address) >> 80:012x}"[2:]

    @property
    def order(self) -> list[str]:
        """Sites in the order in which their hosts should learn of peers: who is called before who calls."""
        return sorted(self, key=lambda name: not self._member(name).site.reachable)

    def network(self, site: str) -> IPv6Network:
        """All addresses of a site."""
        return self._network(self._member(site))

    def address(self, site: str) -> IPv6Address:
        """Address of a site's router; at the first site, of the scheduler."""
        return self.network(site)[ROUTER]

    def worker(self, site: str, index: int) -> IPv6Address:
        """Address of a site's worker, counted from 0."""
        if index < 0:
            raise ValueError(f"Workers count from 0, not {index}.")
        return self.network(site)[WORKERS + index]

    def relay(self, one: str, other: str) -> str | None:
        """Site through which two others talk, or None if they need none."""
        return self._relay(self._member(one).site, self._member(other).site)

    def router(self, site: str) -> Router:
        """One site's part.

        Raises
        ------
        PlanError
            If there is no such site.
        """
        me = self._member(site)
        allowed: dict[str, list[IPv6Network]] = {}
        forwards = False
        for other in self._members:
            if other is me:
                continue
            through = self._relay(me.site, other.site)
            if through is None:
                allowed.setdefault(other.site.name, []).insert(0, self._network(other))
            else:
                allowed.setdefault(through, []).append(self._network(other))
        if me.site.reachable:
            forwards = any(
                self._relay(one.site, other.site) == site
                for number, one in enumerate(self._members)
                for other in self._members[:number]
            )
        peers = tuple(
            self._peer(me, self._member(name), tuple(networks)) for name, networks in allowed.items()
        )
        return Router(
            site=site,
            # At most 15 characters. Ten tell clusters apart, three more the sites that share a host.
            interface=f"dp{self.cluster}{me.number % 0x1000:03x}",
            prefix=self.prefix,
            network=self._network(me),
            address=self._network(me)[ROUTER],
            port=me.site.port,
            forwards=forwards,
            peers=peers,
        )

    def join(self, *sites: Site) -> Plan:
        """Plan for these sites as well. What concerns others only stays as it is.

        Raises
        ------
        PlanError
            If the sites cannot be joined.
        """
        members = [_Member(site, self._next + number) for number, site in enumerate(sites)]
        plan = replace(self, _members=(*self._members, *members), _next=self._next + len(members))
        _check(plan)
        return plan

    def leave(self, *names: str) -> Plan:
        """Plan without these sites.

        Raises
        ------
        PlanError
            If one is not there, is the scheduler's, or was the only relay of others.
        """
        leaving = [self._member(name) for name in names]
        if self._members[0] in leaving:
            raise PlanError(f"{self._members[0].site.name!r} has the scheduler and cannot leave.")
        plan = replace(self, _members=tuple(one for one in self._members if one not in leaving))
        _check(plan)
        return plan

    def _member(self, name: str) -> _Member:
        for member in self._members:
            if member.site.name == name:
                return member
        raise PlanError(f"There is no site {name!r} in this mesh. Sites: {', '.join(self)}.")

    def _network(self, member: _Member) -> IPv6Network:
        return IPv6Network((int(self.prefix.network_address) + (member.number << 64), 64))

    def _peer(self, me: _Member, member: _Member, allowed: tuple[IPv6Network, ...]) -> Peer:
        site = member.site
        endpoint = Endpoint(site.endpoint or site.name, site.port) if site.reachable else None
        keepalive = KEEPALIVE[member.number < me.number]
        return Peer(site.name, endpoint, self._network(member)[ROUTER], allowed, keepalive)

    def _relay(self, one: Site, other: Site) -> str | None:
        if one.reachable or other.reachable:
            return None
        stated = {site.relay for site in (one, other)} - {None}
        if len(stated) > 1:
            raise PlanError(
                f"{one.name!r} is to talk through {one.relay!r}, but {other.name!r} through {other.relay!r}, "
                "and neither can be reached directly. State the same `relay` for both, or for one only."
            )
        able = [member.site for member in self._members if member.site.reachable]
        if stated:
            (name,) = stated
            assert name is not None
            if name not in {site.name for site in able}:
                raise PlanError(
                    f"Site {name!r} is to be the relay of {one.name!r} or {other.name!r}, but is "
                    "no site of this mesh that can be reached. It needs `reach: open`, or `reach: port` "
                    "and a `udp_port`."
                )
            return name
        able = [site for site in able if site.relays]
        if not able:
            raise PlanError(
                f"Sites {one.name!r} and {other.name!r} only go out (`reach: nat`), so neither can call the "
                "other, and no third site can relay. Add a site with `reach: open`, or let one UDP port in "
                "at one of the two: `reach: port` and `udp_port: 51820`."
            )
        # The highest hash wins: every host finds the same without asking, pairs spread over the relays, and
        # when a relay joins or leaves, only pairs that win or lose it change.
        pair = "|".join(sorted((one.name, other.name)))
        return max(able, key=lambda site: (_digest(f"{self.prefix}|{pair}|{site.name}"), site.name)).name


def make_plan(sites: Iterable[Site], seed: int) -> Plan:
    """Plan the mesh of a new cluster.

    Parameters
    ----------
    sites : iterable of Site
        That of the scheduler first.
    seed : int
        Decides the cluster's addresses; a new one, such as ``secrets.randbits(64)``, for each cluster.

    Raises
    ------
    PlanError
        If these sites cannot be joined.

    Notes
    -----
    The 40 random bits of a /48 are taken from a hash, as RFC 4193, section 3.2.2, suggests; here of the seed.
    """
    random_bits = int.from_bytes(_digest(f"prefix|{seed}")[:5], "big")
    prefix = IPv6Network(((0xFD << 120) | (random_bits << 80), 48))
    plan = Plan(prefix, (), 0).join(*sites)
    if not plan._members:
        raise PlanError("A mesh needs at least one site: that of the scheduler.")
    return plan


def to_blame(missing: Mapping[tuple[str, str], str], scheduler: str, reachable: Set[str]) -> dict[str, str]:
    """Tell which sites have to be left out so that all others are connected with each other.

    A site behind a firewall that is shut is missed by all who call it, none of whom is to blame.

    Parameters
    ----------
    missing : mapping of (str, str) to str
        Of every site, with which others it has no connection, and what it says about that.
    scheduler : str
        The site without which none is of use.
    reachable : set of str
        Sites at which others should get in.

    Returns
    -------
    dict of str to str
        By site, what is said about one of its connections.
    """
    left, blamed = dict(missing), {}
    while left:
        lacks: dict[str, set[str]] = {name: set() for pair in left for name in pair if name != scheduler}
        for one, other in left:
            for name, lacking in ((one, other), (other, one)):
                if name != scheduler:
                    lacks[name].add(lacking)
        worst = max(lacks, key=lambda name: (scheduler in lacks[name], len(lacks[name]), name in reachable))
        # What others say, the scheduler before all, is more to the point than what it says itself.
        _, blamed[worst] = max(
            ((other == worst, one == scheduler), text)
            for (one, other), text in left.items()
            if worst in (one, other)
        )
        left = {pair: text for pair, text in left.items() if worst not in pair}
    return blamed


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _check(plan: Plan) -> None:
    """Find out now whether all can be joined."""
    names = list(plan)
    if plan._next > MOST_SITES:
        raise PlanError(f"A cluster has numbers for {MOST_SITES} sites, and these are used up.")
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f"Two sites are called {name!r}. Give each a name of its own.")
    for member in plan._members:
        site = member.site
        if site.reach == "port" and site.port is None:
            raise PlanError(f"Site {site.name!r} lets in one UDP port, but which is not said: `udp_port`.")
    sites = [member.site for member in plan._members]
    for number, one in enumerate(sites):
        for other in sites[:number]:
            plan._relay(one, other)
