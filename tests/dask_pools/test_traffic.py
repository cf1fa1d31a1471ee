"""Traffic: what the workers' own logs say was sent between pools and to the client."""

from __future__ import annotations

from collections.abc import Iterator

import dask
import numpy as np
import pytest
from distributed import Client, Scheduler, SpecCluster, Worker

from dask_pools.traffic import CLIENT, NO_POOL, Flow, Traffic, measure_traffic, traffic

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


def test_a_log_that_overflowed_is_reported(client):
    sources = [client.submit(make, 1000 + n, workers=["left"], pure=False) for n in range(30)]
    with measure_traffic(client) as measured:
        for source in sources:
            client.submit(len, source, workers=["right"], pure=False).result()
    workers = client.scheduler_info()["workers"]
    assert "left" in [workers[address]["name"] for address in measured.traffic.incomplete]
    assert "have gaps" in str(measured)


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
