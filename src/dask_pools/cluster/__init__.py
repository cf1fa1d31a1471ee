"""Clusters whose workers belong to pools."""

from dask_pools.cluster.local_pools import LocalPools
from dask_pools.cluster.pool_cluster import PoolCluster
from dask_pools.cluster.pool_spec import PoolSpec, pool_specs

__all__ = ["LocalPools", "PoolCluster", "PoolSpec", "pool_specs"]
