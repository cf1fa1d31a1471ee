"""Graphs that come out of placing, without a cluster."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from dask.array.optimization import optimize as stock
from dask.base import flatten, tokenize

from dask_pools import MixedPoolsError
from dask_pools.pins import pinned, pool_of_resources, pools_of_task, source_name
from dask_pools.placement import lower
from dask_pools.propagate import PlacingOptimizer

optimize = PlacingOptimizer("array_optimize")


def source(pool, shape=(8, 8), chunks=(2, 4), *, annotated=True, named=True):
    values = np.arange(np.prod(shape), dtype="f8").reshape(shape)
    token = tokenize(pool, shape, chunks)
    name = source_name("x", pool, token) if named else f"foreign-{token}"
    with pinned(pool if annotated else None):
        return da.from_array(values, chunks=chunks, name=name, inline_array=True)


class Lazy:
    """An array that is not in memory, and notes what is read of it."""

    dtype = np.dtype("f8")

    def __init__(self, shape):
        self.shape, self.ndim, self.shapes_read = shape, len(shape), []

    def __getitem__(self, index):
        values = np.arange(np.prod(self.shape), dtype="f8").reshape(self.shape)[index]
        self.shapes_read.append(values.shape)
        return values


def lazy_source(pool, values, chunks):
    name = source_name("x", pool, tokenize(pool, values.shape, chunks))
    return da.from_array(values, chunks=chunks, name=name, inline_array=True, meta=np.empty((0, 0)))


def placed(x):
    """Pool of each task, and the tasks."""
    layers = lower.read(x.__dask_graph__())
    graph = lower.place(layers, x.__dask_keys__(), lower.ARRAY)
    pools, tasks = {}, {}
    for layer in graph.layers.values():
        pool = pool_of_resources((layer.annotations or {}).get("resources"))
        for key, task in layer.items():
            pools[key], tasks[key] = pool, task
    return pools, tasks


PROGRAMS = {
    "mean": lambda x: x.mean(0),
    "chain": lambda x: ((x + 1) * 2 - x)[1:7, 3],
    "standardise": lambda x: (x - x.mean()) / x.std(),
    "rechunk": lambda x: x.rechunk((8, 1), method="tasks").sum(),
    "matmul": lambda x: x.T @ x,
    "overlap": lambda x: da.map_overlap(lambda b: b, x, depth=1, dtype=x.dtype),
    "concat": lambda x: da.concatenate([x, x[:2]]).max(1),
    "with an unpinned array": lambda x: x * da.ones(8, chunks=4),
    "where": lambda x: da.where(x > 3, x, 0).sum(),
}


@pytest.mark.parametrize("carriers", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_inside_one_pool_there_are_as_many_tasks_as_dask_alone_makes(program, carriers):
    annotated, named = carriers
    pools, tasks = placed(program(source("ecmwf", annotated=annotated, named=named)))
    plain = program(source("ecmwf", annotated=False, named=False))
    assert len(tasks) == len(stock(plain.dask, plain.__dask_keys__()))
    assert set(pools.values()) == {"ecmwf"}


def test_across_pools_only_the_edges_cost_tasks():
    x, y = source("ecmwf"), source("eumetsat")
    program = lambda x, y: ((x + 1) * 2 - (y * 3)).sum()  # noqa: E731  (one program, two graphs)
    pools, tasks = placed(program(x, y))
    plain = program(source("a", annotated=False, named=False), source("b", annotated=False, named=False))
    alone = stock(plain.dask, plain.__dask_keys__())
    edges = {
        source for key, task in tasks.items() for source in task.dependencies if pools[source] != pools[key]
    }
    assert edges
    assert len(tasks) <= len(alone) + 2 * len(edges)


def test_loaders_are_never_fused_across_pools():
    x, y = source("ecmwf"), source("eumetsat")
    _, tasks = placed((x + y) * 2)
    for key, task in tasks.items():
        assert len(pools_of_task(key, task)) <= 1


def test_every_loading_task_is_pinned_to_its_pool():
    x, y = source("ecmwf"), source("eumetsat")
    for program in (
        lambda: x + y,
        lambda: da.concatenate([x, y]).mean(0),
        lambda: (x.mean(0) - y.mean(0)).sum(),
    ):
        pools, tasks = placed(program())
        loads = {key: named for key, task in tasks.items() if (named := pools_of_task(key, task))}
        assert loads
        assert all(named == {pools[key]} for key, named in loads.items())


def test_concat_is_placed_task_by_task_not_as_a_layer():
    x, y = source("ecmwf"), source("eumetsat")
    pools, _ = placed(da.concatenate([x, y]).mean(1))
    means = {pool for key, pool in pools.items() if str(key[0]).startswith("mean")}
    assert means == {"ecmwf", "eumetsat"}


def test_slices_are_pushed_into_reads_as_dask_does():
    read = []
    for optimizer in (optimize, stock):
        values = Lazy((40, 40))
        x = lazy_source("ecmwf", values, chunks=(40, 40))
        with dask.config.set(array_optimize=optimizer):
            x[3:5, 1:].compute(scheduler="sync")
        read.append(values.shapes_read)
    assert read[0] == read[1] == [(2, 39)]


def test_a_graph_without_pins_comes_out_as_dask_makes_it():
    for program in PROGRAMS.values():
        x = program(source("ecmwf", annotated=False, named=False))
        ours, alone = optimize(x.dask, x.__dask_keys__()), stock(x.dask, x.__dask_keys__())
        assert type(ours) is type(alone)
        assert set(ours) == set(alone)


def test_other_annotations_are_carried_across():
    with dask.annotate(retries=3, priority=7):
        x = source("ecmwf")
    layers = lower.read(x.sum().dask)
    graph = lower.place(layers, x.sum().__dask_keys__(), lower.ARRAY)
    annotations = [layer.annotations for layer in graph.layers.values()]
    assert any(
        a.get("retries") == 3 and a.get("priority") == 7 and a["resources"] == {"pool-ecmwf": 0}
        for a in annotations
    )


def test_the_layers_of_the_user_are_not_changed():
    x = source("ecmwf")
    before = {name: dict(layer.annotations or {}) for name, layer in x.dask.layers.items()}
    placed(x.sum())
    assert before == {name: dict(layer.annotations or {}) for name, layer in x.dask.layers.items()}


def test_pins_without_a_name_get_one_where_dask_flattens_graphs_in_the_client():
    x = source("ecmwf", named=False)
    with dask.config.set(array_optimize=optimize):
        (flat,) = dask.optimize(x + 1)
    pools = {pool for key, task in flat.dask.items() for pool in pools_of_task(key, task)}
    assert pools == {"ecmwf"}
    np.testing.assert_array_equal(flat.compute(scheduler="sync"), (x + 1).compute(scheduler="sync"))


def test_tasks_that_dask_fused_across_pools_are_refused():
    x, y = (lazy_source(pool, Lazy((8, 8)), (4, 4)) for pool in ("ecmwf", "eumetsat"))
    flat = stock((x + y).dask, list(flatten((x + y).__dask_keys__())))
    with pytest.raises(MixedPoolsError, match="'ecmwf', 'eumetsat'"):
        lower.read(flat)


def test_a_plan_tells_the_pool_of_each_task_before_chains_are_fused():
    x, y = source("ecmwf"), source("eumetsat")
    total = (da.concatenate([x, y]).mean(1) + 1).sum()
    before, _ = placed(total)
    plan = lower.plan(lower.read(total.dask), total.__dask_keys__(), lower.ARRAY)
    assert [plan.keys[task] for task in plan.outputs] == list(flatten(total.__dask_keys__()))
    assert len(plan.keys) == len(plan.layers) == len(plan.pools) == len(plan.model.inputs)
    found = {key: plan.model.pools[pool] for key, pool in zip(plan.keys, plan.pools, strict=True)}
    assert {key: found[key] for key in before if key in found} == {
        key: pool for key, pool in before.items() if key in found
    }
    assert all(
        layer == (key[0] if isinstance(key, tuple) else key)
        for key, layer in zip(plan.keys, plan.layers, strict=True)
    )
