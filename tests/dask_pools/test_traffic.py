"""Traffic: what the workers' own logs say was sent between pools and to the client."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker, wait

from dask_pools import pool
from dask_pools.traffic import (
    CLIENT,
    NO_POOL,
    Account,
    Accounts,
    Flow,
    Traffic,
    balance,
    measure_traffic,
    open_account,
    traffic,
)

MB = 1_000_000


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker in each of two pools and one in none."""
    workers = {
        name: {"cls": Worker, "options": {"host": "127.0.0.1", "nthreads": 1, "resources": resources}}
        for name, resources in {"left": {"pool-left": 1}, "right": {"pool-right": 1}, "none": {}}.items()
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    with (
        dask.config.set({"distributed.admin.low-level-log-length": 20}),
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=False) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(3)
        yield client


def make(nbytes: int) -> np.ndarray:
    return np.ones(nbytes, dtype="u1")


def test_bytes_that_a_task_reads_from_another_pool_are_counted(client):
    source = client.submit(make, 3 * MB, workers=["left"], pure=False)
    with measure_traffic(client) as measured:
        size = client.submit(len, source, workers=["right"], pure=False).result()
    assert size == 3 * MB
    assert measured.traffic.left["left"] == pytest.approx(3 * MB, rel=0.01)
    assert measured.traffic.left["right"] < 1000
    assert measured.traffic.crossed == pytest.approx(3 * MB, rel=0.01)


def test_bytes_that_stay_in_their_pool_are_not_counted(client):
    source = client.submit(make, 3 * MB, workers=["left"], pure=False)
    with measure_traffic(client) as measured:
        client.submit(len, source, workers=["left"], pure=False).result()
    assert measured.traffic.crossed == 0


@pytest.mark.parametrize("direct", [True, False])
def test_bytes_that_the_client_gathers_are_counted_apart(client, direct):
    source = client.submit(make, 2 * MB, workers=["right"], pure=False)
    with measure_traffic(client) as measured:
        client.gather(source, direct=direct)
    assert measured.traffic.to_client == pytest.approx(2 * MB, rel=0.01)
    assert measured.traffic.crossed == 0
    assert [flow.target for flow in measured.traffic.flows] == [CLIENT]


def test_workers_without_a_pool_are_named(client):
    source = client.submit(make, MB, workers=["none"], pure=False)
    with measure_traffic(client) as measured:
        client.submit(len, source, workers=["left"], pure=False).result()
    assert (NO_POOL, "left") in [(flow.source, flow.target) for flow in measured.traffic.flows]


def test_only_what_is_sent_inside_the_block_is_measured(client):
    source = client.submit(make, MB, workers=["left"], pure=False)
    client.submit(len, source, workers=["right"], pure=False).result()
    with measure_traffic(client) as measured:
        pass
    assert measured.traffic.flows == ()
    assert set(measured.traffic.left) == {"left", "right", NO_POOL}
    assert traffic(client).left["left"] >= MB


def test_what_a_log_forgets_is_counted_all_the_same(client):
    sources = [client.submit(make, 1000 + n, workers=["left"], pure=False) for n in range(30)]
    with measure_traffic(client) as measured:
        for source in sources:
            client.submit(len, source, workers=["right"], pure=False).result()
    sent = {pair: n for pair, n in measured.traffic.pairs.items() if pair == ("left", "right")}
    assert sent == {("left", "right"): pytest.approx(sum(range(1000, 1030)), rel=0.2)}
    assert next(flow.transfers for flow in measured.traffic.flows if flow.target == "right") == 30
    assert measured.traffic.incomplete == ()


def test_a_log_that_had_overflowed_before_anybody_asked_is_reported():
    account = Account("tcp://a", "1", ("left",), {CLIENT: (5, 1)}, {}, {}, complete=False)
    assert balance(Accounts({"1": account}, {})).incomplete == ("tcp://a",)
    assert "known in part" in str(balance(Accounts({"1": account}, {})))
    # What was forgotten earlier does not matter to what was sent since.
    assert balance(Accounts({"1": account}, {}), Accounts({"1": account}, {})).incomplete == ()


def test_shards_of_p2p_rechunks_are_counted_where_they_cross(client):
    with pool("left"):
        a = da.random.random((1000, 1000), chunks=(100, 1000)).persist()
    with pool("right"):
        b = da.random.random((1000, 1000), chunks=(100, 1000)).persist()
    wait([a, b])
    together = da.concatenate([a, b])
    with measure_traffic(client) as measured:
        rechunked = together.rechunk((2000, 500), method="p2p")
        # As Dask alone runs it: each input is cut to pieces where it lies.
        rechunked = rechunked.persist(optimize_graph=False)
        wait(rechunked)
    placed = [
        {name for name, worker in workers_by_name(client).items() if worker in holders}
        for holders in client.who_has(rechunked).values()
    ]
    expected = sum(4 * MB for holders in placed for half in ("left", "right") if half not in holders)
    assert measured.traffic.crossed == pytest.approx(expected, rel=0.02)
    assert expected >= 4 * MB


def workers_by_name(client: Client) -> dict[str, str]:
    return {worker["name"]: address for address, worker in client.scheduler_info()["workers"].items()}


def test_what_a_worker_sent_that_has_left_is_counted(client):
    cluster = client.cluster
    options = {"host": "127.0.0.1", "nthreads": 1, "resources": {"pool-passing": 1}}
    cluster.worker_spec["passing"] = {"cls": Worker, "options": options}
    try:
        with measure_traffic(client) as measured:
            cluster.sync(cluster._correct_state)
            client.wait_for_workers(4)
            client.run(open_account)
            source = client.submit(make, 3 * MB, workers=["passing"], pure=False)
            client.submit(len, source, workers=["left"], pure=False).result()
            source.result()
            source.release()
            del cluster.worker_spec["passing"]
            cluster.sync(cluster._correct_state)
        assert measured.traffic.pairs["passing", "left"] == pytest.approx(3 * MB, rel=0.01)
        assert measured.traffic.to_client == pytest.approx(3 * MB, rel=0.01)
        assert measured.traffic.incomplete == ()
        # Nor is it counted again by who asks later.
        with measure_traffic(client) as later:
            pass
        assert later.traffic.flows == ()
    finally:
        cluster.worker_spec.pop("passing", None)
        cluster.sync(cluster._correct_state)


def test_of_a_worker_that_died_what_others_received_is_counted_and_the_rest_reported():
    here = Account("tcp://b", "2", ("right",), {}, {"tcp://a": (7, 1)}, {}, complete=True)
    dead = {"1": ("tcp://a", ("left",))}
    found = balance(Accounts({"2": here}, dead))
    assert found.flows == (Flow("left", "right", 7, 1),)
    assert found.incomplete == ("tcp://a",)
    before = Accounts({"2": here, "1": Account("tcp://a", "1", ("left",), {}, {}, {}, True)}, {})
    assert balance(Accounts({"2": here}, {}), before).incomplete == ("tcp://a",)
    assert balance(Accounts({"2": here}, dead), Accounts({"2": here}, dead)).incomplete == ()


def test_what_both_sides_know_of_is_counted_once():
    a = Account("tcp://a", "1", ("left",), {"tcp://b": (7, 1)}, {}, {"tcp://b": (20, 2)}, True)
    b = Account("tcp://b", "2", ("right",), {}, {"tcp://a": (7, 1)}, {}, True)
    assert balance(Accounts({"1": a, "2": b}, {})).flows == (Flow("left", "right", 27, 3),)


@pytest.fixture
def right2(client: Client) -> Iterator[None]:
    """A second worker in pool right."""
    options = {"host": "127.0.0.1", "nthreads": 1, "resources": {"pool-right": 1}}
    client.cluster.worker_spec["right2"] = {"cls": Worker, "options": options}
    client.cluster.sync(client.cluster._correct_state)
    client.wait_for_workers(4)
    yield
    del client.cluster.worker_spec["right2"]
    client.cluster.sync(client.cluster._correct_state)


def test_what_several_workers_of_a_pool_fetch_is_told(client, right2):
    sources = [client.submit(make, MB, workers=["left"], pure=False) for _ in range(10)]
    wait(sources)
    with measure_traffic(client) as measured:
        readers = [
            client.submit(len, source, workers=[name], pure=False)
            for source in sources
            for name in ("right", "right2")
        ]
        assert client.gather(readers) == [MB] * 20
    found = measured.traffic
    # How many they fetch from each other, which is no crossing, is Dask's choice.
    assert found.pairs["left", "right"] - found.duplicates == pytest.approx(10 * MB, rel=0.01)


def test_a_result_that_all_workers_of_a_pool_read_crosses_once(client, right2):
    with pool("left"):
        field = da.ones((10, 100_000), chunks=(1, -1)).mean(0)
    with pool("right"):
        fields = da.ones((20, 100_000), chunks=(1, -1))
    with measure_traffic(client) as measured:
        assert (fields - field).sum().compute() == 0
    assert measured.traffic.pairs["left", "right"] == pytest.approx(800_000, rel=0.01)
    assert measured.traffic.duplicates == 0


def test_a_result_counts_as_duplicate_where_its_pool_had_it_before():
    def received(worker: str, pool: str, *fetched: tuple[int, int, str]) -> Account:
        counts = {sender: (nbytes, 1) for _, nbytes, sender in fetched}
        return Account(worker, worker, (pool,), {}, counts, {}, True, fetched, len(fetched))

    x, y = 1, 2
    accounts = [
        received("tcp://a", "left"),
        received("tcp://b", "right", (x, 7, "tcp://a")),
        received("tcp://c", "right", (x, 7, "tcp://a"), (y, 5, "tcp://b")),
        received("tcp://d", "third", (x, 7, "tcp://a")),
    ]
    found = balance(Accounts({account.identity: account for account in accounts}, {}))
    assert {(flow.source, flow.target): flow.duplicates for flow in found.flows} == {
        ("left", "right"): 7,
        ("left", "third"): 0,
    }
    assert "7 B had been sent to the same pool before" in str(found)
    before = Accounts({"tcp://b": accounts[1]}, {})
    assert balance(Accounts({"tcp://b": accounts[1]}, {}), before).duplicates == 0


def test_asking_before_the_block_has_ended_says_so(client):
    with measure_traffic(client) as measured, pytest.raises(RuntimeError, match="has ended"):
        _ = measured.traffic


def test_the_default_client_is_used_when_none_is_given(client):
    with measure_traffic() as measured:
        pass
    assert "Nothing left its pool." in str(measured)


def test_traffic_prints_as_a_table():
    flows = (Flow("ecmwf", CLIENT, 1_000, 1), Flow("ecmwf", "eumetsat", 5_000_000, 12))
    table = str(Traffic(flows, ("ecmwf", "eumetsat")))
    assert table.splitlines() == [
        "from   to           bytes  transfers",
        "ecmwf  (client)  0.98 kiB          1",
        "ecmwf  eumetsat  4.77 MiB         12",
    ]
