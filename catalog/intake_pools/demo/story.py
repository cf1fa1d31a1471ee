"""What the demo does, in order, and what it prints.

`forecast_difference` and `scenario_difference` are what a scientist would write; all else is there to set the
stage and to check.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import distributed
import intake
import numpy as np
import xarray as xr
from dask.utils import format_bytes, parse_bytes
from distributed import Client
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dask_pools.cluster import LocalPools
from dask_pools.errors import MisplacedTaskError
from dask_pools.traffic import measure_traffic
from intake_pools.demo.isolation import Isolation, find_isolation, start_pools
from intake_pools.demo.picture import Map, draw
from intake_pools.demo.sites import (
    FULL_SIZE,
    HEIGHT,
    PERIOD,
    SMALLEST_SIZE,
    FieldShape,
    Sites,
    directories_below,
    lay_out,
)
from intake_pools.shipped import shipped

__all__ = ["DemoError", "run"]

UNITS = "difference of air temperature / K"
# Temperatures near 300 K in single precision: 18 of them add up to rounding errors of some 1e-4 K.
TOLERANCE = 2e-3
# Seconds after which an idle worker goes at the end, and in which all should have gone.
IDLE, ALL_GONE = 1, 60


class DemoError(Exception):
    """The demo cannot run, or did not find what it should have; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What came of one way to calculate.

    Attributes
    ----------
    way, result : str
        For people.
    seconds : float or None
        None if it was not run.
    left : dict of str to int
        Bytes that left each pool.
    """

    way: str
    result: str
    seconds: float | None
    left: dict[str, int]


def forecast_difference(cat: Any) -> xr.DataArray:
    """Mean of the forecast less the observations, at one height."""
    difference = (
        cat.predictions.to_dask().mean("realization").isel(height=HEIGHT) - cat.observations.to_dask()
    )
    values: xr.DataArray = difference["air_temperature"]
    return values


def scenario_difference(cat: Any) -> xr.DataArray:
    """How much warmer the end of the century is in scenario A1B than in E1."""
    period = slice(*PERIOD)
    a1b: xr.DataArray = cat.a1b.to_dask()["air_temperature"]
    e1: xr.DataArray = cat.e1.to_dask()["air_temperature"]
    return a1b.sel(time=period).mean("time") - e1.sel(time=period).mean("time")


def run(
    size: str,
    output: Path,
    keep: Path | None,
    console: Console | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run the demo.

    Parameters
    ----------
    size : str
        Bytes of the generated forecast, such as ``"200 MB"``, or ``"full"``.
    output : pathlib.Path
        Where to write the maps.
    keep : pathlib.Path or None
        Directory to lay the sites out in and leave; None for a temporary one.
    console : rich.console.Console, optional
        Where to print.
    check : callable, optional
        Called between any two steps; may raise to end it.

    Raises
    ------
    DemoError
        If `size` or `output` are no good, something is missing, or a result differs from NumPy's.
    """
    console = console or Console(soft_wrap=True, markup=False, highlight=False)
    shape = _grid(size)
    samples = _samples()  # before what needs matplotlib
    _check_writable(output)
    with _directory(keep) as root:
        _prepare(root, shape, samples, console)
        sites = Sites(directories_below(root))
        isolation = find_isolation()
        with start_pools(sites.directories, isolation) as cluster:
            console.print(f"Started {cluster}\nIsolation: {isolation.value}.")
            # One worker is soon there on a small machine, and enough.
            cluster.adapt(maximum=1)
            with cluster.get_client() as client:
                cat = _open(cluster, console)
                outcomes, maps = _calculate(client, cat, sites, isolation, console, check)
                _wait_until_all_have_gone(cluster, console, check)
        check()
        console.print()
        console.print(_table(outcomes, sites))
    draw(maps, output)
    console.print(f"\nMaps of both differences: {output.resolve()}")
    if keep is not None:
        for name in ("demo.yaml", "data-centres.yaml"):
            shutil.copyfile(shipped(name), keep / name)
        console.print(f"The sites' files and their catalogue: {keep.resolve()}")


def _grid(size: str) -> FieldShape:
    try:
        nbytes = FULL_SIZE if size.strip().lower() == "full" else parse_bytes(size)
    except ValueError:
        nbytes = -1
    if not SMALLEST_SIZE <= nbytes <= FULL_SIZE:
        raise DemoError(
            f"--size {size!r} is not between 1 MB and {FULL_SIZE / 1e9:.2f} GB. Write a number and a unit, "
            "such as --size '500 MB', or --size full."
        )
    return FieldShape.of_size(nbytes)


def _samples() -> Path:
    if missing := [name for name in ("iris_sample_data", "matplotlib") if find_spec(name) is None]:
        raise DemoError(f"The demo needs {' and '.join(missing)}. Type: pip install 'intake-pools[demo]'")
    import iris_sample_data

    return Path(iris_sample_data.path)


def _check_writable(output: Path) -> None:
    """Refuse an `output` now and not when all the work is done."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if output.suffix.removeprefix(".").lower() not in formats:
        raise DemoError(
            f"--output {output} needs a suffix such as .png; these are known: {', '.join(formats)}."
        )
    existed = output.exists()
    try:
        with output.open("ab"):
            pass
    except OSError as error:
        raise DemoError(
            f"--output {output} cannot be written: {error.strerror}. Name a file in a directory "
            "that exists and that you may write to."
        ) from error
    if not existed:
        output.unlink()


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="intake-pools-demo-") as root:
            yield Path(root)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--keep {keep} cannot be made a directory: {error.strerror}.") from error
    yield keep.resolve()


def _prepare(root: Path, shape: FieldShape, samples: Path, console: Console) -> None:
    free = shutil.disk_usage(root).free
    if free < shape.nbytes * 1.05:
        raise DemoError(
            f"{root} has {format_bytes(free)} left, and the forecast takes {format_bytes(shape.nbytes)}. "
            "Choose a smaller --size, or another disk with --keep DIRECTORY."
        )
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("Laying out two sites", total=1.0)
            for what, fraction in lay_out(root, shape, samples):
                progress.update(task, description=f"Writing {what}", completed=fraction)
    except OSError as error:
        raise DemoError(
            f"The sites' files cannot be written below {root}: {error.strerror or error}."
        ) from error
    for name, directory in directories_below(root).items():
        files = ", ".join(
            f"{path.name} ({format_bytes(path.stat().st_size)})" for path in sorted(directory.glob("*.nc"))
        )
        console.print(f"Site {name}: {files}")


def _open(cluster: LocalPools, console: Console) -> Any:
    """Open the catalogue and its entries, which brings up their pools."""
    cat = intake.open_catalog(str(shipped("demo.yaml")))
    names = ("predictions", "observations", "a1b", "e1")
    for name in names:
        console.print(f"cat.{name}.data_centre: {cat[name].data_centre}")
    start = time.perf_counter()
    for name in names:
        cat[name].to_dask()
    seconds = time.perf_counter() - start
    console.print(f"\nOpening them has brought up their pools, after {seconds:.1f} s.\n{cluster}")
    return cat


def _wait_until_all_have_gone(cluster: LocalPools, console: Console, check: Callable[[], None]) -> None:
    """Let the pools go, which have nothing left to do."""
    cluster.adapt(maximum=1, idle=IDLE)
    gc.collect()  # what failed may still hold results
    start = time.perf_counter()
    while any(cluster.pools.values()):
        check()
        if time.perf_counter() - start > ALL_GONE:
            raise DemoError(
                f"Workers are left although there is nothing to do: {cluster}. This is a mistake in "
                "intake-pools: please report it."
            )
        time.sleep(0.1)
    console.print(f"\nWith nothing left to do, the pools have gone.\n{cluster}")


def _calculate(
    client: Client,
    cat: Any,
    sites: Sites,
    isolation: Isolation,
    console: Console,
    check: Callable[[], None],
) -> tuple[list[Outcome], list[Map]]:
    outcomes = []
    check()
    if isolation.is_real:
        console.print(
            "\nxarray and Dask alone: tasks go wherever a worker is idle, and the file is not there."
        )
        stock = partial(_stock_difference, sites)
        outcomes.append(_fail(client, "xarray and Dask alone", stock, FileNotFoundError, console))
    check()
    console.print("\nThe catalogue, with pins switched off: a task in the wrong place is noticed.")
    forecast = partial(forecast_difference, cat)
    outcomes.append(_fail(client, "without pins", forecast, MisplacedTaskError, console))

    check()
    console.print("\nThe forecast's mean less the observations, with pins.")
    expected = sites.expected_forecast_difference
    outcome, forecast_map = _succeed(client, "with pins", forecast, expected, console)
    outcomes.append(outcome)
    check()
    console.print("\nScenario A1B less E1, with pins.")
    scenarios = partial(scenario_difference, cat)
    expected = sites.expected_scenario_difference
    outcome, scenario_map = _succeed(client, "A1B − E1 with pins", scenarios, expected, console)
    outcomes.append(outcome)

    outcomes.append(Outcome("copying all files", "not run", None, sites.stored))
    return outcomes, [
        Map("Forecast less observations", forecast_map, UNITS),
        Map(f"Scenario A1B less E1, {PERIOD[0]}–{PERIOD[1]}", scenario_map, UNITS),
    ]


def _stock_difference(sites: Sites) -> xr.DataArray:
    """`forecast_difference` without this project: this process can see both files, most workers cannot."""
    predictions, observations = (
        xr.open_dataset(sites.directories[site] / name, chunks={})["air_temperature"]
        for site, name in (("ecmwf", "predictions.nc"), ("eumetsat", "observations.nc"))
    )
    return predictions.mean("realization").isel(height=HEIGHT) - observations


def _fail(
    client: Client,
    way: str,
    build: Callable[[], xr.DataArray],
    expected: type[Exception],
    console: Console,
) -> Outcome:
    """Compute with pins switched off; that it fails is what is to be shown."""
    difference = build()
    start = time.perf_counter()
    with measure_traffic(client) as measured, dask.config.set({"pools.propagate": False}):
        try:
            difference.compute()
        except expected as error:
            result = type(error).__name__
            console.print(f"{result}: {error}")
        else:
            result = "in place by luck"
            console.print("This time every task happened to be in the right place.")
    return Outcome(way, result, time.perf_counter() - start, measured.traffic.left)


def _succeed(
    client: Client,
    way: str,
    build: Callable[[], xr.DataArray],
    expected: np.ndarray[Any, Any],
    console: Console,
) -> tuple[Outcome, xr.DataArray]:
    """Open and compute with pins, and compare with what NumPy makes of the whole data."""
    start = time.perf_counter()
    with measure_traffic(client) as measured:
        running = build().persist()
        if console.is_terminal:
            distributed.progress(running, notebook=False)
            console.print()
        values = running.compute()
    seconds = time.perf_counter() - start
    console.print(str(measured))
    error = float(np.abs(values.to_numpy() - expected).max())
    if not error <= TOLERANCE:  # also if it is not a number
        raise DemoError(
            f"The result {way} differs from NumPy's by up to {error} K. This is a mistake in intake-pools: "
            "please report it."
        )
    return Outcome(way, f"NumPy's ± {error:.0e} K", seconds, measured.traffic.left), values


def _table(outcomes: list[Outcome], sites: Sites) -> Table:
    table = Table(
        title="What each way took, and what left each pool",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,  # fits into 80 columns
    )
    table.add_column("way", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for name in sites.directories:
        table.add_column(f"left\n{name}", justify="right", no_wrap=True)
    for outcome in outcomes:
        table.add_row(
            outcome.way,
            outcome.result,
            "–" if outcome.seconds is None else f"{outcome.seconds:.2f}",
            *(format_bytes(outcome.left.get(name, 0)) for name in sites.directories),
        )
    return table
