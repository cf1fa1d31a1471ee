"""Places (paths and URLs in one form) and rules that say which data centre hosts them.

Rules are of several kinds, and the one that says most wins: of those that match a place, the one that covers
the longest stretch of it. An endpoint is the exception: a bucket's name says nothing about another store's
bucket of that name, so where a URL comes with an endpoint that a data centre lists, only its rules count.

This module knows neither files nor catalogues nor workers.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["KINDS", "Place", "Rule", "Rules", "endpoint_of", "form_of", "place_of"]

KINDS = ("prefix", "glob", "host", "endpoint", "region")
"""Kinds of rules; in a data-centres file each is a key of its own, in the plural."""


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

    @property
    def host(self) -> str:
        """The host of a URL, without port; empty for a path, and for what has buckets rather than hosts."""
        if self.scheme in _BUCKETS:
            return ""
        return self.authority.rpartition(":")[0] or self.authority

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
            for sign in reversed([*_SIGN.finditer(self.authority)]):
                yield f"{self.scheme}://{self.authority[: sign.end()]}{_STEM}"
            yield f"{self.scheme}://{_STEM}"

    def components(self) -> list[str]:
        """Get what globs are compared with, one by one: the scheme and authority, then each directory."""
        first = f"{self.scheme}://{self.authority}" if self.scheme else ""
        return [first, *self.path.split("/")[1:]] if self.path else [first]


_WEB = {"http", "https"}
_BUCKETS = {"s3", "gs", "oss", "b2", "oci", "swift"}
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs"}
_PORTS = {"http": ":80", "https": ":443"}
# What tells the prefix "s3://ecmwf-" from a bucket that is really called "ecmwf-"; in no URL.
_STEM = "\0"
# What may stand at the end of the beginning of a name.
_SIGN = re.compile(r"[\W_]")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def place_of(url: str) -> Place:
    """Normalise a path or URL.

    Of a chain (``simplecache::s3://…``) the last link counts, since there the data is. Credentials, queries
    and fragments are left out.
    """
    url = url.rpartition("::")[2]
    found = SCHEME.match(url)
    if not found:
        return Place("", "", _normal_path(url))
    scheme = found[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    if scheme in _WEB:
        try:
            parts = urlsplit(url)
        except ValueError:  # such as an unclosed bracket of an IPv6 address: no host, so no rule matches
            return Place(scheme, "", "")
        path = _as_served(parts.path)
        authority = parts.netloc.rpartition("@")[2].lower().removesuffix(_PORTS[scheme])
        return Place(scheme, authority, _normal_path("/" + path).rstrip("/"))
    rest = url[found.end() :]
    if scheme in {"file", "local"}:
        return Place("", "", _normal_path("/" + rest.removeprefix("localhost/")))
    authority, slash, path = rest.partition("/")
    authority = authority.rpartition("@")[2]
    return Place(scheme, authority, _normal_path(slash + path).rstrip("/"))


# What servers take for dots and slashes, or for nothing: encoded, encoded again for a proxy, of Windows, of
# Tomcat.
_DOT = re.compile(r"%(?:25)*2[eE]")
_SLASH = re.compile(r"%(?:25)*(?:2[fF]|5[cC])|\\")
_PARAMETER = re.compile(r"(?<=\.);[^/]*")


def _as_served(path: str) -> str:
    """Path of a URL in the way in which it leads out of most directories, whatever its server is.

    For comparing: a path that one server reads as leading out of a prefix is not taken for hosted there.
    """
    if "%" in path or "\\" in path or ";" in path:
        path = _PARAMETER.sub("", _SLASH.sub("/", _DOT.sub(".", path)))
    return path


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
    pattern : str
        As it was written.
    origin : str
        The file, or what else the rule comes from.
    line : int or None
        In that file, from 1.
    kind : str
        One of `KINDS`.
    """

    data_centre: str
    pattern: str
    origin: str
    line: int | None = None
    kind: str = "prefix"

    def __str__(self) -> str:
        where = self.origin if self.line is None else f"{self.origin}, line {self.line}"
        return f"{self.kind} {self.pattern} ({where})"


def form_of(kind: str, pattern: str) -> str:
    """Bring the pattern of a rule into the form in which it is looked up.

    Raises
    ------
    ValueError
        If nothing could ever match it.
    """
    if not pattern.strip():
        raise ValueError(f"a {kind} is empty; {_EXAMPLES[kind]}")
    match kind:
        case "prefix":
            return _prefix_form(pattern)
        case "glob":
            return _glob_form(pattern)
        case "host":
            return _host_form(pattern)
        case "endpoint":
            return _endpoint_form(pattern)
        case _:
            if not re.fullmatch(r"[A-Za-z0-9-]+(:[A-Za-z0-9-]+)?", pattern):
                raise ValueError(f"{pattern!r} is no region; {_EXAMPLES[kind]}")
            return pattern.lower()


_EXAMPLES = {
    "prefix": "write an absolute path or a URL, such as /data/ or s3://bucket",
    "glob": "write a path or URL with *, ? or **, such as /data/*/archive/ or s3://site-*/",
    "host": "write the name of a host, such as data.eumetsat.int or *.nci.org.au",
    "endpoint": "write the URL of an S3 endpoint, such as https://object-store.example.org",
    "region": "write the region of a public cloud, such as eu-west-2, or s3:eu-west-2",
}


def _prefix_form(prefix: str) -> str:
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


def _glob_form(pattern: str) -> str:
    place = place_of(pattern)
    if place.relative or "::" in pattern or pattern.startswith("~"):
        raise ValueError(f"{pattern!r} is neither an absolute path nor a URL; {_EXAMPLES['glob']}")
    if not _WILD.search(pattern):
        raise ValueError(f"{pattern!r} has no *, ? or [; put it under prefixes")
    if place.scheme in _WEB and _WILD.search(place.authority):
        raise ValueError(f"{pattern!r} leaves the host open; put hosts with * under hosts")
    components = place.components()
    if all(set(one) <= {"*", "?"} for one in components if one) and not place.scheme:
        raise ValueError(f"{pattern!r} matches every path there is")
    if components.count("**") > 1:
        raise ValueError(f"{pattern!r} has ** twice; once says it all")
    for one in components:
        _component(one)
    return str(place)


def _host_form(host: str) -> str:
    bare = host.lower()
    if not re.fullmatch(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?", bare):
        raise ValueError(f"{host!r} is no host name; {_EXAMPLES['host']}")
    return bare


def _endpoint_form(endpoint: str) -> str:
    found = endpoint_of({"endpoint_url": endpoint})
    if found is None:
        raise ValueError(f"{endpoint!r} is no endpoint; {_EXAMPLES['endpoint']}")
    return found


def endpoint_of(storage_options: Mapping[str, Any] | None) -> str | None:
    """Endpoint of the object store that options for fsspec name, or None.

    Scheme and port count only where they are not the usual ones: ``https://store.example.org:443/`` and
    ``http://store.example.org`` are the same store.
    """
    if not storage_options:
        return None
    nested = storage_options.get("client_kwargs")
    for where in (storage_options, nested if isinstance(nested, Mapping) else {}):
        # What s3fs, boto3 and gcsfs call it.
        for key in ("endpoint_url", "endpoint"):
            if isinstance(given := where.get(key), str) and SCHEME.match(given):
                place = place_of(given)
                if place.scheme in _WEB and place.authority:
                    return place.authority + place.path
    return None


_WILD = re.compile(r"[*?\[]")


@lru_cache(maxsize=4096)
def _component(pattern: str) -> re.Pattern[str]:
    """Compile one component of a glob; ``*`` and ``?`` stay within it."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        one = pattern[position]
        position += 1
        if one == "*":
            # Several at once are one; written out, they would take exponential time.
            if not parts or parts[-1] != "[^/]*":
                parts.append("[^/]*")
        elif one == "?":
            parts.append("[^/]")
        elif one == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise ValueError(f"{pattern!r} has a [ without its ]")
            inside = pattern[position:end].replace("\\", "\\\\")
            inside = "^" + inside[1:] if inside[0] == "!" else inside.replace("^", "\\^")
            parts.append(f"[{inside}]")
            position = end + 1
        else:
            parts.append(re.escape(one))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from None


@dataclass(eq=False)
class _Node:
    """One place in the tree of globs: what may follow in the next component."""

    rule: Rule | None = None
    plain: dict[str, _Node] = field(default_factory=dict)
    # Patterns by what they begin with before the first wild card: most are ruled out by that.
    wild: dict[str, list[tuple[re.Pattern[str], _Node]]] = field(default_factory=dict)
    # Lengths of those beginnings, the shortest first.
    heads: tuple[int, ...] = ()
    # After ``**``: any number of components.
    anywhere: _Node | None = None

    def follow(self, component: str) -> list[_Node]:
        found = [node] if (node := self.plain.get(component)) is not None else []
        for length in self.heads:
            for pattern, node in self.wild.get(component[:length], ()):
                if pattern.fullmatch(component):
                    found.append(node)
        return found


class Rules:
    """Every rule of a data-centres file, ready for looking places up."""

    def __init__(self) -> None:
        self._by_form: dict[tuple[str, str], Rule] = {}
        self._prefixes: dict[str, Rule] = {}
        self._globs = _Node()
        self._any_globs = self._any_deep = self._any_hosts = False

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._by_form.values())

    def __len__(self) -> int:
        return len(self._by_form)

    def add(self, rule: Rule) -> Rule | None:
        """Take a rule in; if another data centre has the same one, return that and do not."""
        form = form_of(rule.kind, rule.pattern)
        if (other := self._by_form.get((rule.kind, form))) is not None:
            return other if other.data_centre != rule.data_centre else None
        self._by_form[rule.kind, form] = rule
        if rule.kind == "prefix":
            self._prefixes[form] = rule
        elif rule.kind == "glob":
            self._add_glob(form, rule)
        elif rule.kind == "host":
            self._any_hosts = True
        return None

    def _add_glob(self, form: str, rule: Rule) -> None:
        self._any_globs = True
        node = self._globs
        for component in place_of(form).components():
            if component == "**":
                self._any_deep = True
                node.anywhere = node.anywhere or _Node()
                node = node.anywhere
            elif (wild := _WILD.search(component)) is None:
                node = node.plain.setdefault(component, _Node())
            else:
                patterns = node.wild.setdefault(component[: wild.start()], [])
                node.heads = tuple(sorted({*node.heads, wild.start()}))
                pattern = _component(component)
                known = next((after for one, after in patterns if one is pattern), None)
                if known is None:
                    patterns.append((pattern, known := _Node()))
                node = known
        node.rule = rule

    def matches(self, url: str, storage_options: Mapping[str, Any] | None = None) -> list[Rule]:
        """Rules that match a path or URL, the deciding one first.

        Parameters
        ----------
        url : str
        storage_options : mapping, optional
            Options for fsspec, which may name an endpoint.
        """
        place = place_of(url)
        prefixes = self._prefixes
        # Length of what a rule covers, and for a tie the plainer kind.
        found = [
            (len(prefix.rstrip(_STEM)), 2, prefixes[prefix])
            for prefix in place.enclosing()
            if prefix in prefixes
        ]
        if self._any_globs and not place.relative:
            found += self._matching_globs(place)
        if self._any_hosts and place.authority and (host := place.host):
            for form in _hosts(host):
                if (rule := self._by_form.get(("host", form))) is not None:
                    # Less than any path on that host.
                    found.append((len(place.scheme) + 3, len(form), rule))
                    break
        if len(found) > 1:
            found.sort(key=lambda one: one[:2], reverse=True)
        matching = [rule for _, _, rule in found]
        if storage_options and place.scheme in _BUCKETS and (endpoint := endpoint_of(storage_options)):
            return self._at_endpoint(endpoint, matching)
        return matching

    def _at_endpoint(self, endpoint: str, matching: list[Rule]) -> list[Rule]:
        rule = self._by_form.get(("endpoint", endpoint))
        if rule is None:
            return matching
        return [one for one in matching if one.data_centre == rule.data_centre] + [rule]

    def _matching_globs(self, place: Place) -> list[tuple[int, int, Rule]]:
        found: list[tuple[int, int, Rule]] = []
        nodes = [(self._globs, False)]
        covered = -1
        for component in place.components():
            covered += 1 + len(component)
            after = []
            for node, stays in nodes:
                if stays:
                    after.append((node, True))
                # Most lead no further.
                if node.heads or component in node.plain:
                    after += [(one, False) for one in node.follow(component)]
            if not after:
                break
            if self._any_deep:  # nothing at all may stand for ``**``
                after += [(node.anywhere, True) for node, _ in after if node.anywhere is not None]
            # By two ways to one place: once is enough.
            nodes = list(dict.fromkeys(after)) if len(after) > 1 else after
            for node, _ in nodes:
                if node.rule is not None and all(node.rule is not rule for _, _, rule in found):
                    found.append((covered, 1, node.rule))
        return found

    def of_region(self, scheme: str, region: str) -> Rule | None:
        """Rule for a region of a public cloud, such as ``eu-west-2`` of ``s3``, or None."""
        region = region.lower()
        return self._by_form.get(("region", f"{scheme}:{region}")) or self._by_form.get(("region", region))

    def nearest(self, url: str) -> Rule | None:
        """Find the prefix that looks most like the beginning of `url`, if one looks alike at all."""
        place = str(place_of(url))

        def likeness(rule: Rule) -> float:
            prefix = str(place_of(rule.pattern))
            return difflib.SequenceMatcher(None, prefix, place[: len(prefix)]).ratio()

        best = max(self._prefixes.values(), key=likeness, default=None)
        return best if best is not None and likeness(best) >= 0.6 else None


def _hosts(host: str) -> Iterator[str]:
    """Forms of rules that a host matches, the closest first."""
    yield host
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"
