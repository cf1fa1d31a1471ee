"""A task graph with sizes and pins, as plain data.

DESIGN.md beside this file states what the parts mean. Knows nothing of Dask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FREE = -1
"""Pool of a task that may run anywhere."""


@dataclass
class Model:
    """A task graph; tasks and pools are counted from 0.

    Tasks stand in topological order: the inputs of a task come before it.
    """

    pools: list[str] = field(default_factory=list)
    """Names of the pools."""
    inputs: list[list[int]] = field(default_factory=list)
    """For each task the tasks whose results it reads, each once."""
    nbytes: list[float] = field(default_factory=list)
    """For each task the size of its result, in bytes."""
    pinned: list[int] = field(default_factory=list)
    """For each task the pool that it must run in, or `FREE`."""
    layers: list[int] = field(default_factory=list)
    """For each task a number that it shares with the tasks of its layer; empty if there are no layers."""
    stays: set[int] = field(default_factory=set)
    """Tasks whose results must not cross."""
    costs: list[list[float]] | None = None
    """What a byte costs from one pool (row) to another (column), greater than 0; None: 1 between any two."""
    threads: list[int] = field(default_factory=list)
    """For each pool the threads of its workers; empty if all have as many."""


class Crossing(NamedTuple):
    """The result of a task, read in another pool than its own."""

    task: int
    source: int
    """Pool of the task."""
    target: int
    """Pool that reads it."""
    nbytes: float


def crossings(model: Model, pools: Sequence[int]) -> Iterator[Crossing]:
    """List what crosses in a placement: each result once for each other pool that reads it.

    Parameters
    ----------
    model : Model
    pools : sequence of int
        For each task its pool, or `FREE`; nothing crosses to or from what is free.
    """
    nbytes = model.nbytes
    width = len(model.pools)
    seen: set[int] = set()
    for task, inputs in enumerate(model.inputs):
        pool = pools[task]
        if pool == FREE:
            continue
        for source in inputs:
            if pools[source] != pool and pools[source] != FREE:
                once = source * width + pool
                if once not in seen:
                    seen.add(once)
                    yield Crossing(source, pools[source], pool, nbytes[source])


def cost(model: Model, pools: Sequence[int]) -> float:
    """Cost of a placement: the bytes that cross, each by what it costs between its two pools."""
    costs = model.costs
    if costs is None:
        return sum(crossing.nbytes for crossing in crossings(model, pools))
    return sum(nbytes * costs[source][target] for _, source, target, nbytes in crossings(model, pools))
