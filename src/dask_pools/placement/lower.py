"""Dask graph -> model -> optimised, pinned Dask graph.

Runs where Dask optimises graphs: on the scheduler, in its one offload thread, or in the client where a graph
is optimised there. The order of the steps matters: pins and sizes are read from whole layers, before Dask
fuses or culls any of them; layers and tasks are then fused only where all parts stay in one pool.
"""

from __future__ import annotations

import copy
import gc
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask
from dask.base import flatten, tokenize
from dask.typing import Key
from dask.utils import key_split

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import GraphNode, HighLevelGraph, MaterializedLayer
from dask_pools.errors import ResidencyError
from dask_pools.placement.assign import assign, look_back
from dask_pools.placement.layers import (
    Layers,
    Pools,
    nbytes_of,
    nbytes_of_each,
    nbytes_of_slice,
    pool_that_holds,
)
from dask_pools.placement.model import FREE, Model, crossings

logger = logging.getLogger(__name__)

UNKNOWN_NBYTES = 1.0
"""Bytes assumed for a result whose size nothing tells, and which has no inputs."""

FETCHED_ONCE = 10_000.0
"""From so many bytes on, a result that several tasks of a pool read is fetched for all its workers by one.

On a line of 100 Mbit/s they take as long as Dask takes for a task.
"""

Graph = dict[Key, GraphNode]


@dataclass(frozen=True)
class Kind:
    """How Dask optimises the graphs of one kind of collection."""

    optimize: Callable[..., Any]
    """Dask's own function, for graphs without pins."""
    blockwise: bool
    """Whether it fuses layers."""
    linear: Callable[[], bool]
    """Whether it fuses chains of tasks, by the configuration of the moment."""
    finish: Callable[[Graph], Graph]
    """What it does last, to tasks."""


ARRAY = Kind(
    optimize=dask_internals.optimize_array,
    blockwise=True,
    linear=lambda: dask.config.get("optimization.fuse.active") is not False,
    finish=dask_internals.optimize_slices,
)
DELAYED = Kind(
    optimize=dask_internals.optimize_delayed,
    blockwise=False,
    linear=lambda: bool(dask.config.get("optimization.fuse.delayed")),
    finish=lambda tasks: tasks,
)
BAG = Kind(
    optimize=dask_internals.optimize_bag, blockwise=False, linear=lambda: True, finish=dask_internals.lazify
)


@dataclass(frozen=True)
class _Mark:
    """What is known of a layer while Dask fuses and culls it."""

    layer: str = field(compare=False)
    """Its name; Dask fuses layers whose marks are equal."""
    pools: Pools
    """Pools that its sources lie in."""
    home: str | None
    """The pool of all its tasks, where only one comes into question."""
    apart: str | None
    """Its name, if some of its tasks have pins of their own, which no other layer shares."""
    annotations: dict[str, Any]
    """Its annotations, without pins."""


@dataclass(frozen=True)
class Placed:
    """A graph as plain data, and the pool of each of its tasks, before chains of tasks are fused."""

    keys: list[Key]
    """Keys of the tasks of the model, in its order; results that the scheduler has already are among them."""
    layers: list[str]
    """For each task the name of its layer; empty for a result that the scheduler has already."""
    outputs: list[int]
    """The tasks whose results were asked for."""
    model: Model
    pools: list[int]
    """For each task its pool, as a number in ``model.pools``, or `FREE`."""
    unknown: frozenset[int] = frozenset()
    """Tasks of whose results nothing tells the size; they count `UNKNOWN_NBYTES`."""

    def edges(self) -> set[Key]:
        """Keys of the results that tasks of another pool read."""
        pools = self.pools
        return {
            self.keys[source]
            for task, inputs in enumerate(self.model.inputs)
            for source in inputs
            if pools[source] != pools[task]
        }

    def crossing(self) -> tuple[int, int]:
        """Bytes that cross, each result once for each other pool that reads it; and how many are unknown."""
        found = list(crossings(self.model, self.pools))
        return round(sum(one.nbytes for one in found)), sum(one.task in self.unknown for one in found)


Costs = Mapping[str, Mapping[str, float]]
"""What a byte costs from one pool to another; 1 where nothing is said."""


def plan(layers: Layers, keys: Any, kind: Kind, costs: Costs | None = None) -> Placed:
    """Place the tasks of a graph, as `place` does, and change nothing.

    Parameters
    ----------
    layers : Layers
        As `read_layers` gives them.
    keys : nested list of keys
        The results asked for.
    kind : Kind
    costs : mapping of str to mapping of str to float, optional

    Raises
    ------
    ResidencyError
        If something that must stay in its pool is wanted in another.
    """
    wanted = _wanted(keys)
    with _uncollected():
        tasks, marks = _materialise(layers, wanted, kind)
        return _placed(tasks, marks, wanted, layers, costs)


def place(
    layers: Layers,
    keys: Any,
    kind: Kind,
    *,
    name_pins: bool = False,
    costs: Costs | None = None,
    check: Callable[[Placed], None] | None = None,
) -> HighLevelGraph:
    """Optimise a graph as Dask does for this kind of collection, and pin its tasks.

    Parameters
    ----------
    layers : Layers
        As `read_layers` gives them.
    keys : nested list of keys
        The results asked for.
    kind : Kind
    name_pins : bool
        Write the pins into the keys as well. For graphs that are optimised in the client, as by
        `dask.optimize` or `to_delayed`: Dask flattens those, and drops annotations.
    costs : mapping of str to mapping of str to float, optional
    check : callable, optional
        Called with the placement before anything is made of it; what it raises comes out here.

    Returns
    -------
    HighLevelGraph
        Every layer annotated with the pool of its tasks.

    Raises
    ------
    ResidencyError
        If something that must stay in its pool is wanted in another.
    """
    with _uncollected():
        return _optimised(layers, _wanted(keys), kind, name_pins, costs, check)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector: going through every new object takes half the time, and finds nothing.

    Afterwards, what is new counts as old: it is going to live as long as the graph. Otherwise the collector
    would go through all of it several times in the next few milliseconds.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            if not gc.get_freeze_count():  # else somebody wants some objects left alone for good
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _optimised(
    layers: Layers,
    wanted: set[Key],
    kind: Kind,
    name_pins: bool,
    costs: Costs | None,
    check: Callable[[Placed], None] | None,
) -> HighLevelGraph:
    tasks, marks = _materialise(layers, wanted, kind)
    kinds = {id(mark): mark for mark in marks}.values()
    sizes: Mapping[Key, float] = {}
    workers = _threads_of_workers(frozenset().union(*layers.pools.values()))
    shared = {pool for pool, threads in workers.items() if len(threads) > 1}
    pools: dict[Key, str | None]
    if (
        check is not None
        or any(mark.pools and mark.home is None for mark in kinds)
        or (len({mark.home for mark in kinds}) > 1 and any(pins.stays(key) for key in tasks))
    ):
        # Only here does a layer hold tasks of several pools, so only here are single tasks looked at.
        placed = _placed(tasks, marks, wanted, layers, costs)
        if check is not None:
            check(placed)
        names = [*placed.model.pools, None]  # FREE, which is -1, is the last of them
        pools = dict(zip(placed.keys, [names[pool] for pool in placed.pools], strict=True))
        edges = placed.edges()
        if shared:
            sizes = _sizes_that_cross(placed)
        del placed
    else:
        pools = {key: layers.pins.get(key) or mark.home for key, mark in zip(tasks, marks, strict=True)}
        edges = {
            source
            for key, task in tasks.items()
            for source in task.dependencies
            if pools.get(source) != pools[key]
        }
    annotations: dict[Key, dict[str, Any]] = {}
    if layers.annotations or any(mark.annotations for mark in kinds):
        annotations = {
            key: others
            for key, mark in zip(tasks, marks, strict=True)
            if (others := layers.annotations.get(key) or mark.annotations)
        }
    if kind.linear():
        tasks = _fuse_chains(tasks, wanted | edges, pools, annotations)
    tasks = kind.finish(tasks)
    if shared:
        _fetch_once(tasks, pools, shared, sizes, layers)
    if name_pins:
        tasks = _name_pins(tasks, wanted, pools)
    return _annotated(tasks, pools, annotations)


def _wanted(keys: Any) -> set[Key]:
    """Set of the keys in a nested list of them."""
    return set(flatten(keys if isinstance(keys, (list, set)) else [keys]))


def release(layers: Layers, keys: Any, kind: Kind) -> HighLevelGraph:
    """Optimise a graph as Dask alone would, and let its tasks run anywhere (``pools.propagate: false``)."""
    optimized = HighLevelGraph.merge(kind.optimize(layers.graph, keys))
    for layer in optimized.layers.values():
        # The names of the keys still say where their data lives; this tells the scheduler not to heed them.
        layer.annotations = {**(layer.annotations or {}), **pins.ANYWHERE}
    return optimized


def _materialise(layers: Layers, wanted: set[Key], kind: Kind) -> tuple[Graph, list[_Mark]]:
    """Fuse layers inside each pool, cull, and make the tasks.

    Returns
    -------
    tasks : dict of key to task
        Those of a layer after those of the layers that it reads.
    marks : list of _Mark
        For each of them what is known of its layer.
    """
    graph = layers.graph
    if kind.blockwise:
        # Dask does not fuse a layer that is an output into its consumers. One whose consumer has other
        # sources is kept apart in the same way; nothing else keeps Dask from merging pins.
        edges = {
            source
            for name, sources in graph.dependencies.items()
            for source in sources
            if layers.pools.get(source) != layers.pools.get(name)
            or layers.homes.get(source) != layers.homes.get(name)
        }
        graph = dask_internals.optimize_blockwise(graph, keys=[*wanted, *edges])
    pinned = {_name(key) for key in layers.pins}
    marks: dict[str, _Mark] = {}
    marked = {}
    for name, layer in graph.layers.items():
        marks[name] = _Mark(
            layer=name,
            pools=layers.pools[name],
            home=layers.homes.get(name),
            apart=name if layers.pools[name] and name not in layers.homes and name in pinned else None,
            annotations=dict(getattr(layer, "annotations", None) or {}),
        )
        marked[name] = copy.copy(layer)
        # Survives culling, which renames layers; and fuse_roots asks whether annotations are equal.
        marked[name].annotations = {"mark": marks[name]}
    graph = HighLevelGraph(marked, graph.dependencies)
    if kind.blockwise:
        graph = dask_internals.fuse_roots(graph, keys=list(wanted))
        for name, layer in graph.layers.items():
            layer.annotations = {"mark": marks[name]}
    raw: dict[Key, Any] = {}
    task_marks: list[_Mark] = []
    culled = list(graph.cull(wanted).layers.values())  # consumers first
    for layer in reversed(culled):
        raw.update(layer)
        task_marks += [layer.annotations["mark"]] * (len(raw) - len(task_marks))
    if len(raw) < sum(map(len, culled)):
        # Layers that share keys: as Dask does, what is nearest to the sources counts.
        for layer in culled:
            raw.update(layer)
    tasks = dask_internals.convert_legacy_graph(raw, raw)
    if len(tasks) < len(raw):
        # Dask drops what stands for itself, as results do that the scheduler has.
        task_marks = [mark for key, mark in zip(raw, task_marks, strict=True) if key in tasks]
    return tasks, task_marks


def _placed(
    tasks: Graph, marks: list[_Mark], wanted: set[Key], layers: Layers, costs: Costs | None
) -> Placed:
    """Place tasks by a model of the whole graph."""
    at, model, layer_of, unknown = _model(tasks, marks, layers)
    order = list(at)
    _price(model, costs)
    workers = _threads_of_workers(model.pools)
    model.threads = [sum(workers[pool]) or 1 for pool in model.pools]
    try:
        pools = assign(model)
    except Exception:
        # A bug of ours must not cost a user the result.
        logger.warning("Could not place a graph; its tasks follow most of their inputs.", exc_info=True)
        pools = look_back(model)
    _check_residency(order, layer_of, model, pools)
    outputs = sorted(at[key] for key in wanted if key in at)
    return Placed(order, layer_of, outputs, model, pools, frozenset(unknown))


def _price(model: Model, costs: Costs | None) -> None:
    """Add to a model what a byte costs between its pools, if that differs."""
    named = {
        (source, target): float(price)
        for source, prices in (costs or {}).items()
        for target, price in prices.items()
        if source != target and price > 0
    }
    if any(named.get((p, q), 1.0) != 1.0 for p in model.pools for q in model.pools):
        model.costs = [[named.get((p, q), float(p != q)) for q in model.pools] for p in model.pools]


def _check_residency(order: list[Key], layer_of: list[str], model: Model, pools: list[int]) -> None:
    """Refuse a placement in which something crosses that must stay."""
    if not any(pins.stays(order[task]) for task in model.stays):
        return
    for task, inputs in enumerate(model.inputs):
        for source in inputs:
            if (
                source in model.stays
                and FREE not in (pools[source], pools[task])
                and pools[source] != pools[task]
                and pins.stays(order[source])
            ):
                raise ResidencyError(
                    pins.label_of_name(_name(order[source])) or key_split(order[source]),
                    model.pools[pools[source]],
                    key_split(layer_of[task] or order[task]),
                    model.pools[pools[task]],
                )


def _model(
    tasks: Graph, marks: list[_Mark], layers: Layers
) -> tuple[dict[Key, int], Model, list[str], set[int]]:
    """Write the graph down as plain data.

    Returns
    -------
    at : dict of key to int
        The number of each task in the model, in its order.
    model : Model
    layer_of : list of str
        For each task the name of its layer.
    unknown : set of int
        Tasks of unknown size.
    """
    at, nodes, marks_of, inputs_of = _in_order(tasks, marks)
    unknown: set[int] = set()
    held = layers.pins
    homes = {id(mark): mark.home for mark in marks}.values()
    model = Model(pools=sorted({*held.values(), *(home for home in homes if home is not None)}))
    number_of = {pool: number for number, pool in enumerate(model.pools)}
    model.inputs = inputs_of
    # What keys have in common that begin with the same name: whether they stay, and the bytes of each.
    known: dict[Key, tuple[bool, float | None]] = {}
    for position, (key, task) in enumerate(zip(at, nodes, strict=True)):
        inputs, mark = inputs_of[position], marks_of[position]
        pool = held.get(key) if held else None
        name = key[0] if type(key) is tuple and key else key
        if (of_name := known.get(name)) is None:
            of_name = known[name] = pins.stays(key), nbytes_of_each(key, layers)
        stays, nbytes = of_name
        if task is None or mark is None:
            # A result that the scheduler has already.
            pool = pool or pool_that_holds(key)
            nbytes = dask_internals.nbytes_of_result(key)
        else:
            pool = pool or mark.home
            if nbytes is None:
                nbytes = nbytes_of(key, layers)
            if isinstance(task, dask_internals.P2PBarrierTask):
                # Its outputs are made where it runs.
                model.stays.add(position)
            if nbytes is None:
                nbytes = nbytes_of_slice(task, layers) if inputs else dask_internals.nbytes_of_constant(task)
        if nbytes is None:
            # An alias, a slice of unknown length, any Python object: as large as the largest thing it reads.
            nbytes = max((model.nbytes[source] for source in inputs), default=UNKNOWN_NBYTES)
            if unknown.issuperset(inputs):
                unknown.add(position)
        if stays:
            model.stays.add(position)
        model.nbytes.append(nbytes)
        model.pinned.append(FREE if pool is None else number_of.setdefault(pool, len(number_of)))
    model.pools = list(number_of)
    layer_of = ["" if mark is None else mark.layer for mark in marks_of]
    numbers: dict[str, int] = {}
    model.layers = [numbers.setdefault(layer, len(numbers)) for layer in layer_of]
    return at, model, layer_of, unknown


def _in_order(
    tasks: Graph, marks: list[_Mark]
) -> tuple[dict[Key, int], Sequence[GraphNode | None], Sequence[_Mark | None], list[list[int]]]:
    """Give numbers to tasks and to what they read, inputs first.

    Returns
    -------
    at : dict of key to int
        Its keys in this order.
    nodes : sequence of task
        None for a result that the scheduler has already.
    marks : sequence of _Mark
        Likewise.
    inputs : list of list of int
    """
    at: dict[Key, int] = {}
    inputs: list[list[int]] = []
    try:
        for key, task in tasks.items():
            inputs.append([at[source] for source in task.dependencies])
            at[key] = len(at)
    except KeyError:
        # Tasks of a layer read each other, or a result that the scheduler has already.
        at = {key: number for number, key in enumerate(_topological(tasks))}
        mark_of = dict(zip(tasks, marks, strict=True))
        nodes = [tasks.get(key) for key in at]
        inputs = [[] if task is None else [at[source] for source in task.dependencies] for task in nodes]
        return at, nodes, [mark_of.get(key) for key in at], inputs
    return at, list(tasks.values()), marks, inputs


def _topological(tasks: Graph) -> list[Key]:
    """Keys of the tasks and of what they read, inputs first.

    A third of the time of `graphlib.TopologicalSorter`, which counts at a million tasks.
    """
    waiting: dict[Key, int] = {}
    readers: dict[Key, list[Key]] = {}
    order: list[Key] = []
    for key, task in tasks.items():
        if sources := task.dependencies:
            waiting[key] = len(sources)
            for source in sources:
                if (known := readers.get(source)) is None:
                    readers[source] = [key]
                    if source not in tasks:
                        order.append(source)
                else:
                    known.append(key)
        else:
            order.append(key)
    for key in order:  # grows meanwhile
        for reader in readers.get(key, ()):
            left = waiting[reader] - 1
            if left:
                waiting[reader] = left
            else:
                order.append(reader)
    return order


def _fuse_chains(
    tasks: Graph, kept: set[Key], pools: dict[Key, str | None], annotations: dict[Key, dict[str, Any]]
) -> Graph:
    """Fuse chains of tasks that do not go on from those `kept`; adds them to `pools` and `annotations`."""
    kept = kept | _named_twice(tasks)
    fused: Graph = dict(dask_internals.fuse_linear_task_spec(tasks, keys=kept))
    for key, task in fused.items():
        if key in pools and not annotations:
            continue  # not fused, or under the name of its last task
        members = [inner for inner in dask_internals.fused_keys(task) if inner in tasks]
        if not members:
            continue
        pools[key] = pools[members[0]]
        if several := [annotations[member] for member in members if member in annotations]:
            annotations[key] = dask_internals.merge_annotations(several)
    return fused


def _named_twice(tasks: Graph) -> set[Key]:
    """Tasks that are fused with nothing but another name of theirs: as many tasks are left, and larger ones.

    Dask gives what it fuses a name of its own and leaves an alias behind, so that a chunk which several read
    after `concatenate` would become a task around a task and its alias, and an alias of that.
    """
    aliases = {key: task.target for key, task in tasks.items() if type(task) is dask_internals.Alias}
    if not aliases:
        return set()
    readers = Counter(source for task in tasks.values() for source in task.dependencies if source in aliases)
    return {
        target
        for key, target in aliases.items()
        if readers[key] != 1 and target in tasks and len(tasks[target].dependencies) != 1
    }


def _threads_of_workers(pools: Iterable[str]) -> dict[str, list[int]]:
    """Threads of each worker of some pools, where there is a scheduler to know them."""
    found = dask_internals.threads_by_resource()
    return {pool: found.get(pins.resource(pool), []) for pool in pools}


def _sizes_that_cross(placed: Placed) -> dict[Key, float]:
    """Bytes of the results that are large enough to be fetched once for all workers of a pool."""
    keys = placed.keys
    return {
        keys[crossing.task]: crossing.nbytes
        for crossing in crossings(placed.model, placed.pools)
        if crossing.nbytes >= FETCHED_ONCE
    }


def _as_it_is(result: Any) -> Any:
    return result


def _fetch_once(
    tasks: Graph,
    pools: dict[Key, str | None],
    shared: Collection[str],
    sizes: Mapping[Key, float],
    layers: Layers,
) -> None:
    """Have one task of a pool with several workers fetch what several of its tasks read from elsewhere.

    The others take it from there: otherwise each worker fetches for itself what crosses, since Dask does not
    look at pools when it chooses whom to ask. Changes `tasks`, and adds the new ones to `pools`.
    """
    readers: dict[tuple[Key, str], list[Key]] = {}
    for key, task in tasks.items():
        pool = pools.get(key)
        if pool is not None and pool in shared and not isinstance(task, dask_internals.P2PBarrierTask):
            for source in task.dependencies:
                home = pools.get(source) or layers.pins.get(source)
                if home is not None and home != pool:
                    readers.setdefault((source, pool), []).append(key)
    for (source, pool), several in readers.items():
        nbytes = sizes.get(source) or nbytes_of(source, layers) or 0.0
        if len(several) < 2 or nbytes < FETCHED_ONCE:
            continue
        name = f"fetch-{tokenize(_name(source), pool)}"
        fetched = (name, *source[1:]) if isinstance(source, tuple) else name
        tasks[fetched] = dask_internals.Task(fetched, _as_it_is, dask_internals.TaskRef(source))
        pools[fetched] = pool
        for key in several:
            tasks[key] = tasks[key].substitute({source: fetched})


def _name_pins(tasks: Graph, wanted: set[Key], pools: dict[Key, str | None]) -> Graph:
    """Rename the tasks whose pool their inputs do not tell; adds the new keys to `pools`."""
    renamed: dict[Key, Key] = {}
    for key, task in tasks.items():
        pool = pools.get(key)
        if pool is None or pins.pools_of_task(key, task):
            continue
        if task.dependencies and all(pools.get(source) == pool for source in task.dependencies):
            continue
        name = _name(key)
        new = pins.source_name(key_split(name), pool, tokenize(name))
        renamed[key] = (new, *key[1:]) if isinstance(key, tuple) else new
    named: Graph = {}
    for key, task in tasks.items():
        new_key = renamed.get(key, key)
        named[new_key] = task.substitute(renamed, key=new_key)
        if new_key != key:
            pools[new_key] = pools[key]
            if key in wanted:
                named[key] = dask_internals.Alias(key, target=new_key)
    return named


def _name(key: Key) -> str:
    """Name of the layer of a key."""
    return str(key[0] if isinstance(key, tuple) else key)


def _annotated(
    tasks: Graph, pools: Mapping[Key, str | None], annotations: Mapping[Key, dict[str, Any]]
) -> HighLevelGraph:
    """Graph with one layer for each combination of pool and other annotations."""
    layers: dict[Hashable, tuple[dict[str, Any], Graph]] = {}
    for key, task in tasks.items():
        pool = pools[key]
        others = annotations.get(key) if annotations else None
        group = (pool, repr(others)) if others else pool
        if (layer := layers.get(group)) is None:
            values = others or {}
            layer = layers[group] = (pins.placed(values, pool) if pool is not None else values, {})
        layer[1][key] = task
    # The names are new each time: Dask merges the layers of several collections by name.
    unique = uuid.uuid4().hex
    named = {
        f"placed-{unique}-{number}": MaterializedLayer(members, annotations=values or None)
        for number, (values, members) in enumerate(layers.values())
    }
    return HighLevelGraph(named, {name: set() for name in named})
