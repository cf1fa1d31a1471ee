"""explain(): what a computation will move between data centres, before it runs.

The graph takes the way it would take if it were computed: the client makes it, the scheduler places it, since
it alone knows where persisted results are. It is dropped there, and a `Plan` comes back. What a plan says and
how it prints is in `dask_pools.placement.plan`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dask.base import is_dask_collection, unpack_collections
from distributed import Client, Scheduler
from distributed.protocol.pickle import dumps, loads

from dask_pools import dask_internals, propagate
from dask_pools.config import in_bytes, transfer_budget
from dask_pools.pins import pools_of_resources
from dask_pools.placement.plan import Crossing, Plan, PoolShare, Step, budget_error

__all__ = ["Crossing", "Plan", "PoolShare", "Step", "explain"]


def explain(*collections: Any, budget: str | int | None = None, client: Client | None = None) -> Plan:
    """Tell what ``dask.compute(*collections)`` will move between pools; computes nothing.

    Parameters
    ----------
    *collections
        Arrays, bags, Delayed and xarray objects, also in lists and dicts; what is not lazy is left out. Of
        xarray objects each variable is taken for itself, as their own ``compute()`` does.
    budget : str or int, optional
        Bytes that may cross between pools, such as ``"500 MB"``. By default the setting
        ``pools.transfer-budget`` is told in the plan, and nothing is raised.
    client : distributed.Client, optional
        The current one, if not given. Without any, where persisted results lie is not known.

    Returns
    -------
    Plan
        Prints as tables, in a notebook too.

    Raises
    ------
    TransferBudgetError
        If more would cross than `budget`.
    TypeError
        If one of the collections is a frame: where Dask places the tasks of a frame is decided as it runs.
    UnsupportedSettingError
        If a setting of Dask is in force that defeats pins.

    Examples
    --------
    >>> print(explain(predictions - observations))  # doctest: +SKIP
    """
    lazy = _arrays(collections)
    limit = transfer_budget() if budget is None else in_bytes(budget)
    if not lazy:
        return Plan(budget=limit)
    with propagate.propagate_pools():
        graphs = dask_internals.graphs_to_compute(lazy)
        if graphs is None or not all(isinstance(of, propagate.PlacingOptimizer) for of, _, _ in graphs):
            raise TypeError(
                "explain() knows arrays, bags, Delayed and xarray objects, with pins in force; it got "
                f"{', '.join(sorted({type(one).__name__ for one in lazy}))}. Frames are placed as they run: "
                "compute them inside measure_traffic() instead."
            )
        question = dumps((graphs, limit))
    client = client or propagate.computing_client()
    # Where nobody computes on a cluster there is nobody to ask, and nothing crosses.
    plan: Plan = (
        _answer(question, {})
        if client is None
        else client.sync(client._run_on_scheduler, plan_here, question=question)
    )
    if budget is not None and plan.over_budget:
        raise budget_error(plan)
    return plan


def _arrays(collections: Iterable[Any]) -> list[Any]:
    """Find the collections in a nested structure, with xarray objects taken apart."""
    import xarray as xr

    found: list[Any] = []
    for one in unpack_collections(*collections)[0]:
        if isinstance(one, xr.DataArray):
            one = one.to_dataset(name="variable", promote_attrs=False)
        if isinstance(one, xr.Dataset):
            variables = [variable.data for variable in one.variables.values()]
            found += [data for data in variables if is_dask_collection(data)]
        else:
            found.append(one)
    return found


async def plan_here(question: bytes, dask_scheduler: Scheduler) -> Plan:
    """Make the plan of some graphs; for ``client.run_on_scheduler``."""
    workers = Counter(
        pool for worker in dask_scheduler.workers.values() for pool in pools_of_resources(worker.resources)
    )
    # Not in the thread that prepares graphs: those that are to be computed need not wait for an explanation.
    return await asyncio.to_thread(_answer, question, dict(workers))


def _answer(question: bytes, workers: dict[str, int]) -> Plan:
    graphs, budget = loads(question)
    plans: list[Plan] = [optimizer.plan(dsk, keys, workers, budget) for optimizer, dsk, keys in graphs]
    # Optimisers of ours are all equal, so Dask makes one graph of all collections.
    (plan,) = plans
    return plan
