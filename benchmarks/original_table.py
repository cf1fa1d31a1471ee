"""The calculation of 2022 on a network of three sites: what it takes, and what crosses each link.

A forecast of 18 x 33 x 960 x 1280 float32 (2.9 GB; `--size` makes it smaller) lies at ecmwf, observations to
compare it with at eumetsat, and the client at a third site. Each has a link of 100 Mbit/s, 10 ms from any
other. Wanted is the forecast's mean over its realizations, at one height, less the observations:

- by pulling both files to the client, over HTTP, whole; and by reading only the ranges that are needed;
- on the cluster without pins (`pools.propagate: false`), which has to fail, as it did then;
- on the cluster with pins, through the mesh, and directly (`network: tls`).

Wanted, of data that cannot be compressed: that the two sites send at most 1.06 x (one averaged height slice
+ the result) on plain links and 1.13 x through the mesh, and 300 kB more; that it takes a fiftieth of the
time of pulling the whole file, at full size; and that client and scheduler tell each other at most 1 MB,
apart from the result. Bytes are those of the interfaces' counters, with headers.

A second table has the same through the mesh for each way to compress what Dask sends, on noise and on fields
of the Met Office that were interpolated to the grid: air temperature, and the temperature of the sea, which
is missing on land. Of these forecasts only the height that is wanted is written.

On the lab's network (`make bench-lab`, as root), in six minutes. Needs 6 GB of disk for temporary files.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import iris_sample_data
import netCDF4
import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / place) for place in ("lab", "")]

import at_sites  # noqa: E402
from hand import Hand  # noqa: E402
from network import Network, SiteLink, missing, start_network  # noqa: E402

from intake_pools.demo.sites import (  # noqa: E402
    FULL_SIZE,
    HEIGHT,
    LEVELS,
    REALIZATIONS,
    FieldShape,
)
from intake_pools.shipped import shipped  # noqa: E402

STORED = "air_temperature"
CONTROL, WORK = 300_000, 1_000_000
PLAIN, MESH, FASTER = 1.06, 1.13, 50

# The result is made at eumetsat. Sites that have to meet at a third would send it over two links.
THROUGH_MESH = (
    shipped("weather-data-centres.yaml")
    .read_text()
    .replace("host: ecmwf, reach: open", "host: ecmwf")
    .replace("host: eumetsat,", "host: eumetsat, reach: open,")
)
DIRECTLY = THROUGH_MESH.replace("network: mesh", "network: tls")


# What lies at the sites


def noise(shape: FieldShape) -> Callable[[int], np.ndarray]:
    """Fields whose mean cannot be compressed either."""
    random = np.random.default_rng(2022)
    return lambda number: random.standard_normal((shape.latitudes, shape.longitudes), dtype="f4")


def real(file: str, name: str, shape: FieldShape) -> Callable[[int], np.ndarray]:
    """Fields of one month or year after another, interpolated to the grid; missing where the nearest is."""
    with xr.open_dataset(Path(iris_sample_data.path) / file, decode_times=False) as sample:
        stored = sample[name].values.astype("f8")
    north = np.linspace(0, stored.shape[1] - 1, shape.latitudes)
    east = np.linspace(0, stored.shape[2] - 1, shape.longitudes)

    def field(number: int) -> np.ndarray:
        coarse = stored[number % len(stored)]
        missing = np.isnan(coarse)
        filled = np.where(missing, np.nanmean(coarse), coarse)
        fine = _between(_between(filled, north).T, east).T
        fine[missing[np.ix_(np.rint(north).astype(int), np.rint(east).astype(int))]] = np.nan
        return fine.astype("f4")

    return field


def _between(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Interpolate rows linearly."""
    below = np.minimum(places.astype(int), len(values) - 2)
    share = (places - below)[:, np.newaxis]
    return values[below] * (1 - share) + values[below + 1] * share


FIELDS: dict[str, Callable[[FieldShape], Callable[[int], np.ndarray]]] = {
    "noise": noise,
    "air": lambda shape: real("A1B_north_america.nc", "air_temperature", shape),
    "sea": lambda shape: real("ostia_monthly.nc", "surface_temperature", shape),
}


def file_at(site: str, kind: str) -> str:
    """Path of a site's file; that of noise is where the catalogue has it."""
    name = {"ecmwf": "predictions", "eumetsat": "observations"}[site]
    return f"/srv/data/{site}/{name}{'' if kind == 'noise' else '-' + kind}.nc"


def lay_out(disk: Path, kind: str, shape: FieldShape, whole: bool) -> np.ndarray:
    """Write both files, whole or what is read of them; the difference, by NumPy."""
    field = FIELDS[kind](shape)
    paths = {site: disk / site / file_at(site, kind).removeprefix("/srv/") for site in ("ecmwf", "eumetsat")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    observed = field(REALIZATIONS * LEVELS)
    with netCDF4.Dataset(paths["eumetsat"], "w") as file:
        dimensions = _grid(file, shape)
        file.createVariable(STORED, "f4", dimensions, fill_value=False)[:] = observed
    total = np.zeros(observed.shape)
    with netCDF4.Dataset(paths["ecmwf"], "w") as file:
        dimensions = _grid(file, shape)
        file.createDimension("realization", REALIZATIONS)
        file.createDimension("height", LEVELS)
        # A chunk is a field, as in a GRIB message.
        variable = file.createVariable(
            STORED,
            "f4",
            ("realization", "height", *dimensions),
            chunksizes=(1, 1, *observed.shape),
            fill_value=False,
        )
        variable.set_var_chunk_cache(size=0)  # chunks are written whole, once
        for member in range(REALIZATIONS):
            for height in range(LEVELS) if whole else [HEIGHT]:
                values = field(member * LEVELS + height)
                variable[member, height] = values
                if height == HEIGHT:
                    total += values
    difference: np.ndarray = total / REALIZATIONS - observed
    return difference


def _grid(file: netCDF4.Dataset, shape: FieldShape) -> tuple[str, str]:
    for name, count, limit in (("latitude", shape.latitudes, 90), ("longitude", shape.longitudes, 180)):
        file.createDimension(name, count)
        file.createVariable(name, "f4", (name,))[:] = np.linspace(-limit, limit, count)
    return "latitude", "longitude"


# What is called at the sites. Hands get these functions whole.


def serve(address: str) -> int:
    """Serve the site's data by HTTP, ranges of files too, as long as the hand lives; the port."""
    from aiohttp import web

    ports: list[int] = []
    listening = threading.Event()

    async def forever() -> None:
        application = web.Application()
        application.router.add_static("/", "/srv/data")
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, address, 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        listening.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(forever()), daemon=True).start()
    listening.wait(30)
    return ports[0]


def pull(urls: list[str]) -> tuple[float, np.ndarray]:
    """Get whole files and calculate from them."""
    import aiohttp
    import fsspec

    web = fsspec.filesystem("http", client_kwargs={"timeout": aiohttp.ClientTimeout(None)})
    with tempfile.TemporaryDirectory(dir="/srv") as here:
        start = time.monotonic()
        paths = [os.path.join(here, url.rsplit("/", 1)[1]) for url in urls]
        for url, path in zip(urls, paths, strict=True):
            web.get_file(url, path)
        predictions, observations = (xr.open_dataset(path) for path in paths)
        with predictions, observations:
            difference = _difference(predictions, observations)
        return time.monotonic() - start, difference


def read_ranges(urls: list[str]) -> tuple[float, np.ndarray]:
    """Read of files what is needed, and calculate."""
    import fsspec

    web = fsspec.filesystem("http")
    start = time.monotonic()
    # What is read is asked for and little more: values are megabytes, and metadata kilobytes.
    predictions, observations = (
        xr.open_dataset(web.open(url, block_size=1 << 16), engine="h5netcdf") for url in urls
    )
    with predictions, observations:
        difference = _difference(predictions, observations)
    return time.monotonic() - start, difference


def _difference(predictions: xr.Dataset, observations: xr.Dataset) -> np.ndarray:
    # Without Dask xarray reads before it averages: the height is taken first.
    difference = predictions[STORED].isel(height=HEIGHT).mean("realization") - observations[STORED]
    values: np.ndarray = difference.values
    return values


def on_cluster() -> tuple[float, np.ndarray]:
    """Calculate as one would, from the catalogue."""
    start = time.monotonic()
    _, difference = at_sites.calculate()
    return time.monotonic() - start, difference


def on_cluster_by_path(paths: dict[str, str]) -> tuple[float, np.ndarray]:
    """Calculate from other files."""
    from intake_pools import load_from_catalog

    start = time.monotonic()
    predictions, observations = (load_from_catalog(path, data_centre=site) for site, path in paths.items())
    difference = (predictions.mean("realization").isel(height=HEIGHT) - observations).compute()
    return time.monotonic() - start, difference[STORED].values


def on_cluster_without_pins() -> tuple[float, str]:
    """Calculate without pins; what went wrong."""
    start = time.monotonic()
    with dask.config.set({"pools.propagate": False}):
        try:
            at_sites.calculate()
        except Exception as error:
            return time.monotonic() - start, type(error).__name__
    return time.monotonic() - start, ""


def configure(settings: dict[str, Any]) -> None:
    """Set settings of Dask."""
    dask.config.set(settings)


# What is measured


@dataclass(frozen=True)
class Traffic:
    """Bytes that the sites sent and received, and those within the client's site."""

    sent: dict[str, int]
    received: dict[str, int]
    within: int

    @classmethod
    def so_far(cls, network: Network) -> Traffic:
        sent = {host.name: host.sent() for host in network}
        return cls(sent, {host.name: host.received() for host in network}, network["client"].looped())

    def since(self, before: Traffic) -> Traffic:
        return Traffic(
            {name: number - before.sent[name] for name, number in self.sent.items()},
            {name: number - before.received[name] for name, number in self.received.items()},
            self.within - before.within,
        )

    @property
    def from_sites(self) -> int:
        """What left the sites that have data."""
        return self.sent["ecmwf"] + self.sent["eumetsat"]


@dataclass(frozen=True)
class Run:
    """One way, once."""

    seconds: float
    traffic: Traffic
    outcome: str


class Lab:
    """The network, and a client in it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.client: Hand = network["client"].hand()

    def measured(
        self, expected: np.ndarray | None, function: Callable[..., tuple[float, Any]], *args: Any
    ) -> Run:
        """Call a function at the client, which gives seconds, and values or what went wrong."""
        before = Traffic.so_far(self.network)
        seconds, found = self.client.call(function, *args)
        time.sleep(0.2)  # what is on its way gets there
        traffic = Traffic.so_far(self.network).since(before)
        if expected is None:
            return Run(seconds, traffic, found or "no error")
        np.testing.assert_allclose(found, expected, atol=1e-3)
        return Run(seconds, traffic, "right")

    def urls(self, kind: str) -> list[str]:
        """Addresses of both files; sites start to serve them."""
        made = []
        for name in ("ecmwf", "eumetsat"):
            host = self.network[name]
            port = host.usual_hand.call(serve, host.at.host)
            made.append(f"http://{name}:{port}/{file_at(name, kind).removeprefix('/srv/data/')}")
        return made

    @contextmanager
    def cluster(self, text: str, compression: str | bool | None = None) -> Iterator[float]:
        """Have a cluster, with a way to compress or the usual one; seconds until it was up."""
        usual = compression is None
        self.client.call(configure, {} if usual else {"pools.compression": compression})
        made = self.client.call(at_sites.up, "/tmp", text, 60.0)
        try:
            if made["failures"]:
                raise RuntimeError(f"Sites failed: {made['failures']}")
            yield made["seconds"]
        finally:
            self.client.call(at_sites.down)


class Verdict:
    """What was wanted, and what is not so."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def at_most(self, what: str, found: float, limit: float, unit: str) -> None:
        good = found <= limit
        print(f"{'  ' if good else '! '}{what}: {found:,.2f} {unit}, wanted at most {limit:,.2f}")
        if not good:
            self.missed.append(what)


def in_mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.2f}"


def compare_ways(lab: Lab, expected: np.ndarray, whole: bool) -> tuple[dict[str, Run], dict[str, float]]:
    """Go every way once; what came of it, and how long clusters took to come up."""
    runs: dict[str, Run] = {}
    up = {}
    urls = lab.urls("noise")
    if whole:
        runs["whole files"] = lab.measured(expected, pull, urls)
    runs["ranges of files"] = lab.measured(expected, read_ranges, urls)
    with lab.cluster(THROUGH_MESH) as up["mesh"]:
        runs["mesh, no pins"] = lab.measured(None, on_cluster_without_pins)
        runs["mesh"] = lab.measured(expected, on_cluster)
    with lab.cluster(DIRECTLY) as up["tls"]:
        runs["direct, TLS"] = lab.measured(expected, on_cluster)
    return runs, up


def show_ways(runs: dict[str, Run], up: dict[str, float], shape: FieldShape) -> None:
    table = Table(
        title=f"Forecast of {REALIZATIONS} x {LEVELS} x {shape.latitudes} x {shape.longitudes} float32, "
        f"{shape.nbytes / 1e6:,.1f} MB, that cannot be compressed"
    )
    for column in ("way", "s", "from ecmwf, MB", "from eumetsat, MB", "to client, MB", "result"):
        table.add_column(column, justify="left" if column in ("way", "result") else "right")
    for name, run in runs.items():
        sent, received = run.traffic.sent, run.traffic.received
        numbers = map(in_mb, (sent["ecmwf"], sent["eumetsat"], received["client"]))
        table.add_row(name, f"{run.seconds:.2f}", *numbers, run.outcome)
    Console(width=100).print(table)
    print("Clusters were up after " + ", ".join(f"{one:.1f} s ({name})" for name, one in up.items()) + ".")


def judge(runs: dict[str, Run], shape: FieldShape) -> list[str]:
    """Compare with what is wanted; what is not so."""
    verdict = Verdict()
    field = shape.latitudes * shape.longitudes * 4
    for way, factor in (("direct, TLS", PLAIN), ("mesh", MESH)):
        limit = factor * 2 * field + CONTROL
        verdict.at_most(f"{way}: sent by the sites", runs[way].traffic.from_sites / 1e6, limit / 1e6, "MB")
        # The result goes from scheduler to client, too, where the two do not share a process.
        told = runs[way].traffic.within - field
        verdict.at_most(f"{way}: between client and scheduler", told / 1e6, WORK / 1e6, "MB")
        print(f"  that is {runs[way].traffic.from_sites / (2 * field):.3f} x (slice + result)")
    if pulled := runs.get("whole files"):
        ratio = runs["mesh"].seconds / pulled.seconds
        print(f"  mesh: {1 / ratio:.0f} times faster than pulling the files")
        if shape.nbytes >= FULL_SIZE:
            verdict.at_most("mesh: of the time of pulling", ratio, 1 / FASTER, "")
    if runs["mesh, no pins"].outcome == "no error":
        verdict.missed.append("without pins it did not fail")
    return verdict.missed


def compare_compression(lab: Lab, expected: dict[str, np.ndarray], rounds: int) -> Table:
    """Calculate with each way to compress, through the mesh."""
    table = Table(title=f"Through the mesh, with what Dask sends compressed (median of {rounds})")
    for column in ("compression", "field", "s", "each", "from the sites, MB"):
        table.add_column(column, justify="left" if column in ("compression", "field") else "right")
    for compression in (False, "lz4", "zstd"):
        found: dict[str, list[Run]] = {kind: [] for kind in expected}
        with lab.cluster(THROUGH_MESH, compression):
            for _ in range(rounds):
                for kind, runs in found.items():
                    paths = {site: file_at(site, kind) for site in ("ecmwf", "eumetsat")}
                    runs.append(lab.measured(expected[kind], on_cluster_by_path, paths))
        for kind, runs in found.items():
            times = [run.seconds for run in runs]
            sent = statistics.median(run.traffic.from_sites for run in runs)
            table.add_row(
                compression or "none",
                kind,
                f"{statistics.median(times):.2f}",
                " ".join(f"{one:.2f}" for one in times),
                in_mb(int(sent)),
            )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=FULL_SIZE, help="of the forecast (2.9 GB)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way to compress (3)")
    parser.add_argument("--no-pull", action="store_true", help="do not pull the whole files")
    parser.add_argument("--only", choices=("ways", "compression"), help="make one of the tables")
    options = parser.parse_args()
    if why := missing():
        print(f"Not run: {why}", file=sys.stderr)
        return 1
    shape = FieldShape.of_size(options.size)
    kinds = {"ways": ["noise"], "compression": list(FIELDS), None: list(FIELDS)}[options.only]
    today = datetime.datetime.now(datetime.UTC).date()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{today}, {platform.machine()}, {cores} cores: {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    )
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="original-table-") as disk:
        whole = kinds[:1] if options.only != "compression" else []
        expected = {kind: lay_out(Path(disk), kind, shape, kind in whole) for kind in kinds}
        links = [SiteLink(name) for name in ("client", "ecmwf", "eumetsat")]
        with start_network(links, disk) as network:
            lab = Lab(network)
            if options.only != "compression":
                runs, up = compare_ways(lab, expected["noise"], not options.no_pull)
                show_ways(runs, up, shape)
                missed += judge(runs, shape)
            if options.only != "ways":
                Console(width=100).print(compare_compression(lab, expected, options.rounds))
    print(f"Not as wanted: {'; '.join(missed)}." if missed else "All as wanted.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
