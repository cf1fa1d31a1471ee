"""What a data-centres file says about the network: read strictly, and told to the mesh as it is."""

from __future__ import annotations

import pytest

from dask_pools import data_centres
from dask_pools.errors import DataCentresError
from dask_pools.mesh.described import described_sites
from dask_pools.mesh.plan import Site

FILE = """
network: mesh
scheduler: {relay: ecmwf}
data_centres:
  ecmwf:
    site: {host: login.ecmwf.int, reach: port, udp_port: 51900, endpoint: gate.ecmwf.int}
  eumetsat:
    site: {host: eumetsat, user: alice, port: 2222, preshared_key: true}
  dwd:
    site: {host: "2001:db8::7", reach: open, relays: false}
  aws:
    prefixes: ["s3://"]
"""


def parse(text: str) -> data_centres.DataCentres:
    return data_centres.parse(text, "dc.yaml", environment={})


def site(text: str) -> str:
    return f"data_centres:\n  ecmwf:\n    site: {text}\n"


def test_the_sites_of_the_file_are_those_of_the_plan():
    assert described_sites(parse(FILE)) == [
        Site("scheduler", "nat", relay="ecmwf"),
        Site("ecmwf", "port", "gate.ecmwf.int", 51900),
        Site("eumetsat", "nat", preshared_key=True),
        Site("dwd", "open", "2001:db8::7", relays=False),
    ]
    assert [one.name for one in described_sites(parse(FILE), ["dwd"])] == ["scheduler", "dwd"]
    with pytest.raises(DataCentresError, match="'aws' has no `site:`"):
        described_sites(parse(FILE), ["aws"])
    with pytest.raises(DataCentresError, match="'dwd' and 'knmi' have the same control host, 2001:db8::7"):
        described_sites(parse(FILE + '  knmi:\n    site: {host: "2001:db8::7", user: bob}\n'))


def test_what_is_not_said_is_that_sites_only_go_out_and_the_network_is_a_mesh():
    found = parse(site("{host: ecmwf}"))
    assert found.network == "mesh"
    assert [one.reach for one in described_sites(found)] == ["nat", "nat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (site("{}"), r"dc.yaml, line 3: key 'data_centres.ecmwf.site.host' is missing"),
        (
            site("{host: e, reach: nat64}"),
            r"line 3: .*site.reach should be 'open', 'nat' or 'port', not 'nat64'",
        ),
        (
            site("{host: e, udpport: 1}"),
            r"unknown key 'data_centres.ecmwf.site.udpport'. Did you mean 'udp_port'",
        ),
        (site("{host: e, reach: port}"), r"line 3: .*reach: port needs the number .* udp_port: 51820"),
        (site("{host: e, udp_port: 70000}"), r"udp_port should be less than or equal to 65535, not 70000"),
        (site("{host: e, udp_port: '1'}"), r"udp_port should be a whole number, not '1'"),
        (site("{host: e, endpoint: x}"), r"with reach: nat none do"),
        (site("{host: e, reach: open, relay: x}"), r"this one can be reached; leave it out"),
        (site("{host: 'e -oProxyCommand=x'}"), r"site.host: 'e -oProxyCommand=x' is no host name"),
        (site("{host: -oProxyCommand}"), r"is no host name"),
        (site("{host: e, reach: open, endpoint: 'e:51820'}"), r"a port is stated by a key of its own"),
        (
            site("{host: e, relay: dwd}"),
            r"line 3: .*site.relay: 'dwd' is no site of this file.*ecmwf, scheduler",
        ),
        ("data_centres: {}\nscheduler: {relay: x}\n", r"dc.yaml, line 2: scheduler.relay: 'x' is no site"),
        ("data_centres: {}\nscheduler: {reach: open}\n", r"line 2: scheduler: .*endpoint: HOST-OR-ADDRESS"),
        ("data_centres: {}\nscheduler: {host: x}\n", r"line 2: unknown key 'scheduler.host'"),
        ("data_centres: {}\nnetwork: tcp\n", r"line 2: network should be 'mesh' or 'tls', not 'tcp'"),
        ("data_centres: {scheduler: {site: {host: x}}}\n", r"line 1: .*cannot be called 'scheduler'"),
    ],
)
def test_what_is_wrong_is_told_with_line_and_key(text, message):
    with pytest.raises(DataCentresError, match=message):
        parse(text)


def test_files_that_are_merged_may_not_contradict_each_other():
    one, two = parse(FILE), parse(FILE)
    assert described_sites(data_centres.merge([one, two])) == described_sites(one)
    for text, message in [
        (site("{host: other}"), "details of the site of ecmwf"),
        ("data_centres: {}\nnetwork: tls\n", "values of network"),
    ]:
        with pytest.raises(DataCentresError, match=message):
            data_centres.merge([one, parse(text)])
