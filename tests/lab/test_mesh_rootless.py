"""A whole site of an ordinary user: mesh and Dask worker in name spaces of that user, with no privilege."""

from __future__ import annotations

import os

import pytest
from dask_inside import start_scheduler, start_worker, stop, where
from meshes import start_mesh
from network import Host
from network_inside import USER_ID
from rates import rate

from dask_pools.errors import MeshError
from dask_pools.mesh.rootless import entry
from leftovers import eventually

pytestmark = pytest.mark.lab


def traces(host: Host) -> tuple[str, list[str]]:
    """What somebody could leave behind on a host, but for what Dask does wherever it runs."""
    files = host.run("ls", "-A", "/run", "/tmp").split()
    return host.run("ip", "-brief", "link"), [one for one in files if one != "dask-scratch-space"]


def test_root_needs_no_name_spaces(network):
    assert network["ecmwf"].usual_hand.call(entry) == ()


@pytest.mark.parametrize("reach", ["nat", "port"])
def test_a_whole_site_runs_as_an_ordinary_user(reach, network, walled):
    lab, name = (network, "eumetsat") if reach == "nat" else (walled, "ecmwf")
    host, link = lab[name], lab[name].at.link
    outside = host.hand(user=True)
    before = traces(host)
    begin = outside.call(entry, link.port if reach == "port" else None)
    assert begin[0] == "pasta"
    inside = host.hand(*begin, user=True)
    with start_mesh(lab, hands={name: inside}) as mesh:
        try:
            # What runs at the site runs as that user, seen from outside.
            uids = set(host.run("ps", "-o", "uid=", "-C", "wireguard-go").split())
            assert uids == {str(USER_ID)}
            assert traces(host) == before
            client = mesh.hands["client"]
            assert rate(inside, client, str(mesh.address("client")), 300_000) > 0
            scheduler = client.call(start_scheduler, str(mesh.address("client")))
            inside.call(start_worker, scheduler, str(mesh.address(name)), name)
            assert client.call(where, scheduler, 1) == {name: 0}  # inside, the user is called root
        finally:
            for hand in (inside, mesh.hands["client"]):
                hand.call(stop)
    inside.close()
    outside.close()
    assert eventually(lambda: f" {USER_ID} " not in host.run("ps", "-eo", "pid,uid,args"))
    assert traces(host) == before


def lose_path() -> None:
    os.environ["PATH"] = "/nowhere"


def test_where_user_name_spaces_are_forbidden_it_says_so(network):
    host = network["ecmwf"]
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    hand = host.hand("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", user=True)
    with pytest.raises(MeshError, match=r"pasta.*failed.*user name spaces forbidden.*network: tls"):
        hand.call(entry)
    hand.call(lose_path)
    with pytest.raises(
        MeshError,
        match=r"`pasta`.*is not installed: apt-get install --no-install-recommends passt.*network: tls",
    ):
        hand.call(entry)
    hand.close()
