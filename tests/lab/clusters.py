"""Clusters across sites of the lab, made by a hand or by `dask pools up`, and what they leave behind.

Knows the commands that a user types, and not what is done with a cluster.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import at_sites
from at_sites import DATA_CENTRES
from hand import Hand
from layout import observations, predictions
from network import Host, Network

from leftovers import eventually

POOLS = (sys.executable, "-m", "dask", "pools")
SITES = ("ecmwf", "eumetsat")

# The user's directory for records stays, when there are none.
STATE = ("-not", "(", "-path", "*/state*/dask-pools", "-empty", ")")


def lay_out(network: Network) -> None:
    """Give the sites the data of the README's calculation."""
    for name, file, data in (
        ("ecmwf", "predictions", predictions()),
        ("eumetsat", "observations", observations()),
    ):
        there = network[name].from_outside(f"/srv/data/{name}")
        there.mkdir(exist_ok=True)
        data.to_netcdf(there / f"{file}.nc")


@contextmanager
def hand_of(network: Network) -> Iterator[Hand]:
    """Python at the client's site; when it is over, nothing is left at the others."""
    hand = network["client"].hand()
    try:
        yield hand
    finally:
        with suppress(EOFError, BrokenPipeError, ValueError):  # killed by the test
            hand.call(at_sites.down)
        hand.close()
    check_gone(network, [host.name for host in network if host.name != "client"])


def check_gone(network: Network, names: Sequence[str], seconds: float = 110) -> None:
    for name in names:
        assert eventually(lambda name=name: not traces(network[name]), seconds), (name, traces(network[name]))


def processes(host: Host) -> list[str]:
    """Processes of clusters on a host."""
    known = ("pools site", "dask_worker", "worker_process", "multiprocessing", "wireguard-go", "pasta")
    return [
        one
        for one in host.run("ps", "axww", "-o", "args=").splitlines()
        if any(part in one for part in known)
    ]


def interfaces(host: Host) -> list[str]:
    """Interfaces of meshes on a host."""
    return [one for one in host.run("ip", "-o", "link").splitlines() if ": dp" in one]


def traces(host: Host) -> list[str]:
    """Processes, interfaces, routes, rules and files of clusters on a host."""
    found = processes(host) + interfaces(host)
    found += [one for one in host.run("ip", "-6", "route").splitlines() if one.startswith("unreachable fd")]
    found += [one for one in host.run("ip", "-6", "rule").splitlines() if one.startswith("2000")]
    return found + host.run("find", "/tmp", "/run", "-name", "dask-pools*", *STATE).splitlines()


def up(hand: Hand, lost_after: float = 60.0, text: str = DATA_CENTRES) -> dict:
    """Make the cluster that a text describes, in a hand."""
    return hand.call(at_sites.up, "/tmp", text, lost_after)


class UpCommand:
    """`dask pools up` at the client's site.

    Parameters
    ----------
    client : Host
    text : str
        The data-centres file.
    name : str
        Of the file.
    inside : bool
        Whether it is an ordinary user's, who has to begin with `dask pools inside`.
    """

    def __init__(
        self, client: Host, text: str, name: str = "data-centres.yaml", inside: bool = False
    ) -> None:
        client.from_outside(f"/tmp/{name}").write_text(text)
        self._client, self._command = client, f"pools up /tmp/{name}"
        self._process = subprocess.Popen(
            [
                *(client.inside_as_user if inside else client.inside),
                # Where the tests run in the background, Ctrl-C is ignored, and what they start inherits that.
                *("setsid", "env", "--default-signal=INT"),
                *(*POOLS, *(("inside", *POOLS) if inside else ()), "up", f"/tmp/{name}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.told: list[str] = []

    def is_up(self) -> list[str]:
        """Wait until it is; the lines that it has written."""
        assert self._says("Up after"), self.told
        return self.told

    def _says(self, beginning: str) -> bool:
        """Read on to a line that begins so; False if there is none to the end."""
        assert self._process.stdout is not None
        while not self.told or not self.told[-1].startswith(beginning):
            line = self._process.stdout.readline()
            if not line:
                return False
            self.told.append(line)
        return True

    @property
    def address(self) -> str:
        """Of the scheduler."""
        (line,) = (one for one in self.is_up() if one.startswith("Scheduler"))
        return line.split()[1]

    def group(self) -> int | None:
        """Its process group, as the client's site sees it; None before there is one, and after."""
        said = self._client.run("ps", "axww", "-o", "pgid=,args=").splitlines()
        found = [one.split(None, 1) for one in said]
        own = (
            int(group) for group, args in found if args.startswith(POOLS[0]) and args.endswith(self._command)
        )
        return next(own, None)

    def signal(self, name: str = "INT") -> None:
        """Press Ctrl-C, which goes to the command and what it has started in its session; or worse."""
        assert eventually(lambda: self.group() is not None, 30)
        self._client.run("kill", f"-{name}", "--", f"-{self.group()}")

    def signal_twice(self) -> None:
        """Press Ctrl-C, and again as soon as it says that it has noticed, if it comes to that."""
        self.signal()
        if self._says("Interrupted") and (group := self.group()) is not None:
            with suppress(subprocess.CalledProcessError):  # it was fast
                self._client.run("kill", "-INT", "--", f"-{group}")

    def ends(self, seconds: float = 150) -> tuple[int, str]:
        """Wait for its end; exit status, and all that it wrote."""
        said, _ = self._process.communicate(timeout=seconds)
        return self._process.returncode, "".join(self.told) + said

    def close(self) -> None:
        """End it, however far it is."""
        if self._process.poll() is None:
            with suppress(subprocess.CalledProcessError):
                self.signal("TERM")
            try:
                self._process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
