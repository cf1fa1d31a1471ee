"""Files and zarr stores as one process sees them: what they are, their version, and opening them once.

Everything here runs where the data is: in a worker of its pool, or in the client where there is no cluster.
Each process opens for itself and keeps what it opened, so one lock holds (Datasets that other processes
opened have other locks, and netCDF4 crashes), file objects are never sent, and nobody tries to reach data
that it cannot see. It knows neither pools nor names of tasks.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import os
import socket
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import xarray as xr
from dask.base import tokenize

from dask_pools.errors import EntryError
from dask_pools.places import place_of
from intake_pools import filesystems, icechunk_stores, netcdf_parts, references
from intake_pools.known_drivers import NETCDF
from intake_pools.marks import marks_of
from intake_pools.netcdf_lock import LOCK
from intake_pools.urls import (
    is_chain,
    is_local,
    is_pattern,
    is_references,
    public_options,
    public_url,
    without_caches,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = [
    "Opened",
    "Source",
    "State",
    "StoreGone",
    "Version",
    "expand",
    "forget",
    "forget_others",
    "led_out",
    "opened",
    "reopened",
    "source_of",
    "sources_of",
    "states_of",
]

# Documents that describe a zarr store, of format 3 and 2; data chunks have other names.
_ZARR_DOCUMENTS = ("zarr.json", ".zmetadata", ".zgroup", ".zarray", ".zattrs")
# Engines that read file objects; others are given the URL itself.
_FROM_FILE_OBJECTS = {"h5netcdf", "scipy"}
_GRIB = (".grib", ".grib2", ".grb", ".grb2")
# Engines on libraries that know no threads.
_LOCKED = {"netcdf4", "h5netcdf"}

_CAN_LEAVE_OUT_INDEXES = "create_default_indexes" in inspect.signature(xr.open_dataset).parameters
# Requests for versions that are under way at once; each is short and mostly waits.
_ASKED_AT_ONCE = 16


class StoreGone(Exception):
    """A store is not there any more, or not in this place; absent chunks would read as fill values."""


@dataclass(frozen=True)
class Source:
    """What a process needs to open a file or store.

    Attributes
    ----------
    url : str
        An absolute path or a URL.
    engine : str or None
        One of xarray; None lets xarray guess.
    xarray_kwargs, storage_options : dict
    token : str
        Hash of all this without secrets.
    only : str or None
        The one variable that is opened; None for all.
    """

    url: str = field(repr=False)
    engine: str | None
    xarray_kwargs: Mapping[str, Any] = field(repr=False)
    storage_options: Mapping[str, Any] = field(repr=False)
    token: str
    only: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is a path."""
        return is_local(self.url)

    @property
    def holds_file(self) -> bool:
        """Whether it is a local file that is open as long as its Dataset is."""
        return self.local and self.engine != "zarr"

    @property
    def group(self) -> str:
        """Path of the group inside the store, without slashes at its ends."""
        return str(self.xarray_kwargs.get("group") or "").strip("/")

    def with_only(self, variable: Hashable) -> Source:
        """Get the part of a file that one variable is, where that can be opened by itself."""
        if not isinstance(variable, str) or not netcdf_parts.can_be_parted(self.engine, self.xarray_kwargs):
            return self
        return replace(self, token=f"{self.token}/{variable}", only=variable) if self.local else self


@dataclass(frozen=True)
class Version:
    """One state of the data.

    Attributes
    ----------
    text : str
        Differs between states as far as that can be seen; empty if nothing can.
    anchors : tuple of str
        Paths of local files that show whether this is still so, at the price of an `os.stat` each.
    stamp : str or None
        What `stamp_of` said about them.
    consolidated : bool or None
        Of zarr, whether one document holds the metadata of all.
    snapshot : str or None
        Of Icechunk.
    """

    text: str
    anchors: tuple[str, ...] = ()
    stamp: str | None = None
    consolidated: bool | None = None
    snapshot: str | None = None

    def now(self) -> str:
        """Look at the anchors again: the same stamp, another, or what is missing."""
        stamps = []
        for anchor in self.anchors:
            try:
                stamps.append(stamp_of(anchor))
            except OSError:
                return f"none (no {anchor} on {socket.gethostname()})"
        return ",".join(stamps)


@dataclass(frozen=True)
class State:
    """A file or store in one state."""

    source: Source
    version: Version


@dataclass(frozen=True)
class Opened:
    """A Dataset that this process has open, lazily and without indexes, and the version that it is of.

    To read chunks it needs no indexes, which take a third of the time to open it.
    """

    source: Source
    dataset: xr.Dataset
    version: Version

    def serves(self, source: Source, version: Version | None) -> bool:
        """Whether it is what somebody wants."""
        return self.source == source and self.version == version


def stamp_of(path: str) -> str:
    """Time of the last change in nanoseconds, and size in bytes."""
    status = os.stat(path)
    return f"{status.st_mtime_ns}-{status.st_size}"


def expand(urls: Iterable[str], storage_options: Mapping[str, Any]) -> list[str]:
    """Replace patterns by what matches them here, and relative paths by absolute ones.

    Raises
    ------
    EntryError
        If nothing matches a pattern.
    """
    found: list[str] = []
    for url in urls:
        if is_local(url):
            # By its text, as it was located: through a link, `..` may lead anywhere.
            url = os.path.abspath(os.path.expanduser(url))
        if not is_pattern(url):
            found.append(url)
            continue
        # The pattern is in the last link of a chain, which has options of its own.
        chain, link, end = url.rpartition("::")
        fs, path = filesystems.end_file(url, storage_options)
        # A path with brackets in its name is that path.
        matching = [path] if "*" not in path and fs.exists(path) else sorted(fs.glob(path))
        if not matching:
            raise EntryError(f"nothing matches {public_url(url)}")
        found.extend(one if is_local(end) else chain + link + fs.unstrip_protocol(one) for one in matching)
    return found


def led_out(urls: Iterable[str], root: str | None) -> dict[str, str]:
    """Find the files and stores that symbolic links lead out of a directory, and where to.

    Parameters
    ----------
    urls : iterable of str
        As `expand` gives them; of a chain the end counts, and what is no path is passed over.
    root : str or None
        The directory, which may be a link itself; None: whatever is reached through a link has left.

    Returns
    -------
    dict of str to str
        By path, one of each directory that is led to.
    """
    inside = None if root is None else os.path.realpath(root).rstrip("/") + "/"
    directories: dict[str, str] = {}
    found: dict[str, tuple[str, str]] = {}
    for url in urls:
        scheme, _, path = place_of(url)
        if scheme:
            continue
        directory, name = os.path.split(path)
        if directory not in directories:
            directories[directory] = os.path.realpath(directory)
        end = os.path.join(directories[directory], name)
        end = os.path.realpath(end) if os.path.islink(end) else end
        if end != path and not (inside is not None and f"{end}/".startswith(inside)):
            found.setdefault(os.path.dirname(end), (path, end))
    return dict(found.values())


def source_of(
    url: str, engine: str | None, xarray_kwargs: Mapping[str, Any], storage_options: Mapping[str, Any]
) -> Source:
    """Look at a file or store and settle which engine reads it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    EntryError
        If it is not what the entry says.
    """
    return sources_of([url], engine, xarray_kwargs, storage_options)[0]


def sources_of(
    urls: Iterable[str],
    engine: str | None,
    xarray_kwargs: Mapping[str, Any],
    storage_options: Mapping[str, Any],
) -> list[Source]:
    """Do as `source_of` does for several files or stores; their options are the same objects."""
    kwargs, options = dict(xarray_kwargs), dict(storage_options)
    public = tokenize([public_options(given, objects=True) for given in (kwargs, options)])
    sources = []
    for url in urls:
        found = _engine(url, engine, options) if engine in (None, NETCDF) else engine
        sources.append(Source(url, found, kwargs, options, tokenize(public_url(url), found, public)))
    return sources


def states_of(sources: Sequence[Source]) -> list[State]:
    """Look up the versions of several files or stores, without opening them."""
    if all(source.local for source in sources):
        return [State(source, version_of(source)) for source in sources]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        versions = list(threads.map(version_of, sources))
    return [State(source, version) for source, version in zip(sources, versions, strict=True)]


def _engine(url: str, engine: str | None, storage_options: Mapping[str, Any]) -> str | None:
    local = is_local(url)
    if engine is None and _looks_like_zarr(url, storage_options):
        return "zarr"
    start = _first_bytes(url, storage_options)
    if start.startswith(b"CDF"):
        return "netcdf4" if local else "scipy"
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "netcdf4" if local else "h5netcdf"
    # By its name as well, as cfgrib does: there may be a header of a bulletin before.
    if engine is None and (start.startswith(b"GRIB") or url.endswith(_GRIB)):
        return "cfgrib"
    if engine == NETCDF:
        raise EntryError(
            f"{public_url(url)} is not NetCDF: it begins with {start!r}. Name the engine that reads it: "
            "driver pooled_xarray with engine=, or pooled_zarr for zarr"
        )
    if not local:
        raise EntryError(
            f"what {public_url(url)} is cannot be told from its beginning, {start!r}. State engine="
        )
    return None


def _looks_like_zarr(url: str, storage_options: Mapping[str, Any]) -> bool:
    if url.rstrip("/").endswith((".zarr", ".zarr.zip")):
        return True
    if is_local(url):
        return os.path.isdir(url)
    if is_references(url):
        return True
    fs, path = filesystems.file_system(*without_caches(url, storage_options))
    return any(fs.exists(_below(path, document)) for document in ("zarr.json", ".zmetadata", ".zgroup"))


def _first_bytes(url: str, storage_options: Mapping[str, Any]) -> bytes:
    if is_local(url):
        if os.path.isdir(url):
            raise EntryError(f"{url} is a directory, not a file; for zarr take the driver pooled_zarr")
        with open(url, "rb") as file:
            return file.read(8)
    fs, path = filesystems.file_system(*without_caches(url, storage_options))
    # Not cat_file: a server that knows no ranges sends all of it.
    with fs.open(path, "rb", block_size=1024) as file:
        return bytes(file.read(8))


def version_of(source: Source) -> Version:
    """Look up the version of the data, without opening it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    """
    if is_references(source.url):
        return _references_version(source)
    if source.engine == "zarr" and not (source.local and os.path.isfile(source.url)):
        return _zarr_version(source)
    if source.local:
        return _of_files("", [source.url])
    if source.engine not in _FROM_FILE_OBJECTS:
        # The engine reaches the URL in a way of its own (OPeNDAP); nothing general can be asked.
        return Version("")
    return _end_version(source)


def _of_files(text: str, paths: Sequence[str], consolidated: bool | None = None) -> Version:
    """Version with local files as its anchors."""
    stamp = ",".join(map(stamp_of, paths))
    return Version(f"{text}-{stamp}" if text else stamp, tuple(paths), stamp, consolidated)


def _end_version(source: Source) -> Version:
    """Version of the one object where a URL or chain ends."""
    fs, path = filesystems.end_file(source.url, source.storage_options)
    if _is_local_file_system(fs):
        return _of_files("", [path])
    fs.invalidate_cache()
    return Version(marks_of(fs.info(path)))


def _is_local_file_system(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


# The files that a set of references points to are part of its version, unless they are more than this.
_TARGETS_COMPARED = 32


def _references_version(source: Source) -> Version:
    """State of a set of references, and of the files that they point to if those are few."""
    found = references.load(source.url, source.storage_options)
    marks = list(found.marks)
    local: list[str] = []
    if found.document is not None and _is_local_file_system(found.fs):
        local.append(found.path if found.content is not None else f"{found.path}/.zmetadata")
    if found.content is not None and len(found.targets()) <= _TARGETS_COMPARED:
        for url, options in references.located(found, filesystems.plain(source.storage_options)):
            fs, path = filesystems.file_system(url, options)
            if _is_local_file_system(fs):
                local.append(path)
            else:
                fs.invalidate_cache()
                marks.append(marks_of(fs.info(path)))
    text = hashlib.sha256("\0".join(marks).encode()).hexdigest()[:32]
    consolidated = found.content is None or ".zmetadata" in found.content.get("refs", found.content)
    return _of_files(text, local, consolidated) if local else Version(text, consolidated=consolidated)


def _zarr_version(source: Source) -> Version:
    """Hash of the documents that describe a zarr group, and the time of its first one; or a snapshot."""
    if icechunk_stores.is_asked_for(source.storage_options):
        return _snapshot(source)
    fs, root = filesystems.file_system(*without_caches(source.url, source.storage_options))
    fs.invalidate_cache()
    root = root.rstrip("/")
    group = _below(root, source.group)
    documents = _documents(fs, {root, group})
    if not documents:
        if icechunk_stores.is_repository(fs, root):
            return _snapshot(source)
        if not fs.exists(root):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
        raise EntryError(f"{public_url(source.url)} has no zarr metadata ({', '.join(_ZARR_DOCUMENTS[:3])})")
    first = {name: number for number, name in enumerate(_ZARR_DOCUMENTS)}
    anchor = min(documents, key=lambda path: (not path.startswith(group), first[path.rpartition("/")[2]]))
    consolidated = any(
        path.rpartition("/")[0] == root and _is_consolidated(path, text) for path, text in documents.items()
    )
    if source.xarray_kwargs.get("consolidated") is False or not consolidated:
        try:
            below = [
                child["name"].rstrip("/")
                for child in fs.ls(group, detail=True)
                if child["type"] == "directory"
            ]
        except Exception:  # plain HTTP has no listing, and servers say so in their own ways
            below = []
        documents |= _documents(fs, below)
    digest = hashlib.sha256()
    for path, content in sorted(documents.items()):
        digest.update(path.removeprefix(root).encode() + b"\0" + content + b"\0")
    text = digest.hexdigest()[:32]
    if source.local:
        return _of_files(text, [anchor], consolidated)
    if is_chain(source.url):
        # Of an archive, its members say less than it does itself.
        at_end = without_caches(source.url, {})[0]
        marks = _end_version(source).text if is_chain(at_end) else marks_of(fs.info(anchor))
        return Version(f"{text}-{marks}", consolidated=consolidated)
    return Version(f"{text}-{marks_of(fs.info(anchor))}", consolidated=consolidated)


def _snapshot(source: Source) -> Version:
    snapshot = icechunk_stores.snapshot_of(source.url, source.storage_options)
    return Version(f"icechunk-{snapshot}", consolidated=False, snapshot=snapshot)


_WEB = ("http://", "https://")


def _below(directory: str, name: str) -> str:
    return f"{directory}/{name}".strip("/") if not directory else f"{directory}/{name}".rstrip("/")


def _documents(fs: Any, directories: Iterable[str]) -> dict[str, bytes]:
    """Read the documents that there are; if there are none, but not because they are absent, say why."""
    paths = [_below(directory, document) for directory in directories for document in _ZARR_DOCUMENTS]
    if not paths:
        return {}
    answers = fs.cat(paths, on_error="return")
    documents = {path: answer for path, answer in answers.items() if not isinstance(answer, Exception)}
    if not documents:
        absent = (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError)
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, absent):
                raise answer
    return documents


def _is_consolidated(path: str, content: bytes) -> bool:
    if path.endswith(".zmetadata"):
        return True
    if not path.endswith("zarr.json"):
        return False
    try:
        return bool(json.loads(content).get("consolidated_metadata"))
    except (ValueError, AttributeError):
        return False


def _guarded_store(source: Source, version: Version) -> Store:
    """Make the zarr store of a source; it raises `StoreGone` where others read fill values from nowhere."""
    from zarr.storage import LocalStore, WrapperStore, ZipStore

    class GuardedStore(WrapperStore):  # type: ignore[type-arg]  # any kind of store
        """Tells a chunk that was never written from a store that is not there."""

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await self._store.get(key, prototype, byte_range)
            if found is not None and byte_range is not None and len(found) > _length(byte_range):
                # A web server that knows no ranges sends all of it.
                raise OSError(
                    f"{len(found)} bytes came for a part of {key}: its server sends no parts of a file"
                )
            if found is None and key.rpartition("/")[2] not in _ZARR_DOCUMENTS:
                prefixes = {"", f"{source.group}/" if source.group else ""}
                for document in [prefix + name for prefix in prefixes for name in _ZARR_DOCUMENTS]:
                    # Not exists(), which may answer from a listing made before it vanished.
                    if await self._store.get(document, prototype) is not None:
                        return None
                raise StoreGone(f"no zarr metadata at {public_url(source.url)}")
            return found

    if version.snapshot is not None:
        return GuardedStore(icechunk_stores.store_of(source.url, source.storage_options, version.snapshot))
    if not source.local:
        return GuardedStore(filesystems.zarr_store(source.url, source.storage_options, version.text))
    if os.path.isfile(source.url):
        if not zipfile.is_zipfile(source.url):
            start = _first_bytes(source.url, {})
            raise EntryError(
                f"{source.url} is a file, and no zip of a zarr store: it begins with {start!r}. For NetCDF "
                "take the driver pooled_netcdf"
            )
        return GuardedStore(ZipStore(source.url, mode="r", read_only=True))
    return GuardedStore(LocalStore(source.url, read_only=True))


def _length(byte_range: Any) -> float:
    """Bytes that a request for part of a file asks for, at most."""
    if hasattr(byte_range, "end"):
        return float(byte_range.end - byte_range.start)
    return float(getattr(byte_range, "suffix", math.inf))


def _open(source: Source, version: Version) -> xr.Dataset:
    target: Any = source.url
    kwargs = dict(source.xarray_kwargs)
    if _CAN_LEAVE_OUT_INDEXES:
        kwargs["create_default_indexes"] = False
    if source.engine == "zarr":
        if kwargs.get("consolidated") and version.consolidated is False:
            raise EntryError(
                f"{public_url(source.url)} has no consolidated metadata. Leave out `consolidated: true`"
            )
        target = _guarded_store(source, version)
        # xarray would try both ways, and warn.
        kwargs.setdefault("consolidated", version.consolidated)
    elif source.engine in _FROM_FILE_OBJECTS and not source.local:
        target = filesystems.open_file(source.url, source.storage_options, version.text)
    elif source.storage_options and not source.local:
        raise EntryError(
            f"engine {source.engine!r} takes no storage_options; h5netcdf and scipy read NetCDF with them"
        )
    elif source.engine == "cfgrib":
        # Else it keeps an index beside the file: a pickle, which anybody who may write there could have left.
        kwargs.setdefault("indexpath", "")
    if source.only is not None:
        return netcdf_parts.open_part(source.url, [source.only], kwargs)
    # chunks=None: Dask comes in one floor up, with names of ours.
    if source.engine not in _LOCKED:
        dataset = xr.open_dataset(target, engine=source.engine, chunks=None, cache=False, **kwargs)
        if not dataset.variables and not kwargs.get("consolidated") and source.url.startswith(_WEB):
            raise EntryError(
                f"nothing is found in {public_url(source.url)}: it has no consolidated metadata, or is to be "
                "opened without, and its web server does not list what is there. Have its owner call "
                "zarr.consolidate_metadata, and leave out `consolidated: false`"
            )
        return dataset
    with LOCK:
        return xr.open_dataset(target, engine=source.engine, chunks=None, cache=False, lock=LOCK, **kwargs)


def groups_of(source: Source) -> list[str]:
    """Paths of the groups in a store or file, for messages."""
    if source.engine == "zarr":
        import zarr

        root = zarr.open_group(_guarded_store(source, version_of(source)), mode="r")
        return sorted(path for path, member in root.members(max_depth=None) if isinstance(member, zarr.Group))
    if source.local and source.engine in _LOCKED:
        import netCDF4

        # Not xarray's trees: they take its own lock for each group, whatever they are handed.
        with LOCK, netCDF4.Dataset(source.url) as file:
            paths, below = [], [file]
            while below:
                inner = list(below.pop().groups.values())
                paths += [group.path.strip("/") for group in inner]
                below += inner
        return sorted(paths)
    if source.engine == "h5netcdf":
        import h5py

        fs, path = filesystems.file_system(source.url, source.storage_options)
        paths = []

        def note(name: str, member: Any) -> None:
            if isinstance(member, h5py.Group):
                paths.append(name)

        with LOCK, fs.open(path, "rb") as stream, h5py.File(stream) as file:
            file.visititems(note)
        return sorted(paths)
    return []


class _Slot:
    """Room for one open Dataset; its lock lets one thread open while others wait."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.Lock()
        self.opened: Opened | None = None
        self.used = time.monotonic()
        # Whether the file has been closed since it was used last; reading opens it again.
        self.at_rest = False


# What is open, or was and can be read again in less time: so many Datasets at most, of some 50 kB each.
# (File handles are limited by xarray's setting file_cache_maxsize.)
_KEPT = 1024
# Seconds after which a file that nobody reads is closed. HDF5 locks what is open, so nobody else could write
# it; opening it again takes some milliseconds.
_IDLE = 1.0
_slots: OrderedDict[str, _Slot] = OrderedDict()
# Those of each URL: of the same data otherwise opened, or in another state.
_slots_of: dict[str, set[str]] = {}
_slots_lock = threading.Lock()
_closer: threading.Thread | None = None


def _slot(source: Source) -> _Slot:
    with _slots_lock:
        new = source.token not in _slots
        slot = _slots.setdefault(source.token, _Slot(source.url))
        slot.used = time.monotonic()
        woken, slot.at_rest = slot.at_rest, False
        _slots.move_to_end(source.token)
        if new:
            _slots_of.setdefault(source.url, set()).add(source.token)
            _make_room()
    if woken:
        _close_when_idle()
    return slot


def _make_room() -> None:
    """Forget what was used longest ago."""
    while len(_slots) > _KEPT:
        # Not closed: another thread may be reading. The last reader lets it go.
        _drop(next(iter(_slots)))


def _drop(token: str) -> _Slot:
    """Take one out, with the lock of all held."""
    slot = _slots.pop(token)
    _slots_of[slot.url].discard(token)
    if not _slots_of[slot.url]:
        del _slots_of[slot.url]
    return slot


def _close_when_idle() -> None:
    """Have a thread close the local files of this process that nobody reads; it ends with the last one."""
    global _closer
    with _slots_lock:
        if _closer is None:
            _closer = threading.Thread(target=_close_idle, name="intake-pools-close-idle", daemon=True)
            _closer.start()


def _close_idle() -> None:
    global _closer
    remaining = True
    while remaining:
        time.sleep(_IDLE / 2)
        idle: list[Opened] = []
        with _slots_lock:
            held = [
                slot
                for slot in _slots.values()
                if slot.opened and slot.opened.source.holds_file and not slot.at_rest
            ]
            for slot in held:
                if time.monotonic() - slot.used > _IDLE and slot.opened:
                    idle.append(slot.opened)
                    slot.at_rest = True
            remaining = len(held) > len(idle)
            if not remaining:
                _closer = None
        for one in idle:
            # Waits for whoever reads just now: xarray closes under the lock that it reads under. Who has the
            # Dataset, but has not begun to read, opens the file again by reading.
            one.dataset.close()


def forget(concerns: Callable[[str], bool] = lambda url: True) -> None:
    """Close what this process has open, and forget its metadata.

    Parameters
    ----------
    concerns : callable, optional
        Whether a path or URL is meant; by default all are.
    """
    with _slots_lock:
        dropped = [
            _drop(token)
            for url in [url for url in _slots_of if concerns(url)]
            for token in list(_slots_of[url])
        ]
    for slot in dropped:
        if slot.opened is not None:
            slot.opened.dataset.close()


def forget_others(source: Source, version: Version) -> None:
    """Close what is open of other versions of the same data.

    HDF5 takes two openings of one inode for one file, and would show the old content through the new one.
    """
    with _slots_lock:
        slots = [_slots[token] for token in _slots_of.get(source.url, ())]
    for slot in slots:
        held = slot.opened
        if held and held.version != version:
            slot.opened = None
            held.dataset.close()


def reopened(source: Source, expected: Version | None = None) -> Opened:
    """Open a source as it is now; what this process has open is taken if the version is the same.

    Parameters
    ----------
    source : Source
    expected : Version, optional
        One that is good enough, if another thread has opened it meanwhile.
    """
    slot = _slot(source)
    with slot.lock:
        held = slot.opened
        if held is not None and held.serves(source, expected):
            return held
        # A snapshot stays what it is, whatever its branch has become.
        version = expected if expected is not None and expected.snapshot else version_of(source)
        if held is None or not held.serves(source, version):
            if version.snapshot is None:
                forget_others(source, version)
            held = slot.opened = Opened(source, _open(source, version), version)
            if source.holds_file:
                _close_when_idle()
        return held


# So many variables of one file are opened by themselves; who wants more of it gets all of it.
_MOST_PARTS = 4


def _for_reading(source: Source, version: Version, variable: Hashable) -> Source:
    """All of a source if this process has it open, else the part of it that a variable is, if it has one."""
    part = source.with_only(variable)
    if part is source:
        return source
    with _slots_lock:
        held = {token: _slots[token].opened for token in _slots_of.get(source.url, ())}
    whole = held.get(source.token)
    if (whole is not None and whole.serves(source, version)) or (
        part.token not in held and len(held) >= _MOST_PARTS
    ):
        return source
    return part


def opened(
    source: Source, version: Version, changed: Callable[[str], Exception], variable: Hashable
) -> xr.Dataset:
    """Get a Dataset with one variable of a source, as it was when it was opened first, perhaps elsewhere.

    Parameters
    ----------
    source : Source
    version : Version
        The one that it must still have.
    changed : callable
        Makes the exception to raise from what was found instead.
    variable : hashable
        What is to be read. The others may be in the Dataset or not.

    Notes
    -----
    A local file is looked at on every call (one `os.stat`); a remote one when this process opens it.
    """
    if version.anchors and (now := version.now()) != version.stamp:
        raise changed(now)
    source = _for_reading(source, version, variable)
    held = _slot(source).opened
    if held is None or not held.serves(source, version):
        try:
            held = reopened(source, version)
        except FileNotFoundError as error:
            if (cause := filesystems.cause_of(error)) is not error:
                raise cause from None
            raise changed(f"none (no {public_url(source.url)} for {socket.gethostname()})") from None
        if held.version != version:
            raise changed(held.version.text)
    return held.dataset
