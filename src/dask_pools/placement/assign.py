"""A pool for every task of a model. Pure: standard library only."""

from __future__ import annotations

from dask_pools.placement.model import FREE, Model


def assign(model: Model) -> list[int]:
    """Place each free task in the pool that holds most of its input bytes.

    Tasks are taken in topological order, so the inputs of a task are placed before it. A task that reads
    nothing from any pool (it has no pinned ancestor) follows the consumer that reads most from it, by bytes;
    a task that is connected to no pin stays `FREE`.

    Parameters
    ----------
    model : Model

    Returns
    -------
    list of int
        For each task its pool, or `FREE`.
    """
    pools = list(model.pinned)
    nbytes = model.nbytes
    for task, inputs in enumerate(model.inputs):
        if pools[task] != FREE or not inputs:
            continue
        held: dict[int, float] = {}
        for source in inputs:
            if (pool := pools[source]) != FREE:
                held[pool] = held.get(pool, 0.0) + nbytes[source]
        if held:
            # Of pools that hold as much, the first by name, so that a graph is always placed alike.
            pools[task] = min(held, key=lambda pool: (-held[pool], model.pools[pool]))

    wanted: dict[int, tuple[float, str, int]] = {}
    for task in range(len(pools) - 1, -1, -1):
        if pools[task] == FREE and task in wanted:
            pools[task] = wanted[task][2]
        if (pool := pools[task]) == FREE:
            continue
        for source in model.inputs[task]:
            if pools[source] == FREE:
                claim = (-nbytes[task], model.pools[pool], pool)
                if source not in wanted or claim < wanted[source]:
                    wanted[source] = claim
    return pools
