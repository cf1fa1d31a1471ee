"""One entry, two copies of its data: which is opened, and what happens when it cannot be."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

import intake_pools
from dask_pools import get_pool
from dask_pools.cluster import LocalPools
from dask_pools.errors import EntryError

CATALOGUE = """
sources:
  temperature:
    driver: pooled_netcdf
    args:
      urlpath: "{{ CATALOG_DIR }}/ecmwf/t.nc"
      replicas:
        - urlpath: "{{ CATALOG_DIR }}/eumetsat/t.zarr"
          engine: zarr
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        sites = {"ecmwf": Path(root) / "ecmwf", "eumetsat": Path(root) / "eumetsat"}
        for site in sites.values():
            site.mkdir()
        field = xr.Dataset({"t": (("lat", "lon"), np.full((500, 500), 288.0))}, {"lat": np.arange(500)})
        field.to_netcdf(sites["ecmwf"] / "t.nc")
        field.to_zarr(sites["eumetsat"] / "t.zarr", zarr_format=2)
        rules = {"data_centres": {name: {"prefixes": [f"{site}/"]} for name, site in sites.items()}}

        (Path(root) / "catalogue.yaml").write_text(CATALOGUE)
        cat = intake_pools.open_catalog(Path(root) / "catalogue.yaml", data_centres=rules)

        with LocalPools({"ecmwf": 1, "eumetsat": 1}, dashboard_address=None) as cluster, cluster.get_client():
            print("Other things being equal, the first:", get_pool(cat.temperature.to_dask()))
            print("On request:", get_pool(cat.temperature.to_dask(data_centre="eumetsat")))

            # Copies that are not the same are an error, and no matter of luck.
            (field + 1).isel(lat=slice(499)).to_netcdf(sites["ecmwf"] / "new.nc")
            (sites["ecmwf"] / "new.nc").replace(sites["ecmwf"] / "t.nc")
            try:
                cat.temperature.to_dask()
            except EntryError as error:
                print(error)

            # A copy that cannot be opened falls to the next, with a warning.
            (sites["ecmwf"] / "t.nc").unlink()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                ds = cat.temperature.to_dask()
            print(said[0].message)
            print("Now:", get_pool(ds), float(ds["t"].mean()))
            assert get_pool(ds) == "eumetsat"


if __name__ == "__main__":
    main()
