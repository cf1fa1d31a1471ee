"""Asking for workers of a pool that has none."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import dask
import dask.array as da
import pytest
from distributed import Client
from scripted import Scripted, cluster_of

from dask_pools import PoolUnavailableError, connect, pool, provision
from dask_pools.cluster import LocalPools, PoolSpec
from dask_pools.cluster.launchers.local import LocalLauncher
from dask_pools.provision import ensure_workers, ensure_workers_async


@pytest.fixture(scope="module")
def asleep() -> Iterator[LocalPools]:
    """Pools without workers."""
    with LocalPools(dict.fromkeys(("dwd", "knmi", "smhi", "metno", "inm"), 0)) as cluster:
        yield cluster


def test_a_pool_with_workers_needs_no_waiting(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_workers(client, "ecmwf", timeout="2 min")
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


def test_an_odd_name_or_time_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a pool"):
        ensure_workers(client, "a b")
    with pytest.raises(ValueError, match="'2 moons' is no time"):
        ensure_workers(client, "ecmwf", timeout="2 moons")


# Before a graph is sent


def sum_of(*names: str) -> da.Array:
    """A sum over ones that are made in each of these pools."""
    total = 0
    for name in names:
        with pool(name):
            total = total + da.ones(4, chunks=2, name=f"ones-of-{name}").sum()
    return total


def test_computing_asks_for_all_pools_at_once_before_it_sends_anything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    slow, slower = Scripted(delay=0.3), Scripted(delay=1)
    with cluster_of(ecmwf=PoolSpec(slow, workers=0), eumetsat=PoolSpec(slower, workers=0)) as cluster:
        # By address only: the request finds its way through the scheduler.
        with Client(cluster.scheduler_address) as client:
            connect(client)
            sent = client._send_to_scheduler
            there = []

            def send(message: dict[str, object]) -> None:
                if message.get("op") == "update-graph":
                    there.append({pool: len(names) for pool, names in cluster.pools.items()})
                sent(message)

            monkeypatch.setattr(client, "_send_to_scheduler", send)
            assert sum_of("ecmwf", "eumetsat").compute() == 8
            assert there == [{"ecmwf": 1, "eumetsat": 1}]
        assert [len(slow.asked), len(slower.asked)] == [1, 1]
    assert sorted(capsys.readouterr().err.splitlines())[:2] == [
        "Waiting for workers of pool 'ecmwf', at most 60 s",
        "Waiting for workers of pool 'eumetsat', at most 60 s",
    ]


def test_a_pool_that_may_not_be_brought_up_is_refused_before_anything_is_sent():
    launcher = Scripted()
    pools = {"ecmwf": PoolSpec(Scripted()), "eumetsat": PoolSpec(launcher, workers=0, provision="never")}
    with cluster_of(**pools) as cluster, cluster.get_client():
        with pytest.raises(
            PoolUnavailableError, match=r"'eumetsat'.*provision: never.*cluster\.scale\('eumetsat', 1\)"
        ):
            sum_of("ecmwf", "eumetsat").compute()
        # Nor can a call lift that.
        with (
            dask.config.set({"pools.provision": "auto"}),
            pytest.raises(PoolUnavailableError, match="provision: never"),
        ):
            sum_of("ecmwf", "eumetsat").compute()
        # Tasks of which no client says anything beforehand are refused as well.
        with pool("eumetsat"):
            future = cluster.get_client().submit(abs, -1)
        with pytest.raises(PoolUnavailableError, match="provision: never"):
            future.result()
        assert not launcher.asked
        cluster.scale("eumetsat", 1)
        ensure_workers(cluster.get_client(), "eumetsat")
        assert sum_of("ecmwf", "eumetsat").compute() == 8


def test_who_is_asked_decides(monkeypatch: pytest.MonkeyPatch):
    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0, maximum=5, provision="ask")) as cluster:
        client = cluster.get_client()
        with pytest.raises(PoolUnavailableError, match="there is nobody to ask here"):
            sum_of("ecmwf").compute()
        with pool("ecmwf"), pytest.raises(PoolUnavailableError, match="when somebody agrees"):
            client.submit(abs, -1).result()
        asked: list[str] = []

        def answer(question: str) -> str:
            asked.append(question)
            return "no" if len(asked) == 1 else "yes"

        monkeypatch.setattr(provision, "_can_be_asked", lambda: True)
        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(PoolUnavailableError, match="you did not"):
            sum_of("ecmwf").compute()
        assert not launcher.asked
        assert sum_of("ecmwf").compute() == 4
        assert sum_of("ecmwf").compute() == 4
        question = "Pool 'ecmwf' has no workers. Start 1 worker, later 5 at most? [y/N] "
        assert asked == [question, question]


@pytest.mark.parametrize("nobody", [EOFError, NotImplementedError])
def test_where_nobody_can_answer_it_is_refused(
    nobody: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with the end of a terminal's input, or in a notebook that is run by nbconvert.
    def answer(question: str) -> str:
        raise nobody(question)

    monkeypatch.setattr(provision, "_can_be_asked", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0, provision="ask")) as cluster, cluster.get_client():
        with pytest.raises(PoolUnavailableError, match="there is nobody to ask here"):
            sum_of("ecmwf").compute()
        assert not launcher.asked


def test_a_call_may_ask_where_a_pool_would_come_by_itself():
    with cluster_of(ecmwf=PoolSpec(Scripted(), workers=0)) as cluster:
        client = cluster.get_client()
        with pytest.raises(PoolUnavailableError, match="provision: never"):
            ensure_workers(client, "ecmwf", provision="never")
        with pytest.raises(ValueError, match="'auto', 'ask', 'never'"):
            ensure_workers(client, "ecmwf", provision="maybe")
        with (
            dask.config.set({"pools.provision": "ask"}),
            pytest.raises(PoolUnavailableError, match="nobody to ask"),
        ):
            sum_of("ecmwf").compute()


def test_only_those_who_may_ask_are_heard(monkeypatch: pytest.MonkeyPatch):
    launcher = Scripted()
    with cluster_of(ecmwf=PoolSpec(launcher, workers=0, askers=("alice",))) as cluster:
        client = cluster.get_client()
        monkeypatch.setattr(provision, "_user", lambda: "bob")
        with pytest.raises(PoolUnavailableError, match=r"'bob'.* is not among those who may ask"):
            sum_of("ecmwf").compute()
        with pool("ecmwf"), pytest.raises(PoolUnavailableError, match=r"Only some may .* in your name\."):
            client.submit(abs, -1).result()
        assert not launcher.asked
        monkeypatch.setattr(provision, "_user", lambda: "alice")
        assert sum_of("ecmwf").compute() == 4
