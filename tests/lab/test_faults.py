"""What goes wrong with a cluster on a mesh: it is said what, the others go on, and nothing is left behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator

import at_sites
import pytest
from at_sites import MESH
from clusters import POOLS, SITES, UpCommand, check_gone, hand_of, interfaces, processes, traces, up
from hand import Hand
from network import Host, Network
from network_inside import HOMES, USER

import dask_pools
from documented import DOCS
from leftovers import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture
def hand(network: Network) -> Iterator[Hand]:
    with hand_of(network) as hand:
        yield hand


def ended(network: Network, text: str) -> tuple[int, str]:
    """How `dask pools up` ends, and what it says, where it does not get far."""
    running = UpCommand(network["client"], text, "wrong.yaml")
    try:
        return running.ends()
    finally:
        running.close()


# Before it is up

SITE = "  {name}:\n    site: {{{site}}}\n    workers: {{launcher: host, minimum: 1}}\n"

FAILING = {
    # Site: on which host, what the file says besides, and what the user is told.
    "refused": ("ecmwf", "port: 2222", "refused, connecting by SSH: it refuses connections to port 2222"),
    "keyless": ("ecmwf", "user: nobody", "logging in as nobody: none of your keys is accepted there"),
    "caged": (
        "ecmwf",
        "user: scientist, directory: /srv/home/scientist, dask: /srv/data/caged",
        "Are user name spaces forbidden here",
    ),
    "tunless": (
        "ecmwf",
        "directory: /srv/data, dask: /srv/data/tunless",
        "ecmwf can make no WireGuard interface: its kernel has none, and /dev/net/tun, without which",
    ),
    "full": ("eumetsat", "directory: /srv/full", "cannot be made: No space left on device"),
    "shut": (
        "eumetsat",
        "reach: port, udp_port: 51900, endpoint: eumetsat",
        "no answer from 'shut' (eumetsat) at UDP port 51900",
    ),
}

COMMANDS = {
    "caged": "unshare --user --map-root-user sh -c "
    "'echo 0 >/proc/sys/user/max_user_namespaces && exec dask \"$@\"' sh",
    "tunless": "unshare --mount sh -c 'mount --bind /dev/null /dev/net/tun && exec dask \"$@\"' sh",
}

FULL = "mkdir -p /srv/full && mount -t tmpfs -o size=4k,nr_inodes=2,mode=777 full /srv/full"


@pytest.fixture
def names(network: Network) -> Iterator[None]:
    """Further names for hosts, by which the client reaches them."""
    client = network["client"]
    files = [client.from_outside(path) for path in ("/run/etc/hosts", "/srv/home/root/.ssh/known_hosts")]
    before = [file.read_text() for file in files]
    for name, (host, *_) in FAILING.items():
        key = network[host].from_outside("/srv/ssh/host.pub").read_text()
        for file, line in zip(files, (f"{network[host].at.reached} {name}\n", f"{name} {key}"), strict=True):
            with file.open("a") as opened:
                opened.write(line)
    yield
    for file, text in zip(files, before, strict=True):
        file.write_text(text)


@pytest.mark.usefixtures("names")
def test_each_site_that_fails_says_why_and_the_others_go_on(hand: Hand, network: Network):
    for name, command in COMMANDS.items():
        there = network["ecmwf"].from_outside(f"/srv/data/{name}")
        there.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        there.chmod(0o755)
    network["eumetsat"].run("sh", "-c", FULL)
    text = MESH.partition("  eumetsat:")[0]
    for name, (_, more, _) in {"unknown": ("", "host: nowhere.invalid", ""), **FAILING}.items():
        host = "" if name == "unknown" else f"host: {name}, "
        text += SITE.format(name=name, site=host + more)
    try:
        made = up(hand, text=text)
        assert made["pools"] == {"ecmwf": ["ecmwf-0"], "unknown": [], **{name: [] for name in FAILING}}
        assert "looking up its address: no host of this name" in made["failures"]["unknown"]
        for name, (_, _, told) in FAILING.items():
            assert told in made["failures"][name]
        assert hand.call(at_sites.one_in, "ecmwf", 60) == "ecmwf"
        with pytest.raises(dask_pools.PoolUnavailableError, match="it refuses connections to port 2222"):
            hand.call(at_sites.one_in, "refused", 90)
    finally:
        hand.call(at_sites.down)
        network["eumetsat"].run("umount", "/srv/full")


def test_names_and_hosts_that_clash_are_refused_before_anything_is_done(network: Network):
    status, said = ended(network, MESH + MESH.partition("data_centres:")[2])
    assert (status, "key 'data_centres.ecmwf' is there twice, first on line" in said) == (1, True), said
    status, said = ended(network, MESH.replace("eumetsat:", "scheduler:", 1))
    assert (status, "cannot be called 'scheduler'" in said) == (1, True), said
    status, said = ended(network, MESH.replace("host: eumetsat", "host: ecmwf"))
    assert (status, "'ecmwf' and 'eumetsat' have the same control host" in said) == (1, True), said


MOMENTS: dict[str, Callable[[Network, UpCommand], object]] = {
    "it has just begun": lambda network, running: running.group(),
    "an agent starts": lambda network, running: processes(network["ecmwf"]),
    "its interface is there": lambda network, running: interfaces(network["client"]),
    "a worker starts": lambda network, running: any(
        "worker_process" in one for one in processes(network["ecmwf"])
    ),
    "it is up": lambda network, running: running.is_up(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_and_once_more_leaves_nothing_behind_when(moment, network: Network):
    running = UpCommand(network["client"], MESH, "interrupted.yaml")
    try:
        assert eventually(lambda: bool(MOMENTS[moment](network, running)))
        # The second finds it being taken down, or about to be.
        running.signal_twice()
        _, said = running.ends(150)
    finally:
        running.close()
    check_gone(network, ["client", *SITES])
    if moment == "it is up":
        assert "It is being taken down, for at most two minutes" in said


# Several


def test_two_clusters_are_up_at_once_and_each_is_taken_down_by_its_address(hand: Hand, network: Network):
    client = network["client"]
    first, second = (UpCommand(client, MESH, f"{name}.yaml") for name in ("first", "second"))
    try:
        assert first.address != second.address
        for site in SITES:
            steps = [line.partition(": ")[2].strip() for line in first.told if line.startswith(f"{site}: ")]
            assert list(dict.fromkeys(steps)) == [
                *("connecting by SSH", "starting its agent", "bringing up the mesh", "joining the mesh"),
                *(f"starting worker {site}-0", f"worker {site}-0 has joined"),
            ]
        assert "Say which cluster is meant" in client.run("sh", "-c", '"$@" 2>&1; true', "sh", *POOLS, "down")
        client.run(*POOLS, "down", first.address)
        assert first.ends()[0] == 0
        assert hand.call(at_sites.attach) == {"ecmwf": 1, "eumetsat": 1}
        assert hand.call(at_sites.one_in, "eumetsat", 60) == "eumetsat"
        client.run(*POOLS, "down")
        assert second.ends()[0] == 0
        assert "No cluster is up here" in client.run(*POOLS, "down")
    finally:
        first.close()
        second.close()
    check_gone(network, ["client"])


# Without root

ONE_PORT = """
data_centres:
  ecmwf:
    site: {host: ecmwf, user: scientist, reach: port, udp_port: 51900}
    workers: {launcher: host, minimum: 1}
"""


@pytest.fixture
def scientist(walled: Network) -> None:
    """The ordinary user at the client's site may log in where root may."""
    walled["client"].run("cp", "-r", f"{HOMES}/root/.ssh", f"{HOMES}/{USER}/")
    walled["client"].run("chown", "-R", f"{USER}:{USER}", f"{HOMES}/{USER}/.ssh")


@pytest.mark.usefixtures("scientist")
def test_without_root_anywhere_one_udp_port_lets_in_one_cluster(walled: Network):
    client = walled["client"]
    running = UpCommand(client, ONE_PORT, "port.yaml", inside=True)
    try:
        assert any(line.split()[:3] == ["ecmwf", "ecmwf", "1"] for line in running.is_up()), running.told
        status, said = ended(walled, ONE_PORT)
        assert (status, "UDP port 51900 of ecmwf cannot be used" in said) == (1, True), said
        client.from_outside("/tmp/other.yaml").write_text(ONE_PORT.replace("51900", "51901"))
        with pytest.raises(subprocess.CalledProcessError, match="status 1") as failed:
            client.run(*POOLS, "up", "/tmp/other.yaml", user=True)
        assert "dask pools inside python script.py" in failed.value.stderr
        assert client.run(*POOLS, "add", "ecmwf", "1", user=True) == "ecmwf: 2 workers wanted\n"
        running.signal()
        running.ends()
    finally:
        running.close()
    check_gone(walled, ["client", "ecmwf"])


# In between

OPEN = MESH.replace("user: scientist", "user: scientist, reach: open, preshared_key: true")


def test_a_router_that_dies_and_a_site_that_is_cut_off_for_a_minute_cost_time_only(open_sites: Network):
    ecmwf, eumetsat = open_sites["ecmwf"], open_sites["eumetsat"]
    with hand_of(open_sites) as hand:
        assert up(hand, 150.0, OPEN)["failures"] == {}
        # eumetsat wants a key with each of the others, which both ends of its tunnels have.
        keys = ecmwf.run("wg", "show", "all", "preshared-keys").splitlines()
        assert sorted(line.endswith("(none)") for line in keys) == [False, True]
        before = hand.call(at_sites.states)
        hand.call(at_sites.begin, "eumetsat", 80)
        ecmwf.run("pkill", "-KILL", "wireguard-go")
        eumetsat.unplug()
        try:
            assert eventually(lambda: hand.call(at_sites.states)["eumetsat"] == "away", 60)
            assert not eventually(lambda: hand.call(at_sites.states)["eumetsat"] != "away", 55)
        finally:
            eumetsat.plug()
        assert hand.call(at_sites.outcome, 120) == sum(range(80))
        assert eventually(lambda: hand.call(at_sites.states) == before, 60)
        assert hand.call(at_sites.pools) == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"]}


SMALL = "mkdir -p /srv/small && mount -t tmpfs -o size=256m,mode=777 small /srv/small"
FILL = "head -c 1G /dev/zero >/srv/small/rest 2>/dev/null; true"


FIREWALL = """
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        tcp dport 22 accept
    }
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""

OPERATORS = (DOCS / "operators.md").read_text()


@pytest.fixture
def cramped(network: Network) -> Iterator[str]:
    """A data-centres file for a firewall on the host of ecmwf, and a small disk for the files of eumetsat."""
    ecmwf, eumetsat = network["ecmwf"], network["eumetsat"]
    eumetsat.run("sh", "-c", SMALL)
    ecmwf.run("nft", "-f", "-", text=FIREWALL)
    rules = re.findall(r"^    (nft add rule .*)$", OPERATORS, re.MULTILINE)
    ecmwf.run("sh", "-euc", "\n".join(rules))
    text = MESH.replace("reach: open", "reach: port, udp_port: 51820")
    yield text.replace("user: scientist", "user: scientist, directory: /srv/small")
    ecmwf.run("nft", "delete", "table", "inet", "filter")
    assert eumetsat.run("find", "/srv/small", "-type", "f") == ""
    eumetsat.run("umount", "/srv/small")


def left(host: Host) -> list[str]:
    """What the documentation says to look for, and how."""
    (look,) = re.findall(r"```sh\n(ps .*?)```", OPERATORS, re.DOTALL)
    found = host.run("sh", text=look).splitlines()
    # The user's directory for records stays, when there are none.
    return [one for one in found if not re.search(r"/state\d*/dask-pools$", one)]


def test_a_full_disk_a_killed_agent_a_site_unplugged_for_good_and_the_death_of_client_and_scheduler(
    network: Network, cramped: str
):
    client, ecmwf, eumetsat = network
    with hand_of(network) as hand:
        assert up(hand, 12.0, cramped)["failures"] == {}
        assert {bool(left(host)) for host in network} == {True}

        hand.call(at_sites.begin, "eumetsat", 10)
        eumetsat.run("sh", "-c", FILL)
        told = "The disk of eumetsat to which its workers spill has 0 B left (at /srv/small/dask-pools-2000/"
        assert eventually(lambda: told in hand.call(at_sites.problems).get("eumetsat", ""), 60)
        with pytest.raises(OSError, match="No space left on device"):
            hand.call(at_sites.write_in, "eumetsat", 1_000_000)
        assert hand.call(at_sites.outcome, 120) == sum(range(10))
        eumetsat.run("rm", "/srv/small/rest")
        assert eventually(lambda: hand.call(at_sites.problems) == {}, 60)

        # At the relay, whose rules nobody has taken away.
        before = hand.call(at_sites.agents)["ecmwf"]
        ecmwf.run("kill", "-9", str(before))
        assert eventually(lambda: hand.call(at_sites.agents)["ecmwf"] != before, 120)
        assert hand.call(at_sites.one_in, "ecmwf", 120) == "ecmwf"
        assert sum(one.startswith("2000") for one in traces(ecmwf)) == 2

        eumetsat.unplug()
        try:
            # It takes everything down by itself, and the cluster gives it up; neither can ask the other.
            assert eventually(lambda: not traces(eumetsat), 90), traces(eumetsat)
            assert eventually(lambda: hand.call(at_sites.pools)["eumetsat"] == [], 60)
            assert hand.call(at_sites.one_in, "ecmwf", 60) == "ecmwf"
            hand.call(at_sites.configure, {"pools.wait-for-workers": "10 s"})  # not a minute, as usual
            with pytest.raises(dask_pools.PoolUnavailableError, match="'eumetsat' has no workers"):
                hand.call(at_sites.one_in, "eumetsat", 90)
        finally:
            eumetsat.plug()
        # It is there again, and wanted.
        assert eventually(lambda: comes_back(hand), 120)

        agent = str(hand.call(at_sites.agents)["ecmwf"])
        hand.kill()
        ecmwf.run("kill", "-9", agent)
        assert sum(one.startswith("2000") for one in traces(ecmwf)) == 2
        assert ecmwf.run(*POOLS, "site", "down").endswith("is down\n")
        assert eventually(lambda: not traces(ecmwf), 30), traces(ecmwf)
    # The other has lost its cluster, and cleans up by itself.
    assert "unreachable" in " ".join(traces(client))
    said = client.run(*POOLS, "down", "--all")
    assert "has been removed\n" in said
    assert said.endswith("  nothing is left\n")
    assert not traces(client)
    assert [one for host in network for one in left(host)] == []


def comes_back(hand: Hand) -> bool:
    try:
        return hand.call(at_sites.one_in, "eumetsat", 60) == "eumetsat"
    except dask_pools.PoolUnavailableError:
        return False
