"""Sites on one machine with a network between them: links that are slow, gates that refuse, real sshd.

`start_network` makes what `topology` describes, below one process whose end, however it comes, is the end of
all of it. Each site has a control host, in which `Host.inside` runs commands and `Host.hand` Python
functions, and a gate, whose counters, firewall and link can be read and changed. Knows nothing of the mesh.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from hand import Hand
from network_inside import HOMES, USER
from topology import ETHERNET, MTU, Addresses, SiteLink, addresses

Made = TypeVar("Made")

HERE = Path(__file__).parent
NEEDED = ("ip", "tc", "nft", "nsenter", "unshare", "setpriv", "ssh-keygen", "sshd")
ENTER = ("--net", "--mount", "--uts", "--pid")


def missing() -> str | None:
    """Say why no network can be made here; None if it can."""
    if os.geteuid() != 0:
        return "a network of sites needs root: sudo make test-lab"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [
        name for name in NEEDED if not any(os.access(f"{place}/{name}", os.X_OK) for place in path.split(":"))
    ]
    if lacking:
        return (
            f"{', '.join(lacking)} not found: apt-get install --no-install-recommends "
            "iproute2 nftables openssh-server wireguard-go wireguard-tools passt"
        )
    return None


class Capture(threading.Thread):
    """Every packet that goes out of or comes into a gate by its link, from now on until `stop`."""

    def __init__(self, gate: int, device: str) -> None:
        super().__init__(daemon=True)
        self.packets: list[bytes] = []
        self._stopped = threading.Event()
        self._socket = _within_network(
            gate, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        )
        self._socket.bind((device, 0))
        self._socket.settimeout(0.2)
        self.start()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.packets.append(self._socket.recv(65535))
            except TimeoutError:
                continue

    def stop(self) -> list[bytes]:
        """End it; the packets, each from its IP header on."""
        self._stopped.set()
        self.join()
        self._socket.close()
        return self.packets


def _within_network(pid: int, make: Callable[[], Made]) -> Made:
    """Call a function in a thread that is in the network name space of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[Made] = []

    def there() -> None:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if libc.setns(fd, 0x40000000):
                raise OSError(ctypes.get_errno(), "setns")
            made.append(make())
        finally:
            os.close(fd)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    return made[0]


@dataclass
class Host:
    """A site: its control host, and the gate in front of it."""

    at: Addresses
    pid: int
    """Of the first process of the control host, as this process sees it."""
    gate: int
    """Likewise of the gate."""
    internet: int
    environment: dict[str, str]
    _hands: ExitStack = field(default_factory=ExitStack)
    _usual: list[Hand] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.at.link.name

    @property
    def inside(self) -> tuple[str, ...]:
        """Beginning of a command that runs the rest of it as root on the control host, in ``/srv``.

        What is run so is killed when the command is.
        """
        return (
            *self._on_its_core,
            *("nsenter", "--target", str(self.pid), *ENTER, "--wdns=/srv"),
            *("setpriv", "--pdeathsig", "KILL", "env", f"HOME={HOMES}/root", "TMPDIR=/tmp"),
        )

    @property
    def inside_as_user(self) -> tuple[str, ...]:
        """The same as an ordinary user, without any privilege."""
        return (
            *self._on_its_core,
            *("nsenter", "--target", str(self.pid), *ENTER, f"--wdns={HOMES}/{USER}"),
            *("setpriv", "--reuid", USER, "--regid", USER, "--init-groups", "--inh-caps=-all"),
            *("setpriv", "--pdeathsig", "KILL", "env", f"HOME={HOMES}/{USER}", f"USER={USER}", "TMPDIR=/tmp"),
        )

    @property
    def _on_its_core(self) -> tuple[str, ...]:
        core = self.at.link.core
        return () if core is None else ("taskset", "--cpu-list", str(core))

    def run(self, *command: str, user: bool = False, text: str | None = None) -> str:
        """Run a command to its end; what it says.

        Raises
        ------
        subprocess.CalledProcessError
            If it fails; its errors are shown.
        """
        prefix = self.inside_as_user if user else self.inside
        return _run([*prefix, *command], text, self.environment)

    def hand(self, *through: str, user: bool = False) -> Hand:
        """Start a Python process on the control host that calls functions; it ends with the network.

        Parameters
        ----------
        *through : str
            Beginning of a command that it is started with, such as ``("unshare", "--mount")``.
        user : bool
            Whether it is an ordinary user's.
        """
        prefix = self.inside_as_user if user else self.inside
        hand = Hand((*prefix, *through), self.environment)
        self._hands.callback(hand.close)
        return hand

    @property
    def usual_hand(self) -> Hand:
        """A hand that is there already, if some test had it; they take long to learn Dask."""
        if not (self._usual and self._usual[-1].lives):
            self._usual.append(self.hand())
        return self._usual[-1]

    def from_outside(self, path: str | Path) -> Path:
        """Where the test finds what the control host has at an absolute path."""
        return Path(f"/proc/{self.pid}/root{path}")

    # The gate

    def in_gate(self, *command: str, text: str | None = None) -> str:
        """Run a command at the gate."""
        return _run(["nsenter", "--target", str(self.gate), "--net", *command], text, self.environment)

    def sent(self) -> int:
        """Bytes that have left the site, from IP headers on."""
        return self._counter("tx_bytes")

    def received(self) -> int:
        """Bytes that have reached the site."""
        return self._counter("rx_bytes")

    def count_sent_to(self, other: Host) -> None:
        """Begin to count what leaves for another site (`sent_to`)."""
        chain = "type filter hook forward priority 100;"
        self.in_gate(
            *("nft", "-f", "-"),
            text=f"table inet lab {{ counter to_{other.name} {{ }}; chain counting {{ {chain} }}; }}\n"
            f"add rule inet lab counting ip daddr {other.at.range} counter name to_{other.name}\n",
        )

    def sent_to(self, other: Host) -> int:
        """Bytes that have left for another site since `count_sent_to`, from IP headers on."""
        said = json.loads(self.in_gate("nft", "-j", "list", "counter", "inet", "lab", f"to_{other.name}"))
        return sum(int(one["counter"]["bytes"]) for one in said["nftables"] if "counter" in one)

    def looped(self) -> int:
        """Bytes that the control host has sent to itself."""
        return _counted(self.run("ip", "-s", "-json", "link", "show", "dev", "lo"), "tx_bytes")

    def _counter(self, name: str) -> int:
        shown = self.in_gate("ip", "-s", "-json", "link", "show", "dev", "up")
        return _counted(shown, name) - ETHERNET * _counted(shown, f"{name[:2]}_packets")

    def capture(self) -> Capture:
        """Start to collect all that passes the link."""
        return Capture(self.gate, "up")

    def unplug(self) -> None:
        """Let nothing in or out any more, without telling anybody."""
        self.in_gate("nft", "add", "rule", "inet", "lab", "plug", "drop")

    def plug(self) -> None:
        """Undo `unplug` and `refuse`."""
        self.in_gate("nft", "flush", "chain", "inet", "lab", "plug")

    def refuse(self, *rule: str) -> None:
        """Lose what matches a rule of nftables, such as ``udp dport 51820``, on its way in or out."""
        self.in_gate("nft", "add", "rule", "inet", "lab", "plug", *rule, "drop")

    def forget_connections(self) -> None:
        """Have a NAT begin anew, as after a restart of the gate: connections of before get other ports."""
        # What is masqueraded through a device is forgotten when that goes down; so is its default route.
        self.in_gate(
            "ip", "-batch", "-", text="link set dev up down\nlink set dev up up\nroute add default dev up\n"
        )

    def narrow(self, mtu: int) -> None:
        """Let packets of up to `mtu` bytes into the site, and lose larger ones without telling anybody."""
        enter = ["nsenter", "--target", str(self.internet), "--net"]
        # Of the route: a device that takes no larger ones would not let them out of the site either.
        smaller = ["mtu", "lock", str(mtu)] if mtu < MTU else []
        route = ["ip", "route", "replace", self.at.range, "dev", f"to{self.at.number}", *smaller]
        _run([*enter, *route], None, self.environment)
        if smaller:
            rule = "add rule inet lab lost icmp type destination-unreachable drop"
        else:
            rule = "flush chain inet lab lost"
        _run([*enter, "nft", *rule.split()], None, self.environment)

    def close(self) -> None:
        """End the hands."""
        self._hands.close()


def _counted(shown: str, name: str) -> int:
    (link,) = json.loads(shown)
    return int(link["stats64"][name[:2]][name[3:]])


def _run(command: list[str], text: str | None, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, shlex.join(command), done.stdout, done.stderr)
        error.add_note(done.stderr)
        raise error
    return done.stdout


@dataclass(frozen=True)
class Network:
    """Sites, by name. The first has client and scheduler, and keys to all others."""

    hosts: dict[str, Host]

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())


THREE_SITES = (SiteLink("client", "nat"), SiteLink("ecmwf", "open"), SiteLink("eumetsat", "nat"))
"""Where nothing else is asked for: client and scheduler, and two sites, of which one is behind NAT."""


@contextmanager
def start_network(
    links: Sequence[SiteLink] = THREE_SITES, disk: str | os.PathLike[str] | None = None
) -> Iterator[Network]:
    """Make a network, and take it down.

    Parameters
    ----------
    links : sequence of SiteLink
        The first is the site of client and scheduler.
    disk : path, optional
        Directory of this machine in which each site gets one for its ``/srv``, where files in memory would
        take too much of that. What is in it stays.

    Raises
    ------
    RuntimeError
        If it cannot be made; why is on standard error.
    """
    environment = _environment()
    order = {
        "links": [vars(link) for link in links],
        "wanted": [str(HERE.parents[1]), sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)],
        "disk": os.fspath(disk) if disk is not None else None,
        "path": environment["PATH"],
    }
    with ExitStack() as stack:
        lab = stack.enter_context(
            subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"),
                    *("--propagation", "private", "--", sys.executable, str(HERE / "network_inside.py")),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                # Ctrl-C is for the test run, which ends it in order.
                start_new_session=True,
            )
        )
        stack.callback(_end, lab)
        assert lab.stdin is not None
        assert lab.stdout is not None
        lab.stdin.write(json.dumps(order) + "\n")
        lab.stdin.flush()
        if lab.stdout.readline() != "ready\n":
            raise RuntimeError("The network of the lab did not come up; what it said is above.")
        (internet,) = psutil.Process(lab.pid).children()
        pids = _keepers(lab.pid)
        hosts = {
            name: Host(at, pids[name], pids[f"gate-{name}"], internet.pid, environment)
            for name, at in addresses(list(links)).items()
        }
        for host in hosts.values():
            stack.callback(host.close)
        yield Network(hosts)


def _environment() -> dict[str, str]:
    """What processes of the lab find in their environment: nothing of this machine's but the path."""
    path = os.pathsep.join([f"{sys.prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
    return {
        "PATH": path,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_STATE_HOME": "/tmp/state",  # of the site, not of this machine
    }


def _end(lab: subprocess.Popen[str]) -> None:
    """End the first process, and with it the others."""
    assert lab.stdin is not None
    with suppress(BrokenPipeError):
        lab.stdin.close()
    try:
        lab.wait(10)
    except subprocess.TimeoutExpired:
        lab.kill()
        lab.wait()


def _keepers(lab: int) -> dict[str, int]:
    """Identifiers, in this name space, of the processes that keep the others."""
    found: dict[str, int] = {}
    for process in psutil.Process(lab).children(recursive=True):
        command = process.cmdline()
        if command[-2:-1] == [str(HERE / "keeper.py")] and "unshare" not in command[0]:
            found[command[-1]] = process.pid
    return found
