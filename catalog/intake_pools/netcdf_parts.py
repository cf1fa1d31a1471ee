"""Some variables of a NetCDF file, without a look at the others.

Who reads one variable need not know the others; xarray makes itself acquainted with all of them, which takes
several times as long as opening the file. Decoding stays xarray's. Everything here is done under `LOCK`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import xarray as xr
from xarray.backends import NetCDF4DataStore

from intake_pools.netcdf_lock import LOCK

if TYPE_CHECKING:
    import netCDF4

__all__ = ["can_be_parted", "closure", "group_of", "open_part"]

# What a call of xarray.open_dataset may say besides; whoever says more gets all of the file.
_DECODING = frozenset(
    ("decode_cf", "mask_and_scale", "decode_times", "decode_timedelta", "use_cftime", "concat_characters",
     "decode_coords", "drop_variables", "create_default_indexes")
)  # fmt: skip


class _Part(NetCDF4DataStore):
    """Shows some variables of a file."""

    __slots__ = ("only",)
    only: tuple[str, ...]

    def get_variables(self) -> dict[str, xr.Variable]:
        """Get those that are asked for, and what they are decoded by."""
        file = self.ds
        return {
            name: self.open_store_variable(name, file.variables[name]) for name in closure(file, self.only)
        }

    def get_attrs(self) -> dict[str, Any]:
        """Get none: nobody asks for them."""
        return {}


def closure(file: netCDF4.Dataset, names: Iterable[str]) -> list[str]:
    """Add to some variables those that they are decoded by, in the order of the file.

    Bounds have the units of what they are bounds of; and whether the last dimension of characters is one of
    texts shows in who else has it.
    """
    wanted = set(names)
    if any(file.variables[name].dtype == "S1" for name in wanted):
        return list(file.variables)
    owners = {
        name
        for name, variable in file.variables.items()
        if "bounds" in variable.ncattrs() and variable.getncattr("bounds") in wanted
    }
    return [name for name in file.variables if name in wanted or name in owners]


def can_be_parted(engine: str | None, xarray_kwargs: Mapping[str, Any]) -> bool:
    """Whether variables of a local file can be opened by themselves, by what is said about it."""
    return engine == "netcdf4" and _DECODING.union(["group"]).issuperset(xarray_kwargs)


@contextmanager
def group_of(path: str, group: str) -> Iterator[netCDF4.Dataset]:
    """Open a file with the NetCDF library alone, for a short look; gives one of its groups."""
    import netCDF4

    with netCDF4.Dataset(path) as file:
        yield file[group] if group else file


def open_part(path: str, names: Iterable[str], xarray_kwargs: Mapping[str, Any]) -> xr.Dataset:
    """Open some variables of a file, lazily, as `xarray.open_dataset` opens them.

    Attributes of the file are left out.
    """
    options = dict(xarray_kwargs)
    with LOCK:
        group = options.pop("group", None)
        store = _Part.open(path, group=group, lock=LOCK)  # type: ignore[no-untyped-call]
        store.only = tuple(names)
        try:
            return xr.open_dataset(store, engine="store", chunks=None, cache=False, **options)
        except BaseException:
            store.close()
            raise
