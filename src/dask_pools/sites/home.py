"""Where the agent of one cluster keeps its files on the control host, and how it is found again.

One directory a cluster, ``/tmp/dask-pools-<uid>/<cluster>``, that nobody else can look into. It holds the
socket of the agent, its log, the private key that was made here, and what workers spill. The agent holds a
lock on it as long as it lives, so that a directory whose agent was killed can be told from one in use, and
be removed. It knows nothing of what the agent does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dask_pools.errors import PoolsError

__all__ = ["Home", "HomeError", "homes"]

# Of the path of a Unix socket, with the zero at its end (unix(7)).
_LONGEST_SOCKET = 107


class HomeError(PoolsError):
    """The directory of an agent cannot be used; the message says what to do."""


def _above(directory: str | None) -> Path:
    return Path(directory or tempfile.gettempdir()) / f"dask-pools-{_user()}"


def _user() -> int:
    """Get this user's number outside of a user name space; in there it is mostly 0 (user_namespaces(7))."""
    user = os.getuid()
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            inside, outside, count = map(int, line.split())
            if inside <= user < inside + count:
                return outside + user - inside
    return user


def _own(path: Path) -> None:
    """Make a directory that only this user can look into, or make sure that it is one.

    Others can make directories in ``/tmp`` too: what is there must be a directory, not a link to one, of this
    user, and closed.
    """
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise HomeError(f"{path} cannot be made: {error.strerror}.") from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HomeError(
            f"{path} is not a directory that belongs to you alone. Remove it, or set another place in the "
            "data-centres file (`directory:` of the site)."
        )


class Home:
    """The directory of one cluster's agent.

    Parameters
    ----------
    cluster : str
        The cluster's name.
    directory : str, optional
        Directory to use in place of that for temporary files.
    path : path, optional
        The directory itself, in place of the one that follows from these.

    Raises
    ------
    HomeError
        If its path is too long for a socket.
    """

    def __init__(self, cluster: str, directory: str | None = None, path: Path | None = None) -> None:
        self.cluster = cluster
        self.path = path or _above(directory) / cluster
        self._lock: int | None = None
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise HomeError(f"{self.socket} is too long for the path of a socket; name a shorter directory.")

    @property
    def socket(self) -> Path:
        """What an agent is attached to by."""
        return self.path / "socket"

    @property
    def log(self) -> Path:
        """What the agent writes down."""
        return self.path / "log"

    @property
    def key(self) -> Path:
        """The private key that was made here."""
        return self.path / "key.pem"

    @property
    def certificate(self) -> Path:
        """The certificate for that key."""
        return self.path / "certificate.pem"

    @property
    def authority(self) -> Path:
        """The certificate of the cluster's authority."""
        return self.path / "authority.pem"

    @property
    def mesh(self) -> Path:
        """What belongs to this host's part of the mesh."""
        return self.path / "mesh"

    @property
    def scratch(self) -> Path:
        """What workers spill to."""
        return self.path / "scratch"

    def make(self) -> bool:
        """Make the directory and take its lock; False if an agent has it.

        What an agent that was killed has left there is removed first.

        Raises
        ------
        HomeError
            If that cannot be done.
        """
        _own(self.path.parent)
        _own(self.path)
        file = self.path / "lock"
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HomeError(f"{file} cannot be made: {error.strerror}.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        # An agent that ends removes the file; a lock on what has no name any more would keep nobody out.
        if not file.exists() or not os.path.samestat(os.fstat(lock), file.lstat()):
            os.close(lock)
            return self.make()
        self._lock = lock
        for left in self.path.iterdir():
            # What is written down may be about to be read, or written by whoever starts this.
            if left.name not in ("lock", "log"):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            self.scratch.mkdir(mode=0o700)
        except OSError as error:
            self.remove()
            raise HomeError(f"{self.scratch} cannot be made: {error.strerror}.") from None
        return True

    def in_use(self) -> bool:
        """Whether an agent has it."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def release(self) -> None:
        """Let the lock go, for another process to take it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove it with all that is in it, and that of all agents of this user if it was the last."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # another cluster's is there
            self.path.parent.rmdir()
        self.release()

    def write(self, path: Path, content: bytes) -> None:
        """Write a file that only this user can read, at no moment anybody else."""
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)


def homes(directory: str | None = None) -> Iterator[Home]:
    """Give the directories of this user's agents, of those that live and of those that were killed."""
    above = _above(directory)
    if not above.exists():
        return
    _own(above)
    for path in sorted(above.iterdir()):
        yield Home(path.name, directory)
