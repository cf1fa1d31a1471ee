"""Ways in which clusters, their launchers and the commands fail, for tests/test_errors.py.

Nothing is started but a command or two that end at once. What is in the way of the code here is put there for
as long as the call takes; the real failures are in tests/dask_pools and tests/lab.
"""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from importlib.metadata import EntryPoint
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from distributed import Client
from distributed.core import Status
from rich.console import Console

import dask_pools
from dask_pools import cli, config, data_centres, pictures, provision, timeline, traffic, workers
from dask_pools.cluster import LocalPools, orphans, pool_spec, scheduler_process, up
from dask_pools.cluster.launchers import WorkerShape, jobqueue
from dask_pools.cluster.launchers.command import CommandLauncher
from dask_pools.cluster.launchers.docker import DockerLauncher, DockerWorker
from dask_pools.cluster.launchers.joining import joined
from dask_pools.cluster.launchers.local import LocalWorker
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import PoolSpec
from dask_pools.cluster.pool_worker import PoolWorker
from dask_pools.cluster.standing import Standing
from dask_pools.mesh import cli as mesh_cli
from dask_pools.mesh import plan as plans
from dask_pools.mesh.host import Offer
from dask_pools.scheduler import PoolsPlugin
from host_errors import Provocation, patched, raising, under
from intake_pools.demo import story

NOWHERE = "tcp://127.0.0.1:9"
SHAPE = WorkerShape()

SECTIONS = [
    "launcher: local, memory: a",
    "launcher: local, memory: 16",
    "launcher: local, minimum: 3, maximum: 2",
    "launcher: local, env: {a=b: c}",
    "launcher: local, resources: {pool-x: 1.0}",
    "launcher: locl",
    "launcher: command, command: {start: [], stop: a}",
    "launcher: command, command: {start: 'a {', stop: a}",
    "launcher: command, command: {start: '{nope}', stop: a}",
    "launcher: command, command: {start: 'a{worker}', stop: a}",
    "launcher: command, command: {start: '{worker} {directory}', stop: a}",
    "launcher: command, command: {start: a, stop: a}",
    "launcher: command, threads: 2, env: {A: b}, command: {start: '{scheduler} {name} {resources}', stop: a}",
    "launcher: docker, docker: {image: i, data: [a]}",
    "launcher: docker, docker: {image: i, daemon: 'tcp://a'}",
    "launcher: docker, docker: {image: i, data: [/a], writable: [/a]}",
    "launcher: docker, directory: a, docker: {image: i}",
    "launcher: slurm, memory: 1 GB, slurm: {walltime: 10:00:00}",
    "launcher: slurm",
    "launcher: sge, memory: 1 GB",
]
SITES = [
    "site: {host: 'a b'}",
    "site: {host: a, reach: port}",
    "site: {host: a, reach: nat, endpoint: a}",
    "site: {host: a, reach: open, relay: b}",
]


def of_sections() -> Iterator[Provocation]:
    """What is wrong in the sections of data-centres files."""
    texts = [f"{{workers: {{{section}}}}}" for section in SECTIONS] + [f"{{{site}}}" for site in SITES]
    for text in texts:
        yield partial(data_centres.parse, f"data_centres: {{a: {text}}}", "a.yaml", environment={})
    yield partial(data_centres.parse, "data_centres: {a: {}}\nscheduler: {reach: open}", "a.yaml")

    def provided(name: str, value: str) -> Provocation:
        class Provided(list[EntryPoint]):
            names = (name,)

        entry_points = (workers, "entry_points", lambda **_: Provided([EntryPoint(name, value, "a")]))
        model = (workers, "_model", workers._model.__wrapped__)
        text = f"data_centres: {{a: {{workers: {{launcher: {name}}}}}}}"
        return under(partial(data_centres.parse, text, "a.yaml"), entry_points, model)

    yield provided("mine", "no_such_module:Options")
    yield provided("mine", "builtins:int")
    yield provided("threads", "dask_pools.workers:LauncherOptions")


def of_launchers() -> Iterator[Provocation]:
    """Workers that do not start, as whoever waits for their pool hears of them."""

    class Failing:
        """A launcher that fails."""

        def __init__(self, launch: Any) -> None:
            self.launch = launch

    def started(launch: Any, **how: Any) -> Provocation:
        async def start() -> None:
            timeout = how.pop("timeout", None)
            found_by = how.pop("found_by", None)
            worker = PoolWorker(NOWHERE, "w", "a", Failing(launch), SHAPE, timeout, found_by)
            for name, value in how.items():
                setattr(worker, name, value)
            await worker.start()

        return lambda: asyncio.run(start())

    async def late(*_: Any) -> None:
        await asyncio.Event().wait()

    yield started(late, _withdrawn=True)
    yield started(late, timeout=0.01)
    yield started(late, found_by={})

    for command in ("false", "dask-pools-has-no-such-command"):
        yield started(CommandLauncher("a", (command,), ("true",)).launch)
    yield lambda: asyncio.run(joined(NOWHERE, "w", 0.01, late()))

    async def ended() -> None:
        process = await asyncio.create_subprocess_exec("false", stderr=asyncio.subprocess.PIPE)
        await joined(NOWHERE, "w", 60, LocalWorker(process).ended())

    yield lambda: asyncio.run(ended())
    yield from _of_docker()
    yield from _of_jobs()
    yield partial(
        _given_up, lambda own, worker: PoolCluster._replace(own, worker, "it did not join within 60 s")
    )
    yield partial(_given_up, PoolCluster._lose)


def _given_up(notice: Any) -> None:
    """A worker that does not come in time, or does not last, after the last attempt."""
    raised: list[Any] = []
    fake = SimpleNamespace(
        _standings={"a": Standing(failures=99)},
        status=Status.running,
        observed=set(),
        workers={},
        _leaving=set(),
        worker_spec={"w": 1},
        _begin=lambda _: None,
        _close_workers=lambda _: None,
        _planned=lambda _: [],
        _tell=lambda *_, **__: None,
        _dismissed=set(),
        _unreported=raised,
    )
    fake._fail = partial(PoolCluster._fail, fake)
    worker = SimpleNamespace(name="w", pool="a", joined=0.0)
    fake.workers["w"], fake._replace = worker, partial(PoolCluster._replace, fake)
    notice(fake, worker)
    raise raised[0]


def _of_docker() -> Iterator[Provocation]:
    from docker.errors import NotFound

    launcher = DockerLauncher("image")

    class Docker:
        """A daemon that knows no container."""

        class containers:
            get = staticmethod(raising(NotFound("no")))

        def close(self) -> None:
            pass

    docker = sys.modules[DockerLauncher.__module__]
    found = partial(launcher._find, "0123")

    async def ended() -> None:
        ending: Future[Any] = Future()
        ending.set_exception(OSError("broken pipe"))
        hearing: Future[None] = Future()
        hearing.set_result(None)
        worker = SimpleNamespace(_ending=ending, _hearing=hearing, _said="")
        await joined(NOWHERE, "w", 60, DockerWorker.ended(worker))

    yield lambda: asyncio.run(ended())
    yield under(found, (docker, "_connect", lambda _: Docker()))


def _of_jobs() -> Iterator[Provocation]:
    class Job:
        """A job that has no log."""

        job_id = "7"

    launcher = jobqueue.JobLauncher("slurm", lambda *_, **__: Job(), {})

    async def states(jobs: set[str]) -> dict[str, str]:
        return {}

    async def find() -> None:
        await launcher.find(NOWHERE, "w", WorkerShape(memory_limit=1), {"job": "7", "submitted_in": "/"})

    yield under(lambda: asyncio.run(find()), (jobqueue, "_states", states))

    def ended(log: str) -> Provocation:
        async def state(job: str) -> str:
            return "FAILED"

        async def read() -> str:
            return log

        async def run() -> None:
            worker = jobqueue.JobWorker(launcher, Job())
            with patched((worker, "_log", read)):
                await joined(NOWHERE, "w", 60, worker.ended())

        queue = (jobqueue, "_queue", lambda: SimpleNamespace(ended=state))
        return under(lambda: asyncio.run(run()), queue)

    yield ended("")
    yield ended("slurmstepd: error\n")


def of_pools(pools: PoolCluster, client: Client) -> Iterator[Provocation]:
    """What a running cluster refuses."""
    yield partial(pools.scale, 2)
    yield partial(pools.scale, "none", 1)
    yield partial(pools.adapt, 0, 4)
    yield partial(pools.adapt, target_duration="0 s")
    spent = SimpleNamespace(reason="its 2 hours of workers are used up (max_hours)", spent=True)
    known = {"a": SimpleNamespace(maximum=None)}
    own = SimpleNamespace(
        _pool_specs=known, _standings={"a": spent}, _check_pool=lambda _: None, _planned=lambda _: []
    )
    yield lambda: PoolCluster.scale(own, "a", 1)
    yield lambda: LocalPools({"a": 1}, directories={"b": "/"})
    yield lambda: pool_spec.check_spec("a", 2)
    yield lambda: pool_spec.check_spec("a", PoolSpec(None, timeout=-1))
    yield lambda: pool_spec.check_spec("a", PoolSpec(None, workers=3, maximum=2))
    yield partial(provision.ensure_workers, client, "nowhere")
    yield partial(provision.ensure_workers, client, "ecmwff")
    plugin = SimpleNamespace(
        _supplies=lambda: {"a": SimpleNamespace(timeout=1, provision="ask")},
        _reason_to_give_up=lambda *_: None,
        _is_coming=lambda _: False,
        _may_come=lambda _: False,
        _not_allowed=lambda *_: None,
    )

    def fail() -> None:
        reason = PoolsPlugin._reason_to_fail(plugin, "a", SimpleNamespace(since=0.0), 0.0)
        raise dask_pools.errors.PoolUnavailableError("a", (), str(reason))

    yield fail

    def asked(user: str) -> None:
        some = SimpleNamespace(askers=("somebody",))
        raise dask_pools.errors.PoolUnavailableError(
            "a", (), str(PoolsPlugin._not_allowed(plugin, "a", some, "auto", user))
        )

    yield from (partial(asked, user) for user in ("", "me"))

    def own_process() -> None:
        async def start() -> None:
            one = scheduler_process.SchedulerProcess({})
            with patched((scheduler_process, "COMMAND", ["false"])):
                await one.start()

        asyncio.run(start())

    yield own_process
    yield partial(up._answer, SimpleNamespace(pools_of_its_own=["a"]), {"do": "add", "pool": "b"})


def of_arguments() -> Iterator[Provocation]:
    """Arguments of functions that are none."""
    yield partial(config.check_provision, "no")
    frame = dd.from_pandas(pd.DataFrame({"a": [1]}), npartitions=1)
    yield partial(dask_pools.explain, frame)
    yield partial(dask_pools.explain().why, "sub")

    def no_matplotlib() -> None:
        imported = builtins.__import__

        def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return imported(name, *args, **kwargs)

        with patched((builtins, "__import__", refuse)):
            pictures.new_figure(1, 1)

    yield no_matplotlib
    yield lambda: traffic.Measurement().traffic
    yield lambda: timeline.TaskStream(traffic.Measurement()).spans
    yield partial(traffic._synchronous, SimpleNamespace(asynchronous=True))
    yield partial(Offer, "a", "no key", 1)
    plan = plans.make_plan([plans.Site("a")], seed=1)
    yield partial(plan.worker, "a", -1)
    yield under(partial(plans.make_plan, [plans.Site("a")], seed=1), (plans, "MOST_SITES", 0))


def of_commands(directory: Path) -> Iterator[Provocation]:
    """What commands say of their own."""
    yield lambda: cli._load(EntryPoint("a", "no_such_module:a", "a")).main(["x"], standalone_mode=False)
    yield under(
        lambda: mesh_cli.inside.main(["dask-pools-has-no-such-command"], standalone_mode=False),
        (mesh_cli, "entry", lambda _: []),
    )

    def in_use() -> None:
        with patched((up.Home, "make", lambda self: False)), up._reachable(None):
            pass

    yield in_use
    path = directory / "orphaned.yaml"
    path.write_text("data_centres: {a: {workers: {launcher: local}}}")
    known = data_centres.read(path)
    held = SimpleNamespace(pool="a", handle={})
    orphan: Any = SimpleNamespace(file=str(path), workers={"w": held}, cluster="c", scheduler=NOWHERE)
    at_another = (orphans, "orphans", lambda address=None: [] if address else [orphan])
    yield under(partial(orphans.adopt, "tcp://127.0.0.1:1"), at_another)
    yield under(orphans.adopt, (orphans, "_the_one", lambda _: orphan), (orphans, "claim", lambda _: False))
    yield lambda: asyncio.run(orphans._end_worker(orphan, known, "w", print))
    yield lambda: asyncio.run(orphans._end_agent(orphan, known, "b", print))
    yield under(story._samples, (story, "find_spec", lambda _: None))
    shape = story._grid("1 MB")
    console = Console(file=StringIO())
    full = (story, "lay_out", raising(OSError(28, "No space left on device")))
    yield under(partial(story._prepare, directory, shape, directory, console), full)

    def differs() -> None:
        values = xr.DataArray(np.zeros(1))
        measured = SimpleNamespace(traffic=None)

        class Measured:
            def __enter__(self) -> Any:
                return measured

            def __exit__(self, *_: Any) -> None:
                pass

        with patched((story, "measure_traffic", lambda _: Measured())):
            story._succeed(None, "with pins", lambda: values, np.ones(1), console)

    yield differs
