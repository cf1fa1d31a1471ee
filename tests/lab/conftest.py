"""What tests of the lab share.

`sites`, `cluster`, `client`: two sites in mount name spaces (`namespaces.py`) that cannot see each other's
data, their workers, and a scheduler that can see neither's.

`network`, `walled`: sites with a network between them (`network.py`).

`slurm`, `docker`: a batch system and a container engine, real ones, for the tests of one module.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Iterator, Sequence

import batch
import containers
import dask
import pytest
from batch import Slurm, start_slurm
from containers import Docker, start_docker
from distributed import Client, Scheduler
from layout import lay_out
from namespaces import FORBIDDEN, ROOT, Site, isolation, mounted, start_cluster, start_sites
from network import THREE_SITES, Network, SiteLink, missing, start_network

from dask_pools.cluster import PoolCluster
from dask_pools.cluster.launchers import jobqueue
from leftovers import eventually
from whereabouts import Seen, watch

THREADS = {"ecmwf": 1, "eumetsat": 2}
"""eumetsat has more idle threads, so a task that is free would go there."""


@pytest.fixture(scope="session")
def sites() -> Iterator[dict[str, Site]]:
    """ecmwf and eumetsat, with the data that `layout` says."""
    if not isolation().is_real:
        pytest.skip(FORBIDDEN)
    with start_sites(THREADS) as sites:
        lay_out(sites)
        yield sites
    names = [site.mount for site in sites.values()]
    assert eventually(lambda: not mounted(names)), mounted(names)


@pytest.fixture(scope="session")
def cluster(sites: dict[str, Site]) -> Iterator[PoolCluster]:
    with start_cluster(sites, THREADS) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def session_client(cluster: PoolCluster) -> Iterator[Client]:
    with cluster.get_client() as client:
        yield client


def _tasks(dask_scheduler: Scheduler) -> list[str]:
    return [str(key) for key in dask_scheduler.tasks]


@pytest.fixture
def client(session_client: Client, cluster: PoolCluster, request: pytest.FixtureRequest) -> Iterator[Client]:
    """The current client; fails a test after which results remain on the scheduler, or workers are lost."""
    with session_client.as_current():
        yield session_client
    assert eventually(lambda: all(len(cluster.pools[pool]) == 1 for pool in THREADS), 60)
    if not request.session.testsfailed:  # the traceback of one that failed keeps its results alive
        gc.collect()
        assert eventually(lambda: not session_client.run_on_scheduler(_tasks))


@pytest.fixture
def whereabouts(client: Client) -> Iterator[Seen]:
    with watch(client) as seen:
        yield seen


@pytest.fixture
def lazily() -> Iterator[None]:
    """Small as the data of the tests is, nothing of it comes with the metadata."""
    with dask.config.set({"pools.eager-size": "0 B"}):
        yield


@pytest.fixture
def folder(sites: dict[str, Site]) -> str:
    """A new directory at ecmwf."""
    path = ROOT / "ecmwf" / uuid.uuid4().hex
    sites["ecmwf"].from_outside(path).mkdir()
    return str(path)


def _started(links: Sequence[SiteLink]) -> Iterator[Network]:
    if why := missing():
        pytest.skip(why)
    with start_network(links) as network:
        yield network


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Client and scheduler behind NAT, ecmwf with a public address, eumetsat behind NAT."""
    yield from _started(THREE_SITES)


@pytest.fixture(scope="session")
def walled() -> Iterator[Network]:
    """Client behind NAT, at ecmwf a firewall that lets in one UDP port."""
    yield from _started([SiteLink("client", "nat"), SiteLink("ecmwf", "port", port=51900)])


@pytest.fixture(scope="session")
def open_sites() -> Iterator[Network]:
    """Three sites, each with a public address and no firewall."""
    yield from _started([SiteLink("client"), SiteLink("ecmwf"), SiteLink("eumetsat")])


PATIENT = {
    "pools.wait-for-workers": "300 s",
    "pools.eager-size": "0 B",
    "distributed.deploy.lost-worker-timeout": "1 s",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Partitions called as in the documentation."""
    if os.geteuid() != 0:
        pytest.skip(batch.FORBIDDEN)
    with (
        start_slurm(tmp_path_factory.mktemp("slurm"), ["compute", "archive Default=YES MaxTime=60"]) as slurm,
        pytest.MonkeyPatch.context() as patch,
        dask.config.set(PATIENT),
    ):
        for name, value in slurm.env.items():
            patch.setenv(name, value)
        patch.setattr(jobqueue, "POLL", 0.5)
        patch.setattr(jobqueue, "POLL_STOPPING", 0.2)
        yield slurm
        live = slurm.jobs("PENDING", "RUNNING", "COMPLETING")
        assert not live, slurm.run("squeue", "--states=all")


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon that has the image of a worker."""
    if os.geteuid() != 0:
        pytest.skip(containers.FORBIDDEN)
    with start_docker() as docker, pytest.MonkeyPatch.context() as patch, dask.config.set(PATIENT):
        patch.setenv("DOCKER_HOST", docker.url)
        yield docker
        assert eventually(lambda: not docker.containers()), docker.containers()
