"""Catalogues and single paths: what a scientist opens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask

from dask_pools import data_centres as rules
from dask_pools.errors import EntryError
from intake_pools.urls import public_url, without_secrets

if TYPE_CHECKING:
    import xarray as xr

    from dask_pools.data_centres import DataCentres, Given

__all__ = ["load_from_catalog", "open_catalog"]


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
    catalog: Any = None,
) -> xr.Dataset:
    """Open a path or URL in the data centre that hosts it.

    If an entry of the catalogue has it, as its URL, as one of its files or as a group in its store, it is
    opened as the entry says, but for what is said here; else by the rules alone: those given here, or else
    those of the catalogue.

    Parameters
    ----------
    path : str, path, or list of them
        Of the data. A pattern (``*``) or a list opens several files as one Dataset, also if they live in
        several data centres: each is then read in its own.
    data_centre : str, optional
        Where it lives, outright.
    data_centres : DataCentres, path, or mapping, optional
        Rules that say where it lives; by default those that the catalogue goes by, or the file that
        `dask.config` names (``pools.data-centres``).
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
    catalog : str, path, or what `open_catalog` returns, optional
        Where to look for an entry; by default the file that `dask.config` names (``pools.catalog``), if any.

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
    from intake_pools.lookup import entry_with
    from intake_pools.opening import open_entry

    known = None
    catalogue = _catalogue(catalog, data_centres)
    if catalogue is not None and not isinstance(path, list | tuple) and replicas is None:
        known = entry_with(path, catalogue)
    if data_centres is None:
        # Those of several files together are as many as there are files.
        own = getattr(type(catalogue), "known_data_centres", None)
        data_centres = None if own is None else own(catalogue)
    said = entry_of(
        path,
        name=None if known is None else known.name,
        data_centre=data_centre if known is None else data_centre or known.location.data_centre,
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
    if known is None:
        return open_entry(said)
    given = {
        "chunks": None if chunks is None else said.chunks,
        "engine": said.engine,
        "storage_options": said.storage_options,
        "version": said.version,
        "residency": None if residency is None else said.residency or "free",
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value}
    if xarray_kwargs:
        changes["xarray_kwargs"] = {**known.xarray_kwargs, **said.xarray_kwargs}
        changes["combining"] = {**known.combining, **said.combining}
    if data_centre is not None and not known.replicas:
        changes["location"] = said.location
    known = replace(known, **changes)
    return open_entry(known, data_centre if known.replicas else None)


def _catalogue(catalog: Any, data_centres: Any) -> Any:
    """Open the catalogue that is to be looked into, unless it is open; None if there is none."""
    catalog = dask.config.get("pools.catalog", None) if catalog is None else catalog
    if isinstance(catalog, str | os.PathLike):
        catalog = open_catalog(catalog, data_centres=data_centres)
    if catalog is not None and not hasattr(catalog, "summary"):
        raise EntryError(
            f"catalog is {catalog!r:.80}; give the path or URL of a catalogue, or what "
            "intake_pools.open_catalog returns."
        )
    return catalog


def open_catalog(
    url: str | os.PathLike[str] | list[str],
    *,
    data_centres: Given | None = None,
    storage_options: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> Any:
    """Open an Intake catalogue, of version 1 or 2, as its owner wrote it.

    Its NetCDF and zarr entries (drivers ``netcdf``, ``zarr``, ``xarray`` and this project's, readers
    ``XArrayDatasetReader``) are located and opened in their pools, those of nested catalogues, too. A few
    drivers that run no code of a catalogue's choice are left to Intake; other entries are listed, and say
    why they cannot be used.

    A catalogue is somebody else's text. Unless `allow_code` says otherwise, opening or using one runs no code
    that it names, imports nothing, and reads no environment variable.

    Parameters
    ----------
    url : str or path
        Of a file. A pattern (``*``), a directory or a list makes one catalogue of several files.
    data_centres : DataCentres, path, mapping, or list of them, optional
        Rules that say where its entries live, instead of those that it names itself. Those of the file that
        `dask.config` names (``pools.data-centres``) hold as well.
    storage_options : dict, optional
        For the file system (fsspec) of a URL.
    allow_code : bool, optional
        Trust whoever wrote it: what is not ours is then opened by Intake, with all that it can run.

    Returns
    -------
    PooledCatalog or PooledCatalog2
        An `intake.Catalog` of version 1 or 2.

    Raises
    ------
    EntryError
        If it is not a catalogue; the message has the line.
    DataCentresError
        If the rules are wrong.
    """
    from intake_pools.intake1 import open_catalogue_at

    given: Sequence[Any] = url if isinstance(url, list | tuple) and url else [url]
    for one in given:
        if not isinstance(one, str | os.PathLike) or not os.fspath(one):
            raise EntryError(
                f"The catalogue given is {one!r:.80}; give the path or URL of its file, a pattern such as "
                "cats/*.yaml, or a list of them."
            )
    known = None if data_centres is None else rules.load(data_centres)
    options = dict(storage_options) if storage_options else None
    return together(
        [
            open_catalogue_at(name, data_centres=known, storage_options=options, allow_code=allow_code)
            for one in given
            for name in files_of(os.fspath(one), options)
        ]
    )


def files_of(name: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    """List the catalogues that a path or URL stands for, which may be a pattern or a directory.

    Raises
    ------
    EntryError
        If there are none.
    """
    pattern = name
    if "*" not in name:
        if "://" in name or not os.path.isdir(name):
            return [name]
        pattern = f"{name.rstrip('/')}/*.y*ml"
    import fsspec

    try:
        files, _, paths = fsspec.get_fs_token_paths(pattern, mode="rb", storage_options=storage_options)
    except Exception as error:  # whatever the file system of a URL raises
        reason = without_secrets(str(error), storage_options or {}, [pattern])
        raise EntryError(f"{public_url(pattern)} cannot be listed: {reason}") from None
    if not paths:
        raise EntryError(f"Nothing matches {public_url(pattern)}: there is no catalogue to open.")
    return [files.unstrip_protocol(one) if "://" in pattern else one for one in sorted(paths)]


def together(opened: list[Any]) -> Any:
    """Make one catalogue of the entries of several, of version 1; a single one stays as it is.

    Raises
    ------
    EntryError
        If two have an entry of the same name, or one is of version 2.
    """
    from intake_pools.intake1 import CombinedCatalog

    if len(opened) == 1:
        return opened[0]
    entries: dict[str, Any] = {}
    for catalogue in opened:
        if not hasattr(catalogue, "_entries"):
            raise EntryError(f"{public_url(catalogue.path)} is of Intake 2; open it by itself.")
        for name in catalogue:
            if name in entries:
                raise EntryError(
                    f"Both {public_url(entries[name]._home.path)} and {public_url(catalogue.path)} have an "
                    f"entry {name!r}. Open them one by one."
                )
            entries[name] = catalogue._entries[name]
    return CombinedCatalog(entries, name=f"{len(opened)} files")
