"""Which drivers of other people's catalogues become ours, which are left to Intake, and which are refused.

A whitelist: a driver is a name in a text that somebody else wrote, and Intake imports what such names say.
Nothing is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_pools.errors import EntryError
from intake_pools.safe_options import refuse_unsafe

__all__ = ["CATALOGUES", "NETCDF", "Driver", "adapted", "driver_of", "refuse_options"]

NETCDF = "netcdf"
"""Engine of an entry that is NetCDF of some kind; which engine reads it is found out beside the data."""


@dataclass(frozen=True)
class Driver:
    """What becomes of an entry.

    Attributes
    ----------
    name : str
        In Intake's registry: of one of ours, or of one that Intake keeps.
    ours : bool
        Whether the entry is located and opened in its pool.
    stock : bool
        Whether its arguments are those of intake-xarray, rather than of our own drivers.
    arguments : frozenset of str
        Of a driver that Intake keeps: those that are handed on.
    """

    name: str
    ours: bool = False
    stock: bool = False
    arguments: frozenset[str] = frozenset()


_NETCDF = Driver("pooled_netcdf", ours=True, stock=True)
_ZARR = Driver("pooled_zarr", ours=True, stock=True)
_XARRAY = Driver("pooled_xarray", ours=True, stock=True)

_OURS = {
    **{name: Driver(name, ours=True) for name in ("pooled_netcdf", "pooled_zarr", "pooled_xarray")},
    "intake_pools.drivers.PooledNetCDFSource": Driver("pooled_netcdf", ours=True),
    "intake_pools.drivers.PooledZarrSource": Driver("pooled_zarr", ours=True),
    "intake_pools.drivers.PooledXarraySource": Driver("pooled_xarray", ours=True),
    "netcdf": _NETCDF,
    "intake_xarray.NetCDFSource": _NETCDF,
    "intake_xarray.netcdf.NetCDFSource": _NETCDF,
    "zarr": _ZARR,
    "intake_xarray.ZarrSource": _ZARR,
    "intake_xarray.xzarr.ZarrSource": _ZARR,
    "xarray": _XARRAY,
}

CATALOGUES = frozenset(
    (
        "yaml_file_cat",
        "intake.catalog.local.YAMLFileCatalog",
        "intake.catalog.YAMLFileCatalog",
        "yaml_files_cat",
        "intake.catalog.local.YAMLFilesCatalog",
    )
)
"""Drivers of nested catalogues in YAML."""

_FILES = ("urlpath", "storage_options", "metadata")


def _kept(name: str, *arguments: str) -> Driver:
    return Driver(name, arguments=frozenset((*_FILES, *arguments)))


# With the arguments that are data: not, say, the decoder of textfiles, which Intake would import.
_INTAKES = {
    "csv": _kept("csv", "csv_kwargs", "path_as_pattern"),
    "intake.source.csv.CSVSource": _kept("csv", "csv_kwargs", "path_as_pattern"),
    "textfiles": _kept("textfiles", "text_mode", "text_encoding", "compression"),
    "jsonfiles": _kept("jsonfiles", "text_mode", "text_encoding", "compression", "read"),
    "parquet": _kept("parquet", "columns", "filters", "index", "categories"),
    "intake_parquet.source.ParquetSource": _kept("parquet", "columns", "filters", "index", "categories"),
    "rasterio": _kept("rasterio", "chunks", "xarray_kwargs", "path_as_pattern"),
    "intake_xarray.raster.RasterIOSource": _kept("rasterio", "chunks", "xarray_kwargs", "path_as_pattern"),
    "opendap": _kept("opendap", "chunks", "engine", "xarray_kwargs"),
    "intake_xarray.opendap.OpenDapSource": _kept("opendap", "chunks", "engine", "xarray_kwargs"),
    "esm_datastore": _kept("esm_datastore", "esmcol_obj", "obj", "sep"),
    "intake_esm.esm_datastore": _kept("esm_datastore", "esmcol_obj", "obj", "sep"),
    "intake_esm.core.esm_datastore": _kept("esm_datastore", "esmcol_obj", "obj", "sep"),
    "geojson": _kept("geojson", "bbox", "geopandas_kwargs"),
    "shapefile": _kept("shapefile", "bbox", "geopandas_kwargs"),
}


def driver_of(given: Any) -> Driver | str:
    """Say what becomes of an entry with this driver.

    Parameters
    ----------
    given
        As the catalogue has it: a name, or a list of names of which the first that is known counts.

    Returns
    -------
    Driver or str
        For a nested catalogue, one of `CATALOGUES`.

    Raises
    ------
    EntryError
        If it is none that is known to be safe.
    """
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        first = next((one for one in given if _known(one) is not None), given[0])
        return driver_of(first)
    if isinstance(given, str):
        if (known := _known(given)) is not None:
            return known
        near = difflib.get_close_matches(given.lower(), [*_OURS, *_INTAKES], n=1) if len(given) < 80 else []
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = repr(given[:80])
    elif isinstance(given, Mapping):
        hint, shown = "", "a mapping to classes"
    else:
        hint, shown = "", repr(given)[:80]
    raise EntryError(
        f"its driver is {shown}, which is not supported: only drivers that are known to run no code of a "
        f"catalogue's choice are.{hint} If you trust who wrote the catalogue, open it with allow_code=True"
    )


def _known(name: str) -> Driver | str | None:
    name = name.replace(":", ".")
    return name if name in CATALOGUES else _OURS.get(name) or _INTAKES.get(name)


# Of xarray.open_dataset; people write them where they do not belong.
_XARRAYS = (
    "mask_and_scale", "decode_cf", "decode_times", "decode_timedelta", "use_cftime", "concat_characters",
    "decode_coords", "drop_variables",
)  # fmt: skip
_PLAIN = ("urlpath", "chunks", "xarray_kwargs", "storage_options", "path_as_pattern")


def adapted(args: Mapping[str, Any], metadata: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a stock NetCDF or zarr entry, for our drivers.

    Options are accepted where real catalogues have them: those of xarray beside `xarray_kwargs` or in
    `chunks`, metadata among the arguments.

    Returns
    -------
    args, metadata : dict
    """
    own = {name: args[name] for name in _PLAIN if args.get(name) is not None}
    options = {
        name: value
        for name, value in args.items()
        if name not in (*_PLAIN, "metadata", "data_centre", "cache")
    }
    if isinstance(chunks := own.get("chunks"), Mapping):
        options.update({name: chunks[name] for name in _XARRAYS if name in chunks})
        own["chunks"] = {dim: size for dim, size in chunks.items() if dim not in _XARRAYS}
    given = own.get("xarray_kwargs")
    if options and (given is None or isinstance(given, Mapping)):
        own["xarray_kwargs"] = {**options, **(given or {})}
    if "data_centre" in args:
        own["data_centre"] = args["data_centre"]
    about = dict(metadata) if isinstance(metadata, Mapping) else {}
    if isinstance(inside := args.get("metadata"), Mapping):
        about = {**inside, **about}
    return own, about


# Options with which a library reads templates or pickles that it then runs.
_RUNS_CODE = ("simple_templates", "template_overrides", "allow_pickle", "indexpath", "preprocess")


def refuse_options(args: Any, depth: int = 0) -> None:
    """Refuse options at any depth with which a library would run what it reads, or do more than read.

    Raises
    ------
    EntryError
    """
    if isinstance(args, Mapping):
        for key, value in args.items():
            # cfgrib's indexpath names a pickle; empty, it says that there is to be none.
            if key in _RUNS_CODE and value not in ("", key == "simple_templates"):
                raise EntryError(
                    f"its option {key!r} can make a library run what it reads. If you trust who wrote the "
                    "catalogue, open it with allow_code=True"
                )
            if depth < 50:
                refuse_options(value, depth + 1)
    elif isinstance(args, list | tuple) and depth < 50:
        for value in args:
            if isinstance(value, Mapping | list | tuple):
                refuse_options(value, depth + 1)
    if depth == 0:
        refuse_unsafe(args)
