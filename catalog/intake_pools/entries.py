"""One entry of a catalogue as plain data: what to open, how, and where it lives.

Checks what can be checked without the data, and says which parts may be shown: secrets in options and URLs
travel to the workers, but are in no name, repr or message.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from dask_pools import targets
from dask_pools.errors import EntryError, MixedPoolsError
from intake_pools.locate import Location, locate

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["NETCDF", "Entry", "entry_of", "public_options", "public_url", "scrub"]

NETCDF = "netcdf"
"""Engine of an entry that is NetCDF of some kind; which engine reads it is found out beside the data."""

COMBINING = ("combine", "concat_dim", "compat", "data_vars", "coords", "join", "combine_attrs", "parallel")
"""Arguments of `xarray.open_mfdataset` that `xarray.open_dataset` does not have."""

_DECIDED_HERE = {
    "chunks": "give `chunks` beside xarray_kwargs",
    "storage_options": "give `storage_options` beside xarray_kwargs",
    "cache": "data stays on the workers",
    "inline_array": "how chunks are named and read is decided here",
    "from_array_kwargs": "how chunks are named and read is decided here",
    "chunked_array_type": "pins are Dask's",
    "filename_or_obj": "that is `urlpath`",
    "lock": "which libraries need one is known here",
    "preprocess": "a function in a catalogue is not run",
}


@dataclass(frozen=True)
class Entry:
    """What is needed to open one dataset.

    Attributes
    ----------
    name : str
        For messages and for the names of tasks.
    urls : tuple of str
        Paths and URLs; relative paths are relative to the workers' directory. Each may be a pattern (``*``).
    location : Location
    engine : str or None
        An engine of xarray, `NETCDF`, or None: to be found out beside the data.
    chunks : dict, int or "auto"
        As in `xarray.open_dataset`; ``{}`` follows what is stored.
    xarray_kwargs, combining : dict
        For `xarray.open_dataset`, and for combining several files.
    storage_options : dict
        For fsspec; may have secrets.
    version : str or None
        Stated by the user, beside what is found.
    """

    name: str
    urls: tuple[str, ...] = field(repr=False)
    location: Location
    engine: str | None = None
    chunks: Any = field(default_factory=dict)
    xarray_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    combining: Mapping[str, Any] = field(default_factory=dict)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    version: str | None = None

    @property
    def several(self) -> bool:
        """Whether it may be more than one file or store; that of a pattern only its pool can tell."""
        return len(self.urls) > 1 or bool(self.combining) or any(is_pattern(url) for url in self.urls)

    @property
    def shown(self) -> str:
        """The URLs, for messages."""
        first = public_url(self.urls[0])
        return first if len(self.urls) == 1 else f"{first} and {len(self.urls) - 1} more"


def entry_of(
    urlpath: Any,
    *,
    name: str | None = None,
    data_centre: str | None = None,
    said_in: str = "data_centre of the entry",
    data_centres: DataCentres | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    engine: str | None = None,
    chunks: Any = None,
    xarray_kwargs: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    version: str | None = None,
) -> Entry:
    """Check what a user or a catalogue says about a dataset, and locate it.

    Parameters
    ----------
    urlpath : str, path, or list of them
    name : str, optional
        By default the last part of the path.
    data_centre, said_in, data_centres
        As in `intake_pools.locate.locate`.
    engine, chunks, xarray_kwargs, storage_options, version
        As in `Entry`. An engine in `xarray_kwargs` beats `engine`.

    Raises
    ------
    EntryError
        If an argument cannot be what it is meant to be; the message says what would do.
    MixedPoolsError
        If the URLs live in several data centres.
    UnlocatedError, DataCentresError
        As in `locate`.
    """
    urls = _urls(urlpath)
    name = name or _last_part(urls[0])
    location = _location(urls, name, data_centre, said_in, data_centres)
    targets.remember(data_centres)
    options = dict(_mapping(storage_options, "storage_options", name))
    kwargs = dict(_mapping(xarray_kwargs, "xarray_kwargs", name))
    for key in kwargs:
        if key in _DECIDED_HERE:
            raise EntryError(f"xarray_kwargs of {name} has {key!r}: {_DECIDED_HERE[key]}.")
    combining = {key: kwargs.pop(key) for key in COMBINING if key in kwargs}
    # Files are opened beside each other in any case.
    combining.pop("parallel", None)
    engine = kwargs.pop("engine", None) or engine
    if engine is not None and not isinstance(engine, str):
        raise EntryError(f"engine of {name} is {engine!r}; it should be the name of one, such as 'netcdf4'.")
    if version is not None and not isinstance(version, str | int | float):
        raise EntryError(f"version of {name} is {version!r}; it should be a word or a number.")
    return Entry(
        name=name,
        urls=urls,
        location=location,
        engine=engine,
        chunks=_chunks(chunks, name),
        xarray_kwargs=kwargs,
        combining=combining,
        storage_options=options,
        version=None if version is None else str(version),
    )


def _urls(urlpath: Any) -> tuple[str, ...]:
    several = list(urlpath) if isinstance(urlpath, list | tuple) else [urlpath]
    for one in several:
        if not isinstance(one, str | os.PathLike) or not os.fspath(one):
            raise EntryError(f"urlpath has {one!r}; it should be a path or URL, or a list of them.")
    if not several:
        raise EntryError("urlpath is an empty list; it should have at least one path or URL.")
    return tuple(_tidy(str(os.fspath(one))) for one in several)


def _tidy(url: str) -> str:
    """Leave out the double slash that ``{{ CATALOG_DIR }}/x`` leaves in a path."""
    for scheme in ("file://", "local://"):
        if url.startswith(scheme):
            url = "/" + url.removeprefix(scheme).lstrip("/")
    return url if "://" in url or "::" in url else re.sub("/{2,}", "/", url)


def is_local(url: str) -> bool:
    """Whether it is a path, and no URL."""
    return "://" not in url and "::" not in url


def is_pattern(url: str) -> bool:
    """Whether a path or URL may stand for several."""
    return any(sign in url for sign in "*[") or (is_local(url) and "?" in url)


def _last_part(url: str) -> str:
    return public_url(url).rstrip("/").rpartition("/")[2] or url


def _location(
    urls: Sequence[str], name: str, data_centre: str | None, said_in: str, data_centres: Any
) -> Location:
    found = [locate(url, data_centre, data_centres, said_in=said_in) for url in urls]
    if len(pools := {one.data_centre for one in found}) > 1:
        raise MixedPoolsError(f"urlpath of {name}", pools)
    return found[0]


def _mapping(given: Any, what: str, name: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise EntryError(f"{what} of {name} is {given!r}; it should be a mapping of names to values.")
    return given


def _chunks(given: Any, name: str) -> Any:
    if given is None:
        return {}
    if given == "auto" or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if isinstance(given, Mapping):
        sizes = {}
        for dim, size in given.items():
            if isinstance(size, list):
                size = tuple(size)
            if isinstance(size, bool) or not (size is None or isinstance(size, int | str | tuple)):
                raise EntryError(
                    f"chunks of {name} has {dim!r}: {size!r}; it should be a number, 'auto' or a list."
                )
            sizes[dim] = size
        return sizes
    raise EntryError(
        f"chunks of {name} is {given!r}; it should be a mapping of dimensions to sizes, a number or 'auto'."
    )


def unknown_argument(driver: str, unknown: str, known: Iterable[str], urlpath: Any) -> EntryError:
    """Error for an argument that a driver does not have."""
    known = sorted(known)
    near = difflib.get_close_matches(unknown, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = public_url(str(urlpath)) if urlpath else "an entry"
    return EntryError(
        f"{driver} has no argument {unknown!r} (of {shown}).{hint} It has: {', '.join(known)}. Options for "
        "xarray go into xarray_kwargs, those for the file system into storage_options."
    )


# What names a secret, in an option or in the query of a URL.
_SECRET = re.compile(
    r"secret|passw|token|credential|auth|signature|^sig$|session|cookie|header|sas|cert|connection_?string"
    r"|(^|_)key|key$|^user",
    re.IGNORECASE,
)
_HIDDEN = "***"


def public_options(options: Any, objects: bool = False) -> Any:
    """Copy options with every secret hidden, at any depth.

    Parameters
    ----------
    options : mapping, list, or anything in them
    objects : bool, optional
        Whether what is none of YAML's types is kept, as a name made of it needs; else its type is shown.
    """
    if isinstance(options, Mapping):
        return {
            str(key): _HIDDEN if _SECRET.search(str(key)) else public_options(value, objects)
            for key, value in options.items()
        }
    if isinstance(options, list | tuple):
        return [public_options(value, objects) for value in options]
    if isinstance(options, str):
        return public_url(options)
    if objects or options is None or isinstance(options, bool | int | float | date):
        return options
    return type(options).__name__


def public_url(url: str) -> str:
    """Leave the credentials out of a path or URL, before the host and in the query."""
    url = re.sub(r"(?<=://)[^/@?#\s]*@", "", url)

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}={_HIDDEN}" if _SECRET.search(found[2]) else found[0]

    return re.sub(r"([?&])([^=&#]+)=[^&#\s]*", hidden, url)


def scrub(text: str, entry: Entry) -> str:
    """Take the secrets of an entry out of a text that others wrote, such as the message of an exception."""
    secrets = _secrets([entry.storage_options, entry.xarray_kwargs], hidden=False)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for url in entry.urls:
        text = text.replace(url, public_url(url))
    return public_url(text)


def _secrets(options: Any, hidden: bool) -> set[str]:
    found: set[str] = set()
    if isinstance(options, Mapping):
        for key, value in options.items():
            found |= _secrets(value, hidden or bool(_SECRET.search(str(key))))
    elif isinstance(options, list | tuple):
        for value in options:
            found |= _secrets(value, hidden)
    # Shorter ones would hide half of every text.
    elif hidden and isinstance(options, str) and len(options) >= 4:
        found.add(options)
    return found
