"""A cluster across sites whose pools are started in different ways: by Docker at a control host, and here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_network
from urllib.parse import urlsplit

import at_sites
import pytest
from containers import Docker, start_docker
from layout import observations, predictions
from network import Network
from test_multi_site import check_difference, hand_of, up

from leftovers import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]  # the image may have to be made

DATA_CENTRES = """
network: mesh
data_centres:
  ecmwf:
    prefixes: [/srv/data/ecmwf/]
    site: {host: ecmwf, reach: open}
    workers:
      launcher: docker
      minimum: 1
      memory: 1 GiB
      docker: {image: intake-pools, data: [/srv/data/ecmwf], daemon: "$DAEMON"}
  eumetsat:
    prefixes: [/srv/data/eumetsat/]
    workers: {launcher: local, minimum: 1}
  dwd:
    site: {host: eumetsat}
    workers: {launcher: docker, minimum: 1, docker: {image: intake-pools, daemon: "unix:///run/no.sock"}}
"""
"""The pool of eumetsat is on the machine of the scheduler; the control host of dwd has no Docker."""


@pytest.fixture
def docker(network: Network) -> Iterator[Docker]:
    """Docker's daemon on the control host of ecmwf."""
    ecmwf = network["ecmwf"]
    with start_docker(ecmwf.inside, ecmwf.from_outside) as docker:
        yield docker


def address_of(url: str) -> IPv6Address:
    return IPv6Address(urlsplit(url).hostname or "")


def test_containers_at_a_site_and_processes_here_are_pools_of_one_mesh_and_missing_docker_is_told(
    network: Network, docker: Docker
) -> None:
    for host, name, file, data in (
        ("ecmwf", "ecmwf", "predictions", predictions()),
        ("client", "eumetsat", "observations", observations()),
    ):
        there = network[host].from_outside(f"/srv/data/{name}")
        there.mkdir(exist_ok=True)
        data.to_netcdf(there / f"{file}.nc")
    with hand_of(network) as hand:
        made = up(hand, text=DATA_CENTRES.replace("$DAEMON", docker.url))
        assert made["pools"] == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"], "dwd": []}
        assert made["failures"].keys() == {"dwd"}
        assert "Docker's daemon does not answer at unix:///run/no.sock" in made["failures"]["dwd"]
        data_centre, difference = hand.call(at_sites.calculate)
        assert data_centre == "ecmwf"
        check_difference(difference)
        [container] = docker.client.containers.list(filters={"label": "dask-pools.pool=ecmwf"})
        # Both listen inside the mesh only: one where the scheduler does, one at an address of its own.
        scheduler = address_of(made["address"])
        listening = {name: address_of(url) for name, url in hand.call(at_sites.addresses).items()}
        assert listening["eumetsat-0"] == scheduler
        own, ecmwf = listening["ecmwf-0"], network["ecmwf"]
        assert own in ip_network((scheduler, 48), strict=False)
        assert own != scheduler
        # The container has that address on the mesh, beside Docker's usual network; the host has not.
        assert hand.call(at_sites.interfaces_in, "ecmwf") == {"lo", "eth0", "mesh"}
        assert re.search(rf"^{own} dev dp", ecmwf.run("ip", "-6", "route"), re.MULTILINE)
        assert str(own) not in ecmwf.run("ip", "-6", "address")
        assert container.id.startswith(hand.call(at_sites.one_in, "ecmwf", 60))
        container.kill()
        assert eventually(lambda: hand.call(at_sites.pools)["ecmwf"] not in ([], ["ecmwf-0"]), 120)
        other = hand.call(at_sites.one_in, "ecmwf", 120)
        assert docker.client.containers.get(other).id != container.id
        # Nor does a container stay when its agent is killed outright.
        agent = hand.call(at_sites.agents)["ecmwf"]
        ecmwf.run("kill", "-9", str(agent))
        assert eventually(lambda: not any(other in one.id for one in docker.client.containers.list()), 60)
        assert eventually(lambda: hand.call(at_sites.agents)["ecmwf"] != agent, 120)
        assert docker.client.containers.get(hand.call(at_sites.one_in, "ecmwf", 120)).id != container.id
    assert eventually(lambda: docker.containers() == [], 60)
