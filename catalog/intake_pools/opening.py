"""Open an entry inside its pool, on one of its workers.

The client sends the entry, a worker of the pool opens it and sends back a Dataset of recipes
(`intake_pools.recipes`). The client itself never touches the data.
"""

from __future__ import annotations

import os
import socket
import traceback
import uuid
from dataclasses import dataclass
from typing import Any

import dask
import xarray as xr
from dask.utils import parse_bytes
from distributed import Client, default_client, get_worker, worker_client

from dask_pools import config, pins, propagate, provision
from dask_pools.errors import EntryError, MixedPoolsError, PoolsError
from intake_pools import recipes, stores, writing
from intake_pools.entries import Entry, public_url, scrub
from intake_pools.recipes import Limits

__all__ = ["open_entry"]

# Metadata is small and somebody waits for it: before the chunks of running calculations.
_PRIORITY = 100


@dataclass(frozen=True)
class _Failure:
    """Why an entry could not be opened: data, so that the user sees no traceback of a worker."""

    reason: str
    missing: bool = False


def open_entry(entry: Entry) -> xr.Dataset:
    """Open an entry in its pool.

    Without a client it is opened in this process, if the data can be seen here.

    Returns
    -------
    xarray.Dataset
        Its chunks are read by tasks pinned to the pool. Closing it closes nothing.

    Raises
    ------
    EntryError
        If the entry cannot be opened there; the message says what was tried and found.
    PoolUnavailableError
        If the pool has no workers and nobody can start some.
    """
    writing.install()
    if len(places := {part.location.data_centre for part in entry.parts}) > 1:
        raise MixedPoolsError(f"urlpath of {entry.name}", places)
    pool = entry.location.data_centre
    limits = _limits(pool)
    if (worker := _own_worker()) is not None:
        if pins.resource(pool) in worker.state.total_resources:
            return _result(_open(entry, limits), entry, f"in pool {pool!r}")
        # This task waits for another one: it gives its thread away, and uses the worker's client.
        with worker_client() as client:
            return _open_through(client, entry, limits)
    try:
        client = default_client()
    except ValueError:
        return _open_here(entry, limits)
    if client.asynchronous:
        raise EntryError(
            f"{entry.name} cannot be opened inside the event loop of an asynchronous client. Give the loop "
            "free: `await asyncio.to_thread(entry.to_dask)`."
        )
    propagate.connect(client)
    return _open_through(client, entry, limits)


def _limits(pool: str) -> Limits:
    ambient = pins.without_pool(dask.get_annotations())
    return Limits(
        eager=parse_bytes(dask.config.get("pools.eager-size")),
        chunk=parse_bytes(dask.config.get("array.chunk-size")),
        annotations=pins.with_pool(ambient, pool) if config.propagating() else ambient,
    )


def _own_worker() -> Any:
    try:
        return get_worker()
    except ValueError:
        return None


def _open_through(client: Client, entry: Entry, limits: Limits) -> xr.Dataset:
    pool = entry.location.data_centre
    provision.ensure_workers(client, pool)
    future = client.submit(
        _open,
        entry,
        limits,
        key=f"open-{entry.name}-{uuid.uuid4().hex}",
        # Said here, this beats the annotation of a pool() block around us.
        resources={pins.resource(pool): 0},
        priority=_PRIORITY,
        pure=False,
    )
    try:
        answer = future.result()
    except PoolsError:
        raise
    except Exception as error:
        answer = _Failure(f"the task that opens it failed: {scrub(_complaint(error), entry)}")
    finally:
        future.release()
    return _result(answer, entry, f"in pool {pool!r}")


def _open_here(entry: Entry, limits: Limits) -> xr.Dataset:
    answer = _open(entry, limits)
    pool = entry.location.data_centre
    if isinstance(answer, _Failure) and answer.missing:
        raise EntryError(
            f"{entry.name} lives in data centre {pool!r}, and no Dask client is connected to reach it there "
            f"({entry.shown} cannot be seen on this machine). Connect first: "
            "`client = distributed.Client(ADDRESS)` of a scheduler whose workers are started with "
            f"--resources {pins.resource(pool)}=1, or "
            f"`client = dask_pools.cluster.LocalPools({{{pool!r}: 1}}).get_client()`."
        )
    return _result(answer, entry, "on this machine")


def _result(answer: xr.Dataset | _Failure, entry: Entry, where: str) -> xr.Dataset:
    if isinstance(answer, _Failure):
        raise EntryError(f"{entry.name} ({entry.shown}) cannot be opened {where}: {answer.reason}.")
    return answer


def _open(entry: Entry, limits: Limits) -> xr.Dataset | _Failure:
    """Open an entry in this process: the task that runs in the pool."""
    try:
        return _opened(entry, limits)
    except FileNotFoundError as error:
        # zarr's error for a group is one of these, too, but names no file.
        if entry.xarray_kwargs.get("group") and error.filename is None and "group" in str(error):
            return _Failure(_diagnosis(error, entry).rstrip("."))
        # Object stores name the key at best, local files the absolute path.
        named = str(error.filename or "")
        missing = public_url(named) if os.path.isabs(named) else entry.shown
        relative = next((url for url in entry.urls if stores.is_local(url) and not os.path.isabs(url)), None)
        where = f" Its working directory is {os.getcwd()}." if relative else ""
        return _Failure(
            f"there is no {scrub(missing, entry)} on {_whereabouts()}.{where}".rstrip("."), missing=True
        )
    except EntryError as error:
        return _Failure(
            scrub(str(error), entry).rstrip("."), missing=str(error).startswith("nothing matches")
        )
    except Exception as error:
        return _Failure(_diagnosis(error, entry).rstrip("."))


def _opened(entry: Entry, limits: Limits) -> xr.Dataset:
    urls = stores.expand(entry.urls, entry.storage_options)
    sources = [
        stores.source_of(url, entry.engine, entry.xarray_kwargs, entry.storage_options) for url in urls
    ]
    if len(sources) == 1 and not entry.combining:
        return recipes.dataset_of(stores.reopened(sources[0]), entry, limits)
    # Small data variables of many files would be many bytes.
    datasets = [
        recipes.dataset_of(stores.reopened(source), entry, limits, eager_data=False) for source in sources
    ]
    return recipes.combined(datasets, entry, limits)


def _diagnosis(error: Exception, entry: Entry) -> str:
    """Say what an exception that a library raised while opening means to the user."""
    complaint = scrub(_complaint(error), entry)
    group = entry.xarray_kwargs.get("group")
    if group and ("group" in complaint.lower() or isinstance(error, KeyError)):
        known = _groups(entry)
        there = f" Groups there: {', '.join(known)}." if known else ""
        return f"it has no group {group!r} ({complaint}).{there}"
    if isinstance(error, TypeError) and "unexpected keyword" in complaint:
        return f"xarray_kwargs has something that its engine does not take: {complaint}"
    if isinstance(error, PermissionError):
        return f"{_whereabouts()} may not read it: {complaint}"
    if isinstance(error, OSError | ValueError):
        return f"it is unreadable on {_whereabouts()}: {complaint}"
    return f"{complaint} ({traceback.extract_tb(error.__traceback__)[-1].name}) on {_whereabouts()}"


def _groups(entry: Entry) -> list[str]:
    """Paths of the groups of the first file or store, as far as they can be listed."""
    try:
        url = stores.expand(entry.urls, entry.storage_options)[0]
        source = stores.source_of(url, entry.engine, {}, entry.storage_options)
        return stores.groups_of(source)
    except Exception:
        return []


def _complaint(error: BaseException) -> str:
    text = str(error).strip() or "no further explanation"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def _whereabouts() -> str:
    worker = _own_worker()
    return f"worker {worker.address} ({socket.gethostname()})" if worker is not None else "this machine"
