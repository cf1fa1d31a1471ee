"""Which storage options of somebody else's catalogue are handed to file systems: a whitelist.

Options go to whatever file system a URL names, and some of those run commands (`proxy_command`), write where
they are told to (`cache_storage`), read local files (`token`, `cert`), or send what credentials this machine
has to another host (`endpoint_url`, `proxies`). So an option is handed on if it is known to be data. It knows
no catalogues, and looks at nothing but the options themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from dask_pools.errors import EntryError

__all__ = ["refuse_unsafe"]

_DATA = frozenset(
    (
        # Who asks, and for what. Of the two that may name local files more is checked below.
        "anon", "anonymous", "requester_pays", "key", "secret", "token", "username", "user", "password",
        "auth", "account_name", "account_key", "sas_token", "tenant_id", "client_id", "client_secret",
        "access_key_id", "secret_access_key", "session_token", "project", "access", "region", "region_name",
        "host", "port", "org", "repo", "sha", "ref", "revision", "bucket", "prefix", "endpoint_url",
        "endpoint", "use_ssl", "ssl", "allow_http", "force_path_style", "version_aware", "timeout",
        "requests_timeout",
        # How it is read and kept in memory.
        "block_size", "default_block_size", "cache_type", "default_cache_type", "default_fill_cache",
        "fill_cache", "cache_regions", "consistency", "check_connection", "use_listings_cache",
        "listings_expiry_time", "max_paths", "skip_instance_cache", "max_concurrency", "simple_links",
        "same_scheme", "size_policy", "encoded", "compression", "encoding", "protocol", "check",
        # Caches and references.
        "same_names", "expiry_time", "check_files", "cache_check", "target", "target_protocol",
        "remote_protocol", "lazy", "max_gap", "max_block", "cache_size", "simple_templates", "asynchronous",
        # Icechunk.
        "branch", "tag", "snapshot_id",
    )
)  # fmt: skip
# Mappings of texts and numbers; most of them the server gets as they are.
_SENT = frozenset(("headers", "cookies", "params", "s3_additional_kwargs", "cache_options"))
# What people write, of which other values would not do.
_HARMLESS = frozenset((("loop", None), ("mode", "r"), ("mode", "rb"), ("cache_storage", "TMP")))
# Options for another file system.
_NESTED = frozenset(("target_options", "remote_options", "ref_storage_args", "storage_options"))
_PROTOCOLS = frozenset(
    (
        "s3", "s3a", "s3n", "gs", "gcs", "http", "https", "file", "local", "abfs", "abfss", "az", "adl",
        "reference", "simplecache", "filecache", "blockcache", "cached", "zip", "tar", "ftp", "sftp", "ssh",
        "hf", "github", "oss", "b2", "swift", "memory",
    )
)  # fmt: skip
_OF_CLIENTS = frozenset(
    (
        "endpoint_url", "region_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
        "use_ssl", "api_version", "headers", "cookies", "timeout", "raise_for_status",
    )
)  # fmt: skip
_OF_CONFIGS = frozenset(
    (
        "signature_version", "max_pool_connections", "connect_timeout", "read_timeout", "retries", "s3",
        "region_name", "tcp_keepalive", "use_dualstack_endpoint", "use_fips_endpoint",
        "parameter_validation", "request_checksum_calculation", "response_checksum_validation",
    )
)  # fmt: skip
_GOOGLE = ("gs", "gcs")
_LOOKS_LIKE_A_PATH = re.compile(r"[~/.]|[A-Za-z]:\\|.*\.(json|pem|p12|txt)$")


def refuse_unsafe(args: Any) -> None:
    """Refuse storage options that could do more than say how data is read, wherever they are in arguments.

    Parameters
    ----------
    args : mapping, list, or anything in them
        Arguments of an entry.

    Raises
    ------
    EntryError
        That names the option.
    """
    found: list[Any] = []
    _collect(args, found, 0)
    # Catalogues have many entries, and most have none, or plain ones such as `anon: true`.
    found = [options for options in found if not _is_plain(options)]
    if found:
        protocols = frozenset(_protocols(args, 0))
        for options in found:
            _check(options, protocols, 0)


_DEEPEST = 20


def _is_plain(options: Any) -> bool:
    return type(options) is dict and all(
        name in _DATA and type(value) in (bool, int) for name, value in options.items()
    )


def _collect(args: Any, found: list[Any], depth: int) -> None:
    """Add all storage options in arguments to a list."""
    if depth > _DEEPEST:
        raise EntryError("its arguments are nested deeper than any that are meant to be read")
    if isinstance(args, Mapping):
        for name, value in args.items():
            if name == "storage_options":
                found.append(value)
            elif isinstance(value, Mapping | list | tuple):
                _collect(value, found, depth + 1)
    elif isinstance(args, list | tuple):
        for value in args:
            if isinstance(value, Mapping | list | tuple):
                _collect(value, found, depth + 1)


def _protocols(args: Any, depth: int) -> Iterator[str]:
    """Names of the file systems that arguments speak of."""
    if isinstance(args, str):
        for link in args.split("::"):
            yield link.partition("://")[0].strip().lower()
    elif isinstance(args, Mapping) and depth <= _DEEPEST:
        for name, value in args.items():
            yield str(name)
            if name != "fo" or isinstance(value, str):
                yield from _protocols(value, depth + 1)
    elif isinstance(args, list | tuple) and depth <= _DEEPEST:
        for value in args:
            yield from _protocols(value, depth + 1)


def _refusal(name: Any, why: str) -> EntryError:
    return EntryError(
        f"its storage option {str(name)[:80]!r} {why}. If you trust who wrote the catalogue, open it with "
        "allow_code=True"
    )


def _check(options: Any, protocols: frozenset[str], depth: int) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise EntryError(f"its storage_options are {options!r:.80}; they should be a mapping")
    if depth > _DEEPEST:
        raise EntryError("its storage_options are nested deeper than any that are meant to be read")
    for name, value in options.items():
        if name in _NESTED or name in _PROTOCOLS:
            _check(value, protocols, depth + 1)
        elif name == "fs" and isinstance(value, Mapping):
            for own in value.values():
                _check(own, protocols, depth + 1)
        elif name == "fo" and isinstance(value, str | Mapping):
            pass  # a URL, or references written out, which are looked at where they are read
        elif isinstance(value, str | None) and (name, value) in _HARMLESS:
            pass
        elif name == "client_kwargs":
            _check_names(name, value, _OF_CLIENTS)
        elif name == "config_kwargs":
            _check_names(name, value, _OF_CONFIGS)
        elif name in _SENT:
            _check_plain(name, value, 2)
        elif name in _DATA:
            _check_plain(name, value, 2 if name == "token" else 1)
        else:
            raise _refusal(name, "is not among those that are known to be data")
    _check_token(options.get("token"), protocols)
    _check_endpoint(options, protocols)


def _check_names(name: Any, value: Any, known: frozenset[str]) -> None:
    if not isinstance(value, Mapping):
        raise _refusal(name, f"is {type(value).__name__}; it should be a mapping")
    for inner, one in value.items():
        if inner == "verify" and isinstance(one, bool):
            continue
        if inner not in known:
            raise _refusal(f"{name}.{inner}", "is not among those that are known to be data")
        _check_plain(f"{name}.{inner}", one, 2)


def _check_plain(name: Any, value: Any, depth: int) -> None:
    """Refuse what is no text, number or the like, or a list of them; with `depth` 2, a mapping."""
    inner: list[Any] = [value]
    if isinstance(value, Mapping) and depth > 1:
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inner = list(value)
    for one in inner:
        if one is not None and not isinstance(one, str | int | float | date):
            raise _refusal(name, f"has a {type(one).__name__} in it; it should be texts and numbers")


def _check_token(token: Any, protocols: frozenset[str]) -> None:
    # Of gcsfs: a file on this machine, or a way that asks whoever sits at it.
    if isinstance(token, str) and (
        _LOOKS_LIKE_A_PATH.match(token)
        or (not protocols.isdisjoint(_GOOGLE) and token not in ("anon", "google_default", "cloud"))
    ):
        raise _refusal(
            "token", "would have a file of this machine read, or is none of: anon, google_default, cloud"
        )


def _check_endpoint(options: Mapping[Any, Any], protocols: frozenset[str]) -> None:
    """Refuse to show Google's credentials of this machine to another host; those of S3 only sign."""
    if options.get("endpoint_url") is None or options.get("token") == "anon" or options.get("anon") is True:
        return
    # References may point to Google's store without saying so here.
    known = not protocols.isdisjoint(("s3", "s3a", "s3n"))
    if not protocols.isdisjoint(_GOOGLE) or (not known and not protocols.isdisjoint(("reference", "fo"))):
        raise _refusal("endpoint_url", "may be sent what credentials for Google this machine has")
