"""Bytes that did cross between pools, over what `explain` had predicted.

The programs are those of placement_bytes.py, run on pools of one worker each with chunks of 1 MB and more.
Wanted: what crosses within 5 % of the prediction, for each program as a whole and for each pair of pools.
Where less than a chunk moves, 5 % of a chunk: tasks that reduce chunks hand on Python objects (counts and
totals in a dict), whose size nothing tells beforehand.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import cloudpickle
import dask
import dask.array as da
import xarray as xr
from rich.console import Console
from rich.table import Table

import placement_bytes
from dask_pools import Plan, connect, explain, measure_traffic
from dask_pools.cluster import LocalPools
from dask_pools.traffic import Traffic
from placement_bytes import PROGRAMS, E, M, W, variable

WANTED = 0.05
SMALL = 1_000_000
"""Bytes of a chunk."""


def small(site: str) -> xr.DataArray:
    return variable(site, lats=30, lons=60, chunk=160)


def regridding() -> Any:
    weights = da.random.random((30 * 60, 15 * 30), chunks=(30 * 60, 15 * 15))
    fields = [small(site).data.reshape((480, -1)).rechunk({1: -1}) for site in (E, M)]
    here, there = (da.tensordot(field, weights, axes=1) for field in fields)
    return here - there.mean(0)


RUN = PROGRAMS | {
    # As they are there, their results take gigabytes of memory.
    "tensordot": lambda: da.tensordot(small(E).data, small(M).data, axes=([0], [0])).sum(),
    "regridding": regridding,
}


def run(program: Any) -> tuple[Plan, Traffic]:
    """Predict, compute and measure."""
    result = program()
    parts = [
        part.data if isinstance(part, xr.DataArray) else part
        for part in (result if isinstance(result, tuple) else (result,))
    ]
    plan = explain(*parts)
    with measure_traffic() as measured:
        dask.compute(*parts)
    return plan, measured.traffic


def off(predicted: int, found: int) -> float:
    """How far a measurement is from the prediction, as a part of it."""
    return abs(found - predicted) / max(predicted, SMALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="programs whose names hold this", default="")
    parser.add_argument(
        "--workers", type=int, default=1, help="of each pool; with several, small results may cross again"
    )
    args = parser.parse_args()
    # Workers cannot import a benchmark.
    cloudpickle.register_pickle_by_value(placement_bytes)
    table = Table(
        "program", "tasks", "predicted MB", "crossed MB", "again MB", "off", "worst pair", title="Traffic"
    )
    worst = 0.0
    with (
        LocalPools(dict.fromkeys((E, M, W), args.workers), threads_per_worker=2) as cluster,
        cluster.get_client() as client,
    ):
        connect(client)
        for name, program in RUN.items():
            if args.only not in name:
                continue
            plan, found = run(program)
            pairs = {
                pair: off(plan.pairs.get(pair, 0), found.pairs.get(pair, 0))
                for pair in {*plan.pairs, *found.pairs}
            }
            whole = off(plan.crossed, found.crossed)
            worst = max(worst, whole, *pairs.values())
            pair = max(pairs, key=pairs.__getitem__, default=("", ""))
            print(f"{name}: {plan.crossed / 1e6:.3f} MB predicted", file=sys.stderr, flush=True)
            table.add_row(
                name,
                str(plan.tasks),
                f"{plan.crossed / 1e6:.3f}",
                f"{found.crossed / 1e6:.3f}",
                f"{found.duplicates / 1e6:.3f}",
                f"{whole:.1%}",
                f"{pair[0]} → {pair[1]} {pairs[pair]:.1%}" if pairs else "",
            )
    Console().print(table)
    print(f"Farthest off: {worst:.1%}; allowed are {WANTED:.0%}.")
    sys.exit(worst > WANTED)


if __name__ == "__main__":
    main()
