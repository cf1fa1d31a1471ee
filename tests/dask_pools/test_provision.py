"""Asking for workers of a pool that has none."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import dask
import pytest
from distributed import Client

from dask_pools import PoolUnavailableError
from dask_pools.cluster import LocalPools
from dask_pools.cluster.launchers.local import LocalLauncher
from dask_pools.provision import ensure_workers, ensure_workers_async


@pytest.fixture(scope="module")
def asleep() -> Iterator[LocalPools]:
    """Pools without workers."""
    with LocalPools(dict.fromkeys(("dwd", "knmi", "smhi", "metno", "inm"), 0)) as cluster:
        yield cluster


def test_a_pool_with_workers_needs_no_waiting(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_workers(client, "ecmwf")
    assert capsys.readouterr().err == ""


def test_a_pool_without_workers_gets_some(asleep: LocalPools, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_workers(asleep.get_client(), "dwd")
    assert asleep.get_client().submit(abs, -1, resources={"pool-dwd": 0}).result() == 1
    assert capsys.readouterr().err.splitlines()[0] == "Waiting for workers of pool 'dwd', at most 60 s"


def test_a_second_client_can_ask_too(asleep: LocalPools) -> None:
    with Client(asleep.scheduler_address, set_as_default=False) as client:
        ensure_workers(client, "knmi")
        assert client.submit(abs, -1, resources={"pool-knmi": 0}).result() == 1


def test_an_asynchronous_client_can_ask_too(asleep: LocalPools) -> None:
    async def ask() -> int:
        async with Client(asleep.scheduler_address, asynchronous=True, set_as_default=False) as client:
            await ensure_workers_async(client, "smhi")
            return int(await client.submit(abs, -1, resources={"pool-smhi": 0}))

    assert asyncio.run(ask()) == 1


def test_a_pool_that_nobody_can_supply_is_refused_at_once(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PoolUnavailableError) as refusal:
        ensure_workers(client, "ecwmf", timeout=3600)
    assert capsys.readouterr().err == ""
    message = str(refusal.value)
    assert "'ecwmf' has no workers" in message
    assert "Did you mean 'ecmwf'?" in message
    assert f"dask worker {client.scheduler.address} --resources pool-ecwmf=1" in message
    assert "Pools with workers: 'ecmwf', 'eumetsat'" in message


def test_a_refusal_names_the_pools_that_could_be_had(asleep: LocalPools) -> None:
    with pytest.raises(PoolUnavailableError, match=r"Pools that can be had: .*'metno'"):
        ensure_workers(asleep.get_client(), "jma")


def test_waiting_ends_with_the_time_out(asleep: LocalPools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asleep, "_plan", lambda pool, count: None)  # it promises workers and starts none
    with pytest.raises(PoolUnavailableError, match=r"None came within 0\.5 s.*cluster\.scale\('metno', 1\)"):
        ensure_workers(asleep.get_client(), "metno", timeout="500 ms")


def test_the_time_out_can_be_configured(asleep: LocalPools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asleep, "_plan", lambda pool, count: None)
    with (
        dask.config.set({"pools.wait-for-workers": "300 ms"}),
        pytest.raises(PoolUnavailableError, match=r"within 0\.3 s"),
    ):
        ensure_workers(asleep.get_client(), "metno")


def test_a_failed_start_is_reported_at_once(asleep: LocalPools, monkeypatch: pytest.MonkeyPatch) -> None:
    async def launch(*_: object) -> None:
        raise OSError("no quota left")

    monkeypatch.setattr(LocalLauncher, "launch", launch)
    with pytest.raises(PoolUnavailableError, match=r"worker metno-0: OSError: no quota left\."):
        ensure_workers(asleep.get_client(), "metno", timeout=3600)


def test_an_interrupted_wait_leaves_the_client_usable(
    asleep: LocalPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asleep, "_plan", lambda pool, count: None)
    client = asleep.get_client()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            ensure_workers(client, "inm")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert client.run_on_scheduler(abs, -1) == 1


def test_an_odd_name_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a pool"):
        ensure_workers(client, "a b")
