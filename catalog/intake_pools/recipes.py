"""From an open file to an xarray Dataset that any process may hold: recipes instead of open files.

The lazy variables are Dask arrays over `RemoteVariable`, which says how to read a variable and is checked by
the guard wherever it is read. Their names are ours: data centre, URL, options without secrets, version.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from dask_pools import guard
from dask_pools.errors import DataChangedError, EntryError
from dask_pools.pins import source_name
from intake_pools import stores
from intake_pools.entries import Entry, public_url
from intake_pools.stores import Opened, Source, StoreGone, Version

__all__ = ["Limits", "RemoteVariable", "chunks_of", "combined", "dataset_of"]


@dataclass(frozen=True)
class Limits:
    """Settings of the client that shape a Dataset.

    Attributes
    ----------
    eager : int
        Bytes up to which a variable comes with the metadata.
    chunk : int
        Bytes of a chunk where nothing that is stored suggests one.
    annotations : dict
        What Dask's layers are annotated with.
    """

    eager: int
    chunk: int
    annotations: Mapping[str, Any]


# All variables that come with the metadata, beside indexes, together: so many times the limit for one.
_EAGER_TOGETHER = 16


@dataclass(frozen=True)
class RemoteVariable:
    """How to read one variable of a file or store, by whoever is in the right place.

    Attributes
    ----------
    entry : str
    pool : str
        Where it may be read.
    source : Source
    version : Version
        The state of the data that it describes.
    variable : hashable
    shape : tuple of int
    dtype : numpy.dtype
    """

    entry: str
    pool: str
    source: Source
    version: Version
    variable: Hashable
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __dask_tokenize__(self) -> Any:
        return self.pool, self.source.token, self.version.text, str(self.variable)

    def __getitem__(self, index: Any) -> Any:
        """Read a selection: an array as large as that.

        Raises
        ------
        MisplacedTaskError
            On a worker of another pool.
        DataChangedError
            If the data has another version than when it was opened, or is not there any more.
        """
        chunk = f"{self.variable}[{_shown(index)}]"
        guard.on_worker_of(self.pool, self.entry, chunk)

        def changed(found: str) -> DataChangedError:
            return DataChangedError(self.entry, chunk, self.version.stamp or self.version.text, found)

        dataset = stores.opened(self.source, self.version, changed)
        try:
            return dataset.variables[self.variable][index].values
        except StoreGone as error:
            raise changed(f"none ({error})") from None


def _shown(index: Any) -> str:
    def one(part: Any) -> str:
        if isinstance(part, slice):
            ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
            return ":".join(ends) + (f":{part.step}" if part.step not in (None, 1) else "")
        return str(part) if isinstance(part, int | np.integer) else "…"

    return ", ".join(one(part) for part in (index if isinstance(index, tuple) else (index,)))


def chunks_of(variable: xr.Variable, asked: Any, limit: int) -> tuple[tuple[int, ...], ...]:
    """Chunks of a variable, as `xarray.open_dataset` chooses them.

    Parameters
    ----------
    variable : xarray.Variable
        Its encoding says how it is stored.
    asked : dict, int or "auto"
        What the entry says; ``{}`` is what is stored.
    limit : int
        Bytes of a chunk of a variable that is stored in one piece and larger than this. xarray would read it
        whole; it is cut across its first dimensions, so that each chunk is one stretch of the file.
    """
    shape, dtype = variable.shape, variable.dtype
    stored = variable.encoding.get("preferred_chunks") or {}
    preferred = tuple(stored.get(dim, size) for dim, size in zip(variable.dims, shape, strict=True))
    if not isinstance(asked, Mapping):
        asked = dict.fromkeys(variable.dims, asked)
    wanted = tuple(asked.get(dim) or size for dim, size in zip(variable.dims, preferred, strict=True))
    if not stored and not any(asked.get(dim) for dim in variable.dims):
        wanted = _stretches(shape, max(1, limit // dtype.itemsize))
    # Dask cannot tell the size of what an object array holds; a pointer's is near enough to find chunks.
    known = np.dtype("f8") if dtype.hasobject else dtype
    chunks: tuple[tuple[int, ...], ...] = da.core.normalize_chunks(
        wanted, shape=shape, dtype=known, limit=limit, previous_chunks=preferred
    )
    return chunks


def _stretches(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Find sizes of chunks of at most `limit` elements, each of which is one stretch of the file."""
    sizes: list[int] = []
    room = limit
    for size in reversed(shape):
        # Of 10 rows where 4 would fit, 4 + 4 + 2 are read no better than 4 + 3 + 3; Dask likes them even.
        pieces = math.ceil(size / max(1, room)) if size else 1
        sizes.append(max(1, math.ceil(size / pieces)))
        room //= max(1, size)
    return tuple(reversed(sizes))


def dataset_of(opened: Opened, entry: Entry, limits: Limits, *, eager_data: bool = True) -> xr.Dataset:
    """Make the Dataset that leaves this process from one that is open in it.

    Coordinates with an index, scalars and small variables are in it, the others are recipes.

    Parameters
    ----------
    opened : Opened
    entry : Entry
    limits : Limits
    eager_data : bool, optional
        Whether small data variables come along too.
    """
    dataset = opened.dataset
    dims = {*dataset.sizes, entry.combining.get("concat_dim")}
    if isinstance(entry.chunks, Mapping) and (unknown := set(entry.chunks) - dims):
        raise EntryError(
            f"chunks names {', '.join(sorted(map(repr, unknown)))}, which is no dimension of it; its "
            f"dimensions are: {', '.join(map(str, dataset.sizes)) or 'none'}"
        )
    small = _small(dataset, limits.eager, eager_data)
    variables: dict[Hashable, xr.Variable] = {}
    for name, variable in dataset.variables.items():
        if name in dataset.xindexes:
            variables[name] = variable.copy(deep=False)
        else:
            data = variable.values if name in small else _lazy(name, variable, opened, entry, limits)
            variables[name] = xr.Variable(variable.dims, data, variable.attrs, variable.encoding)
    coords = xr.Coordinates(
        {name: variables[name] for name in dataset.coords},
        indexes=dict(dataset.xindexes),
    )
    made = xr.Dataset({name: variables[name] for name in dataset.data_vars}, coords, dataset.attrs)
    made.encoding = dict(dataset.encoding)
    made.encoding["source"] = public_url(opened.source.url)
    return made


def _small(dataset: xr.Dataset, limit: int, data: bool) -> set[Hashable]:
    """Names of the variables without an index that come with the metadata."""
    small = {name for name, variable in dataset.variables.items() if variable.ndim == 0}
    room = _EAGER_TOGETHER * limit
    for name, variable in sorted(dataset.variables.items(), key=lambda item: item[1].nbytes):
        if name in small or name in dataset.xindexes or not (data or name in dataset.coords):
            continue
        if variable.nbytes > min(limit, room):
            break
        small.add(name)
        room -= variable.nbytes
    return small


def _lazy(name: Hashable, variable: xr.Variable, opened: Opened, entry: Entry, limits: Limits) -> da.Array:
    pool = entry.location.data_centre
    recipe = RemoteVariable(
        entry.name, pool, opened.source, opened.version, name, variable.shape, variable.dtype
    )
    chunks = chunks_of(variable, entry.chunks, limits.chunk)
    token = tokenize(recipe, chunks, entry.version)
    with dask.annotate(**limits.annotations):
        return da.from_array(
            recipe,
            chunks=chunks,
            name=source_name(str(name), pool, token),
            lock=False,
            inline_array=True,
            meta=np.empty((0,) * variable.ndim, variable.dtype),
        )


def combined(datasets: Sequence[xr.Dataset], entry: Entry, limits: Limits) -> xr.Dataset:
    """Combine the Datasets of several files as `xarray.open_mfdataset` would.

    Raises
    ------
    EntryError
        If they cannot be combined so.
    """
    options = dict(entry.combining)
    how = options.pop("combine", "nested" if "concat_dim" in options else "by_coords")
    # The one default in which open_mfdataset differs from the functions that combine.
    options.setdefault("combine_attrs", "override")
    if how not in ("by_coords", "nested") or (how == "by_coords" and "concat_dim" in options):
        raise EntryError(
            f"combine is {how!r}; it should be 'by_coords', or 'nested' with a concat_dim, files in order"
        )
    try:
        with dask.annotate(**limits.annotations):
            if how == "nested":
                concat_dim = options.pop("concat_dim", None)
                return xr.combine_nested(list(datasets), concat_dim=concat_dim, **options)
            result = xr.combine_by_coords(list(datasets), **options)
    except (ValueError, TypeError) as error:
        raise EntryError(f"its {len(datasets)} files cannot be combined: {error}") from error
    assert isinstance(result, xr.Dataset)  # of Datasets, combine_by_coords makes one
    return result
