import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

# Else gcsfs asks Google of which kind a bucket is, by gRPC, whatever endpoint it is given; it looks at this
# when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.fixture
def lazily() -> Iterator[None]:
    """Small as the data of the tests is, nothing of it comes with the metadata."""
    with dask.config.set({"pools.eager-size": 0}):
        yield


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No client, although other tests of this session may have one connected."""

    def nobody() -> None:
        raise ValueError("No clients found")

    monkeypatch.setattr("intake_pools.opening.default_client", nobody)
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """URL of an S3 service on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def forecast() -> xr.Dataset:
    """Some of everything: data in chunks, scalars, times, a wide coordinate, a text, a packed variable."""
    rng = np.random.default_rng(0)
    shape = (6, 4, 5)
    return xr.Dataset(
        {
            "t": (("time", "lat", "lon"), rng.normal(280, 10, shape).astype("f4"), {"units": "K"}),
            "packed": (("time", "lat", "lon"), rng.integers(0, 100, shape) / 10),
            "crs": ((), 4326, {"grid_mapping_name": "latitude_longitude"}),
            "issued": ((), np.datetime64("2026-01-01T12", "ns")),
        },
        {
            "time": np.arange("2026-01-01", "2026-01-07", dtype="datetime64[D]").astype("datetime64[ns]"),
            "lat": np.linspace(-60, 60, 4),
            "lon": np.linspace(0, 288, 5),
            "area": (("lat", "lon"), rng.random((4, 5))),
            "height": 2.0,
        },
        {"title": "a forecast"},
    )


def _write(dataset: xr.Dataset, path: str | os.PathLike[str], kind: str = "netcdf4") -> None:
    """Write a Dataset as one of the kinds of file that the tests read."""
    packing = {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1}
    match kind:
        case "netcdf3":
            dataset.to_netcdf(path, format="NETCDF3_64BIT", engine="scipy")
        case "netcdf4":
            stored = {"t": {"chunksizes": (2, 4, 5)}, "packed": {**packing, "chunksizes": (2, 2, 5)}}
            encoding = {name: how for name, how in stored.items() if name in dataset}
            dataset.to_netcdf(path, engine="netcdf4", encoding=encoding)
        case "zarr2" | "zarr3":
            encoding = {"t": {"chunks": (2, 4, 5)}, "packed": {**packing, "chunks": (2, 2, 5)}}
            dataset.to_zarr(
                path,
                mode="w",
                zarr_format=int(kind[-1]),
                consolidated=kind == "zarr2",
                encoding={name: how for name, how in encoding.items() if name in dataset},
            )
        case _:
            raise ValueError(kind)


@pytest.fixture(scope="session")
def write() -> Callable[..., None]:
    return _write


@pytest.fixture
def ecmwf(site_dirs: dict[str, Path]) -> Path:
    """The directory that the workers of pool ecmwf run in."""
    return site_dirs["ecmwf"]


@pytest.fixture
def eumetsat(site_dirs: dict[str, Path]) -> Path:
    return site_dirs["eumetsat"]


@pytest.fixture
def named() -> str:
    """A file name that no other test has."""
    return uuid.uuid4().hex
