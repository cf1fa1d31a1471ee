"""Pins: marking a task so that it runs in one pool.

A pin has two carriers. The first is Dask's own annotation of a layer, ``resources={"pool-<name>": 0}``. The
second is the name of the key, ``read-<label>@<pool>-<token>``, which survives where Dask drops annotations;
where what is read must not leave its pool (residency), the first word is ``stay``.
This module writes and reads both; it knows neither clusters nor catalogues.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dask
from dask._task_spec import GraphNode
from dask.base import is_dask_collection
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key

from dask_pools.errors import MixedPoolsError

RESOURCE_PREFIX = "pool-"

ANYWHERE = {"pools": "anywhere"}
"""Annotation of tasks that were sent while ``pools.propagate`` was false: their names pin them no more."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.]+")
# The token (32 hexadecimal digits, as dask.base.tokenize makes it) tells where the pool's name ends. The
# word before "@" keeps dask.utils.key_split from carrying half a pool's name into the names of fused tasks.
_MARKED = re.compile(r"\b(read|stay)-([A-Za-z0-9_.]*)@([A-Za-z0-9._-]+?)-[0-9a-f]{32}")

_current: ContextVar[str | None] = ContextVar("dask_pools_current_pool", default=None)


def check_name(name: str) -> str:
    """Return `name` if it is a proper name for a pool.

    Raises
    ------
    ValueError
        If it is empty or has anything but letters, digits, ``-``, ``_`` and ``.``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a pool: use letters, digits, '-', '_' and '.'.")
    return name


def resource(name: str) -> str:
    """Dask worker resource that the workers of pool `name` offer."""
    return RESOURCE_PREFIX + name


def source_name(label: str, pool: str, token: str, stays: bool = False) -> str:
    """Name for the keys that read `label` in `pool`: the carrier that survives where annotations do not.

    Parameters
    ----------
    label : str
        What is read, for people; anything but letters, digits, ``_`` and ``.`` becomes ``_``.
    pool : str
    token : str
        32 hexadecimal digits, as `dask.base.tokenize` makes them.
    stays : bool, optional
        Whether what is read must not leave the pool.
    """
    first = "stay" if stays else "read"
    return f"{first}-{_UNSAFE.sub('_', label)}@{check_name(pool)}-{token}"


def pool_of_name(name: str) -> str | None:
    """Pool in the name of a layer, or None."""
    # Most names have no "@"; looking for it first is several times faster than the expression.
    if "@" in name and (found := _MARKED.search(name)):
        return found[3]
    return None


def label_of_name(name: str) -> str | None:
    """Label in the name of a layer: what its tasks read; None if the name is not one of ours."""
    if "@" in name and (found := _MARKED.search(name)):
        return found[2]
    return None


def pool_of_key(key: Key) -> str | None:
    """Pool in a key, or None."""
    name = key[0] if type(key) is tuple and key else key
    return pool_of_name(name) if isinstance(name, str) else None


def stays(key: Key) -> bool:
    """Whether a key, or a layer's name, says that its result must not leave its pool (residency).

    It says so of tasks that read and of their namesakes with a suffix, as `dask.delayed` and `dask.optimize`
    make them; not of what else is made of the results.
    """
    name = key[0] if type(key) is tuple and key else key
    return isinstance(name, str) and name.startswith("stay-") and pool_of_name(name) is not None


def pool_of_resources(resources: Mapping[str, float] | None) -> str | None:
    """Pool among the resources that a task requires, or None."""
    for name in resources or ():
        if name.startswith(RESOURCE_PREFIX):
            return name[len(RESOURCE_PREFIX) :]
    return None


def pools_of_resources(resources: Mapping[str, float] | None) -> tuple[str, ...]:
    """Pools among the resources that a worker offers, sorted."""
    return tuple(
        sorted(
            name.removeprefix(RESOURCE_PREFIX) for name in resources or () if name.startswith(RESOURCE_PREFIX)
        )
    )


def without_pool(annotations: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy of a layer's annotations without its pin; other resources stay."""
    others = dict(annotations or {})
    resources = others.pop("resources", None)
    if callable(resources):
        return others
    if rest := {name: n for name, n in (resources or {}).items() if not name.startswith(RESOURCE_PREFIX)}:
        others["resources"] = rest
    return others


def runs_anywhere(annotations: Mapping[str, Any] | None) -> bool:
    """Whether a task was sent while ``pools.propagate`` was false."""
    return (annotations or {}).get("pools") == ANYWHERE["pools"]


def with_pool(annotations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Copy of `annotations`, which have no pin, with one for pool `name`.

    The quantity is 0: a worker has to offer the resource, but a pin uses none of it up, so a worker runs as
    many pinned tasks at once as it has threads.
    """
    return {**annotations, "resources": {**annotations.get("resources", {}), resource(name): 0}}


class Placement(dict[str, float]):
    """What a placed task requires: nothing that its name or its inputs tell has to be looked at again."""


def placed(annotations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`with_pool` for tasks that have been placed, which the scheduler takes as they are."""
    annotations = with_pool(annotations, name)
    return {**annotations, "resources": Placement(annotations["resources"])}


def current_pool() -> str | None:
    """Name of the pool whose `pool()` block this is, or None."""
    return _current.get()


@contextmanager
def pinned(name: str | None) -> Iterator[None]:
    """Annotate what Dask builds inside for pool `name`; None takes the pin of an outer block away.

    This is the annotation alone. `dask_pools.pool` is what to use: it also makes sure that Dask keeps it.
    """
    if name is not None:
        check_name(name)
    annotations = without_pool(dask.get_annotations())
    resources = annotations.get("resources", {})
    if name is not None:
        resources = {**resources, resource(name): 0}
    before = _current.set(name)
    try:
        # dask.annotate replaces `resources` as a whole, so the outer ones (a GPU) are given again.
        with dask.annotate(resources=resources):
            yield
    finally:
        _current.reset(before)


def pools_of_layer(layer: Mapping[Key, Any], name: str) -> dict[Key, str] | str | None:
    """Source pins of one layer of a graph.

    Returns
    -------
    str
        The pool of every task of the layer.
    dict of key to str
        The pools of single tasks, where the layer has been flattened from several.
    None
        The layer has no pins.

    Raises
    ------
    MixedPoolsError
        If tasks of several pools were fused into one.
    """
    resources = (getattr(layer, "annotations", None) or {}).get("resources")
    if resources and not callable(resources) and (found := pool_of_resources(resources)):
        # A name of ours beats an annotation: it says where the data lives, an annotation may be ambient.
        return pool_of_name(name) or found
    # It imports most of Dask; names and resources are for agents and commands, too, which do without.
    from dask_pools import dask_internals

    if dask_internals.is_symbolic(layer):
        return pool_of_name(name)
    pools: dict[Key, str] = {}
    for key, task in layer.items():
        named = pools_of_task(key, task)
        if len(named) > 1:
            raise MixedPoolsError(f"What task {key!r} reads, which Dask fused into one task,", named)
        found = named.pop() if named else None
        if not found and callable(resources):
            value = resources(key)
            found = pool_of_resources(value) if isinstance(value, Mapping) else None
        if found:
            pools[key] = found
    return pools or None


def pools_of_task(key: Key, task: Any) -> set[str]:
    """Pools that the name of a task says, or the names of the tasks that were fused into it."""
    if found := pool_of_key(key):
        return {found}
    from dask_pools import dask_internals  # as above

    if isinstance(task, GraphNode) and (inner := dask_internals.fused_keys(task)):
        return {found for inside in inner if (found := pool_of_key(inside))}
    return set()


def get_pool(collection: Any) -> str | None:
    """Pool that the sources of a collection live in, or None if nothing is pinned.

    Parameters
    ----------
    collection
        A Dask collection, or anything that holds some, such as an xarray Dataset.

    Raises
    ------
    ValueError
        If the sources lie in several pools; the message lists them.
    """
    if not is_dask_collection(collection):
        return None
    graph = collection.__dask_graph__()
    layers = graph.layers if isinstance(graph, HighLevelGraph) else {"": graph}
    pools: set[str] = set()
    for name, layer in layers.items():
        found = pools_of_layer(layer, name)
        if isinstance(found, str):
            pools.add(found)
        elif found:
            pools.update(found.values())
    if len(pools) > 1:
        raise MixedPoolsError(f"This {type(collection).__name__}", pools)
    return pools.pop() if pools else None
