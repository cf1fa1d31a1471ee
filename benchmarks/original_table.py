"""The calculation of 2022 on a network of three sites: what it takes, and what crosses each link.

A forecast of 18 x 33 x 960 x 1280 float32 (2.9 GB; `--size` makes it smaller) lies at ecmwf, observations to
compare it with at eumetsat, and the client at a third site. Each has one core, and a link of 100 Mbit/s, 10
ms from any other. Wanted is the forecast's mean over its realizations, at one height, less the observations:

- by pulling both files to the client, over HTTP, whole; and by reading only the ranges that are needed;
- on the cluster without pins (`pools.propagate: false`), which has to fail, as it did then;
- on the cluster with pins, through the mesh, and directly (`network: tls`).

Wanted, of data that cannot be compressed: that the two sites send at most 1.06 x (one averaged height slice
+ the result) on plain links and 1.13 x through the mesh, and 300 kB more; that it takes a fiftieth of the
time of pulling the whole file, at full size; and that client and scheduler tell each other at most 1 MB,
apart from the result. Bytes are those of the interfaces' counters, with headers; what ecmwf and eumetsat
tell each other against the data's direction, which confirms what has come, does not count. Medians of three.

Wanted is also that a cluster of two sites is up, with a worker at each, within 15 s.

A second table has the same through the mesh for each way to compress what Dask sends, on noise and on fields
of the Met Office that were interpolated to the grid: air temperature, and the temperature of the sea, which
is missing on land. Of these forecasts only the height that is wanted is written. What compressing saves is
measured apart from all else: four members of the forecast, which lie in the memory of a worker at ecmwf, go
to one at eumetsat. Wanted of the way that is the default: that it saves a tenth of the time where there is
something to save, which is the sea, and that nothing takes 5 % longer.

On the lab's network (`make bench-lab`, as root), in eight minutes. Needs 6 GB of disk for temporary files.
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
from distributed import wait
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / place) for place in ("lab", "")]

import at_sites  # noqa: E402
from hand import Hand  # noqa: E402
from network import Network, SiteLink, missing, start_network  # noqa: E402
from topology import one_core_each  # noqa: E402

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
UP, DEFAULT, SAVING, COSTING = 15.0, "zstd", 0.9, 1.05
MEMBERS = 4

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


def move(path: str) -> float:
    """Move members of a forecast, in memory, from a worker at ecmwf to one at eumetsat; seconds."""
    client = at_sites.kept["client"]

    def read() -> np.ndarray:
        with netCDF4.Dataset(path) as file:
            file.set_auto_mask(False)
            values: np.ndarray = file[STORED][:MEMBERS, HEIGHT]
            return values

    there, here = ({"resources": {f"pool-{pool}": 0}, "pure": False} for pool in ("ecmwf", "eumetsat"))
    members = client.submit(read, **there)
    wait(members)
    start = time.monotonic()
    client.submit(len, members, **here).result()
    return time.monotonic() - start


# What is measured


@dataclass(frozen=True)
class Traffic:
    """Bytes that the sites sent and received, between ecmwf and eumetsat, and within the client's site."""

    sent: dict[str, int]
    received: dict[str, int]
    between: tuple[int, int]
    within: int

    @classmethod
    def so_far(cls, network: Network) -> Traffic:
        ecmwf, eumetsat = network["ecmwf"], network["eumetsat"]
        return cls(
            {host.name: host.sent() for host in network},
            {host.name: host.received() for host in network},
            (ecmwf.sent_to(eumetsat), eumetsat.sent_to(ecmwf)),
            network["client"].looped(),
        )

    def since(self, before: Traffic) -> Traffic:
        return Traffic(
            {name: number - before.sent[name] for name, number in self.sent.items()},
            {name: number - before.received[name] for name, number in self.received.items()},
            (self.between[0] - before.between[0], self.between[1] - before.between[1]),
            self.within - before.within,
        )

    @property
    def from_sites(self) -> int:
        """What left the sites that have data, but for what the one told the other against the data's way."""
        return self.sent["ecmwf"] + self.sent["eumetsat"] - min(self.between)


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
        network["ecmwf"].count_sent_to(network["eumetsat"])
        network["eumetsat"].count_sent_to(network["ecmwf"])
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
        self.client.call(at_sites.configure, {} if usual else {"pools.compression": compression})
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


def in_mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.2f}"


Runs = dict[str, list[Run]]


def median(runs: list[Run], number: Callable[[Run], float]) -> float:
    return statistics.median(map(number, runs))


def compare_ways(lab: Lab, expected: np.ndarray, whole: bool, rounds: int) -> tuple[Runs, dict[str, float]]:
    """Go every way; what came of it, and how long clusters took to come up."""
    runs: Runs = {}
    up = {}
    urls = lab.urls("noise")
    if whole:
        runs["whole files"] = [lab.measured(expected, pull, urls)]
    runs["ranges of files"] = [lab.measured(expected, read_ranges, urls)]
    with lab.cluster(THROUGH_MESH) as up["mesh"]:
        runs["mesh, no pins"] = [lab.measured(None, on_cluster_without_pins)]
        runs["mesh"] = [lab.measured(expected, on_cluster) for _ in range(rounds)]
    with lab.cluster(DIRECTLY) as up["tls"]:
        runs["direct, TLS"] = [lab.measured(expected, on_cluster) for _ in range(rounds)]
    return runs, up


def show_ways(all_runs: Runs, up: dict[str, float], shape: FieldShape) -> None:
    table = Table(
        title=f"Forecast of {REALIZATIONS} x {LEVELS} x {shape.latitudes} x {shape.longitudes} float32, "
        f"{shape.nbytes / 1e6:,.1f} MB, that cannot be compressed; medians",
        caption="MB on the links",
    )
    for column in ("way", "s", "each", "from ecmwf", "from eumetsat", "to client", "result"):
        table.add_column(column, justify="left" if column in ("way", "result") else "right")
    for name, runs in all_runs.items():
        table.add_row(
            name,
            f"{median(runs, lambda run: run.seconds):.2f}",
            " ".join(f"{run.seconds:.2f}" for run in runs) if len(runs) > 1 else "",
            in_mb(median(runs, lambda run: run.traffic.sent["ecmwf"])),
            in_mb(median(runs, lambda run: run.traffic.sent["eumetsat"])),
            in_mb(median(runs, lambda run: run.traffic.received["client"])),
            runs[0].outcome,
        )
    Console(width=110).print(table)
    print("Clusters were up after " + ", ".join(f"{one:.1f} s ({name})" for name, one in up.items()) + ".")


def judge(runs: Runs, up: dict[str, float], shape: FieldShape) -> list[str]:
    """Compare with what is wanted; what is not so."""
    verdict = Verdict()
    field = shape.latitudes * shape.longitudes * 4
    for way, factor in (("direct, TLS", PLAIN), ("mesh", MESH)):
        sent = median(runs[way], lambda run: run.traffic.from_sites)
        limit = factor * 2 * field + CONTROL
        verdict.at_most(f"{way}: sent by the sites, in the data's direction", sent / 1e6, limit / 1e6, "MB")
        print(f"  that is {sent / (2 * field):.3f} x (slice + result)")
        # The result goes from scheduler to client, too.
        told = max(run.traffic.within for run in runs[way]) - field
        verdict.at_most(f"{way}: between client and scheduler", told / 1e6, WORK / 1e6, "MB")
    if pulled := runs.get("whole files"):
        faster = pulled[0].seconds / median(runs["mesh"], lambda run: run.seconds)
        slow = shape.nbytes >= FULL_SIZE and faster < FASTER
        if slow:
            verdict.missed.append("mesh: time")
        print(
            f"{'! ' if slow else '  '}mesh: {faster:.0f} times faster than pulling the files, wanted at full "
            f"size at least {FASTER}"
        )
    failed = runs["mesh, no pins"][0].outcome
    print(f"{'! ' if failed == 'no error' else '  '}without pins: {failed}, wanted an error")
    if failed == "no error":
        verdict.missed.append("without pins it did not fail")
    for way, seconds in up.items():
        verdict.at_most(f"up, {way}", seconds, UP, "s")
    return verdict.missed


Moved = dict[tuple[str, str], list[float]]


def compare_compression(lab: Lab, expected: dict[str, np.ndarray], rounds: int) -> tuple[Table, Moved]:
    """Calculate with each way to compress, through the mesh; seconds that moving takes, by way and field."""
    table = Table(
        title=f"Through the mesh, with what Dask sends compressed (median of {rounds}), and {MEMBERS} "
        f"members moved (median of {2 * rounds})"
    )
    for column in ("compression", "field", "s", "each", "from the sites, MB", "moved, s", ""):
        table.add_column(column, justify="left" if column in ("compression", "field") else "right")
    all_moved: Moved = {}
    for compression in (False, "lz4", "zstd"):
        found: dict[str, list[Run]] = {kind: [] for kind in expected}
        moved: dict[str, list[float]] = {kind: [] for kind in expected}
        with lab.cluster(THROUGH_MESH, compression):
            for _ in range(rounds):
                for kind, runs in found.items():
                    paths = {site: file_at(site, kind) for site in ("ecmwf", "eumetsat")}
                    runs.append(lab.measured(expected[kind], on_cluster_by_path, paths))
                    moved[kind] += [lab.client.call(move, paths["ecmwf"]) for _ in range(2)]
        for kind, runs in found.items():
            all_moved[compression or "none", kind] = moved[kind]
            table.add_row(
                compression or "none",
                kind,
                f"{median(runs, lambda run: run.seconds):.2f}",
                " ".join(f"{run.seconds:.2f}" for run in runs),
                in_mb(median(runs, lambda run: run.traffic.from_sites)),
                f"{statistics.median(moved[kind]):.2f}",
                f"{min(moved[kind]):.2f} to {max(moved[kind]):.2f}",
            )
    return table, all_moved


def judge_compression(moved: Moved) -> list[str]:
    """Tell what each way to compress saves, and compare the default with what is wanted; what is not so."""
    verdict = Verdict()
    seconds = {key: statistics.median(found) for key, found in moved.items()}
    for (way, kind), found in seconds.items():
        plain = seconds["none", kind]
        if way == DEFAULT:
            limit = SAVING if kind == "sea" else COSTING
            verdict.at_most(f"{way}, {kind}: of the time without", found / plain, limit, "x")
        if way != "none":
            print(f"  {way}, {kind}: saves {plain - found:.2f} s of {plain:.2f}")
    return verdict.missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=FULL_SIZE, help="of the forecast (2.9 GB)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way on a cluster (3)")
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
        links = one_core_each(map(SiteLink, ("client", "ecmwf", "eumetsat")), sorted(os.sched_getaffinity(0)))
        with start_network(links, disk) as network:
            lab = Lab(network)
            if options.only != "compression":
                runs, up = compare_ways(lab, expected["noise"], not options.no_pull, options.rounds)
                show_ways(runs, up, shape)
                missed += judge(runs, up, shape)
            if options.only != "ways":
                table, moved = compare_compression(lab, expected, options.rounds)
                Console(width=110).print(table)
                missed += judge_compression(moved)
    print(f"Not as wanted: {'; '.join(missed)}." if missed else "All as wanted.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
