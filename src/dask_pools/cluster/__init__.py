"""Clusters whose workers belong to pools."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_pools.cluster.local_pools import LocalPools
    from dask_pools.cluster.multi_site import MultiSiteCluster
    from dask_pools.cluster.orphans import adopt
    from dask_pools.cluster.pool_cluster import PoolCluster
    from dask_pools.cluster.pool_spec import PoolSpec, pool_specs

__all__ = ["LocalPools", "MultiSiteCluster", "PoolCluster", "PoolSpec", "adopt", "pool_specs"]

_ROOM = {
    "LocalPools": "local_pools",
    "MultiSiteCluster": "multi_site",
    "PoolCluster": "pool_cluster",
    "PoolSpec": "pool_spec",
    "adopt": "orphans",
    "pool_specs": "pool_spec",
}


def __getattr__(name: str) -> Any:
    # An agent needs launchers and no cluster; and only who asks for MultiSiteCluster needs what speaks SSH
    # (intake-pools[sites]).
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"dask_pools.cluster.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
