"""Which addresses Dask may speak plainly on.

What Dask sends is neither encrypted nor signed on ``tcp://``, and its tasks are code: whoever reaches a
scheduler or a worker there can run what they like as its user. Off this machine it is therefore refused,
except inside a mesh, which encrypts everything.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from dask_pools.errors import UnsupportedSettingError

__all__ = ["check_scheduler", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether an address or name of a host stands for this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def check_scheduler(address: str, mesh: str | None = None) -> None:
    """Refuse a scheduler that speaks plainly where others can listen.

    Parameters
    ----------
    address : str
        Of the scheduler, as Dask writes it.
    mesh : str, optional
        Network of the mesh, as ``fd00:1:2::/48``.

    Raises
    ------
    UnsupportedSettingError
        If it does; the message says what to set.
    """
    url = urlsplit(address)
    if url.scheme == "tls":
        return
    host = url.hostname or ""
    if url.scheme == "tcp" and (is_loopback(host) or (mesh is not None and _within(host, mesh))):
        return
    raise UnsupportedSettingError(
        f"The scheduler at {address} would speak to other hosts without encryption, and whoever reaches it "
        "could run code there. Set `network: mesh` in the data-centres file, or `network: tls` where hosts "
        "reach each other directly."
    )


def _within(host: str, mesh: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]) in ipaddress.ip_network(mesh)
    except ValueError:
        return False
