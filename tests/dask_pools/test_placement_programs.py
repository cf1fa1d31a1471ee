"""Random programs of dask.array and xarray give the same results with pools as without."""

from __future__ import annotations

from dataclasses import dataclass
from unittest.mock import patch

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize
from dask.core import flatten
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_pools import dask_internals, pool
from dask_pools.pins import pools_of_task, source_name
from dask_pools.placement import lower
from dask_pools.placement.layers import read_layers
from dask_pools.placement.model import FREE
from dask_pools.propagate import PlacingOptimizer

SITES = ("ecmwf", "eumetsat", "metoffice")
SHAPE = (12, 8)


def values(site):
    return np.random.default_rng(SITES.index(site)).integers(-9, 9, SHAPE).astype("f8")


def source(site, chunks, pinned):
    data = values(site)
    token = tokenize(site, chunks)
    name = source_name("x", site, token) if pinned else f"x-{token}"
    with pool(site if pinned else None):
        return da.from_array(data, chunks=chunks, name=name, inline_array=True)


@dataclass(frozen=True)
class Program:
    """Steps on a stack of arrays of one shape; each takes one or two, and leaves one."""

    sites: tuple[str, ...]
    chunks: tuple[int, int]
    steps: tuple[tuple[str, int, int], ...]
    last: str

    def run(self, pinned):
        stack = [source(site, self.chunks, pinned) for site in self.sites]
        for step, first, second in self.steps:
            stack.append(STEPS[step](stack[first % len(stack)], stack[second % len(stack)]))
        return LAST[self.last](stack[-1], stack[-2] if len(stack) > 1 else stack[-1])


def of_xarray(operation):
    def step(x, y):
        a, b = (xr.DataArray(z, dims=("t", "p"), coords={"t": np.arange(12) // 3}) for z in (x, y))
        return operation(a, b).transpose("t", "p").data

    return step


STEPS = {
    "add": lambda x, y: x + y,
    "anomaly": lambda x, y: x - y.mean(0),
    "global": lambda x, y: x * y.max(),
    "grow": lambda x, y: x.sum(0)[None, :] + da.ones(SHAPE, chunks=(4, 4)) * y.mean(1)[:, None],
    "where": lambda x, y: da.where(y > 0, x, -x),
    "halves": lambda x, y: da.concatenate([x[:6], y[6:]]),
    "rechunk": lambda x, y: x.rechunk((12, 2)) + y[::-1],
    "overlap": lambda x, y: da.map_overlap(lambda b: b + 1, x, depth=1, boundary="none", dtype="f8") + y,
    "matmul": lambda x, y: (x @ y.T / 100) @ x,
    "cumsum": lambda x, y: da.cumsum(x, axis=0) + y,
    "nan": lambda x, y: da.nan_to_num(da.where(x > 2, np.nan, y)),
    "topk": lambda x, y: da.topk(x, 3, axis=0).sum(0) + y,
    "shift": of_xarray(lambda a, b: a.shift(p=1, fill_value=0) + b),
    "groups": of_xarray(lambda a, b: a.groupby("t") - b.groupby("t").mean()),
    "rolling": of_xarray(lambda a, b: a.rolling(t=3, min_periods=1).mean() + b),
}
LAST = {
    "itself": lambda x, y: x,
    "mean": lambda x, y: x.mean(0),
    "both": lambda x, y: da.stack([x, y]),
    "number": lambda x, y: (x - y).std(),
    "rows": lambda x, y: x[x[:, 0] > 0],
}

programs = st.builds(
    Program,
    sites=st.lists(st.sampled_from(SITES), min_size=1, max_size=3).map(tuple),
    chunks=st.sampled_from([(4, 4), (3, 8), (12, 2), (5, 3)]),
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), max_size=5
    ).map(tuple),
    last=st.sampled_from(sorted(LAST)),
)
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors]


@settings(max_examples=60, deadline=None, suppress_health_check=CHECKS)
@given(programs, st.sampled_from([1, 2]))
def test_placed_programs_give_the_same_results(program, workers):
    with dask.config.set(array_optimize=None):
        expected = program.run(pinned=False).compute(scheduler="sync")
    threads = {f"pool-{site}": [1] * workers for site in SITES}
    with (
        dask.config.set(array_optimize=PlacingOptimizer("array_optimize")),
        # Where pools have several workers, whatever crosses is fetched once for all.
        patch.object(dask_internals, "threads_by_resource", lambda: threads),
        patch.object(lower, "FETCHED_ONCE", 0),
    ):
        result = program.run(pinned=True).compute(scheduler="sync")
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None, suppress_health_check=CHECKS)
@given(programs)
def test_every_loading_task_of_a_program_keeps_its_pin(program):
    x = program.run(pinned=True)
    keys = list(flatten([x.__dask_keys__()]))
    plan = lower.plan(read_layers(x.dask), keys, lower.ARRAY)
    of = {
        key: plan.model.pools[pool] for key, pool in zip(plan.keys, plan.pools, strict=True) if pool != FREE
    }
    graph = lower.place(read_layers(x.dask), keys, lower.ARRAY)
    for layer in graph.layers.values():
        pinned = (layer.annotations or {}).get("resources", {})
        for key, task in layer.items():
            if named := pools_of_task(key, task):
                assert {f"pool-{site}": 0 for site in named} == pinned
            if key in of:
                assert pinned == {f"pool-{of[key]}": 0}


@pytest.mark.timeout(240)
@settings(max_examples=25, deadline=None, suppress_health_check=CHECKS)
@given(programs)
def test_on_workers_programs_give_the_same_results_with_pools_as_without(client, program):
    # The session's cluster has two of the three pools.
    program = Program(
        tuple(site if site != "metoffice" else "ecmwf" for site in program.sites),
        program.chunks,
        program.steps,
        program.last,
    )
    with dask.config.set({"array.rechunk.method": "tasks"}):
        with dask.config.set({"pools.propagate": False}):
            expected = program.run(pinned=False).compute(scheduler="sync")
        result = program.run(pinned=True).compute()
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
