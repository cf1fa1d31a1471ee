"""One host's part of a mesh, made real: an interface, its key, routes, and somebody who looks after them.

It takes a `dask_pools.mesh.plan.Router` and what the other hosts offer, and asks nobody else. Its directory
on this host has the private key, which is made here and never leaves, and what a new process needs in order
to carry on after this one has ended. It knows nothing of SSH, of data centres or of workers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path

from pydantic import TypeAdapter

from dask_pools.errors import MeshError
from dask_pools.mesh.plan import Peer, Router
from dask_pools.mesh.probe import LARGEST, SIZES, SMALLEST, largest_packet
from dask_pools.mesh.wireguard import (
    Interface,
    Kind,
    Tunnel,
    free_port,
    make_key,
    public_key,
    resolve,
    room,
    run,
    valid_key,
)

__all__ = ["HostMesh", "Offer", "PeerStatus", "Status", "default_directory", "remove_leftovers"]

logger = logging.getLogger(__name__)

# Seconds between two looks at the interface, and after which the way to a peer is measured again.
LOOK, MEASURE_AGAIN = 1.0, 60.0
# Seconds that what a killed process had started may need to end.
CARRY_ON = 5.0
# A handshake that is older than this is not followed by any more: WireGuard drops the session.
SESSION = 180.0
# Of the rules that keep what others send each other inside the mesh.
RULE = 20_000

INSIDE, GATEWAY = "mesh", "fe80::1"
"""Interface by which a process with a network of its own is on the mesh, and the host's address there."""

# There, of its interface, its address, the cluster's prefix and the host. Docker switches IPv6 off.
_SETTLE = """
for one in lo "$1"; do echo 0 >"/proc/sys/net/ipv6/conf/$one/disable_ipv6"; done
ip -6 address add "$2/128" dev "$1" nodad
ip link set dev "$1" up
ip -6 route add "$3" via "$4" dev "$1" src "$2"
"""


@dataclass(frozen=True)
class Offer:
    """What other hosts have to know about one, besides the plan. Nothing in it is secret."""

    site: str
    public_key: str
    port: int
    """UDP port that it listens on."""

    def __post_init__(self) -> None:
        if not valid_key(self.public_key) or not 0 < self.port < 65536:
            raise ValueError(f"This is no offer of a host: {self!r}")


@dataclass(frozen=True)
class PeerStatus:
    """How things stand with a peer."""

    site: str
    endpoint: tuple[str, int] | None
    """Address and UDP port at which it was heard from last."""
    handshake: float | None
    """Seconds since it last shook hands; None if it never did."""
    received: int
    """Bytes, since the interface was made."""
    sent: int
    mtu: int | None
    """Largest packet that gets to it, in bytes; None while that is not known."""

    @property
    def connected(self) -> bool:
        """Whether it can be talked to, as far as is known."""
        return self.handshake is not None and self.handshake < SESSION


@dataclass(frozen=True)
class Status:
    """How things stand with a host's part of a mesh."""

    interface: str
    kind: Kind
    up: bool
    port: int
    restarts: int
    """How often the interface had to be made again."""
    peers: tuple[PeerStatus, ...]
    problem: str | None = None
    """Why it cannot be kept up; None if it can."""


@dataclass(frozen=True)
class _Saved:
    """What is kept for a process that carries on. No secrets."""

    router: Router
    port: int
    offers: tuple[Offer, ...] = ()
    endpoints: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By public key."""
    mtus: dict[str, int] = field(default_factory=dict)
    """By site."""
    forwarding_before: str | None = None
    """What the host's setting was, where it had to be changed."""


_SAVED = TypeAdapter(_Saved)
_SECRETS = TypeAdapter(dict[str, str])


def default_directory() -> Path:
    """Where hosts keep what belongs to their meshes: gone after a reboot, and nobody else's to read."""
    if os.geteuid() == 0:
        return Path("/run/dask-pools")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "dask-pools")
    return Path(tempfile.gettempdir(), f"dask-pools-{os.getuid()}")


class HostMesh:
    """One host's part of a mesh.

    `raise_` it, tell the others the `Offer` that this returns, `update` it with theirs, `wait`; `update` it
    again whenever sites join or leave; `lower` it in the end. A thread looks after it meanwhile: it makes the
    interface again should that be gone, remembers where peers were heard from, and measures how large packets
    may be. Should the process end, `resume` carries on where it was.

    Parameters
    ----------
    router : Router
        This host's part of the plan.
    directory : path, optional
        Where the host keeps what belongs to its meshes (a directory in it is made for this one); by default
        `default_directory()`.
    """

    def __init__(self, router: Router, directory: str | os.PathLike[str] | None = None) -> None:
        self._directory = Path(directory or default_directory()) / router.interface
        self._saved = _Saved(router, 0)
        self._preshared: dict[str, str] = {}
        self._unresolved: dict[str, str] = {}
        self._interface = Interface(router.interface)
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._watching: threading.Thread | None = None
        self._held: int | None = None
        self._restarts = 0
        self._problem: str | None = None
        # With the interface by which a process of its own network has it; None if this host has it.
        self._addresses: dict[IPv6Address, str | None] = {}
        self._measured: dict[str, float] = {}
        self._ruled = False

    @classmethod
    def resume(cls, interface: str, directory: str | os.PathLike[str] | None = None) -> HostMesh:
        """Carry on with what a process that has ended left behind: same key, same port, same peers.

        Raises
        ------
        MeshError
            If there is nothing, or the process still lives.
        """
        place = Path(directory or default_directory()) / interface
        try:
            saved = _SAVED.validate_json((place / "state.json").read_bytes())
        except (OSError, ValueError) as error:
            raise MeshError(f"There is no mesh to carry on with in {place}: {error}") from None
        mesh = cls(saved.router, place.parent)
        mesh._saved = saved
        with suppress(OSError, ValueError):
            mesh._preshared = _SECRETS.validate_json((place / "preshared.json").read_bytes())
        mesh.raise_()
        return mesh

    @property
    def router(self) -> Router:
        """Part of the plan that is this host's, as it is now."""
        return self._saved.router

    # What its owner does

    def raise_(self) -> Offer:
        """Make key and interface, and listen; nobody is let in yet.

        Returns
        -------
        Offer
            For the other hosts.

        Raises
        ------
        MeshError
            If this host cannot; the message says why. Nothing is left behind.
        """
        with self._lock:
            self._claim()
            carrying_on = bool(self._saved.port)
            try:
                key = self._key()
                # What a process that was killed has left, and its port with it.
                self._interface.delete()
                self._check_alone()
                patience = CARRY_ON if carrying_on else 0
                self._save(port=free_port(self._saved.port or self.router.port, patience))
                self._make()
                offer = Offer(self.router.site, public_key(key), self._saved.port)
            except BaseException:
                self._take_down(forget=not carrying_on)
                raise
            self._watching = threading.Thread(
                target=self._watch, name=f"dask-pools-watch-{self.router.interface}", daemon=True
            )
            self._watching.start()
            return offer

    def update(
        self, router: Router, offers: Iterable[Offer], preshared: Mapping[str, str] | None = None
    ) -> None:
        """Go over to another plan of the same cluster, or learn of more offers. What stays is not disturbed.

        Hosts that are called should be told first (`Plan.order`): a call that comes too early costs 5 s.

        Parameters
        ----------
        router : Router
            This host's part of the plan.
        offers : iterable of Offer
            Of the other hosts. A peer that is not among them is left out.
        preshared : mapping of str to str, optional
            For each peer that should have one, a key that only the two know (``wg genpsk``).

        Raises
        ------
        MeshError
            If a command fails. An endpoint without an address is told by `missing`.
        """
        with self._lock:
            if router.interface != self.router.interface:
                raise MeshError(f"{router.interface} is not {self.router.interface}: another cluster's plan.")
            for key in (preshared or {}).values():
                if not valid_key(key):
                    raise MeshError("A pre-shared key is no such key; `wg genpsk` makes one.")
            self._look()  # it may have died just now
            had = self._saved
            self._preshared = dict(preshared or {})
            self._write_secret("preshared.json", _SECRETS.dump_json(self._preshared).decode())
            offered = {offer.site: offer for offer in offers}
            known = tuple(offered[peer.name] for peer in router.peers if peer.name in offered)
            self._save(router=router, offers=known)
            self._configure(fresh=False)
            self._route(had)

    def wait(self, timeout: float) -> None:
        """Wait until every peer has shaken hands.

        Parameters
        ----------
        timeout : float
            Seconds.

        Raises
        ------
        MeshError
            If some have not by then; the message names them, the UDP port, and what to do.
        """
        if missing := self.missing(timeout):
            raise MeshError("\n".join(missing.values()))

    def missing(self, timeout: float) -> dict[str, str]:
        """Wait until every peer has shaken hands; of those that have not by then, what to do, by site.

        Parameters
        ----------
        timeout : float
            Seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            connected = self._connected()
            missing = [peer for peer in self.router.peers if peer.name not in connected]
            if not missing:
                self._look()  # and so remember where they are, from the first moment on
                return {}
            if time.monotonic() > deadline:
                return {peer.name: self._silent(peer, timeout) for peer in missing}
            if self._ending.wait(0.05):
                return {}  # it is over, and nobody is waited for any more

    def status(self) -> Status:
        """Tell how things stand."""
        with self._lock:
            interface, saved = self._interface, self._saved
            up = interface.exists
            endpoints = interface.endpoints() if up else {}
            transferred = interface.transferred() if up else {}
            since = self._since_handshakes()
            keys = {offer.site: offer.public_key for offer in saved.offers}
            peers = []
            for peer in saved.router.peers:
                key = keys.get(peer.name, "")
                received, sent = transferred.get(key, (0, 0))
                mtu = saved.mtus.get(peer.name)
                peers.append(
                    PeerStatus(peer.name, endpoints.get(key), since.get(peer.name), received, sent, mtu)
                )
            return Status(
                interface.name,
                interface.kind,
                up,
                saved.port,
                self._restarts,
                tuple(peers),
                self._problem,
            )

    def _since_handshakes(self) -> dict[str, float]:
        """Seconds since peers shook hands, of those that did."""
        with self._lock:
            if not self._interface.exists:
                return {}
            now, last = time.time(), self._interface.handshakes()
            return {
                offer.site: max(0.0, now - last[offer.public_key])
                for offer in self._saved.offers
                if last.get(offer.public_key)
            }

    def _connected(self) -> set[str]:
        return {site for site, since in self._since_handshakes().items() if since < SESSION}

    def add_address(self, address: IPv6Address) -> None:
        """Give this host one more address of its site: that of a worker which runs on it.

        Raises
        ------
        MeshError
            If it is not of this site.
        """
        with self._lock:
            if address not in self.router.network:
                raise MeshError(
                    f"{address} is no address of site {self.router.site!r}: {self.router.network}."
                )
            if address not in self._addresses:
                self._look()
                self._give(address)
                self._addresses[address] = None

    def hand_over(self, address: IPv6Address, process: int) -> None:
        """Let a process with a network of its own have such an address, instead of this host.

        It gets an interface (`INSIDE`) in the process's network name space, by which it reaches the mesh and
        nothing else. That goes with the name space, or by `remove_address`.

        Parameters
        ----------
        address : IPv6Address
            One that was added.
        process : int
            As this process sees it; such as the first of a container.

        Raises
        ------
        MeshError
            If this process may not do that, or the other is in this network itself, or has ended.
        """
        with self._lock:
            there = f"/proc/{process}/ns/net"
            try:
                own = os.path.samefile(there, "/proc/self/ns/net")
            except OSError as error:
                raise MeshError(f"Process {process} has no network to be used: {error.strerror}.") from None
            if own:
                raise MeshError(f"Process {process} is in the network of this host, and has none of its own.")
            number = int(address) - int(self.router.network.network_address)
            name = f"{self._outside_names}{number % 0x1000:03x}"
            mtu = ["mtu", str(LARGEST)]
            inside = ["peer", "name", INSIDE, *mtu, "netns", str(process)]
            run(["ip", "link", "add", "name", name, *mtu, "type", "veth", *inside])
            try:
                _write_system(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "0")
                run(["ip", "-6", "address", "add", f"{GATEWAY}/64", "dev", name, "nodad"])
                run(["ip", "link", "set", "dev", name, "up"])
                settle = ["sh", "-euc", _SETTLE, "sh", INSIDE, str(address), str(self.router.prefix), GATEWAY]
                run(["nsenter", f"--net={there}", *settle])
                run(["ip", "-6", "address", "delete", f"{address}/128", "dev", self.router.interface])
                self._addresses[address] = name
                run(["ip", "-6", "route", "replace", f"{address}/128", "dev", name])
                self._forward()
            except BaseException:
                with suppress(MeshError):
                    run(["ip", "link", "delete", "dev", name])
                raise

    def remove_address(self, address: IPv6Address) -> None:
        """Take such an address away again."""
        with self._lock:
            if address not in self._addresses:
                return
            outside = self._addresses.pop(address)
            if outside is None:
                run(["ip", "-6", "address", "delete", f"{address}/128", "dev", self.router.interface])
                return
            with suppress(MeshError):  # it went with the other's network
                run(["ip", "link", "delete", "dev", outside])
            self._route(None)

    @property
    def _outside_names(self) -> str:
        """What names begin with of interfaces that lead to processes with networks of their own."""
        # No other name of ours has a "g", which is no hexadecimal digit. Names have at most 15 characters.
        return f"{self.router.interface[:11]}g"

    def lower(self) -> None:
        """Take everything down and away: interface, routes, keys. Nothing happens a second time."""
        self._ending.set()
        if self._watching is not None:
            self._watching.join()
        with self._lock:
            self._take_down(forget=True)

    def _take_down(self, *, forget: bool) -> None:
        if self._held is None:
            return
        self._unforward()
        for _, name in socket.if_nameindex():
            if name.startswith(self._outside_names):  # also of a process that was killed
                with suppress(MeshError):
                    run(["ip", "link", "delete", "dev", name])
        with suppress(MeshError):
            run(["ip", "-6", "route", "delete", "unreachable", str(self.router.prefix)])
        self._interface.close()
        if forget:
            shutil.rmtree(self._directory, ignore_errors=True)
            with suppress(OSError):  # other clusters are here
                self._directory.parent.rmdir()
        os.close(self._held)
        self._held = None

    # Files

    def _claim(self) -> None:
        """Own the directory; the system disowns whoever ends."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise MeshError(f"{self._directory} cannot be used: {error.strerror}.") from None
        if os.fstat(held).st_uid != os.geteuid() or os.fstat(held).st_mode & 0o077:
            os.close(held)
            raise MeshError(f"{self._directory} is not this user's alone. Remove it, or state another place.")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            raise MeshError(
                f"Another process of {socket.gethostname()} has {self.router.interface} up."
            ) from None
        self._held = held

    def _check_alone(self) -> None:
        """Refuse a second site of the cluster on this host: routes would lead through either."""
        try:
            addresses = Path("/proc/net/if_inet6").read_text().splitlines()
        except OSError:
            raise MeshError(
                f"{socket.gethostname()} has no IPv6, which the mesh uses inside, whatever is used outside. "
                "`modprobe ipv6`, or start the kernel without ipv6.disable=1."
            ) from None
        for line in addresses:
            number, *_, interface = line.split()
            if IPv6Address(int(number, 16)) in self.router.prefix:
                raise MeshError(
                    f"{socket.gethostname()} is on this cluster's mesh already, by interface {interface}, so "
                    f"it cannot be the control host of {self.router.site!r} too. A host can be of one site."
                )

    def _key(self) -> str:
        """Get the private key; make it if there is none."""
        path = self._directory / "key"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            key = make_key()
            self._write_secret("key", key + "\n")
            return key

    def _write_secret(self, name: str, text: str) -> None:
        """Write a file that from its first byte on nobody else can read."""
        new = self._directory / f"{name}.new"
        try:
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
            new.replace(self._directory / name)
        except OSError as error:
            raise MeshError(
                f"{self._directory / name} on {socket.gethostname()} cannot be written: {error.strerror}."
            ) from None

    def _save(self, **changes: object) -> None:
        self._saved = replace(self._saved, **changes)  # type: ignore[arg-type]
        self._write_secret("state.json", _SAVED.dump_json(self._saved).decode())

    # The interface

    def _make(self) -> None:
        """Make the interface with all that is known."""
        self._interface.create()
        name = self.router.interface
        _write_system(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "0")
        self._configure(fresh=True)
        run(["ip", "link", "set", "dev", name, "mtu", str(LARGEST), "up"])
        own = (address for address, outside in self._addresses.items() if outside is None)
        for address in (self.router.address, *own):
            self._give(address)
        self._measured.clear()
        self._route(None)

    def _give(self, address: IPv6Address) -> None:
        # Nobody else can have it: there is nothing to wait for ("nodad").
        run(["ip", "-6", "address", "replace", f"{address}/128", "dev", self.router.interface, "nodad"])

    def _configure(self, *, fresh: bool) -> None:
        """Tell the interface its peers. One that is not fresh knows better where they are."""
        offers = {offer.site: offer for offer in self._saved.offers}
        tunnels = []
        self._unresolved.clear()
        for peer in self.router.peers:
            offer = offers.get(peer.name)
            if offer is None:
                continue
            # Where it was before this host or its interface went down: it is called there at once, instead
            # of the two waiting for it to notice.
            endpoint = self._saved.endpoints.get(offer.public_key) if fresh else None
            if peer.endpoint is not None:
                try:
                    host = resolve(peer.endpoint.host, f"Site {peer.name!r}")
                    endpoint = (host, peer.endpoint.port or offer.port)
                except MeshError as error:
                    self._unresolved[peer.name] = str(error)  # it may still call
            preshared = self._preshared.get(peer.name)
            tunnels.append(Tunnel(offer.public_key, peer.allowed, endpoint, peer.keepalive, preshared))
        self._interface.configure(self._key(), self._saved.port, tunnels)

    def _route(self, had: _Saved | None) -> None:
        """Send to peers what is theirs, in packets that get there."""
        name = self.router.interface
        wanted = {
            network: self._saved.mtus.get(peer.name, SMALLEST)
            for peer in self.router.peers
            for network in peer.allowed
        }
        for peer in had.router.peers if had else ():
            for network in peer.allowed:
                if network not in wanted:
                    with suppress(MeshError):
                        run(["ip", "-6", "route", "delete", str(network), "dev", name])
        for network, mtu in wanted.items():
            source = ["src", str(self.router.address), "mtu", str(mtu)]
            run(["ip", "-6", "route", "replace", str(network), "dev", name, *source])
        if self.router.prefix not in wanted:
            # What no site has goes nowhere, and not out by the default route.
            run(["ip", "-6", "route", "replace", "unreachable", str(self.router.prefix)])
        if self.router.forwards or any(self._addresses.values()):
            self._forward()
        elif self._ruled:
            self._unforward()

    def _forward(self) -> None:
        """Pass on what others send each other, and nothing that leaves the mesh."""
        if not self._ruled:
            self._unforward()  # those of a process that was killed
            for number, rule in enumerate(self._rules()):
                run(["ip", "-6", "rule", "add", "pref", str(RULE + number), *rule])
            self._ruled = True
        for name in (self.router.interface, *filter(None, self._addresses.values())):
            own = Path(f"/proc/sys/net/ipv6/conf/{name}/force_forwarding")
            if own.exists():  # from Linux 6.17 on
                _write_system(own, "1")
            elif Path(_FORWARDING).read_text().strip() != "1":
                self._save(forwarding_before="0")
                _write_system(_FORWARDING, "1")

    def _unforward(self) -> None:
        for number, rule in enumerate(self._rules()):
            with suppress(MeshError):
                run(["ip", "-6", "rule", "delete", "pref", str(RULE + number), *rule])
        self._ruled = False
        if self._saved.forwarding_before is not None:
            with suppress(MeshError):
                _write_system(_FORWARDING, self._saved.forwarding_before)
            self._saved = replace(self._saved, forwarding_before=None)

    def _rules(self) -> list[list[str]]:
        name = self.router.interface
        return [
            ["iif", name, "to", str(self.router.prefix), "lookup", "main"],
            ["iif", name, "unreachable"],
        ]

    # Looking after it

    def _watch(self) -> None:
        while not self._ending.wait(LOOK):
            try:
                self._look()
                self._measure()
                self._problem = None
            except (MeshError, OSError) as error:
                # The next look may find it mended, once there is room on a disk again, or memory.
                if str(error) != self._problem:
                    logger.warning("Mesh of site %s: %s", self.router.site, error)
                self._problem = str(error)

    def _look(self) -> None:
        """Make the interface again if it is gone; else remember where peers are."""
        with self._lock:
            if self._ending.is_set():
                return
            if not self._interface.exists:
                self._restarts += 1
                self._interface.delete()
                self._make()
                return
            if self._ruled:
                self._forward()  # another cluster that ends puts the host's setting back
            endpoints = {**self._saved.endpoints, **self._interface.endpoints()}
            if endpoints != self._saved.endpoints:
                self._save(endpoints=endpoints)

    def _measure(self) -> None:
        """Measure how large packets to peers may be: of those who shook hands, now and then again."""
        now = time.monotonic()
        due = [
            peer
            for peer in self.router.peers
            if peer.name not in self._measured or self._measured[peer.name] + MEASURE_AGAIN <= now
        ]
        if not due:
            return
        connected = self._connected()
        keys = {offer.site: offer.public_key for offer in self._saved.offers}
        for peer in due:
            endpoint = self._saved.endpoints.get(keys.get(peer.name, ""))
            if peer.name not in connected or endpoint is None or self._ending.is_set():
                continue
            try:
                most = max(room(endpoint), SMALLEST)
                sizes = [size for size in SIZES if size <= most]
                mtu = largest_packet(peer.address, self.router.address, sizes)
            except OSError:
                continue  # the interface went down
            if mtu is None:
                continue
            with self._lock:
                self._measured[peer.name] = time.monotonic()
                if mtu != self._saved.mtus.get(peer.name) and not self._ending.is_set():
                    self._save(mtus={**self._saved.mtus, peer.name: mtu})
                    self._route(None)

    def _silent(self, peer: Peer, timeout: float) -> str:
        """Say what to do about a peer that did not shake hands."""
        offers = {offer.site: offer for offer in self._saved.offers}
        site, start = self.router.site, f"Sites {self.router.site!r} and {peer.name!r} have no connection"
        if peer.name not in offers:
            return f"{start}: {peer.name!r} has made no offer yet."
        if peer.name in self._unresolved:
            return f"{start}. {self._unresolved[peer.name]}"
        if peer.endpoint is not None:
            port = peer.endpoint.port or offers[peer.name].port
            return (
                f"{start}: no answer from {peer.name!r} ({peer.endpoint.host}) at UDP port {port} within "
                f"{timeout:g} s. Does the firewall of {peer.name!r} let that port in (state it as "
                f"`udp_port`, with `reach: port`), and that of {site!r} let UDP out? If no port can be let "
                f"in at {peer.name!r}, write `reach: nat` there."
            )
        return (
            f"{start}: {peer.name!r}, which only goes out, has not called {site!r} at UDP port "
            f"{self._saved.port} within {timeout:g} s. Does the firewall of {peer.name!r} let UDP out, and "
            f"that of {site!r} let this port in (state it as `udp_port`, with `reach: port`)?"
        )


_FORWARDING = "/proc/sys/net/ipv6/conf/all/forwarding"


def _write_system(path: str | Path, value: str) -> None:
    """Set a value of the kernel's."""
    try:
        if Path(path).read_text().strip() != value:
            Path(path).write_text(value)
    except OSError as error:
        raise MeshError(
            f"{path} on {socket.gethostname()} cannot be set to {value}: {error.strerror}. The mesh needs "
            "IPv6 on its own interface; in a container, start that with "
            "--sysctl net.ipv6.conf.all.disable_ipv6=0."
        ) from None


def remove_leftovers(directory: str | os.PathLike[str] | None = None) -> list[str]:
    """Take down what processes that were killed have left of their meshes on this host.

    Parameters
    ----------
    directory : path, optional
        As in `HostMesh`.

    Returns
    -------
    list of str
        Names of the interfaces.
    """
    removed = []
    for state in sorted(Path(directory or default_directory()).glob("*/state.json")):
        with suppress(MeshError, OSError, ValueError):
            saved = _SAVED.validate_json(state.read_bytes())
            mesh = HostMesh(saved.router, state.parent.parent)
            mesh._saved = saved
            mesh._claim()
            mesh.lower()
            removed.append(mesh.router.interface)
    return removed
