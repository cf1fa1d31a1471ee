"""The agent of a site: what it starts it stops, whatever happens to it or to its cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dask_pools
from dask_pools.pins import resource
from dask_pools.sites import agent as agents
from dask_pools.sites import protocol
from dask_pools.sites.home import Home
from leftovers import eventually

CLUSTER = "test-of-the-agent"
ATTACH = [sys.executable, "-m", "dask", "pools", "site", "attach", CLUSTER]


class Channel:
    """What a cluster has through SSH, without SSH."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*ATTACH, "--directory", str(directory), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "SSH_CONNECTION": "127.0.0.2 1 127.0.0.1 22"},
        )

    def say(self, order: protocol.Order) -> None:
        self.process.stdin.write(protocol.encode(order))
        self.process.stdin.flush()

    def hear(self, *kinds: type) -> Any:
        """The next report of one of these kinds."""
        for line in self.process.stdout:
            if isinstance(report := protocol.read_report(line), kinds):
                return report
        raise EOFError

    def greet(self, lost_after: float = 60.0, **more: Any) -> protocol.Welcome:
        self.say(
            protocol.Hello(
                version=dask_pools.__version__, cluster=CLUSTER, beat=0.5, lost_after=lost_after, **more
            )
        )
        return self.hear(protocol.Welcome, protocol.Refused)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for agents. Sockets have short paths, and pytest's own directories long ones."""
    with tempfile.TemporaryDirectory(prefix="agent-") as directory:
        yield Path(directory)


@pytest.fixture
def attach(directory: Path) -> Iterator[Callable[..., Channel]]:
    """Attach to the agent of a cluster; it is gone, with all that it made, when the test is over."""
    channels = []

    def make(*arguments: str) -> Channel:
        channels.append(Channel(directory, *arguments))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()
    home = Home(CLUSTER, str(directory))
    assert eventually(lambda: not home.in_use(), 60)


def order(pools: Any, number: int = 1, **shape: Any) -> protocol.StartWorker:
    return protocol.StartWorker(
        number=number,
        name="visitor-0",
        scheduler=pools.scheduler_address,
        shape=protocol.Shape(resources={resource("visitor"): 1.0}, **shape),
    )


def joined(pools: Any) -> bool:
    return "visitor-0" in {worker.name for worker in pools.scheduler.workers.values()}


def below(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_it_outlives_its_channel_and_is_found_again(attach, pools, directory):
    first = attach()
    welcome = first.greet()
    assert (welcome.version, welcome.address, welcome.found) == (dask_pools.__version__, "127.0.0.1", False)
    first.say(order(pools))
    assert first.hear(protocol.Done, protocol.Failed) == protocol.Done(number=1)
    assert joined(pools)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (directory.rglob("*"))}
    assert modes["socket"] == modes["log"] == 0o600
    assert modes[CLUSTER] == modes[f"dask-pools-{os.getuid()}"] == 0o700
    first.process.kill()

    second = attach("--again")
    again = second.greet()
    assert (again.pid, again.found) == (welcome.pid, True)
    assert second.hear(protocol.Health).workers == ("visitor-0",)
    second.say(order(pools))  # whose answer might have been lost with the channel
    assert second.hear(protocol.Done, protocol.Failed) == protocol.Done(number=1)
    nanny = psutil.Process(welcome.pid).children()[0]
    nanny.kill()
    ended = second.hear(protocol.Ended)
    assert (ended.name, "exit code -9" in ended.reason) == ("visitor-0", True)
    second.say(protocol.StopWorker(number=2, name="visitor-0"))
    assert second.hear(protocol.Done, protocol.Failed) == protocol.Done(number=2)
    assert eventually(lambda: not joined(pools), 30)
    second.say(protocol.TakeDown(number=3))
    assert second.hear(protocol.Done) == protocol.Done(number=3)
    assert second.hear(protocol.Leaving)
    assert eventually(lambda: not list(directory.iterdir()), 30)


def test_it_takes_everything_down_when_it_has_lost_its_cluster(attach, pools, directory):
    channel = attach()
    agent = psutil.Process(channel.greet(lost_after=60.0).pid)
    channel.say(order(pools))
    assert channel.hear(protocol.Done, protocol.Failed) == protocol.Done(number=1)
    processes = below(agent)
    assert len(processes) >= 3  # agent, nanny, worker
    assert all("swordfish" not in " ".join(one.cmdline()) for one in processes)
    # From here on the cluster says nothing, and the channel stays open, as behind a cut line.
    channel.greet(lost_after=1.0)
    assert eventually(gone(processes), 60)
    assert "1 s" in channel.hear(protocol.Leaving).reason
    assert list(directory.iterdir()) == []
    assert eventually(lambda: not joined(pools), 30)


def test_killed_outright_its_workers_end_and_the_next_one_tidies_up(attach, pools, directory):
    channel = attach()
    agent = psutil.Process(channel.greet().pid)
    channel.say(order(pools))
    assert channel.hear(protocol.Done, protocol.Failed) == protocol.Done(number=1)
    processes = below(agent)
    agent.kill()
    assert eventually(gone(processes), 60)
    with pytest.raises(EOFError):
        channel.hear(protocol.Leaving)
    (left,) = (directory / f"dask-pools-{os.getuid()}").iterdir()
    assert {"lock", "socket", "log"} <= {path.name for path in left.iterdir()}

    again = attach("--again")
    refusal = again.hear(protocol.Refused)
    assert refusal.gone
    assert "does not run any more" in refusal.reason
    assert list(directory.iterdir()) == []


def test_a_worker_that_does_not_start_is_told_and_leaves_nothing(attach, pools, directory):
    channel = attach()
    agent = psutil.Process(channel.greet().pid)
    channel.say(order(pools, directory="/no/such/directory"))
    failure = channel.hear(protocol.Done, protocol.Failed)
    assert (failure.number, failure.step) == (1, "starting worker visitor-0")
    assert "/no/such/directory" in failure.reason
    assert agent.children() == []
    public = protocol.StartWorker(
        number=2, name="visitor-1", scheduler="tcp://192.0.2.1:8786", shape=protocol.Shape()
    )
    channel.say(public)
    assert "Set `network: mesh`" in channel.hear(protocol.Done, protocol.Failed).reason
    # One that is still starting is called off.
    channel.say(order(pools, number=3))
    assert eventually(lambda: bool(agent.children()), 30)
    channel.say(protocol.StopWorker(number=4, name="visitor-0"))
    assert {channel.hear(protocol.Done, protocol.Failed).number for _ in range(2)} == {3, 4}
    assert eventually(lambda: not agent.children(), 30)
    # A key that was made here is in its file, and nowhere else.
    channel.say(protocol.MakeKey(number=5))
    assert "CERTIFICATE REQUEST" in channel.hear(protocol.SigningRequest, protocol.Failed).request
    home = Home(CLUSTER, str(directory))
    secret = home.key.read_text()
    assert "PRIVATE KEY" in secret
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    line = secret.splitlines()[1]
    assert line not in home.log.read_text()
    assert line not in json.dumps(agent.environ()) + json.dumps(agent.cmdline())
    # Somebody at the host tells it to end.
    assert f"{CLUSTER}  runs" in run("list", directory)
    assert run("down", directory) == f"{CLUSTER}  is down\n"
    assert "SIGTERM" in channel.hear(protocol.Leaving).reason
    assert eventually(gone([agent]), 30)
    assert list(directory.iterdir()) == []


def run(command: str, directory: Path) -> str:
    return subprocess.run(
        [*ATTACH[:-2], command, "--directory", str(directory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout


def test_what_is_not_of_the_protocol_is_refused_and_the_agent_stays(attach):
    channel = attach()
    pid = channel.greet().pid
    other = attach()
    other.process.stdin.write(b'{"kind": "hello", "protocol": 99, "version": "12.0"}\n')
    other.process.stdin.flush()
    assert "12.0, which speaks version 99" in other.hear(protocol.Refused).reason
    another = attach()
    another.say(protocol.TakeDown(number=1))
    assert "greeting" in another.hear(protocol.Refused).reason
    last = attach()
    assert last.greet().pid == pid
    os.kill(pid, signal.SIGTERM)
    assert last.hear(protocol.Leaving)


def test_a_directory_that_others_can_look_into_is_refused(attach, directory):
    above = directory / f"dask-pools-{os.getuid()}"
    above.mkdir()
    above.chmod(0o755)
    assert "not a directory that belongs to you alone" in attach().hear(protocol.Refused).reason
    above.rmdir()
    above.symlink_to(directory)
    assert "not a directory that belongs to you alone" in attach().hear(protocol.Refused).reason
    above.unlink()


def test_an_agent_whose_cluster_leaves_without_a_greeting_ends_with_that(attach, tmp_path):
    channel = attach()
    assert eventually(Home(CLUSTER, str(tmp_path)).in_use, 110)
    channel.close()
    # Sooner than one to which nobody comes at all.
    assert eventually(lambda: not list(tmp_path.iterdir()), agents.UNGREETED - 5)


def test_an_agent_that_is_never_greeted_ends_by_itself(directory, monkeypatch):
    monkeypatch.setattr(agents, "UNGREETED", 0.2)
    home = Home(CLUSTER, str(directory))
    assert home.make()
    asyncio.run(agents.Agent(home, {}).serve())
    assert list(directory.iterdir()) == []
