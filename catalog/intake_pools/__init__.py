"""Intake entries that are opened and read in the data centre that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intake_pools.catalogues import load_from_catalog, open_catalog
    from intake_pools.locate import Location, locate

__all__ = ["Location", "load_from_catalog", "locate", "open_catalog"]

# Intake, pydantic and fsspec take a third of a second to import, which a script pays that only computes.
_HOMES = {
    "Location": "intake_pools.locate",
    "load_from_catalog": "intake_pools.catalogues",
    "locate": "intake_pools.locate",
    "open_catalog": "intake_pools.catalogues",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
