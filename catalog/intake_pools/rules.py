"""Which rules a catalogue goes by: those that it was given, those that it names, or the default ones."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask_pools import data_centres as rules
from dask_pools.errors import EntryError
from intake_pools.locate import rules_of
from intake_pools.urls import public_url

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["data_centres_of", "directory_of", "named_rules"]


def directory_of(path: str) -> str:
    """Directory of a catalogue's file, as Intake has it: with a slash at the end of a path, not of a URL."""
    if "://" in path:
        return path.rpartition("/")[0]
    return posixpath.dirname(os.path.abspath(path)).rstrip("/") + "/"


def named_rules(metadata: Mapping[str, Any], directory: str, path: str) -> DataCentres | None:
    """Read the data-centres file that a catalogue names in its metadata, if it names one.

    Raises
    ------
    EntryError, DataCentresError
        If it is no path, or missing, or wrong.
    """
    named = metadata.get("data_centres_file")
    if named is None:
        return None
    if not isinstance(named, str):
        raise EntryError(f"data_centres_file in the metadata of {public_url(path)} is {named!r}, not a path.")
    if "://" not in named and not os.path.isabs(named):
        named = f"{directory.rstrip('/')}/{named}"
    # Its own text, so no business of the environment's.
    return rules.read(named, environment={})


def data_centres_of(catalogue: Any) -> DataCentres | None:
    """Rules that a catalogue, or one that it is nested in, was given or names itself; else the default ones.

    Parameters
    ----------
    catalogue : intake.Catalog or None

    Raises
    ------
    DataCentresError
        If its data-centres file is missing or wrong.
    """
    seen: list[Any] = []
    while catalogue is not None and not any(catalogue is one for one in seen):
        seen.append(catalogue)
        if (own := getattr(type(catalogue), "known_data_centres", None)) is not None:
            known: DataCentres | None = own(catalogue)
            return known
        metadata = getattr(catalogue, "metadata", None) or {}
        if (named := metadata.get("data_centres_file")) is not None:
            if not isinstance(named, str):
                raise EntryError(
                    f"data_centres_file in the metadata of {catalogue.name} is {named!r}, not a path."
                )
            # Its own text, so no business of the environment's.
            return rules_of(rules.read(_beside(catalogue, named), environment={}))
        catalogue = getattr(catalogue, "cat", None)
    return rules.default()


def _beside(catalogue: Any, named: str) -> str:
    """Path or URL of a file that a catalogue names relative to itself."""
    own = getattr(catalogue, "path", None)
    if not isinstance(own, str) or "://" in named or os.path.isabs(named):
        return named
    return (
        posixpath.normpath(posixpath.join(posixpath.dirname(own), named))
        if "://" not in own
        else (f"{own.rpartition('/')[0]}/{named}")
    )
