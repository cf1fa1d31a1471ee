"""From open files to an xarray Dataset that any process may hold: recipes instead of open files.

The lazy variables are mosaics (`intake_pools.mosaics`) until all files are combined, and then Dask arrays
whose tasks say how to read, and are checked by the guard wherever they do. Their names are ours: data centre,
URL, options without secrets, version.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import flatten, tokenize
from dask.highlevelgraph import HighLevelGraph

from dask_pools import dask_internals
from dask_pools.errors import EntryError
from dask_pools.pins import source_name
from intake_pools.entries import Entry
from intake_pools.mosaics import Mosaic, mosaic_of
from intake_pools.stores import Opened, State
from intake_pools.urls import fields_in, is_local, public_url

__all__ = [
    "Limits",
    "SharedIndexes",
    "chunks_of",
    "combined",
    "combined_arrays",
    "dataset_of",
    "fields_of",
    "from_file",
    "lazy",
    "unindexed",
    "with_variables",
    "without_large_indexes",
]


@dataclass(frozen=True)
class Limits:
    """Settings of the client that shape a Dataset.

    Attributes
    ----------
    eager : int
        Bytes up to which a coordinate without an index comes with the metadata.
    chunk : int
        Bytes of a chunk where nothing that is stored suggests one.
    annotations : dict
        What Dask's layers are annotated with.
    index : float
        Bytes up to which a coordinate that could have an index comes along and has one.
    automatic : int or None
        Bytes of a chunk where the entry says ``chunks: auto``: known in the pool, not to the client. None is
        as `chunk`.
    """

    eager: int
    chunk: int
    annotations: Mapping[str, Any]
    index: float = math.inf
    automatic: int | None = None


# All that comes with the metadata, beside indexes, together: so many times the limit for one.
_EAGER_TOGETHER = 16


def chunks_of(
    variable: xr.Variable, asked: Any, limit: int, automatic: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Chunks of a variable, as `xarray.open_dataset` chooses them.

    But ``"auto"`` gives whole stored chunks: xarray's may cut through them, and each is then read twice.

    Parameters
    ----------
    variable : xarray.Variable
        Its encoding says how it is stored.
    asked : dict, int or "auto"
        What the entry says; ``{}`` is what is stored.
    limit : int
        Bytes of a chunk of a variable that is stored in one piece and larger than this. xarray would read it
        whole; it is cut across its first dimensions, so that each chunk is one stretch of the file.
    automatic : int, optional
        Bytes of a chunk where "auto" is asked for; by default as `limit`.
    """
    shape, dtype = variable.shape, variable.dtype
    stored = variable.encoding.get("preferred_chunks") or {}
    preferred = tuple(stored.get(dim, size) for dim, size in zip(variable.dims, shape, strict=True))
    automatic = limit if automatic is None else automatic
    if asked == "auto":
        room = max(1, automatic // dtype.itemsize)
        sizes = _whole(shape, preferred, room) if stored else _stretches(shape, room)
        asked = dict(zip(variable.dims, sizes, strict=True))
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


def _whole(shape: tuple[int, ...], stored: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Find sizes of chunks of at most `limit` elements, or one stored chunk, made of whole stored chunks."""
    sizes = [min(own, size) for own, size in zip(stored, shape, strict=True)]
    # The last dimension first: those are next to each other in most files and stores.
    for axis in reversed(range(len(shape))):
        if sizes[axis]:
            sizes[axis] = min(shape[axis], sizes[axis] * max(1, limit // max(1, math.prod(sizes))))
    return tuple(sizes)


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


class SharedIndexes:
    """Indexes of the dimensions of files that are opened one after the other.

    Most files of a series have the same grid: where the values are those of the file before, its index is
    taken. It need not be made, is compared with itself in no time, and travels once.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[xr.Variable, Any]] = {}

    def of(self, name: Hashable, variable: xr.Variable) -> tuple[xr.Variable, Any]:
        """Get a coordinate of a dimension with its values in memory, and its index."""
        loaded = xr.Variable(variable.dims, variable.values, variable.attrs, variable.encoding)
        held = self._held.get(name)
        if (
            held is None
            or loaded.dtype.hasobject
            or held[0].dtype != loaded.dtype
            or held[0].attrs != loaded.attrs
            or not np.array_equal(held[0].values, loaded.values)
        ):
            # As xarray makes the default ones.
            made = xr.Coordinates({name: loaded})
            held = self._held[name] = made.variables[name], made.xindexes[name]
        return held


def dataset_of(
    opened: Opened,
    entry: Entry,
    limits: Limits,
    shared: SharedIndexes | None = None,
) -> xr.Dataset:
    """Make a Dataset that may leave this process from one that is open in it.

    Coordinates with an index, scalars and small coordinates are in it, the others are mosaics.

    Parameters
    ----------
    opened : Opened
    entry : Entry
    limits : Limits
    shared : SharedIndexes, optional
        Of files that are opened together with it.
    """
    dataset = opened.dataset
    shared = shared or SharedIndexes()
    dims = {*dataset.sizes, entry.combining.get("concat_dim")}
    if isinstance(entry.chunks, Mapping) and (unknown := set(entry.chunks) - dims):
        raise EntryError(
            f"chunks names {', '.join(sorted(map(repr, unknown)))}, which is no dimension of it; its "
            f"dimensions are: {', '.join(map(str, dataset.sizes)) or 'none'}"
        )
    state = State(opened.source, opened.version)
    large = {name for name in dataset.coords if dataset.variables[name].nbytes > limits.index}
    indexes: dict[Hashable, Any] = {
        name: index for name, index in dataset.xindexes.items() if name not in large
    }
    variables: dict[Hashable, xr.Variable] = {}
    for name in dataset.coords:
        if name not in indexes and name not in large and dataset.variables[name].dims == (name,):
            variables[name], indexes[name] = shared.of(name, dataset.variables[name])
    small = _small(dataset, indexes, limits.eager)
    for name, variable in dataset.variables.items():
        if name in indexes:
            continue
        if name in small:
            variables[name] = xr.Variable(variable.dims, variable.values, variable.attrs, variable.encoding)
        else:
            chunks = chunks_of(variable, entry.chunks, limits.chunk, limits.automatic)
            mosaic = mosaic_of(state, name, variable.dtype, chunks)
            variables[name] = xr.Variable(variable.dims, mosaic, variable.attrs, variable.encoding)
    return from_file(with_variables(dataset, variables, indexes), opened.source.url, entry)


def from_file(dataset: xr.Dataset, url: str, entry: Entry) -> xr.Dataset:
    """Say in a Dataset which file it is of, and what the name of that says."""
    dataset.encoding["source"] = public_url(url)
    return dataset.assign_coords(fields_of(url, entry.patterns)) if entry.patterns else dataset


def fields_of(url: str, patterns: Sequence[str]) -> dict[str, Any]:
    """Get the values that a file's name has for the fields of the pattern that it matches.

    They are as Intake understands them: of the type that a field says (``{year:d}``, ``{day:%Y%m%d}``), else
    texts.

    Raises
    ------
    EntryError
        If it matches none.
    """
    from intake.source.utils import reverse_format

    url = os.path.abspath(url) if is_local(url) else url
    for pattern in patterns:
        whole = os.path.abspath(os.path.expanduser(pattern)) if is_local(pattern) else pattern
        try:
            values: dict[str, Any] = reverse_format(whole, url)
        except ValueError:
            continue
        return values
    raise EntryError(f"{public_url(url)} does not match the pattern {public_url(patterns[0])}")


def unindexed(dataset: xr.Dataset) -> dict[str, int]:
    """Coordinates of dimensions that have no index, with their sizes in bytes."""
    return {
        str(dim): dataset.variables[dim].nbytes
        for dim in dataset.sizes
        if dim in dataset.coords and dataset.variables[dim].dims == (dim,) and dim not in dataset.xindexes
    }


def without_large_indexes(dataset: xr.Dataset, first: Opened, entry: Entry, limits: Limits) -> xr.Dataset:
    """Leave out indexes above the limit after files were combined by them, where one file has all of it.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of mosaics, or of Dask arrays.
    first : Opened
        The first of the files.
    entry : Entry
    limits : Limits
    """
    lazy_again: dict[Hashable, xr.Variable] = {}
    for dim in dataset.sizes:
        if dim not in dataset.xindexes or dataset.variables[dim].nbytes <= limits.index:
            continue
        stored = first.dataset.variables.get(dim)
        if stored is None or not bool(dataset.variables[dim].equals(stored)):  # type: ignore[no-untyped-call]
            continue  # it runs across files
        chunks = chunks_of(stored, entry.chunks, limits.chunk, limits.automatic)
        mosaic = mosaic_of(State(first.source, first.version), dim, stored.dtype, chunks)
        lazy_again[dim] = xr.Variable((dim,), mosaic, stored.attrs, stored.encoding)
    if not lazy_again:
        return dataset
    return with_variables(dataset.drop_indexes(list(lazy_again)), lazy_again)


def _small(dataset: xr.Dataset, indexes: Mapping[Hashable, Any], limit: int) -> set[Hashable]:
    """Names of the variables without an index that come with the metadata: coordinates, but no data."""
    small = {name for name, one in dataset.variables.items() if one.ndim == 0 or one.size == 0}
    room = _EAGER_TOGETHER * limit
    coordinates = [(name, dataset.variables[name]) for name in dataset.coords]
    for name, variable in sorted(coordinates, key=lambda item: item[1].nbytes):
        if name in small or name in indexes or name in dataset.sizes:
            continue  # without an index, the coordinate of a dimension is too large
        if variable.nbytes > min(limit, room):
            break
        small.add(name)
        room -= variable.nbytes
    return small


def with_variables(
    dataset: xr.Dataset,
    variables: Mapping[Hashable, xr.Variable],
    indexes: Mapping[Hashable, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Copy of a Dataset with other variables of the same names and dimensions.

    Its indexes and attributes stay, unless others are given.
    """
    all_of_them = {
        name: variables[name] if name in variables else variable.copy(deep=False)
        for name, variable in dataset.variables.items()
    }
    indexes = dict(dataset.xindexes) if indexes is None else indexes
    coords = xr.Coordinates({name: all_of_them[name] for name in dataset.coords}, indexes=indexes)
    attrs = dataset.attrs if attrs is None else attrs
    made = xr.Dataset({name: all_of_them[name] for name in dataset.data_vars}, coords, attrs)
    made.encoding = dict(dataset.encoding)
    return made


def lazy(dataset: xr.Dataset, entry: Entry, limits: Limits) -> xr.Dataset:
    """Replace the mosaics in a Dataset by Dask arrays, each of one layer, pinned to the pool of the entry.

    What must stay are data variables: coordinates are part of every result.
    """
    variables = {}
    for name, variable in dataset.variables.items():
        if name not in dataset.xindexes and isinstance(variable.data, Mosaic):
            array = variable.data.to_dask(_as_free_as(name, dataset, entry), limits.annotations)
            variables[name] = xr.Variable(variable.dims, array, variable.attrs, variable.encoding)
    return with_variables(dataset, variables)


def _as_free_as(name: Hashable, dataset: xr.Dataset, entry: Entry) -> Entry:
    return replace(entry, residency=None) if name in dataset.coords else entry


def combined(datasets: Sequence[xr.Dataset], entry: Entry) -> xr.Dataset:
    """Combine the Datasets of several files as `xarray.open_mfdataset` would.

    Raises
    ------
    EntryError
        If they cannot be combined so.
    NotAMosaic
        If a mosaic is not enough to say what comes of it; `combined_arrays` is.
    """
    if entry.patterns and not entry.combining:
        datasets = _along_fields(datasets, entry.patterns)
    options = dict(entry.combining)
    how = options.pop("combine", "nested" if "concat_dim" in options else "by_coords")
    # The one default in which open_mfdataset differs from the functions that combine.
    options.setdefault("combine_attrs", "override")
    if how not in ("by_coords", "nested") or (how == "by_coords" and "concat_dim" in options):
        raise EntryError(
            f"combine is {how!r}; it should be 'by_coords', or 'nested' with a concat_dim, files in order"
        )
    try:
        if how == "nested":
            concat_dim = options.pop("concat_dim", None)
            return xr.combine_nested(list(datasets), concat_dim=concat_dim, **options)
        result = xr.combine_by_coords(list(datasets), **options)
    except (ValueError, TypeError) as error:
        raise EntryError(f"its {len(datasets)} files cannot be combined: {error}") from error
    assert isinstance(result, xr.Dataset)  # of Datasets, combine_by_coords makes one
    return result


def _along_fields(datasets: Sequence[xr.Dataset], patterns: Sequence[str]) -> list[xr.Dataset]:
    """Make a dimension of each field that alone tells files apart.

    Files that differ in nothing but the field, not even in their coordinates, lie beside each other along it.
    Where the coordinates differ as well (each year has its own times), files follow one another along those,
    and the field stays a coordinate there.
    """
    fields = list(dict.fromkeys(name for pattern in patterns for name in fields_in(pattern)))
    values = [{name: one.coords[name].item() for name in fields if name in one.coords} for one in datasets]
    made = list(datasets)
    for field in fields:
        first: dict[str, tuple[xr.Dataset, Any]] = {}
        for dataset, own in zip(datasets, values, strict=True):
            others = str({name: value for name, value in own.items() if name != field})
            before, value = first.setdefault(others, (dataset, own.get(field)))
            if value != own.get(field) and all(
                dim in before.xindexes and index.equals(before.xindexes[dim])
                for dim, index in dataset.xindexes.items()
            ):
                made = [one.expand_dims(field) if field in one.coords else one for one in made]
                break
    return made


def combined_arrays(datasets: Sequence[xr.Dataset], entry: Entry, limits: Limits) -> xr.Dataset:
    """Combine as `combined` does where pieces have to be filled, shifted or compared: slower, in Dask arrays.

    Raises
    ------
    EntryError
        If they cannot be combined.
    """
    # What xarray compares it reads at once: here, not through a scheduler for whose answer this task would
    # wait while it keeps its worker busy.
    with dask.config.set(scheduler="synchronous"):
        result = combined([lazy(dataset, entry, limits) for dataset in datasets], entry)
    variables = {}
    for name, variable in result.variables.items():
        if name not in result.xindexes and isinstance(variable.data, da.Array):
            array = _one_layer(name, variable.data, _as_free_as(name, result, entry), limits)
            variables[name] = xr.Variable(variable.dims, array, variable.attrs, variable.encoding)
    return with_variables(result, variables)


def _one_layer(label: Hashable, array: da.Array, entry: Entry, limits: Limits) -> da.Array:
    """Copy of an array whose graph has one layer, which has the name of what reads."""
    name = source_name(str(label), entry.location.data_centre, tokenize(array.name), entry.stays)
    wanted = set(flatten(array.__dask_keys__()))
    tasks = dask_internals.convert_legacy_graph(dict(array.dask.cull(wanted)))
    renamed = {key: (name, *key[1:]) for key in wanted}
    graph = {(new := renamed.get(key, key)): task.substitute(renamed, key=new) for key, task in tasks.items()}
    with dask.annotate(**limits.annotations):
        layers = HighLevelGraph.from_collections(name, graph, dependencies=())
        return da.Array(layers, name, array.chunks, meta=array._meta)
