"""How scheduler and workers of a cluster reach each other across sites, and why nobody else can listen.

One class a way, all with the same few methods, which a cluster calls as its sites come and go. They know the
sites, and nothing of Dask but what makes its connections safe.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any, Protocol

from distributed import Security

from dask_pools.sites import protocol
from dask_pools.sites.certificates import Authority, make_key
from dask_pools.sites.site import Site

__all__ = ["Network", "TlsNetwork"]


class Network(Protocol):
    """A way for scheduler and workers to reach each other."""

    security: Security | None
    """What Dask's connections need."""

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
