"""Switching pins on: making Dask keep them where it optimises graphs.

Dask's public settings ``array_optimize``, ``delayed_optimize`` and ``bag_optimize`` name the function that
optimises a graph. It is read in the client when something is computed, and run on the scheduler. Ours place
the tasks of pinned graphs (`dask_pools.placement.lower`) and leave all other graphs to Dask.

Graphs without pins come out as Dask alone would make them, which is different for each kind of collection.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dask
from dask.base import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from distributed import Client, default_client

import dask_pools
from dask_pools import budget, dask_internals, frames, pins, provision, scheduler, targets
from dask_pools.config import propagating, transfer_budget
from dask_pools.errors import (
    PoolsError,
    UnsupportedSettingError,
    VersionMismatchError,
)
from dask_pools.placement import lower, residency
from dask_pools.placement.layers import Layers, Locate, read_layers
from dask_pools.placement.plan import ANYWHERE, Plan, PoolShare, budget_error
from dask_pools.placement.summary import summarise

logger = logging.getLogger(__name__)

_KINDS = {"array_optimize": lower.ARRAY, "delayed_optimize": lower.DELAYED, "bag_optimize": lower.BAG}


class PlacingOptimizer(int):
    """What optimises graphs while pins are in force.

    Parameters
    ----------
    setting : str
        The setting of `dask.config` that it stands in, which tells a kind of collection.
    propagate : bool, optional
        Whether pins were in force where it was sent from; None where it has not been sent.
    rules : dask_pools.targets.Rules, optional
        Those of where it was sent from, which say where what is stored belongs.
    budget : int, optional
        Bytes that may cross between pools, by the settings of where it was sent from.
    inside : collection of str, optional
        Pools that the process is in that it was sent from.

    Notes
    -----
    All of them are equal, since Dask computes the collections of one ``dask.compute(a, b, c)`` in groups, by
    optimiser. With several groups it even mixes up the results: with Dask 2026.8 an array, a Delayed and
    another array come back as array, array, Delayed.

    They are integers for the sake of clusters that write Dask's settings down as JSON for their workers, as
    `distributed.SSHCluster` does. A function could not be written; these become 0, which Dask takes for off.
    """

    def __new__(cls, *_: Any) -> PlacingOptimizer:
        """Make one that is 0 as an integer."""
        return super().__new__(cls, 0)

    def __init__(
        self,
        setting: str,
        propagate: bool | None = None,
        rules: targets.Rules | None = None,
        budget: int | None = None,
        inside: Collection[str] = (),
    ) -> None:
        self.inside = inside
        self.setting = setting
        self.propagate = propagate
        self.rules = rules
        self.budget = budget

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacingOptimizer)

    def __hash__(self) -> int:
        return hash(PlacingOptimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled when a graph is sent: what the client has configured travels with it.
        if self.propagate is not None:
            return PlacingOptimizer, (self.setting, self.propagate, self.rules, self.budget, self.inside)
        if not propagating():
            return PlacingOptimizer, (self.setting, False)
        sent = targets.rules_to_send(), transfer_budget(), residency.pools_here()
        return PlacingOptimizer, (self.setting, True, *sent)

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Optimise the graph `dsk` for the results `keys`.

        Raises
        ------
        MixedPoolsError
            If Dask has fused loading tasks of several pools into one.
        UnlocatedError
            If it stores to a path that no rule locates.
        ResidencyError
            If something that must stay in its pool is wanted in another, or by the client.
        TransferBudgetError
            If more bytes would cross between pools than the budget allows.
        """
        kinds, kind = self._kinds(dsk, keys)
        sent = self.propagate is not None
        on = self.propagate if sent else propagating()
        try:
            layers = read_layers(dsk, self._locate() if on else None)
            if layers is not None:
                if not on:
                    return lower.release(layers, keys, kind)
                if sent:
                    residency.check_client(dsk, flatten([keys]), self.inside)
                    for running in dask_internals.schedulers_here():
                        scheduler.install_from_thread(running)
                check = None
                if self.budget is not None and sent:
                    check = partial(self._check_budget, layers, dsk.layers)
                return lower.place(layers, keys, kind, name_pins=not sent, costs=self.costs(), check=check)
        except PoolsError:
            raise
        except Exception:
            # A bug of ours must not cost a user the result; the scheduler plugin pins what the layers miss.
            logger.warning("Could not place a graph; it runs pinned, but less well arranged.", exc_info=True)
            return dsk.cull(set(flatten([keys]))) if isinstance(dsk, HighLevelGraph) else dsk
        parts = [_KINDS[setting].optimize(dsk, wanted, **kwargs) for setting, wanted in kinds.items()]
        return parts[0] if len(parts) == 1 else HighLevelGraph.merge(*parts)

    def plan(self, dsk: Any, keys: Any, workers: Mapping[str, int], budget: int | None) -> Plan:
        """Tell what the graph `dsk`, sent for the results `keys`, will move; `workers` by pool."""
        _, kind = self._kinds(dsk, keys)
        layers = read_layers(dsk, self._locate()) if self.propagate else None
        residency.check_client(dsk, flatten([keys]), self.inside)
        if layers is None:
            loose = len(HighLevelGraph.merge(dsk).cull(set(flatten([keys]))).to_dict())
            return Plan((PoolShare(ANYWHERE, tasks=loose),), budget=budget)
        return summarise(lower.plan(layers, keys, kind, self.costs()), layers, dsk.layers, workers, budget)

    def _kinds(self, dsk: Any, keys: Any) -> tuple[dict[str, list[Key]], lower.Kind]:
        """Sort the results asked for by their kind, and choose how their graph is optimised as a whole."""
        kinds = dask_internals.kinds_of_outputs(dsk, flatten([keys]), self.setting)
        # Arrays are optimised most: what other kinds leave as it is stays right when fused.
        return kinds, _KINDS["array_optimize" if "array_optimize" in kinds else self.setting]

    def _check_budget(self, layers: Layers, source: Mapping[str, Any], placed: lower.Placed) -> None:
        """Refuse a placement that would move more than the budget allows."""
        nbytes, unknown = placed.crossing()
        if self.budget is not None and (nbytes > self.budget or unknown):
            raise budget_error(summarise(placed, layers, source, budget=self.budget))

    def costs(self) -> dict[str, dict[str, float]]:
        """Tell what a byte costs from one pool to another, by the data-centres files of whoever computes."""
        known = self.rules if self.propagate is not None else targets.rules_to_send()
        together: dict[str, dict[str, float]] = {}
        # Those of entries come first in the rules and count before the default ones.
        for several in reversed(known or ()):
            for one in several:
                for source, prices in one.costs.items():
                    together.setdefault(source, {}).update(prices)
        return together

    def _locate(self) -> Locate | None:
        """Tell where stores belong; without a cluster there is one disk, and nothing to tell."""
        if self.propagate is not None:
            return None if self.rules is None else partial(targets.pools_of_stores, rules=self.rules)
        if computing_client() is None:
            return None
        return partial(targets.pools_of_stores, rules=targets.rules_to_send())


def computing_client() -> Client | None:
    """Client that Dask would compute with now; None where it would compute in this process."""
    if dask.config.get("scheduler", None) not in (None, "distributed", "dask.distributed"):
        return None
    try:
        return default_client()
    except ValueError:
        return None


_OPTIMIZERS = {setting: PlacingOptimizer(setting) for setting in _KINDS}


def _before_sending(client: Client, expression: Any) -> dict[str, int]:
    """Ask for the pools that a graph needs; annotate it with the budget if it will not be placed.

    What is placed is held to the budget there.
    """
    if not propagating():
        return {}
    if client in _connected:
        provision.ensure_workers_for(client, expression)
    limit = transfer_budget()
    if limit is None:
        return {}
    optimizers = dask_internals.optimizers_of(expression)
    return {} if all(isinstance(one, PlacingOptimizer) for one in optimizers) else {budget.ANNOTATION: limit}


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
    dask_internals.before_sending(_before_sending)
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
        Of blocks inside each other the inner one counts; None takes the pin of the outer one away, so that
        what is built inside is free to run wherever the fewest bytes cross.

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
    frames.install()
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
