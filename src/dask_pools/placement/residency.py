"""What must not leave its data centre (residency), on its way to the client.

Between pools, placement looks after it (`dask_pools.placement.lower`). Here it is about results: the client
is outside of every pool, unless it says otherwise. This prevents accidents; it is no access control.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import dask
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from distributed import get_worker

from dask_pools import dask_internals, pins
from dask_pools.errors import ResidencyError

__all__ = ["check_client", "pools_here"]


def pools_here() -> frozenset[str]:
    """Pools that this process is in: those of the worker that it is, and the one of ``pools.here``."""
    here: set[str] = set()
    if (stated := dask.config.get("pools.here", None)) is not None:
        here.add(pins.check_name(stated))
    try:
        resources = get_worker().state.total_resources
    except ValueError:  # no worker
        resources = {}
    here |= {pool for name in resources if (pool := pins.pool_of_resources({name: 0})) is not None}
    return frozenset(here)


def check_client(dsk: Any, keys: Iterable[Key], inside: Collection[str]) -> None:
    """Refuse a graph whose results are raw chunks that must stay, put together for a client outside.

    Parameters
    ----------
    dsk : HighLevelGraph
        As the client sent it. A graph of another kind, as of frames, is not looked at.
    keys : iterable of keys
        The results asked for. Those that stay on the cluster, as after ``persist()``, may be raw.
    inside : collection of str
        Pools that the client is in.

    Raises
    ------
    ResidencyError
    """
    layers: Mapping[str, Any] = dsk.layers if isinstance(dsk, HighLevelGraph) else {}
    if not any(pins.stays(name) for name in layers):
        return
    for key in keys:
        if not dask_internals.is_gathering(str(key)) or (layer := layers.get(str(key))) is None:
            continue
        parts = layer[key].dependencies
        for name in {part[0] if isinstance(part, tuple) and part else part for part in parts}:
            if pins.stays(name) and (pool := pins.pool_of_key(name)) not in inside and pool is not None:
                raise ResidencyError(pins.label_of_name(str(name)) or str(name), pool, "compute", None)
