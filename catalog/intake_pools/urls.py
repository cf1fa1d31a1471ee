"""Paths, URLs and options as text: of what kind they are, and what of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

__all__ = ["is_local", "is_pattern", "public_options", "public_url"]

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


def public_url(url: str) -> str:
    """Leave the credentials out of a path or URL, before the host and in the query."""
    url = re.sub(r"(?<=://)[^/@?#\s]*@", "", url)

    def hidden(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}={HIDDEN}" if SECRET.search(found[2]) else found[0]

    return re.sub(r"([?&])([^=&#]+)=[^&#\s]*", hidden, url)


def is_local(url: str) -> bool:
    """Whether it is a path, and no URL."""
    return "://" not in url and "::" not in url


def is_pattern(url: str) -> bool:
    """Whether a path or URL may stand for several."""
    return any(sign in url for sign in "*[") or (is_local(url) and "?" in url)
