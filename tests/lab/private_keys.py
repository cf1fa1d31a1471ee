"""Looks for private keys on a host of the lab: what they may look like, and wherever one could be read."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def key_forms(text: str) -> list[bytes]:
    """What a private key looks like: as it is, in base 64, in hexadecimal digits."""
    lines = [line for line in text.splitlines() if "-----" not in line]
    key = base64.b64decode("".join(lines))
    # Of PEM the first line, of whose 48 bytes only the beginning is the same in all keys of a kind.
    shown = lines[0].rstrip("=")
    forms = [shown, shown.translate(str.maketrans("+/", "-_")), key.hex(), key.hex().upper()]
    return [key, *(form.encode() for form in forms)]


def places_of(secrets: Sequence[bytes]) -> list[str]:
    """Command lines, environments and files of this host in which one of these is."""
    seen, found = set(), []
    roots = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            roots.setdefault(os.readlink(process / "ns" / "mnt"), process / "root")
            for name in ("cmdline", "environ"):
                if any(secret in (process / name).read_bytes() for secret in secrets):
                    found.append(str(process / name))
    for root in roots.values():  # also of what is hidden from the host itself
        for top in ("tmp", "run", "srv", "var/tmp", "dev/shm"):
            for directory, below, names in os.walk(root / top):
                if os.statvfs(directory).f_flag & os.ST_RDONLY:  # this project, as it lies on the machine
                    below.clear()
                    continue
                for path in (Path(directory, name) for name in names):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        if any(secret in path.read_bytes() for secret in secrets):
                            found.append(f"/{path.relative_to(root)}")
    return found
