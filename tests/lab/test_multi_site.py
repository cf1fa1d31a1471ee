"""Clusters across sites over SSH and TLS: the main job, what may go wrong before it, and in between."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress

import at_sites
import numpy as np
import pytest
from at_sites import DATA_CENTRES
from hand import Hand
from layout import observations, predictions
from network import Host, Network, SiteLink, missing, start_network

import dask_pools
from leftovers import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

DASK = ("-m", "dask", "pools", "site")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Three sites that reach each other directly."""
    if reason := missing():
        pytest.skip(reason)
    with start_network([SiteLink(name, "open") for name in ("client", "ecmwf", "eumetsat")]) as network:
        for name, data in (("ecmwf", predictions()), ("eumetsat", observations())):
            there = network[name].from_outside(f"/srv/data/{name}")
            there.mkdir()
            data.to_netcdf(there / f"{'predictions' if name == 'ecmwf' else 'observations'}.nc")
            there.chmod(0o755)
        yield network


@pytest.fixture
def hand(network: Network) -> Iterator[Hand]:
    """Python at the client's site; when a test is over, nothing is left at the others."""
    hand = network["client"].hand()
    yield hand
    with suppress(EOFError, BrokenPipeError):  # killed by the test
        hand.call(at_sites.down)
    hand.close()
    for name in ("ecmwf", "eumetsat"):
        assert eventually(lambda name=name: not traces(network[name]), 90), traces(network[name])


def traces(host: Host) -> list[str]:
    """Processes and files of clusters on a control host."""
    processes = host.run("ps", "axww", "-o", "args=").splitlines()
    found = [
        one for one in processes if "pools site" in one or "dask_worker" in one or "multiprocessing" in one
    ]
    return found + host.run("find", "/tmp", "-name", "dask-pools-*").splitlines()


def up(hand: Hand, lost_after: float = 60.0, text: str = DATA_CENTRES) -> dict:
    return hand.call(at_sites.up, "/tmp", text, lost_after)


# The main job


def test_a_calculation_over_data_that_the_client_cannot_see(hand: Hand, network: Network):
    made = up(hand)
    assert made["failures"] == {}
    assert made["pools"] == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"]}
    assert made["address"].startswith(f"tls://{network['client'].at.host}:")
    data_centre, difference = hand.call(at_sites.calculate, "/tmp")
    assert data_centre == "ecmwf"
    forecast, observed = (one.air_temperature.values.astype("f8") for one in (predictions(), observations()))
    np.testing.assert_allclose(difference, forecast.mean(0)[10] - observed, atol=1e-3)
    for name in ("ecmwf", "eumetsat"):
        check_secrets(network, name)
    # Again by hand of the operator: nothing is left, and doing it twice is no harm.
    down = shlex.join([sys.executable, *DASK, "down"])
    ecmwf = network["ecmwf"]
    assert ecmwf.run("sh", "-c", down).endswith("is down\n")
    assert ecmwf.run("sh", "-c", down) == ""
    assert traces(ecmwf) == []
    assert eventually(lambda: hand.call(at_sites.states)["ecmwf"] == "lost", 60)
    assert hand.call(at_sites.one_in, "eumetsat", 60) == "eumetsat"
    # Its pool is wanted: a new agent is started.
    assert hand.call(at_sites.one_in, "ecmwf", 120) == "ecmwf"


def check_secrets(network: Network, name: str) -> None:
    """The private key of a site is in its own file, which only its user can read, and nowhere else."""
    host = network[name]
    (key,) = host.run("find", "/tmp", "-name", "key.pem").split()
    assert host.run("stat", "-c", "%a", key).strip() == "600"
    secret = host.from_outside(key).read_text().splitlines()[1]
    for other in network:
        # What is looked for is not itself an argument of who looks.
        places = "/proc/[0-9]*/cmdline /proc/[0-9]*/environ /tmp /srv /run"
        found = other.run("sh", "-c", f"grep -rlaFf - {places} 2>/dev/null; true", text=secret)
        assert found.split() == ([key] if other is host else [])


# What goes wrong in between


def test_a_site_that_is_cut_off_for_a_while_costs_time_only(hand: Hand, network: Network):
    up(hand)
    hand.call(at_sites.begin, "eumetsat", 60)
    before = hand.call(at_sites.states)
    network["eumetsat"].unplug()
    try:
        assert eventually(lambda: hand.call(at_sites.states)["eumetsat"] == "away", 30)
        # Longer than Dask's own time-outs of half a minute.
        assert not eventually(lambda: hand.call(at_sites.states)["eumetsat"] != "away", 35)
    finally:
        network["eumetsat"].plug()
    assert hand.call(at_sites.outcome, 120) == sum(range(60))
    assert eventually(lambda: hand.call(at_sites.states) == before, 60)
    assert hand.call(at_sites.pools) == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"]}


def test_a_site_that_stays_away_is_lost_and_the_others_go_on(hand: Hand, network: Network):
    up(hand, lost_after=6.0)
    eumetsat = network["eumetsat"]
    eumetsat.unplug()
    try:
        # It takes everything down by itself, and the cluster gives it up; neither can ask the other.
        assert eventually(lambda: not traces(eumetsat), 90), traces(eumetsat)
        assert eventually(lambda: hand.call(at_sites.pools)["eumetsat"] == [], 60)
        assert hand.call(at_sites.one_in, "ecmwf", 60) == "ecmwf"
        with pytest.raises(dask_pools.PoolUnavailableError, match="'eumetsat' has no workers"):
            hand.call(at_sites.one_in, "eumetsat", 90)
    finally:
        eumetsat.plug()
    # It is there again, and wanted.
    assert eventually(lambda: comes_back(hand), 120)


def comes_back(hand: Hand) -> bool:
    try:
        return hand.call(at_sites.one_in, "eumetsat", 60) == "eumetsat"
    except dask_pools.PoolUnavailableError:
        return False


def test_when_client_and_scheduler_are_killed_the_sites_clean_up(hand: Hand, network: Network):
    up(hand, lost_after=5.0)
    assert all(traces(network[name]) for name in ("ecmwf", "eumetsat"))
    hand.kill()
    for name in ("ecmwf", "eumetsat"):
        assert eventually(lambda name=name: not traces(network[name]), 90), traces(network[name])


def test_an_agent_that_is_killed_takes_its_workers_along_and_another_takes_its_place(
    hand: Hand, network: Network
):
    made = up(hand, lost_after=60.0)
    network["ecmwf"].run("kill", "-9", str(made["agents"]["ecmwf"]))
    assert eventually(lambda: hand.call(at_sites.states)["ecmwf"] == "lost", 60)
    assert hand.call(at_sites.one_in, "ecmwf", 120) == "ecmwf"


# What goes wrong before


def test_a_site_that_fails_does_not_stop_the_others(hand: Hand):
    text = DATA_CENTRES.replace("host: eumetsat,", "host: nowhere.invalid,")
    made = up(hand, text=text)
    assert made["pools"] == {"ecmwf": ["ecmwf-0"], "eumetsat": []}
    assert "Control host nowhere.invalid, looking up its address" in made["failures"]["eumetsat"]
    assert hand.call(at_sites.one_in, "ecmwf", 60) == "ecmwf"
    with pytest.raises(dask_pools.PoolUnavailableError, match=r"nowhere\.invalid, looking up its address"):
        hand.call(at_sites.one_in, "eumetsat", 90)


def test_what_is_wrong_with_a_control_host_is_said(hand: Hand, network: Network):
    client, ecmwf = network["client"], network["ecmwf"]

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
        config.write_text("Host shortcut\nHostname ecmwf\nUser nobody\n")
        assert "logging in as nobody" in says(host="shortcut")[1]
        config.unlink()
    finally:
        known.write_text(before)


def test_plain_connections_are_refused_with_what_to_set(hand: Hand):
    with pytest.raises(dask_pools.UnsupportedSettingError, match="set `network: tls`"):
        up(hand, text=DATA_CENTRES.replace("network: tls\n", ""))
