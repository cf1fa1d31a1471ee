"""What the client of a cluster across sites does, in a hand at its own site; and what its files say.

A hand keeps the cluster between two calls.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import numpy as np
from batch import start_slurm
from distributed import Client, Future, get_worker

from dask_pools.cluster import up as commands
from dask_pools.cluster.multi_site import MultiSiteCluster
from dask_pools.errors import PoolsError
from dask_pools.pins import resource
from dask_pools.sites.site import Patience, Site
from dask_pools.sites.ssh import ControlHost
from documented import shown
from intake_pools.shipped import shipped

DATA_CENTRES = shown(
    "host",
    **{
        "/data/": "/srv/data/",
        "login.ecmwf.int": "ecmwf",
        "login.eumetsat.int": "eumetsat",
        "alice": "scientist",
    },
)
"""The file of the documentation, for the hosts of the lab."""

WITH_HERE = DATA_CENTRES.replace(
    "data_centres:\n", "data_centres:\n  here: {workers: {launcher: local, minimum: 1}}\n"
)
"""The same, with a pool on the client's machine."""

WITH_JOBS = DATA_CENTRES.replace(
    "data_centres:\n",
    f"""data_centres:
  queue:
    workers:
      launcher: slurm
      memory: 1 GiB
      minimum: 1
      slurm: {{queue: compute, python: {sys.executable}, log_directory: /tmp}}
""",
)
"""The same, with jobs of the batch system that the client's machine has by `start_batch`."""

MESH = shipped("weather-data-centres.yaml").read_text()
"""The scheduler and eumetsat only go out, and meet at ecmwf; at eumetsat there is no root."""

kept: dict[str, Any] = {}


def up(directory: str, text: str, lost_after: float) -> dict[str, Any]:
    """Make the cluster that this text describes."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    path = Path(directory) / "data-centres.yaml"
    path.write_text(text)
    start = time.monotonic()
    cluster = kept["cluster"] = MultiSiteCluster(path, patience=Patience(1.0, lost_after))
    kept["client"] = cluster.get_client()
    return {
        "seconds": time.monotonic() - start,
        "address": cluster.scheduler_address,
        "pools": cluster.pools,
        "failures": cluster.failures,
        "agents": agents(),
    }


def configure(settings: dict[str, Any]) -> None:
    """Set settings of Dask here, where the scheduler is."""
    dask.config.set(settings)


def attach() -> dict[str, int]:
    """Connect with the cluster that `dask pools up` keeps; how many workers each pool has."""
    client = kept["client"] = commands.client()
    return {
        pool: sum(resource(pool) in one["resources"] for one in client.scheduler_info(-1)["workers"].values())
        for pool in ("ecmwf", "eumetsat")
    }


def compressions() -> set[str]:
    """How workers of the cluster compress."""
    return set(kept["client"].run(dask.config.get, "distributed.comm.compression").values())


def start_batch() -> None:
    """Start a batch system here, until `stop_batch`."""
    stack = kept["batch"] = ExitStack()
    directory = Path(stack.enter_context(TemporaryDirectory()))
    here = socket.gethostbyname(socket.gethostname())
    slurm = stack.enter_context(start_slurm(directory, ["compute"], here))
    os.environ.update(slurm.env)
    kept["slurm"] = slurm


def jobs(*states: str) -> list[str]:
    """Ids of the jobs of the batch system."""
    return kept["slurm"].jobs(*states)


def pools() -> dict[str, list[str]]:
    return kept["cluster"].pools


def addresses() -> dict[str, str]:
    """Where the workers listen, by name."""
    return {one["name"]: address for address, one in kept["cluster"].scheduler_info["workers"].items()}


def agents() -> dict[str, int | None]:
    return {name: site.welcome and site.welcome.pid for name, site in kept["cluster"].sites.items()}


def problems() -> dict[str, str]:
    """What is wrong at sites."""
    return {name: site.problem for name, site in kept["cluster"].sites.items() if site.problem}


def states() -> dict[str, str]:
    return {name: site.state for name, site in kept["cluster"].sites.items()}


def down() -> None:
    """Close client and cluster, if there are any."""
    futures: list[Future] = kept.pop("futures", [])
    futures.clear()
    if client := kept.pop("client", None):
        client.close()
    if cluster := kept.pop("cluster", None):
        cluster.close()


def stop_batch() -> list[str]:
    """Stop the batch system; ids of the jobs that were still there."""
    left = jobs("PENDING", "RUNNING")
    kept.pop("slurm")
    kept.pop("batch").close()
    return left


def calculate() -> tuple[str, np.ndarray]:
    """Do the calculation of the README, from a catalogue of data that this host does not have."""
    import intake

    cat = intake.open_catalog(str(shipped("weather.yaml")))
    assert not Path("/srv/data/ecmwf").exists()
    difference = cat.predictions.to_dask().mean("realization").isel(height=10) - cat.observations.to_dask()
    return cat.predictions.data_centre, difference.compute().air_temperature.values


# Workers do not have this module: what has no name travels whole.
_slowly = lambda number: (time.sleep(1), number)[1]  # noqa: E731


def begin(there: str, tasks: int, other: str | None = None) -> None:
    """Begin with tasks of a second each in a pool, whose sum is wanted in another."""
    client: Client = kept["client"]
    if other is None:
        (other,) = {"ecmwf", "eumetsat"} - {there}
    numbers = client.map(_slowly, range(tasks), resources={resource(there): 0}, pure=False)
    kept["futures"] = [client.submit(sum, numbers, resources={resource(other): 0}, pure=False)]


def outcome(timeout: float) -> int:
    """What came of it."""
    return int(kept["futures"][0].result(timeout=timeout))


def one_in(pool: str, timeout: float) -> str:
    """Run something in a pool; the host that it ran on."""
    future = kept["client"].submit(socket.gethostname, resources={resource(pool): 0}, pure=False)
    return str(future.result(timeout=timeout))


def interfaces_in(pool: str) -> set[str]:
    """Interfaces of the network that a worker of a pool is in."""
    found = kept["client"].submit(socket.if_nameindex, resources={resource(pool): 0}, pure=False)
    return {name for _, name in found.result(timeout=60)}


def write_in(pool: str, nbytes: int) -> None:
    """Have a worker of a pool write where it spills to."""
    write = lambda: (Path(get_worker().local_directory) / "more").write_bytes(bytes(nbytes))  # noqa: E731
    kept["client"].submit(write, resources={resource(pool): 0}, pure=False, retries=0).result(timeout=60)


def run_example(code: str) -> str:
    """Run Python of the documentation; what it prints."""
    with io.StringIO() as said, redirect_stdout(said):
        exec(code, {"__name__": "__main__"})
        return said.getvalue()


def asynchronous(directory: str, text: str) -> tuple[dict[str, list[str]], dict[str, str], str]:
    """Use a cluster with ``async with``: workers of each pool, what failed, and a host of ecmwf."""
    path = Path(directory) / "data-centres.yaml"
    path.write_text(text)

    async def use() -> tuple[dict[str, list[str]], dict[str, str], str]:
        async with (
            MultiSiteCluster(path, patience=Patience(1.0, 60.0), asynchronous=True) as cluster,
            cluster.get_client() as client,
        ):
            ran = await client.submit(socket.gethostname, resources={resource("ecmwf"): 0})
            return cluster.pools, cluster.failures, str(ran)

    return asyncio.run(use())


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


def trouble(**host: Any) -> tuple[str, str]:
    """What is said where an agent cannot be started: class of the error, and its text."""

    async def connect() -> tuple[str, str]:
        site = Site("ecmwf", ControlHost(**host), "lab-trouble", Patience(1.0, 30.0))
        try:
            await site.connected()
        except PoolsError as error:
            return type(error).__name__, str(error)
        finally:
            await site.close()
        return "nothing", ""

    return asyncio.run(connect())
