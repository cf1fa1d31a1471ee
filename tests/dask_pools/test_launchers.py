"""Launchers on real processes, by the data-centres files that the documentation shows."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Scheduler, get_worker

from dask_pools import DataCentresError, PoolUnavailableError, UnsupportedSettingError, pins
from dask_pools.cluster import PoolCluster, pool_specs
from dask_pools.cluster.launchers import WorkerShape, command, jobqueue
from dask_pools.cluster.launchers.jobqueue import JobLauncher
from dask_pools.cluster.launchers.joining import check_private, tls_options, worker_command
from dask_pools.data_centres import DataCentres, load, parse
from dask_pools.workers import LAUNCHERS
from documented import DOCS, PAGES, files, shown
from leftovers import children, eventually


def in_pool(pool: str) -> dict[str, Any]:
    """Arguments of `Client.submit` for a new task in a pool."""
    return {"resources": {pins.resource(pool): 0}, "pure": False}


def whoami() -> tuple[str, int, str, int]:
    worker = get_worker()
    return worker.name, worker.state.nthreads, os.getenv("OMP_NUM_THREADS", ""), os.nice(0)


@pytest.mark.parametrize("page", [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md"))])
def test_every_file_that_a_page_shows_is_valid(page: str) -> None:
    for text in files(DOCS / page):
        known = parse(text, page)
        if not any(one.site for one in known.data_centres.values()):
            assert pool_specs(known)


def test_there_is_a_page_with_a_complete_file_for_every_launcher() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    shown_by = {
        one.workers.launcher: page
        for page in pages
        for one in parse(shown(page), page).data_centres.values()
        if one.workers is not None
    }
    assert shown_by.keys() == entry_points(group=LAUNCHERS).names
    assert {*shown_by.values()} == pages


def test_the_page_on_local_gives_a_cluster_whose_workers_are_as_it_says(tmp_path: Path) -> None:
    here = os.nice(0)
    path = tmp_path / "data-centres.yaml"
    path.write_text(shown("local", **{"/tmp": str(tmp_path)}))
    with PoolCluster(path) as cluster, cluster.get_client() as client:
        assert cluster.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": []}
        found = client.gather([client.submit(whoami, **in_pool(pool)) for pool in ("ecmwf", "eumetsat")])
        assert found == [("ecmwf-0", 2, "2", here), ("eumetsat-0", 1, "1", min(here + 10, 19))]
        [limit] = {
            w["memory_limit"] for w in cluster.scheduler_info["workers"].values() if w["nthreads"] == 2
        }
        assert limit == 2**30
        assert any(tmp_path.iterdir())  # the scratch directory


def test_a_command_of_a_worker_leaves_out_what_is_not_said() -> None:
    words = worker_command("tcp://127.0.0.1:1", "a-0", WorkerShape())
    assert words[3:] == ["tcp://127.0.0.1:1", "--name", "a-0", "--nthreads", "1", "--memory-limit", "0"]


# command


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start command that stays is not given long to end by itself."""
    monkeypatch.setattr(command, "CLOSE_TIMEOUT", 0.5)


@pytest.mark.usefixtures("impatient")
def test_the_page_on_command_gives_workers_as_it_says_and_leaves_nothing(tmp_path: Path) -> None:
    here = os.nice(0)
    (tmp_path / "it's here").mkdir()
    text = shown(
        "command",
        **{
            "/opt/weather/bin/python": sys.executable,
            "directory: /data/ecmwf": f'directory: "{tmp_path}/it\'s here"',
            "/tmp/": f"{tmp_path}/",
        },
    )
    with PoolCluster(parse(text, "command.md")) as cluster, cluster.get_client() as client:
        asked = (partial(os.getenv, "GREETING"), os.getcwd, partial(os.nice, 0))
        found = client.gather([[client.submit(f, **in_pool(pool)) for f in asked] for pool in cluster.pools])
        assert found == [
            ["it's me", f"{tmp_path}/it's here", here],
            [None, os.getcwd(), min(here + 5, 19)],
        ]
        assert cluster.pools == {"ecmwf": ["ecmwf-0"], "eumetsat": ["eumetsat-0"]}
        # Who has joined may run tasks before its launcher knows.
        assert eventually(lambda: cluster.workers["ecmwf-0"]._launched is not None)
        logs = cluster.sync(cluster.workers["ecmwf-0"]._launched.logs)
        assert "Start worker at" in logs
        pids = client.run(os.getpid).values()
    assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert len(pids) == 2


def section(**command: Any) -> DataCentres:
    said = {"launcher": "command", "timeout": "60 s", "command": {"python": sys.executable, **command}}
    return load({"data_centres": {"a": {"workers": said}}})


def launch(**command: Any) -> str:
    """Let one worker be started, and fail; what the user is told."""
    with PoolCluster(section(**command)) as cluster, cluster.get_client() as client:
        with pytest.raises(PoolUnavailableError) as caught:
            client.submit(os.getpid, **in_pool("a")).result(timeout=60)
        return str(caught.value)


def test_a_start_command_that_fails_is_told_with_status_and_last_lines_and_stop_runs(tmp_path: Path) -> None:
    script = "echo one >&2; echo; echo Quota of weather is used up >&2; exit 3"
    message = launch(start=["sh", "-c", f"{script} # {{worker!q}}"], stop=f"touch {tmp_path}/x")
    assert "ended with exit status 3, saying: one\nQuota of weather is used up" in message
    assert (tmp_path / "x").exists()


def test_a_command_that_is_not_there_is_named() -> None:
    message = launch(start="kubctl {worker}", stop="true")
    assert "`kubctl {worker}` cannot be run here: kubctl: No such file or directory" in message


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_does_not_come_in_time_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    known = section(start="sh -c 'echo slow; sleep 1000; : {worker!q}'", stop=f"touch {tmp_path}/{{name}}")
    launcher = replace(pool_specs(known)["a"].launcher, timeout=2)

    async def launch() -> None:
        async with Scheduler(port=0, host="127.0.0.1", dashboard=False) as scheduler:
            with pytest.raises(TimeoutError, match=r"join the scheduler within 2 s, saying: slow"):
                await launcher.launch(scheduler.address, "a-7", WorkerShape())

    asyncio.run(launch())
    assert (tmp_path / "a-7").exists()
    assert not [child for child in children() if "1000" in child.cmdline()]


@pytest.mark.usefixtures("impatient")
def test_a_stop_command_that_fails_is_a_warning_and_what_still_runs_is_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = section(start="{worker}", stop="sh -c 'echo no such pod; exit 4'")
    with PoolCluster(known) as cluster, cluster.get_client() as client:
        pid = client.submit(os.getpid, **in_pool("a")).result()
    assert not psutil.pid_exists(pid)
    assert re.search(
        r"a-0 may still be running: `sh -c .*` ended with exit status 4, saying: no", caplog.text
    )


def test_values_are_filled_into_words_and_never_split() -> None:
    values: dict[str, Any] = {
        "worker": ["python", "-m", "a b"],
        "name": "a-0",
        "directory": "it's $HOME; rm",
    }
    assert command.fill(["{worker}"], values) == ["python", "-m", "a b"]
    assert command.fill(["x={directory}", "{{{name}}}"], values) == ["x=it's $HOME; rm", "{a-0}"]
    [text] = command.fill(["cd {directory!q} && {worker!q}"], values)
    assert shlex.split(text) == ["cd", "it's $HOME; rm", "&&", "python", "-m", "a b"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("command: {start: '{worker}'}", r"key 'data_centres.a.workers.command.stop' is missing"),
        ("command: {start: '', stop: x}", r"command.start: it is empty; write a command"),
        ("command: {start: 'a \"{worker}', stop: x}", r"command.start: no closing quotation in"),
        ("command: {start: 'x {nam}', stop: x}", r"'{nam}' has a placeholder that is not known .* {worker},"),
        ("command: {start: 'x {id}', stop: x}", r"'{id}' has a placeholder that is not known"),
        ("command: {start: 'x {0}', stop: x}", r"'{0}' has a placeholder that is not known"),
        ("command: {start: '{worker.x}', stop: x}", r"'{worker.x}' has a placeholder that is not known"),
        ("command: {start: '{worker!r}', stop: x}", r"'{worker!r}' has a placeholder that is not known"),
        ("command: {start: 'x {', stop: x}", r"'{': .*; a brace itself is written {{ or }}"),
        ("command: {start: 'x=\"cd; {worker}\"', stop: x}", r"Make it a word of its own .* {worker!q}"),
        ("command: {start: '{worker}', stop: '{worker}'}", r"command.stop: '{worker}' has a placeholder"),
        ("command: {start: 'x {name}', stop: x}", r"it needs {worker}, or else {scheduler}, {resources}"),
        (
            "command: {start: 'x {name} {scheduler} {resources}', stop: x}\n      memory: 1 GB",
            r"line 6: .*workers.memory: command.start passes over it: it has neither {worker} nor {memory}",
        ),
        ("command: {start: '{worker} {directory}', stop: x}", r"but the section has no directory"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_named_when_the_file_is_read(said: str, message: str) -> None:
    text = f"data_centres:\n  a:\n    workers:\n      launcher: command\n      {said}"
    with pytest.raises(DataCentresError, match=message):
        parse(text, "f.yaml")


# docker; its real daemon is in tests/lab/


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("threads: 2", r"key 'data_centres.a.workers.docker' is missing"),
        ("docker: {}", r"key 'data_centres.a.workers.docker.image' is missing"),
        ("docker: {image: i, data: [data/x]}", r"docker.data: 'data/x' is no directory to mount; write"),
        ("docker: {image: i, data: [/]}", r"docker.data: '/' is no directory to mount"),
        ("docker: {image: i, writable: ['/a:/b:ro']}", r"writable: '/a:/b:ro' is no directory to mount"),
        ("docker: {image: i, data: [/a/../b]}", r"'/a/../b' is no directory to mount"),
        ("docker: {image: i, data: [/a, '/b:/c'], writable: ['/d:/c/']}", r"line 5: .*/c is mounted twice"),
        ("docker: {image: i, daemon: 'tcp://h:2375'}", r"docker.daemon: 'tcp://h:2375' is not the socket of"),
        ("docker: {image: i}\n      directory: data", r"line 6: .*directory: 'data' has to be an absolute"),
    ],
)  # fmt: skip
def test_what_docker_cannot_do_is_said_when_the_file_is_read(said: str, message: str) -> None:
    text = f"data_centres:\n  a:\n    workers:\n      launcher: docker\n      {said}"
    with pytest.raises(DataCentresError, match=message):
        parse(text, "f.yaml")


def test_a_container_gets_certificate_and_key_and_listens_where_it_reaches_the_scheduler() -> None:
    spec = pool_specs(parse(shown("docker"), "docker.md"))["eumetsat"]
    files = {
        "ca-file": "/home/me/ca.pem",
        "worker.cert": "/home/me/cert.pem",
        "worker.key": "/home/me/key.pem",
    }
    with dask.config.set({f"distributed.comm.tls.{name}": file for name, file in files.items()}):
        made = spec.launcher._settings("tls://127.0.0.1:8786", "eumetsat-0", spec.worker, 2)
    command = made["entrypoint"] + made["command"]
    given = {word: command[n + 1] for n, word in enumerate(command) if word.startswith(("--tls", "--host"))}
    assert given == {
        "--host": "127.0.0.1",
        "--tls-ca-file": "/home/me/ca.pem",
        "--tls-cert": "/home/me/cert.pem",
        "--tls-key": "/home/me/key.pem",
    }
    assert [(one["Source"], one["Target"], one["ReadOnly"]) for one in made["mounts"]] == [
        ("/archive/2024", "/data/eumetsat", True),
        ("/scratch/weather", "/scratch/weather", False),
        *((file, file, True) for file in files.values()),
    ]


def test_without_dockers_sdk_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(ImportError, match=r"Docker containers take .*pip install 'intake-pools\[docker\]'"):
        pool_specs(parse(shown("docker"), "docker.md"))


def test_another_machines_daemon_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    spec = pool_specs(parse(shown("docker"), "docker.md"))["ecmwf"]
    with pytest.raises(RuntimeError, match=r"named by DOCKER_HOST=tcp://10.*, but only one on this machine"):
        asyncio.run(spec.launcher.launch("tcp://127.0.0.1:1", "ecmwf-0", spec.worker))


# Batch systems: the scripts of their jobs. Slurm's real daemons are in tests/lab/.

SCRIPTS = {
    "with-pbs": ["#PBS -N with-pbs-0", "#PBS -q compute", "#PBS -A weather",
                 "#PBS -l select=1:ncpus=2:mem=4096MB", "#PBS -l walltime=01:00:00"],
    "with-sge": ["#$ -N with-sge-0", "#$ -q compute", "#$ -P weather", "#$ -l h_vmem=2G", "#$ -pe smp 2"],
    "with-lsf": ["#BSUB -J with-lsf-0", "#BSUB -q compute", '#BSUB -P "weather"', "#BSUB -n 2",
                 "#BSUB -W 01:00", "#BSUB -M 4295"],
    "with-htcondor": ["batch_name = with-htcondor-0", "MY.DaskWorkerCores = 2",
                      "MY.DaskWorkerMemory = 4294967296", "MY.DaskWorkerDisk = 8000000000",
                      "accounting_group = weather"],
    "with-oar": ["#OAR -n with-oar-0", "#OAR -q compute", "#OAR --project weather",
                 "#OAR -l /nodes=1/core=2,walltime=01:00:00"],
    "ecmwf": ["#SBATCH -J ecmwf-0", "#SBATCH -p compute", "#SBATCH --cpus-per-task=2", "#SBATCH --mem=4G",
              "#SBATCH -t 01:00:00", "#SBATCH --no-requeue",
              "#SBATCH -o /scratch/weather/logs/ecmwf-0-%J.out"],
    "eumetsat": ["#SBATCH -A weather", "#SBATCH --comment=dask", "#SBATCH --no-requeue"],
}  # fmt: skip


def job_script(page: str, pool: str, scheduler: str = "tcp://127.0.0.1:8786") -> str:
    """What would be submitted for the first worker of a pool that a page describes."""
    spec = pool_specs(parse(shown(page), page))[pool]
    assert isinstance(spec.launcher, JobLauncher)
    resources = {**spec.worker.resources, pins.resource(pool): 1}
    job = spec.launcher.job(scheduler, f"{pool}-0", replace(spec.worker, resources=resources))
    return str(job.job_script())


@pytest.mark.parametrize("pool", SCRIPTS)
def test_a_job_asks_for_what_the_section_says(pool: str) -> None:
    script = job_script("batch" if pool.startswith("with") else "slurm", pool)
    lines = script.splitlines()
    assert [line for line in SCRIPTS[pool] if line not in lines] == []
    assert f"--name {pool}-0 " in script
    assert f"--nthreads {1 if pool == 'eumetsat' else 2} " in script
    assert f"pool-{pool}=1" in script
    assert "--nworkers" not in script


def test_the_shell_of_a_job_gets_each_word_whole() -> None:
    lines = job_script("batch", "with-pbs").splitlines()
    before, worker = [line for line in lines if line.startswith("export")], lines[-1]
    assert [shlex.split(line) for line in before] == [["export", "GREETING=it's me"]]
    assert shlex.split(worker)[-2:] == ["--resources", "GPU=1.0 pool-with-pbs=1"]
    assert shlex.split(lines[-2])[:2] == ["cd", "/data/it's here"]


def test_a_job_of_a_scheduler_with_tls_gets_the_files_that_dask_is_configured_with() -> None:
    files = {
        "ca-file": "/home/me/ca.pem",
        "worker.cert": "/home/me/cert.pem",
        "worker.key": "/home/me/key.pem",
    }
    with dask.config.set({f"distributed.comm.tls.{name}": file for name, file in files.items()}):
        words = shlex.split(job_script("slurm", "ecmwf", "tls://10.0.0.1:8786").splitlines()[-1])
    given = {words[n]: words[n + 1] for n, word in enumerate(words) if word.startswith(("--tls", "--proto"))}
    assert given == {
        "--protocol": "tls",
        "--tls-ca-file": "/home/me/ca.pem",
        "--tls-cert": "/home/me/cert.pem",
        "--tls-key": "/home/me/key.pem",
    }


def test_a_command_gets_the_same_files() -> None:
    with dask.config.set({"distributed.comm.tls.ca-file": "/home/me/ca.pem"}):
        assert tls_options("tls://10.0.0.1:8786") == ["--tls-ca-file", "/home/me/ca.pem"]
        assert tls_options("tcp://127.0.0.1:8786") == []


@pytest.mark.parametrize("page", ["slurm", "command", "docker"])
@pytest.mark.parametrize(
    "scheduler", ["tcp://10.0.0.1:8786", "tcp://[2001:db8::1]:8786", "tcp://login1:8786"]
)
def test_a_scheduler_that_speaks_plainly_to_other_machines_is_refused(page: str, scheduler: str) -> None:
    spec = pool_specs(parse(shown(page), page))["ecmwf"]
    with pytest.raises(UnsupportedSettingError, match=r"without encryption.*protocol='tls'"):
        asyncio.run(spec.launcher.launch(scheduler, "ecmwf-0", spec.worker))


@pytest.mark.parametrize(
    "scheduler", ["tls://10.0.0.1:1", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://[fd00::1]:1"]
)
def test_loopback_a_mesh_and_tls_are_private(scheduler: str) -> None:
    check_private(scheduler)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("slurm", r"workers.launcher: a job of Slurm asks for memory; say how much, as in memory: 16 GiB"),
        ("slurm, memory: 1 GB, slurm: {walltime: 10:00:00}", r"slurm.walltime: 36000 may .* in quotes"),
        ("slurm, memory: 1 GB, slurm: {partition: x}", r"unknown key .*slurm.partition'.* Allowed .*, queue"),
        ("slurm, memory: 1 GB, slurm: {job_cpu: 1.5}", r"slurm.job_cpu should be a"),
        ("sge, memory: 1 GB", r"how SGE is asked for memory and processors differs from site to site"),
        ("htcondor, memory: 1 GB", r"key 'data_centres.a.workers.htcondor' is missing"),
        ("pbs, memory: 1 GB, pbs: {job_extra_directives: -j oe}", r"job_extra_directives should be a list"),
    ],
)
def test_what_a_batch_system_cannot_do_is_said_when_the_file_is_read(said: str, message: str) -> None:
    text = f"data_centres:\n  a:\n    workers: {{launcher: {said}}}"
    with pytest.raises(DataCentresError, match=message):
        parse(text, "f.yaml")


def test_ctrl_c_means_what_it_did_before_there_were_batch_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pool_specs(parse(shown("slurm"), "slurm.md"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_dask_jobqueue_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    monkeypatch.delitem(sys.modules, "dask_jobqueue.slurm", raising=False)
    with pytest.raises(
        ImportError, match=r"'ecmwf' are jobs of Slurm.*pip install 'intake-pools\[jobqueue\]'"
    ):
        pool_specs(parse(shown("slurm"), "slurm.md"))


def test_where_no_jobs_can_be_submitted_the_missing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    spec = pool_specs(parse(shown("slurm"), "slurm.md"))["ecmwf"]
    with pytest.raises(RuntimeError, match="there is no command 'sbatch' here: make the cluster where jobs"):
        asyncio.run(spec.launcher.launch("tcp://127.0.0.1:1", "ecmwf-0", spec.worker))


def test_a_job_submitted_while_the_queue_is_looked_at_is_not_taken_for_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[set[str]] = []

    async def run() -> None:
        looked, answer = asyncio.Event(), asyncio.Event()

        async def states(jobs: set[str]) -> dict[str, str]:
            asked.append(jobs)
            looked.set()
            await answer.wait()
            return dict.fromkeys(jobs, "RUNNING") if len(asked) == 1 else dict.fromkeys(jobs, "NODE_FAIL")

        monkeypatch.setattr(jobqueue, "_states", states)
        monkeypatch.setattr(jobqueue, "POLL", 0)
        queue = jobqueue._Queue()
        first = asyncio.ensure_future(queue.ended("1"))
        await looked.wait()
        second = asyncio.ensure_future(queue.ended("2"))
        await asyncio.sleep(0)
        answer.set()
        assert await asyncio.gather(first, second) == ["NODE_FAIL", "NODE_FAIL"]

    asyncio.run(run())
    assert asked == [{"1"}, {"1", "2"}]
