"""Pins and placement on Dask: tasks run in the data centre that holds their data."""

from dask_pools import config  # noqa: F401  (sets the defaults of dask.config)

__version__ = "0.1.0"

from dask_pools.errors import (
    DataCentresError,
    DataChangedError,
    EntryError,
    MisplacedTaskError,
    MixedPoolsError,
    PoolsError,
    PoolUnavailableError,
    ResidencyError,
    UnlocatedError,
    UnsupportedSettingError,
    VersionMismatchError,
)
from dask_pools.pins import get_pool
from dask_pools.propagate import connect, pool, propagate_pools

__all__ = [
    "DataCentresError",
    "DataChangedError",
    "EntryError",
    "MisplacedTaskError",
    "MixedPoolsError",
    "PoolUnavailableError",
    "PoolsError",
    "ResidencyError",
    "UnlocatedError",
    "UnsupportedSettingError",
    "VersionMismatchError",
    "connect",
    "get_pool",
    "pool",
    "propagate_pools",
]
