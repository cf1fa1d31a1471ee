"""Opening many files: a pool of two one-thread workers against `xarray.open_mfdataset`.

500 NetCDF4 files of five variables are opened as one Dataset. That all files are open is to be at least 1.5
times, and that their Dataset is there at least 1.2 times, as fast as with `open_mfdataset` in one process;
combining is serial on either side. Nothing may be slower than ``open_mfdataset(parallel=True)`` on the same
two workers, and beyond the coordinates at most 300 kB may come to the client. The mean of one variable is
computed as well and told without a limit: in one process no task costs a scheduler anything.

The engine is netcdf4, but h5netcdf with ``parallel=True``: there netCDF4 crashes workers now and then, since
what other processes opened has another lock. The ways take turns. What processes have open is forgotten
before each; the files are in the page cache.
"""

from __future__ import annotations

import gc
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from distributed import Client, get_task_stream
from rich.console import Console
from rich.table import Table

import intake_pools
from dask_pools.cluster import LocalPools

FILES, VARIABLES, STEPS = 500, 5, 4
ROUNDS = 5
OPENING, WHOLE, BYTES = 1.5, 1.2, 300_000

Way = Callable[[], xr.Dataset]


def write_series(root: Path) -> None:
    """Write files of four time steps each."""
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(-88, 88, 45), np.linspace(0, 356, 90)
    for number in range(FILES):
        hours = 6 * np.arange(STEPS * number, STEPS * (number + 1))
        time_ = np.datetime64("2000-01-01", "ns") + hours * np.timedelta64(3600 * 10**9, "ns")
        fields = {
            f"v{n}": (("time", "lat", "lon"), rng.random((STEPS, 45, 90), dtype="f4"), {"units": "K"})
            for n in range(VARIABLES)
        }
        dataset = xr.Dataset(fields, {"time": time_, "lat": lat, "lon": lon}, {"title": "a series"})
        dataset.to_netcdf(root / f"{number:04}.nc", engine="netcdf4")


def forget_files() -> None:
    """Let go of everything that this process has open."""
    from xarray.backends.file_manager import FILE_CACHE

    from intake_pools import stores
    from intake_pools.netcdf_lock import LOCK

    stores.forget()
    gc.collect()
    # netCDF4 knows no threads, and another may be closing a file.
    with LOCK:
        FILE_CACHE.clear()


def forget_all(client: Client) -> None:
    """Let go of it in all processes."""
    intake_pools.forget()
    forget_files()
    client.run(forget_files)


def seconds(open_it: Way, client: Client) -> tuple[float, float]:
    """Seconds that opening took, and opening and computing together."""
    forget_all(client)
    start = time.perf_counter()
    dataset = open_it()
    opened = time.perf_counter() - start
    float(dataset["v0"].mean().compute())
    whole = time.perf_counter() - start
    dataset.close()
    return opened, whole


def seconds_until_open_in_pool(open_it: Way, client: Client) -> float:
    """Seconds until the pool has all files open: until its last task but the one that combines them."""
    forget_all(client)
    begun = time.time()
    with get_task_stream(client) as stream:
        open_it()
    *opening, _ = sorted(stream.data, key=lambda task: task["startstops"][0]["start"])
    return float(max(step["stop"] for task in opening for step in task["startstops"]) - begun)


def seconds_until_open_here(paths: list[str], client: Client) -> float:
    """Seconds until one process has all files open, as `open_mfdataset` opens them."""
    forget_all(client)
    start = time.perf_counter()
    datasets = [xr.open_dataset(path, engine="netcdf4", chunks={}) for path in paths]
    taken = time.perf_counter() - start
    for dataset in datasets:
        dataset.close()
    return taken


def bytes_beyond_coordinates(dataset: xr.Dataset) -> int:
    """Bytes of an opened Dataset as it is sent, less those of its coordinates."""
    return len(pickle.dumps(dataset)) - sum(coord.nbytes for coord in dataset.coords.values())


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as root,
        LocalPools({"here": 2}, threads_per_worker=1, dashboard_address=None) as cluster,
        cluster.get_client() as client,
    ):
        write_series(Path(root))
        paths = sorted(str(path) for path in Path(root).glob("*.nc"))

        def pooled() -> xr.Dataset:
            return intake_pools.load_from_catalog(f"{root}/*.nc", data_centre="here")

        def parallel() -> xr.Dataset:
            return xr.open_mfdataset(paths, engine="h5netcdf", parallel=True)

        def alone() -> xr.Dataset:
            return xr.open_mfdataset(paths, engine="netcdf4")

        ways = {
            "its pool, in batches (netcdf4)": pooled,
            "open_mfdataset, one process (netcdf4)": alone,
            "open_mfdataset(parallel=True) (h5netcdf)": parallel,
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        pool_phase: list[float] = []
        own_phase: list[float] = []
        for turn in range(ROUNDS + 1):
            for name, way in ways.items():
                with dask.config.set(scheduler="threads" if way is alone else None):
                    measured = seconds(way, client)
                if turn:  # the first is for imports and connections
                    taken[name].append(measured)
            pool_phase.append(seconds_until_open_in_pool(pooled, client))
            own_phase.append(seconds_until_open_here(paths, client))
        sent = bytes_beyond_coordinates(pooled())

    medians = {
        name: [statistics.median(one) for one in zip(*times, strict=True)] for name, times in taken.items()
    }
    # The first turn is for imports and connections.
    phases = [statistics.median(taken[1:]) for taken in (pool_phase, own_phase)]
    (opening, whole), alone_took, parallel_took = medians.values()
    table = Table(title=f"{FILES} files of {VARIABLES} variables, median of {ROUNDS}")
    for column in ("way", "files open", "Dataset open", "and a mean"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for (name, times), phase in zip(medians.items(), [f"{one:.2f} s" for one in phases] + ["–"], strict=True):
        table.add_row(name, phase, *(f"{one:.2f} s" for one in times))
    Console().print(table)
    files, dataset, mean = phases[1] / phases[0], alone_took[0] / opening, alone_took[1] / whole
    faster = (parallel_took[0] / opening, parallel_took[1] / whole)
    print(
        f"Than one process: files open {files:.2f} times as fast (at least {OPENING}), the Dataset "
        f"{dataset:.2f} times (at least {WHOLE}), with a mean {mean:.2f} times. Than parallel=True: "
        f"{faster[0]:.2f} and {faster[1]:.2f} times (at least 1). {sent / 1000:.0f} kB beyond coordinates "
        f"(at most {BYTES / 1000:.0f})."
    )
    fast = files >= OPENING and dataset >= WHOLE and min(faster) >= 1
    return 0 if fast and sent <= BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
