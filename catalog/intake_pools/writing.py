"""Writing where the target is: ``to_zarr`` and ``to_netcdf`` of pinned data.

The methods of xarray and dask.array are wrapped once (`install`). This is needed because they write the
metadata of a store or file from the client, before there is any graph that pins could be put on; to a path
that only a data centre sees, they would write in the wrong place. The wrapped methods leave to the original
what has no pins, targets that are no path or URL, and everything while ``pools.propagate`` is false.
What is in memory at the client has no pins: it is written by the client.

A located target is created by the original method on a worker of its pool, from a template: the same object,
with names in the place of lazy arrays. It answers how the lazy arrays are to be encoded, and into what they
go. The client then has the chunks written by tasks pinned to that pool. What is computed elsewhere crosses
once, to there; graphs of the client are sent to nobody but the scheduler. A call returns what it does in
xarray and dask.array, but for ``to_zarr`` with ``compute=True``: None, since the store is not open here.
"""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import dask
import dask.array as da
import xarray as xr
from dask.base import is_dask_collection
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, Lock, get_client, get_worker, worker_client
from xarray.backends.common import ArrayWriter

from dask_pools import config, dask_internals, guard, pins, propagate, provision, targets
from dask_pools.errors import MixedPoolsError
from intake_pools.netcdf_lock import LOCK
from intake_pools.urls import public_url

__all__ = ["install"]

# Metadata is small and somebody waits for it: before the chunks of running calculations.
_PRIORITY = 100

_installing = threading.Lock()


def install() -> None:
    """Have ``to_zarr`` and ``to_netcdf`` of xarray and dask.array write where their targets are.

    Calling it again changes nothing.
    """
    with _installing:
        for kind in (xr.Dataset, xr.DataArray):
            for method in ("to_zarr", "to_netcdf"):
                _replace([kind], method, _xarray_writer)
        # dask.array.Array.to_zarr calls this one.
        _replace([da.core, da], "to_zarr", _dask_writer)
        _replace([xr], "save_mfdataset", _several_writer)
        for method in ("to_zarr", "to_netcdf"):
            _replace([xr.DataTree], method, _tree_refuser)


def _replace(
    owners: Sequence[Any], name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    original = getattr(owners[0], name)
    if not hasattr(original, "_dask_pools"):
        wrapped = functools.wraps(original)(wrapper(original))
        vars(wrapped)["_dask_pools"] = True
        for owner in owners:
            if getattr(owner, name, None) is original:
                setattr(owner, name, wrapped)


def _arguments(original: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Arguments by name; None if the original would not take them."""
    try:
        bound = inspect.signature(original).bind(*args, **kwargs)
    except TypeError:
        return None
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    return given


def _xarray_writer(original: Callable[..., Any]) -> Callable[..., Any]:
    parameter = list(inspect.signature(original).parameters)[1]
    method = original.__name__

    def write(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(original, args, kwargs)
        if arguments is None:
            return original(*args, **kwargs)
        array = arguments.pop("self")
        word = "ds" if isinstance(array, xr.Dataset) else "da"
        with _destination(array, arguments.get(parameter), f"{word}.compute().{method}(…)") as found:
            if found is None:
                return original(*args, **kwargs)
            client, pool, url = found
            if method == "to_netcdf":
                _check_netcdf(url, arguments)
            return _write(client, pool, url, original, array, arguments, parameter)

    return write


def _dask_writer(original: Callable[..., Any]) -> Callable[..., Any]:
    array_name, parameter = list(inspect.signature(original).parameters)[:2]

    def write(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(original, args, kwargs)
        import zarr

        # An array of zarr exists already; dask.array.store looks after it.
        if arguments is None or isinstance(arguments.get(parameter), zarr.Array):
            return original(*args, **kwargs)
        array = arguments.pop(array_name)
        instead = "da.from_array(x.compute()).to_zarr(…)"
        with _destination(array, arguments.get(parameter), instead) as found:
            if found is None:
                return original(*args, **kwargs)
            if arguments.pop("return_stored", False):
                raise NotImplementedError(
                    "return_stored=True would read in this process what is stored in data centre "
                    f"{found[1]!r}. Open it with intake_pools.load_from_catalog instead."
                )
            client, pool, url = found
            return _write(client, pool, url, original, array, arguments, parameter)

    return write


def _several_writer(original: Callable[..., Any]) -> Callable[..., Any]:
    def write(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(original, args, kwargs)
        if arguments is None:
            return original(*args, **kwargs)
        # Either may be an iterator.
        datasets, paths = list(arguments.pop("datasets")), list(arguments.pop("paths"))
        if len(datasets) != len(paths) or not all(isinstance(one, xr.Dataset) for one in datasets):
            return original(datasets, paths, **arguments)
        instead = "xr.save_mfdataset(dask.compute(*datasets), paths)"
        located = False
        for dataset, path in zip(datasets, paths, strict=True):
            with _destination(dataset, path, instead) as found:
                located = located or found is not None
        if not located:
            return original(datasets, paths, **arguments)
        compute = arguments.pop("compute", True)
        writes = [
            dataset.to_netcdf(path, compute=False, **arguments)
            for dataset, path in zip(datasets, paths, strict=True)
        ]
        if not compute:
            return dask.delayed(_finished)(writes)
        dask.compute(*writes)
        return None

    return write


def _tree_refuser(original: Callable[..., Any]) -> Callable[..., Any]:
    parameter = list(inspect.signature(original).parameters)[1]

    def write(*args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(original, args, kwargs) or {}
        tree = arguments.get("self")
        if isinstance(tree, xr.DataTree):
            for node in tree.subtree:
                instead = f"tree.compute().{original.__name__}(…)"
                with _destination(node.to_dataset(), arguments.get(parameter), instead) as found:
                    if found is not None:
                        raise NotImplementedError(
                            f"A DataTree cannot be written in data centre {found[1]!r} as a whole. Write its "
                            "datasets one by one: `for node in tree.subtree: "
                            f"node.to_dataset(inherit=False).{original.__name__}(path, group=node.path, "
                            "mode='a')`."
                        )
        return original(*args, **kwargs)

    return write


@contextmanager
def _destination(array: Any, target: Any, instead: str) -> Iterator[tuple[Client, str, str] | None]:
    """Find client, pool and URL for what a call writes; None leaves it to the original.

    Raises
    ------
    UnlocatedError, MixedPoolsError
        As `dask_pools.targets.locate`.
    """
    url = targets.url_of(target) if config.propagating() and _creating.get() is None else None
    client = get_client() if _in_a_task() else propagate.computing_client()
    if url is None or client is None or not is_dask_collection(array):
        # Where Dask computes in this process there is one disk.
        yield None
        return
    pool = _ambient()
    if pool is None and _has_pins(array, client):
        pool = targets.locate(url, targets.rules(), f"`{instead.replace('…', repr(url))}`")
    if pool is None:
        yield None
        return
    if client.asynchronous:
        raise RuntimeError(
            "Pinned data cannot be written inside the event loop of an asynchronous client. Give the loop "
            "free: `await asyncio.to_thread(ds.to_zarr, path)`."
        )
    # A task that writes waits for others: it gives its thread away.
    with worker_client() if _in_a_task() else nullcontext(client) as client:
        propagate.connect(client)
        provision.ensure_workers(client, pool)
        yield client, pool, url


def _in_a_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _ambient() -> str | None:
    """Pool that a ``pool()`` block around the call states."""
    resources = dask.get_annotations().get("resources")
    return pins.pool_of_resources(resources) if isinstance(resources, Mapping) else None


def _has_pins(array: Any, client: Client) -> bool:
    """Whether any source of `array` lives in a pool, or any part of it was persisted in one."""
    graph = array.__dask_graph__()
    layers = graph.layers if isinstance(graph, HighLevelGraph) else {"": graph}
    persisted = []
    for name, layer in layers.items():
        try:
            if pins.pools_of_layer(layer, name):
                return True
        except MixedPoolsError:
            return True
        if not dask_internals.is_symbolic(layer):
            persisted += [value.key for value in layer.values() if dask_internals.is_future(value)]
    if not persisted or client.asynchronous:
        return False
    return bool(client.run_on_scheduler(_in_a_pool, persisted))


def _in_a_pool(keys: Iterable[Any]) -> bool:
    return any(
        pins.pool_of_resources(offered) for key in keys for offered in dask_internals.resources_of_result(key)
    )


def _check_netcdf(url: str, arguments: Mapping[str, Any]) -> None:
    if "://" in url and not url.startswith(("file://", "local://")):
        raise ValueError(
            f"to_netcdf cannot write {public_url(url)}: NetCDF is written to a path that the workers of its "
            "data centre see. Use to_zarr for object stores."
        )
    if arguments.get("engine") == "scipy":
        raise NotImplementedError(
            "engine='scipy' cannot write chunk by chunk from several processes. Leave it out, or take "
            "engine='netcdf4', which writes NetCDF3 too (format='NETCDF3_64BIT')."
        )


def _write(
    client: Client,
    pool: str,
    url: str,
    original: Callable[..., Any],
    array: Any,
    arguments: dict[str, Any],
    parameter: str,
) -> Any:
    """Create the target on a worker of its pool, and have the chunks written there."""
    compute = arguments.pop("compute", True)
    options = arguments.pop("chunkmanager_store_kwargs", None) or {}
    template, lazy = _template(array)
    call = _Call(original.__name__, parameter, url, arguments)
    future = client.submit(
        _create,
        template,
        call,
        pool,
        key=f"create-{uuid.uuid4().hex}",
        # Said here, this beats the annotation of a pool() block around us.
        resources={pins.resource(pool): 0},
        priority=_PRIORITY,
        pure=False,
    )
    try:
        parts = future.result()
    finally:
        future.release()
    if isinstance(parts, Exception):
        raise parts
    writes = [_stored(part, lazy, pool, url) for part in parts]
    if compute:
        dask.compute(*writes, **options)
        return None
    return dask.delayed(_finished)(writes)


def _finished(writes: Any) -> None:
    """Come after all writes."""


# The template.


def _template(array: Any) -> tuple[Any, dict[str, da.Array]]:
    """Split an object into one of the same structure with placeholders, and the lazy arrays by name."""
    lazy: dict[str, da.Array] = {}
    if isinstance(array, da.Array):
        lazy[array.name] = array
        return _placeholder(array), lazy

    def plain(variable: xr.Variable) -> xr.Variable:
        if not is_dask_collection(variable):
            # Loads what the client reads lazily, from a file that a data centre may not have.
            return variable.compute()
        data = variable.data
        # Their values decide how these are stored, so xarray computes them in any case; and zarr needs
        # empty ones as they are.
        if not isinstance(data, da.Array) or data.dtype.hasobject or data.size == 0:
            return variable.compute()
        lazy[data.name] = data
        return variable.copy(deep=False, data=_placeholder(data))

    coords = xr.Coordinates(
        {
            name: coord.variable if name in array.xindexes else plain(coord.variable)
            for name, coord in array.coords.items()
        },
        indexes=dict(array.xindexes),
    )
    made: Any
    if isinstance(array, xr.DataArray):
        variable = plain(array.variable)
        made = xr.DataArray(variable.data, coords, array.dims, attrs=array.attrs)
        made.name = array.name  # None would be taken for the name of the lazy array
    else:
        variables = {name: plain(data.variable) for name, data in array.data_vars.items()}
        made = xr.Dataset(variables, coords, array.attrs)
    made.encoding = dict(array.encoding)
    return made, lazy


def _placeholder(array: da.Array) -> da.Array:
    """Array of the same name without anything to compute it from."""
    graph = HighLevelGraph({array.name: MaterializedLayer({})}, {array.name: set()})
    return da.Array(graph, array.name, array.chunks, meta=array._meta)


def _filled(array: da.Array, lazy: Mapping[str, da.Array]) -> da.Array:
    """Put the lazy arrays back in place of their placeholders."""
    layers, dependencies = dict(array.dask.layers), dict(array.dask.dependencies)
    for name in set(layers) & set(lazy):
        layers.update(lazy[name].dask.layers)
        dependencies.update(lazy[name].dask.dependencies)
    return da.Array(HighLevelGraph(layers, dependencies), array.name, array.chunks, meta=array._meta)


# On a worker of the pool: creating the target.


@dataclass(frozen=True)
class _Call:
    """A method as it was called, as plain data."""

    method: str
    parameter: str
    url: str = field(repr=False)
    arguments: Mapping[str, Any] = field(repr=False)

    def __call__(self, template: Any) -> Any:
        arguments = dict(self.arguments)
        if isinstance(arguments[self.parameter], str | os.PathLike) and "://" not in self.url:
            # The other workers of the pool need not run in this directory.
            arguments[self.parameter] = os.path.abspath(os.path.expanduser(self.url))
        if isinstance(template, da.Array):
            arguments["compute"] = False
        return getattr(template, self.method)(**arguments)


@dataclass(frozen=True)
class _Part:
    """One variable to be written: an array over placeholders, and how to open what it goes into."""

    array: da.Array
    variable: str
    starts: tuple[int, ...]
    """Where in the variable the array begins."""
    opener: bytes = field(repr=False)
    """Pickled; opened by workers of the pool only, since it holds file systems that others may lack."""
    one_by_one: bool


# What matters to whoever opens the file again to write.
_NETCDF_OPTIONS = ("auto_complex", "invalid_netcdf")

_creating: ContextVar[list[Any] | None] = ContextVar("intake_pools_creating", default=None)


def _create(template: Any, call: _Call, pool: str) -> list[_Part] | Exception:
    """Create a store or file with everything but the chunks; exceptions come back as data."""
    guard.on_worker_of(pool, call.url, "The metadata")
    try:
        # xarray writes metadata without a lock, and takes its own where it opens the file.
        alone = LOCK.own if call.method == "to_netcdf" else nullcontext()
        with alone, _captured() as captured:
            made = call(template)
        if isinstance(template, da.Array):
            layer = made.dask.layers[made.name]
            (source,) = made.dask.dependencies[made.name]
            target = dask_internals.store_targets(layer)[None]
            captured.append((da.Array(made.dask, source, made.chunks, meta=template._meta), target, None))
        options = {name: call.arguments[name] for name in _NETCDF_OPTIONS if call.arguments.get(name)}
        return [_part(array, target, region, options) for array, target, region in captured]
    except Exception as error:
        # What led to it says nothing to the caller, and may not survive the way.
        error.__cause__ = error.__context__ = None
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error.with_traceback(None)


@contextmanager
def _captured() -> Iterator[list[Any]]:
    """Collect in this thread what xarray would store, instead of storing it."""
    with _installing:
        _replace([ArrayWriter], "sync", _capturing)
    captured: list[Any] = []
    token = _creating.set(captured)
    try:
        yield captured
    finally:
        _creating.reset(token)


def _capturing(original: Callable[..., Any]) -> Callable[..., Any]:
    def sync(self: ArrayWriter, *args: Any, **kwargs: Any) -> Any:
        captured = _creating.get()
        if captured is None:
            return original(self, *args, **kwargs)
        captured.extend(zip(self.sources, self.targets, self.regions, strict=True))
        self.sources, self.targets, self.regions = [], [], []
        return None

    return sync


def _part(array: da.Array, target: Any, region: Any, options: Mapping[str, Any]) -> _Part:
    starts = tuple(part.start or 0 for part in region) if region else (0,) * array.ndim
    store = getattr(target, "datastore", None)
    if store is None:
        opener = functools.partial(_zarr_array, target)
        return _Part(array, target.path, starts, pickle.dumps(opener), False)
    if not hasattr(store, "autoclose"):
        raise NotImplementedError(
            f"{type(store).__name__} cannot write chunk by chunk from several processes. Take "
            "engine='netcdf4' or 'h5netcdf'."
        )
    reopen = functools.partial(
        type(store).open, store._filename, mode="a", group=store._group, autoclose=True, **options
    )
    name = target.variable_name
    opener = functools.partial(_netcdf_variable, store._filename, reopen, type(target), name)
    return _Part(array, name, starts, pickle.dumps(opener), True)


# On workers of the pool: writing chunks.


@dataclass(frozen=True)
class _Target:
    """One variable of a store or file, for tasks that write chunks of it."""

    url: str
    variable: str
    pool: str
    token: str
    """Of this one write."""
    starts: tuple[tuple[int, ...], ...]
    """For each dimension the positions at which the chunks begin."""
    opener: bytes = field(repr=False)
    one_by_one: bool

    def __dask_tokenize__(self) -> Any:
        return self.token, self.variable


def _stored(part: _Part, lazy: Mapping[str, da.Array], pool: str, url: str) -> da.Array:
    """Lazy array whose chunks, when computed, have been written; they come out as None."""
    array = _filled(part.array, lazy)
    starts = tuple(
        tuple(accumulate(sizes[:-1], initial=start))
        for start, sizes in zip(part.starts, array.chunks, strict=True)
    )
    token = uuid.uuid4().hex
    target = _Target(public_url(url), part.variable, pool, token, starts, part.opener, part.one_by_one)
    with pins.pinned(pool):
        return array.map_blocks(
            _store_chunk,
            target,
            name=pins.source_name(f"store.{part.variable}", pool, token),
            dtype=array.dtype,
            meta=array._meta,
        )


def _store_chunk(chunk: Any, target: _Target, block_id: tuple[int, ...] = ()) -> None:
    """Write one chunk; the task that is pinned to the pool.

    Raises
    ------
    MisplacedTaskError
        On a worker of another pool.
    """
    index = tuple(
        slice(along[i], along[i] + size)
        for along, i, size in zip(target.starts, block_id, chunk.shape, strict=True)
    )
    shown = ", ".join(f"{part.start}:{part.stop}" for part in index)
    on_worker = guard.on_worker_of(target.pool, target.url, f"{target.variable}[{shown}]")
    if chunk.size == 0:
        return
    # NetCDF libraries write from one process at a time, and everything else waits.
    lock = Lock(f"write-{target.pool}-{target.url}") if target.one_by_one and on_worker else nullcontext()
    with lock, _opened(target) as variable:
        variable[index] = chunk


# As many as a calculation writes to at a time, and a few more.
_KEPT = 64
_zarr_arrays: OrderedDict[tuple[str, str], Any] = OrderedDict()
_zarr_lock = threading.Lock()


@contextmanager
def _opened(target: _Target) -> Iterator[Any]:
    if target.one_by_one:
        with pickle.loads(target.opener)() as variable:
            yield variable
        return
    key = target.token, target.variable
    with _zarr_lock:
        if key not in _zarr_arrays:
            _zarr_arrays[key] = pickle.loads(target.opener)()
            while len(_zarr_arrays) > _KEPT:
                _zarr_arrays.popitem(last=False)
        array = _zarr_arrays[key]
    yield array


def _zarr_array(array: Any) -> Any:
    """Give an array of zarr back if it is there; writing to one that is not would make directories."""
    import zarr

    try:
        zarr.open_array(array.store, path=array.path, mode="r")
        return array
    except (FileNotFoundError, ValueError) as error:
        reason = str(error)
    # Not while handling that one: it would be sent along, and some of zarr's exceptions cannot be unpickled.
    raise FileNotFoundError(f"{array.store_path} is not there any more: {reason}")


@contextmanager
def _netcdf_variable(
    path: str, reopen: Callable[..., Any], kind: Callable[[str, Any], Any], name: str
) -> Iterator[Any]:
    """Open a variable of a file as xarray would, under the lock of this process, and close the file."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is not there any more.")
    with LOCK:
        store = reopen(lock=LOCK)
        try:
            yield kind(name, store)
        finally:
            store.close()
