"""What a cluster and an agent say to each other: read as it was written, or refused."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_pools.cluster.launchers import WorkerShape
from dask_pools.mesh.host import Offer
from dask_pools.mesh.plan import Site, make_plan
from dask_pools.sites import protocol
from dask_pools.sites.protocol import (
    Lines,
    OtherProtocolError,
    ProtocolError,
    encode,
    read_order,
    read_report,
)

NUMBERS = st.integers(0, 2**40)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,40}", fullmatch=True)
CLUSTERS = st.from_regex(r"[a-z0-9-]{8,64}", fullmatch=True)
SECONDS = st.floats(0.001, 1e6)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SHAPES = st.builds(
    protocol.Shape,
    threads=st.integers(1, 500),
    memory_limit=st.none() | NUMBERS,
    directory=st.none() | TEXT,
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    resources=st.dictionaries(TEXT, SECONDS, max_size=3),
)
SETTINGS = st.dictionaries(
    TEXT, st.none() | st.booleans() | NUMBERS | TEXT | st.lists(TEXT, max_size=2), max_size=3
)
PLANS = st.integers(0, 2**64 - 1).map(
    lambda seed: make_plan([Site("scheduler"), Site("ecmwf", "open", "ecmwf.int"), Site("eumetsat")], seed)
)
ROUTERS = st.builds(lambda plan, site: plan.router(site), PLANS, st.sampled_from(["ecmwf", "eumetsat"]))
KEYS = st.binary(min_size=32, max_size=32).map(lambda key: base64.b64encode(key).decode())
OFFERS = st.builds(Offer, site=NAMES, public_key=KEYS, port=st.integers(1, 65535))
ORDERS = st.one_of(
    st.builds(
        protocol.Hello, version=TEXT, cluster=CLUSTERS, beat=SECONDS, lost_after=SECONDS, settings=SETTINGS
    ),
    st.just(protocol.Beat()),
    st.builds(
        protocol.StartWorker, number=NUMBERS, name=NAMES, scheduler=TEXT, shape=SHAPES, options=SETTINGS
    ),
    st.builds(protocol.StopWorker, number=NUMBERS, name=NAMES),
    st.builds(protocol.MakeKey, number=NUMBERS),
    st.builds(protocol.TrustKey, number=NUMBERS, certificate=TEXT, authority=TEXT),
    st.builds(protocol.RaiseMesh, number=NUMBERS, router=ROUTERS),
    st.builds(
        protocol.JoinMesh,
        number=NUMBERS,
        router=ROUTERS,
        offers=st.lists(OFFERS, max_size=2).map(tuple),
        preshared=st.dictionaries(NAMES, TEXT, max_size=2),
        wait=st.none() | SECONDS,
    ),
    st.builds(protocol.TakeDown, number=NUMBERS),
)
REPORTS = st.one_of(
    st.builds(
        protocol.Welcome,
        version=TEXT,
        host=TEXT,
        user=TEXT,
        pid=NUMBERS,
        address=st.none() | TEXT,
        log=TEXT,
        found=st.booleans(),
    ),
    st.builds(
        protocol.Health, workers=st.lists(NAMES, max_size=3).map(tuple), free=NUMBERS, load=st.floats(0, 1e3)
    ),
    st.builds(protocol.Done, number=NUMBERS),
    st.builds(protocol.SigningRequest, number=NUMBERS, request=TEXT),
    st.builds(protocol.Offered, number=NUMBERS, offer=OFFERS),
    st.builds(protocol.Joined, number=NUMBERS, missing=st.dictionaries(NAMES, TEXT, max_size=2)),
    st.builds(protocol.Failed, number=NUMBERS, step=TEXT, reason=TEXT, command=TEXT, said=TEXT),
    st.builds(protocol.Ended, name=NAMES, reason=TEXT),
    st.builds(protocol.Refused, reason=TEXT, gone=st.booleans()),
    st.builds(protocol.Leaving, reason=TEXT),
)


@given(ORDERS)
def test_an_order_is_read_as_it_was_written(order):
    line = encode(order)
    assert line.count(b"\n") == 1
    assert read_order(line) == order


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report):
    assert read_report(encode(report)) == report


@given(st.lists(ORDERS, min_size=1, max_size=4), st.lists(st.integers(1, 60), min_size=1))
def test_lines_arrive_whole_however_they_are_cut(orders, cuts):
    sent = b"".join(map(encode, orders))
    lines, received, at, turn = Lines(), [], 0, 0
    while at < len(sent):
        size = cuts[turn % len(cuts)]
        received += lines.feed(sent[at : at + size])
        at, turn = at + size, turn + 1
    assert [read_order(line) for line in received] == orders


@given(st.binary(max_size=300))
def test_noise_is_refused_and_nothing_else_happens(noise):
    for read in (read_order, read_report):
        with pytest.raises(ProtocolError):
            read(noise)


_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)


@given(
    ORDERS.flatmap(
        lambda order: st.tuples(st.just(order), st.sampled_from(sorted(order.model_dump())), _JSON)
    )
)
def test_a_value_of_another_kind_is_refused_or_means_itself(case):
    order, key, value = case
    data = {**json.loads(encode(order)), key: value}
    try:
        read = read_order(json.dumps(data).encode())
    except ProtocolError:
        return
    again = json.loads(encode(read))
    assert {name: again[name] for name in data} == data or key == "kind"


@given(ORDERS, NAMES)
def test_what_this_version_does_not_know_is_not_passed_over(order, key):
    data = json.loads(encode(order))
    with pytest.raises(ProtocolError):
        read_order(json.dumps({**data, "x-" + key: 1}).encode())


WELCOME = protocol.Welcome(version="9.1", host="", user="", pid=1, address=None, log="", found=True)


@pytest.mark.parametrize(
    ("read", "greeting"),
    [
        (read_order, {"kind": "hello", "protocol": 7, "version": "9.1", "a new key": {}}),
        (read_report, {"kind": "welcome", "protocol": 7, "version": "9.1"}),
        (read_report, {**WELCOME.model_dump(), "protocol": 7}),
    ],
)
def test_another_version_of_the_protocol_says_which(read, greeting):
    with pytest.raises(OtherProtocolError, match=r"9\.1, which speaks version 7") as error:
        read(json.dumps(greeting).encode())
    assert (error.value.protocol, error.value.version) == (7, "9.1")


def test_a_refusal_does_not_repeat_what_it_was_given():
    order = {"kind": "trust-key", "number": "one", "certificate": "swordfish", "authority": "swordfish"}
    with pytest.raises(ProtocolError, match="number") as error:
        read_order(json.dumps(order).encode())
    assert "swordfish" not in str(error.value)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory():
    lines = Lines()
    pieces = [bytes(2**15)] * 100
    with pytest.raises(ProtocolError, match="more than"):
        list(map(lines.feed, pieces))


def test_a_message_too_long_to_be_read_is_not_sent():
    with pytest.raises(ProtocolError, match="may have"):
        encode(protocol.Refused(reason="x" * protocol.LIMIT))


def test_a_shape_crosses_whole():
    names = [field.name for field in dataclasses.fields(WorkerShape)]
    assert names == list(protocol.Shape.model_fields)
