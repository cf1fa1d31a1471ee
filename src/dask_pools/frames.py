"""Pins on dask.dataframe: hears of every frame that is made.

Frames are expressions. They take no annotations, and Dask fuses them without a look at pins; what carries a
pin there is the name of the keys, which `dask_pools.frame_expressions` sees to. This module is how it gets to
see the expressions. It does not import dask.dataframe, which costs more than all the rest of this project
together, and most users of pools never touch a frame.

What it leans on: Dask makes every collection of an expression by ``get_collection_type(meta)(expression)``,
and that public function finds what makes it by its own method ``dispatch``. A hook there, unlike one
registered for a type, also serves when dask.dataframe is imported later, inside ``with pool(...)``.

An array that was pinned by annotation alone (a foreign loader inside ``with pool(...)``) has to be made into
a frame inside the block too: Dask drops its annotations on the way, before there is an expression to see.
Arrays opened through a catalogue carry their pins in their names, and may be made into frames anywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from dask._dispatch import get_collection_type

from dask_pools import pins

__all__ = ["install"]


def install() -> None:
    """See every frame that is made from now on; repeated calls do nothing."""
    if "dispatch" in vars(get_collection_type):
        return
    get_collection_type.dispatch = _dispatch
    # Dask warns, once, of annotations that frames do not take. This one they take; of others it still warns.
    warnings.filterwarnings("ignore", r"Dask annotations \{'resources': \{('pool-[^']*': 0)?\}\} detected")


def _dispatch(cls: type) -> Callable[[Any], Any]:
    """Find what makes collections for metadata of class `cls`."""
    find: Callable[[Any], Any] = type(get_collection_type).dispatch(get_collection_type, cls)
    return lambda meta: _pinning(find(meta))


def _pinning(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def collect(expression: Any) -> Any:
        # Where there is an expression of a frame, dask.dataframe has been imported already.
        from dask_pools import frame_expressions

        return make(frame_expressions.arranged(expression, pins.current_pool()))

    return collect
