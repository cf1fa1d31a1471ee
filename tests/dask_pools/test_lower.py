"""Graphs that come out of placing, without a cluster."""

from __future__ import annotations

import gc
import pickle
import weakref

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.array.optimization import optimize as stock
from dask.base import flatten, tokenize

from dask_pools import MixedPoolsError, ResidencyError, data_centres, pool
from dask_pools.pins import pinned, pool_of_resources, pools_of_task, source_name
from dask_pools.placement import lower
from dask_pools.placement.layers import read_layers
from dask_pools.placement.model import crossings
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
    layers = read_layers(x.__dask_graph__())
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
    layers = read_layers(x.sum().dask)
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
        read_layers(flat)


def test_a_plan_tells_the_pool_of_each_task_before_chains_are_fused():
    x, y = source("ecmwf"), source("eumetsat")
    total = (da.concatenate([x, y]).mean(1) + 1).sum()
    before, _ = placed(total)
    plan = lower.plan(read_layers(total.dask), total.__dask_keys__(), lower.ARRAY)
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


def whereabouts(plan, name):
    """Pools of the tasks whose layer's name begins so."""
    return {
        plan.model.pools[where]
        for layer, where in zip(plan.layers, plan.pools, strict=True)
        if layer.startswith(name)
    }


def planned(x, **more):
    return lower.plan(read_layers(x.dask), list(flatten([x.__dask_keys__()])), lower.ARRAY, **more)


def crossing(plan):
    return sorted(
        (plan.layers[one.task].split("@")[0].split("-")[0], plan.model.pools[one.target], one.nbytes)
        for one in crossings(plan.model, plan.pools)
    )


def test_what_grows_from_small_things_is_made_beside_its_consumers():
    small, large = source("ecmwf", (8,), (8,)), source("eumetsat", (8, 800), (8, 400))
    grown = small[:, None] * da.ones((8, 800), chunks=(8, 400))
    plan = planned((large - grown).sum())
    assert sum(nbytes for *_, nbytes in crossing(plan)) <= 64 + 8
    assert whereabouts(plan, "mul") <= {"eumetsat"}


def test_what_several_layers_make_of_one_pool_stays_there_without_a_look_at_its_tasks():
    x, y = source("ecmwf"), source("eumetsat")
    layers = read_layers(((x + 1).mean(0) - y.mean(0)).dask)
    free = set(layers.graph.layers) - set(layers.homes)
    assert {name.split("-")[0] for name in layers.homes} >= {"mean_chunk"}
    assert free
    assert all(layers.pools[name] == {"ecmwf", "eumetsat"} or "mean" in name for name in free)


def test_the_result_is_gathered_where_most_of_it_is():
    x, y = source("ecmwf", (8, 80), (8, 40)), source("eumetsat", (8, 8))
    graphs = []

    def capture(graph, keys, **_):
        graphs.append((graph, keys))
        return stock(graph, keys)

    with dask.config.set(array_optimize=capture):
        da.concatenate([x + 1, y + 1], axis=1).compute(scheduler="sync")
    ((graph, keys),) = graphs
    plan = lower.plan(read_layers(graph), keys, lower.ARRAY)
    assert whereabouts(plan, "finalize") == {"ecmwf"}


def test_inside_pool_none_tasks_are_free_and_pins_outside_are_kept():
    x, y = source("ecmwf", (8, 80), (8, 40)), source("eumetsat")
    with pool("metoffice"):
        with pool(None):
            free = x.sum(1) + y.sum(1)
        kept = free * 2
    plan = planned(kept)
    assert whereabouts(plan, "sum") <= {"ecmwf", "eumetsat"}
    assert whereabouts(plan, "mul") == {"metoffice"}


def stays(at, shape=(8, 8), chunks=(2, 4)):
    name = source_name("secret", at, tokenize(at, shape, chunks), stays=True)
    with pinned(at):
        return da.from_array(np.zeros(shape), chunks=chunks, name=name, inline_array=True)


def test_what_must_stay_makes_the_rest_come_to_it():
    x, y = stays("ecmwf"), source("eumetsat", (80, 8, 8), (40, 2, 4))
    plan = planned(x + y)
    assert {what for what, *_ in crossing(plan)} == {"read"}
    assert whereabouts(plan, "add") == {"ecmwf"}


def test_what_is_made_of_it_may_leave():
    plan = planned(stays("ecmwf").mean() + source("eumetsat"))
    assert whereabouts(plan, "add") == {"eumetsat"}


def test_an_operation_that_needs_it_elsewhere_is_refused_by_name():
    x = stays("ecmwf")
    with pinned("eumetsat"):
        y = x + 1
    with pytest.raises(ResidencyError, match=r"'secret'.*'ecmwf'.*'add'.*'eumetsat'"):
        optimize(y.dask, y.__dask_keys__())
    with pytest.raises(ResidencyError):
        planned(stays("ecmwf") + stays("eumetsat"))


def test_prices_between_pools_count():
    x, y = source("ecmwf"), source("eumetsat", (8, 8), (2, 4))
    equal = planned(x + y)
    assert whereabouts(equal, "add") == {"ecmwf", "eumetsat"}
    assert whereabouts(planned(x + y, costs={"ecmwf": {"eumetsat": 2.0}}), "add") == {"ecmwf"}
    assert whereabouts(planned(x + y, costs={"eumetsat": {"ecmwf": 2.0}}), "add") == {"eumetsat"}


def test_a_fault_in_the_search_leaves_a_placement_by_inputs(monkeypatch, caplog):
    def fail(model):
        raise RuntimeError("broken")

    x, y = source("ecmwf"), source("eumetsat")
    monkeypatch.setattr(lower, "assign", fail)
    pools, tasks = placed((x + y).sum())
    assert set(pools) == set(tasks)
    assert {pool for key, pool in pools.items() if not pools_of_task(key, tasks[key])} == {"ecmwf"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("frozen", [False, True], ids=["nothing was frozen", "some was"])
def test_the_garbage_collector_goes_on_as_before_also_after_a_fault(frozen):
    class Cycle:
        pass

    x, y = source("ecmwf"), source("eumetsat")
    if frozen:
        gc.freeze()
    try:
        placed((x + y).sum())
        layers = read_layers((x + y).dask)
        with pytest.raises(ZeroDivisionError):
            lower.place(layers, list(flatten((x + y).__dask_keys__())), lower.ARRAY, check=lambda _: 1 / 0)
        assert gc.isenabled()
        assert bool(gc.get_freeze_count()) == frozen
        garbage = Cycle()
        garbage.itself, gone = garbage, weakref.ref(garbage)
        del garbage
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_lengths_that_are_not_known_count_as_what_they_are_taken_from():
    x, y = source("ecmwf", (80, 8), (40, 8)), source("eumetsat")
    some = x[x[:, 0] > 3]
    plan = planned(da.concatenate([some, y], allow_unknown_chunksizes=True).sum())
    sizes = dict(zip(plan.layers, plan.model.nbytes, strict=True))
    assert max(n for layer, n in sizes.items() if layer.startswith("getitem")) == 40 * 8 * 8


def test_slices_of_known_length_count_as_much_as_they_hold():
    x, y = source("ecmwf", (8, 800), (4, 800)), source("eumetsat", (8, 800), (4, 800))
    plan = planned(da.map_overlap(lambda b: b, da.concatenate([x, y]), depth={0: 1}, dtype="f8"))
    # Of each site the row at the border goes to the other.
    assert [nbytes for *_, nbytes in crossing(plan)] == [800 * 8, 800 * 8]
    plan = planned(da.concatenate([x, y]).rechunk((6, 800), method="tasks"))
    assert [nbytes for *_, nbytes in crossing(plan)] == [2 * 800 * 8]


def weekdays(values):
    """Means for each day of the week, as xarray has flox make them."""
    days = pd.date_range("2000-01-01", periods=len(values))
    return (
        xr.DataArray(values, dims=("time", "x"), coords={"time": days}).groupby("time.dayofweek").mean().data
    )


@pytest.mark.parametrize(
    "several", [weekdays, lambda x: da.topk(x, 7, axis=0), lambda x: da.argtopk(x, 7, axis=0)]
)
def test_what_reductions_make_is_not_taken_for_less_than_it_is(several):
    # Dask says that the last step makes one row, less than the two of the other site; it makes seven.
    x, y = source("ecmwf", (80, 100), (10, 100)), source("eumetsat", (2, 100), (2, 100))
    plan = planned((several(x)[None, :] * y[:, None]).sum())
    assert sum(nbytes for *_, nbytes in crossing(plan)) == 2 * 100 * 8
    assert whereabouts(plan, "sum") == {"ecmwf"}


def test_outputs_of_a_p2p_rechunk_go_where_its_barrier_goes():
    x, y = source("ecmwf", (80, 8), (20, 8)), source("eumetsat")
    both = da.concatenate([x, y]).rechunk((88, 2), method="p2p")
    plan = planned((both - y[:1, :]).sum())
    barriers = [task for task, key in enumerate(plan.keys) if str(key).startswith("shuffle-barrier")]
    assert barriers
    outputs = [task for task, inputs in enumerate(plan.model.inputs) if set(inputs) & set(barriers)]
    assert outputs
    assert {plan.model.pools[plan.pools[task]] for task in barriers + outputs} == {"ecmwf"}


def test_prices_travel_with_the_graph():
    files = [
        data_centres.load({"version": 1, "data_centres": {"a": {}, "b": {}, "c": {}}, "costs": costs})
        for costs in ({"a": {"b": 3.0}}, {"a": {"b": 5.0, "c": 7.0}})
    ]
    sent = PlacingOptimizer("array_optimize", True, ((files[0],), (files[1],)))
    assert pickle.loads(pickle.dumps(sent)).costs() == {"a": {"b": 3.0, "c": 7.0}}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_large_is_fetched_once_for_all_workers_of_a_pool(monkeypatch, workers):
    threads = {"pool-ecmwf": [2, 2], "pool-eumetsat": [2] * workers}
    monkeypatch.setattr(lower.dask_internals, "threads_by_resource", lambda: threads)
    x, y = source("ecmwf", (8, 2000), (2, 2000)), source("eumetsat", (8, 2000), (1, 2000))
    few, many = y - x.mean(0), y[:, :10] - x[:, :10].mean(0)
    for program, once in ((few, workers > 1), (many, False)):
        pools, tasks = placed(program)
        read = {
            source
            for key, task in tasks.items()
            for source in task.dependencies
            if (pools[source], pools[key]) == ("ecmwf", "eumetsat")
        }
        (mean,) = read
        readers = [key for key, task in tasks.items() if mean in task.dependencies]
        assert len(readers) == (1 if once else 8)
        result = np.concatenate([dask.get(tasks, key) for key in flatten(program.__dask_keys__())])
        np.testing.assert_array_equal(result, program.compute(scheduler="sync"))
