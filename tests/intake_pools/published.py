"""Catalogues and files as their owners published them, which are read and not part of this project."""

import os
from pathlib import Path

import pytest

PUBLISHED = Path(
    os.environ.get("PUBLISHED_CATALOGUES", Path(__file__).parents[3] / "shared" / "real-catalogues")
)
"""Directory with ``intake-catalogs`` of github.com/pangeo-data/pangeo-datastore as ``pangeo-datastore``, and
github.com/pangeo-data/swot_adac_ogcms as ``swot-adac``. Neither states a licence: no copies here."""

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason=f"no published catalogues in {PUBLISHED} (set PUBLISHED_CATALOGUES)"
)

FILES = Path(os.environ.get("PUBLISHED_FILES", PUBLISHED.parent / "real-data"))
"""Directory with ``eraint_uvz.nc`` and ``basin_mask.nc`` of github.com/pydata/xarray-data; may be missing."""
