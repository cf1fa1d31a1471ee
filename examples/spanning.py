"""One Dataset whose files live in two data centres: each part is read where it is, and only means cross."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import intake_pools
from dask_pools.cluster import LocalPools
from dask_pools.traffic import measure_traffic


def january(first: int, last: int) -> xr.Dataset:
    """Make some days of a temperature field."""
    days = np.arange(first, last)
    field = 273.0 + days[:, None, None] + np.zeros((1, 180, 360))
    time = np.datetime64("2026-01-01", "ns") + days * np.timedelta64(1, "D")
    return xr.Dataset({"t": (("time", "lat", "lon"), field)}, {"time": time})


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        # The archive moved half-way through the month.
        sites = {"ecmwf": Path(root) / "ecmwf", "eumetsat": Path(root) / "eumetsat"}
        for site in sites.values():
            site.mkdir()
        january(0, 16).to_netcdf(sites["ecmwf"] / "first-half.nc")
        january(16, 31).to_netcdf(sites["eumetsat"] / "second-half.nc")
        rules = {"data_centres": {name: {"prefixes": [f"{site}/"]} for name, site in sites.items()}}

        with LocalPools({"ecmwf": 1, "eumetsat": 1}, dashboard_address=None) as cluster, cluster.get_client():
            ds = intake_pools.load_from_catalog(
                [f"{sites['ecmwf']}/first-half.nc", f"{sites['eumetsat']}/second-half.nc"], data_centres=rules
            )
            print(f"{ds.sizes['time']} days, {ds['t'].nbytes / 1e6:.1f} MB")
            with measure_traffic() as measured:
                mean = float(ds["t"].mean())
            crossed = measured.traffic.crossed
            print(f"mean {mean:.2f} K; {crossed} bytes crossed between the data centres")
            assert np.isclose(mean, 288)
            assert crossed < 100_000


if __name__ == "__main__":
    main()
