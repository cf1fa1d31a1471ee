"""Clusters whose workers belong to pools."""

from typing import TYPE_CHECKING, Any

from dask_pools.cluster.local_pools import LocalPools
from dask_pools.cluster.orphans import adopt
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import PoolSpec, pool_specs

if TYPE_CHECKING:
    from dask_pools.cluster.multi_site import MultiSiteCluster

__all__ = ["LocalPools", "MultiSiteCluster", "PoolCluster", "PoolSpec", "adopt", "pool_specs"]


def __getattr__(name: str) -> Any:
    # Only who asks for it needs what speaks SSH (intake-pools[sites]).
    if name == "MultiSiteCluster":
        from dask_pools.cluster.multi_site import MultiSiteCluster

        return MultiSiteCluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
