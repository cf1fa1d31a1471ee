"""Pins and placement on Dask: tasks run in the data centre that holds their data."""

from dask_pools import config  # noqa: F401  (sets the defaults of dask.config)

__version__ = "0.1.0"

from dask_pools.errors import (
    DataCentresError,
    DataChangedError,
    EntryError,
    HostKeyError,
    MeshError,
    MisplacedTaskError,
    MixedPoolsError,
    PoolsError,
    PoolUnavailableError,
    ResidencyError,
    SiteError,
    TransferBudgetError,
    UnlocatedError,
    UnsupportedSettingError,
    VersionMismatchError,
)
from dask_pools.explain import Plan, explain
from dask_pools.pins import get_pool
from dask_pools.propagate import connect, pool, propagate_pools
from dask_pools.task_stream import task_stream
from dask_pools.traffic import measure_traffic
from dask_pools.visualize import visualize_pools

__all__ = [
    "DataCentresError",
    "DataChangedError",
    "EntryError",
    "HostKeyError",
    "MeshError",
    "MisplacedTaskError",
    "MixedPoolsError",
    "Plan",
    "PoolUnavailableError",
    "PoolsError",
    "ResidencyError",
    "SiteError",
    "TransferBudgetError",
    "UnlocatedError",
    "UnsupportedSettingError",
    "VersionMismatchError",
    "connect",
    "explain",
    "get_pool",
    "measure_traffic",
    "pool",
    "propagate_pools",
    "task_stream",
    "visualize_pools",
]
