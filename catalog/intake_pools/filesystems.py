"""File systems of fsspec for URLs and for chains of them (``simplecache::s3://…``, ``zip://a.nc::/b.zip``).

What fsspec keeps between two calls is what is wrong here: copies that a cache made of an object which has
been written anew since, archives that were open when they were replaced. It knows neither formats nor pools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask.base import tokenize

from intake_pools import references
from intake_pools.urls import end_of, is_chain, is_references

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["cause_of", "end_file", "explained", "file_system", "open_file", "plain", "zarr_store"]

# Of an event loop that the catalogue's author had in mind; each process and library here has its own.
_LOOPS = ("asynchronous", "loop")


def plain(options: Any) -> Any:
    """Copy options without what ties a file system to an event loop, at any depth."""
    if isinstance(options, Mapping):
        return {name: plain(value) for name, value in options.items() if name not in _LOOPS}
    return options


def file_system(url: str, storage_options: Mapping[str, Any], version: str | None = None) -> tuple[Any, str]:
    """Make the file system of a URL, for use by any thread.

    Parameters
    ----------
    url : str
    storage_options : mapping
        For its first link; those of others are under the names of their protocols.
    version : str, optional
        The one that is wanted. Of a chain, nothing is taken then that was copied or opened of another one.

    Returns
    -------
    fs : fsspec.AbstractFileSystem
    path : str
        Of the URL in it.
    """
    import fsspec

    options = plain(storage_options)
    if is_references(url):
        return references.file_system(references.load(url, options), options), ""
    if version is not None and is_chain(url):
        options = _of_version(url, options, version)
    return fsspec.url_to_fs(url, **options)  # type: ignore[no-any-return]


def _of_version(url: str, options: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Options of a chain, with which its caches and archives are those of one version."""
    own = dict(options)
    bits = url.split("::")
    for number, bit in enumerate(bits[:-1]):
        name = bit.partition("://")[0]
        given = own if number == 0 else own.setdefault(name, {})
        if number == 0 and isinstance(own.get(name), Mapping):
            given = own[name] = dict(own[name])
        if not isinstance(given, dict):
            continue
        given["skip_instance_cache"] = True
        if isinstance(directory := given.get("cache_storage"), str) and directory != "TMP":
            given["cache_storage"] = f"{directory.rstrip('/')}/{tokenize(version)[:16]}"
    return own


def end_file(url: str, storage_options: Mapping[str, Any]) -> tuple[Any, str]:
    """Make the file system of the end of a chain, where the data is, and the path there."""
    import fsspec

    end, options = end_of(url, plain(storage_options))
    return fsspec.url_to_fs(end, **options)  # type: ignore[no-any-return]


def zarr_store(url: str, storage_options: Mapping[str, Any], version: str) -> Store:
    """Make the zarr store of a URL, which is not a path.

    Parameters
    ----------
    url : str
    storage_options : mapping
    version : str
        As for `file_system`.
    """
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from zarr.storage import FsspecStore

    if not is_chain(url):
        return FsspecStore.from_url(url, storage_options=plain(storage_options), read_only=True)
    fs, path = file_system(url, storage_options, version)
    # All links of a chain would have to be of zarr's event loop, and many cannot.
    return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=True)


def open_file(url: str, storage_options: Mapping[str, Any], version: str) -> Any:
    """Open the file of a URL for reading any part of it.

    Parameters
    ----------
    url : str
    storage_options : mapping
    version : str
        As for `file_system`.

    Raises
    ------
    ValueError
        If its web server sends whole files only.
    """
    fs, path = file_system(url, storage_options, version)
    file = fs.open(path, "rb")
    # An archive is closed with its file system, whoever still reads.
    file.file_system = fs
    if url.startswith(("http://", "https://")):
        size = file.size
        if size is None or not file.seekable():
            raise ValueError("the server does not say how long it is, and a stream is not seekable")
        if size > file.blocksize:
            # Shows now what would else show when chunks are read.
            file.seek(size - 1)
            file.read(1)
            file.seek(0)
    return file


_NO_PARTS = re.compile("range requests|seekable|Cannot seek", re.IGNORECASE)


def explained(error: BaseException) -> str:
    """Say what a library raised, in one line, and what can be done about it if that is known."""
    text = (str(error).strip() or "no further explanation").splitlines()[0]
    text = f"{type(error).__name__}: {text}"
    # Of fsspec's references, and of what it could not fetch, the cause is what matters.
    if error.__cause__ is not None and type(error).__name__ == "ReferenceNotReachable":
        text += f" ({explained(error.__cause__)})"
    if _NO_PARTS.search(text):
        text = (
            f"its server sends no parts of a file ({text}). Write simplecache:: before its URL: the worker "
            "then fetches all of it, once"
        )
    return text


def cause_of(error: Exception) -> Exception:
    """Find what is behind an exception: fsspec takes every failure of an HTTP server for a missing file."""
    cause = error.__cause__
    if (
        isinstance(error, FileNotFoundError)
        and isinstance(cause, Exception)
        and type(cause).__module__.startswith("aiohttp")
        and getattr(cause, "status", None) not in (404, 410)
    ):
        return cause
    return error
