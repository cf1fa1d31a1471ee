"""Clusters whose workers belong to pools."""

from dask_pools.cluster.local_pools import LocalPools
from dask_pools.cluster.pool_cluster import PoolCluster, PoolSpec

__all__ = ["LocalPools", "PoolCluster", "PoolSpec"]
