"""What is known of a graph before any of its layers is fused or culled: pins, sizes, and where layers belong.

Sizes are those of arrays, chunk by chunk; Dask's layers tell them. It decides nothing about single tasks.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from dask.typing import Key

from dask_pools import dask_internals, pins
from dask_pools.dask_internals import GraphNode, HighLevelGraph

Pools = frozenset[str]
"""Pools that the sources of a layer lie in."""


@dataclass
class Layers:
    """What is known of a graph before any of its layers is fused or culled."""

    graph: HighLevelGraph
    """The graph, its layers without pins."""
    pools: dict[str, Pools] = field(default_factory=dict)
    """For each layer the pools that its sources lie in; empty if nothing ties it to any."""
    homes: dict[str, str] = field(default_factory=dict)
    """Pools of the layers whose tasks need no look at each: pinned, or near one pool only."""
    pins: dict[Key, str] = field(default_factory=dict)
    """Pools of single tasks, where a layer was flattened from several."""
    sizes: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = field(default_factory=dict)
    """For each layer that makes an array its chunks and the bytes of an element; of several, all of them."""
    annotations: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Annotations, without pins, where they differ from task to task of a layer."""


Locate = Callable[[Mapping[Key, Any]], str | dict[Key, str] | None]
"""Pools that the targets of a layer of stores lie in, in the form of `dask_pools.pins.pools_of_layer`."""


def read_layers(dsk: HighLevelGraph | Mapping[Key, Any], locate: Locate | None = None) -> Layers | None:
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
    whole: dict[str, str] = {}
    read = Layers(dsk)
    partials: dict[str, dask_internals.Partial] = {}
    for name, layer in dsk.layers.items():
        found = pins.pools_of_layer(layer, name)
        held = {} if dask_internals.is_symbolic(layer) else _held(layer)
        if isinstance(found, str):
            own[name] = frozenset([found])
            whole[name] = found
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
            chunks, arrays = described["chunks"], dask_internals.arrays_of_partial(name)
            if partial := dask_internals.partial_of(layer, dsk.layers):
                partials[name] = partial
                chunks = _shortened(chunks, partial.lengths)
                arrays = partial.arrays
            elif reduced := dask_internals.reduced_axes(layer):
                chunks = _shortened(chunks, {axis: (1,) * len(chunks[axis]) for axis in reduced})
            # Lengths that are not known are NaN.
            if not any(math.isnan(n) for along in chunks for n in along):
                read.sizes[name] = (chunks, getattr(described["dtype"], "itemsize", 8) * arrays)
    if partials:
        _combine(partials, read)
    if not own:
        return None
    if locate is not None:
        for name in set(stripped).difference(own):
            held_by = locate(dsk.layers[name])
            if isinstance(held_by, str):
                own[name] = frozenset([held_by])
                whole[name] = held_by
            elif held_by:
                read.pins.update(held_by)
                own[name] = frozenset(held_by.values())
    read.pools = _spread(own, dsk.dependencies, stripped)
    read.homes = _homes(whole, own, dsk.dependencies, read)
    read.graph = HighLevelGraph(stripped, dsk.dependencies)
    return read


def _shortened(
    chunks: tuple[tuple[int, ...], ...], lengths: Mapping[int, tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """Chunks of an array with other lengths along some axes."""
    return tuple(lengths.get(axis, along) for axis, along in enumerate(chunks))


def _combine(partials: dict[str, dask_internals.Partial], read: Layers) -> None:
    """Correct the sizes of the layers that combine partial results of several elements: they have as many.

    Dask tells of them one element along the axes of the reduction.
    """
    dependencies = read.graph.dependencies
    for name in TopologicalSorter(dependencies).static_order():
        further = dask_internals.combines(name)
        sources = dependencies.get(name, ())
        if further is None or name not in read.sizes or len(sources) != 1:
            continue
        (source,) = sources
        if (partial := partials.get(source)) is None:
            continue
        chunks, size = read.sizes[name]
        lengths = {axis: (max(along),) * len(chunks[axis]) for axis, along in partial.lengths.items()}
        arrays = partial.arrays if further else 1
        partials[name] = dask_internals.Partial(lengths, arrays)
        read.sizes[name] = (_shortened(chunks, lengths), size * arrays)


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
        if dask_internals.is_future(value) and (pool := pool_that_holds(value.key))
    }


def pool_that_holds(key: Key) -> str | None:
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


def _homes(
    whole: Mapping[str, str],
    own: Mapping[str, Pools],
    dependencies: Mapping[str, Collection[str]],
    read: Layers,
) -> dict[str, str]:
    """Pools of the layers whose tasks can stay together: these need no look at each task.

    Parameters
    ----------
    whole : dict of str to str
        Pools of the layers that are pinned as a whole.
    own : dict of str to set of str
        Pools of the layers that have pins, or tasks with pins.
    dependencies : dict of str to set of str
    read : Layers
        Their sizes.
    """
    homes = dict(whole)
    if len(frozenset().union(*own.values())) == 1:
        (only,) = next(iter(own.values()))
        return {name: only for name, pools in read.pools.items() if pools}
    readers: dict[str, int] = {}
    for sources in dependencies.values():
        for source in sources:
            readers[source] = readers.get(source, 0) + 1
    # Of a partial mean, its number and its total, only one counts here: the next step in the same pool makes
    # less of both, and a layer that stays with the one it reads is fused with it.
    nbytes = {
        name: math.prod(sum(along) for along in chunks) * itemsize / dask_internals.arrays_of_partial(name)
        for name, (chunks, itemsize) in read.sizes.items()
    }
    for name in TopologicalSorter(dependencies).static_order():
        reads = dependencies.get(name)
        if not reads or name in own or name not in nbytes:
            continue
        # All it reads lies in one pool, and what it makes is not more than something that only it reads:
        # nothing is gained by moving it to its consumers.
        found = {homes.get(source) for source in reads}
        if len(found) == 1 and (home := found.pop()) is not None:
            read_by_it = (nbytes.get(source, 0) for source in reads if readers[source] == 1)
            if nbytes[name] <= max(read_by_it, default=-1):
                homes[name] = home
    part: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := part.setdefault(name, name)) != name:
            part[name] = part[above]
            name = part[name]
        return name

    near: dict[str, set[str]] = {}
    for name, sources in dependencies.items():
        for source in sources:
            if name not in homes and source not in homes:
                part[find(name)] = find(source)
    for name, sources in dependencies.items():
        if name not in homes:
            near.setdefault(find(name), set()).update(own.get(name, ()))
        for source in sources:
            if name in homes and source not in homes:
                near.setdefault(find(source), set()).add(homes[name])
            elif source in homes and name not in homes:
                near.setdefault(find(name), set()).add(homes[source])
    for name in dependencies:
        if name not in homes and len(pools := near.get(find(name), set())) == 1:
            (homes[name],) = pools
    return homes


def nbytes_of_each(key: Key, layers: Layers) -> float | None:
    """Bytes of a chunk of an array whose chunks all have as many; None if the key is of anything else."""
    nbytes = nbytes_of(key, layers)
    if nbytes is None or not isinstance(key, tuple):
        return None
    chunks, _ = layers.sizes[str(key[0])]
    return nbytes if all(along.count(along[0]) == len(along) for along in chunks) else None


def nbytes_of(key: Key, layers: Layers) -> float | None:
    """Bytes of a chunk of an array, or None if the key is of something else."""
    if not isinstance(key, tuple) or not key or key[0] not in layers.sizes:
        return None
    chunks, itemsize = layers.sizes[key[0]]
    if len(chunks) != len(key) - 1:
        return None
    nbytes = itemsize
    for along, index in zip(chunks, key[1:], strict=True):
        nbytes *= along[index]
    return nbytes


def nbytes_of_slice(task: GraphNode, layers: Layers) -> float | None:
    """Bytes of what a task cuts out of one chunk of an array; None if it does anything else."""
    if len(task.dependencies) != 1:
        return None
    (source,) = task.dependencies
    if not isinstance(source, tuple) or not source or source[0] not in layers.sizes:
        return None
    chunks, itemsize = layers.sizes[source[0]]
    if len(chunks) != len(source) - 1:
        return None
    shape = tuple(along[index] for along, index in zip(chunks, source[1:], strict=True))
    cut = dask_internals.sliced_shape(task, shape)
    return None if cut is None else float(itemsize * math.prod(cut))
