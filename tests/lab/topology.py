"""What a network of the lab is like, as plain data: its sites, how each can be reached, their addresses.

Every site has a *control host* behind a *gate*. The gate has the site's only link to the internet: it passes
on what it must, translates addresses where the site has private ones, and refuses the rest. Knows neither
processes nor name spaces. The public addresses are those of RFC 5737, which nobody has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

CONTROL_PORT = 22

DELAY = 0.01
"""Seconds from any site to any other."""

MTU = 1500

ETHERNET = 14
"""Bytes of a packet on a link before its IP header."""

Reach = Literal["open", "nat", "port"]


@dataclass(frozen=True)
class SiteLink:
    """A site, as its provider sees it."""

    name: str

    reach: Reach = "open"
    """``open``: a public address and no firewall; ``nat``: a private one, connections go out only; ``port``:
    a public one, and a firewall that lets in one UDP port. SSH gets in everywhere."""

    port: int = 51820
    """The UDP port that gets in, if only one does."""

    rate: float = 100
    """Of the link to the internet, in Mbit/s, each way."""

    core: int | None = None
    """Core of this machine that whatever runs at the site has to do with; None for any."""

    network: str = "192.168.7"
    """First three numbers of the private addresses of a site behind NAT. Sites may well have the same."""


def one_core_each(links: Iterable[SiteLink], cores: Sequence[int]) -> list[SiteLink]:
    """Have each site make do with one core, so that none gets in the way of another.

    For measuring what a network can do. Threads of `wireguard-go` that wake each other on another core, of a
    virtual machine at that, take twice the time; and a site of its own would not share its cores with others.
    """
    return [replace(link, core=cores[number % len(cores)]) for number, link in enumerate(links)]


@dataclass(frozen=True)
class Addresses:
    """Where a site's gate and control host are found."""

    link: SiteLink
    number: int

    def _public(self, last: int) -> str:
        return f"203.0.113.{16 * self.number + last}"

    @property
    def range(self) -> str:
        """All public addresses of the site."""
        return f"{self._public(0)}/28"

    @property
    def gate(self) -> str:
        """The gate, on the internet."""
        return self._public(1)

    @property
    def gate_inside(self) -> str:
        """The gate, as the site's hosts see it."""
        return f"{self.link.network}.1" if self.link.reach == "nat" else self._public(9)

    @property
    def host(self) -> str:
        """The control host's own address."""
        return f"{self.link.network}.10" if self.link.reach == "nat" else self._public(10)

    @property
    def prefix(self) -> int:
        """Length of the prefix of the network between host and gate."""
        return 24 if self.link.reach == "nat" else 29

    @property
    def reached(self) -> str:
        """Where others reach the control host by SSH; behind NAT the gate hands that on."""
        return self.gate if self.link.reach == "nat" else self.host


def addresses(links: list[SiteLink]) -> dict[str, Addresses]:
    """Give each site its addresses."""
    if len(links) > 16 or len({link.name for link in links}) < len(links):
        raise ValueError("At most 16 sites, each with a name of its own.")
    return {link.name: Addresses(link, number) for number, link in enumerate(links)}


def firewall(at: Addresses) -> str:
    """Rules of nftables for the gate of a site."""
    reach = at.link.reach
    inward = {
        "open": "accept",
        "nat": "ct status dnat accept",
        "port": f"udp dport {at.link.port} accept\n    tcp dport {CONTROL_PORT} accept",
    }[reach]
    rules = f"""
table inet lab {{
  chain plug {{
    type filter hook forward priority -50; policy accept;
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan" accept
    {inward}
  }}
}}
"""
    if reach == "nat":
        # A new connection gets a port at random: nothing can be guessed about it from outside.
        rules += f"""
table ip translation {{
  chain outward {{
    type nat hook postrouting priority 100; policy accept;
    oifname "up" masquerade fully-random
  }}
  chain inward {{
    type nat hook prerouting priority -100; policy accept;
    iifname "up" tcp dport {CONTROL_PORT} dnat to {at.host}
  }}
}}
"""
    return rules
