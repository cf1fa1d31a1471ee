"""Intake 2's view of an entry that is opened in its pool: one reader for NetCDF, zarr and GRIB.

Thin: data and arguments become an `intake_pools.entries.Entry`, which `intake_pools.opening` opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from intake.readers import datatypes
from intake.readers.readers import BaseReader

from dask_pools.errors import EntryError
from intake_pools.entries import Entry, entry_of
from intake_pools.known_drivers import NETCDF
from intake_pools.located import Located

if TYPE_CHECKING:
    import xarray as xr

    from dask_pools.data_centres import DataCentres

__all__ = ["PooledReader"]

# Arguments that are ours; all others are options of xarray's.
_OWN = (
    "data_centre", "said_in", "data_centres", "engine", "chunks", "version", "parts", "replicas", "residency",
    "storage_options", "xarray_kwargs",
)  # fmt: skip


class PooledReader(Located, BaseReader):  # type: ignore[misc]  # Intake publishes no types
    """Read NetCDF, HDF5, zarr or GRIB in the pool of the data centre that hosts it.

    Takes the place of Intake's `XArrayDatasetReader`, with the same arguments. Pipelines start at it as at
    any other reader.

    Parameters
    ----------
    data : NetCDF3, HDF5, Zarr or GRIB2
        Of `intake.readers.datatypes`.
    data_centre, data_centres, engine, chunks, version, parts, replicas, residency
        As in `intake_pools.entries.entry_of`.
    **others
        For `xarray.open_dataset` and, of several files, `xarray.open_mfdataset`.
    """

    imports: ClassVar[set[str]] = {"xarray"}
    implements: ClassVar[set[type]] = {
        datatypes.NetCDF3,
        datatypes.HDF5,
        datatypes.Zarr,
        datatypes.GRIB2,
    }
    output_instance = "xarray:Dataset"
    func = "xarray:open_dataset"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before anything else: of an attribute that is not there, Intake makes a pipeline.
        self._rules: DataCentres | None = None
        self._entry_name: str | None = None
        super().__init__(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> PooledReader:
        """Make another one with other arguments."""
        new: PooledReader = super().__call__(*args, **kwargs)
        new._rules, new._entry_name = self._rules, self._entry_name
        return new

    def _resolved(self, *args: Any, **kwargs: Any) -> Entry:
        """Everything about it as plain data."""
        given = {**self.kwargs, **kwargs}
        positional = given.pop("args", ()) or args
        data = given.pop("data", None) or (positional[0] if positional else None)
        if not isinstance(data, datatypes.BaseData):
            raise EntryError(
                f"PooledReader reads data such as NetCDF3(url=…) or Zarr(url=…), not {data!r:.80}."
            )
        own = {name: given.pop(name) for name in _OWN if name in given}
        given.pop("open_local", None)
        metadata = self.metadata if isinstance(self.metadata, Mapping) else {}
        if own.get("data_centre") is None and (stated := metadata.get("data_centre")) is not None:
            own.update(data_centre=stated, said_in="data_centre in the reader's metadata")
        own.setdefault("said_in", "data_centre of the reader")
        options = {**given, **(own.pop("xarray_kwargs", None) or {})}
        engine = own.pop("engine", None)
        if isinstance(data, datatypes.Zarr):
            engine = engine or "zarr"
            group = data.root
        elif isinstance(data, datatypes.GRIB2):
            engine, group = engine or "cfgrib", ""
        else:
            engine = engine or NETCDF
            group = getattr(data, "path", "")
        if group:
            options.setdefault("group", group)
        if isinstance(pattern := options.pop("pattern", None), str | bool):
            own["path_as_pattern"] = pattern
        rules = own.pop("data_centres", None)
        return entry_of(
            data.url,
            name=self._entry_name,
            data_centres=self._rules if rules is None else rules,
            engine=engine,
            storage_options=own.pop("storage_options", None) or data.storage_options,
            xarray_kwargs=options,
            **own,
        )

    def _read(self, *args: Any, discover: bool = False, **kwargs: Any) -> xr.Dataset:
        from intake_pools.opening import open_entry

        return open_entry(self._resolved(*args, **kwargs))
