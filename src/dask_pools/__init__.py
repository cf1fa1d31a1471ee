"""Pins and placement on Dask: tasks run in the data centre that holds their data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_pools import config  # noqa: F401  (sets the defaults of dask.config)
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
from dask_pools.lazy_names import lazily

if TYPE_CHECKING:
    from dask_pools.explanation import explain
    from dask_pools.pins import get_pool
    from dask_pools.placement.plan import Plan
    from dask_pools.propagate import connect, pool, propagate_pools
    from dask_pools.timeline import task_stream
    from dask_pools.traffic import measure_traffic
    from dask_pools.visualize import visualize_pools

__version__ = "0.1.0"

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

# They import dask.array, and with it pandas and xarray: a second for each command and each site's agent.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Plan": "placement.plan",
        "connect": "propagate",
        "explain": "explanation",
        "get_pool": "pins",
        "measure_traffic": "traffic",
        "pool": "propagate",
        "propagate_pools": "propagate",
        "task_stream": "timeline",
        "visualize_pools": "visualize",
    },
)
