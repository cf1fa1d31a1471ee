"""Reaching a control host over SSH, as the user's own `ssh` would.

``~/.ssh/config``, the user's keys and their agent are honoured. Host keys are verified, always: neither
``StrictHostKeyChecking no`` nor an empty ``UserKnownHostsFile`` switches that off, since what runs on a
control host runs in the user's name. Whatever fails becomes a `dask_pools.errors.SiteError` that names host
and step and says what to do. It knows nothing of what is said through the connection.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask_pools
from dask_pools.errors import HostKeyError, SiteError

try:
    import asyncssh
except ImportError as error:
    raise ImportError(
        "Control hosts are reached with asyncssh, which is not here: pip install 'intake-pools[sites]'"
    ) from error

__all__ = ["Command", "ControlHost", "connect", "run"]

# Seconds. A login over a slow link with a slow directory service takes some.
CONNECT_TIMEOUT = 30.0

GLOBAL_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")

# Lines of what a command wrote that are shown when it fails.
LAST_LINES = 10


@dataclass(frozen=True)
class ControlHost:
    """A control host, and how it is reached."""

    host: str
    """As `ssh` knows it: a name of ``~/.ssh/config``, a name in DNS, or an address."""

    user: str | None = None
    """Who logs in; None leaves it to the configuration."""

    port: int | None = None
    """None leaves it to the configuration."""

    dask: str = "dask"
    """Command that runs Dask there; its path, where that is not among those that SSH logins search."""

    directory: str | None = None
    """Where its agent keeps its files; None for the directory for temporary files."""

    config: str | None = None
    """Configuration of `ssh` to read in place of ``~/.ssh/config``."""

    @property
    def typed(self) -> str:
        """What to type to get there by `ssh`."""
        config = ["-F", self.config] if self.config else []
        port = ["-p", str(self.port)] if self.port else []
        return shlex.join(["ssh", *config, *port, f"{self.user}@{self.host}" if self.user else self.host])


class _Client(asyncssh.SSHClient):
    """Notes the key that a host shows, which asyncssh's own error does not tell."""

    def __init__(self, known: asyncssh.SSHKnownHosts) -> None:
        self._known = known
        self.shown: asyncssh.SSHKey | None = None
        self.another_is_known = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Trust no key that is not known."""
        self.shown = key
        self.another_is_known = bool(self._known.match(host, addr, port if port != 22 else None)[0])
        return False


@asynccontextmanager
async def connect(
    to: ControlHost, keepalive: float, timeout: float = CONNECT_TIMEOUT
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect with a control host, and disconnect at the end.

    Parameters
    ----------
    to : ControlHost
    keepalive : float
        Seconds between two signs of life that the server has to give; after three that do not come the
        connection is given up.
    timeout : float
        Seconds that connecting and logging in may take.

    Raises
    ------
    HostKeyError
        If the host shows a key that is not known to be its own.
    SiteError
        If it cannot be reached, or does not let this user in.
    """
    options = _options(to, keepalive, timeout)
    known = _known_hosts(options.known_hosts)
    clients: list[_Client] = []

    def client() -> _Client:
        clients.append(_Client(known))
        return clients[-1]

    step = "connecting by SSH"
    try:
        connection = await asyncssh.connect(
            to.host, options.port, config=None, options=options, client_factory=client, known_hosts=known
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _untrusted(to, clients[-1] if clients else None, str(error)) from None
    except socket.gaierror as error:
        raise SiteError(
            to.host,
            "looking up its address",
            f"no host of this name is known ({error.strerror}). Check `host:` of the site in the "
            f"data-centres file, and whether `{to.typed}` works",
        ) from None
    except ConnectionRefusedError:
        raise SiteError(
            to.host,
            step,
            f"it refuses connections to port {options.port}. Is sshd running there, on another port (`port:` "
            "of the site), or behind a firewall?",
        ) from None
    except asyncssh.PermissionDenied:
        raise SiteError(
            to.host,
            f"logging in as {options.username}",
            f"none of your keys is accepted there. `{to.typed}` should get in without a password: load the "
            "right key (ssh-add), name it in ~/.ssh/config, or state `user:` of the site",
        ) from None
    except TimeoutError:
        raise SiteError(to.host, step, f"no answer within {timeout:g} s") from None
    except (OSError, asyncssh.Error, ValueError) as error:
        raise SiteError(to.host, step, str(error) or type(error).__name__) from None
    try:
        yield connection
    finally:
        # Without a farewell, which a cut line would not deliver.
        connection.abort()
        with suppress(OSError, asyncssh.Error, TimeoutError):
            await asyncio.wait_for(connection.wait_closed(), 5)


def _options(to: ControlHost, keepalive: float, timeout: float) -> Any:
    # Without paths ~/.ssh/config is read; left out, none would be.
    given: dict[str, Any] = {"host": to.host, "config": ()}
    if to.user is not None:
        given["username"] = to.user
    if to.port is not None:
        given["port"] = to.port
    if to.config is not None:
        given["config"] = [to.config]
    try:
        return asyncssh.SSHClientConnectionOptions(
            **given,
            keepalive_interval=keepalive,
            keepalive_count_max=3,
            connect_timeout=timeout,
            login_timeout=timeout,
            client_version=f"intake-pools_{dask_pools.__version__}",
            # Nothing asks anybody anything: a cluster is made without somebody at the keyboard.
            password_auth=False,
            kbdint_auth=False,
        )
    except (OSError, ValueError, asyncssh.Error) as error:
        raise SiteError(
            to.host, "reading your configuration of ssh", f"{error}. Does `{to.typed}` work?"
        ) from None


def _known_hosts(configured: Any) -> asyncssh.SSHKnownHosts:
    """Read the keys of hosts that are known.

    asyncssh takes ``UserKnownHostsFile none`` for not wanting to know; here it means that none is known.
    """
    if configured is None:
        files: list[Path] = []
    else:
        files = [Path(file).expanduser() for file in configured]
        if not files:
            files = [Path("~/.ssh/known_hosts").expanduser(), GLOBAL_KNOWN_HOSTS]
    return asyncssh.read_known_hosts([str(file) for file in files if os.access(file, os.R_OK)])


def _untrusted(to: ControlHost, client: _Client | None, reason: str) -> SiteError:
    step = "verifying its host key"
    if client is None or client.shown is None:
        return SiteError(to.host, step, reason)
    fingerprint = client.shown.get_fingerprint()
    shown = f"it shows the key {fingerprint} ({client.shown.get_algorithm()})"
    if client.another_is_known:
        told = (
            f"{shown}, but your known_hosts has another for it. Either the host was set up anew, or somebody "
            "is between you and it. Ask whoever runs it for the fingerprint; only if it is the same, remove "
            f"the old key (ssh-keygen -R) and type: {to.typed}"
        )
    else:
        told = (
            f"{shown}, which is not in your known_hosts. Compare it with the fingerprint that whoever runs "
            f"the host gives, and if it is the same, make it known by logging in once: {to.typed}"
        )
    return HostKeyError(to.host, step, told, fingerprint)


class Command:
    """A command that runs on a control host, and its ends."""

    def __init__(self, host: str, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._host = host
        self._process = process
        self._said = b""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with suppress(OSError, asyncssh.Error):
            while piece := await self._process.stderr.read(2**14):
                self._said = (self._said + piece)[-20_000:]

    async def read(self) -> bytes:
        """Get some of what it writes to standard output; nothing when it has ended."""
        try:
            return await self._process.stdout.read(2**16)
        except (OSError, asyncssh.Error):
            return b""

    def write(self, data: bytes) -> None:
        """Write to its standard input.

        Raises
        ------
        OSError
            If the connection is gone.
        """
        self._process.stdin.write(data)

    async def ended(self) -> tuple[int | None, str]:
        """Wait for its end; its exit status (None if a signal or the connection ended it) and last lines."""
        with suppress(OSError, asyncssh.Error, TimeoutError):
            await asyncio.wait_for(self._process.wait_closed(), 5)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._listening), 1)
        lines = self._said.decode(errors="replace").strip().splitlines()
        return self._process.exit_status, "\n".join(lines[-LAST_LINES:])

    def close(self) -> None:
        """Let go of it."""
        self._listening.cancel()
        self._process.close()


@asynccontextmanager
async def run(
    connection: asyncssh.SSHClientConnection, to: ControlHost, command: str
) -> AsyncIterator[Command]:
    """Run a command on a control host, without a terminal.

    Raises
    ------
    SiteError
        If the host does not allow that.
    """
    try:
        process = await connection.create_process(command, encoding=None)
    except (OSError, asyncssh.Error) as error:
        raise SiteError(to.host, "running a command", str(error), command) from None
    running = Command(to.host, process)
    try:
        yield running
    finally:
        running.close()
