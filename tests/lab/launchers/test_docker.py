"""Pools whose workers are containers of a real Docker, by the files that the documentation shows."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batch import Slurm
from calculations import calculate, in_pool, values
from containers import Docker
from distributed import Client
from namespaces import start_sites

from dask_pools import PoolUnavailableError
from dask_pools.cluster import PoolCluster, adopt, pool_specs
from dask_pools.data_centres import parse
from documented import shown
from leftovers import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]  # the image may have to be made


@pytest.fixture(scope="module")
def described(docker: Docker, place: Path) -> str:
    """The file of the documentation; on this machine the data are somewhere else, and not in /data."""
    return shown(
        "docker",
        **{
            "data: [/data/ecmwf]": f'data: ["{place}/ecmwf:/data/ecmwf"]',
            "/archive/2024": f"{place}/eumetsat",
            "[/scratch/weather]": f'["{place}/scratch:/scratch/weather"]',
        },
    )


def test_containers_are_as_the_page_says(
    docker: Docker, cluster: PoolCluster, client: Client, described: str, place: Path
) -> None:
    assert not Path("/data").exists()
    calculate(client, described, [Path("/data/ecmwf/data.nc"), Path("/data/eumetsat/data.nc")])

    def ask(pool: str, function: Any, *args: Any) -> Any:
        return client.submit(function, *args, **in_pool(pool)).result()

    assert ask("ecmwf", os.getcwd) == "/data/ecmwf"
    assert ask("ecmwf", os.getenv, "OMP_NUM_THREADS") == "2"
    assert [ask(pool, os.listdir, "/data") for pool in ("ecmwf", "eumetsat")] == [["ecmwf"], ["eumetsat"]]
    with pytest.raises(OSError, match="Read-only file system"):
        ask("ecmwf", Path.touch, Path("/data/ecmwf/new"))
    ask("eumetsat", Path.touch, Path("/scratch/weather/new"))
    assert (place / "scratch" / "new").owner() == place.owner()
    status = ask("ecmwf", Path.read_text, Path("/proc/self/status"))
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    [container] = docker.client.containers.list(filters={"label": "dask-pools.pool=ecmwf"})
    assert container.labels["dask-pools.scheduler"] == cluster.scheduler_address
    limits = container.attrs["HostConfig"]
    assert limits["Memory"] == limits["MemorySwap"] == 2**30 + 2**28
    assert limits["NanoCpus"] == min(2, os.cpu_count() or 1) * 10**9
    assert "Start worker at" in cluster.sync(cluster.workers["ecmwf-0"]._launched.logs)


def test_a_container_that_is_killed_is_replaced_and_how_it_ended_is_known(
    docker: Docker, cluster: PoolCluster, client: Client
) -> None:
    client.submit(os.getpid, **in_pool("eumetsat")).result()
    [worker] = [worker for worker in cluster.workers.values() if worker.pool == "eumetsat"]
    ended = asyncio.run_coroutine_threadsafe(worker._launched.ended(), cluster.loop.asyncio_loop)
    [container] = docker.client.containers.list(filters={"label": "dask-pools.pool=eumetsat"})
    container.kill()
    assert "its container ended with exit status 137, saying: " in ended.result(60)
    client.submit(os.getpid, **in_pool("eumetsat")).result(120)
    assert container.name not in docker.containers()


_OWNER = """
import os, signal, sys
from dask_pools.cluster import PoolCluster
with PoolCluster(sys.argv[1]) as cluster:
    print("up", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_containers_of_an_owner_that_is_killed_go_by_themselves(
    docker: Docker, described: str, tmp_path: Path
) -> None:
    before = set(docker.containers())
    path = tmp_path / "data-centres.yaml"
    path.write_text(described.replace("maximum: 4", "minimum: 1"))
    owner = subprocess.run([sys.executable, "-c", _OWNER, str(path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout == "up\n"
    assert eventually(lambda: set(docker.containers()) <= before, 120), docker.containers()


def test_containers_of_an_owner_that_is_killed_are_taken_over_with_their_scheduler(
    docker: Docker, described: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = set(docker.containers())
    path = tmp_path / "data-centres.yaml"
    path.write_text(described.replace("maximum: 4", "minimum: 1"))
    script = _OWNER.replace("sys.argv[1]", 'sys.argv[1], scheduler="process", outlives="5 min"')
    owner = subprocess.run([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout == "up\n"
    left = set(docker.containers()) - before
    assert left
    with adopt() as cluster, cluster.get_client() as client:
        assert set(docker.containers()) - before == left
        [worker] = cluster.workers.values()
        assert client.submit(abs, -1, **in_pool(worker.pool)).result(120) == 1
    assert set(docker.containers()) <= before


def refused(text: str) -> str:
    """What whoever needs the pool of this file is told."""
    with PoolCluster(parse(text, "docker.md")) as cluster, cluster.get_client() as client:
        with pytest.raises(PoolUnavailableError) as caught:
            client.submit(os.getpid, **in_pool("ecmwf")).result(timeout=120)
        return str(caught.value)


@pytest.mark.parametrize(
    ("said", "instead", "message"),
    [
        ("image: intake-pools\n", "image: nothing\n", "Docker has no image 'nothing' here. Build it as"),
        ("data: [", "data: [/nonexistent, ", "invalid mount config .*: bind source path does not exist"),
        ("image:", "python: /no/python\n        image:", "starts no container .*/no/python: no such file"),
        ("image:", "options: [--no-such]\n        image:", "exit status 2, saying: .*Usage: "),
        (
            "image:",
            "network: x\n        image:",
            "containers in Docker's network 'x' need a scheduler that speaks TLS",
        ),
        (
            "image:",
            "daemon: unix:///no.sock\n        image:",
            r"unix:///no.sock \(No such file or directory\)",
        ),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_left(
    docker: Docker, described: str, said: str, instead: str, message: str
) -> None:
    before = set(docker.containers())
    told = refused(described.replace(said, instead, 1))
    assert re.search(message, told, re.DOTALL), told
    assert set(docker.containers()) <= before


def test_a_request_that_is_withdrawn_as_the_container_is_made_leaves_none(
    docker: Docker, described: str
) -> None:
    spec = pool_specs(parse(described, "docker.md"))["ecmwf"]
    before = set(docker.containers())

    async def withdraw() -> None:
        launching = asyncio.ensure_future(spec.launcher.launch("tcp://127.0.0.1:9", "ecmwf-9", spec.worker))
        await asyncio.sleep(0)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching

    asyncio.run(withdraw())
    # On a machine that is very busy Docker is left to finish by itself.
    assert eventually(lambda: set(docker.containers()) <= before), docker.containers()


def test_one_file_with_slurm_docker_and_local_processes_runs_one_calculation(
    slurm: Slurm, docker: Docker, tmp_path: Path
) -> None:
    before = set(docker.containers())
    (tmp_path / "archive").mkdir()
    with start_sites(["here"]) as sites:
        pools = {"ecmwf": slurm.from_outside, "eumetsat": None, "here": sites["here"].from_outside}
        for number, (pool, from_outside) in enumerate(pools.items()):
            place = tmp_path / "archive" if from_outside is None else from_outside(f"/srv/{pool}")
            place.mkdir(exist_ok=True)
            values(number).to_netcdf(place / "data.nc")
        prefix = ", ".join(map(repr, sites["here"].inside))
        text = shown(
            "README",
            **{
                "/data/": "/srv/",
                "/archive/eumetsat": str(tmp_path / "archive"),
                "/opt/weather/bin/python": sys.executable,
                "walltime:": f'log_directory: "{tmp_path}", walltime:',
                "interface: ib0": "interface: lo",
                "{launcher: local}": f"{{launcher: local, local: {{prefix: [{prefix}]}}}}",
            },
        )
        files = [Path(f"/srv/{pool}/data.nc") for pool in pools]
        # What each has is nowhere but there, though all have it below the same directory.
        assert not any(file.exists() for file in files)
        with PoolCluster(parse(text, "README.md")) as cluster, cluster.get_client() as client:
            assert not any(cluster.pools.values())
            cluster.scale(ecmwf=1, eumetsat=1, here=1)  # at once: opening brings them up one after the other
            calculate(client, text, files)
            assert {pool: len(names) for pool, names in cluster.pools.items()} == dict.fromkeys(pools, 1)
            jobs = slurm.run("squeue", "--noheader", "--states=RUNNING", "--format=%j %P")
            assert jobs.splitlines() == ["ecmwf-0 compute"]
            for other in files:
                seen = {pool: client.submit(os.path.exists, str(other), **in_pool(pool)) for pool in pools}
                assert [pool for pool, one in seen.items() if one.result()] == [other.parent.name]
    assert set(docker.containers()) <= before
    assert slurm.jobs("PENDING", "RUNNING") == []
