"""Intake entries that are opened and read in the data centre that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_pools.lazy_names import lazily

if TYPE_CHECKING:
    from intake_pools.catalogues import load_from_catalog, open_catalog
    from intake_pools.forgetting import forget

__all__ = ["forget", "load_from_catalog", "open_catalog"]

# pydantic and the like take a tenth of a second to import; workers import this package, too.
__getattr__, __dir__ = lazily(
    __name__,
    {"forget": "forgetting", "load_from_catalog": "catalogues", "open_catalog": "catalogues"},
)
