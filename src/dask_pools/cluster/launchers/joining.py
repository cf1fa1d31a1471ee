"""Waiting for a worker that was started to join its scheduler; and the command that workers are started by.

For launchers to use. It knows the scheduler's address and nothing of how the worker was started.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from distributed import Security
from distributed.core import rpc

from dask_pools.cluster.launchers import WorkerShape
from dask_pools.errors import UnsupportedSettingError
from dask_pools.sites.addresses import is_loopback

__all__ = ["check_private", "joined", "last_lines", "own_address", "tls_options", "worker_command"]

_UNIQUE_LOCAL = ipaddress.ip_network("fc00::/7")

# Seconds between two looks at who has joined: soon at first, and rarely for those that take long.
POLL, POLL_AT_MOST = 0.05, 2.0

# Lines of what was written that an error shows.
SHOWN = 5


def worker_command(
    scheduler: str,
    name: str,
    shape: WorkerShape,
    *,
    python: Sequence[str] = ("python",),
    module: str = "distributed.cli.dask_worker",
    options: Sequence[str] = (),
) -> list[str]:
    """Command that starts a worker under a nanny, word by word.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler.
    name : str
        What the worker is to call itself.
    shape : WorkerShape
        Its directory and environment are for whoever runs the command.
    python : sequence of str
        The interpreter where the worker runs, with options.
    module : str
        What is run there as ``dask worker``.
    options : sequence of str
        Further options of ``dask worker``.
    """
    resources = " ".join(f"{resource}={amount}" for resource, amount in shape.resources.items())
    return [
        *python,
        "-m",
        module,
        scheduler,
        *("--name", name),
        *("--nthreads", str(shape.threads)),
        *("--memory-limit", str(shape.memory_limit or 0)),
        *(("--resources", resources) if resources else ()),
        *options,
    ]


def check_private(scheduler: str) -> None:
    """Refuse a scheduler that workers would have to reach without encryption from other machines.

    Raises
    ------
    UnsupportedSettingError
        If its address is one of ``tcp://`` that is neither of this machine nor of a mesh.
    """
    if not _is_private(scheduler):
        raise UnsupportedSettingError(
            f"the scheduler at {scheduler} would speak to other machines without encryption, and whoever "
            "reaches it could run code there. Make it with protocol='tls' and security=Security(), after "
            "setting distributed.comm.tls in Dask's configuration"
        )


def _is_private(scheduler: str) -> bool:
    url = urlsplit(scheduler)
    host = url.hostname or ""
    with suppress(ValueError):
        # Unique local addresses: those of a mesh, which encrypts by itself.
        if ipaddress.ip_address(host) in _UNIQUE_LOCAL:
            return True
    return url.scheme != "tcp" or is_loopback(host)


def own_address(scheduler: str) -> str:
    """Address of this machine for workers to listen on, and on no other.

    It is the one that the scheduler is reached from: on a mesh, this machine's own there. Where that would
    let others listen in, it is that of the loopback interface.

    Raises
    ------
    OSError
        If the scheduler cannot be reached.
    """
    url = urlsplit(scheduler)
    if not _is_private(scheduler):
        return "127.0.0.1"
    [(family, *_, target), *_] = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_DGRAM)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # nothing is sent
        host = str(probe.getsockname()[0])
    return f"[{host}]" if ":" in host else host


def tls_options(scheduler: str) -> list[str]:
    """Options of ``dask worker`` for a scheduler with TLS: files, by Dask's settings here."""
    if not scheduler.startswith("tls://"):
        return []
    files = Security().get_tls_config_for_role("worker")
    return [
        word
        for key in ("ca_file", "cert", "key")
        if files.get(key)
        for word in (f"--tls-{key.replace('_', '-')}", files[key])
    ]


def last_lines(text: str) -> str:
    """Get the last lines of what something wrote, for an error that says so."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-SHOWN:]) or "nothing"


async def joined(scheduler: str, name: str, timeout: float, ended: Awaitable[str]) -> None:
    """Wait until a worker has joined the scheduler.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler.
    name : str
        Of the worker.
    timeout : float
        Seconds to wait at most.
    ended : awaitable of str
        Completes if the worker will not come, saying why; cancelled when it has come.

    Raises
    ------
    RuntimeError
        If it will not come.
    TimeoutError
        If it takes too long.
    """
    joining = asyncio.ensure_future(_joined(scheduler, name))
    ending = asyncio.ensure_future(ended)
    try:
        await asyncio.wait({joining, ending}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if joining.done():
            return joining.result()
        if ending.done():
            raise RuntimeError(ending.result())
        raise TimeoutError(f"it did not join the scheduler within {timeout:g} s")
    finally:
        for task in (joining, ending):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _joined(scheduler: str, name: str) -> None:
    start = time.monotonic()
    # With Dask's own settings of TLS, where there are some.
    async with rpc(scheduler, connection_args=Security().get_connection_args("worker")) as remote:
        while not any(
            worker["name"] == name for worker in (await remote.identity(n_workers=-1))["workers"].values()
        ):
            passed = time.monotonic() - start
            await asyncio.sleep(min(max(POLL, passed / 25), POLL_AT_MOST))
