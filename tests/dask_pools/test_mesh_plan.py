"""The mesh's plan joins every two sites, by routes that agree with each other."""

from __future__ import annotations

import sys
from ipaddress import IPv6Address, IPv6Network
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dask_pools.mesh.plan import Plan, PlanError, Site, make_plan, to_blame

ULA = IPv6Network("fd00::/8")


@st.composite
def some_sites(draw: st.DrawFn, least: int = 1) -> list[Site]:
    reaches = draw(st.lists(st.sampled_from(["open", "nat", "port"]), min_size=least, max_size=8))
    return [
        Site(
            f"site-{number}",
            reach,  # type: ignore[arg-type]
            port=51820 if reach == "port" else None,
            relays=draw(st.booleans()),
        )
        for number, reach in enumerate(reaches)
    ]


def planned(sites: list[Site], seed: int = 1) -> Plan:
    """Make the plan; pass over sites that cannot be joined."""
    try:
        return make_plan(sites, seed)
    except PlanError:
        assume(False)
        raise


def path(plan: Plan, source: str, target: str) -> list[str]:
    """Follow a packet by the routes of each router, as WireGuard does: by the longest prefix."""
    network, way = plan.network(target), [source]
    while way[-1] != target:
        peers = [peer for peer in plan.router(way[-1]).peers if network in peer.allowed]
        assert len(peers) == 1, "one peer for each network"
        # What comes in is dropped unless it may come from there.
        (back,) = [one for one in plan.router(peers[0].name).peers if one.name == way[-1]]
        assert plan.network(source) in back.allowed
        way.append(peers[0].name)
        assert len(way) <= 3
    return way


@given(some_sites(2), st.integers())
def test_every_two_sites_reach_each_other_directly_or_through_one_relay(sites, seed):
    plan = planned(sites, seed)
    by_name = {site.name: site for site in sites}
    for one, other in permutations(by_name, 2):
        way = path(plan, one, other)
        assert path(plan, other, one) == way[::-1]
        if by_name[one].reachable or by_name[other].reachable:
            assert way == [one, other]
            assert plan.relay(one, other) is None
        else:
            relay = way[1]
            assert plan.relay(one, other) == relay
            assert by_name[relay].reachable
            assert plan.router(relay).forwards


@given(some_sites(), st.integers())
def test_somebody_can_begin_every_tunnel_and_nobody_calls_who_cannot_be_called(sites, seed):
    plan = planned(sites, seed)
    by_name = {site.name: site for site in sites}
    for name in plan:
        for peer in plan.router(name).peers:
            assert (peer.endpoint is not None) == by_name[peer.name].reachable
            assert by_name[name].reachable or by_name[peer.name].reachable
            assert peer.address in peer.allowed[0]


@given(some_sites(2), st.integers())
def test_two_ends_that_call_each_other_in_vain_do_not_try_again_at_the_same_time(sites, seed):
    plan = planned(sites, seed)
    keepalives = {(name, peer.name): peer.keepalive for name in plan for peer in plan.router(name).peers}
    for (one, other), seconds in keepalives.items():
        assert seconds != keepalives[other, one]
        # WireGuard begins no handshake within 5 s of the last, and its timer is not set again.
        assert 5 <= seconds < 10


@given(some_sites(), st.integers())
def test_addresses_are_those_of_one_random_prefix(sites, seed):
    plan = planned(sites, seed)
    assert plan.prefix.subnet_of(ULA)
    assert plan.prefix.prefixlen == 48
    networks = [plan.network(name) for name in plan]
    assert len(set(networks)) == len(networks)
    for number, name in enumerate(plan):
        start = str(plan.prefix.network_address).removesuffix("::")
        assert plan.address(name) == IPv6Address(f"{start}:{number:x}::1")
        assert plan.worker(name, 0) == IPv6Address(f"{start}:{number:x}::11")
        assert plan.worker(name, 1) == IPv6Address(f"{start}:{number:x}::12")
        assert len(plan.router(name).interface) <= 15


@given(some_sites(), st.integers())
def test_the_same_seed_gives_the_same_plan_and_another_one_other_addresses(sites, seed):
    plan = planned(sites, seed)
    assert make_plan(sites, seed) == plan
    other = make_plan(sites, seed + 1)
    assert not other.prefix.overlaps(plan.prefix)
    interfaces = {one.router(name).interface for one in (plan, other) for name in one}
    assert len(interfaces) == 2 * len(sites)


@given(some_sites(3), st.data())
def test_leaving_changes_only_what_it_must_and_joining_again_gives_new_addresses(sites, data):
    plan = planned(sites)
    gone = data.draw(st.sampled_from(sites[1:]))
    try:
        smaller = plan.leave(gone.name)
    except PlanError:
        assume(False)
    for name in smaller:
        assert smaller.address(name) == plan.address(name)
        had = {peer.name: peer for peer in plan.router(name).peers}
        has = {peer.name: peer for peer in smaller.router(name).peers}
        assert had.keys() - has.keys() <= {gone.name}
        assert gone.name not in has
        lost = {
            plan.network(other) for other in smaller if other != name and plan.relay(name, other) == gone.name
        }
        for peer in has.values():
            before = had.get(peer.name)
            networks = set(peer.allowed) ^ set(before.allowed if before else ())
            assert networks <= lost | {plan.network(gone.name)}
            assert before is None or peer.keepalive == before.keepalive
    again = smaller.join(gone)
    assert again.network(gone.name) not in {plan.network(name) for name in plan}


@given(st.lists(st.booleans(), min_size=2, max_size=6), st.integers())
def test_a_relay_that_is_stated_is_taken(stated, seed):
    sites = [Site("a", "open", "a"), Site("b", "open", "b")]
    sites += [Site(f"nat-{n}", relay="b" if one else None) for n, one in enumerate(stated)]
    plan = make_plan(sites, seed)
    for one, other in permutations(range(len(stated)), 2):
        if stated[one]:
            assert plan.relay(f"nat-{one}", f"nat-{other}") == "b"


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([], "at least one site"),
        ([Site("a"), Site("a", "open")], "Two sites are called 'a'"),
        ([Site("a"), Site("b")], "'b' and 'a' only go out.*no third site can relay.*udp_port: 51820"),
        ([Site("a"), Site("b"), Site("c", "open", relays=False)], "no third site can relay"),
        ([Site("a"), Site("b", "port")], "which is not said: `udp_port`"),
        ([Site("a"), Site("b", relay="a")], "'a' is to be the relay.*can be reached"),
        (
            [Site("a", relay="c"), Site("b", relay="d"), Site("c", "open"), Site("d", "open")],
            "State the same `relay`",
        ),
    ],
)
def test_sites_that_cannot_be_joined_are_refused_with_what_to_do(sites, message):
    with pytest.raises(PlanError, match=message):
        make_plan(sites, 1)


def test_the_schedulers_site_and_the_last_relay_cannot_leave():
    plan = make_plan([Site("client"), Site("ecmwf", "open"), Site("eumetsat")], 1)
    with pytest.raises(PlanError, match="'client' has the scheduler"):
        plan.leave("client")
    with pytest.raises(PlanError, match="no third site can relay"):
        plan.leave("ecmwf")
    with pytest.raises(PlanError, match=r"no site 'dwd' in this mesh. Sites: client, ecmwf, eumetsat"):
        plan.leave("dwd")


def test_it_imports_the_standard_library_and_numpy_only():
    import ast
    from pathlib import Path

    from dask_pools.mesh import plan

    tree = ast.parse(Path(plan.__file__).read_text())
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {*sys.stdlib_module_names, "numpy"}


@pytest.mark.parametrize(
    ("missing", "blamed"),
    [
        ([], {}),
        # Nobody gets into b, and whoever calls it is not to blame.
        (["scheduler b", "b scheduler", "a b", "b a", "c b", "b c"], {"b": "scheduler b"}),
        # Nothing comes out of a.
        (["a scheduler", "scheduler a", "a b", "b a"], {"a": "scheduler a"}),
        # Only these two do not meet, and b should be reachable.
        (["a b", "b a"], {"b": "a b"}),
        (["scheduler a", "scheduler b", "b c", "c b"], {"a": "scheduler a", "b": "scheduler b"}),
        (["b scheduler"], {"b": "b scheduler"}),
    ],
)
def test_of_sites_without_a_connection_those_are_left_out_that_keep_others_from_it(missing, blamed):
    said = {tuple(pair.split()): pair for pair in missing}
    found = to_blame(said, "scheduler", {"scheduler", "b", "c"})
    assert found == blamed
    assert all(not found.keys().isdisjoint(pair) for pair in said)
