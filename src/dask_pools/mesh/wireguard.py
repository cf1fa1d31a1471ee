"""One WireGuard interface, by the commands `ip`, `wg` and, where the kernel has no WireGuard, `wireguard-go`.

Secrets go to these commands on standard input only, never as arguments or in the environment. This module
knows nothing of sites or plans.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Network
from pathlib import Path
from typing import IO, Literal

from dask_pools.errors import MeshError

__all__ = [
    "Interface",
    "Kind",
    "Tunnel",
    "check_tun",
    "free_port",
    "make_key",
    "public_key",
    "resolve",
    "room",
    "run",
    "valid_key",
]

Kind = Literal["kernel", "wireguard-go"]

TUN, TUNGETFEATURES = "/dev/net/tun", 0x800454CF
# Seconds for one command, and for wireguard-go to come up.
PATIENCE = 30
# Of wireguard-go, as of processes of the system that others wait for.
NICE = -10
PACKAGES = "wireguard-tools iproute2 and, where the kernel has no WireGuard, wireguard-go"

_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")


def valid_key(key: str) -> bool:
    """Whether this is the text of a key: 32 bytes in base 64."""
    return _KEY.fullmatch(key) is not None


def _environment() -> dict[str, str]:
    """Give commands what they need and no more; an ordinary user's path may lack /usr/sbin."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PATH")]), *_SYSTEM])
    # Nothing but errors: its log would have the addresses of peers.
    return {"PATH": path, "LANG": "C.UTF-8", "LOG_LEVEL": "error"}


def run(command: Sequence[str], text: str = "") -> str:
    """Run a command to its end; what it says.

    Raises
    ------
    MeshError
        If it is not installed, fails, or does not end. `text` is not in the message.
    """
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=PATIENCE,
            check=False,
        )
    except OSError:
        raise MeshError(
            f"`{command[0]}` is not installed on {socket.gethostname()}. The mesh needs {PACKAGES}: "
            "apt-get install --no-install-recommends wireguard-tools iproute2 wireguard-go"
        ) from None
    except subprocess.TimeoutExpired:
        raise MeshError(f"`{shlex.join(command)}` did not end within {PATIENCE} s.") from None
    if done.returncode:
        raise MeshError(
            f"`{shlex.join(command)}` failed on {socket.gethostname()}: "
            f"{done.stderr.strip() or f'status {done.returncode}'}"
        )
    return done.stdout


def make_key() -> str:
    """Make a private key."""
    return run(["wg", "genkey"]).strip()


def public_key(private: str) -> str:
    """Get the public key that goes with a private one."""
    return run(["wg", "pubkey"], private + "\n").strip()


def check_tun() -> None:
    """Make sure that a host whose kernel has no WireGuard can do without.

    Raises
    ------
    MeshError
        If it cannot.
    """
    try:
        tun = os.open(TUN, os.O_RDWR)
        try:
            fcntl.ioctl(tun, TUNGETFEATURES, bytes(4))
        finally:
            os.close(tun)
    except OSError as error:
        raise MeshError(
            f"{socket.gethostname()} can make no WireGuard interface: its kernel has none, and {TUN}, "
            f"without which wireguard-go makes none either, cannot be used ({error.strerror}). Load a module "
            "of the kernel (`modprobe wireguard`, or `modprobe tun`), or, for hosts that reach each other "
            "directly, write `network: tls` in the data-centres file."
        ) from None


def free_port(wanted: int | None, patience: float = 0) -> int:
    """Get a UDP port that nobody on this host has: the one that is wanted, or any.

    Parameters
    ----------
    wanted : int or None
    patience : float
        Seconds to wait for whoever has it to leave.

    Raises
    ------
    MeshError
        If somebody has it.
    """
    deadline = time.monotonic() + patience
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            while True:
                try:
                    one.bind(("", wanted or 0))
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(0.05)
        except OSError as error:
            raise MeshError(
                f"UDP port {wanted} of {socket.gethostname()} cannot be used: {error.strerror}. Is the mesh "
                "of another cluster up here? State another `udp_port`, which has to be let in as well."
            ) from None
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Tunnel:
    """What the interface has to know about a peer."""

    public_key: str
    allowed: tuple[IPv6Network, ...]
    endpoint: tuple[str, int] | None
    """A numeric address, and a UDP port; None until the peer calls."""
    keepalive: int
    preshared_key: str | None = None


class Interface:
    """A WireGuard interface of this host.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind: Kind = "kernel"
        self._process: subprocess.Popen[bytes] | None = None
        # What it was told, by public key; None if nothing.
        self._tunnels: dict[str, Tunnel] | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._reader: threading.Thread | None = None
        # wireguard-go is to end when this process does. The system watches the *thread* that starts it, so
        # that thread has to live as long as the interface.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"dask-pools-{name}")

    @property
    def exists(self) -> bool:
        """Whether it is there, and somebody serves it."""
        if self._process is not None and self._process.poll() is not None:
            return False
        try:
            socket.if_nametoindex(self.name)
        except OSError:
            return False
        return True

    def create(self) -> None:
        """Make it, in the kernel if that can, else with wireguard-go.

        Raises
        ------
        MeshError
            If neither can; the message says why, and what to do.
        """
        try:
            run(["ip", "link", "add", "dev", self.name, "type", "wireguard"])
        except MeshError:
            self._create_in_user_space()
        else:
            self.kind = "kernel"

    def _create_in_user_space(self) -> None:
        """Let wireguard-go make it."""
        hostname = socket.gethostname()
        check_tun()
        self.kind = "wireguard-go"
        socket_path = Path("/run/wireguard") / f"{self.name}.sock"
        self._process = self._starter.submit(self._start).result()
        deadline = time.monotonic() + PATIENCE
        while not (self.exists and socket_path.exists()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.delete()
                said = " ".join(line for line in self._said if line.isascii())  # not its frame of lines
                rights = (
                    " Not being root, start what needs the mesh with `dask pools inside`, as in: dask pools "
                    "inside python script.py"
                )
                raise MeshError(
                    f"wireguard-go made no interface on {hostname}: {said or 'it said nothing'}."
                    f"{rights * ('not permitted' in said)}"
                )
            time.sleep(0.01)

    def _start(self) -> subprocess.Popen[bytes]:
        self._said.clear()
        # Before what workers compute on the same host: its socket has room for a hundredth of a second at
        # 100 Mbit/s, and what comes while it waits for a processor is lost. Only root may do this.
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        command = ["setpriv", "--pdeathsig", "TERM", "wireguard-go", "--foreground", self.name]
        try:
            process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for whoever owns the mesh, who takes it down in order.
                start_new_session=True,
            )
        except OSError:
            raise MeshError(
                f"The kernel of {socket.gethostname()} has no WireGuard, and `setpriv` (util-linux), which "
                "wireguard-go is started with, is not installed."
            ) from None
        # It complains as long as there is no network; a pipe that nobody reads would stop it.
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._listen, args=[process.stdout], daemon=True)
        self._reader.start()
        return process

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._said.append(line.decode(errors="replace").strip())

    def configure(self, private_key: str, port: int, tunnels: Iterable[Tunnel]) -> None:
        """Set key, port and peers; peers that stay as they are notice nothing."""
        wanted = {tunnel.public_key: tunnel for tunnel in tunnels}
        if self._tunnels is None:
            self._write("setconf", [f"PrivateKey = {private_key}", f"ListenPort = {port}"], wanted.values())
        else:
            # Not the whole again: wireguard-go opens its socket anew when it is told the port, and for a
            # moment drops what comes from or goes to peers whose networks it is told.
            for key in self._tunnels.keys() - wanted.keys():
                run(["wg", "set", self.name, "peer", key, "remove"])
            changed = [one for key, one in wanted.items() if one != self._tunnels.get(key)]
            if changed:
                self._write("addconf", [], changed)
        self._tunnels = wanted

    def _write(self, how: str, own: Sequence[str], tunnels: Iterable[Tunnel]) -> None:
        lines = ["[Interface]", *own]
        for tunnel in tunnels:
            lines += ["[Peer]", f"PublicKey = {tunnel.public_key}"]
            lines += [f"AllowedIPs = {', '.join(map(str, tunnel.allowed))}"]
            lines += [f"PersistentKeepalive = {tunnel.keepalive}"]
            if tunnel.preshared_key:
                lines.append(f"PresharedKey = {tunnel.preshared_key}")
            if tunnel.endpoint:
                host, number = tunnel.endpoint
                lines.append(
                    f"Endpoint = [{host}]:{number}" if ":" in host else f"Endpoint = {host}:{number}"
                )
        run(["wg", how, self.name, "/dev/stdin"], "\n".join(lines) + "\n")

    def endpoints(self) -> dict[str, tuple[str, int]]:
        """Where each peer was heard from last, by public key."""
        found = {}
        for key, text in self._show("endpoints"):
            host, _, port = text.rpartition(":")
            if host:
                found[key] = (host.strip("[]"), int(port))
        return found

    def handshakes(self) -> dict[str, float]:
        """When each peer shook hands last, in seconds since 1970, by public key; 0 for never."""
        return {key: float(text) for key, text in self._show("latest-handshakes")}

    def transferred(self) -> dict[str, tuple[int, int]]:
        """Bytes that came from and went to each peer, by public key."""
        return {key: (int(received), int(sent)) for key, received, sent in self._show("transfer")}

    def _show(self, what: str) -> list[list[str]]:
        # Never `dump`: that would tell the private key.
        command = ["wg", "show", self.name, what]
        try:
            said = run(command)
        except MeshError:
            time.sleep(0.1)
            if not self.exists:  # it died just now
                return []
            said = run(command)
        return [line.split("\t") for line in said.splitlines()]

    def delete(self) -> None:
        """Take it away; nothing happens if it is not there."""
        self._tunnels = None
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            if self._reader is not None:
                self._reader.join(5)
            Path("/run/wireguard", f"{self.name}.sock").unlink(missing_ok=True)
        with suppress(MeshError, OSError):
            socket.if_nametoindex(self.name)
            run(["ip", "link", "delete", "dev", self.name])

    def close(self) -> None:
        """Take it away for good."""
        self.delete()
        self._starter.shutdown()


def room(endpoint: tuple[str, int]) -> int:
    """Get the largest packet for which the outer one is not cut up on this host, on its way to an endpoint.

    What the system knows of the way counts: the link, and what routers have said. Theirs may get lost.
    """
    # linux/in.h and linux/in6.h; the socket module does not have them.
    family, level, option, headers = (
        (socket.AF_INET6, socket.IPPROTO_IPV6, 24, 80)
        if ":" in endpoint[0]
        else (socket.AF_INET, socket.IPPROTO_IP, 14, 60)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.connect(endpoint)
        return one.getsockopt(level, option) - headers


def resolve(host: str, what: str) -> str:
    """Get the numeric address of a host.

    Raises
    ------
    MeshError
        If it has none; `what` says whose host it is.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        raise MeshError(
            f"{what}: its endpoint {host!r} has no address on {socket.gethostname()}: {error.strerror}. "
            "State `endpoint` in the data-centres file: a name or address that other sites know it by."
        ) from None
    return str(found[0][4][0])
