"""Intake's view of an entry that is opened in its pool: one driver for NetCDF, zarr and all else.

Thin: arguments become an `intake_pools.entries.Entry`, which `intake_pools.opening` opens. Intake finds these
classes by their entry points, so a catalogue needs no import of this project.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from intake.source.base import DataSource, Schema

from dask_pools import __version__
from dask_pools.errors import EntryError
from intake_pools.entries import Entry, entry_of, unknown_argument
from intake_pools.known_drivers import NETCDF
from intake_pools.located import Located
from intake_pools.rules import data_centres_of
from intake_pools.urls import public_options

if TYPE_CHECKING:
    import xarray as xr

    from dask_pools.data_centres import DataCentres

__all__ = ["PooledNetCDFSource", "PooledXarraySource", "PooledZarrSource"]


class PooledSource(Located, DataSource):  # type: ignore[misc]  # Intake publishes no types
    """What the drivers have in common.

    Parameters
    ----------
    urlpath : str or list of str
        Path, URL or pattern (``*``), or several. A relative path is relative to the directory of the workers.
    chunks : dict, int or "auto", optional
        As in `xarray.open_dataset`; by default what is stored.
    xarray_kwargs : dict, optional
        For `xarray.open_dataset`; for several files, also what `xarray.open_mfdataset` takes to combine them.
    storage_options : dict, optional
        For the file system (fsspec) of a URL.
    metadata : dict, optional
        Of the entry; `data_centre` there says where it lives.
    data_centre : str, optional
        Where it lives, outright; else the metadata says so, else the rules of the data-centres file.
    version : str, optional
        Of the data, where a change would leave no mark, as in the chunks of a zarr store.
    parts : list, optional
        In place of `urlpath`, where parts of the data live in several data centres: see
        `intake_pools.entries.entry_of`.
    replicas : list, optional
        Further copies of the same data.
    residency : "stay" or "free", optional
        Whether raw chunks may not leave the pool; by default what the data-centres file says.
    path_as_pattern : bool or str, optional
        Whether ``{year:d}`` in `urlpath` is a field, whose values in the names of files become a coordinate;
        or the pattern of the files that are listed.

    Raises
    ------
    EntryError
        If an argument is unknown or missing.
    """

    container = "xarray"
    version = __version__
    partition_access = False

    _engine: ClassVar[str | None] = None
    # Arguments of single drivers that are options of xarray's.
    _for_xarray: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        urlpath: Any = None,
        chunks: Any = None,
        xarray_kwargs: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        data_centre: str | None = None,
        version: str | None = None,
        parts: Any = None,
        replicas: Any = None,
        residency: str | None = None,
        path_as_pattern: bool | str = True,
        **others: Any,
    ) -> None:
        super().__init__(storage_options=storage_options, metadata=dict(metadata or {}))
        driver = type(self).name
        for argument in others:
            if argument not in self._for_xarray:
                raise unknown_argument(driver, argument, self._arguments(), urlpath)
        if urlpath is None and parts is None and replicas is None:
            raise EntryError(f"{driver} needs urlpath: a path or URL, or a list of them.")
        self.urlpath = urlpath
        self.chunks = chunks
        self.xarray_kwargs = xarray_kwargs
        self.storage_options = storage_options
        self._stated = data_centre
        self._data_version = version
        self.parts = parts
        self.replicas = replicas
        self.residency = residency
        self.path_as_pattern = path_as_pattern
        self._said_in: str | None = None
        self._others = others

    @classmethod
    def _arguments(cls) -> list[str]:
        parameters = inspect.signature(PooledSource.__init__).parameters
        return [name for name in parameters if name not in {"self", "others"}] + list(cls._for_xarray)

    def _resolved(self) -> Entry:
        """Everything about it as plain data.

        Not in ``__init__``: Intake tells a source its name and catalogue only afterwards.
        """
        stated, said_in = self._stated, self._said_in or "data_centre of the entry"
        if stated is None and isinstance(self.metadata, Mapping):
            stated, said_in = self.metadata.get("data_centre"), "data_centre in the entry's metadata"
        xarray_kwargs: Any = self.xarray_kwargs
        if self._others and (xarray_kwargs is None or isinstance(xarray_kwargs, Mapping)):
            xarray_kwargs = {**self._others, **(xarray_kwargs or {})}
        return entry_of(
            self.urlpath,
            name=self._own_name(),
            data_centre=stated,
            said_in=said_in,
            data_centres=self._data_centres(),
            engine=self._engine,
            chunks=self.chunks,
            xarray_kwargs=xarray_kwargs,
            storage_options=self.storage_options,
            version=self._data_version,
            parts=self.parts,
            replicas=self.replicas,
            residency=self.residency,
            path_as_pattern=self.path_as_pattern,
        )

    def _own_name(self) -> str | None:
        # The class attribute is the driver's name.
        return self.__dict__.get("name")

    def _data_centres(self) -> DataCentres | None:
        return data_centres_of(self.cat)

    def read_chunked(self) -> xr.Dataset:
        """Open it as `to_dask` does: an xarray Dataset comes in chunks."""
        return self.to_dask()

    def read(self) -> xr.Dataset:
        """Open it and load everything into this process."""
        return self.to_dask().load()

    def discover(self) -> dict[str, Any]:
        """Open it and say what is in it."""
        self._load_metadata()
        return {
            "dtype": self.dtype,
            "shape": self.shape,
            "npartitions": self.npartitions,
            "metadata": {**self.metadata, **self._schema["extra_metadata"]},
        }

    def _load_metadata(self) -> None:
        self._schema = self._get_schema()
        self.dtype, self.shape = self._schema["dtype"], self._schema["shape"]
        self.npartitions = self._schema["npartitions"]

    def _get_schema(self) -> Schema:
        dataset = self.to_dask()
        return Schema(
            dtype={str(name): str(array.dtype) for name, array in dataset.data_vars.items()},
            shape={str(dim): size for dim, size in dataset.sizes.items()},
            npartitions=max(
                (array.data.npartitions for array in dataset.values() if array.chunks), default=1
            ),
            extra_metadata={
                "data_centre": self.data_centre,
                "dims": {str(dim): size for dim, size in dataset.sizes.items()},
                "data_vars": {
                    str(name): [str(coord) for coord in array.coords]
                    for name, array in dataset.data_vars.items()
                },
                "coords": [str(name) for name in dataset.coords],
                **dataset.attrs,
            },
        )

    def _close(self) -> None:
        # Files are open on workers only, which look after them.
        self._schema = None

    def describe(self) -> dict[str, Any]:
        """Describe the entry; secrets are hidden."""
        if self._entry is not None:
            description = dict(self._entry.describe())
        else:
            source = self._yaml()["sources"][self.name]
            description = {"name": self._own_name(), "container": self.container, **source}
        description["args"] = public_options(description["args"])
        return description

    def _yaml(self) -> dict[str, Any]:
        described: dict[str, Any] = super()._yaml()
        for source in described["sources"].values():
            source["driver"] = type(self).name
            source["args"] = public_options(source["args"])
        return described


class PooledNetCDFSource(PooledSource):
    """NetCDF 3 or 4, or HDF5, read in its pool: see `PooledSource`.

    Two arguments more, for several files: `combine` and `concat_dim`, as in `xarray.open_mfdataset`. Which
    engine reads a file is found out from its first bytes, unless ``xarray_kwargs: {engine: …}`` says so.
    """

    name = "pooled_netcdf"
    _engine = NETCDF
    _for_xarray = ("combine", "concat_dim")


class PooledZarrSource(PooledSource):
    """Zarr, format 2 or 3, read in its pool: see `PooledSource`.

    More arguments: `consolidated` and `group`, as in `xarray.open_zarr`, and `combine` and `concat_dim`.
    """

    name = "pooled_zarr"
    _engine = "zarr"
    _for_xarray = ("consolidated", "group", "combine", "concat_dim")


class PooledXarraySource(PooledSource):
    """Whatever an engine of xarray opens, read in its pool: see `PooledSource`.

    One argument more: `engine`, such as ``cfgrib`` for GRIB. It has to be installed on the workers.
    """

    name = "pooled_xarray"
    _for_xarray = ("engine", "group", "combine", "concat_dim")
