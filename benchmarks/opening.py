"""Opening an entry through its pool: at most 100 ms more than xarray takes for the same file locally.

Both open lazily, in chunks as stored, and close again; they take turns. The files are in the page cache.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import iris_sample_data
import xarray as xr
from rich.console import Console
from rich.table import Table

import intake_pools
from dask_pools.cluster import LocalPools
from intake_pools.demo.sites import FieldShape, directories_below, lay_out

LIMIT = 0.100
ROUNDS = 15


def seconds(open_it: Callable[[], xr.Dataset]) -> float:
    start = time.perf_counter()
    dataset = open_it()
    taken = time.perf_counter() - start
    dataset.close()
    return taken


def compare(name: str, path: Path, **kwargs: str) -> tuple[str, float, float]:
    """Median seconds: locally, and through the pool."""

    def locally() -> xr.Dataset:
        return xr.open_dataset(path, chunks={}, decode_times=True, **kwargs)

    def pooled() -> xr.Dataset:
        return intake_pools.load_from_catalog(str(path), data_centre="here", **kwargs)

    for open_it in (locally, pooled):  # imports and first connections
        seconds(open_it)
    taken = [(seconds(locally), seconds(pooled)) for _ in range(ROUNDS)]
    local, remote = (statistics.median(times) for times in zip(*taken, strict=True))
    return name, local, remote


def main() -> int:
    with tempfile.TemporaryDirectory() as root, LocalPools({"here": 1}, dashboard_address=None) as cluster:
        list(lay_out(Path(root), FieldShape.of_size(20_000_000), Path(iris_sample_data.path)))
        site = directories_below(Path(root))["ecmwf"]
        with xr.open_dataset(site / "predictions.nc", chunks={}) as predictions:
            predictions.to_zarr(site / "predictions.zarr")
        with cluster.get_client():
            rows = [
                compare("NetCDF4, 54 chunks", site / "predictions.nc"),
                compare("NetCDF4, a scenario", site / "A1B_north_america.nc"),
                compare("zarr, 54 chunks", site / "predictions.zarr", engine="zarr"),
            ]

    table = Table(title=f"Opening, median of {ROUNDS}")
    for column in ("file", "xarray, locally", "through its pool", "added"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for name, local, pooled in rows:
        table.add_row(
            name, f"{local * 1000:.0f} ms", f"{pooled * 1000:.0f} ms", f"{(pooled - local) * 1000:+.0f} ms"
        )
    Console().print(table)
    most = max(pooled - local for _, local, pooled in rows)
    print(f"A pool adds {most * 1000:.0f} ms at most; allowed are {LIMIT * 1000:.0f} ms.")
    return 0 if most <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
