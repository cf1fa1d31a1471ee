"""One entry of a catalogue as plain data: what to open, how, and where it lives.

Checks what can be checked without the data. Secrets in options and URLs travel to the workers, but are in no
name, repr or message.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dask_pools import targets
from dask_pools.errors import EntryError
from intake_pools.icechunk_stores import REFERENCES, split
from intake_pools.locate import Location, locate, rules_of
from intake_pools.urls import (
    document_of,
    fields_in,
    glob_of,
    is_pattern,
    is_references,
    public_options,
    public_url,
    without_secrets,
)

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["Entry", "entry_of", "refuse_writing", "scrub"]

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
    "store": "that is `urlpath`",
    **dict.fromkeys(("driver", "driver_kwds", "open_kwargs"), "how a library opens a file is known here"),
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
    residency : str or None
        ``"stay"`` if its raw chunks may not leave its pool.
    parts : tuple of Entry
        Of an entry that spans data centres: its URLs in order, cut wherever the data centre changes, each
        part an entry in one place. Empty if all is in one place. `urls` has them all, `location` is the
        first part's.
    patterns : tuple of str
        URLs with fields (``{year:d}_{model}.nc``), of which the values in the names of files become
        coordinates; `urls` has them with ``*``.
    replicas : tuple of Entry
        Of an entry that exists more than once: each copy, this one first, in the order in which they are
        stated. Empty if there is one copy. A copy may have parts, but no copies.
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
    residency: str | None = None
    parts: tuple[Entry, ...] = ()
    replicas: tuple[Entry, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether its raw chunks may not leave its pool."""
        return self.residency == "stay"

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
    urlpath: Any = None,
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
    residency: str | None = None,
    parts: Any = None,
    replicas: Any = None,
    path_as_pattern: bool | str = True,
) -> Entry:
    """Check what a user or a catalogue says about a dataset, and locate it.

    Parameters
    ----------
    urlpath : str, path, or list of them
        If those of a list live in several data centres, the entry has parts.
    name : str, optional
        By default the last part of the path.
    data_centre, said_in, data_centres
        As in `intake_pools.locate.locate`.
    engine, chunks, xarray_kwargs, storage_options, version
        As in `Entry`. An engine in `xarray_kwargs` beats `engine`.
    residency : str, optional
        ``"stay"`` if raw chunks may not leave the pool, ``"free"`` if they may, whatever the data-centres
        file says; by default what it says of the data centre.
    parts : list of str or mapping, optional
        In place of `urlpath`: the URLs of each part, or what differs for it: ``urlpath``, ``data_centre``,
        ``said_in``, ``storage_options``, ``version``.
    replicas : list of str or mapping, optional
        URLs of further copies of the same data, or what differs for them: as of `parts`, and ``engine``,
        ``chunks``, ``xarray_kwargs`` and ``parts``.
    path_as_pattern : bool or str, optional
        Whether ``{field}`` in a URL stands for any text, which becomes a coordinate; or the pattern that the
        files that are listed or matched have.

    Raises
    ------
    EntryError
        If an argument cannot be what it is meant to be; the message says what would do.
    UnlocatedError, DataCentresError
        As in `locate`.
    """
    own: dict[str, Any] = {
        "urlpath": urlpath,
        "data_centre": data_centre,
        "said_in": said_in,
        "engine": engine,
        "chunks": chunks,
        "xarray_kwargs": xarray_kwargs,
        "storage_options": storage_options,
        "version": version,
        "residency": residency,
        "parts": parts,
        "path_as_pattern": path_as_pattern,
    }
    targets.remember(data_centres)
    copies = [dict(one) for one in _several(replicas, "replicas", _REPLICA, name)]
    if urlpath is not None or parts is not None or not copies:
        copies.insert(0, {})
    made = [
        _copy_of({**own, "urlpath": None, "parts": None, **one} if one else own, name, data_centres)
        for one in copies
    ]
    return made[0] if len(made) == 1 else replace(made[0], replicas=tuple(made))


_PART = ("urlpath", "data_centre", "said_in", "storage_options", "version")
_REPLICA = (*_PART, "engine", "chunks", "xarray_kwargs", "parts")


def _several(given: Any, what: str, allowed: Sequence[str], name: str | None) -> list[Mapping[str, Any]]:
    """List what is said of each part or replica."""
    if given is None:
        return []
    if not isinstance(given, list | tuple) or not given:
        raise EntryError(
            f"{what} of {name or 'an entry'} is {_shown(given)}; it should be a list of URLs, or of mappings "
            f"with urlpath and what else differs: {', '.join(allowed[1:])}."
        )
    said: list[Mapping[str, Any]] = []
    for one in given:
        if not isinstance(one, Mapping):
            said.append({"urlpath": one})
            continue
        if unknown := [key for key in one if key not in allowed]:
            raise EntryError(
                f"{what} of {name or 'an entry'} has {_shown(unknown[0])}, which is none of: "
                f"{', '.join(allowed)}."
            )
        said.append(one)
    return said


def _shown(value: Any) -> str:
    return repr(public_options(value))


def _copy_of(said: Mapping[str, Any], name: str | None, data_centres: Any) -> Entry:
    """One copy of an entry: in one place, or of parts."""
    pieces = _several(said["parts"], "parts", _PART, name)
    if pieces and said["urlpath"] is not None:
        raise EntryError(
            f"{name or 'an entry'} has both urlpath and parts; put the URLs of urlpath into parts, in order."
        )
    runs = [part for piece in pieces or [{}] for part in _in_one_place({**said, **piece}, name, data_centres)]
    if len(runs) == 1:
        return runs[0]
    runs = [replace(part, name=runs[0].name) for part in runs]
    urls = tuple(url for part in runs for url in part.urls)
    return replace(runs[0], urls=urls, parts=tuple(runs))


def _in_one_place(said: Mapping[str, Any], name: str | None, data_centres: Any) -> Iterator[Entry]:
    """Make an entry of every stretch of the URLs that lives in one data centre."""
    urls = _urls(said["urlpath"], name or "an entry")
    said_name = name
    name = name or _last_part(urls[0])
    options = dict(_mapping(said["storage_options"], "storage_options", name))
    kwargs = dict(_mapping(said["xarray_kwargs"], "xarray_kwargs", name))
    combining = {key: kwargs.pop(key) for key in COMBINING if key in kwargs}
    # Files are opened beside each other in any case.
    combining.pop("parallel", None)
    engine = kwargs.pop("engine", None) or said["engine"]
    if isinstance(nested := kwargs.get("backend_kwargs"), Mapping) and "storage_options" in nested:
        # Where xarray takes them from a URL; here it gets stores and files that are open.
        options = {**_mapping(nested["storage_options"], "storage_options", name), **options}
        kwargs["backend_kwargs"] = {key: one for key, one in nested.items() if key != "storage_options"}
    _refuse_decided(kwargs, name)
    if engine == "kerchunk":  # of the package; it is zarr from references
        engine = "zarr"
        urls = tuple(url if is_references(url) else f"reference::{url}" for url in urls)
    urls, options, kwargs = _of_icechunk(urls, options, kwargs, name)
    if urls == ("reference://",) and isinstance(options.get("fo"), str):
        urls = (f"reference::{document_of(urls[0], options)[0]}",)
        options = {key: one for key, one in options.items() if key not in ("fo", "target_protocol")}
    name = said_name or _last_part(urls[0])
    if engine is not None and not isinstance(engine, str):
        raise EntryError(f"engine of {name} is {engine!r}; it should be the name of one, such as 'netcdf4'.")
    patterns = _patterns(urls, said["path_as_pattern"], name)
    if patterns and said["path_as_pattern"] is True:
        urls = tuple(glob_of(url) for url in urls)
    version = said["version"]
    if version is not None and not isinstance(version, str | int | float):
        raise EntryError(f"version of {name} is {version!r}; it should be a word or a number.")
    chunks = _chunks(said["chunks"], name)
    found = [
        (
            url,
            locate(url, said["data_centre"], data_centres, said_in=said["said_in"], storage_options=options),
        )
        for url in urls
    ]
    for _, run in groupby(found, key=lambda one: one[1].data_centre):
        located = list(run)
        location = located[0][1]
        yield Entry(
            name=name,
            urls=tuple(url for url, _ in located),
            location=location,
            engine=engine,
            chunks=chunks,
            xarray_kwargs=kwargs,
            combining=combining,
            storage_options=options,
            version=None if version is None else str(version),
            patterns=patterns,
            residency=_residency(said["residency"], name, location.data_centre, data_centres),
        )


def _refuse_decided(kwargs: Mapping[str, Any], name: str) -> None:
    for given in (kwargs, kwargs.get("backend_kwargs")):
        for key in given if isinstance(given, Mapping) else ():
            if key in _DECIDED_HERE:
                raise EntryError(f"xarray_kwargs of {name} has {key!r}: {_DECIDED_HERE[key]}.")
    refuse_writing(kwargs, name)


def refuse_writing(kwargs: Any, name: str) -> None:
    """Refuse options for `xarray.open_dataset` with which a library would write to what it opens.

    Raises
    ------
    EntryError
    """
    if isinstance(kwargs, Mapping):
        # With "w", to open a file is to empty it.
        if kwargs.get("mode", "r") != "r":
            raise EntryError(
                f"xarray_kwargs of {name} has mode {kwargs['mode']!r:.80}: what an entry names is only read."
            )
        refuse_writing(kwargs.get("backend_kwargs"), name)


def _of_icechunk(
    urls: tuple[str, ...], options: dict[str, Any], kwargs: dict[str, Any], name: str
) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    """Take URLs of Icechunk apart: what state is meant becomes an option, the group one of xarray's."""
    if not any("|" in url for url in urls):
        return urls, options, kwargs
    parts = [split(url) for url in urls]
    if any(one[1:] != parts[0][1:] for one in parts):
        raise EntryError(
            f"the URLs of {name} say different things after |icechunk:; make each a part of its own."
        )
    _, reference, group = parts[0]
    said = [one for one in REFERENCES if options.get(one) is not None]
    if reference and said:
        raise EntryError(f"{name} has both |icechunk: in its URL and {said[0]} in its storage_options.")
    return (
        tuple(_tidy(url) for url, _, _ in parts),
        {**options, **reference},
        {"group": group, **kwargs} if group else kwargs,
    )


def _patterns(urls: tuple[str, ...], asked: Any, name: str) -> tuple[str, ...]:
    """Find the patterns with fields by which an entry's files are named."""
    if asked is None or asked is False:
        return ()
    if isinstance(asked, str):
        found: tuple[str, ...] = (_tidy(asked),)
        if not fields_in(asked):
            raise EntryError(f"path_as_pattern of {name} is {asked!r}, which has no field such as {{year}}.")
    elif asked is True:
        found = tuple(url for url in urls if fields_in(url))
    else:
        raise EntryError(f"path_as_pattern of {name} is {asked!r}; it should be true, false or a pattern.")
    for pattern in found:
        if "*" in pattern or "::" in pattern:
            raise EntryError(
                f"the pattern {public_url(pattern)} of {name} has fields beside * or ::, so that their "
                "values cannot be told. Give every changing part a name, or set path_as_pattern: false."
            )
    return found


def _residency(given: Any, name: str, data_centre: str, data_centres: Any) -> str | None:
    """``"stay"``, or None, of an entry in one data centre."""
    if given not in (None, "stay", "free"):
        raise EntryError(
            f"residency of {name} is {_shown(given)}; it should be 'stay' (raw chunks may not leave the "
            "pool) or 'free'."
        )
    if given is None:
        known = rules_of(data_centres)
        if known is not None and data_centre in known.data_centres:
            given = known.data_centres[data_centre].residency
    return "stay" if given == "stay" else None


def _urls(urlpath: Any, name: str) -> tuple[str, ...]:
    several = list(urlpath) if isinstance(urlpath, list | tuple) else [urlpath]
    for one in several:
        if not isinstance(one, str | os.PathLike) or not os.fspath(one):
            raise EntryError(
                f"urlpath of {name} has {one!r:.80}; it should be a path or URL, or a list of them."
            )
    if not several:
        raise EntryError(f"urlpath of {name} is an empty list; it should have at least one path or URL.")
    return tuple(_tidy(str(os.fspath(one))) for one in several)


def _tidy(url: str) -> str:
    """Leave out the double slash that ``{{ CATALOG_DIR }}/x`` leaves in a path."""
    for scheme in ("file://", "local://"):
        if url.startswith(scheme):
            url = "/" + url.removeprefix(scheme).lstrip("/")
    return url if "://" in url or "::" in url else re.sub("/{2,}", "/", url)


def _last_part(url: str) -> str:
    return public_url(url).rstrip("/").rpartition("/")[2] or url


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


def scrub(text: str, entry: Entry) -> str:
    """Take the secrets of an entry out of a text that others wrote, such as the message of an exception."""
    return without_secrets(text, [entry.storage_options, entry.xarray_kwargs], entry.urls)
