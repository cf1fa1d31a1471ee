"""Variables that are read piece by piece, from one file or from many, as plain data.

A `Mosaic` says which file holds which part of a variable. xarray combines Datasets of mosaics as it combines
arrays, by its own rules and without Dask, which is what takes the time with many files; in the end each is
one layer of a Dask graph. It knows neither how files are opened nor how they were found.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.layers import ArrayBlockwiseDep

from dask_pools import dask_internals, guard
from dask_pools.errors import DataChangedError, PoolsError, UnreadableError
from dask_pools.pins import source_name
from intake_pools import filesystems, stores
from intake_pools.entries import Entry
from intake_pools.stores import Source, State, StoreGone, Version
from intake_pools.urls import without_secrets

__all__ = ["Mosaic", "NotAMosaic", "RemoteVariable", "mosaic_of"]

Chunks = tuple[tuple[int, ...], ...]


class NotAMosaic(Exception):
    """What was asked of a mosaic takes more than laying pieces side by side."""


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
        UnreadableError
            If its store does not give it.
        """
        chunk = f"{self.variable}[{_shown(index)}]"
        guard.on_worker_of(self.pool, self.entry, chunk)

        def changed(found: str) -> DataChangedError:
            return DataChangedError(self.entry, chunk, self.version.stamp or self.version.text, found)

        try:
            dataset = stores.opened(self.source, self.version, changed, self.variable)
            return dataset.variables[self.variable][index].values
        except StoreGone as error:
            raise changed(f"none ({error})") from None
        except PoolsError:
            raise
        except Exception as error:
            if self.source.local and self.version.snapshot is None:
                raise
            options = [self.source.storage_options, self.source.xarray_kwargs]
            reason = without_secrets(filesystems.explained(error), options, [self.source.url])
        # Not where it was caught: what a library raised would travel and be logged with it.
        raise UnreadableError(self.entry, chunk, reason)


def _shown(index: Any) -> str:
    def one(part: Any) -> str:
        if isinstance(part, slice):
            ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
            return ":".join(ends) + (f":{part.step}" if part.step not in (None, 1) else "")
        return str(part) if isinstance(part, int | np.integer) else "…"

    return ", ".join(one(part) for part in (index if isinstance(index, tuple) else (index,)))


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A variable in pieces that lie side by side, each of which is all of that variable in one file.

    It is an array as far as laying it beside others goes (`numpy.concatenate`); everything else that NumPy
    can do with arrays raises `NotAMosaic`.

    Attributes
    ----------
    variable : hashable
        Its name in every file.
    dtype : numpy.dtype
    states : numpy.ndarray of State
        The files, in as many dimensions as the variable has.
    grid : tuple of tuple of tuple of int
        For each dimension and each piece along it: sizes of the chunks. (xarray would take an array that has
        `chunks` for one of Dask's kind.)
    """

    variable: Hashable
    dtype: np.dtype[Any]
    states: np.ndarray[Any, Any]
    grid: tuple[Chunks, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension."""
        return tuple(sum(map(sum, pieces)) for pieces in self.grid)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.grid)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.result_type:
            return np.result_type(*(getattr(one, "dtype", one) for one in args))
        if function is np.concatenate:
            return _beside(*args, **kwargs)
        raise NotAMosaic(function.__name__)

    def __array_ufunc__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotAMosaic(function.__name__)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotAMosaic("values")

    def __getitem__(self, index: Any) -> Mosaic:
        parts = index if isinstance(index, tuple) else (index,)
        if all(part is Ellipsis or part == slice(None) for part in parts):
            return self
        raise NotAMosaic("selection")

    def astype(self, dtype: Any, **kwargs: Any) -> Mosaic:
        """Return itself; its pieces are what they are."""
        if np.dtype(dtype) == self.dtype:
            return self
        raise NotAMosaic("astype")

    def __deepcopy__(self, memo: Any) -> Mosaic:
        return self

    def to_dask(self, entry: Entry, annotations: Mapping[str, Any]) -> da.Array:
        """Make the Dask array of it: one layer, and a task for each chunk.

        Parameters
        ----------
        entry : Entry
            That it is of.
        annotations : dict
            For the layer.
        """
        pool = entry.location.data_centre
        flat = [tuple(size for piece in pieces for size in piece) for pieces in self.grid]
        marks = [(state.source.token, state.version.text) for state in self.states.flat]
        token = tokenize(pool, str(self.variable), self.states.shape, marks, flat, entry.version)
        name = source_name(str(self.variable), pool, token, entry.stays)
        pieces = _Pieces(tuple(flat), self, entry.name, pool)
        with dask.annotate(**annotations):
            graph = dask_internals.reading_layer(name, pieces, _Slices(tuple(flat), self.grid))
            return da.Array(graph, name, tuple(flat), meta=np.empty((0,) * self.ndim, self.dtype))


def mosaic_of(state: State, variable: Hashable, dtype: np.dtype[Any], chunks: Chunks) -> Mosaic:
    """Make the mosaic of one piece.

    Parameters
    ----------
    state : State
        The file or store.
    variable : hashable
        Its name there.
    dtype : numpy.dtype
    chunks : tuple of tuple of int
        Sizes of its chunks, for each dimension.
    """
    states = np.empty((1,) * len(chunks), dtype=object)
    states[...] = state
    return Mosaic(variable, dtype, states, tuple((sizes,) for sizes in chunks))


def _beside(arrays: Sequence[Any], axis: int = 0, **kwargs: Any) -> Mosaic:
    """Lay mosaics side by side: `numpy.concatenate`."""
    first = arrays[0]
    alike = all(
        isinstance(one, Mosaic)
        and (one.variable, one.dtype, one.ndim) == (first.variable, first.dtype, first.ndim)
        and all(one.grid[other] == first.grid[other] for other in range(one.ndim) if other != axis)
        for one in arrays
    )
    if kwargs or not alike:
        raise NotAMosaic("concatenate")
    chunks = list(first.grid)
    chunks[axis] = tuple(piece for one in arrays for piece in one.grid[axis])
    states = np.concatenate([one.states for one in arrays], axis=axis)
    return Mosaic(first.variable, first.dtype, states, tuple(chunks))


class _Pieces(ArrayBlockwiseDep):  # type: ignore[misc]  # dask publishes no types
    """For each chunk, how to read the variable of the file that has it."""

    def __init__(self, chunks: Chunks, mosaic: Mosaic, entry: str, pool: str) -> None:
        super().__init__(chunks)
        self.mosaic, self.entry, self.pool = mosaic, entry, pool

    @cached_property  # not in __init__: nothing that can be found out again is to travel
    def piece(self) -> list[list[int]]:
        """For each dimension, the number of the piece that each chunk along it lies in."""
        return [[number for number, piece in enumerate(pieces) for _ in piece] for pieces in self.mosaic.grid]

    def __getitem__(self, index: tuple[int, ...]) -> RemoteVariable:
        at = tuple(piece[number] for piece, number in zip(self.piece, index, strict=True))
        state = self.mosaic.states[at]
        shape = tuple(sum(pieces[one]) for pieces, one in zip(self.mosaic.grid, at, strict=True))
        return RemoteVariable(
            self.entry,
            self.pool,
            state.source,
            state.version,
            self.mosaic.variable,
            shape,
            self.mosaic.dtype,
        )


class _Slices(ArrayBlockwiseDep):  # type: ignore[misc]
    """For each chunk, where it lies in the file that has it."""

    def __init__(self, chunks: Chunks, pieces: tuple[Chunks, ...]) -> None:
        super().__init__(chunks)
        self.pieces = pieces

    @cached_property
    def starts(self) -> list[list[int]]:
        """For each dimension, where each chunk along it begins in its piece."""
        return [
            [start for piece in along for start in accumulate(piece[:-1], initial=0)] for along in self.pieces
        ]

    def __getitem__(self, index: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(
            slice(starts[number], starts[number] + sizes[number], None)
            for starts, sizes, number in zip(self.starts, self.chunks, index, strict=True)
        )
