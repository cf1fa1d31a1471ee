"""What tells one state of a file or object from another, from what its file system says about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["marks_of"]

# By the names that file systems of fsspec use.
_MARKS = (
    "ETag", "etag", "versionId", "version_id", "generation", "md5Hash", "Content-MD5", "content_md5",
    "Digest", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "size",
)  # fmt: skip


def marks_of(info: Mapping[str, Any]) -> str:
    """Join what differs between states of an object; empty if nothing does.

    Parameters
    ----------
    info : mapping
        As `fsspec.AbstractFileSystem.info` returns it.
    """
    return "-".join(str(info[mark]) for mark in _MARKS if info.get(mark) is not None)
