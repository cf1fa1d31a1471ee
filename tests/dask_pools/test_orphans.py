"""Clusters whose process is killed: taken over by another, or cleaned up, and nothing else is touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from distributed import Client

from dask_pools import cli, connect, pins
from dask_pools.cluster import PoolCluster, adopt
from dask_pools.cluster.orphans import NoOrphanError
from dask_pools.cluster.process import Machine, Process
from dask_pools.cluster.record import Held, PoolWish, Record, claim, orphans, records, write
from leftovers import eventually

DASK = Path(sys.executable).with_name("dask")

COMMAND = """
      launcher: command
      minimum: 1
      timeout: 5 min
      command:
        python: "{python}"
        options: [--host, 127.0.0.1]
"""
LEAVES = """
        start: [sh, -c, "setsid {{worker!q}} >/dev/null 2>&1 </dev/null & echo $$!"]
        stop: kill {{id}}
"""
STAYS = """
        start: "{{worker}}"
        stop: "true"
"""
FILE = f"""
data_centres:
  ecmwf:
    workers:{COMMAND.rstrip()}{LEAVES.rstrip()}
  eumetsat:
    workers:{COMMAND.rstrip()}{STAYS.rstrip()}
  here:
    workers: {{{{launcher: local, minimum: 1, maximum: 3}}}}
"""
ONE = FILE[: FILE.index("  here:")]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other clusters of this user are none of these tests' business."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(short_path))
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))


Started = tuple[subprocess.Popen[str], str]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Run one of the commands that stay; its process, and its scheduler's address."""
    started: list[subprocess.Popen[str]] = []

    def run_one(*arguments: str) -> Started:
        process = subprocess.Popen(
            [DASK, "pools", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Up after"):
                [address] = re.findall(r"^Scheduler +(\S+)$", "".join(said), re.MULTILINE)
                return process, address
        raise AssertionError("".join(said))

    yield run_one
    for process in started:
        with process:
            process.kill()
    for record in records():  # of a test that failed
        for one in (record.scheduler_process, record.owner):
            if one is not None and one.pid != os.getpid():
                one.end(1)


def described(tmp_path: Path, text: str) -> str:
    path = tmp_path / "data-centres.yaml"
    path.write_text(text.format(python=sys.executable))
    return str(path)


def pid_in(client: Client, pool: str) -> int:
    asked = client.submit(os.getpid, resources={pins.resource(pool): 0}, pure=False)
    return int(asked.result(timeout=110))


def killed(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def gone(*pids: int) -> bool:
    return eventually(lambda: all(Process.of(pid) is None for pid in pids))


@pytest.mark.timeout(300)
def test_a_cluster_whose_process_was_killed_is_taken_over_with_its_workers_and_results(
    run: Callable[..., Started], tmp_path: Path
) -> None:
    owner, address = run("up", described(tmp_path, FILE))
    with Client(address) as client:
        connect(client)
        before = {pool: pid_in(client, pool) for pool in ("ecmwf", "eumetsat", "here")}
        held = client.submit(str.upper, "held", resources={pins.resource("ecmwf"): 0})
        assert held.result() == "HELD"
        assert not orphans()
        with pytest.raises(NoOrphanError, match="No cluster of yours"):
            adopt()
        killed(owner)
        [orphan] = orphans()
        assert orphan.scheduler == address
        used = replace(orphan.pools["here"], hours=5.0)
        write(replace(orphan, pools={**orphan.pools, "here": used}))
        # Local workers end with the process that started them.
        assert gone(before["here"])
        with adopt(silence_logs=False) as cluster:
            assert cluster.scheduler_address == address
            assert not orphans()
            assert cluster._reports()["here"].hours >= 5
            after = {pool: pid_in(client, pool) for pool in before}
            assert {pool for pool in before if before[pool] == after[pool]} == {"ecmwf", "eumetsat"}
            assert held.result() == "HELD"
            assert cluster.pools["ecmwf"] == ["ecmwf-0"]
            assert cluster.pools["eumetsat"] == ["eumetsat-0"]
            cluster.scale(ecmwf=2, eumetsat=0)
            assert eventually(lambda: len(cluster.pools["ecmwf"]) == 2)
            # It was started by another process, and is stopped by this one.
            assert gone(before["eumetsat"])
            # Written down as soon as the launcher has started it, a moment after it has joined.
            assert eventually(lambda: {*next(records()).workers} == {"ecmwf-0", "ecmwf-1"})
            [record] = records()
            assert record.pools["here"].wanted == 1
            scheduler = record.scheduler_process
            assert scheduler is not None
        assert gone(scheduler.pid, before["ecmwf"], after["here"])
    assert not list(records())


@pytest.mark.timeout(300)
def test_what_killed_processes_have_left_is_ended_by_one_command(
    run: Callable[..., Started], tmp_path: Path
) -> None:
    owner, address = run("up", described(tmp_path, ONE))
    # That it is up here is enough to be asked how it stands, which is told twice a second.
    shown = r"ecmwf +1 +1 +0 +1 .*\n +eumetsat +1 +1 +0 +1 "
    assert eventually(lambda: re.search(shown, CliRunner().invoke(cli.pools, ["status"]).output) is not None)
    killed(owner)
    assert "`dask pools adopt` takes it over" in CliRunner().invoke(cli.pools, ["status"]).output
    owner, again = run("adopt", address)
    assert again == address
    with Client(address) as client:
        connect(client)
        pids = [pid_in(client, pool) for pool in ("ecmwf", "eumetsat")]
    nannies = [psutil.Process(pid).ppid() for pid in pids]
    killed(owner)
    [orphan] = orphans()
    assert orphan.scheduler_process is not None
    result = CliRunner().invoke(cli.pools, ["down", "--all"])
    assert result.exit_code == 0, result.output
    assert f"The cluster at {address}, whose process {owner.pid} has died:" in result.output
    assert "  worker ecmwf-0: has been ended\n" in result.output
    assert result.output.endswith("  nothing is left\n")
    assert gone(orphan.scheduler_process.pid, *pids, *nannies)
    assert not list(records())
    assert CliRunner().invoke(cli.pools, ["down", "--all"]).output == ""


def a_record(tmp_path: Path, **changed: object) -> Record:
    me = Process.current()
    record = Record("a-cluster", me, described(tmp_path, ONE), "tcp://127.0.0.1:1")
    return replace(record, **changed)  # type: ignore[arg-type]


def test_a_process_with_the_number_of_one_that_ended_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as innocent:
        try:
            there = Process.of(innocent.pid)
            assert there is not None
            earlier = replace(there, started=there.started - 1)
            assert not earlier.lives
            assert not earlier.end(1, group=True)
            start = {"id": "0", "start": {"pid": earlier.pid, "started": earlier.started}}
            start["start"] |= {"machine": vars(Machine.here())}  # type: ignore[operator]
            workers = {"eumetsat-0": Held("eumetsat", start)}
            write(a_record(tmp_path, owner=earlier, scheduler_process=earlier, workers=workers))
            with pytest.raises(NoOrphanError, match=r"has ended as well.*down --all.*dask pools up "):
                adopt()
            with pytest.raises(NoOrphanError, match=r"None that has lost its process is at .*: tcp://127"):
                adopt("tcp://x:1")
            told = CliRunner().invoke(cli.pools, ["down"]).output
            assert "there is one whose process has died: `dask pools adopt`" in told
            result = CliRunner().invoke(cli.pools, ["down", "--all"])
            assert result.exit_code == 0, result.output
            assert there.lives
            assert there.end(10)
            assert not there.lives
        finally:
            innocent.kill()


def test_clusters_of_living_processes_and_of_other_machines_are_left_alone(tmp_path: Path) -> None:
    write(a_record(tmp_path))
    elsewhere = replace(Process.current(), machine=Machine("elsewhere", "", ""), started=0)
    write(a_record(tmp_path, cluster="another", owner=elsewhere, scheduler="tcp://elsewhere:1"))
    assert not claim("a-cluster")
    result = CliRunner().invoke(cli.pools, ["down", "--all"])
    assert f"process {os.getpid()}'s, which lives" in result.output
    assert "The cluster at tcp://elsewhere:1 is one of elsewhere: see there." in result.output
    assert len(list(records())) == 2


def test_what_cannot_be_ended_stays_known(tmp_path: Path) -> None:
    dead = replace(Process.current(), started=0)
    write(a_record(tmp_path, owner=dead, workers={"dwd-0": Held("dwd", {"id": "1", "start": None})}))
    result = CliRunner().invoke(cli.pools, ["down", "--all"])
    assert result.exit_code == 1
    assert "does not say any more how workers of 'dwd' are started, of which dwd-0 is one" in result.output
    assert "try again when that is mended" in result.output
    assert [orphan.cluster for orphan in orphans()] == ["a-cluster"]


def test_what_is_written_down_is_for_this_user_only(tmp_path: Path) -> None:
    record = a_record(tmp_path, pools={"ecmwf": PoolWish(2, {"minimum": 0})}, dismissed=("ecmwf-3",))
    write(record)
    assert list(records()) == [record]
    [path] = (tmp_path / "state" / "dask-pools").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_text("{")
    assert list(records()) == []


def test_a_cluster_of_which_nothing_would_be_left_is_not_written_down(tmp_path: Path) -> None:
    with PoolCluster(described(tmp_path, "data_centres: {{a: {{workers: {{launcher: local}}}}}}")):
        assert list(records()) == []
    with pytest.raises(ValueError, match="scheduler='process'"):
        PoolCluster({}, outlives="1 h")
