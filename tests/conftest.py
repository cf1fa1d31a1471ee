"""Local pools that the tests of both packages share, and checks that no test leaves anything behind."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from dask_pools.cluster import LocalPools
from leftovers import children, eventually

REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clusters of the tests are written down in a place of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def site_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories that the tasks of each pool run in."""
    return {pool: tmp_path_factory.mktemp(pool) for pool in ("ecmwf", "eumetsat")}


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory like `tmp_path`, for sockets: those have short paths."""
    with tempfile.TemporaryDirectory(prefix="short-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def pools(site_dirs: dict[str, Path]) -> Iterator[LocalPools]:
    """Two pools of one two-threaded worker each, with the scheduler in this process."""
    with LocalPools({"ecmwf": 1, "eumetsat": 1}, threads_per_worker=2, directories=site_dirs) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def session_client(pools: LocalPools) -> Iterator[Client]:
    # Not `with`: that would make it the current client of the whole session, other clusters or not.
    client = Client(pools, set_as_default=False)
    yield client
    client.close()


@pytest.fixture
def client(session_client: Client, pools: LocalPools, request: pytest.FixtureRequest) -> Iterator[Client]:
    """The current client, connected to `pools`; fails a test after which results remain on the scheduler."""
    before = set(pools.scheduler.tasks)  # of tests that failed
    with session_client.as_current():
        yield session_client
    report = request.node.stash.get(REPORT, None)
    if report is not None and report.passed:  # the traceback of one that failed keeps its results alive
        gc.collect()
        assert eventually(lambda: before.issuperset(pools.scheduler.tasks), 5), list(pools.scheduler.tasks)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
    return report


LEFT = pytest.StashKey[list[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a process of pytest-xdist left behind, told to the main one, which alone can fail the run."""
    node.config.stash.setdefault(LEFT, []).extend(getattr(node, "workeroutput", {}).get("left", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves processes behind."""
    left = session.config.stash.setdefault(LEFT, [])
    if not getattr(session.config.option, "numprocesses", None):  # else they are pytest-xdist
        eventually(lambda: not children(), 5)
        for process in children():
            left.append(str(process))
            process.kill()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left
    elif left:
        session.config.get_terminal_writer().line(f"\nProcesses left behind: {left}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
