"""Catalogues and single paths: what a scientist opens."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask_pools import data_centres as rules
from dask_pools.errors import EntryError

if TYPE_CHECKING:
    import xarray as xr

    from dask_pools.data_centres import DataCentres

__all__ = ["data_centres_of", "load_from_catalog", "open_catalog"]

# Where a catalogue keeps the data centres that open_catalog was given. Not a dictionary by catalogue:
# Intake's catalogues of one file are equal.
_GIVEN = "_dask_pools_data_centres"


def load_from_catalog(
    path: str | os.PathLike[str] | list[str],
    *,
    data_centre: str | None = None,
    data_centres: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    engine: str | None = None,
    chunks: Any = None,
    xarray_kwargs: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    version: str | None = None,
    residency: str | None = None,
    replicas: Any = None,
) -> xr.Dataset:
    """Open a path or URL in the data centre that hosts it.

    Parameters
    ----------
    path : str, path, or list of them
        Of the data. A pattern (``*``) or a list opens several files as one Dataset, also if they live in
        several data centres: each is then read in its own.
    data_centre : str, optional
        Where it lives, outright.
    data_centres : DataCentres, path, or mapping, optional
        Rules that say where it lives; by default the file that `dask.config` names (``pools.data-centres``).
    engine : str, optional
        One of xarray; by default found out beside the data, from what is there.
    chunks : dict, int or "auto", optional
        As in `xarray.open_dataset`; by default what is stored.
    xarray_kwargs : dict, optional
        For `xarray.open_dataset`.
    storage_options : dict, optional
        For the file system (fsspec) of a URL.
    version : str, optional
        Of the data, where a change would leave no mark.
    residency : "stay" or "free", optional
        Whether its raw chunks may not leave the pool; by default what the data-centres file says. This
        prevents accidents; it is not access control.
    replicas : list of str or dict, optional
        Further copies of the same data: see `intake_pools.entries.entry_of`.

    Returns
    -------
    xarray.Dataset
        Lazy; its chunks are read by tasks pinned to the data centre's pool.

    Raises
    ------
    UnlocatedError
        If no data centre is known for it.
    EntryError
        If it cannot be opened there.
    PoolUnavailableError
        If the data centre's pool has no workers and nobody can start some.
    """
    from intake_pools.entries import entry_of
    from intake_pools.opening import open_entry

    return open_entry(
        entry_of(
            path,
            data_centre=data_centre,
            said_in="data_centre=",
            data_centres=data_centres,
            engine=engine,
            chunks=chunks,
            xarray_kwargs=xarray_kwargs,
            storage_options=storage_options,
            version=version,
            residency=residency,
            replicas=replicas,
        )
    )


def open_catalog(
    url: str | os.PathLike[str],
    *,
    data_centres: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Open an Intake catalogue.

    Parameters
    ----------
    url : str or path
    data_centres : DataCentres, path, or mapping, optional
        Rules that say where its entries live, instead of those that it names itself.
    **kwargs
        For `intake.open_catalog`.

    Returns
    -------
    intake.Catalog
        What `intake.open_catalog` makes of it.

    Raises
    ------
    EntryError
        If it is not a catalogue; the message has the line.
    DataCentresError
        If the rules are wrong.
    """
    import intake
    import yaml
    from intake.catalog.exceptions import CatalogException, ValidationError

    known = None if data_centres is None else rules.load(data_centres)
    name = os.fspath(url)
    try:
        catalogue = intake.open_catalog(name, **kwargs)
    except yaml.YAMLError as error:
        raise EntryError(f"Catalogue {rules.yaml_complaint(error, name)}") from None
    except (ValidationError, CatalogException) as error:
        raise EntryError(f"{name} is not an Intake catalogue: {error}") from None
    if known is not None:
        setattr(catalogue, _GIVEN, known)
    return catalogue


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
        if _GIVEN in vars(catalogue):
            known: DataCentres = vars(catalogue)[_GIVEN]
            return known
        metadata = getattr(catalogue, "metadata", None) or {}
        if (named := metadata.get("data_centres_file")) is not None:
            if not isinstance(named, str):
                raise EntryError(
                    f"data_centres_file in the metadata of {catalogue.name} is {named!r}, not a path."
                )
            return rules.load(_beside(catalogue, named))
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
