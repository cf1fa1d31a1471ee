"""Repositories of Icechunk: which snapshot a branch or tag is, and the zarr store of a snapshot.

A snapshot never changes, so it is the version of the data: who opened one reads it until it is opened again,
whatever is committed meanwhile. Icechunk reaches object stores in its own way; options for fsspec, as
catalogues have them, are said in its words here. It knows neither pools nor catalogues.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dask_pools.errors import EntryError
from intake_pools.urls import end_of, is_local, public_url

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["REFERENCES", "is_asked_for", "is_repository", "snapshot_of", "split", "store_of"]

REFERENCES = ("branch", "tag", "snapshot_id")
"""Storage options that say which state of a repository is meant; without any, it is the branch ``main``."""

# What lies in every repository: of format 1 the directory of its branches and tags, of format 2 its list.
_LANDMARKS = ("refs/branch.main/ref.json", "repo")
_PIPELINE = re.compile(r"\|icechunk:(//)?", re.IGNORECASE)


def split(url: str) -> tuple[str, dict[str, str], str]:
    """Take a URL apart that says which state of a repository is meant.

    Parameters
    ----------
    url : str
        ``URL|icechunk://branch.NAME/GROUP``, with ``tag.NAME`` or the id of a snapshot in place of the
        branch, or nothing at all: the URL pipelines of zarr and Neuroglancer, also in their older form
        ``|icechunk:@branch.NAME``.

    Returns
    -------
    url : str
        Of the repository.
    reference : dict
        One of `REFERENCES` with its value; empty if the URL says nothing about Icechunk.
    group : str
    """
    found = _PIPELINE.search(url)
    if found is None:
        return url, {}, ""
    said, _, group = url[found.end() :].lstrip("@").partition("/")
    if "|" in said or "|" in group:
        raise EntryError(f"{public_url(url)} has more after |icechunk: than a state and a group")
    if not said:
        reference = {"branch": "main"}
    elif said.startswith("branch."):
        reference = {"branch": said.removeprefix("branch.")}
    elif said.startswith("tag."):
        reference = {"tag": said.removeprefix("tag.")}
    else:
        reference = {"snapshot_id": said}
    return url[: found.start()], reference, group.strip("/")


def is_asked_for(storage_options: Mapping[str, Any]) -> bool:
    """Whether options say which state of a repository is meant."""
    return any(storage_options.get(name) is not None for name in REFERENCES)


def is_repository(fs: Any, root: str) -> bool:
    """Whether there is a repository at a path of a file system of fsspec."""
    return any(fs.exists(f"{root.rstrip('/')}/{landmark}") for landmark in _LANDMARKS)


def snapshot_of(url: str, storage_options: Mapping[str, Any]) -> str:
    """Look up the snapshot that is meant.

    Raises
    ------
    EntryError
        If Icechunk is not installed, or there is no such state.
    FileNotFoundError
        If there is no repository.
    """
    said = {name: storage_options[name] for name in REFERENCES if storage_options.get(name) is not None}
    if len(said) > 1:
        raise EntryError(f"{public_url(url)} is asked for by {' and '.join(said)}; one of them would do")
    kind, name = next(iter(said.items()), ("branch", "main"))
    repository = _repository(url, storage_options)
    import icechunk

    try:
        match kind:
            case "branch":
                return str(repository.lookup_branch(str(name)))
            case "tag":
                return str(repository.lookup_tag(str(name)))
            case _:
                return str(repository.lookup_snapshot(str(name)).id)
    except icechunk.IcechunkError as error:
        known = sorted(repository.list_branches()), sorted(repository.list_tags())
        raise EntryError(
            f"{public_url(url)} has no {kind.removesuffix('_id')} {name!r} ({_first_line(error)}). Branches: "
            f"{', '.join(known[0]) or 'none'}; tags: {', '.join(known[1]) or 'none'}"
        ) from None


def store_of(url: str, storage_options: Mapping[str, Any], snapshot: str) -> Store:
    """Make the zarr store of a snapshot, for reading."""
    session = _repository(url, storage_options).readonly_session(snapshot_id=snapshot)
    return session.store  # type: ignore[no-any-return]


def _repository(url: str, storage_options: Mapping[str, Any]) -> Any:
    if find_spec("icechunk") is None:
        raise EntryError(
            f"{public_url(url)} is a repository of Icechunk, which is not installed here. Install it on the "
            "workers: pip install 'intake-pools[icechunk]'"
        )
    import icechunk

    storage = _storage(url, storage_options)
    if not icechunk.Repository.exists(storage):
        raise FileNotFoundError(url)
    return icechunk.Repository.open(storage)


def _storage(url: str, storage_options: Mapping[str, Any]) -> Any:
    import icechunk

    url, storage_options = end_of(url, storage_options)
    if is_local(url):
        return icechunk.local_filesystem_storage(url)
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme in ("s3", "s3a", "s3n"):
        return icechunk.s3_storage(
            bucket=bucket, prefix=prefix.rstrip("/") or None, **_for_s3(storage_options)
        )
    if scheme in ("gs", "gcs"):
        anonymous = storage_options.get("token") == "anon" or None
        return icechunk.gcs_storage(
            bucket=bucket, prefix=prefix.rstrip("/") or None, anonymous=anonymous, from_env=not anonymous
        )
    raise EntryError(f"Icechunk reads repositories at paths, s3:// and gs://, not at {public_url(url)}")


def _for_s3(options: Mapping[str, Any]) -> dict[str, Any]:
    """Say options of s3fs in the words of Icechunk, which may also be used themselves."""
    nested = options.get("client_kwargs")
    client: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}

    def first(*names: str) -> Any:
        values = (where.get(name) for name in names for where in (options, client))
        return next((value for value in values if value is not None), None)

    endpoint = first("endpoint_url")
    key = first("key", "access_key_id", "aws_access_key_id", "username")
    anonymous = bool(first("anon", "anonymous"))
    own = {
        "endpoint_url": endpoint,
        # The store's own where there is an endpoint; Icechunk asks for one in any case.
        "region": first("region_name", "region") or ("us-east-1" if endpoint else None),
        "access_key_id": key,
        "secret_access_key": first("secret", "secret_access_key", "aws_secret_access_key", "password"),
        "session_token": first("token", "session_token", "aws_session_token"),
        "anonymous": anonymous or None,
        "from_env": None if anonymous or key else True,
        "allow_http": str(endpoint or "").startswith("http://"),
        "force_path_style": bool(endpoint),
        "requester_pays": bool(first("requester_pays")),
    }
    return {name: value for name, value in own.items() if value is not None}


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip(" x│├╰─")), "")
    return text.strip("x │├╰─▶→")[:200]
