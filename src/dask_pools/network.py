"""The sections of the data-centres file that tell how data centres are joined by a network.

They read::

    network: mesh
    scheduler: {reach: nat}
    data_centres:
      ecmwf:
        site: {host: login.ecmwf.int, reach: port, udp_port: 51820}

This module only says what they may hold. It knows neither the rest of the file, nor SSH, nor the mesh.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["SCHEDULER", "NetworkKind", "OnNetwork", "SchedulerSection", "SiteSection"]

SCHEDULER = "scheduler"
"""What the scheduler's own site is called, in messages and as `relay`."""

NetworkKind = Literal["mesh", "tls"]
"""``mesh``: a WireGuard network made for the cluster; ``tls``: hosts reach each other directly, and what Dask
sends is encrypted."""

Port = Annotated[int, Field(ge=1, le=65535)]

# A name or an IPv4 address; nothing that a command line or a configuration could misunderstand.
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")


def _host(value: str) -> str:
    try:
        IPv6Address(value)
    except ValueError:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is no host name or address; a port is stated by a key of its own"
            ) from None
    return value


class OnNetwork(BaseModel):
    """How others reach a site.

    Attributes
    ----------
    reach : {"nat", "open", "port"}
        ``nat``: it only goes out, the rule behind NAT and firewalls; ``port``: a firewall lets in one UDP
        port; ``open``: any gets in.
    endpoint : str or None
        Host name or address at which datagrams get in.
    udp_port : int or None
        The UDP port that is let in; None for any free one.
    relay : str or None
        Site through which it talks to others that only go out; None for one that is chosen.
    relays : bool
        Whether others that only go out may talk through it.
    preshared_key : bool
        Whether each of its tunnels has one more key, which the two ends share.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reach: Literal["open", "nat", "port"] = "nat"
    endpoint: str | None = None
    udp_port: Port | None = None
    relay: str | None = None
    relays: bool = True
    preshared_key: bool = False

    @field_validator("endpoint")
    @classmethod
    def _reached(cls, value: str | None) -> str | None:
        return None if value is None else _host(value)

    @model_validator(mode="after")
    def _consistent(self) -> OnNetwork:
        if self.reach == "port" and self.udp_port is None:
            raise ValueError("reach: port needs the number of the port that is let in, as udp_port: 51820")
        if self.reach == "nat" and self.endpoint is not None:
            raise ValueError(
                "endpoint is where datagrams get in, but with reach: nat none do; write reach: open, or "
                "reach: port and udp_port, or leave endpoint out"
            )
        if self.reach != "nat" and self.relay is not None:
            raise ValueError(
                f"relay is for sites that only go out, and with reach: {self.reach} this one can be reached; "
                "leave it out"
            )
        return self


class SiteSection(OnNetwork):
    """What a data-centres file says about the control host of a data centre.

    Attributes
    ----------
    host : str
        The control host, as `ssh` knows it; also the endpoint if none is stated.
    user : str or None
        Who logs in there; None leaves it to the configuration of `ssh`.
    port : int or None
        TCP port of SSH; None leaves it to the configuration of `ssh`.
    dask : str
        Command that runs Dask there; its path, where SSH logins do not find it.
    directory : str or None
        Where the agent of a cluster keeps its files there; None for the directory for temporary files.
    """

    host: str
    user: str | None = None
    port: Port | None = None
    dask: Annotated[str, Field(min_length=1)] = "dask"
    directory: Annotated[str, Field(pattern="^/")] | None = None

    @field_validator("host")
    @classmethod
    def _named(cls, value: str) -> str:
        return _host(value)


class SchedulerSection(OnNetwork):
    """What a data-centres file says about where the scheduler runs: the machine of the user."""

    @model_validator(mode="after")
    def _found(self) -> SchedulerSection:
        if self.reach != "nat" and self.endpoint is None:
            raise ValueError(
                f"with reach: {self.reach}, say where this machine is reached: endpoint: HOST-OR-ADDRESS"
            )
        return self
