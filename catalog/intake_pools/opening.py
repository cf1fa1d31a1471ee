"""Open an entry inside its pool, on one of its workers.

The client sends the entry, a worker of the pool opens it and sends back a Dataset of recipes
(`intake_pools.recipes`). The client itself never touches the data.
"""

from __future__ import annotations

import math
import os
import socket
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias, TypeVar

import dask
import xarray as xr
from dask.utils import format_bytes, parse_bytes
from distributed import Client, Future, default_client, get_worker, worker_client

from dask_pools import config, pins, propagate, provision
from dask_pools.errors import EntryError, PoolsError, PoolUnavailableError
from intake_pools import filesystems, recipes, references, remembered, replicas, stores, writing
from intake_pools.entries import Entry, scrub
from intake_pools.locate import Location
from intake_pools.mosaics import NotAMosaic
from intake_pools.recipes import Limits
from intake_pools.remembered import Opening
from intake_pools.series import Series
from intake_pools.stores import State
from intake_pools.urls import is_local, is_references, public_url

__all__ = ["LazyCoordinateWarning", "open_entry", "open_tree"]

# Metadata is small and somebody waits for it: before the chunks of running calculations.
_PRIORITY = 100


# More would take the scheduler longer to hand out than they save.
_MOST_BATCHES = 64
# So many chunks of automatic size fit into a thread's share of memory: what it reads, what it makes of them,
# and what waits to be combined.
_CHUNKS_OF_A_THREAD = 16

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    """Why an entry could not be opened: data, so that the user sees no traceback of a worker."""

    reason: str
    missing: bool = False


class _Apart(Enum):
    """The answer that files cannot be combined batch by batch, but perhaps all at once."""

    APART = "apart"


_APART = _Apart.APART
_Answer: TypeAlias = Opening | _Failure | _Apart


@dataclass(frozen=True)
class _Batch:
    """Some of the files of an entry: their states, Datasets of them or one that combines them, and links."""

    states: tuple[State, ...]
    datasets: tuple[xr.Dataset, ...]
    led_out: Mapping[str, str] = field(default_factory=dict)


def open_entry(entry: Entry, data_centre: str | None = None) -> xr.Dataset:
    """Open an entry where it lives.

    Without a client it is opened in this process, if the data can be seen here. Of an entry that exists more
    than once, one copy is opened: see `intake_pools.replicas`. One that spans data centres is opened in all
    of them, and combined here.

    Parameters
    ----------
    entry : Entry
    data_centre : str, optional
        Which copy to open.

    Returns
    -------
    xarray.Dataset
        Its chunks are read by tasks pinned to the pool. Closing it closes nothing.

    Raises
    ------
    EntryError
        If the entry cannot be opened there; the message says what was tried and found. Also if copies of it
        differ.
    PoolUnavailableError
        If the pool has no workers and nobody can start some.
    """
    writing.install()
    with _way_to(replicas.of(entry, data_centre)) as (client, copies):
        return _opened_by(client, copies)


def open_tree(entry: Entry, data_centre: str | None = None) -> xr.DataTree:
    """Open all groups of a file or store where it lives.

    Parameters
    ----------
    entry : Entry
        Each copy in one place. A group that it names is the root of the tree.
    data_centre : str, optional
        Which copy to open.

    Returns
    -------
    xarray.DataTree

    Raises
    ------
    EntryError
        If it has parts or is more than one file, or cannot be opened there.
    PoolUnavailableError
        If the pool has no workers and nobody can start some.
    """
    writing.install()
    with _way_to(replicas.of(entry, data_centre)) as (client, copies):
        copies, _ = _in_order(client, copies)
        _, tree = _first_opened(client, copies, _tree_opened_by)
        return tree


def _tree_opened_by(client: Client | None, copy: Entry) -> xr.DataTree:
    if copy.parts or copy.several:
        raise EntryError(f"{copy.name} is more than one file; a tree is of one file or store.")
    if client is None:
        groups = _groups_below(copy)
    else:
        provision.ensure_workers(client, copy.location.data_centre)
        groups = _in_pool(client, copy, _groups_below)
    if isinstance(groups, _Failure):
        raise EntryError(f"{copy.name} ({copy.shown}) cannot be opened: {groups.reason}.")
    root = str(copy.xarray_kwargs.get("group") or "").strip("/")
    datasets = {"/": _copy_opened_by(client, copy)}
    for group in groups:
        inside = {**copy.xarray_kwargs, "group": f"{root}/{group}".strip("/")}
        datasets[group] = _copy_opened_by(client, replace(copy, xarray_kwargs=inside))
    return xr.DataTree.from_dict(datasets)


@contextmanager
def _way_to(copies: Sequence[Entry]) -> Iterator[tuple[Client | None, Sequence[Entry]]]:
    """Give the client to open copies of an entry with, None being this process itself; and the copies."""
    if (worker := _own_worker()) is not None:
        if own := [copy for copy in copies if _offers(worker, _pools(copy))]:
            yield None, own
            return
        # This task waits for another one: it gives its thread away, and uses the worker's client.
        with worker_client() as client:
            yield client, copies
        return
    try:
        client = default_client()
    except ValueError:
        yield None, copies
        return
    if client.asynchronous:
        raise EntryError(
            f"{copies[0].name} cannot be opened inside the event loop of an asynchronous client. Give the "
            "loop free: `await asyncio.to_thread(entry.to_dask)`."
        )
    propagate.connect(client)
    yield client, copies


def _offers(worker: Any, pools: Iterable[str]) -> bool:
    return all(pins.resource(pool) in worker.state.total_resources for pool in pools)


def _pools(entry: Entry) -> set[str]:
    return {part.location.data_centre for part in entry.parts or (entry,)}


def _opened_by(client: Client | None, copies: Sequence[Entry]) -> xr.Dataset:
    """Open the first of some copies of an entry that can be opened."""
    copies, served = _in_order(client, copies)
    copy, dataset = _first_opened(client, copies, _copy_opened_by)
    if client is not None and len(copies) > 1 and dask.config.get("pools.compare-replicas"):
        others = [one for one in copies if one is not copy and _pools(one) <= served]
        _compare(client, copy, dataset, others)
    return dataset


def _in_order(client: Client | None, copies: Sequence[Entry]) -> tuple[Sequence[Entry], set[str]]:
    """Sort copies, the one to open first; and name the pools that have workers, if that was looked at."""
    if client is None or len(copies) == 1:
        return copies, set()
    served = set(client.sync(client.scheduler.pools_status)["pools"])
    preferred = dask.config.get("pools.prefer") or []
    return replicas.in_order(copies, served, remembered.pools(client), preferred), served


def _first_opened(
    client: Client | None, copies: Sequence[Entry], open_copy: Callable[[Client | None, Entry], T]
) -> tuple[Entry, T]:
    """Open copies one after the other until one can be opened."""
    if len(copies) == 1:
        return copies[0], open_copy(client, copies[0])
    failures: list[PoolsError] = []
    for copy in copies:
        try:
            return copy, open_copy(client, copy)
        except (EntryError, PoolUnavailableError) as error:
            failures.append(error)
            if copy is not copies[-1]:
                warnings.warn(f"{error} The next replica is tried.", replicas.ReplicaWarning, stacklevel=5)
    raise EntryError(
        f"None of the {len(copies)} replicas of {copies[0].name} can be opened: "
        + " ".join(f"({number}) {failure}" for number, failure in enumerate(failures, 1))
    )


def _compare(client: Client, chosen: Entry, dataset: xr.Dataset, others: Sequence[Entry]) -> None:
    """Make sure that the other copies which can be opened now are the same; remembered, that is cheap."""
    for other in others:
        try:
            counterpart = _copy_opened_by(client, other)
        except (EntryError, PoolUnavailableError):
            continue  # it will be said when it is chosen
        if difference := replicas.difference(dataset, counterpart):
            raise EntryError(
                f"The replicas of {chosen.name} differ: {difference}, in {chosen.shown} "
                f"({_places(chosen)}) and {other.shown} ({_places(other)}). Take out the one that is wrong, "
                "or open one with data_centre=."
            )


def _places(entry: Entry) -> str:
    return ", ".join(sorted(_pools(entry)))


def _copy_opened_by(client: Client | None, entry: Entry) -> xr.Dataset:
    if not entry.parts:
        return _part_opened_by(client, entry, _limits(entry.location.data_centre))
    # Parts find their order by their indexes.
    limits = [replace(_limits(part.location.data_centre), index=math.inf) for part in entry.parts]
    if client is None:
        parts = [_part_opened_by(None, part, limit) for part, limit in zip(entry.parts, limits, strict=True)]
    else:
        for pool in sorted(_pools(entry)):
            provision.ensure_workers(client, pool)
        with ThreadPoolExecutor(len(entry.parts)) as threads:
            parts = list(threads.map(lambda *given: _part_opened_by(client, *given), entry.parts, limits))
    try:
        return recipes.combined(parts, entry)
    except EntryError as error:
        raise EntryError(f"The parts of {entry.name} in {_places(entry)} do not fit: {error}.") from None


def _part_opened_by(client: Client | None, entry: Entry, limits: Limits) -> xr.Dataset:
    if client is not None:
        return _open_through(client, entry, limits)
    if _own_worker() is not None:
        return _result(_open(entry, limits), entry, f"in pool {entry.location.data_centre!r}")
    return _open_here(entry, limits)


def _limits(pool: str) -> Limits:
    ambient = pins.without_pool(dask.get_annotations())
    return Limits(
        eager=parse_bytes(dask.config.get("pools.eager-size")),
        index=parse_bytes(dask.config.get("pools.index-size")),
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
    if (known := remembered.get(client, entry, limits)) is not None:
        there = _at(entry, known.pool)
        provision.ensure_workers(client, there.location.data_centre)
        if _in_pool(client, there, _unchanged, known.engine, known.state) is True:
            return _handed_over(known, entry)
        remembered.drop(client, entry)
    asked = limits
    there = _at(entry, moved := _pool_of_targets(client, entry))
    if moved is not None:
        pool = moved
        provision.ensure_workers(client, pool)
        limits = replace(limits, annotations=_limits(pool).annotations)
    answer = _opening_through(client, there, limits)
    dataset = _result(answer, entry, f"in pool {pool!r}")
    if isinstance(answer, Opening):
        remembered.put(client, entry, asked, replace(answer, pool=moved))
    return dataset


def _at(entry: Entry, pool: str | None) -> Entry:
    """Give an entry another place, if there is one, and the residency that holds there."""
    if pool is None:
        return entry
    known = entry.location.known
    stays = entry.stays or (known is not None and known.data_centres[pool].residency == "stay")
    return replace(
        entry,
        location=Location(pool, "what its references point to"),
        residency="stay" if stays else None,
    )


def _pool_of_targets(client: Client, entry: Entry) -> str | None:
    """Name the pool of the files that an entry's references point to, if rules say that it is another one.

    Raises
    ------
    EntryError
        If they lie in several data centres.
    """
    # Whoever stated where it is to be read knows better than rules.
    known = entry.location.known
    if known is None or not any(is_references(url) for url in entry.urls):
        return None
    found = _in_pool(client, entry, _targets)
    if isinstance(found, _Failure):
        return None  # it will be said when it is opened
    places: dict[str, str] = {}
    for url, options in found:
        if matching := known.matches(url, options):
            places.setdefault(matching[0].data_centre, url)
    if len(places) > 1:
        raise EntryError(
            f"The references of {entry.name} point to several data centres: "
            + ", ".join(f"{pool!r} ({public_url(url)})" for pool, url in sorted(places.items()))
            + ". State the one whose workers can read all of it with data_centre=."
        )
    pool = next(iter(places), None)
    return None if pool == entry.location.data_centre else pool


def _opening_through(client: Client, entry: Entry, limits: Limits) -> Opening | _Failure:
    if not entry.several:
        return _in_pool(client, entry, _open, limits)  # type: ignore[no-any-return]
    answer = _series_through(client, entry, limits, together=True)
    if answer is _APART:
        answer = _series_through(client, entry, limits, together=False)
    assert not isinstance(answer, _Apart)
    return answer


def _series_through(client: Client, entry: Entry, limits: Limits, together: bool) -> _Answer:
    """Open many files in batches, each in a task, and combine them in another one, all in the pool."""
    status = client.sync(client.scheduler.pools_status)
    threads = status["pools"].get(entry.location.data_centre, {"threads": 1})["threads"]
    # Twice as many as can run at once: who is done sooner takes another.
    number = min(2 * threads, _MOST_BATCHES)
    listing = _submit(client, entry, _listing)
    batches = [
        _submit(client, entry, _batch, listing, index, number, limits, together) for index in range(number)
    ]
    combination = _submit(client, entry, _combination, batches, limits, together)
    return _awaited(combination, entry, [listing, *batches])  # type: ignore[no-any-return]


def _in_pool(client: Client, entry: Entry, function: Any, *args: Any) -> Any:
    """Call a function with an entry on a worker of its pool; a failure of the task comes as a value."""
    return _awaited(_submit(client, entry, function, *args), entry, ())


def _submit(client: Client, entry: Entry, function: Any, *args: Any) -> Future:
    return client.submit(
        function,
        entry,
        *args,
        key=f"open-{entry.name}-{uuid.uuid4().hex}",
        # Said here, this beats the annotation of a pool() block around us.
        resources={pins.resource(entry.location.data_centre): 0},
        priority=_PRIORITY,
        pure=False,
    )


def _awaited(future: Future, entry: Entry, others: Iterable[Future]) -> Any:
    try:
        return future.result()
    except PoolsError:
        raise
    except Exception as error:
        why = scrub(filesystems.explained(error), entry).rstrip(".")
        return _Failure(f"the task that opens it failed: {why}")
    finally:
        for one in (future, *others):
            one.release()


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


def _result(answer: Opening | _Failure, entry: Entry, where: str) -> xr.Dataset:
    if isinstance(answer, _Failure):
        raise EntryError(f"{entry.name} ({entry.shown}) cannot be opened {where}: {answer.reason}.")
    _refuse_links(answer, entry)
    return _handed_over(answer, entry)


def _refuse_links(opening: Opening, entry: Entry) -> None:
    """Refuse symbolic links out of the directory that places an entry, to what is another's by the rules.

    A link to a disk that no rule names is the data centre's own affair. Whoever stated where the entry lives
    knows better than rules.

    Raises
    ------
    EntryError
    """
    known, own = entry.location.known, entry.location.data_centre
    if known is None:
        return
    for path, end in opening.led_out.items():
        if (matching := known.matches(end)) and matching[0].data_centre != own:
            raise EntryError(
                f"{path} of {entry.name} is a link out of {entry.location.rule}: it leads to {end}, which "
                f"{matching[0].data_centre!r} hosts by {matching[0]}. Open that path; or, if {own!r} has it "
                f"there, too, say so with data_centre={own!r}."
            )


class LazyCoordinateWarning(UserWarning):
    """The coordinate of a dimension was too large to come along: it is lazy, and has no index."""


def _handed_over(opening: Opening, entry: Entry) -> xr.Dataset:
    for name, nbytes in recipes.unindexed(opening.dataset).items():
        warnings.warn(
            f"The coordinate {name!r} of {entry.name} has {format_bytes(nbytes)}, which is more than "
            "pools.index-size. It stays lazy and has no index, so that nothing is aligned by it. "
            f"ds.set_xindex({name!r}) makes one; with a larger pools.index-size in dask.config it comes "
            "along.",
            LazyCoordinateWarning,
            stacklevel=2,
        )
    return opening.copy()


# What follows runs in the pool.


def _open(entry: Entry, limits: Limits) -> Opening | _Failure:
    """Open all of an entry in this process."""
    listing = _listing(entry)
    for together in (True, False):
        batch = _batch(entry, listing, 0, 1, limits, together)
        answer = _combination(entry, [batch], limits, together)
        if not isinstance(answer, _Apart):
            break
    assert not isinstance(answer, _Apart)
    return answer


def _listing(entry: Entry) -> list[str] | _Failure:
    """List the files and stores of an entry."""
    return _explained(entry, lambda: stores.expand(entry.urls, entry.storage_options))


def _batch(
    entry: Entry, listing: list[str] | _Failure, index: int, number: int, limits: Limits, together: bool
) -> _Batch | _Failure | _Apart:
    """Open those files of a list that are number `index` of `number` parts; combine them, if `together`."""
    if isinstance(listing, _Failure):
        return listing
    limits = replace(limits, automatic=_automatic_chunk(limits.chunk))
    first, last = (len(listing) * part // number for part in (index, index + 1))

    def opened() -> _Batch | _Apart:
        sources = stores.sources_of(
            listing[first:last], entry.engine, entry.xarray_kwargs, entry.storage_options
        )
        if len(listing) == 1 and not entry.combining:
            files = [*map(stores.reopened, sources)]  # none in all parts but one
            return _Batch(
                tuple(State(file.source, file.version) for file in files),
                tuple(recipes.dataset_of(file, entry, limits) for file in files),
            )
        states, datasets = Series(entry, limits).open(sources, together)
        # What a field is can be told from all files only.
        if not together or len(datasets) < 2 or entry.patterns:
            return _Batch(states, datasets)
        # Batches that were combined as Dask's arrays would be could not be combined as mosaics any more.
        if entry.combining.get("combine_attrs", "override") != "override":
            return _APART
        try:
            return _Batch(states, (recipes.combined(datasets, entry),))
        except (NotAMosaic, EntryError):
            return _APART

    def with_links() -> _Batch | _Apart:
        batch = opened()
        if isinstance(batch, _Batch):
            return replace(batch, led_out=stores.led_out(listing[first:last], entry.location.directory))
        return batch

    return _explained(entry, with_links)


def _automatic_chunk(most: int) -> int:
    """Bytes of a chunk where an entry leaves them to us: as the memory of this pool's workers allows."""
    worker = _own_worker()
    memory = getattr(getattr(worker, "memory_manager", None), "memory_limit", None)
    return min(most, memory // worker.state.nthreads // _CHUNKS_OF_A_THREAD) if memory else most


def _combination(
    entry: Entry, batches: Sequence[_Batch | _Failure | _Apart], limits: Limits, together: bool
) -> _Answer:
    """Combine what `_batch` made of all parts; `_APART` if that takes every file by itself."""
    for batch in batches:
        if not isinstance(batch, _Batch):
            return batch
    states = [state for batch in batches if isinstance(batch, _Batch) for state in batch.states]
    datasets = [dataset for batch in batches if isinstance(batch, _Batch) for dataset in batch.datasets]

    def combined() -> xr.Dataset | _Apart:
        if len(states) == 1 and not entry.combining:
            return datasets[0]
        try:
            made = recipes.combined(datasets, entry)
        except (NotAMosaic, EntryError):
            # What is wrong with all files at once, and as arrays, is what the user should hear.
            if together:
                return _APART
            made = recipes.combined_arrays(datasets, entry, limits)
        if any(made.variables[name].nbytes > limits.index for name in made.xindexes):
            first = stores.reopened(states[0].source, states[0].version)
            made = recipes.without_large_indexes(made, first, entry, limits)
        return made

    dataset = _explained(entry, combined)
    if not isinstance(dataset, xr.Dataset):
        return dataset
    engines = {state.source.engine for state in states}
    return Opening(
        recipes.lazy(dataset, entry, limits),
        remembered.state_of(states),
        engines.pop() if len(engines) == 1 else None,
        led_out={
            path: end for batch in batches if isinstance(batch, _Batch) for path, end in batch.led_out.items()
        },
    )


def _targets(entry: Entry) -> list[tuple[str, Mapping[str, Any]]] | _Failure:
    """Say where the files are that an entry's references point to: a URL of each directory, and options."""

    def found() -> list[tuple[str, Mapping[str, Any]]]:
        options = filesystems.plain(entry.storage_options)
        directories: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for url in entry.urls:
            if is_references(url):
                for target, own in references.located(references.load(url, options), options):
                    directories.setdefault(target.rpartition("/")[0], (target, own))
        return list(directories.values())

    return _explained(entry, found)


def _unchanged(entry: Entry, engine: str | None, state: str) -> bool | _Failure:
    """Whether an entry is as it was when it was opened; nothing is opened to find out."""

    def same() -> bool:
        urls = stores.expand(entry.urls, entry.storage_options)
        sources = stores.sources_of(urls, engine or entry.engine, entry.xarray_kwargs, entry.storage_options)
        return remembered.state_of(stores.states_of(sources)) == state

    return _explained(entry, same)


def _explained(entry: Entry, work: Callable[[], T]) -> T | _Failure:
    """Do some work; a failure comes as a value that says what it means to the user."""
    try:
        return work()
    except FileNotFoundError as error:
        if (cause := filesystems.cause_of(error)) is not error:
            return _Failure(_diagnosis(cause, entry).rstrip("."))
        # zarr's error for a group is one of these, too, but names no file.
        if entry.xarray_kwargs.get("group") and error.filename is None and "group" in str(error):
            return _Failure(_diagnosis(error, entry).rstrip("."))
        # Object stores name the key at best, local files the absolute path.
        named = str(error.filename or "")
        missing = public_url(named) if os.path.isabs(named) else entry.shown
        relative = next((url for url in entry.urls if is_local(url) and not os.path.isabs(url)), None)
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


def _diagnosis(error: Exception, entry: Entry) -> str:
    """Say what an exception that a library raised while opening means to the user."""
    complaint = scrub(filesystems.explained(error), entry)
    group = entry.xarray_kwargs.get("group")
    if group and ("group" in complaint.lower() or isinstance(error, KeyError)):
        known = _groups(entry)
        there = f" Groups there: {', '.join(known)}." if known else ""
        return f"it has no group {group!r} ({complaint}).{there}"
    if isinstance(error, TypeError) and "unexpected keyword" in complaint:
        return f"xarray_kwargs has something that its engine does not take: {complaint}"
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return f"{_whereabouts()} may not read it: {complaint}"
    if "simplecache::" in complaint:
        return complaint
    if isinstance(error, OSError | ValueError):
        return f"it is unreadable on {_whereabouts()}: {complaint}"
    return f"{complaint} ({traceback.extract_tb(error.__traceback__)[-1].name}) on {_whereabouts()}"


def _groups_below(entry: Entry) -> list[str] | _Failure:
    """List paths of the groups below the one that an entry names."""

    def found() -> list[str]:
        (url,) = stores.expand(entry.urls, entry.storage_options)
        root = str(entry.xarray_kwargs.get("group") or "").strip("/")
        groups = stores.groups_of(stores.source_of(url, entry.engine, {}, entry.storage_options))
        below = f"{root}/" if root else ""
        return [group.removeprefix(below) for group in groups if group.startswith(below)]

    return _explained(entry, found)


def _groups(entry: Entry) -> list[str]:
    """Paths of the groups of the first file or store, as far as they can be listed."""
    try:
        url = stores.expand(entry.urls, entry.storage_options)[0]
        source = stores.source_of(url, entry.engine, {}, entry.storage_options)
        return stores.groups_of(source)
    except Exception:
        return []


def _whereabouts() -> str:
    worker = _own_worker()
    return f"worker {worker.address} ({socket.gethostname()})" if worker is not None else "this machine"
