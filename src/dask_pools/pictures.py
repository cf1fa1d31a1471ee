"""What all pictures of pools have in common: colours, and how a picture is saved and shown in a notebook.

Drawn with matplotlib, which works after a plain ``pip install``. Dask's own pictures need the program `dot`
of Graphviz, which pip cannot install, and which knows nothing of bands that belong to a pool.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_pools.placement.plan import ANYWHERE
from dask_pools.traffic import NO_POOL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")

CROSSING = "#D55E00"
"""What goes from pool to pool; no pool has this colour."""

INK = "#222222"
FAINT = "#8A8A8A"

# Colours that colour-blind people can tell apart (M. Okabe, K. Ito, Color Universal Design, 2008), without
# the vermilion of crossings, and tints of them for what lies beneath text.
_POOLS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A5ACD", "#8C6D31")


class Picture:
    """A picture, shown by itself at the end of a notebook's cell.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def save(self, filename: str | os.PathLike[str]) -> Path:
        """Write the picture as ``.svg``, ``.png`` or ``.pdf``, by the ending of `filename`.

        Raises
        ------
        ValueError
            If the ending is another one.
        """
        path = check_filename(filename)
        path.write_bytes(self._as(path.suffix[1:].lower()))
        return path

    def _as(self, kind: str) -> bytes:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        written = io.BytesIO()
        # Text stays text, to be searched and read aloud; no date, so that equal pictures are equal files.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dask-pools", "pdf.fonttype": 42}):
            metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
            FigureCanvasAgg(self.figure).print_figure(written, format=kind, metadata=metadata, dpi=150)
        return written.getvalue()

    def _repr_svg_(self) -> str:
        return self._as("svg").decode()

    def _repr_png_(self) -> bytes:
        return self._as("png")


def check_filename(filename: str | os.PathLike[str]) -> Path:
    """Return `filename` as a path, if it has the ending of a picture.

    Raises
    ------
    ValueError
        If not.
    """
    path = Path(filename)
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"{str(path)!r} cannot be a picture: its name has to end in .svg, .png or .pdf.")
    return path


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches.

    Raises
    ------
    ImportError
        If matplotlib is missing: what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Pictures need matplotlib: pip install 'intake-pools[pictures]'") from None
    # Not by pyplot: that would keep every figure, and need a display where one is configured.
    return Figure(figsize=(width, height), facecolor="white")


def colours_of(pools: Iterable[str]) -> dict[str, str]:
    """Colour for each pool; the same for the same pools."""
    named = sorted(set(pools) - {ANYWHERE, NO_POOL})
    colours = {pool: _POOLS[n % len(_POOLS)] for n, pool in enumerate(named)}
    return colours | {ANYWHERE: FAINT, NO_POOL: FAINT}


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """`colour` on white; 1 is the colour itself, 0 is white."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (1 - strength * (1 - part) for part in parts)
    return red, green, blue
