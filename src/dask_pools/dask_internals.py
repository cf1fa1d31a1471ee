"""Every dependence on a part of Dask that is not public, in one place.

Each function states the assumption it rests on; ``tests/dask_pools/test_dask_internals.py`` has one test for
each, which names the assumption when a new Dask breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from dask._expr import FinalizeCompute, HLGExpr, _AnnotationsTombstone, _HLGExprSequence
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    _execute_subgraph,
    convert_legacy_graph,
    fuse_linear_task_spec,
)
from dask.base import collections_to_expr
from dask.blockwise import (
    Blockwise,
    BlockwiseDep,
    _fuse_annotations,
    blockwise,
    fuse_roots,
    optimize_blockwise,
)
from dask.delayed import optimize as optimize_delayed
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.typing import Key
from distributed import Client, Future, Scheduler, utils
from distributed.core import error_message
from distributed.scheduler import TaskGroup, TaskPrefix, TaskState, WorkerState, _task_slots_available
from distributed.shuffle._core import P2PBarrierTask, ShuffleRun
from distributed.sizeof import safe_sizeof

__all__ = [
    "Alias",
    "Blockwise",
    "GraphNode",
    "HighLevelGraph",
    "Layer",
    "MaterializedLayer",
    "P2PBarrierTask",
    "Task",
    "TaskPrefix",
    "TaskRef",
    "TaskState",
    "WorkerState",
    "convert_legacy_graph",
    "fail_unsent",
    "fuse_linear_task_spec",
    "fuse_roots",
    "fused_keys",
    "graphs_to_compute",
    "import_nothing_for_forks",
    "is_gathering",
    "is_symbolic",
    "lazify",
    "merge_annotations",
    "optimize_array",
    "optimize_bag",
    "optimize_blockwise",
    "optimize_delayed",
    "optimize_slices",
    "optimizers_of",
    "reading_layer",
    "schedulers_here",
    "store_targets",
    "watch_shards",
]

# Arrays and bags are imported where they are used: each worker needs this module before it can join, and the
# rest only with a task that does.


def optimize_array(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Optimise a graph of arrays as Dask does."""
    from dask.array.optimization import optimize

    return optimize(dsk, keys, **kwargs)


def optimize_slices(dsk: dict[Key, GraphNode]) -> dict[Key, GraphNode]:
    """Join selections with the tasks that read what they select from."""
    from dask.array.optimization import _optimize_slices

    joined: dict[Key, GraphNode] = _optimize_slices(dsk)
    return joined


def optimize_bag(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Optimise a graph of bags as Dask does."""
    from dask.bag.core import optimize

    return optimize(dsk, keys, **kwargs)


def lazify(dsk: dict[Key, GraphNode]) -> dict[Key, GraphNode]:
    """Keep the last step of bags from making lists of what is only passed on."""
    from dask.bag.core import lazify

    made: dict[Key, GraphNode] = lazify(dsk)
    return made


def is_symbolic(layer: Mapping[Key, Any]) -> bool:
    """Whether a layer makes its tasks only when asked, all under its own name.

    Assumes that every layer but `MaterializedLayer` and plain mappings names its keys after itself.
    """
    return isinstance(layer, Layer) and not isinstance(layer, MaterializedLayer)


def fused_keys(task: GraphNode) -> Collection[Key]:
    """Keys of the tasks that Dask fused into `task`, those of their own fusions among them.

    Assumes that a fused task calls `_execute_subgraph` with the tasks inside it, by key, as first argument.
    """
    if not (isinstance(task, Task) and task.func is _execute_subgraph):
        return ()
    keys: list[Key] = []
    for key, inner in task.args[0].items():
        keys.append(key)
        if isinstance(inner, GraphNode):
            keys.extend(fused_keys(inner))
    return keys


def store_targets(layer: Mapping[Key, Any]) -> dict[Key | None, Any]:
    """Targets that the tasks of a layer store chunks in, by key; under None that of a whole symbolic layer.

    Assumes that `dask.array.store` makes tasks that call `load_store_chunk` with the target as second
    argument, and that a symbolic layer of them has the target as its only literal input.
    """
    from dask.array.core import load_store_chunk

    if isinstance(layer, Blockwise):
        if getattr(layer.task, "func", None) is not load_store_chunk:
            return {}
        literals = [value for value, index in layer.indices if index is None]
        return {None: literals[0]} if literals else {}
    if is_symbolic(layer):
        return {}
    return {
        key: task.args[1].value
        for key, task in layer.items()
        if isinstance(task, Task) and task.func is load_store_chunk and isinstance(task.args[1], DataNode)
    }


def reading_layer(name: str, sources: BlockwiseDep, slices: BlockwiseDep) -> HighLevelGraph:
    """Graph of one layer that reads: that of `dask.array.from_array`, but each chunk has a source of its own.

    Assumes that `dask.blockwise.blockwise` takes block-wise inputs without a collection, and that Dask joins
    a selection with the task that reads if that calls `getter` with a source and slices.

    Parameters
    ----------
    name : str
        Of the layer.
    sources, slices : dask.blockwise.BlockwiseDep
        For each chunk, what to read from, and what of it.
    """
    from dask.array.core import getter

    index = tuple(range(len(sources.numblocks)))
    layer = blockwise(getter, name, index, sources, index, slices, index, numblocks={}, _data_producer=True)
    return HighLevelGraph.from_collections(name, layer)


def reduced_axes(layer: Mapping[Key, Any]) -> Collection[int]:
    """Axes along which each task of a layer reduces its chunk to one element.

    Assumes that `dask.array.reduction` takes its first step by a `Blockwise` layer whose task has the
    keywords ``axis`` and ``keepdims=True``, and tells of it the chunks that it reads, not those it makes.
    """
    if not isinstance(layer, Blockwise):
        return ()
    given = {
        name: getattr(value, "value", value) for name, value in getattr(layer.task, "kwargs", {}).items()
    }
    axes = given.get("axis")
    if given.get("keepdims") is not True or not isinstance(axes, tuple):
        return ()
    return axes


def arrays_of_partial(name: str) -> int:
    """How many arrays the results of a layer hold that say that they are one.

    Assumes that the layers of `dask.array.reductions` that begin a mean hand on a dict of two arrays (total
    and number), those that begin a variance or standard deviation one of three, and that they are named after
    the functions that do so.
    """
    operation = name.partition("-")[0]
    if operation in ("mean_chunk", "mean_combine"):
        return 2
    return 3 if operation in ("moment_chunk", "moment_combine") else 1


@dataclass(frozen=True)
class Partial:
    """What the tasks of a layer make that begins a reduction to more than one element."""

    lengths: Mapping[int, tuple[int, ...]]
    """By axis, the length of the result along it, for each chunk."""
    arrays: int
    """How many arrays a result holds."""


def partial_of(layer: Mapping[Key, Any], layers: Mapping[Any, Mapping[Key, Any]]) -> Partial | None:
    """Tell what the first step of a top-k or of a grouped reduction makes; None of any other layer.

    Assumes that `dask.array.topk` and `argtopk` give `dask.array.reduction` a `functools.partial` with ``k``;
    and that flox begins with a `Blockwise` layer of a `functools.partial` with ``axis`` and
    ``expected_groups``, the codes of all groups or None, around one with ``func``, the names of the arrays
    that it makes, and ``reindex``, whether it makes them for all groups. Otherwise it makes those of the
    groups in its chunk of codes, its second input. Both tell of it the chunks that it reads.
    """
    if not isinstance(layer, Blockwise):
        return None
    from dask.array.chunk import argtopk

    made_by = getattr(layer.task, "func", None)
    keywords = getattr(made_by, "keywords", None)
    told = (layer.collection_annotations or {}).get("chunks")
    if not keywords or not told:
        return None
    if "k" in keywords and (axes := reduced_axes(layer)):
        lengths = {axis: tuple(min(abs(keywords["k"]), length) for length in told[axis]) for axis in axes}
        return Partial(lengths, 2 if getattr(made_by, "func", None) is argtopk else 1)
    axes = keywords.get("axis")
    # Composed with another function, or not.
    inner: Any = getattr(getattr(made_by, "func", None), "first", made_by)
    if "expected_groups" not in keywords or not isinstance(axes, tuple) or "func" not in inner.keywords:
        return None
    # A variance is a function of one object of three arrays.
    arrays = sum(3 if hasattr(one, "func") else 1 for one in inner.keywords["func"])
    *others, last = axes
    lengths = {axis: (1,) * len(told[axis]) for axis in others}
    if inner.keywords.get("reindex") and keywords["expected_groups"] is not None:
        lengths[last] = (len(keywords["expected_groups"]),) * len(told[last])
        return Partial(lengths, arrays)
    # The groups that occur in each chunk; those of several axes at once are not looked for.
    name = layer.indices[1][0] if len(layer.indices) > 1 else None
    found = [layers.get(name, {}).get((name, i)) for i in range(len(told[last]))]
    codes = [chunk for one in found if isinstance(chunk := getattr(one, "value", one), np.ndarray)]
    if others or len(codes) < len(found):
        return None
    lengths[last] = tuple(int((np.unique(chunk) >= 0).sum()) for chunk in codes)
    return Partial(lengths, arrays)


def combines(name: str) -> bool | None:
    """Whether a layer puts partial results together, to another one (True) or to the last (False).

    Assumes that the names that `dask.array.reductions._tree_reduce` makes end in ``-partial-`` or
    ``-aggregate-`` and a token.
    """
    what = name.rpartition("-")[0]
    return True if what.endswith("-partial") else False if what.endswith("-aggregate") else None


def merge_annotations(annotations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Annotations of a task fused from tasks that had these, by Dask's own rules for layers."""
    return dict(_fuse_annotations(*annotations))


def schedulers_here() -> list[Scheduler]:
    """Schedulers that live in this process: on a scheduler that one, in a client mostly none.

    Assumes that `distributed.Scheduler` keeps its instances in the weak set ``_instances``.
    """
    return list(Scheduler._instances)


_shard_watchers: dict[str, Callable[[str, int], None]] = {}


def watch_shards(worker: str, sent: Callable[[str, int], None]) -> Callable[[], None]:
    """Have `sent` called with the receiver's address and the bytes of all shards of P2P that a worker sends.

    Parameters
    ----------
    worker : str
        Address of a worker of this process.
    sent : callable
        Called in the worker's event loop when the receiver has confirmed; not for what stays on the worker.

    Returns
    -------
    callable
        Ends the watch.

    Notes
    -----
    Assumes that every message with shards goes through ``ShuffleRun._send(address, shards)``, which no
    subclass overrides, and that a run knows its worker's address as ``local_address``. Dask itself counts
    shards per shuffle only, not by where they go.
    """
    if not hasattr(ShuffleRun._send, "unwatched"):
        send = ShuffleRun._send

        async def _send(self: Any, address: str, shards: Any) -> Any:
            answer = await send(self, address, shards)
            watcher = _shard_watchers.get(self.local_address)
            if watcher is not None and address != self.local_address:
                watcher(address, _nbytes_of_shards(shards))
            return answer

        _send.unwatched = send  # type: ignore[attr-defined]
        ShuffleRun._send = _send
    _shard_watchers[worker] = sent
    return lambda: _shard_watchers.pop(worker, None)  # type: ignore[return-value]


def _nbytes_of_shards(shards: Any) -> int:
    """Bytes of shards: pickled ones, or nested lists of arrays and indices."""
    if isinstance(shards, (list, tuple)):
        return sum(map(_nbytes_of_shards, shards))
    # Indices of chunks weigh next to nothing, and would be counted too heavily one by one.
    return 0 if isinstance(shards, int) else int(safe_sizeof(shards))


def is_future(value: Any) -> bool:
    """Whether a value in a graph stands for a result that the scheduler has.

    Assumes that a persisted or scattered part is a `distributed.Future` in its layer, on the scheduler too.
    """
    return isinstance(value, Future)


def is_tombstone(value: Any) -> bool:
    """Whether this value of an annotation means that the task has none."""
    return isinstance(value, _AnnotationsTombstone)


def resources_of_result(key: Key) -> list[dict[str, float]]:
    """List what ties a task known to a scheduler of this process: what it requires, what its holders offer.

    Called from the offload thread while the scheduler runs: copies first, and never writes.
    """
    found: list[dict[str, float]] = []
    for scheduler in schedulers_here():
        if (task := scheduler.tasks.get(key)) is not None:
            if task.resource_restrictions:
                found.append(dict(task.resource_restrictions))
            found.extend(dict(worker.resources) for worker in list(task.who_has or ()))
    return found


def sliced_shape(task: GraphNode, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of what a task cuts out of an array of this shape; None if it is no slice, or cannot be told.

    Assumes that such tasks, as of rechunking and overlap, call a function ``getitem`` with the slices last.
    """
    if not isinstance(task, Task) or getattr(task.func, "__name__", "") != "getitem" or len(task.args) != 2:
        return None
    index = getattr(task.args[1], "value", task.args[1])
    if not isinstance(index, tuple) or len(index) > len(shape):
        return None
    lengths = []
    for length, part in zip(shape, index, strict=False):
        if isinstance(part, slice):
            lengths.append(len(range(*part.indices(length))))
        elif not isinstance(part, int):
            return None
    return (*lengths, *shape[len(index) :])


def threads_by_resource() -> dict[str, list[int]]:
    """Threads of each worker, of all schedulers in this process, that offers a resource.

    Called from the offload thread while the scheduler runs: copies first, and never writes.
    """
    threads: dict[str, list[int]] = {}
    for scheduler in schedulers_here():
        for worker in list(scheduler.workers.values()):
            for name in list(worker.resources):
                threads.setdefault(name, []).append(worker.nthreads)
    return threads


def nbytes_of_result(key: Key) -> float | None:
    """Bytes of a result known to a scheduler of this process, or None."""
    for scheduler in schedulers_here():
        if (task := scheduler.tasks.get(key)) is not None and task.nbytes >= 0:
            return float(task.nbytes)
    return None


def nbytes_of_constant(task: GraphNode) -> float | None:
    """Bytes of a value that stands in a graph as it is; None of anything else."""
    return float(safe_sizeof(task.value)) if isinstance(task, DataNode) else None


_GATHERING = "finalize-hlgfinalize"


def is_gathering(name: str) -> bool:
    """Whether a key or layer puts the parts of a result together for ``.compute()``.

    Assumes that its name begins with ``finalize-hlgfinalize``.
    """
    return name.startswith(_GATHERING)


def graphs_to_compute(collections: Iterable[Any]) -> list[tuple[Any, HighLevelGraph, list[Any]]] | None:
    """Graphs that ``dask.compute(*collections)`` would send, without computing anything.

    Returns
    -------
    list of (optimiser, graph, keys) or None
        One for each group of collections that Dask optimises together; None if one of the collections is an
        expression, such as a frame.

    Notes
    -----
    Assumes that `dask.compute` sends ``FinalizeCompute(collections_to_expr(...)).optimize()``, which does not
    yet call the optimisers, and that this is one `HLGExpr` or a sequence of them.
    """
    expression = FinalizeCompute(collections_to_expr(tuple(collections))).optimize()
    parts = list(expression.operands) if isinstance(expression, _HLGExprSequence) else [expression]
    if not all(isinstance(part, HLGExpr) for part in parts):
        return None
    return [(part.low_level_optimizer, part.hlg, part.__dask_keys__()) for part in parts]


def optimizers_of(expression: Any) -> list[Any]:
    """Optimisers that the scheduler will call for an expression that a client sends; None: it calls none.

    Assumes that graphs are sent as one `HLGExpr` or a sequence of them, which name their optimiser in
    ``low_level_optimizer``, and frames and plain dicts as other expressions.
    """
    parts = list(expression.operands) if isinstance(expression, _HLGExprSequence) else [expression]
    return [part.low_level_optimizer if isinstance(part, HLGExpr) else None for part in parts]


def before_sending(call: Callable[[Client, Any], Mapping[str, Any]]) -> None:
    """Have `call` called with a client and the expression that it is about to send, for all clients.

    All tasks of the expression get the annotations that `call` returns. What it raises reaches whoever
    computes, and nothing is sent. Another `call` takes the place of the one before.

    Assumes that everything is sent by ``Client._graph_to_futures(expr, …)``, which adds what
    `dask.get_annotations` says at that moment. Nothing public is called between the making of a graph and
    its being sent.
    """
    send = getattr(Client._graph_to_futures, "original", Client._graph_to_futures)

    def _graph_to_futures(self: Any, expr: Any, *args: Any, **kwargs: Any) -> Any:
        with dask.annotate(**call(self, expr)):
            return send(self, expr, *args, **kwargs)

    _graph_to_futures.original = send  # type: ignore[attr-defined]
    Client._graph_to_futures = _graph_to_futures


def kinds_of_outputs(
    dsk: Mapping[Key, Any] | HighLevelGraph, keys: Iterable[Key], own: str
) -> dict[str, list[Key]]:
    """Sort the results asked of a graph by the setting of Dask that optimises their kind of collection.

    Parameters
    ----------
    dsk : HighLevelGraph or mapping
    keys : iterable of keys
    own : str
        The setting, where nothing tells.

    Notes
    -----
    Assumes that a layer that makes an array says so in its ``collection_annotations``; that the keys of
    arrays and bags are tuples, those of Delayed are not; and that results that are put together on the
    scheduler are so by a layer ``finalize-…``, whose one task calls a function of the collection's module.
    """
    kinds: dict[str, list[Key]] = {}
    layers = dsk.layers if isinstance(dsk, HighLevelGraph) else {}
    for key in keys:
        name = key[0] if isinstance(key, tuple) and key else key
        layer = layers.get(name) if isinstance(name, str) else None
        if layer is None:
            kind = own
        elif "chunks" in (getattr(layer, "collection_annotations", None) or {}):
            kind = "array_optimize"
        elif isinstance(key, tuple):
            kind = own if own != "delayed_optimize" else "bag_optimize"
        elif is_gathering(str(key)):
            module = getattr(getattr(layer.get(key), "func", None), "__module__", None) or ""
            kind = "bag_optimize" if module.startswith("dask.bag") else "array_optimize"
        else:
            kind = "delayed_optimize"
        kinds.setdefault(kind, []).append(key)
    return kinds


def may_be_queued(task: TaskState) -> bool:
    """Whether Dask would put a task into its queue if it were a root without restrictions.

    Assumes that Dask does not queue actors, nor the outputs of a P2P rechunk or shuffle, which read a
    `P2PBarrierTask` only and are not marked before that has run.
    """
    return not (
        task.actor
        or not task._queueable
        or task.worker_restrictions
        or task.host_restrictions
        or any(isinstance(source.run_spec, P2PBarrierTask) for source in task.dependencies)
    )


def fail_unsent(scheduler: Scheduler, key: Key, error: Exception, stimulus_id: str) -> None:
    """Fail a task that was not sent to a worker: it waits for its inputs, or can run nowhere.

    Its inputs are released, if nobody else wants them; they do not fail. Assumes that a task is not taken up
    again when it is released with something to blame, and then tells its clients of the exception of that;
    and that one that can run nowhere goes from ``no-worker`` to ``erred`` with an exception and a cause.
    """
    message = error_message(error)
    task = scheduler.tasks[key]
    if task.state == "no-worker":
        recommendations = scheduler.transition(
            key, "erred", exception=message["exception"], cause=key, stimulus_id=stimulus_id
        )
        scheduler.transitions(recommendations, stimulus_id)
        return
    task.exception, task.traceback = message["exception"], message["traceback"]
    task.exception_text, task.traceback_text = message["exception_text"], message["traceback_text"]
    task.exception_blame = task
    scheduler.transitions({key: "released"}, stimulus_id)
    scheduler.transitions({key: "erred"}, stimulus_id)


def is_group_of_roots(scheduler: Scheduler, group: TaskGroup, threads: int) -> bool:
    """Whether Dask would take the tasks of a group for roots if there were so many threads.

    Assumes that `distributed.Scheduler.is_rootish` looks at the same numbers.
    """
    return (
        len(group) > 2 * threads
        and len(group.dependencies) < scheduler.rootish_tg_threshold
        and sum(map(len, group.dependencies)) < scheduler.rootish_tg_dependencies_threshold
    )


def makes_data(task: TaskState) -> bool:
    """Whether a task loads data, or was fused with one that does: a root for Dask, whatever its group.

    Assumes that Dask marks these tasks as ``data_producer``, and asks for it in `Scheduler.is_rootish`.
    """
    return task.run_spec is not None and bool(task.run_spec.data_producer)


def free_slots(scheduler: Scheduler, worker: WorkerState) -> int:
    """Tasks that Dask's queue would send to a worker now; 0 if it is not running.

    Assumes that Dask counts as `distributed.scheduler._task_slots_available` does.
    """
    if worker not in scheduler.running:
        return 0
    return max(0, int(_task_slots_available(worker, scheduler.WORKER_SATURATION)))


def expected_duration(scheduler: Scheduler, prefix: TaskPrefix) -> float:
    """Seconds that Dask expects a task of this prefix to take.

    Assumes that Dask's own adaptivity estimates by `distributed.Scheduler._get_prefix_duration`.
    """
    return float(scheduler._get_prefix_duration(prefix))


def layers_to_send(expression: object) -> list[tuple[str, Mapping[Key, Any]]]:
    """Layers of what a client is about to send, by name; none of what is no graph of layers, such as a frame.

    Assumes that a client sends `HLGExpr`, or a sequence of them.
    """
    several = isinstance(expression, _HLGExprSequence)
    parts = list(expression.operands) if several else [expression]  # type: ignore[attr-defined]
    graphs = [part.hlg for part in parts if isinstance(part, HLGExpr)]
    return [layer for graph in graphs for layer in graph.layers.items()]


def import_nothing_for_forks() -> None:
    """Have Dask import nothing of its own accord before it starts processes by a fork server.

    Assumption: `distributed.utils.get_mp_context` imports pandas and others for the server, unless it is
    noted in that module that this has been done.
    """
    utils._forkserver_preload_set = True
