"""What goes wrong with a cluster on a mesh: it is said what, the others go on, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import at_sites
import pytest
from at_sites import MESH
from clusters import UpCommand, hand_of, up
from hand import Hand
from network import Network

import dask_pools

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


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
