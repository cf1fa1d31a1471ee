"""Switching pins on: making Dask keep them where it optimises graphs.

Dask's public settings ``array_optimize``, ``delayed_optimize`` and ``bag_optimize`` name the function that
optimises a graph. It is read in the client when something is computed, and run on the scheduler. Ours place
the tasks of pinned graphs (`dask_pools.placement.lower`) and leave all other graphs to Dask.

There is one for each kind of collection, since each kind is optimised in its own way. Dask optimises the
kinds of a mixed ``dask.compute(a, b)`` one after the other and merges the results.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dask
from dask.base import flatten
from dask.highlevelgraph import HighLevelGraph
from distributed import Client, default_client

import dask_pools
from dask_pools import dask_internals, pins, scheduler
from dask_pools.config import propagating
from dask_pools.errors import UnsupportedSettingError, VersionMismatchError
from dask_pools.placement import lower

logger = logging.getLogger(__name__)

_KINDS = {"array_optimize": lower.ARRAY, "delayed_optimize": lower.DELAYED, "bag_optimize": lower.BAG}


class PlacingOptimizer:
    """What optimises the graphs of one kind of collection while pins are in force.

    Parameters
    ----------
    setting : str
        The setting of `dask.config` that it stands in.
    """

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Optimise the graph `dsk` for the results `keys`; see `dask_pools.placement.lower.place`."""
        if not propagating():
            return release(self.setting, dsk, keys, **kwargs)
        return place(self.setting, dsk, keys, name_pins=True, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled when a graph is sent: what the client has configured travels with it.
        return partial, ((place if propagating() else release), self.setting)


_OPTIMIZERS = {setting: PlacingOptimizer(setting) for setting in _KINDS}


def place(setting: str, dsk: Any, keys: Any, *, name_pins: bool = False, **kwargs: Any) -> Any:
    """Place a graph that has pins; if that fails for a reason of ours, leave it pinned as it is, and unfused.

    Raises
    ------
    MixedPoolsError
        If Dask has fused loading tasks of several pools into one.
    """
    kind = _KINDS[setting]
    if (layers := lower.read(dsk)) is None:
        return kind.optimize(dsk, keys, **kwargs)
    for running in dask_internals.schedulers_here():
        scheduler.install_from_thread(running)
    try:
        return lower.place(layers, keys, kind, name_pins=name_pins)
    except Exception:
        # A bug of ours must not cost a user the result; the scheduler plugin pins what the layers leave free.
        logger.warning("Could not place a graph; it runs pinned, but less well arranged.", exc_info=True)
        return dsk.cull(set(flatten(keys))) if isinstance(dsk, HighLevelGraph) else dsk


def release(setting: str, dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Optimise a graph as Dask alone would (``pools.propagate: false``)."""
    kind = _KINDS[setting]
    if (layers := lower.read(dsk)) is None:
        return kind.optimize(dsk, keys, **kwargs)
    return lower.release(layers, keys, kind)


def propagate_pools() -> AbstractContextManager[Any]:
    """Keep pins where Dask would drop them, and pin the tasks that consume pinned ones.

    Call it once for the whole session, or use it as a context manager. `pool`, opening through the catalogue
    and the clusters of this project do so by themselves. Graphs without pins stay as Dask makes them. Does
    nothing while ``pools.propagate`` is false in `dask.config`.

    Raises
    ------
    UnsupportedSettingError
        If a setting of Dask is in force that defeats pins.
    """
    if not propagating():
        return nullcontext()
    check_settings()
    # Whoever switched a kind of optimisation off (False) keeps it off: unfused layers keep their pins.
    on = {key: ours for key, ours in _OPTIMIZERS.items() if dask.config.get(key, ours)}
    switched: AbstractContextManager[Any] = dask.config.set(on)
    return switched


@contextmanager
def pool(name: str | None) -> Iterator[None]:
    """Pin what Dask builds inside to the data centre `name`.

    Parameters
    ----------
    name : str or None
        Of blocks inside each other the inner one counts; None takes the pin of the outer one away.

    Raises
    ------
    ValueError
        If `name` is empty or has anything but letters, digits, ``-``, ``_`` and ``.``.
    UnsupportedSettingError
        If a setting of Dask is in force that defeats pins.

    Examples
    --------
    >>> import dask.array as da
    >>> with pool("ecmwf"):
    ...     x = da.ones(10, chunks=5)
    >>> get_pool(x + 1)
    'ecmwf'
    """
    if name is not None:
        pins.check_name(name)
    # For good, not for the block: what is built inside is computed outside.
    propagate_pools()
    with pins.pinned(name if propagating() else None):
        yield


def check_settings() -> None:
    """Refuse settings of Dask that defeat pins.

    Raises
    ------
    UnsupportedSettingError
        Naming the setting and what to set.
    """
    if dask.config.get("array.query-planning", None):
        raise UnsupportedSettingError(
            "Dask's setting `array.query-planning` is on: its expression arrays drop pins. Set it to False "
            "before dask.array is imported, or DASK_ARRAY__QUERY_PLANNING=False in the environment."
        )
    for setting in _KINDS:
        other = dask.config.get(setting, None)
        if other and not isinstance(other, PlacingOptimizer):
            raise UnsupportedSettingError(
                f"Dask's setting `{setting}` is {other!r}, which would drop pins. Remove it with "
                f"dask.config.config.pop({setting!r}), or switch pins off with "
                "dask.config.set({'pools.propagate': False})."
            )


_VERSION_OF: Callable[[], str] = partial(pkgutil.resolve_name, "dask_pools:__version__")
"""Asks a host for its version; made of the standard library alone, for hosts that lack this package."""

_connected: WeakKeyDictionary[Client, str] = WeakKeyDictionary()


def connect(client: Client | None = None) -> None:
    """Make sure that pins hold on the cluster of a client.

    The scheduler gets our plugin; scheduler and workers must have our version of this package. Repeated calls
    cost nothing.

    Parameters
    ----------
    client : distributed.Client, optional
        The current one, if not given. For one that is used asynchronously await `connect_async`.

    Raises
    ------
    VersionMismatchError
        If the scheduler or a worker lacks the package or has another version: which, and what to install.
    UnsupportedSettingError
        If a setting of Dask is in force that defeats pins.
    """
    client = client or default_client()
    client.sync(connect_async, client)


async def connect_async(client: Client) -> None:
    """`connect` for a client that is used asynchronously."""
    propagate_pools()
    if not propagating() or _connected.get(client) == client.scheduler.address:
        return
    own = dask_pools.__version__
    found = {}
    try:
        version = await client.run_on_scheduler(_VERSION_OF)
    except Exception:
        version = "not installed"
    if version != own:
        found[f"scheduler {client.scheduler.address}"] = version
    answers = await client.run(_VERSION_OF, on_error="return")
    for address, answer in answers.items():
        if answer != own:
            found[f"worker {address}"] = answer if isinstance(answer, str) else "not installed"
    if found:
        raise VersionMismatchError(found, own)
    await client.run_on_scheduler(scheduler.install_here)
    _connected[client] = client.scheduler.address
