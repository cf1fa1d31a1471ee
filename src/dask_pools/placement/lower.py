"""Dask graph -> model -> optimised, pinned Dask graph.

Runs where Dask optimises graphs: on the scheduler, in its one offload thread, or in the client where a graph
is optimised there. The order of the steps matters: pins and sizes are read from whole layers, before Dask
fuses or culls any of them; layers and tasks are then fused only where all parts stay in one pool.
"""

from __future__ import annotations

import copy
import logging
import math
import uuid
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import dask
from dask.base import flatten, tokenize
from dask.typing import Key
from dask.utils import key_split

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import GraphNode, HighLevelGraph, MaterializedLayer
from dask_pools.placement.assign import assign
from dask_pools.placement.model import FREE, Model

logger = logging.getLogger(__name__)

UNKNOWN_NBYTES = 1.0
"""Bytes assumed for a result whose size nothing tells, and which has no inputs."""

Pools = frozenset[str]
"""Pools that the sources of a layer lie in."""

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

    layer: str
    """Its name."""
    pools: Pools
    """Pools that its sources lie in."""
    annotations: dict[str, Any]
    """Its annotations, without pins."""


@dataclass
class Layers:
    """What is known of a graph before any of its layers is fused or culled."""

    graph: HighLevelGraph
    """The graph, its layers without pins."""
    pools: dict[str, Pools] = field(default_factory=dict)
    """For each layer the pools that its sources lie in; empty if nothing ties it to any."""
    pins: dict[Key, str] = field(default_factory=dict)
    """Pools of single tasks, where a layer was flattened from several."""
    sizes: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = field(default_factory=dict)
    """For each layer that makes an array its chunks and the bytes of an element."""
    annotations: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Annotations, without pins, where they differ from task to task of a layer."""


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


def plan(layers: Layers, keys: Any, kind: Kind) -> Placed:
    """Place the tasks of a graph, as `place` does, and change nothing.

    Parameters
    ----------
    layers : Layers
        As `read` gives them.
    keys : nested list of keys
        The results asked for.
    kind : Kind
    """
    wanted = _wanted(keys)
    tasks, marks = _materialise(layers, wanted, kind)
    order, model = _model(tasks, _pinned(tasks, marks, layers), layers)
    return Placed(
        keys=order,
        layers=[marks[key].layer if key in marks else "" for key in order],
        outputs=[task for task, key in enumerate(order) if key in wanted],
        model=model,
        pools=assign(model),
    )


def _wanted(keys: Any) -> set[Key]:
    """Set of the keys in a nested list of them."""
    return set(flatten(keys if isinstance(keys, (list, set)) else [keys]))


def place(layers: Layers, keys: Any, kind: Kind, *, name_pins: bool = False) -> HighLevelGraph:
    """Optimise a graph as Dask does for this kind of collection, and pin its tasks.

    Parameters
    ----------
    layers : Layers
        As `read` gives them.
    keys : nested list of keys
        The results asked for.
    kind : Kind
    name_pins : bool
        Write the pins into the keys as well. For graphs that are optimised in the client, as by
        `dask.optimize` or `to_delayed`: Dask flattens those, and drops annotations.

    Returns
    -------
    HighLevelGraph
        Every layer annotated with the pool of its tasks.
    """
    wanted = _wanted(keys)
    tasks, marks = _materialise(layers, wanted, kind)
    pools = _place_tasks(tasks, marks, layers)
    annotations = {
        key: others for key in tasks if (others := layers.annotations.get(key) or marks[key].annotations)
    }
    if kind.linear():
        tasks = _fuse_chains(tasks, wanted, pools, annotations)
    tasks = kind.finish(tasks)
    if name_pins:
        tasks = _name_pins(tasks, wanted, pools)
    return _annotated(tasks, pools, annotations)


def release(layers: Layers, keys: Any, kind: Kind) -> HighLevelGraph:
    """Optimise a graph as Dask alone would, and let its tasks run anywhere (``pools.propagate: false``)."""
    optimized = HighLevelGraph.merge(kind.optimize(layers.graph, keys))
    for layer in optimized.layers.values():
        # The names of the keys still say where their data lives; this tells the scheduler not to heed them.
        layer.annotations = {**(layer.annotations or {}), **pins.ANYWHERE}
    return optimized


Locate = Callable[[Mapping[Key, Any]], str | dict[Key, str] | None]
"""Pools that the targets of a layer of stores lie in, in the form of `dask_pools.pins.pools_of_layer`."""


def read(dsk: HighLevelGraph | Mapping[Key, Any], locate: Locate | None = None) -> Layers | None:
    """Read pins and sizes of every layer of a graph; None if it has no pins.

    Parameters
    ----------
    dsk : HighLevelGraph or dict
    locate : callable, optional
        Asked for each layer without a pin, if the graph has pins at all: a store belongs where its target is.

    Raises
    ------
    MixedPoolsError
        If Dask has fused loading tasks of several pools into one.
    UnlocatedError
        If `locate` raises it.
    """
    if not isinstance(dsk, HighLevelGraph):
        dsk = HighLevelGraph.from_collections(f"graph-{uuid.uuid4().hex}", dsk, dependencies=())
    stripped: dict[str, Any] = {}
    own: dict[str, Pools] = {}
    read = Layers(dsk)
    for name, layer in dsk.layers.items():
        found = pins.pools_of_layer(layer, name)
        held = {} if dask_internals.is_symbolic(layer) else _held(layer)
        if isinstance(found, str):
            own[name] = frozenset([found])
        elif found or held:
            read.pins.update(held)
            read.pins.update(found or {})
            own[name] = frozenset([*held.values(), *(found or {}).values()])
        annotations = getattr(layer, "annotations", None)
        if annotations:
            layer = copy.copy(layer)
            others = pins.without_pool(annotations)
            fixed = {what: value for what, value in others.items() if not callable(value)}
            layer.annotations = fixed or None
            if len(fixed) < len(others) or callable(annotations.get("resources")):
                # Dask itself makes such layers where it flattens collections inside a Delayed.
                for key in layer:
                    if values := _annotations_of(key, annotations):
                        read.annotations[key] = values
        stripped[name] = layer
        described = getattr(layer, "collection_annotations", None) or {}
        if "chunks" in described and "dtype" in described:
            chunks = described["chunks"]
            # Lengths that are not known are NaN.
            chunks = tuple(tuple(0 if math.isnan(n) else int(n) for n in along) for along in chunks)
            read.sizes[name] = (chunks, getattr(described["dtype"], "itemsize", 8))
    if not own:
        return None
    if locate is not None:
        for name in set(stripped).difference(own):
            held_by = locate(dsk.layers[name])
            if isinstance(held_by, str):
                own[name] = frozenset([held_by])
            elif held_by:
                read.pins.update(held_by)
                own[name] = frozenset(held_by.values())
    read.pools = _spread(own, dsk.dependencies, stripped)
    read.graph = HighLevelGraph(stripped, dsk.dependencies)
    return read


def _annotations_of(key: Key, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations of one task of a layer, without its pin."""
    values = {what: value(key) if callable(value) else value for what, value in annotations.items()}
    # Dask marks "none for this task" by an object of a private class.
    values = {what: value for what, value in values.items() if not dask_internals.is_tombstone(value)}
    return pins.without_pool(values)


def _held(layer: Mapping[Key, Any]) -> dict[Key, str]:
    """Pools that hold the futures of a layer: persisted or scattered parts count where they are."""
    return {
        key: pool
        for key, value in layer.items()
        if dask_internals.is_future(value) and (pool := _pool_that_holds(value.key))
    }


def _pool_that_holds(key: Key) -> str | None:
    """Pool of the workers that hold, or will hold, the result of a task the scheduler knows."""
    for offered in dask_internals.resources_of_result(key):
        if pool := pins.pool_of_resources(offered):
            return pool
    return None


def _spread(
    own: dict[str, Pools], dependencies: Mapping[str, Collection[str]], layers: Iterable[str]
) -> dict[str, Pools]:
    """Pools for every layer: its own pin, else those of its inputs, else those of its consumers."""
    nothing: Pools = frozenset()
    order = [name for name in TopologicalSorter(dependencies).static_order() if name in dependencies]
    pools: dict[str, Pools] = {}
    for name in order:
        pools[name] = own.get(name) or nothing.union(
            *(pools.get(source, nothing) for source in dependencies[name])
        )
    consumers: dict[str, Pools] = {}
    for name in reversed(order):
        if not pools[name]:
            pools[name] = consumers.get(name, nothing)
        for source in dependencies[name]:
            consumers[source] = consumers.get(source, nothing) | pools[name]
    return {name: pools.get(name, nothing) for name in layers}


def _materialise(layers: Layers, wanted: set[Key], kind: Kind) -> tuple[Graph, dict[Key, _Mark]]:
    """Fuse layers inside each pool, cull, and make the tasks.

    Returns
    -------
    tasks : dict of key to task
    marks : dict of key to _Mark
        What is known of the layer that each task comes from.
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
        }
        graph = dask_internals.optimize_blockwise(graph, keys=[*wanted, *edges])
    marks: dict[str, _Mark] = {}
    marked = {}
    for name, layer in graph.layers.items():
        marks[name] = _Mark(name, layers.pools[name], dict(getattr(layer, "annotations", None) or {}))
        marked[name] = copy.copy(layer)
        # Survives culling, which renames layers; and fuse_roots asks whether annotations are equal.
        marked[name].annotations = {"mark": marks[name]}
    graph = HighLevelGraph(marked, graph.dependencies)
    if kind.blockwise:
        graph = dask_internals.fuse_roots(graph, keys=list(wanted))
        for name, layer in graph.layers.items():
            layer.annotations = {"mark": marks[name]}
    raw: dict[Key, Any] = {}
    task_marks: dict[Key, _Mark] = {}
    for layer in graph.cull(wanted).layers.values():
        raw.update(layer)
        task_marks.update(dict.fromkeys(layer, layer.annotations["mark"]))
    return dask_internals.convert_legacy_graph(raw), task_marks


def _pinned(tasks: Graph, marks: Mapping[Key, _Mark], layers: Layers) -> dict[Key, str]:
    """Pool of every task that is pinned, or whose layer is tied to one pool only."""
    pools: dict[Key, str] = {}
    for key in tasks:
        of_layer = marks[key].pools
        if (pin := layers.pins.get(key)) is not None:
            pools[key] = pin
        elif len(of_layer) == 1:
            (pools[key],) = of_layer
    return pools


def _place_tasks(tasks: Graph, marks: Mapping[Key, _Mark], layers: Layers) -> dict[Key, str]:
    """Pool of every task that is tied to one."""
    pools = _pinned(tasks, marks, layers)
    if all(key in pools or not marks[key].pools for key in tasks):
        return pools
    # Only here does a layer hold tasks of several pools, so only here are single tasks looked at.
    order, model = _model(tasks, pools, layers)
    for key, pool in zip(order, assign(model), strict=True):
        if pool != FREE and key in tasks:
            pools[key] = model.pools[pool]
    return pools


def _model(tasks: Graph, pins_of: Mapping[Key, str], layers: Layers) -> tuple[list[Key], Model]:
    """Write the graph down as plain data; keys in the order of the model's tasks."""
    model = Model(pools=sorted({*pins_of.values(), *layers.pins.values()}))
    number_of = {pool: number for number, pool in enumerate(model.pools)}
    order = list(TopologicalSorter({key: task.dependencies for key, task in tasks.items()}).static_order())
    at: dict[Key, int] = {}
    for position, key in enumerate(order):
        at[key] = position
        task = tasks.get(key)
        if task is None:
            # A result that the scheduler has already.
            inputs: list[int] = []
            pool = layers.pins.get(key) or _pool_that_holds(key)
            nbytes = dask_internals.nbytes_of_result(key)
        else:
            inputs = [at[source] for source in task.dependencies]
            pool = pins_of.get(key)
            nbytes = _nbytes(key, layers)
        if nbytes is None:
            # An alias, a slice of unknown length, any Python object: as large as the largest thing it reads.
            nbytes = max((model.nbytes[source] for source in inputs), default=UNKNOWN_NBYTES)
        model.inputs.append(inputs)
        model.nbytes.append(nbytes)
        model.pinned.append(FREE if pool is None else number_of.setdefault(pool, len(number_of)))
    model.pools = list(number_of)
    return order, model


def _nbytes(key: Key, layers: Layers) -> float | None:
    """Bytes of a chunk of an array, or None if the key is of something else."""
    if not isinstance(key, tuple) or not key or key[0] not in layers.sizes:
        return None
    chunks, itemsize = layers.sizes[key[0]]
    if len(chunks) != len(key) - 1:
        return None
    return float(itemsize * math.prod(along[i] for along, i in zip(chunks, key[1:], strict=True)))


def _fuse_chains(
    tasks: Graph, wanted: set[Key], pools: dict[Key, str], annotations: dict[Key, dict[str, Any]]
) -> Graph:
    """Fuse chains of tasks inside each pool; adds the fused tasks to `pools` and `annotations`."""
    edges = {
        source
        for key, task in tasks.items()
        for source in task.dependencies
        if pools.get(source) != pools.get(key)
    }
    fused = dask_internals.fuse_linear_task_spec(tasks, keys=wanted | edges)
    for key, task in fused.items():
        members = [inner for inner in dask_internals.fused_keys(task) if inner in tasks]
        if not members:
            continue
        if (pool := pools.get(members[0])) is not None:
            pools[key] = pool
        if annotations and (several := [annotations[member] for member in members if member in annotations]):
            annotations[key] = dask_internals.merge_annotations(several)
    return dict(fused)


def _name_pins(tasks: Graph, wanted: set[Key], pools: dict[Key, str]) -> Graph:
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
    tasks: Graph, pools: Mapping[Key, str], annotations: Mapping[Key, dict[str, Any]]
) -> HighLevelGraph:
    """Graph with one layer for each combination of pool and other annotations."""
    layers: dict[Hashable, tuple[dict[str, Any], Graph]] = {}
    for key, task in tasks.items():
        pool, others = pools.get(key), annotations.get(key)
        group = (pool, repr(others) if others else "")
        if group not in layers:
            values = others or {}
            layers[group] = (pins.with_pool(values, pool) if pool is not None else values, {})
        layers[group][1][key] = task
    # The names are new each time: Dask merges the layers of several collections by name.
    unique = uuid.uuid4().hex
    named = {
        f"placed-{unique}-{number}": MaterializedLayer(members, annotations=values or None)
        for number, (values, members) in enumerate(layers.values())
    }
    return HighLevelGraph(named, {name: set() for name in named})
