"""Paths, URLs and options as text: of what kind they are, and what of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

__all__ = [
    "DiscreetOptions",
    "document_of",
    "end_of",
    "fields_in",
    "glob_of",
    "is_chain",
    "is_local",
    "is_pattern",
    "is_references",
    "public_options",
    "public_url",
    "without_caches",
    "without_secrets",
]

# What names a secret, in an option or in the query of a URL.
SECRET = re.compile(
    r"secret|passw|token|credential|auth|signature|^sig$|session|cookie|header|sas|cert|connection_?string"
    r"|(^|_)key|key$|^user",
    re.IGNORECASE,
)
HIDDEN = "***"


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
            str(key): HIDDEN if SECRET.search(str(key)) else public_options(value, objects)
            for key, value in options.items()
        }
    if isinstance(options, list | tuple):
        return [public_options(value, objects) for value in options]
    if isinstance(options, str):
        return public_url(options)
    if objects or options is None or isinstance(options, bool | int | float | date):
        return options
    return type(options).__name__


class DiscreetOptions(dict[str, Any]):
    """Options whose secrets are in no repr, wherever others show them."""

    def __repr__(self) -> str:
        return repr(public_options(self))


def public_url(url: str) -> str:
    """Leave the credentials out of a path or URL, before the host and in the query."""
    url = re.sub(r"(?<=://)[^/@?#\s]*@", "", url)

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}={HIDDEN}" if SECRET.search(found[2]) else found[0]

    return re.sub(r"([?&])([^=&#]+)=[^&#\s]*", hidden, url)


def without_secrets(text: str, options: Any, urls: Iterable[str]) -> str:
    """Take secrets out of a text that others wrote, such as the message of an exception.

    Parameters
    ----------
    text : str
    options : mapping, list, or anything in them
        That the secrets are in, at any depth.
    urls : iterable of str
        That may have credentials.
    """
    for secret in sorted(_secrets(options, hidden=False), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for url in urls:
        text = text.replace(url, public_url(url))
    return public_url(text)


def _secrets(options: Any, hidden: bool) -> set[str]:
    found: set[str] = set()
    if isinstance(options, Mapping):
        for key, value in options.items():
            found |= _secrets(value, hidden or bool(SECRET.search(str(key))))
    elif isinstance(options, list | tuple):
        for value in options:
            found |= _secrets(value, hidden)
    # Shorter ones would hide half of every text.
    elif hidden and isinstance(options, str) and len(options) >= 4:
        found.add(options)
    return found


def is_local(url: str) -> bool:
    """Whether it is a path, and no URL."""
    return "://" not in url and "::" not in url


def is_pattern(url: str) -> bool:
    """Whether a path or URL may stand for several."""
    return any(sign in url for sign in "*[") or (is_local(url) and "?" in url)


_FIELD = re.compile(r"\{([A-Za-z]\w*)(:[^{}]*)?\}")


def fields_in(url: str) -> list[str]:
    """Names of the fields of a path or URL such as ``{year:d}_{model}.nc``, each once."""
    return list(dict.fromkeys(found[1] for found in _FIELD.finditer(url)))


def glob_of(url: str) -> str:
    """Make a pattern with ``*`` of one with fields."""
    return _FIELD.sub("*", url)


_REFERENCES = ("reference://", "reference::")
_CACHES = ("simplecache", "filecache", "blockcache", "cached")


def is_chain(url: str) -> bool:
    """Whether what a URL names is read through something else, such as a cache, an archive or references."""
    return "::" in url or url.startswith(_REFERENCES)


def is_references(url: str) -> bool:
    """Whether a URL names a set of references, kerchunk's."""
    return url.startswith(_REFERENCES)


def document_of(url: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Find the document that has the references of a URL.

    Parameters
    ----------
    url : str
        ``reference::URL``, or ``reference://`` with `fo` in the options.
    options : mapping
        For fsspec's file system of references.

    Returns
    -------
    document : str or mapping
        Its path or URL; or the references themselves, if they are written out in the options.
    options : dict
        For the file system of the document.
    """
    document = url.partition("::")[2] or options.get("fo") or ""
    if isinstance(document, Mapping):
        return document, {}
    document = str(document)
    protocol = options.get("target_protocol")
    if isinstance(protocol, str) and protocol and is_local(document) and protocol not in ("file", "local"):
        document = f"{protocol}://{document}"
    own = options.get("target_options") or options.get("ref_storage_args")
    if own is None and not is_local(document):
        own = options.get(document.partition("::")[0].partition("://")[0])
    return document, dict(own) if isinstance(own, Mapping) else {}


def end_of(url: str, options: Mapping[str, Any] | None = None) -> tuple[str, Mapping[str, Any]]:
    """Find where the bytes of a URL come from: the last link of a chain, and the options for that.

    References may point to somewhere else again; what counts here is the document that has them.
    """
    options = options or {}
    while is_chain(url):
        if is_references(url):
            document, options = document_of(url, options)
            if isinstance(document, Mapping):
                return _first_target(document), {}
            url = document
        else:
            url, options = _next_link(url, options)
    return url, options


def without_caches(url: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Leave out the links of a chain that keep copies."""
    while "::" in url and url.partition("::")[0].partition("://")[0] in _CACHES:
        url, options = _next_link(url, options)
    return url, options


def _next_link(url: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    url = url.partition("::")[2]
    protocol = url.partition("::")[0].partition("://")[0] if not is_local(url) else "file"
    own = options.get(protocol)
    if not isinstance(own, Mapping):
        own = options.get("target_options")
    links = {name: one for name, one in options.items() if isinstance(one, Mapping) and f"{name}://" in url}
    return url, {**links, **(own if isinstance(own, Mapping) else {})}


def _first_target(references: Mapping[str, Any]) -> str:
    references = references["refs"] if isinstance(references.get("refs"), Mapping) else references
    found = (str(one[0]) for one in references.values() if isinstance(one, list) and one and one[0])
    return next(found, "")
