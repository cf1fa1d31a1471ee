"""A task graph with sizes and pins, as plain data.

DESIGN.md beside this file states what the parts mean. Knows nothing of Dask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
