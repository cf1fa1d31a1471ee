"""Where writing goes: which data centre holds the target of a store.

The rules are those of the data-centres files with which entries were opened in this session, and after them
those of the file that `dask.config` names (``pools.data-centres``). They travel with every graph that is
sent, since it is on the scheduler that graphs are looked at. Nothing is opened or asked for here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from dask.typing import Key

from dask_pools import dask_internals
from dask_pools.errors import DataCentresError, MixedPoolsError, UnlocatedError

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["Rules", "locate", "pools_of_stores", "remember", "rules", "rules_to_send", "url_of"]

Rules = tuple[tuple["DataCentres", ...], tuple["DataCentres", ...]]
"""Those that entries of this session were opened with; then the default ones, for what the first know not."""

_remembered: dict[str, DataCentres] = {}
_default: tuple[object, tuple[DataCentres, ...]] = (None, ())
_lock = threading.Lock()

# More prefixes than this make a message that nobody reads.
_SHOWN = 20


def remember(given: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None) -> None:
    """Take the rules with which an entry is opened for those of what is written later on, too.

    A Dataset keeps no note of its catalogue: attributes get lost in calculations and graphs in ``persist()``.
    So rules are remembered for the session, each file's once, as it was read last.
    """
    if given is None:
        return
    from dask_pools import data_centres

    known = data_centres.load(given)
    if any(one is known for one in list(_remembered.values())):
        return
    # Mappings have no name to tell them apart by.
    name = known.origin if os.path.isabs(known.origin) or "://" in known.origin else known.model_dump_json()
    with _lock:
        _remembered[name] = known


def rules() -> Rules:
    """Get the rules for targets as they are now.

    Raises
    ------
    DataCentresError
        If the file that `dask.config` names is wrong.
    """
    with _lock:
        return tuple(_remembered.values()), _default_rules()


def rules_to_send() -> Rules:
    """Get the rules for targets, for a graph that is about to be sent, whatever it does.

    A default file that is wrong is left out: whoever opens or writes something hears of it, and most graphs
    do not write.
    """
    try:
        return rules()
    except DataCentresError:
        return tuple(_remembered.values()), ()


def _default_rules() -> tuple[DataCentres, ...]:
    global _default
    given = dask.config.get("pools.data-centres", None)
    if given is None:
        return ()
    state: object = given
    if isinstance(given, str | os.PathLike):
        # Graphs are many and files change rarely.
        try:
            status = os.stat(os.path.expanduser(given))
            state = str(given), status.st_mtime_ns, status.st_size
        except OSError:
            state = str(given), None, None
    if state != _default[0]:
        from dask_pools import data_centres

        _default = state, (data_centres.load(given),)
    return _default[1]


def locate(url: str, rules: Rules, instead: str) -> str | None:
    """Find the data centre that holds the target of a store.

    Parameters
    ----------
    url : str
        Path or URL of the target.
    rules : Rules
    instead : str
        What to type to write it at the client, for the message.

    Returns
    -------
    str or None
        None for a URL that no rule locates: it is the same place from wherever it is written to.

    Raises
    ------
    UnlocatedError
        For a path that no rule locates: each site would write to its own disk.
    MixedPoolsError
        If the rules of several files contradict each other.
    """
    from dask_pools.data_centres import place_of

    for several in rules:
        found = {matching[0].data_centre for known in several if (matching := known.matches(url))}
        if len(found) > 1:
            raise MixedPoolsError(f"{url}, by the data-centres files of this session,", found)
        if found:
            return found.pop()
    place = place_of(url)
    if place.scheme:
        return None
    why = "is a relative path, which no rule can locate" if place.relative else "is hosted by no data centre"
    prefixes = [
        f"{rule.pattern} ({rule.data_centre})" for several in rules for one in several for rule in one.rules
    ]
    shown = "; ".join(prefixes[:_SHOWN]) + (
        f"; and {len(prefixes) - _SHOWN} more" if prefixes[_SHOWN:] else ""
    )
    known = f" A path below one of these needs none: {shown}." if prefixes else ""
    raise UnlocatedError(
        f"{url} {why}, so nothing has been written: tasks in several data centres would scatter its chunks "
        f"over their disks. To write it at the client: {instead}. To write it in a data centre, say which: "
        f"inside `with dask_pools.pool(NAME):`.{known}"
    )


def pools_of_stores(layer: Mapping[Key, Any], rules: Rules) -> str | dict[Key, str] | None:
    """Pools of the targets that the tasks of a layer store chunks in, as `dask.array.store` makes them.

    Returns
    -------
    str, dict of key to str, or None
        As `dask_pools.pins.pools_of_layer` does. A target whose place cannot be told ties its tasks to none.

    Raises
    ------
    UnlocatedError, MixedPoolsError
        As `locate`.
    """
    found: dict[Key | None, str] = {}
    for key, target in dask_internals.store_targets(layer).items():
        if (url := url_of(target)) is not None and (
            pool := locate(url, rules, "take what `.compute()` gives and write that")
        ):
            found[key] = pool
    if None in found:
        return found[None]
    return {key: pool for key, pool in found.items() if key is not None} or None


def url_of(target: Any) -> str | None:
    """Path or URL of what is written to, or None if it cannot be told, as of a NumPy array or a dictionary.

    Understands paths, URLs, stores and arrays of zarr, mappers of fsspec, variables of h5py and netCDF4, and
    xarray's wrappers of these.
    """
    if isinstance(target, str | os.PathLike):
        return str(os.fspath(target))
    if _is(target, "zarr", "Array") or _is(target, "zarr", "Group"):
        inside = url_of(target.store)
        return None if inside is None else f"{inside.rstrip('/')}/{target.path}".rstrip("/")
    if _is(target, "zarr.storage", "LocalStore"):
        return str(Path(target.root))
    if _is(target, "zarr.storage", "ZipStore"):
        return str(target.path)
    if _is(target, "zarr.storage", "FsspecStore"):
        return str(target.fs.unstrip_protocol(target.path))
    if _is(target, "zarr.storage", "WrapperStore"):
        return url_of(target._store)
    if _is(target, "fsspec", "FSMap"):
        return str(target.fs.unstrip_protocol(target.root))
    if _is(target, "xarray.backends.zarr", "ZarrArrayWrapper"):
        return url_of(target.get_array())
    if _is(target, "xarray.backends.netCDF4_", "BaseNetCDF4Array"):
        return url_of(getattr(target.datastore, "_filename", None))
    if _is(target, "h5py", "Dataset"):
        return str(target.file.filename)
    if _is(target, "netCDF4", "Variable"):
        return str(target.group().filepath())
    return None


def _is(target: Any, module: str, name: str) -> bool:
    """Whether `target` is of a class of a module, which need not be installed, and is not imported here."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(target, kind)
