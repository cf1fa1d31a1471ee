"""Files of a series: what is known of one of them is not found out again for those that are made like it.

Most files of a series have the same variables, attributes and storage, and differ in the values of one
coordinate. xarray examines each as if it were the first; here the first is examined by xarray, and of another
one it is made sure that it is *alike*: all that decides about its Dataset is compared, coordinates are read.
What is not alike is opened as the first was. Of local NetCDF files only: others are not opened so fast that
it would matter.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import NetCDF4DataStore

from intake_pools import netcdf_parts, recipes, stores
from intake_pools.entries import Entry
from intake_pools.mosaics import Chunks, Mosaic, mosaic_of
from intake_pools.netcdf_lock import LOCK
from intake_pools.recipes import Limits, SharedIndexes
from intake_pools.stores import Source, State

if TYPE_CHECKING:
    import netCDF4

__all__ = ["Series"]


@dataclass(frozen=True)
class _Model:
    """What a file that xarray has examined is like.

    Attributes
    ----------
    state : State
    marks : hashable
        Of all that has to be the same in files that are alike.
    dataset : xarray.Dataset
        Of mosaics, as `recipes.dataset_of` makes it.
    stored : dict of xarray.Variable
        The variables that come along with their values, as they are stored.
    grids : dict
        Chunks of the others, by name and shape.
    """

    state: State
    marks: Hashable
    dataset: xr.Dataset
    stored: dict[str, xr.Variable]
    grids: dict[tuple[Hashable, tuple[int, ...]], Chunks] = field(default_factory=dict)


@dataclass(frozen=True)
class _Alike:
    """What a file has of its own that is like a model.

    Attributes
    ----------
    state : State
    shapes : dict
        Of its variables, by name.
    values : dict of xarray.Variable
        Those that come along with their values, where they differ from the model's.
    attrs : dict
    """

    state: State
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, xr.Variable]
    attrs: dict[str, Any]


class Series:
    """Opens files of one entry.

    Parameters
    ----------
    entry : Entry
    limits : Limits
    """

    def __init__(self, entry: Entry, limits: Limits) -> None:
        self._entry = entry
        # Small data variables of many files would be many bytes; and they are combined by indexes.
        self._limits = replace(limits, index=math.inf)
        self._indexes = SharedIndexes()

    def open(
        self, sources: Iterable[Source], together: bool = True
    ) -> tuple[tuple[State, ...], tuple[xr.Dataset, ...]]:
        """Open files.

        Parameters
        ----------
        sources : iterable of Source
        together : bool, optional
            Whether files that are alike and follow one another may be one Dataset.

        Returns
        -------
        states : tuple of State
            Of all files.
        datasets : tuple of xarray.Dataset
            Of mosaics, in the order of the files.
        """
        states: list[State] = []
        datasets: list[xr.Dataset] = []
        model: _Model | None = None
        alike: list[_Alike] = []
        for source in sources:
            may_be_alike = self._may_be_alike(source)
            if model is not None and may_be_alike:
                state = State(source, stores.version_of(source))
                if (file := _compared(state, model)) is not None:
                    states.append(state)
                    alike.append(file)
                    continue
            datasets += self._datasets(model, alike, together)
            opened = stores.reopened(source)
            dataset = recipes.dataset_of(opened, self._entry, self._limits, self._indexes)
            states.append(State(source, opened.version))
            model, alike = (_model_of(states[-1], dataset) if may_be_alike else None), []
            if model is None:
                datasets.append(dataset)
        datasets += self._datasets(model, alike, together)
        return tuple(states), tuple(datasets)

    def _may_be_alike(self, source: Source) -> bool:
        """Whether it is of a kind that is compared; fields of a pattern would have to be told apart."""
        return (
            not self._entry.patterns
            and source.with_only("any") is not source
            and _READING.issuperset(source.xarray_kwargs)
        )

    def _datasets(self, model: _Model | None, alike: Sequence[_Alike], together: bool) -> list[xr.Dataset]:
        """Make the Datasets of a model and the files that are like it."""
        if model is None:
            return []
        if together and alike and (one := self._side_by_side(model, alike)) is not None:
            return [one]
        return [model.dataset, *(self._dataset(model, file) for file in alike)]

    def _dataset(self, model: _Model, file: _Alike) -> xr.Dataset:
        variables: dict[Hashable, xr.Variable] = {}
        indexes: dict[Hashable, Any] = dict(model.dataset.xindexes)
        for name, known in model.dataset.variables.items():
            if name in model.stored:
                variables[name] = file.values.get(str(name), known)
                if name in indexes and name in file.values:
                    variables[name], indexes[name] = self._indexes.of(name, variables[name])
            else:
                shape = file.shapes[str(name)]
                mosaic = mosaic_of(file.state, name, known.dtype, self._grid(model, name, shape))
                encoding = {**known.encoding, "source": file.state.source.url, "original_shape": shape}
                variables[name] = xr.Variable(known.dims, mosaic, known.attrs, encoding)
        made = recipes.with_variables(model.dataset, variables, indexes, file.attrs)
        return recipes.from_file(made, file.state.source.url, self._entry)

    def _grid(self, model: _Model, name: Hashable, shape: tuple[int, ...]) -> Chunks:
        if (grid := model.grids.get((name, shape))) is None:
            known = model.dataset.variables[name]
            like = xr.Variable(
                known.dims, np.broadcast_to(np.zeros((), known.dtype), shape), None, known.encoding
            )
            grid = recipes.chunks_of(like, self._entry.chunks, self._limits.chunk, self._limits.automatic)
            model.grids[name, shape] = grid
        return grid

    def _side_by_side(self, model: _Model, files: Sequence[_Alike]) -> xr.Dataset | None:
        """Make one Dataset of files that follow one another, the model first; None if they might not.

        It is the one that xarray makes of theirs; where one of its rules would have to be applied, that is
        left to xarray.
        """
        differing = {name for file in files for name in file.values}
        if len(differing) != 1:
            return None
        (along,) = differing
        first = model.dataset
        options = self._entry.combining
        nested = options.get("combine", "nested" if "concat_dim" in options else "by_coords") == "nested"
        if (
            along not in first.xindexes
            or not _SETTLED.issuperset(options)
            or options.get("combine_attrs", "override") != "override"
            or options.get("combine", "nested") not in ("nested", "by_coords")
            or (options.get("concat_dim") != along if nested else "concat_dim" in options)
        ):
            return None
        pieces = [first.variables[along], *(file.values.get(along, first.variables[along]) for file in files)]
        values = np.concatenate([piece.values for piece in pieces])
        coordinate = xr.Variable((along,), values, pieces[0].attrs, pieces[0].encoding)
        made = xr.Coordinates({along: coordinate})
        index = made.xindexes[along].to_pandas_index()
        if not nested and not (index.is_monotonic_increasing and index.is_unique):
            return None
        variables: dict[Hashable, xr.Variable] = {along: made.variables[along]}
        for name, known in first.variables.items():
            if name not in model.stored:
                if (one := self._laid_out(model, str(name), along, files)) is None:
                    return None
                variables[name] = one
            elif name not in first.xindexes:
                if along in known.dims or name not in first.coords:
                    return None
                variables[name] = xr.Variable(known.dims, known.values, known.attrs)
        indexes = {**first.xindexes, along: made.xindexes[along]}
        combined = recipes.with_variables(first, variables, indexes)
        if not nested:
            combined.encoding = {}
        return combined

    def _laid_out(self, model: _Model, name: str, along: str, files: Sequence[_Alike]) -> xr.Variable | None:
        """Lay the pieces of a variable along a dimension; None if they do not fit, or it has no such one."""
        known = model.dataset.variables[name]
        if along not in known.dims:
            return None
        axis = known.dims.index(along)
        shapes = [known.shape, *(file.shapes[name] for file in files)]
        if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
            return None
        grids = [self._grid(model, name, shape) for shape in shapes]
        states = np.empty(
            [len(shapes) if number == axis else 1 for number in range(known.ndim)], dtype=object
        )
        states.flat[:] = [model.state, *(file.state for file in files)]
        grid = tuple(
            tuple(one[axis] for one in grids) if number == axis else (grids[0][number],)
            for number in range(known.ndim)
        )
        return xr.Variable(known.dims, Mosaic(name, known.dtype, states, grid), known.attrs, known.encoding)


# What may be said about combining where files follow one another: it is what becomes of what they do not.
_SETTLED = frozenset(("combine", "concat_dim", "data_vars", "join", "combine_attrs"))

# What may be said to xarray about files that are compared.
_READING = frozenset(
    ("mask_and_scale", "decode_times", "decode_timedelta", "use_cftime", "drop_variables", "group")
)


def _compared(state: State, model: _Model) -> _Alike | None:
    """Compare a file with another one; None if it is not alike."""
    stores.forget_others(state.source, state.version)
    with LOCK, netcdf_parts.group_of(state.source.url, state.source.group) as file:
        if _marks(file, model.dataset) != model.marks:
            return None
        shapes = {name: variable.shape for name, variable in file.variables.items()}
        stored = {name: _as_stored(file.variables[name], known) for name, known in model.stored.items()}
        attrs = {name: file.getncattr(name) for name in file.ncattrs()}
    values = _decoded({name: one for name, one in stored.items() if one is not model.stored[name]}, state)
    if any(one.dtype != model.dataset.variables[name].dtype for name, one in values.items()):
        return None
    if "coordinates" not in model.dataset.attrs:  # it says which variables are
        attrs.pop("coordinates", None)
    return _Alike(state, shapes, values, attrs)


def _model_of(state: State, dataset: xr.Dataset) -> _Model | None:
    """Make a model of a file; None if it has something that takes xarray to understand."""
    mosaics = {name for name, variable in dataset.variables.items() if isinstance(variable.data, Mosaic)}
    with LOCK, netcdf_parts.group_of(state.source.url, state.source.group) as file:
        # Texts, and types of their own.
        if not all(np.dtype(variable.dtype).kind in "iuf" for variable in file.variables.values()):
            return None
        beside = [str(name) for name in dataset.variables if name not in mosaics]
        if set(netcdf_parts.closure(file, beside)) != set(beside):
            return None
        # Whether the times of a variable have dates of NumPy's is decided by their values; bounds have those
        # that the coordinate has, which is read.
        dated = {file.variables[name].__dict__.get("bounds") for name in beside}
        if not all(dataset.variables[name].dtype.kind in "iufb" or name in dated for name in mosaics):
            return None
        store = NetCDF4DataStore(file, lock=LOCK)  # type: ignore[no-untyped-call]
        stored = {}
        for name in beside:
            variable = store.open_store_variable(name, file.variables[name])
            stored[name] = xr.Variable(variable.dims, variable.values, variable.attrs, variable.encoding)
        return _Model(state, _marks(file, dataset), dataset, stored)


def _marks(file: netCDF4.Dataset, dataset: xr.Dataset) -> Hashable:
    """All of a file that decides about its Dataset, except for the values and attributes of its indexes."""
    marks: list[Hashable] = [file.data_model, "coordinates" in file.ncattrs() and file.coordinates]
    marks += [(name, dimension.isunlimited()) for name, dimension in file.dimensions.items()]
    for name, variable in file.variables.items():
        attrs = variable.__dict__
        free = name in dataset.xindexes and not {"bounds", "coordinates"}.intersection(attrs)
        known = dataset.variables.get(name)
        marks.append(
            (
                name,
                variable.dtype.str,
                variable.dimensions,
                None if known is None or name in dataset.xindexes else _fixed(variable, known),
                _hashable(variable.chunking()),
                _hashable(variable.filters()),
                None if free else _hashable(attrs),
            )
        )
    return tuple(marks)


def _fixed(variable: netCDF4.Variable[Any], known: xr.Variable) -> Hashable:
    """Shape of what comes along with its values: whether it does was decided by that."""
    return None if isinstance(known.data, Mosaic) else variable.shape


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((name, _hashable(one)) for name, one in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    return tuple(value) if isinstance(value, list) else value


def _as_stored(variable: netCDF4.Variable[Any], known: xr.Variable) -> xr.Variable:
    """Read a variable; if it is what is known, get that."""
    variable.set_auto_maskandscale(False)
    values = variable[...]
    attrs = {name: variable.getncattr(name) for name in variable.ncattrs()}
    own = dict(known.attrs)
    same = values.shape == known.shape and values.tobytes() == known.values.tobytes()
    if same and _hashable(attrs) == _hashable(own):
        return known
    return xr.Variable(known.dims, values, attrs, {**known.encoding, "original_shape": values.shape})


def _decoded(stored: Mapping[str, xr.Variable], state: State) -> dict[str, xr.Variable]:
    """Decode variables as xarray does when it opens a file."""
    if not stored:
        return {}
    options = {name: value for name, value in state.source.xarray_kwargs.items() if name in _DECODING}
    decoded, _, _ = xr.conventions.decode_cf_variables(dict(stored), {}, **options)
    return {
        str(name): xr.Variable(one.dims, one.values, one.attrs, {**one.encoding, "source": state.source.url})
        for name, one in decoded.items()
    }


_DECODING = _READING - {"drop_variables", "group"}
