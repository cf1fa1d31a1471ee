"""The data-centres file: which data centre hosts which paths and URLs.

One schema and one parser for it. A file reads::

    data_centres:
      ecmwf:
        prefixes: [/data/ecmwf/, "s3://ecmwf-"]
      eumetsat:
        prefixes: [/data/eumetsat/, "s3://eumetsat-archive/level-2"]

The longest matching prefix wins. A prefix matches whole components: ``/data/ecmwf`` hosts ``/data/ecmwf`` and
what is below it, but not ``/data/ecmwf2``; ``s3://bucket/a`` not ``s3://bucket/ab``. The one exception is the
stem of bucket names: a URL without a path that ends in ``-``, ``_``, ``.`` or directly after ``://``, as
``s3://ecmwf-`` does. No bucket's own name ends so, and every bucket whose name begins so is meant.
Paths and URLs are normalised before they are compared, so ``/data/ecmwf/../other`` is below ``/data``.

This module knows neither catalogues nor workers.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import dask
import yaml
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, field_validator

from dask_pools.errors import DataCentresError
from dask_pools.pins import check_name

__all__ = ["DataCentre", "DataCentres", "Place", "Rule", "default", "load", "parse", "read"]


class Place(NamedTuple):
    """A path or URL in the one form in which places are compared.

    Attributes
    ----------
    scheme, authority : str
        ``s3`` and ``bucket`` of ``s3://bucket/key``; both empty for a path.
    path : str
        Without a slash at the end; of a relative path, it does not begin with one.
    """

    scheme: str
    authority: str
    path: str

    @property
    def relative(self) -> bool:
        """Whether it is a path relative to some working directory."""
        return not self.scheme and not self.path.startswith("/")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}" if self.scheme else self.path or "/"

    def enclosing(self) -> Iterator[str]:
        """Every prefix that may host this place, the longest first."""
        if self.relative:
            return
        root = f"{self.scheme}://{self.authority}" if self.scheme else ""
        path = self.path
        while path:
            yield root + path
            path = path.rpartition("/")[0]
        yield root or "/"
        if self.scheme and self.scheme not in _WEB:
            for end in range(len(self.authority), -1, -1):
                stem = f"{self.scheme}://{self.authority[:end]}"
                if not stem[-1].isalnum():
                    yield stem + _STEM


_WEB = {"http", "https"}
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs"}
_PORTS = {"http": ":80", "https": ":443"}
# What tells the prefix "s3://ecmwf-" from a bucket that is really called "ecmwf-"; in no URL.
_STEM = "\0"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def place_of(url: str) -> Place:
    """Normalise a path or URL.

    Of a chain (``simplecache::s3://…``) the last link counts, since there the data is. Credentials, queries
    and fragments are left out.
    """
    url = url.rpartition("::")[2]
    found = _SCHEME.match(url)
    if not found:
        return Place("", "", _normal_path(url))
    scheme = found[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    if scheme in _WEB:
        parts = urlsplit(url)
        # A server reads %2e as a dot.
        path = re.sub("%2[eE]", ".", parts.path)
        authority = parts.netloc.rpartition("@")[2].lower().removesuffix(_PORTS[scheme])
        return Place(scheme, authority, _normal_path("/" + path).rstrip("/"))
    rest = url[found.end() :]
    if scheme in {"file", "local"}:
        return Place("", "", _normal_path("/" + rest.removeprefix("localhost/")))
    authority, slash, path = rest.partition("/")
    authority = authority.rpartition("@")[2]
    return Place(scheme, authority, _normal_path(slash + path).rstrip("/"))


def _normal_path(path: str) -> str:
    if not path:
        return ""
    normal = posixpath.normpath(path)
    if normal.startswith("/"):
        # POSIX lets two leading slashes stand.
        normal = "/" + normal.lstrip("/")
    return "" if normal == "/" else normal


@dataclass(frozen=True)
class Rule:
    """One rule that says which data centre hosts what.

    Attributes
    ----------
    data_centre : str
    prefix : str
        As it was written.
    origin : str
        The file, or what else the rule comes from.
    line : int or None
        In that file, from 1.
    """

    data_centre: str
    prefix: str
    origin: str
    line: int | None = None

    def __str__(self) -> str:
        where = self.origin if self.line is None else f"{self.origin}, line {self.line}"
        return f"prefix {self.prefix} ({where})"


class DataCentre(BaseModel):
    """What the file says about one data centre.

    Attributes
    ----------
    prefixes : tuple of str
        Absolute paths and URLs below which it hosts everything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prefixes: tuple[str, ...] = ()

    @field_validator("prefixes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("prefixes")
    @classmethod
    def _proper(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            _form(prefix)
        return prefixes


class DataCentres(BaseModel):
    """The content of a data-centres file.

    Attributes
    ----------
    data_centres : dict of str to DataCentre
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data_centres: dict[str, DataCentre]

    _origin: str = PrivateAttr(default="the data centres given")
    _rules: dict[str, Rule] = PrivateAttr(default_factory=dict)

    @field_validator("data_centres")
    @classmethod
    def _named(cls, value: dict[str, DataCentre]) -> dict[str, DataCentre]:
        for name in value:
            check_name(name)
        return value

    @property
    def names(self) -> list[str]:
        """Names of the data centres, sorted."""
        return sorted(self.data_centres)

    @property
    def origin(self) -> str:
        """The file, or what else this comes from, for messages."""
        return self._origin

    @property
    def rules(self) -> list[Rule]:
        """Every rule, in the order of the file."""
        return list(self._rules.values())

    def matches(self, url: str) -> list[Rule]:
        """Rules that match a path or URL, the deciding one first."""
        return [rule for prefix in place_of(url).enclosing() if (rule := self._rules.get(prefix))]

    def nearest(self, url: str) -> Rule | None:
        """Find the rule whose prefix looks most like the beginning of `url`, if one looks alike at all."""
        place = str(place_of(url))

        def likeness(rule: Rule) -> float:
            prefix = str(place_of(rule.prefix))
            return difflib.SequenceMatcher(None, prefix, place[: len(prefix)]).ratio()

        best = max(self.rules, key=likeness, default=None)
        return best if best is not None and likeness(best) >= 0.6 else None

    def _index(self, origin: str, lines: Mapping[tuple[Any, ...], int]) -> None:
        self._origin = origin
        for name, data_centre in self.data_centres.items():
            for number, prefix in enumerate(data_centre.prefixes):
                line = lines.get(("data_centres", name, "prefixes", number))
                rule = Rule(name, prefix, origin, line)
                form = _form(prefix)
                if other := self._rules.get(form):
                    raise DataCentresError(
                        f"{_at(origin, line)}: prefix {prefix!r} of data centre {name!r} is also a prefix of "
                        f"{other.data_centre!r}: {other}. A prefix belongs to one data centre; "
                        "remove one of the two or make it longer."
                    )
                self._rules[form] = rule


def _form(prefix: str) -> str:
    """Bring a prefix into the form in which it is looked up.

    Raises
    ------
    ValueError
        If nothing could ever match it.
    """
    if not prefix.strip():
        raise ValueError("a prefix is empty; write an absolute path or a URL, such as /data/ or s3://bucket")
    place = place_of(prefix)
    if place.relative or "::" in prefix or prefix.startswith("~"):
        raise ValueError(f"{prefix!r} is neither an absolute path nor a URL, such as /data/ or s3://bucket")
    if place.scheme in _WEB:
        if not place.authority[-1:].isalnum():
            raise ValueError(f"{prefix!r} has no whole host name; the beginning of one cannot be a prefix")
        return str(place)
    # "s3://ecmwf-/", on the other hand, is one bucket of that odd name.
    open_end = not place.authority or not (place.authority[-1].isalnum() or prefix.endswith("/"))
    return str(place) + _STEM if place.scheme and not place.path and open_end else str(place)


def parse(text: str, origin: str) -> DataCentres:
    """Read the text of a data-centres file.

    Parameters
    ----------
    text : str
    origin : str
        The file's name, for messages.

    Raises
    ------
    DataCentresError
        With file, line, key and what is allowed.
    """
    loader = yaml.SafeLoader(text)
    lines: dict[tuple[Any, ...], int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise DataCentresError(f"{origin} is empty. It should read: {_SHAPE}")
        _walk(node, (), lines, origin, ())
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise DataCentresError(f"{yaml_complaint(error, origin)} It should read: {_SHAPE}") from None
    finally:
        loader.dispose()
    return _validate(data, origin, lines)


_SHAPE = "data_centres: {NAME: {prefixes: [/data/, 's3://bucket']}}"


def yaml_complaint(error: yaml.YAMLError, origin: str) -> str:
    """Say in one sentence where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    if mark is None:
        return f"{origin} is not well-formed YAML: {problem}."
    return f"{origin}, line {mark.line + 1}, column {mark.column + 1}: not well-formed YAML: {problem}."


def _walk(
    node: yaml.Node,
    path: tuple[Any, ...],
    lines: dict[tuple[Any, ...], int],
    origin: str,
    above: tuple[yaml.Node, ...],
) -> None:
    """Note the line of every key and item; refuse what YAML would pass over in silence."""
    if any(node is one for one in above):
        raise DataCentresError(f"{_at(origin, node.start_mark.line + 1)}: an alias contains itself.")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*path, number)] = item.start_mark.line + 1
            _walk(item, (*path, number), lines, origin, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key_node, value in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise DataCentresError(f"{_at(origin, line)}: a key must be a plain word.")
            if key in seen:
                raise DataCentresError(
                    f"{_at(origin, line)}: key {_dotted((*path, key))!r} is there twice, first on line "
                    f"{seen[key]}. Keep one."
                )
            seen[key] = line
            lines[(*path, key)] = line
            _walk(value, (*path, key), lines, origin, above)


def _validate(data: Any, origin: str, lines: Mapping[tuple[Any, ...], int]) -> DataCentres:
    try:
        model = DataCentres.model_validate(data)
    except ValidationError as error:
        complaints = "\n".join(
            _complaint(one["type"], one["loc"], one["msg"], one["input"], origin, lines)
            for one in error.errors(include_url=False)
        )
        raise DataCentresError(complaints) from None
    model._index(origin, lines)
    return model


def _complaint(
    kind: str,
    at: tuple[Any, ...],
    message: str,
    value: Any,
    origin: str,
    lines: Mapping[tuple[Any, ...], int],
) -> str:
    where = _at(origin, next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), None))
    key = _dotted(at)
    if kind == "extra_forbidden":
        allowed = list((DataCentres if len(at) == 1 else DataCentre).model_fields)
        near = difflib.get_close_matches(str(at[-1]), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key {key!r}.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        return f"{where}: key {key!r} is missing. The file should read: {_SHAPE}"
    if kind == "value_error":
        return f"{where}: {key}: {message.removeprefix('Value error, ')}"
    expected = _EXPECTED.get(kind, message)
    return f"{where}: {key or 'the file'} should be {expected}, not {value!r}. It should read: {_SHAPE}"


_EXPECTED = {
    "tuple_type": "a list of paths and URLs",
    "string_type": "a path or URL",
    "dict_type": "a mapping of names to data centres",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _at(origin: str, line: int | None) -> str:
    return origin if line is None else f"{origin}, line {line}"


def read(path: str | os.PathLike[str]) -> DataCentres:
    """Read a data-centres file, on disk or at any URL that fsspec knows.

    Raises
    ------
    DataCentresError
        If it is not there, cannot be read, or is wrong.
    """
    name = os.path.expanduser(os.fspath(path))
    try:
        if _SCHEME.match(name):
            import fsspec

            with fsspec.open(name, "rt", encoding="utf-8") as file:
                text = file.read()
        else:
            text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataCentresError(f"The data-centres file {name} cannot be read: {reason}.") from None
    return parse(text, name)


def load(given: DataCentres | str | os.PathLike[str] | Mapping[str, Any]) -> DataCentres:
    """Get data centres from a file's path or URL, from a mapping of the same content, or as they are."""
    if isinstance(given, DataCentres):
        return given
    if isinstance(given, Mapping):
        return _validate(dict(given), "the data centres given", {})
    return read(given)


def default() -> DataCentres | None:
    """Get the data centres of the file that `dask.config` names (``pools.data-centres``), or None."""
    given = dask.config.get("pools.data-centres", None)
    return None if given is None else load(given)
