"""The data of the demo's two sites, as files, and what NumPy makes of the whole of it.

Knows files and numbers only: no Dask, no pools, no catalogue.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import netCDF4
import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL_SIZE", "HEIGHT", "PERIOD", "SMALLEST_SIZE", "FieldShape", "Sites", "lay_out"]

Field: TypeAlias = NDArray[np.float32]

REALIZATIONS = 18
LEVELS = 33
LEVELS_PER_CHUNK = 11
HEIGHT = 10
"""Index of the height at which forecast and observations are compared."""
PERIOD = ("2070", "2099")
"""First and last year over which the scenarios are averaged: the last thirty of them."""

FULL_SIZE = REALIZATIONS * LEVELS * 960 * 1280 * 4
"""Bytes of a forecast on the original's grid."""
SMALLEST_SIZE = 1_000_000

_VARIABLE = "air_temperature"


@dataclass(frozen=True)
class FieldShape:
    """Grid of the generated pair.

    Attributes
    ----------
    latitudes, longitudes : int
    """

    latitudes: int
    longitudes: int

    @classmethod
    def of_size(cls, nbytes: int) -> FieldShape:
        """Grid, three latitudes to four longitudes, on which a forecast takes about `nbytes` bytes."""
        cells = nbytes / (4 * REALIZATIONS * LEVELS)
        latitudes = max(2, round(math.sqrt(cells * 3 / 4)))
        return cls(latitudes, round(latitudes * 4 / 3))

    @property
    def nbytes(self) -> int:
        """Bytes of the forecast."""
        return 4 * REALIZATIONS * LEVELS * self.latitudes * self.longitudes


@dataclass(frozen=True)
class Sites:
    """Two sites, each a directory with its own data.

    Attributes
    ----------
    directories : dict of str to pathlib.Path
        By data centre. ``predictions.nc`` and ``A1B_north_america.nc`` are at the first only,
        ``observations.nc`` and ``E1_north_america.nc`` at the second only.
    """

    directories: dict[str, Path]

    @property
    def stored(self) -> dict[str, int]:
        """Bytes of files at each site: what copying everything to one place would move."""
        return {
            name: sum(path.stat().st_size for path in directory.glob("*.nc"))
            for name, directory in self.directories.items()
        }

    @cached_property
    def expected_forecast_difference(self) -> Field:
        """Mean of the forecast less the observations at `HEIGHT`, by NumPy from the whole of both files."""
        with (
            netCDF4.Dataset(self.directories["ecmwf"] / "predictions.nc") as predictions,
            netCDF4.Dataset(self.directories["eumetsat"] / "observations.nc") as observations,
        ):
            # One member at a time, so that the full size fits beside the workers; in double precision, so
            # that what differs is their rounding.
            total = np.zeros(predictions[_VARIABLE].shape[1:])
            for member in range(REALIZATIONS):
                total += predictions[_VARIABLE][member].data
            mean = total / REALIZATIONS
            return np.asarray(mean[HEIGHT] - observations[_VARIABLE][:].data, dtype="f4")

    @cached_property
    def expected_scenario_difference(self) -> Field:
        """Mean of A1B less that of E1 over `PERIOD`, by NumPy from the whole of both files."""
        means = []
        for site, name in (("ecmwf", "A1B"), ("eumetsat", "E1")):
            with netCDF4.Dataset(self.directories[site] / f"{name}_north_america.nc") as scenario:
                time = scenario["time"]
                dates = np.asarray(netCDF4.num2date(time[:].data, time.units, time.calendar))
                years = np.array([date.year for date in dates])
                inside = (years >= int(PERIOD[0])) & (years <= int(PERIOD[1]))
                means.append(scenario[_VARIABLE][:].data.astype("f8")[inside].mean(axis=0))
        return np.asarray(means[0] - means[1], dtype="f4")


def lay_out(root: Path, shape: FieldShape, samples: Path) -> Iterator[tuple[str, float]]:
    """Write both sites' files below `root`, in a directory for each.

    Parameters
    ----------
    root : pathlib.Path
        Existing directory.
    shape : FieldShape
        Grid of the generated pair.
    samples : pathlib.Path
        Directory that has the Met Office's scenarios, ``A1B_north_america.nc`` and ``E1_north_america.nc``.

    Yields
    ------
    what : str
        File being written.
    fraction : float
        How much of all has been written.
    """
    directories = directories_below(root)
    for directory in directories.values():
        directory.mkdir(exist_ok=True)
    shutil.copyfile(samples / "A1B_north_america.nc", directories["ecmwf"] / "A1B_north_america.nc")
    shutil.copyfile(samples / "E1_north_america.nc", directories["eumetsat"] / "E1_north_america.nc")
    weather = _Weather(shape)
    _write_observations(directories["eumetsat"] / "observations.nc", weather)
    for member in _write_predictions(directories["ecmwf"] / "predictions.nc", weather):
        yield "predictions.nc", (member + 1) / REALIZATIONS


def directories_below(root: Path) -> dict[str, Path]:
    """Directory of each site, by data centre."""
    return {name: root / name for name in ("ecmwf", "eumetsat")}


class _Weather:
    """Made-up temperatures that look like weather: warm tropics, waves along the latitudes, cold above."""

    def __init__(self, shape: FieldShape) -> None:
        self.shape = shape
        self.latitude = np.linspace(-90, 90, shape.latitudes, dtype="f4")
        self.longitude = np.linspace(-180, 180, shape.longitudes, endpoint=False, dtype="f4")
        self.height = np.linspace(0, 16_000, LEVELS, dtype="f4")
        self._random = np.random.default_rng(18_33)
        climate = 252 + 50 * np.cos(np.radians(self.latitude)) ** 2
        self._truth = (climate[:, np.newaxis] + self._waves(18, 6.0)).astype("f4")

    def _waves(self, count: int, amplitude: float) -> NDArray[np.float64]:
        latitude = np.radians(self.latitude)[:, np.newaxis]
        longitude = np.radians(self.longitude)[np.newaxis, :]
        field = np.zeros((self.shape.latitudes, self.shape.longitudes))
        for _ in range(count):
            north, east = self._random.integers(1, 9, size=2)
            first, second = self._random.uniform(0, 2 * np.pi, size=2)
            field += np.sin(north * latitude + first) * np.sin(east * longitude + second)
        return amplitude * field * np.cos(latitude) / math.sqrt(count)

    def _at(self, surface: Field, levels: slice) -> Field:
        cooling = np.minimum(self.height[levels], 11_000) * np.float32(0.0065)
        return np.asarray(surface - cooling[:, np.newaxis, np.newaxis], dtype="f4")

    def observed(self) -> Field:
        """Temperatures at `HEIGHT`; shape (latitudes, longitudes), K."""
        field: Field = self._at(self._truth, slice(HEIGHT, HEIGHT + 1))[0]
        return field

    def members(self) -> Iterator[Field]:
        """Forecasts of each realization near the surface, each of them wrong in its own way."""
        bias = self._waves(8, 1.5)
        for _ in range(REALIZATIONS):
            yield (self._truth + bias + self._waves(8, 2.0)).astype("f4")

    def at_heights(self, surface: Field) -> Iterator[tuple[slice, Field]]:
        """One stored chunk of a realization after another; shape (heights, latitudes, longitudes), K."""
        for start in range(0, LEVELS, LEVELS_PER_CHUNK):
            levels = slice(start, start + LEVELS_PER_CHUNK)
            yield levels, self._at(surface, levels)

    def describe(self, file: netCDF4.Dataset) -> None:
        """Write dimensions and coordinates."""
        for name, values, units in (
            ("latitude", self.latitude, "degrees_north"),
            ("longitude", self.longitude, "degrees_east"),
        ):
            file.createDimension(name, len(values))
            coordinate = file.createVariable(name, "f4", (name,))
            coordinate.setncatts({"standard_name": name, "units": units})
            coordinate[:] = values


_ATTRIBUTES = {"standard_name": _VARIABLE, "long_name": "air temperature", "units": "K"}


def _write_observations(path: Path, weather: _Weather) -> None:
    with netCDF4.Dataset(path, "w") as file:
        weather.describe(file)
        variable = file.createVariable(_VARIABLE, "f4", ("latitude", "longitude"), fill_value=False)
        variable.setncatts(_ATTRIBUTES)
        variable[:] = weather.observed()


def _write_predictions(path: Path, weather: _Weather) -> Iterator[int]:
    with netCDF4.Dataset(path, "w") as file:
        weather.describe(file)
        file.createDimension("realization", REALIZATIONS)
        file.createDimension("height", LEVELS)
        realization = file.createVariable("realization", "i4", ("realization",))
        realization.standard_name = "realization"
        realization[:] = np.arange(REALIZATIONS)
        height = file.createVariable("height", "f4", ("height",))
        height.setncatts({"standard_name": "height", "units": "m", "positive": "up"})
        height[:] = weather.height
        variable = file.createVariable(
            _VARIABLE,
            "f4",
            ("realization", "height", "latitude", "longitude"),
            # At full size 54 MB: a third of the heights of one member, read as one by Dask.
            chunksizes=(1, LEVELS_PER_CHUNK, weather.shape.latitudes, weather.shape.longitudes),
            fill_value=False,
        )
        variable.setncatts(_ATTRIBUTES)
        # Chunks are written whole, once: netCDF's cache of them would only take memory.
        variable.set_var_chunk_cache(size=0)
        for member, surface in enumerate(weather.members()):
            for levels, values in weather.at_heights(surface):
                variable[member, levels] = values
            yield member
