"""Expressions of dask.dataframe that carry pins.

Three kinds of nodes are added to Dask's, and only to frames that have pins:

- `PinnedSource`, the pinned twin of whatever reads a frame: the same expression, with the pool as one more
  operand and in the names of its keys. Dask rewrites it like the original (projection, filters, fusion).
- `Separated`, the root of a frame whose sources lie in several pools. It vanishes when Dask lowers the frame,
  which is when it is known what could be fused, and leaves
- `Meeting`, where blocks of several pools meet: an operation like any other, but never fused with what it
  reads, so that no task loads from two pools. A frame that Dask does not fuse has no task more for it.

Beside the protocol of expressions (``operands``, ``_parameters``, ``_name``, ``_task``, ``_lower``) this
leans on details of Dask, with a test for each in ``tests/dask_pools/test_frames.py``: a rewritten source is
made by ``type(self)(*operands)``; sources that ``_tune_up`` fuses hide in the operand ``_expr`` of a
`FusedIO`; a `Fused` keeps what it was fused from in ``exprs``; `is_valid_blockwise_op` tells what may be
fused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dask._expr import Expr as AnyExpr
from dask._task_spec import convert_legacy_graph
from dask.base import tokenize
from dask.dataframe.dask_expr._expr import (
    ArrowStringConversion,
    Blockwise,
    DelayedsExpr,
    Expr,
    Fused,
    _DelayedExpr,
    is_valid_blockwise_op,
)
from dask.dataframe.dask_expr.io import IO, FromGraph, FusedIO
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from dask.utils import key_split

from dask_pools import dask_internals, frames, pins

__all__ = ["Meeting", "PinnedSource", "Separated", "arranged", "pinned_class"]

Pools = frozenset[str]
_NOWHERE: Pools = frozenset()


def arranged(expr: Any, pool: str | None) -> Any:
    """Expression to make a collection of, in place of `expr`.

    Parameters
    ----------
    expr : dask.dataframe expression
        Anything else comes back as it is, and so do frames without pins.
    pool : str or None
        The pool of the block this is in, which what reads a frame is pinned to.
    """
    if not isinstance(expr, Expr):
        return expr
    expr = _with_named_delayeds(expr)
    if pool is not None:
        expr = _pinned(expr, pool)
    if len(_pools(expr)) > 1:
        expr = Separated(_without_separated(expr))
    return expr


class PinnedSource(Expr):  # type: ignore[misc]  # dask publishes no types
    """What reads a frame, pinned to a pool; base of the classes that `pinned_class` makes.

    The pool is an operand, the first. So it is in the token, which keeps equal sources in two pools apart: in
    the names of all that is made of them, and where Dask asks whether two frames have a common origin.
    """

    _unpinned: type
    _determ_token: str | None

    def __dask_tokenize__(self) -> str:
        if not self._determ_token:
            # The original knows best how to make its token; the class of the twin itself has none.
            original = self._unpinned(*self.operands[1:])
            self._determ_token = tokenize(self.operand("_pool"), original.deterministic_token)
        return self._determ_token

    @functools.cached_property
    def _name(self) -> str:
        label, _, token = super()._name.rpartition("-")
        return pins.source_name(label, self.operand("_pool"), token)

    def _tune_up(self, parent: Any) -> Any:
        tuned = super()._tune_up(parent)
        if tuned is not None:
            for source in tuned.dependencies():
                if isinstance(source, FusedIO) and source.operand("_expr")._name == self._name:
                    return tuned.substitute(source, _pinned(source, self.operand("_pool")))
        return tuned

    def __reduce__(self) -> tuple[Any, ...]:
        _, (_, *operands, token, cache) = super().__reduce__()
        if self._unpinned._pickle_functools_cache:  # type: ignore[attr-defined]
            # Dask looks for these in the class itself, which has none of its own.
            for name, value in vars(self._unpinned).items():
                if isinstance(value, functools.cached_property) and name in self.__dict__:
                    cache[name] = self.__dict__[name]
        return _rebuild, (self._unpinned, operands, token, cache)


@functools.cache
def pinned_class(cls: type) -> type[PinnedSource]:
    """Class of the pinned twins of `cls`, which reads frames; its first operand is the name of the pool."""
    # Also in a process that only unpickles pinned frames, those it makes of them have to be seen.
    frames.install()
    namespace = {
        "_parameters": ["_pool", *cls._parameters],  # type: ignore[attr-defined]
        "_unpinned": cls,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (PinnedSource, cls), namespace)


def _rebuild(cls: type, operands: list[Any], token: str, cache: dict[str, Any]) -> Any:
    return AnyExpr._reconstruct(pinned_class(cls), *operands, token, cache)


class Separated(Blockwise):  # type: ignore[misc]  # dask publishes no types
    """A frame whose sources lie in several pools; it lowers to one in which these are not fused.

    Where pools meet can only be told once Dask has lowered the frame: a merge, say, may become a shuffle,
    which keeps them apart by itself, or a blockwise operation, which does not. Being at the root, it does not
    stand between any two nodes that Dask optimises together; being blockwise, it does not hide from Dask what
    two frames have in common.
    """

    _parameters: ClassVar[list[str]] = ["frame"]
    _projection_passthrough = True
    _preserves_partitioning_information = True
    _is_length_preserving = True

    @functools.cached_property
    def _meta(self) -> Any:
        return self.frame._meta

    def __dask_graph__(self) -> Any:
        # Older versions of Dask ask for the graph to see whether this is one of their own expressions.
        return self.lower_completely().__dask_graph__()

    def _lower(self) -> Any:
        return _with_meetings(self.frame.lower_completely(), {})[0]


class Meeting(Expr):  # type: ignore[misc]  # dask publishes no types
    """A blockwise operation on blocks of several pools, which Dask does not fuse with others.

    It has the tasks of the operation under names of its own, and stands for it altogether: what the operation
    reads is what this reads.
    """

    _parameters: ClassVar[list[str]] = ["frame"]

    def dependencies(self) -> list[Any]:
        """Expressions that the operation reads."""
        return list(self.frame.dependencies())

    @functools.cached_property
    def _name(self) -> str:
        return f"{key_split(self.frame._name)}-{self.deterministic_token}"

    @functools.cached_property
    def _meta(self) -> Any:
        return self.frame._meta

    def _divisions(self) -> Any:
        return self.frame.divisions

    @property
    def _projection_columns(self) -> Any:
        return self.frame._projection_columns

    def _task(self, key: Key, index: int) -> Any:
        return self.frame._task(key, index)


def _pinned(expr: Any, pool: str) -> Any:
    """Pin the source that this expression is; any other comes back as it is.

    Frames that were made outside the block keep the sources they have: to Dask a frame with another source is
    another frame, so that ``df[df.x > 0]`` inside the block could not line up the two.
    """
    if isinstance(expr, ArrowStringConversion):
        # Dask puts this on top of most sources before it makes a frame of them.
        source = _pinned(expr.frame, pool)
        return expr if source is expr.frame else type(expr)(source, *expr.operands[1:])
    if isinstance(expr, PinnedSource) or not isinstance(expr, IO) or expr.dependencies():
        return expr
    if isinstance(expr, FromGraph):
        return _pinned_graph(expr, pool)
    cls: type = type(expr)
    return pinned_class(cls)(pool, *expr.operands)


def _pinned_graph(expr: Any, pool: str) -> Any:
    """Pin the tasks of a `FromGraph` that read none of the others.

    They are renamed, since a graph keeps the names that it comes with. Tasks that have a pin keep it, and
    results that a cluster holds stay where they are.
    """
    tasks, held = _tasks(expr.operand("layer"))
    sources = [key for key, task in tasks.items() if not (task.dependencies or pins.pools_of_task(key, task))]
    if not sources:
        return expr
    names = {key: _marked(key, pool) for key in sources}
    layer = {**held, **_renamed(tasks, names)}
    keys = [names.get(key, key) for key in expr.operand("keys")]
    return expr.substitute_parameters({"layer": layer, "keys": keys})


def _with_named_delayeds(expr: Any) -> Any:
    """Write the pins of the Delayed objects that a frame is made of into their keys.

    Dask flattens their graphs where it makes the tasks of the frame, and drops the annotations.
    """

    def replace(node: Any) -> Any:
        if isinstance(node, _DelayedExpr):
            (named,) = _named_delayeds([node.obj])
            return node if named is node.obj else type(node)(named)
        if isinstance(node, DelayedsExpr):
            named = _named_delayeds(node.operands)
            return node if named is node.operands else type(node)(*named)
        return node if _MEMO in node.__dict__ else None  # It has been here before.

    return _replaced(expr, replace)


def _named_delayeds(delayeds: list[Any]) -> list[Any]:
    """Write the pins of these Delayed objects into their keys; the very same list if there are none."""
    if not all(isinstance(delayed, Delayed) for delayed in delayeds):
        return delayeds
    graph = HighLevelGraph.merge(*(delayed.dask for delayed in delayeds))
    pools: dict[Key, str] = {}
    for name, layer in graph.layers.items():
        found = pins.pools_of_layer(layer, name)
        pools.update(dict.fromkeys(layer, found) if isinstance(found, str) else found or {})
    if not pools:
        return delayeds
    tasks, held = _tasks(graph)
    names = {
        key: _marked(key, pool)
        for key, pool in pools.items()
        if key in tasks and not pins.pools_of_task(key, tasks[key])
    }
    if not names:
        return delayeds
    for delayed in delayeds:
        # Dask knows what is made of a Delayed object by its key, so with other tasks it has to be another.
        names.setdefault(delayed.key, f"{key_split(delayed.key)}-{tokenize(delayed.key, 'named')}")
    layer = f"named-{tokenize(*names)}"
    graph = HighLevelGraph.from_collections(layer, {**held, **_renamed(tasks, names)}, dependencies=())
    return [Delayed(names[delayed.key], graph, layer=layer) for delayed in delayeds]


def _tasks(graph: Mapping[Key, Any]) -> tuple[dict[Key, Any], dict[Key, Any]]:
    """Tasks of a graph; and apart from them the results that a cluster holds already."""
    held = {key: value for key, value in graph.items() if dask_internals.is_future(value)}
    return convert_legacy_graph({key: value for key, value in graph.items() if key not in held}), held


def _marked(key: Key, pool: str) -> Key:
    """Key with a pin in its name, in place of `key`."""
    name = pins.source_name(key_split(key), pool, tokenize(key))
    return (name, *key[1:]) if isinstance(key, tuple) else name


def _renamed(tasks: Mapping[Key, Any], names: Mapping[Key, Key]) -> dict[Key, Any]:
    """Tasks with other keys, by the old ones."""
    return {(key := names.get(old, old)): task.substitute(names, key=key) for old, task in tasks.items()}


_MEMO = "_dask_pools"
"""Where the pools of an expression are kept: in the expression, since Dask keeps one object for each name."""


def _pools(expr: Any) -> Pools:
    """Pools of the sources of an expression that Dask could fuse with others."""
    found: Pools | None = expr.__dict__.get(_MEMO)
    if found is None:
        found = _own_pools(expr).union(*(_pools(source) for source in expr.dependencies()))
        expr.__dict__[_MEMO] = found
    return found


def _own_pools(expr: Any) -> Pools:
    """Pools of the sources that are in this node itself."""
    if isinstance(expr, PinnedSource):
        return frozenset([expr.operand("_pool")]) if is_valid_blockwise_op(expr) else _NOWHERE
    if isinstance(expr, Fused):
        return _NOWHERE.union(*(_own_pools(inner) for inner in expr.exprs))
    return _NOWHERE


def _without_separated(expr: Any) -> Any:
    """Expression without any `Separated`, one of which will be its root."""

    def replace(node: Any) -> Any:
        if isinstance(node, Separated):
            return node.frame
        return node if len(_pools(node)) < 2 else None

    return _replaced(expr, replace)


def _replaced(expr: Any, replace: Callable[[Any], Any], done: dict[str, Any] | None = None) -> Any:
    """Expression with each node replaced by what `replace` makes of it, or if that is None, looked into."""
    done = {} if done is None else done
    if expr._name not in done:
        new = replace(expr)
        if new is None:
            operands = [
                _replaced(op, replace, done) if isinstance(op, AnyExpr) else op for op in expr.operands
            ]
            new = _with_operands(expr, operands)
        done[expr._name] = new
    return done[expr._name]


def _with_operands(expr: Any, operands: list[Any]) -> Any:
    """Expression with these operands, which are equal to its own in all that can be told of them."""
    if all(new is old for new, old in zip(operands, expr.operands, strict=True)):
        return expr
    result = type(expr)(*operands)
    # Found out by running pandas on empty frames, which takes longer than all the rest.
    for known in ("_meta", "divisions"):
        if known in expr.__dict__:
            result.__dict__.setdefault(known, expr.__dict__[known])
    return result


def _with_meetings(expr: Any, done: dict[str, tuple[Any, Pools]]) -> tuple[Any, Pools]:
    """Keep what Dask would fuse of several pools apart.

    Parameters
    ----------
    expr : dask.dataframe expression
        Lowered, not fused.
    done : dict
        By name, what has been looked at already.

    Returns
    -------
    expr : dask.dataframe expression
    pools : frozenset of str
        Pools of the sources that may be fused with whatever reads it.
    """
    if (found := done.get(expr._name)) is not None:
        return found
    if isinstance(expr, Meeting):
        # From an earlier optimisation of this frame, which looked at what is below as well.
        return expr, _NOWHERE
    pools = _own_pools(expr)
    operands = []
    for operand in expr.operands:
        if isinstance(operand, AnyExpr):
            operand, below = _with_meetings(operand, done)
            pools |= below
        operands.append(operand)
    result = _with_operands(expr, operands)
    if not is_valid_blockwise_op(expr):
        pools = _NOWHERE
    elif len(pools) > 1:
        result, pools = Meeting(result), _NOWHERE
    done[expr._name] = result, pools
    return result, pools
