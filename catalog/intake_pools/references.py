"""Sets of references (kerchunk's, as JSON or parquet) to pieces of other files, read as one zarr store.

A chunk that a set does not have is a fill value. So everything that a set has and that cannot be had must be
an error, and not an absent chunk: targets that are gone, parts of a set that are broken, pieces that would
have to be generated. A set is data: templates in it are filled in as text, and never run.

It knows neither versions of zarr nor pools.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from dask.base import tokenize

from dask_pools.errors import EntryError
from intake_pools.marks import marks_of
from intake_pools.urls import document_of, public_url

__all__ = ["BrokenReferences", "References", "file_system", "load", "located"]

# Sets that are kept in memory, since looking at the version of one takes its content.
_KEPT = 4
_kept: OrderedDict[str, References] = OrderedDict()
_lock = threading.Lock()


class BrokenReferences(Exception):
    """Part of a set of references cannot be read; its chunks would look as if they had never been written."""


@dataclass(frozen=True)
class References:
    """A set of references.

    Attributes
    ----------
    document : str or None
        Path or URL of the JSON file or parquet directory; None if it is written out in the options.
    content : dict or None
        Of JSON; None of parquet.
    marks : tuple of str
        What tells one state of the document from another.
    fs, path
        Of the document.
    """

    document: str | None
    content: Mapping[str, Any] | None = field(repr=False)
    marks: tuple[str, ...] = ()
    fs: Any = field(default=None, repr=False)
    path: str = ""

    def targets(self) -> list[str]:
        """URLs of the files that it refers to, each once; of parquet only the first, for they can be many."""
        if self.content is None:
            mapper = _parquet(self.path, self.fs)
            return next(([one[0]] for one in mapper.values() if isinstance(one, list) and one[0]), [])
        refs = self.content.get("refs", self.content) if "version" in self.content else self.content
        templates = self.content.get("templates") or {}
        found: dict[str, None] = {}
        for one in refs.values():
            if isinstance(one, list) and one and isinstance(one[0], str):
                url = one[0]
                for name, text in templates.items() if "{{" in url else ():
                    url = url.replace("{{" + name + "}}", text)
                found[url] = None
        return list(found)


def load(url: str, options: Mapping[str, Any]) -> References:
    """Read the set of references that a URL names, if it is not the one that was read last.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    EntryError
        If it is no set of references, or one that could only be read by running what it says.
    """
    import fsspec

    fo, own = document_of(url, options)
    if isinstance(fo, Mapping):
        return References(None, _screened(fo, "its options"), (str(tokenize(fo)),))
    compression = own.pop("compression", "infer")
    fs, path = fsspec.url_to_fs(fo, **own)
    fs.invalidate_cache()
    if not path.endswith((".json", ".json.zst", ".json.gz")) and (
        path.endswith((".parq", ".parquet")) or fs.isdir(path)
    ):
        listing = fs.find(path.rstrip("/"), detail=True)
        if not listing:
            raise FileNotFoundError(path)
        return References(
            fo,
            None,
            tuple(f"{name}-{marks_of(info)}" for name, info in listing.items()),
            fs,
            path.rstrip("/"),
        )
    state = marks_of(fs.info(path))
    key = str(tokenize(fo, own, state))
    with _lock:
        if state and (kept := _kept.get(key)) is not None:
            _kept.move_to_end(key)
            return kept
    with fsspec.open(fo, "rb", compression=compression, **own) as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise EntryError(f"{public_url(fo)} is no JSON: {error}") from None
    read = References(fo, _screened(content, public_url(fo)), (state,), fs, path)
    with _lock:
        _kept[key] = read
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return read


def located(found: References, options: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the whole URL of each file that references point to, and the options for its file system.

    Parameters
    ----------
    found : References
    options : mapping
        For the file system of references.
    """
    known = options.get("fs")
    for url in found.targets():
        if "://" not in url and (protocol := options.get("remote_protocol")) not in (None, "file", "local"):
            url = f"{protocol}://{url}"
        protocol = url.partition("://")[0] if "://" in url else "file"
        own = known.get(protocol) if isinstance(known, Mapping) else options.get("remote_options")
        yield url, own if isinstance(own, Mapping) else {}


def _screened(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not isinstance(content.get("refs", {}), Mapping):
        raise EntryError(f"{where} is no set of references: it should be a mapping, as kerchunk writes it")
    if content.get("gen"):
        raise EntryError(
            f"{where} has references that have to be generated (`gen`), which is not done, since their "
            "chunks would be fill values. Write them out, as kerchunk "
            "does"
        )
    templates = content.get("templates") or {}
    if not isinstance(templates, Mapping) or any("{" in str(text) for text in templates.values()):
        raise EntryError(f"{where} has templates that are themselves to be filled in, which is not done")
    for one in content.get("refs", content).values() if templates else ():
        url = one[0] if isinstance(one, list) and one else ""
        for part in str(url).split("{{")[1:]:
            if part.partition("}}")[0] not in templates:
                raise EntryError(
                    f"{where} has the template {{{{{part.partition('}}')[0]}}}}}, which it does not define"
                )
    return content


def file_system(found: References, options: Mapping[str, Any]) -> Any:
    """Make the file system in which each key of a set of references is a file.

    Parameters
    ----------
    found : References
    options : mapping
        For `fsspec.implementations.reference.ReferenceFileSystem`.
    """
    wanted = (
        "target", "remote_protocol", "remote_options", "fs", "max_gap", "max_block", "template_overrides",
    )  # fmt: skip
    own = {name: options[name] for name in wanted if options.get(name) is not None}
    content = _parquet(found.path, found.fs) if found.content is None else dict(found.content)
    return _file_system_class()(content, **own)


@cache  # not when this module is imported: most catalogues have no references
def _file_system_class() -> Any:
    from fsspec.implementations.reference import ReferenceFileSystem

    class Pieces(ReferenceFileSystem):  # type: ignore[misc]  # fsspec publishes no types
        """References whose pieces are as long as they are said to be.

        A server that knows no ranges sends the whole file for each piece, a file that has been cut short
        sends less; uncompressed, either could pass for a chunk.
        """

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
            found = super().cat_file(path, start, end, **kwargs)
            target, first, last = self._cat_common(path, start, end)
            if not isinstance(target, bytes) and last is not None and len(found) != last - (first or 0):
                more = "; its server sends no parts of a file" if len(found) > last - (first or 0) else ""
                raise BrokenReferences(
                    f"{public_url(str(target))} gave {len(found)} bytes for {path}, which are "
                    f"{last - (first or 0)}{more}"
                )
            return found

    return Pieces


@cache
def _parquet_class() -> Any:
    from fsspec.implementations.reference import LazyReferenceMapper

    class Parquet(LazyReferenceMapper):  # type: ignore[misc]  # fsspec publishes no types
        """References in parquet; what was there once and cannot be read is an error.

        fsspec takes a file of references that is gone or broken for one that was never written.
        """

        def setup(self) -> None:
            super().setup()
            root = self.root
            there = [path.partition(root)[2] for path in self.fs.find(root)]
            read = self.__dict__["open_refs"]

            def open_refs(field: str, record: int) -> Any:
                path = self.url.format(field=field, record=record)
                try:
                    found = read(field, record)
                except FileNotFoundError:
                    if path.removeprefix(root) in there:
                        raise BrokenReferences(
                            f"{public_url(path)}, a part of the references, is gone"
                        ) from None
                    raise  # none of its chunks was ever written
                except Exception as error:
                    raise BrokenReferences(f"{public_url(path)} cannot be read: {error}") from error
                if found is None:
                    raise BrokenReferences(f"{public_url(path)} cannot be read")
                return found

            self.__dict__["open_refs"] = open_refs

    return Parquet


def _parquet(root: str, fs: Any) -> Any:
    engine = "pyarrow" if find_spec("pyarrow") is not None else "fastparquet"
    return _parquet_class()(root, fs, engine=engine)
