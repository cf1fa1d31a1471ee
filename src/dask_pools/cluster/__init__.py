"""Clusters whose workers belong to pools."""

from typing import TYPE_CHECKING

from dask_pools.lazy_names import lazily

if TYPE_CHECKING:
    from dask_pools.cluster.local_pools import LocalPools
    from dask_pools.cluster.multi_site import MultiSiteCluster
    from dask_pools.cluster.orphans import adopt
    from dask_pools.cluster.pool_cluster import PoolCluster
    from dask_pools.cluster.pool_spec import PoolSpec, pool_specs

__all__ = ["LocalPools", "MultiSiteCluster", "PoolCluster", "PoolSpec", "adopt", "pool_specs"]

# An agent needs launchers and no cluster; and only who asks for MultiSiteCluster needs what speaks SSH
# (intake-pools[sites]).
__getattr__, __dir__ = lazily(
    __name__,
    {
        "LocalPools": "local_pools",
        "MultiSiteCluster": "multi_site",
        "PoolCluster": "pool_cluster",
        "PoolSpec": "pool_spec",
        "adopt": "orphans",
        "pool_specs": "pool_spec",
    },
)
