"""Clusters across sites over SSH and TLS: the main job, what may go wrong before it, and in between."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import at_sites
import numpy as np
import pytest
from at_sites import DATA_CENTRES
from clusters import hand_of, lay_out, traces, up
from hand import Hand
from layout import observations, predictions
from network import Network
from private_keys import key_forms, places_of

from intake_pools.shipped import shipped
from leftovers import eventually
from readme import lab_examples

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DASK = ("-m", "dask", "pools", "site")


@pytest.fixture(scope="module")
def direct(open_sites: Network) -> Network:
    """Three sites that reach each other directly."""
    lay_out(open_sites)
    return open_sites


@pytest.fixture
def hand(direct: Network) -> Iterator[Hand]:
    with hand_of(direct) as hand:
        yield hand


# The main job


def test_a_calculation_over_data_that_the_client_cannot_see(hand: Hand, direct: Network):
    made = up(hand, text=at_sites.WITH_HERE)
    assert made["failures"] == {}
    assert made["pools"] == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"], "here": ["here-0"]}
    assert hand.call(at_sites.one_in, "here", 60) == "client"
    assert all(one.startswith("tls://") for one in hand.call(at_sites.addresses).values())
    assert made["address"].startswith(f"tls://{direct['client'].at.host}:")
    assert hand.call(at_sites.compressions) == {"zstd"}
    data_centre, difference = hand.call(at_sites.calculate)
    assert data_centre == "ecmwf"
    check_difference(difference)
    check_secrets(direct)
    # Somebody at the host takes it down; it is wanted, so another agent is started. Twice does no harm.
    ecmwf, before = direct["ecmwf"], made["agents"]["ecmwf"]
    down = [sys.executable, *DASK, "down"]
    assert ecmwf.run(*down).endswith("is down\n")
    assert eventually(lambda: hand.call(at_sites.agents)["ecmwf"] != before, 120)
    assert hand.call(at_sites.one_in, "ecmwf", 120) == "ecmwf"
    hand.call(at_sites.down)
    assert ecmwf.run(*down) == ""
    hand.call(at_sites.down)


def test_jobs_of_a_batch_system_are_a_pool_beside_the_sites_with_tls(hand: Hand):
    hand.call(at_sites.start_batch)
    try:
        made = up(hand, text=at_sites.WITH_JOBS)
        assert made["failures"] == {}
        # The sites do not wait for the queue.
        pools = {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"], "queue": ["queue-0"]}
        assert eventually(lambda: hand.call(at_sites.pools) == pools, 120)
        assert len(hand.call(at_sites.jobs, "RUNNING")) == 1
        assert all(one.startswith("tls://") for one in hand.call(at_sites.addresses).values())
        # What a site has is read by a job, which is reached from the site and reaches it.
        hand.call(at_sites.begin, "ecmwf", 2, "queue")
        assert hand.call(at_sites.outcome, 60) == 1
        hand.call(at_sites.begin, "queue", 2, "eumetsat")
        assert hand.call(at_sites.outcome, 60) == 1
        hand.call(at_sites.down)
    finally:
        left = hand.call(at_sites.stop_batch)
    assert left == []


def test_the_same_by_one_command_through_a_mesh_of_sites_of_which_one_has_no_root(network: Network):
    lay_out(network)
    client = network["client"]
    for name in ("weather.yaml", "weather-data-centres.yaml"):
        client.from_outside(f"/srv/{name}").write_bytes(shipped(name).read_bytes())
    pools = (sys.executable, "-m", "dask", "pools")
    uplinks = {host.name: host.capture() for host in network}
    with (
        hand_of(network) as hand,
        subprocess.Popen(
            [*client.inside, *pools, "up", "weather-data-centres.yaml"],
            stdout=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        try:
            told: list[str] = []
            while not told or not told[-1].startswith("Up after"):
                line = running.stdout.readline()
                assert line, told
                told.append(line)
            assert told[0].startswith("Scheduler  tcp://[fd")
            assert told[1].startswith("Dashboard  http://127.0.0.1:")
            assert hand.call(at_sites.attach) == {"ecmwf": 1, "eumetsat": 1}
            processes = network["eumetsat"].run("ps", "axww", "-o", "uid=,args=").splitlines()
            assert any(one.split()[:2] == ["2000", "pasta"] for one in processes), processes
            data_centre, difference = hand.call(at_sites.calculate)
            assert data_centre == "ecmwf"
            check_difference(difference)
            for example in lab_examples():
                assert hand.call(at_sites.run_example, example.code) == example.output
            keys = check_secrets(network)
            assert client.run(*pools, "add", "ecmwf", "1") == "ecmwf: 2 workers wanted\n"
            assert eventually(lambda: hand.call(at_sites.attach)["ecmwf"] == 2, 120)
            status = client.run(*pools, "status")
            assert re.search(r"^ +ecmwf +2 +2 +0 +2 ", status, re.MULTILINE)
            assert "eumetsat: control host eumetsat is connected." in status
            assert client.run(*pools, "down") == ""
            assert running.wait(60) == 0
        finally:
            running.terminate()
        assert client.run(*pools, "down").startswith("No cluster is up here")
    assert eventually(lambda: not traces(client), 30), traces(client)
    for name, uplink in uplinks.items():
        packets = uplink.stop()
        assert {kind for packet in packets if (kind := carried(packet))} == {"ssh", "wireguard"}
        assert not any(key in packet for packet in packets for key in keys)
        if name != "eumetsat":  # the result comes to the client, from ecmwf or by way of it
            encrypted = [packet for packet in packets if carried(packet) == "wireguard"]
            assert sum(map(len, encrypted)) > difference.nbytes


def carried(packet: bytes) -> str | None:
    """What a packet on the internet is; None for what keeps the network itself going."""
    if packet[0] >> 4 != 4 or packet[9] == 1:  # IPv6 has no way out; ICMP
        return None
    header = 4 * (packet[0] & 15)
    ports = int.from_bytes(packet[header : header + 2]), int.from_bytes(packet[header + 2 : header + 4])
    if packet[9] == 6:
        return "ssh" if 22 in ports else f"tcp {ports}"
    # The first byte of a message of WireGuard is its type, of four; the next three are 0.
    message = packet[header + 8 : header + 12]
    good = packet[9] == 17 and message[0] in (1, 2, 3, 4) and message[1:] == bytes(3)
    return "wireguard" if good else f"{packet[9]} {ports}"


def check_difference(difference: np.ndarray) -> None:
    forecast, observed = (one.air_temperature.values.astype("f8") for one in (predictions(), observations()))
    np.testing.assert_allclose(difference, forecast.mean(0)[10] - observed, atol=1e-3)


def check_secrets(network: Network) -> list[bytes]:
    """Each host's private key is in a file of its own, which only its user can read, and nowhere else.

    Gives what was looked for.
    """
    looked_for = []
    for owner in network:
        named = ["-path", "*/dask-pools*", "(", "-name", "key", "-o", "-name", "key.pem", ")"]
        (key,) = owner.run("find", "/tmp", "/run", "-xdev", *named).split()
        assert owner.run("stat", "-c", "%a", key).strip() == "600"
        secrets = key_forms(owner.from_outside(key).read_text())
        for other in network:
            assert other.usual_hand.call(places_of, secrets) == ([key] if other is owner else [])
        looked_for += secrets
    return looked_for


# What goes wrong before


def test_a_site_that_fails_does_not_stop_the_others_of_an_asynchronous_cluster(hand: Hand):
    text = DATA_CENTRES.replace("host: eumetsat,", "host: nowhere.invalid,")
    pools, failures, ran = hand.call(at_sites.asynchronous, "/tmp", text)
    assert (pools, ran) == ({"ecmwf": ["ecmwf-0"], "eumetsat": []}, "ecmwf")
    assert "Control host nowhere.invalid, looking up its address" in failures["eumetsat"]


def test_what_is_wrong_with_a_control_host_is_said(hand: Hand, direct: Network):
    client, ecmwf = direct["client"], direct["ecmwf"]

    def says(**host: str | int) -> tuple[str, str]:
        return hand.call(at_sites.trouble, **{"host": "ecmwf", **host})

    kind, told = says(port=2222)
    assert (kind, "refuses connections to port 2222" in told) == ("SiteError", True)
    kind, told = says(user="nobody")
    assert (kind, "logging in as nobody" in told, "ssh nobody@ecmwf" in told) == ("SiteError", True, True)
    kind, told = says(dask="/no/such/dask")
    assert (kind, "pip install 'intake-pools[sites]" in told) == ("SiteError", True)
    assert "Command: /no/such/dask pools site attach" in told
    assert "/no/such/dask: No such file or directory" in told

    # A key that nobody has but ssh-agent.
    path = "/srv/home/root/.ssh/id_ed25519"
    with subprocess.Popen([*client.inside, "ssh-agent", "-D", "-a", "/run/ssh-agent"]) as agent:
        try:
            assert eventually(client.from_outside("/run/ssh-agent").exists)
            client.run("env", "SSH_AUTH_SOCK=/run/ssh-agent", "ssh-add", "-q", path)
            client.run("mv", path, f"{path}.away")
            assert "none of your keys is accepted there" in says()[1]
            hand.call(at_sites.set_variable, "SSH_AUTH_SOCK", "/run/ssh-agent")
            assert "/no/such/dask: No such file or directory" in says(dask="/no/such/dask")[1]
        finally:
            client.run("mv", f"{path}.away", path)
            agent.terminate()
            client.run("rm", "-f", "/run/ssh-agent")

    # An agent of another version, of the package and of the protocol.
    for greeting, said in (
        ({"protocol": 1, "version": "0.0.9"}, "0.0.9"),
        ({"protocol": 99, "version": "12.0"}, "12.0 (protocol 99)"),
    ):
        welcome = {
            "kind": "welcome",
            "host": "",
            "user": "",
            "pid": 1,
            "address": None,
            "log": "",
            "found": False,
        }
        fake = ecmwf.from_outside("/srv/data/fake")
        fake.write_text(f"#!/bin/sh\necho '{json.dumps({**welcome, **greeting})}'\ncat >/dev/null\n")
        fake.chmod(0o755)
        kind, told = says(dask="/srv/data/fake")
        assert (kind, f"control host ecmwf: {said}. On each of them: pip install" in told) == (
            "VersionMismatchError",
            True,
        )

    # A disk that is full.
    ecmwf.run(
        "sh", "-c", "mkdir -p /srv/full && mount -t tmpfs -o size=4k,nr_inodes=2,mode=777 full /srv/full"
    )
    try:
        ecmwf.run("sh", "-c", "head -c 4096 /dev/zero >/srv/full/file")
        kind, told = says(directory="/srv/full")
        assert (kind, "/srv/full/dask-pools-0 cannot be made: No space left on device" in told) == (
            "SiteError",
            True,
        )
    finally:
        ecmwf.run("umount", "/srv/full")

    # Host keys: not known, and another one than is known.
    known = client.from_outside("/srv/home/root/.ssh/known_hosts")
    before = known.read_text()
    fingerprint = ecmwf.run("ssh-keygen", "-lf", "/srv/ssh/host.pub").split()[1]
    try:
        known.write_text("".join(line for line in before.splitlines(True) if not line.startswith("ecmwf ")))
        kind, told = says()
        assert (kind, fingerprint in told) == ("HostKeyError", True)
        assert "which is not in your known_hosts" in told
        assert told.endswith("type: ssh ecmwf.") or "logging in once: ssh ecmwf" in told
        eumetsat_key = next(
            line.split(" ", 1)[1] for line in before.splitlines(True) if line.startswith("eumetsat ")
        )
        known.write_text(f"ecmwf {eumetsat_key}")
        kind, told = says()
        assert (kind, fingerprint in told) == ("HostKeyError", True)
        assert "your known_hosts has another for it" in told
        # Whoever configures ssh not to verify is not obeyed.
        config = client.from_outside("/srv/home/root/.ssh/config")
        config.write_text("Host *\nStrictHostKeyChecking no\nUserKnownHostsFile none\n")
        os.chmod(config, 0o600)
        assert says()[0] == "HostKeyError"
        # What else it says is honoured.
        known.write_text(before)
        config.write_text("Host shortcut\nHostname ecmwf\nUser nobody\n")
        assert "logging in as nobody" in says(host="shortcut")[1]
        config.unlink()
    finally:
        known.write_text(before)
