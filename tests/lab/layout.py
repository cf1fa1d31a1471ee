"""What lies where at the two sites of the lab."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from namespaces import ROOT, Site

from intake_pools import load_from_catalog
from ways import CHUNKS, dataset

GRID = {"latitude": np.linspace(-80, 80, 160), "longitude": np.linspace(0, 358.2, 200)}


def predictions() -> xr.Dataset:
    """Make a forecast that is large enough to stay lazy, with scalars and a wide coordinate."""
    rng = np.random.default_rng(1)
    return xr.Dataset(
        {
            "air_temperature": (
                ("realization", "height", *GRID),
                rng.normal(280, 10, (4, 12, 160, 200)).astype("f4"),
            ),
            "latitude_longitude": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
        },
        {
            **GRID,
            "forecast_reference_time": np.datetime64("2020-01-01T06", "ns"),
            "land": (tuple(GRID), rng.random((160, 200))),
        },
    )


def observations() -> xr.Dataset:
    """Make what the forecast is compared with."""
    field = np.random.default_rng(2).normal(280, 10, (160, 200)).astype("f4")
    return xr.Dataset({"air_temperature": (tuple(GRID), field)}, GRID)


def lay_out(sites: Mapping[str, Site]) -> None:
    """Write the data of both sites."""
    predictions().to_netcdf(sites["ecmwf"].from_outside(ROOT / "ecmwf" / "predictions.nc"))
    observations().to_netcdf(sites["eumetsat"].from_outside(ROOT / "eumetsat" / "observations.nc"))
    for name, site in sites.items():
        for kind in ("nc", "zarr"):
            write(name, site.from_outside(shared(kind)))


def write(site: str, path: Path) -> None:
    """Write what `ways` says lies at a site."""
    if path.suffix == ".nc":
        dataset(site).to_netcdf(path)
    else:
        dataset(site).to_zarr(path)


def shared(kind: str) -> Path:
    """Path that both sites have, with other data."""
    return ROOT / "shared" / f"data.{kind}"


def opened(site: str, kind: str = "nc") -> xr.Dataset:
    """Open what a site has at the path that both have."""
    return load_from_catalog(str(shared(kind)), data_centre=site, chunks=CHUNKS)
