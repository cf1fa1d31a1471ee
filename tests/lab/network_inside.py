"""Makes a network of the lab; the first process in the lab's own name spaces, with which all of it ends.

It reads one line of JSON (see `main`), makes every host and link, says ``ready``, and then waits for its
standard input to close. The network name space that it finds itself in becomes the internet.

A host is a process (`keeper.py`) with network, mount, host-name and process name spaces of its own. A gate
has a network name space only. What a host must not share with others or leave on the machine is hidden from
it, and files in memory are put there instead; of what was hidden it gets back, for reading only, what it
needs to run this project.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from topology import DELAY, Addresses, SiteLink, addresses, firewall

HIDDEN = ("/run", "/tmp", "/var/tmp", "/srv", "/home", "/root", "/mnt", "/media")
"""Where hosts have files of their own. The first is needed for the others."""

HOMES = "/srv/home"
USER = "scientist"
USER_ID = 2000

HERE = Path(__file__).parent

WIRE, TO_WIRE = "wire", 100
"""The device by which sites reach each other, and the table of routes that leads into it."""

MAC = "02:00:00:00:00:01"


def run(command: list[str], text: str = "") -> str:
    """Run a command to its end.

    Raises
    ------
    SystemExit
        With what it said, if it failed.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed ({done.returncode}): {done.stderr}")
    return done.stdout


def keep(name: str, *spaces: str) -> int:
    """Start a host; the identifier of its process."""
    host = subprocess.Popen(
        [
            *("unshare", *spaces, "--propagation", "private", "--fork", "--kill-child", "--"),
            *(sys.executable, "-I", "-S", str(HERE / "keeper.py"), name),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    if host.stdout.readline() != "ready\n":
        raise SystemExit(f"Host {name} did not start.")
    # unshare stays, and the host is its child.
    return int(Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text())


def within(pid: int, script: str, *spaces: str) -> None:
    """Run a shell script in name spaces of a host."""
    run(["nsenter", "--target", str(pid), *spaces, "sh", "-eu"], script)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are not below another."""
    found: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths}):
        if path not in HIDDEN and not any(path == one or path.startswith(one + "/") for one in found):
            found.append(path)
    return found


def files(name: str, wanted: Iterable[str], disk: str | None) -> str:
    """Script that gives a host its files: its own, and of what was hidden what is wanted.

    With `disk`, a directory of the machine, ``/srv`` is a directory in that instead of files in memory.
    """
    lines = [f"hostname {shlex.quote(name)}", "mount -t tmpfs -o mode=755,size=64m lab-run /run"]
    lines.append("mkdir -p /run/sshd /run/wireguard /run/back /run/etc")
    back: list[tuple[str, str]] = []
    for number, path in enumerate(_outermost(wanted)):
        if any(path.startswith(hidden + "/") for hidden in HIDDEN if hidden != "/run"):
            lines += [f"mkdir /run/back/{number}", f"mount --bind {shlex.quote(path)} /run/back/{number}"]
            back.append((f"/run/back/{number}", shlex.quote(path)))
    own = shlex.quote(f"{disk}/{name}")
    if disk:
        lines += [f"mkdir -p {own} /run/back/srv", f"mount --bind {own} /run/back/srv"]
    for hidden in HIDDEN[1:]:
        if disk and hidden == "/srv":
            lines.append("mount --move /run/back/srv /srv")
            continue
        mode = "1777" if hidden.endswith("tmp") else "755"
        lines.append(f"[ ! -d {hidden} ] || mount -t tmpfs -o mode={mode},size=4g lab{hidden} {hidden}")
    for source, path in back:
        lines += [f"mkdir -p {path}", f"mount --move {source} {path}", f"mount -o remount,bind,ro {path}"]
    # A machine with udev lets everybody open it; what may be done with it, the kernel decides.
    lines += ["umask 0", "mknod /run/tun c 10 200", "umask 022", "mount --bind /run/tun /dev/net/tun"]
    for home, owner in (("root", "root"), (USER, USER_ID)):
        lines += [f"mkdir -p -m 700 {HOMES}/{home}/.ssh", f"chown -R {owner}:{owner} {HOMES}/{home}"]
    lines += ["mkdir -p /srv/ssh /srv/data"]
    return "\n".join(lines)


def accounts() -> dict[str, str]:
    """Content of the files that say who has an account, with an ordinary user more, and other homes."""

    def rest(path: str) -> list[str]:
        return [
            line
            for line in Path(path).read_text().splitlines()
            if line.split(":")[0] not in ("root", USER) and line
        ]

    def joined(lines: list[str]) -> str:
        return "\n".join(lines) + "\n"

    user = f"{USER}:x:{USER_ID}:{USER_ID}:A scientist:{HOMES}/{USER}:/bin/bash"
    return {
        "passwd": joined([f"root:x:0:0:root:{HOMES}/root:/bin/bash", user, *rest("/etc/passwd")]),
        "group": joined(["root:x:0:", f"{USER}:x:{USER_ID}:", *rest("/etc/group")]),
        # A star is no password, and unlike "!" does not lock the account for sshd.
        "shadow": joined([f"{one}:*:19000:0:99999:7:::" for one in ("root", USER)]),
        "resolv.conf": "# There is no name server here.\n",
    }


def etc(contents: dict[str, str]) -> str:
    """Script that puts files in the place of those of /etc."""
    lines = []
    for name, content in contents.items():
        mode = "600" if name == "shadow" else "644"
        lines += [f"cat >/run/etc/{name} <<'_END_'\n{content}_END_", f"chmod {mode} /run/etc/{name}"]
        lines.append(f"touch /etc/{name} && mount --bind /run/etc/{name} /etc/{name}")
    return "\n".join(lines)


def hosts(all_addresses: dict[str, Addresses], me: str) -> str:
    """Content of a host's /etc/hosts."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{at.host if name == me else at.reached} {name}" for name, at in all_addresses.items()]
    return "\n".join(lines) + "\n"


def limit(rate: float, device: str) -> str:
    """Command that limits what a device sends, to a rate in Mbit/s."""
    return f"tc qdisc add dev {device} root tbf rate {rate}mbit burst 32kb latency 50ms"


def start_internet() -> None:
    """Make the wire that all that one site sends another passes, once."""
    wire = subprocess.Popen(
        [sys.executable, "-I", str(HERE / "delay_relay.py"), WIRE, str(DELAY)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert wire.stdout is not None
    if wire.stdout.readline() != "ready\n":
        raise SystemExit("The wire of the internet did not come up.")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        # What comes out of the wire is from addresses that are elsewhere.
        Path(f"/proc/sys/net/ipv4/conf/{which}/rp_filter").write_text("0")
    Path(f"/proc/sys/net/ipv4/conf/{WIRE}/rp_filter").write_text("0")
    run(
        ["ip", "-batch", "-"],
        # Room for all that comes while the wire's process waits for a processor.
        f"link set lo up\nlink set dev {WIRE} txqueuelen 10000 up\n"
        f"route add default dev {WIRE} table {TO_WIRE}\n",
    )
    run(["nft", "-f", "-"], "table inet lab { chain lost { type filter hook output priority 0; }; }\n")


def join_internet(at: Addresses, gate: int, host: int) -> None:
    """Join a host to its gate, and the gate to the internet."""
    number, rate = at.number, at.link.rate
    down = f"to{number}"
    # Nobody asks for the other end's address: both have the same. Packets are cut before they are sent, so
    # that each has its headers where it is counted.
    run(
        ["ip", "-batch", "-"],
        f"link add {down} address {MAC} type veth peer name up address {MAC} netns {gate}\n"
        f"link set dev {down} arp off gso_max_segs 1 up\n"
        f"route add {at.range} dev {down}\n"
        f"rule add iif {down} lookup {TO_WIRE} pref {TO_WIRE}\n",
    )
    run(limit(rate, down).split())
    # No IPv6 outside: what comes along a link is what somebody sends.
    forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"
    within(
        gate,
        f"""
        {forward}
        ip -batch - <<'_END_'
        link set lo up
        addr add {at.gate}/32 dev up
        link set dev up arp off gso_max_segs 1 up
        route add default dev up
        link add lan type veth peer name eth0 netns {host}
        addr add {at.gate_inside}/{at.prefix} dev lan
        link set lan up
_END_
        {limit(rate, "up")}
        nft -f - <<'_END_'
{firewall(at)}
_END_
        """,
        "--net",
    )
    within(
        host,
        f"""
        ip -batch - <<'_END_'
        link set lo up
        addr add {at.host}/{at.prefix} dev eth0
        link set eth0 up
        route add default via {at.gate_inside}
_END_
        """,
        "--net",
    )


SSHD = """
Port 22
ListenAddress 0.0.0.0
HostKey /srv/ssh/host
PidFile none
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile /srv/ssh/%u
Subsystem sftp internal-sftp
PrintMotd no
MaxStartups 100
SetEnv PATH={path}
"""


def serve_ssh(links: list[SiteLink], hosts_of: dict[str, int], path: str) -> None:
    """Start sshd on every control host, and let root and the user of the first site log in at all of them."""
    client = links[0].name
    key = f"ssh-keygen -q -t ed25519 -N '' -C {USER}"
    inside = ("--mount", "--net", "--pid", "--uts")
    with ThreadPoolExecutor() as several:
        list(
            several.map(
                lambda pid: within(pid, "ssh-keygen -q -t ed25519 -N '' -C host -f /srv/ssh/host", *inside),
                hosts_of.values(),
            )
        )
    roots = {name: Path(f"/proc/{pid}/root") for name, pid in hosts_of.items()}
    within(hosts_of[client], f"{key} -f {HOMES}/root/.ssh/id_ed25519", *inside)
    public = (roots[client] / HOMES[1:] / "root/.ssh/id_ed25519.pub").read_text()
    known = "".join(f"{name} {(root / 'srv/ssh/host.pub').read_text()}" for name, root in roots.items())
    (roots[client] / HOMES[1:] / "root/.ssh/known_hosts").write_text(known)
    for link in links:
        name, pid = link.name, hosts_of[link.name]
        for user in ("root", USER):
            (roots[name] / "srv/ssh" / user).write_text(public)
        (roots[name] / "srv/ssh/sshd_config").write_text(SSHD.format(path=path))
        core = "" if link.core is None else f"taskset --cpu-list {link.core}"
        # It puts itself into the background, and waits for nobody.
        sshd = "/usr/sbin/sshd -f /srv/ssh/sshd_config -E /srv/ssh/log </dev/null"
        within(pid, f"exec {core} {sshd}", *inside)


def main() -> None:
    """Make what the order says: ``{"links": [...], "wanted": [paths], "disk": path, "path": "a:b"}``."""
    order = json.loads(sys.stdin.readline())
    links = [SiteLink(**one) for one in order["links"]]
    at = addresses(links)
    # The internet itself runs wherever the test does, but shares no file of /run, where sockets are.
    run(["mount", "-t", "tmpfs", "lab-run", "/run"])
    start_internet()
    pids: dict[str, int] = {}

    def make(link: SiteLink) -> None:
        gate = keep(f"gate-{link.name}", "--net")
        host = keep(link.name, "--net", "--mount", "--uts", "--pid", "--mount-proc")
        contents = {**accounts(), "hosts": hosts(at, link.name), "hostname": f"{link.name}\n"}
        own = files(link.name, order["wanted"], order["disk"])
        within(host, own + "\n" + etc(contents), "--mount", "--uts")
        join_internet(at[link.name], gate, host)
        pids[link.name] = host

    with ThreadPoolExecutor() as several:
        list(several.map(make, links))
    serve_ssh(links, pids, order["path"])
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
