"""The mesh joins sites over the lab's network, whatever is in between, and comes back by itself."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from meshes import (
    Mesh,
    described_host,
    raised,
    resumed,
    start_mesh,
)
from network import Network
from rates import rate

from dask_pools.errors import MeshError
from dask_pools.mesh.host import HostMesh, remove_leftovers
from dask_pools.mesh.plan import Site, make_plan
from leftovers import eventually

pytestmark = pytest.mark.lab

SITES = ["client", "ecmwf", "eumetsat"]


def pings(mesh: Mesh, source: str, target: str, *options: str) -> bool:
    """Whether one host hears another through the mesh."""
    try:
        return "0 received" not in mesh.ping(source, target, "-c1", "-W1", *options)
    except subprocess.CalledProcessError:
        return False


def all_hear_all(mesh: Mesh) -> bool:
    names = list(mesh.plan)
    return all(pings(mesh, one, other) for one in names for other in names if one != other)


def carry(mesh: Mesh, source: str, target: str, nbytes: int = 500_000) -> None:
    """Send something large through the mesh."""
    assert rate(mesh.hands[source], mesh.hands[target], str(mesh.address(target)), nbytes) > 0


@pytest.fixture(scope="module")
def mesh(network: Network) -> Iterator[Mesh]:
    """Client and eumetsat behind NAT, with the same private addresses; ecmwf relays. Keys for each pair."""
    with start_mesh(network) as mesh:
        keys = {
            frozenset(pair): network["client"].run("wg", "genpsk").strip()
            for pair in [("client", "ecmwf"), ("eumetsat", "ecmwf")]
        }
        mesh.tell(
            {
                one: {other: key for pair, key in keys.items() if one in pair for other in pair - {one}}
                for one in SITES
            }
        )
        yield mesh
    for host in network:
        assert host.run("ls", "/run") == network["client"].run("ls", "/run")
        assert "dask-pools" not in host.run("ls", "/run")
        assert "dp" not in host.run("ip", "-brief", "link")
        assert "20000" not in host.run("ip", "-6", "rule")
        assert "wireguard-go" not in host.run("ps", "ax")


@pytest.fixture
def meshed(mesh: Mesh) -> Mesh:
    """That mesh, when everybody hears everybody."""
    assert eventually(lambda: all_hear_all(mesh))
    return mesh


def test_two_sites_behind_nat_with_the_same_private_addresses_talk_through_a_relay(meshed):
    assert meshed.network["client"].at.host == meshed.network["eumetsat"].at.host
    assert meshed.plan.relay("client", "eumetsat") == "ecmwf"
    carry(meshed, "client", "eumetsat")
    carry(meshed, "eumetsat", "client")
    assert {peer.site for peer in meshed.status("ecmwf").peers} == {"client", "eumetsat"}
    assert all(peer.connected for name in SITES for peer in meshed.status(name).peers)


def test_what_passes_a_sites_link_is_wireguard_only(meshed):
    captures = [meshed.network[name].capture() for name in SITES]
    nbytes = 500_000
    carry(meshed, "client", "eumetsat", nbytes)
    ports = {meshed.status(name).port for name in SITES}
    for capture in captures:
        packets = capture.stop()
        assert sum(map(len, packets)) > nbytes
        for packet in packets:
            assert packet[9] == 17, "not UDP"
            header = 4 * (packet[0] & 15)
            ends = {int.from_bytes(packet[header + at : header + at + 2], "big") for at in (0, 2)}
            assert ends & ports
            # A handshake's two messages, a cookie, or data; three bytes of zero follow.
            assert 1 <= packet[header + 8] <= 4
            assert packet[header + 9 : header + 12] == bytes(3)


def test_routers_of_root_do_not_wait_for_what_is_computed_on_their_hosts(meshed):
    for name in SITES:
        shown = meshed.network[name].run("ps", "-L", "-C", "wireguard-go", "-o", "ni=").split()
        assert set(shown) == {"-10"}


def holds(path: Path, secret: bytes) -> bool:
    try:
        return secret in path.read_bytes()
    except OSError:
        return False


def test_a_private_key_is_found_in_one_file_of_its_own_host_that_nobody_else_can_read(meshed):
    for name in SITES:
        host, interface = meshed.network[name], meshed.interface(name)
        key = host.from_outside(f"/run/dask-pools/{interface}/key")
        secret = key.read_bytes().strip()
        assert len(secret) == 44
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.parent.stat().st_mode & 0o777 == 0o700
        for other in meshed.network:
            found = []
            for place in ("/run", "/srv", "/tmp", "/var/tmp", "/home", "/root"):
                for directory, below, files in os.walk(other.from_outside(place)):
                    # What the host has of this machine for reading is not of the lab.
                    device = os.stat(directory).st_dev
                    below[:] = [one for one in below if os.lstat(Path(directory, one)).st_dev == device]
                    found += [one for file in files if holds(one := Path(directory, file), secret)]
            assert found == [key] * (other is host)
        # Every process of this machine, those of the lab included.
        for process in Path("/proc").glob("[0-9]*"):
            assert not holds(process / "cmdline", secret)
            assert not holds(process / "environ", secret)


def test_a_relay_that_is_killed_and_started_again_is_back_within_ten_seconds(meshed):
    interface = meshed.interface("ecmwf")
    before = meshed.status("ecmwf")
    meshed.hands["ecmwf"].kill()
    meshed.hands["ecmwf"] = meshed.network["ecmwf"].usual_hand
    meshed.hands["ecmwf"].call(resumed, interface)
    assert eventually(lambda: pings(meshed, "client", "eumetsat"), 10)
    assert meshed.status("ecmwf").port == before.port


def test_a_router_that_dies_is_back_within_ten_seconds(meshed):
    host = meshed.network["eumetsat"]
    before = meshed.status("eumetsat").restarts
    host.run("pkill", "-KILL", "-f", f"wireguard-go --foreground {meshed.interface('eumetsat')}")
    assert eventually(lambda: meshed.status("eumetsat").restarts > before)
    assert eventually(lambda: pings(meshed, "client", "eumetsat"), 10)
    carry(meshed, "eumetsat", "ecmwf")


def test_a_nat_that_forgets_its_connections_is_passed_again(meshed):
    host = meshed.network["eumetsat"]
    (before,) = [peer.endpoint for peer in meshed.status("ecmwf").peers if peer.site == "eumetsat"]
    host.forget_connections()
    assert eventually(lambda: pings(meshed, "client", "eumetsat"), 60)
    (after,) = [peer.endpoint for peer in meshed.status("ecmwf").peers if peer.site == "eumetsat"]
    assert after != before


def test_a_host_is_of_one_site_only(meshed):
    plan = meshed.plan.join(Site("dwd"))
    with pytest.raises(
        MeshError, match=f"ecmwf is on .* interface {meshed.interface('ecmwf')}.*control host of 'dwd'"
    ):
        meshed.hands["ecmwf"].call(raised, plan.router("dwd"))


def test_two_clusters_on_the_same_hosts_do_not_know_each_other(meshed, network):
    with start_mesh(network, seed=2) as other:
        assert all_hear_all(other)
        assert {other.interface(name) for name in SITES}.isdisjoint(meshed.interface(name) for name in SITES)
        target = str(other.address("eumetsat"))
        with pytest.raises(subprocess.CalledProcessError):  # from an address of the one to the other
            network["client"].run("ping", "-6", "-c1", "-W1", "-I", str(meshed.address("client")), target)
    assert all_hear_all(meshed)
    assert all(meshed.status(name).up for name in SITES)


# Other networks


def test_open_sites_talk_directly_and_others_join_and_leave_meanwhile(open_sites):
    first = [described_host(open_sites[name]) for name in ("client", "ecmwf")]
    with start_mesh(open_sites, first) as mesh:
        assert all_hear_all(mesh)
        shaken = mesh.status("client").peers[0].handshake
        mesh.plan = mesh.plan.join(described_host(open_sites["eumetsat"]))
        mesh.raise_(["eumetsat"])
        mesh.tell()
        mesh.wait()
        assert all_hear_all(mesh)
        assert all(len(mesh.status(name).peers) == 2 for name in SITES)
        carry(mesh, "ecmwf", "eumetsat")
        gone = mesh.address("eumetsat")
        mesh.plan = mesh.plan.leave("eumetsat")
        mesh.tell()
        with pytest.raises(subprocess.CalledProcessError):
            open_sites["client"].run("ping", "-6", "-c1", "-W1", str(gone))
        # Who stayed was not disturbed: they have not even had to shake hands again.
        status = mesh.status("client")
        assert [peer.site for peer in status.peers] == ["ecmwf"]
        assert shaken is not None
        assert status.peers[0].handshake > shaken
        assert status.restarts == 0
        assert all_hear_all(mesh)


def test_one_udp_port_in_a_firewall_is_enough_and_is_named_when_it_is_shut(walled):
    port = walled["ecmwf"].at.link.port
    with start_mesh(walled) as mesh:
        assert all_hear_all(mesh)
        assert mesh.status("ecmwf").port == port
        with pytest.raises(MeshError, match=f"UDP port {port} of ecmwf cannot be used.*udp_port"):
            start_mesh(walled, seed=3).__enter__()
    walled["ecmwf"].refuse("udp", "dport", str(port))
    message = rf"no answer from 'ecmwf' \({walled['ecmwf'].at.reached}\) at UDP port {port}.*`reach: nat`"
    try:
        with pytest.raises(MeshError, match=message), start_mesh(walled, seed=4, patience=3):
            pass
    finally:
        walled["ecmwf"].plug()


def test_a_way_that_swallows_large_packets_is_found_in_each_direction(network):
    network["eumetsat"].narrow(1400)
    try:
        with start_mesh(network, seed=5) as mesh:
            carry(mesh, "ecmwf", "eumetsat")  # also before anybody has measured

            def mtu(source: str, target: str) -> int | None:
                return {peer.site: peer.mtu for peer in mesh.status(source).peers}[target]

            # 60 bytes of headers outside; WireGuard sends multiples of 16. The way out is wide.
            assert eventually(lambda: mtu("ecmwf", "eumetsat") == 1328)
            assert eventually(lambda: mtu("eumetsat", "ecmwf") == 1440)
            assert eventually(lambda: mtu("client", "ecmwf") == 1440)
            for source, target in [("client", "eumetsat"), ("eumetsat", "client"), ("ecmwf", "eumetsat")]:
                carry(mesh, source, target)
    finally:
        network["eumetsat"].narrow(1500)


# Hosts that cannot

ROUTER = make_plan([Site("client"), Site("ecmwf", "open", "ecmwf")], 6).router("ecmwf")


def tried() -> str:
    """Try to raise a mesh, in a hand; what is said."""
    try:
        HostMesh(ROUTER).raise_()
    except MeshError as error:
        return str(error)
    return "it worked"


def hidden(path: str) -> None:
    """Put something useless in the place of a file, for this hand only."""
    subprocess.run(["mount", "--bind", "/dev/null", path], check=True)


def full(directory: str) -> None:
    """Put a full disk in the place of a directory, for this hand only."""
    Path(directory).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "full", directory], check=True)
    Path(directory, "all").write_bytes(bytes(4096))


def test_a_host_without_what_it_needs_says_so_and_leaves_nothing(network):
    host = network["ecmwf"]
    hand = host.hand("unshare", "--mount")
    hand.call(full, "/run/dask-pools")
    assert re.search(r"/key on ecmwf cannot be written: No space left on device", hand.call(tried))
    hand.call(subprocess.check_call, ["umount", "/run/dask-pools"])
    hand.call(hidden, "/dev/net/tun")
    assert re.search("can make no WireGuard interface.*modprobe wireguard.*network: tls", hand.call(tried))
    hand.call(hidden, "/usr/bin/wg")
    assert re.search("`wg` is not installed on ecmwf.*apt-get install", hand.call(tried))
    hand.close()
    assert ROUTER.interface not in host.run("ip", "link") + host.run("find", "/run")


def test_what_a_killed_process_left_is_found_and_removed(network):
    host = network["ecmwf"]
    hand, other = host.hand(), host.hand()
    assert hand.call(tried) == "it worked"
    with pytest.raises(MeshError, match=f"Another process of ecmwf has {ROUTER.interface} up"):
        other.call(resumed, ROUTER.interface)
    assert other.call(remove_leftovers) == []
    hand.kill()
    assert eventually(lambda: other.call(remove_leftovers) == [ROUTER.interface])
    assert ROUTER.interface not in host.run("ip", "link") + host.run("find", "/run")
    other.close()
