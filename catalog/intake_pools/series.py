"""Files of a series: what is known of one of them is not found out again for those that are made like it.

Most files of a series have the same variables, attributes and storage, and differ in the values of one
coordinate. xarray examines each as if it were the first; here the first is examined by xarray, and of another
one it is made sure that it is *alike*: all that decides about its Dataset is compared, coordinates are read.
What is not alike is opened as the first was. Of local NetCDF files only: others are not opened so fast that
it would matter.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
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
    marks : hashable
        Of all that has to be the same in files that are alike.
    dataset : xarray.Dataset
        Of mosaics, as `recipes.dataset_of` makes it.
    stored : dict of xarray.Variable
        The variables that come along with their values, as they are stored.
    grids : dict
        Chunks of the others, by name and shape.
    """

    marks: Hashable
    dataset: xr.Dataset
    stored: dict[str, xr.Variable]
    grids: dict[tuple[Hashable, tuple[int, ...]], Chunks] = field(default_factory=dict)


class Series:
    """Opens files of one entry, one after the other.

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
        self._model: _Model | None = None

    def open(self, source: Source) -> tuple[State, xr.Dataset]:
        """Open a file: its state, and a Dataset of mosaics."""
        if self._model is not None and self._may_be_alike(source):
            state = State(source, stores.version_of(source))
            if (alike := self._alike(state, self._model)) is not None:
                return state, alike
        file = stores.reopened(source)
        dataset = recipes.dataset_of(file, self._entry, self._limits, eager_data=False, shared=self._indexes)
        state = State(source, file.version)
        self._model = _model_of(state, dataset) if self._may_be_alike(source) else None
        return state, dataset

    def _may_be_alike(self, source: Source) -> bool:
        """Whether it is of a kind that is compared; fields of a pattern would have to be told apart."""
        return (
            not self._entry.patterns
            and source.with_only("any") is not source
            and _READING.issuperset(source.xarray_kwargs)
        )

    def _alike(self, state: State, model: _Model) -> xr.Dataset | None:
        """Make the Dataset of a file that is like another one; None if it is not."""
        stores.forget_others(state.source, state.version)
        with LOCK, netcdf_parts.group_of(state.source.url, state.source.group) as file:
            if _marks(file, model.dataset) != model.marks:
                return None
            shapes = {name: variable.shape for name, variable in file.variables.items()}
            stored = {name: _as_stored(file.variables[name], known) for name, known in model.stored.items()}
            attrs = {name: file.getncattr(name) for name in file.ncattrs()}
        values = _decoded({name: one for name, one in stored.items() if one is not model.stored[name]}, state)
        variables: dict[Hashable, xr.Variable] = {}
        indexes: dict[Hashable, Any] = {}
        for name, known in model.dataset.variables.items():
            if name in values and values[name].dtype != known.dtype:
                return None
            if name in model.dataset.xindexes:
                variables[name], indexes[name] = (
                    self._indexes.of(name, values[name])
                    if name in values
                    else (known, model.dataset.xindexes[name])
                )
            elif name in model.stored:
                variables[name] = values.get(str(name), known)
            else:
                variables[name] = self._mosaic(state, name, model, shapes[str(name)])
        if "coordinates" not in model.dataset.attrs:  # it says which variables are
            attrs.pop("coordinates", None)
        made = recipes.with_variables(model.dataset, variables, indexes, attrs)
        return recipes.from_file(made, state.source.url, self._entry)

    def _mosaic(self, state: State, name: Hashable, model: _Model, shape: tuple[int, ...]) -> xr.Variable:
        known = model.dataset.variables[name]
        encoding = {**known.encoding, "source": state.source.url, "original_shape": shape}
        if (grid := model.grids.get((name, shape))) is None:
            like = xr.Variable(known.dims, np.broadcast_to(np.zeros((), known.dtype), shape), None, encoding)
            grid = recipes.chunks_of(like, self._entry.chunks, self._limits.chunk, self._limits.automatic)
            model.grids[name, shape] = grid
        return xr.Variable(known.dims, mosaic_of(state, name, known.dtype, grid), known.attrs, encoding)


# What may be said to xarray about files that are compared.
_READING = frozenset(
    ("mask_and_scale", "decode_times", "decode_timedelta", "use_cftime", "drop_variables", "group")
)


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
        return _Model(_marks(file, dataset), dataset, stored)


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
