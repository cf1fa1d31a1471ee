"""One test for each assumption about a part of Dask that is not public.

Where one fails after an upgrade, its name says what has changed.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask._expr import FinalizeCompute
from dask._task_spec import Task, TaskRef, convert_legacy_graph
from dask.array.optimization import optimize as optimize_array
from dask.base import collections_to_expr, flatten
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, Future, Scheduler, SchedulerPlugin, futures_of, utils, wait
from distributed.shuffle._core import ShuffleRun
from distributed.shuffle._rechunk import ArrayRechunkRun
from distributed.shuffle._shuffle import DataFrameShuffleRun

from dask_pools import dask_internals as internals
from dask_pools.pins import pinned
from dask_pools.placement.layers import read_layers


class Lazy:
    shape, dtype, ndim = (8,), np.dtype("f8"), 1

    def __getitem__(self, index):
        return np.arange(8.0)[index]


class Logged(Lazy):
    read: ClassVar = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def lazy(name="lazy"):
    return da.from_array(Lazy(), chunks=4, name=name, inline_array=True, meta=np.empty(0))


def test_the_optimiser_is_read_from_the_configuration_when_something_is_computed():
    calls = []

    def spy(dsk, keys, **kwargs):
        calls.append(type(dsk))
        return optimize_array(dsk, keys)

    x = da.ones(4, chunks=2).sum()
    with dask.config.set(array_optimize=spy):
        x.compute(scheduler="sync")
    assert calls == [HighLevelGraph]
    for collection, setting in (
        (x, "array_optimize"),
        (dask.delayed(1), "delayed_optimize"),
        (db.from_sequence([1]), "bag_optimize"),
    ):
        with dask.config.set({setting: spy}):
            assert collection.__dask_optimize__ is spy


def test_annotations_of_the_layers_an_optimiser_returns_are_honoured():
    def annotating(dsk, keys, **kwargs):
        layer = MaterializedLayer(dict(optimize_array(dsk, keys)), annotations={"resources": {"pool-a": 0}})
        return HighLevelGraph({"only": layer}, {"only": set()})

    with dask.config.set(array_optimize=annotating):
        expr = FinalizeCompute(collections_to_expr([da.ones(4, chunks=2).sum()])).optimize()
        annotations = expr.__dask_annotations__()
    assert {tuple(value) for value in annotations["resources"].values()} == {("pool-a",)}


def test_layers_carry_the_annotations_of_their_block():
    with dask.annotate(resources={"pool-a": 0}):
        x = da.ones(4, chunks=2)
    assert x.dask.layers[x.name].annotations == {"resources": {"pool-a": 0}}
    assert dask.get_annotations() == {}


def test_layers_of_arrays_say_their_chunks_and_dtype():
    described = lazy("described").dask.layers["described"].collection_annotations
    assert described["chunks"] == ((4, 4),)
    assert described["dtype"] == np.dtype("f8")


def test_layers_that_are_not_materialised_name_their_keys_after_themselves():
    for x in (lazy(), lazy() + 1, (lazy() + 1).sum(), lazy().rechunk(2), da.random.random(8, chunks=4)):
        for name, layer in x.dask.layers.items():
            if internals.is_symbolic(layer):
                assert {key[0] if isinstance(key, tuple) else key for key in layer} == {name}


def test_fused_tasks_hold_the_keys_of_their_parts():
    x = lazy("first") + 1
    for optimized in (
        dict(optimize_array(x.dask, list(flatten(x.__dask_keys__())))),  # layers fused
        internals.fuse_linear_task_spec(
            convert_legacy_graph(x.dask.to_dict()), set(flatten(x.__dask_keys__()))
        ),
    ):
        fused = [internals.fused_keys(task) for task in optimized.values()]
        assert any("first" in str(key) for keys in fused for key in keys)


def test_slices_of_chunks_tell_their_shapes():
    x = lazy()  # two chunks of four
    for y, expected in ((x.rechunk(3, method="tasks"), {3, 1, 2}), (da.overlap.overlap(x, 1, "none"), {1})):
        found = set()
        for task in convert_legacy_graph(y.dask.to_dict()).values():
            shape = internals.sliced_shape(task, (4,))
            if shape is not None:
                found.add(*shape)
        assert found == expected
    assert internals.sliced_shape(Task("a", sum, TaskRef("b")), (4,)) is None


def test_a_task_renamed_runs_the_same():
    task = Task("a", sum, TaskRef("b"))
    renamed = task.substitute({"b": "c"}, key="d")
    assert (renamed.key, renamed.dependencies) == ("d", frozenset({"c"}))
    assert renamed({"c": [1, 2]}) == 3


def test_outputs_are_not_fused_into_their_consumers():
    x = lazy("kept")
    y = x + 1
    graph = internals.optimize_blockwise(y.dask, keys=[*flatten(y.__dask_keys__()), "kept"])
    assert "kept" in graph.layers
    assert isinstance(graph.layers["kept"], Blockwise)
    assert "kept" not in internals.optimize_blockwise(y.dask, keys=list(flatten(y.__dask_keys__()))).layers


def test_roots_with_different_annotations_are_not_fused():
    layers, dependencies = {}, {}
    z = lazy("left") + lazy("right")
    for mark in ("same", "other"):
        for name, layer in z.dask.layers.items():
            layers[name], dependencies[name] = layer, z.dask.dependencies[name]
            layers[name].annotations = {"mark": mark if name == "right" else "same"}
        fused = internals.fuse_roots(HighLevelGraph(dict(layers), dependencies), keys=[])
        assert ("right" in fused.layers) is (mark == "other")


def test_culling_keeps_the_annotations_of_layers():
    x = lazy("annotated").sum()
    for layer in x.dask.layers.values():
        layer.annotations = {"mark": 1}
    culled = x.dask.cull(set(flatten(x.__dask_keys__())))
    assert all(layer.annotations == {"mark": 1} for layer in culled.layers.values())


def test_annotations_merge_by_the_rules_of_dask():
    merged = internals.merge_annotations([{"retries": 1, "priority": 5}, {"retries": 3}])
    assert merged == {"retries": 3, "priority": 5}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: da.ones(4, chunks=2).sum(), "array_optimize"),
        (lambda: dask.delayed(sum)([1, 2]), "delayed_optimize"),
        (lambda: db.from_sequence([1, 2]).map(str), "bag_optimize"),
    ],
)
def test_the_kind_of_an_output_can_be_told(make, kind):
    other = "bag_optimize" if kind == "array_optimize" else "array_optimize"
    for own in (kind, other) if kind != "bag_optimize" else (kind,):
        collection = make()
        found = internals.kinds_of_outputs(collection.dask, flatten([collection.__dask_keys__()]), own)
        assert list(found) == [kind]
        expr = FinalizeCompute(collections_to_expr([collection])).optimize()
        (expr,) = getattr(expr, "operands", None) if type(expr).__name__ == "_HLGExprSequence" else [expr]
        found = internals.kinds_of_outputs(expr.hlg, flatten([expr.__dask_keys__()]), own)
        assert list(found) == [kind]


@pytest.mark.parametrize("reduction", ["mean", "var", "std", "max"])
def test_partial_means_and_variances_hold_several_arrays(reduction):
    x = getattr(da.ones((12, 5), chunks=(1, 5)), reduction)(0, split_every=4)
    tasks = convert_legacy_graph(x.dask.to_dict())
    made = {}
    for key, value in zip(tasks, dask.get(tasks, list(tasks)), strict=True):
        made.setdefault(key[0], value)
    # The first layer of a variance is named after the method, as others may be: it counts as one array.
    for name, value in [(name, value) for name, value in made.items() if not name.startswith("var-")]:
        arrays = sum(np.size(part) == 5 for part in value.values()) if isinstance(value, dict) else 1
        assert arrays == internals.arrays_of_partial(name), name


def test_a_scheduler_can_be_found_in_its_process():
    async def main():
        async with Scheduler(dashboard_address=None, host="127.0.0.1", port=0) as scheduler:
            assert scheduler in internals.schedulers_here()

    asyncio.run(main())


def test_persisted_parts_are_futures_in_their_layer(client):
    x = client.persist(da.from_array(np.arange(4.0), chunks=2, name="persisted-parts"))
    (layer,) = x.dask.layers.values()
    assert all(isinstance(value, Future) for value in layer.values())
    assert all(internals.is_future(value) for value in pickle.loads(pickle.dumps(dict(layer))).values())
    key = ("persisted-parts", 0)
    client.gather(client.compute(x))
    assert internals.resources_of_result(key)
    assert internals.nbytes_of_result(key) == 16


def test_p2p_barriers_can_be_told_and_restricted(client, pools):
    x = da.ones((8, 8), chunks=(8, 2)).rechunk((2, 8), method="p2p")
    barriers = [
        task
        for task in convert_legacy_graph(x.dask.to_dict()).values()
        if isinstance(task, internals.P2PBarrierTask)
    ]
    assert len(barriers) == 1
    # What the plugin writes to before the first task of a graph runs.
    for attribute in ("worker_restrictions", "resource_restrictions", "annotations", "run_spec", "state"):
        assert hasattr(internals.TaskState, attribute) or attribute in internals.TaskState.__slots__


def test_a_task_without_a_worker_is_found_and_can_be_failed(pools):
    assert hasattr(pools.scheduler, "unrunnable")
    assert hasattr(pools.scheduler, "resources")
    assert hasattr(pools.scheduler, "transition")


def test_dask_takes_the_same_tasks_for_roots_and_counts_free_slots_alike(client, pools):
    scheduler = pools.scheduler
    roots, slots = [], []

    class Compare(SchedulerPlugin):
        name = "compare-roots-of-this-test"

        def update_graph(self, _, *, tasks, **kwargs):
            for task in map(scheduler.tasks.__getitem__, tasks):
                of_group = internals.is_group_of_roots(scheduler, task.group, scheduler.total_nthreads)
                root = of_group or internals.makes_data(task)
                roots.append((internals.may_be_queued(task) and root, scheduler.is_rootish(task)))
            slots.extend(internals.free_slots(scheduler, worker) for worker in scheduler.workers.values())

    scheduler.add_plugin(plugin := Compare())
    try:
        assert da.ones(40, chunks=1).map_blocks(np.negative).sum().compute() == -40
        # What loads is a root however few there are.
        assert da.from_array(np.ones(3), chunks=1, inline_array=True).sum().compute() == 3
    finally:
        scheduler.remove_plugin(plugin.name)
    assert set(roots) == {(True, True), (False, False)}
    assert slots == [3, 3] * 2  # 1.1 × two threads, rounded up


def test_outputs_of_p2p_are_not_queued(client, pools):
    class Look(SchedulerPlugin):
        name = "outputs-of-p2p-in-this-test"
        outputs: ClassVar[list[bool]] = []

        def update_graph(self, _, *, tasks, **kwargs):
            for task in map(pools.scheduler.tasks.__getitem__, tasks):
                if any(isinstance(one.run_spec, internals.P2PBarrierTask) for one in task.dependencies):
                    self.outputs.append(internals.may_be_queued(task))

    pools.scheduler.add_plugin(plugin := Look())
    try:
        x = da.ones((8, 8), chunks=(8, 2)).rechunk((2, 8), method="p2p")
        assert x.sum().compute() == 64
    finally:
        pools.scheduler.remove_plugin(plugin.name)
    assert Look.outputs == [False] * 4


def test_a_selection_is_joined_with_the_task_that_reads_from_sources_of_chunks():
    from dask.layers import ArrayBlockwiseDep, ArraySliceDep

    class Sources(ArrayBlockwiseDep):
        def __getitem__(self, index):
            return Logged()

    chunks = ((4, 4),)
    graph = internals.reading_layer("reading", Sources(chunks), ArraySliceDep(chunks))
    x = da.Array(graph, "reading", chunks, meta=np.empty(0))
    np.testing.assert_equal(x.compute(scheduler="sync"), np.arange(8.0))
    Logged.read.clear()
    assert x[5].compute(scheduler="sync") == 5
    assert Logged.read == [(5,)]


def test_what_p2p_sends_goes_through_one_method_that_no_subclass_overrides():
    assert issubclass(ArrayRechunkRun, ShuffleRun)
    assert issubclass(DataFrameShuffleRun, ShuffleRun)
    assert "_send" not in vars(ArrayRechunkRun)
    assert "_send" not in vars(DataFrameShuffleRun)
    assert "self._send(address" in inspect.getsource(ShuffleRun.send)


def test_shards_are_watched_where_they_go_and_the_watch_ends():
    class Run(ShuffleRun):
        def __init__(self):
            self.local_address = "tcp://here"

        def raise_if_closed(self):
            pass

        def rpc(self, address):
            return SimpleNamespace(shuffle_receive=lambda **_: asyncio.sleep(0, {"status": "OK"}))

        id = run_id = 1

    seen = []
    stop = internals.watch_shards("tcp://here", lambda address, nbytes: seen.append((address, nbytes)))
    shards = [((0, 0), [((1, 0), ((0, 0), np.ones(100)))])]

    async def main():
        await Run()._send("tcp://there", shards)
        await Run()._send("tcp://there", b"pickled")
        await Run()._send("tcp://here", shards)

    asyncio.run(main())
    stop()
    asyncio.run(main())
    assert [address for address, _ in seen] == ["tcp://there", "tcp://there"]
    assert seen[0][1] == pytest.approx(800, abs=200)


@pytest.mark.parametrize("axes", [(0,), (0, 1)])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "std", "any"])
def test_the_first_step_of_a_reduction_says_which_axes_it_reduces(name, axes):
    x = da.ones((4, 6), chunks=(2, 3))
    layers = getattr(x, name)(axis=axes).dask.layers
    told = {tuple(found) for layer in layers.values() if (found := internals.reduced_axes(layer))}
    assert told == {axes}
    first = next(layer for layer in layers.values() if internals.reduced_axes(layer))
    # Were these the chunks that it makes, nothing would have to be found out.
    assert first.collection_annotations["chunks"] == x.chunks
    assert not internals.reduced_axes(next(iter((x + 1).dask.layers.values())))


def grouped(by, how):
    def reduce(x):
        days = xr.DataArray(
            x, dims=("time", "x"), coords={"time": pd.date_range("2000-01-01", periods=len(x))}
        )
        return getattr(days.groupby(by), how)().data

    return reduce


def arrays_in(result):
    """Bytes of all arrays of a partial result."""
    if isinstance(result, dict):
        parts = result.get("intermediates") or [result[name] for name in result if name != "groups"]
        return sum(map(arrays_in, parts))
    if isinstance(result, (tuple, list)):
        return sum(map(arrays_in, result))
    return sum(part.nbytes for part in getattr(result, "arrays", (result,)))


@pytest.mark.parametrize(
    "reduce",
    [
        grouped("time.dayofweek", "mean"),
        grouped("time.dayofweek", "max"),
        grouped("time.dayofweek", "std"),
        grouped("time.month", "mean"),  # of which only some are in each chunk
        lambda x: da.topk(x, 3, axis=0),
        lambda x: da.argtopk(x, -3, axis=0),
    ],
)
def test_partial_results_of_several_elements_are_as_large_as_told(reduce):
    with pinned("ecmwf"):
        x = da.ones((480, 10), chunks=(40, 5))
    graph = reduce(x).dask
    partials = [name for name, layer in graph.layers.items() if internals.partial_of(layer, graph.layers)]
    assert len(partials) == 1
    steps = [*partials, *(name for name in graph.layers if internals.combines(name) is not None)]
    tasks = graph.to_dict()
    keys = [key for key in tasks if isinstance(key, tuple) and key[0] in steps]
    layers = read_layers(graph)
    for key, result in zip(keys, dask.get(tasks, keys), strict=True):
        chunks, nbytes = layers.sizes[key[0]]
        for along, index in zip(chunks, key[1:], strict=True):
            nbytes *= along[index]
        assert nbytes == arrays_in(result), key


def test_what_is_sent_names_its_optimiser_and_takes_annotations(pools, monkeypatch):
    seen = []

    def annotations_for(_, expression):
        seen.append(internals.optimizers_of(expression))
        return {"told": len(seen)}

    monkeypatch.setattr(Client, "_graph_to_futures", Client._graph_to_futures)
    internals.before_sending(annotations_for)
    internals.before_sending(annotations_for)
    with Client(pools, set_as_default=False) as client, client.as_current():
        sent = [
            client.persist(da.ones(4, chunks=2).sum()),
            client.compute(da.zeros(4, chunks=2).sum(), optimize_graph=False),
            client.submit(abs, -1, pure=False),
        ]
        wait(sent)
        told = [pools.scheduler.tasks[futures_of(one)[0].key].annotations["told"] for one in sent]
    assert told == [1, 2, 3]
    assert [[bool(optimizer) for optimizer in of] for of in seen] == [[True], [False], [False]]


@pytest.mark.parametrize("waits", [False, True])
def test_a_task_that_was_not_sent_can_be_failed_without_its_inputs(client, waits):
    source = client.submit(abs, -1, pure=False, resources={"nowhere": 1})
    task = client.submit(abs, source, pure=False) if waits else source

    async def fail(dask_scheduler):
        while getattr(dask_scheduler.tasks.get(task.key), "state", "") != (
            "waiting" if waits else "no-worker"
        ):
            await asyncio.sleep(0.01)
        internals.fail_unsent(dask_scheduler, task.key, ValueError("refused"), "test")
        return dask_scheduler.tasks[source.key].state

    state = client.sync(client._run_on_scheduler, fail)
    assert state == ("no-worker" if waits else "erred")
    assert str(task.exception()) == "refused"


def test_all_that_a_client_sends_can_be_seen_beforehand_and_refused(pools, monkeypatch):
    monkeypatch.setattr(Client, "_graph_to_futures", Client._graph_to_futures)
    with Client(pools, set_as_default=False) as client:
        seen = []
        internals.before_sending(lambda _, expression: seen.append(expression) or {})
        x = da.ones(4, chunks=2, name="seen-beforehand")
        client.compute(x.sum()).result()
        client.persist(x)
        assert "seen-beforehand" in dict(internals.layers_to_send(seen[0]))
        assert [name for name, _ in internals.layers_to_send(seen[1])] == ["seen-beforehand"]
        client.submit(abs, -1).result()
        client.gather(client.map(abs, [-1, -2]))
        client.get({"a": (abs, -1)}, "a")
        assert len(seen) == 5
        assert all(internals.layers_to_send(one) == [] for one in seen[2:4])
    with Client(pools, set_as_default=False) as client:

        def refuse(*_):
            raise LookupError("refused")

        internals.before_sending(refuse)
        with pytest.raises(LookupError):
            client.compute(x)
        assert not client.futures


def test_the_duration_of_tasks_is_known_by_their_prefix(pools, client):
    def takes_a_while(seconds):
        time.sleep(seconds)

    client.gather(client.map(takes_a_while, [0.2, 0.2], pure=False))
    prefix = pools.scheduler.task_prefixes["takes_a_while"]
    assert 0.1 < internals.expected_duration(pools.scheduler, prefix) < 20


def test_a_worker_joins_without_importing_what_only_some_tasks_need() -> None:
    # What it is started with, and what the scheduler asks of it before it counts for its pool.
    code = (
        "import sys, dask_pools.traffic; "
        "print({'dask.array', 'dask.bag', 'pandas', 'xarray'}.intersection(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_dask_imports_for_a_fork_server_unless_it_notes_that_it_has(monkeypatch):
    told = []
    monkeypatch.setattr(multiprocessing.get_context("forkserver"), "set_forkserver_preload", told.append)
    monkeypatch.setattr(utils, "_forkserver_preload_set", False)
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        utils.get_mp_context()
        assert "distributed" in told.pop()
        monkeypatch.setattr(utils, "_forkserver_preload_set", False)
        internals.import_nothing_for_forks()
        utils.get_mp_context()
    assert told == []
