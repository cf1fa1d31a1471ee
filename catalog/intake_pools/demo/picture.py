"""The demo's maps. Knows matplotlib and arrays, and nothing of where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

__all__ = ["Map", "draw"]


@dataclass(frozen=True)
class Map:
    """One map to draw.

    Attributes
    ----------
    title : str
    values : xarray.DataArray
        Differences on ``latitude`` and ``longitude``, in `units`.
    units : str
    """

    title: str
    values: xr.DataArray
    units: str


def draw(maps: Sequence[Map], path: Path) -> None:
    """Write `maps` beside each other to `path`, as PNG or whatever its suffix says.

    Colours diverge from white at zero, over the 98 % of cells nearest to it.
    """
    # The Agg canvas draws without a display, whatever back end this user has chosen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6 * len(maps), 5.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        values = one.values.transpose("latitude", "longitude")
        # The sample data counts longitudes from 0 to 360.
        longitude = (values["longitude"].to_numpy() + 180) % 360 - 180
        # A map of equal values still needs a scale.
        limit = float(np.nanpercentile(np.abs(values), 98)) or 1.0
        mesh = axes.pcolormesh(
            longitude,
            values["latitude"].to_numpy(),
            values.to_numpy(),
            cmap="RdBu_r",
            norm=TwoSlopeNorm(0, -limit, limit),
            shading="nearest",
            rasterized=True,
        )
        axes.set_title(one.title, fontsize=11)
        axes.xaxis.set_major_formatter(lambda degrees, _: _compass(degrees, "E", "W"))
        axes.yaxis.set_major_formatter(lambda degrees, _: _compass(degrees, "N", "S"))
        axes.grid(color="0.5", linewidth=0.4, alpha=0.6)
        axes.tick_params(length=0, labelsize=9)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", extend="both", aspect=40, pad=0.03)
        bar.set_label(one.units)
        bar.outline.set_visible(False)
    figure.savefig(path)


def _compass(degrees: float, positive: str, negative: str) -> str:
    if degrees == 0:
        return "0°"
    return f"{abs(degrees):g}° {positive if degrees > 0 else negative}"
