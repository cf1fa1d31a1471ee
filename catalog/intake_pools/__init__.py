"""Intake entries that are opened and read in the data centre that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intake_pools.catalogues import load_from_catalog, open_catalog

__all__ = ["load_from_catalog", "open_catalog"]


def __getattr__(name: str) -> Any:
    # pydantic and the like take a tenth of a second to import; workers import this package, too.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from intake_pools import catalogues

    return getattr(catalogues, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
