"""Intake entries that are opened and read in the data centre that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intake_pools.catalogues import load_from_catalog, open_catalog
    from intake_pools.forgetting import forget

__all__ = ["forget", "load_from_catalog", "open_catalog"]

_ROOM = {"forget": "forgetting", "load_from_catalog": "catalogues", "open_catalog": "catalogues"}


def __getattr__(name: str) -> Any:
    # pydantic and the like take a tenth of a second to import; workers import this package, too.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"intake_pools.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
