"""Data that must stay in its data centre: reduced results may go, raw chunks are refused before all runs.

This prevents accidents. It is not access control: whoever can start a worker beside the data can read it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

import intake_pools
from dask_pools import ResidencyError, pool
from dask_pools.cluster import LocalPools


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        sites = {"hospital": Path(root) / "hospital", "university": Path(root) / "university"}
        rng = np.random.default_rng(0)
        for site in sites.values():
            site.mkdir()
            field = xr.Dataset({"dose": (("x", "y"), rng.random((1000, 1000)))})
            field.to_netcdf(site / "dose.nc")
        rules = {
            "data_centres": {
                "hospital": {"prefixes": [f"{sites['hospital']}/"], "residency": "stay"},
                "university": {"prefixes": [f"{sites['university']}/"]},
            }
        }
        pools = {"hospital": 1, "university": 1}
        with LocalPools(pools, dashboard_address=None) as cluster, cluster.get_client():
            kept = intake_pools.load_from_catalog(sites["hospital"] / "dose.nc", data_centres=rules)
            free = intake_pools.load_from_catalog(sites["university"] / "dose.nc", data_centres=rules)

            # The other data set comes to the one that stays.
            print("difference:", float((free["dose"] - kept["dose"]).mean()))
            # A mean may go anywhere.
            mean = kept["dose"].mean("x")
            with pool("university"):
                scaled = mean * 2
            print("twice the mean:", float(scaled.mean()))

            # Raw chunks may not, and nothing of this runs.
            with pool("university"):
                astray = (free["dose"] - kept["dose"]).data
            try:
                astray.sum().compute()
            except ResidencyError as error:
                print(error)
            else:
                raise AssertionError("raw chunks left the hospital")


if __name__ == "__main__":
    main()
