"""A real Docker on one machine, and the image of a worker that the repository's Dockerfile makes.

The daemon and all its containers run in one process name space with a ``/run`` of their own, so they end
when the one process that keeps it does. It makes no network but on a host of the lab, leaves the firewall
alone, and listens on a socket of its own and nowhere else. It knows nothing of Dask.

Making the image takes a minute or two. It is kept, with Docker's other files, below `KEPT`, until something
that is in it changes; run as a script this module makes it ready beforehand.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

__all__ = ["FORBIDDEN", "IMAGE", "Docker", "start_docker"]

FORBIDDEN = "Docker's daemon and its name space need root"

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".lab-docker"

IMAGE = "intake-pools"

# Debian's Python has to be that of the tests, but for the last number.
BASE, SUITE, PYTHON = "lab-base", "bookworm", (3, 11)

# Seconds.
START_TIMEOUT = 60.0

# The shell's name space ends with it, and with that whatever is in it.
_KEEP = """
mount -t tmpfs tmpfs /run || exit 1
# Hosts of the lab may only read the repository, and only as far as they do not say otherwise.
[ -w "$1" ] || mount -o remount,bind,rw "$(findmnt --noheadings --output TARGET --target "$1")" || exit 1
dockerd --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid --host "unix://$2" \
    --config-file "$1/daemon.json" --storage-driver overlay2 --cgroup-parent "$3" --bridge "$4" \
    --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false >"$1/dockerd.log" 2>&1 &
exec cat
"""

_APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]


@dataclass(frozen=True)
class Docker:
    """A daemon that runs."""

    url: str
    """Of its socket, as it is where the daemon runs."""
    client: Any
    """A `docker.DockerClient`."""

    def containers(self) -> list[str]:
        """Names of all containers, ended ones included."""
        return [one.name for one in self.client.containers.list(all=True, ignore_removed=True)]


@contextmanager
def start_docker(inside: Sequence[str] = (), from_outside: Callable[[str], Path] = Path) -> Iterator[Docker]:
    """Start a daemon that has `IMAGE`; it answers when this yields.

    Parameters
    ----------
    inside : sequence of str
        Beginning of a command that runs the rest of it where the daemon is to be; here by default.
    from_outside : callable
        Where the test finds what has an absolute path there.
    """
    missing = [
        name for name in ("dockerd", "containerd", "runc", "debootstrap") if shutil.which(name) is None
    ]
    if missing:
        raise RuntimeError(f"No {', '.join(missing)} here: apt-get install docker.io debootstrap")
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _daemon(inside, from_outside) as docker:
            _make_ready(docker.client)
            yield docker


@contextmanager
def _daemon(inside: Sequence[str], from_outside: Callable[[str], Path]) -> Iterator[Docker]:
    import docker
    from docker.errors import DockerException

    (KEPT / "daemon.json").write_text("{}")  # lest that of this machine be read
    # Paths of sockets may have 108 characters only.
    path = f"/tmp/lab-docker-{uuid.uuid4().hex}.sock"
    socket = from_outside(path)
    cgroup = f"lab-docker-{uuid.uuid4().hex}"
    with subprocess.Popen(
        # Its usual network only on hosts that are the lab's own.
        [*inside, *_APART, "sh", "-c", _KEEP, "sh", str(KEPT), path, cgroup, "" if inside else "none"],
        stdin=subprocess.PIPE,
        # Ctrl-C is for the test run, which ends it in order.
        start_new_session=True,
    ) as keeper:
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                try:
                    client = docker.DockerClient(base_url=f"unix://{socket}", timeout=300)
                    break
                except DockerException as error:
                    if time.monotonic() > deadline or keeper.poll() is not None:
                        said = (KEPT / "dockerd.log").read_text()
                        raise RuntimeError(f"Docker did not start: {error}\n{said}") from None
                time.sleep(0.1)
            with closing(client):
                yield Docker(f"unix://{path}", client)
        finally:
            keeper.kill()
            keeper.wait()
            if inside:
                subprocess.run([*inside, "ip", "link", "delete", "docker0"], capture_output=True, check=False)
            with suppress(OSError):  # the host may be gone
                socket.unlink()
            _remove_cgroups(cgroup)


def _remove_cgroups(name: str) -> None:
    """Remove the control groups of containers, which outlast their processes."""
    for top in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        for path, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(path)


def _make_ready(client: Any) -> None:
    """Make the image, unless it is there already and nothing has changed."""
    label, wanted = "lab.content", _content()
    with suppress(Exception):
        if client.images.get(IMAGE).labels.get(label) == wanted:
            return
    if sys.version_info[:2] != PYTHON:
        raise RuntimeError(f"Debian {SUITE} has Python {PYTHON}, so the tests have to run with that, too.")
    if not client.images.list(BASE):
        _import_base(client)
    wheels = KEPT / "wheelhouse"
    shutil.rmtree(wheels, ignore_errors=True)
    _make_wheels(wheels)
    client.images.build(
        path=str(wheels),
        dockerfile=str(ROOT / "Dockerfile"),
        tag=IMAGE,
        buildargs={"BASE": BASE},
        labels={label: wanted},
        network_mode="none",
        forcerm=True,
    )
    client.images.prune()


def _content() -> str:
    """Hash of whatever is in the image, besides its base."""
    digest = hashlib.sha256()
    files = [ROOT / "Dockerfile", ROOT / "pyproject.toml"]
    for directory in ("src", "catalog", "catalogs"):
        files += sorted(path for path in (ROOT / directory).rglob("*") if path.suffix in (".py", ".yaml"))
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


# Debian's packages are unpacked in memory, and go to Docker as they are, without a file of their own.
_BOOTSTRAP = f"""
mount -t tmpfs tmpfs /mnt || exit 1
debootstrap --variant=minbase --include=python3,python3-venv {SUITE} /mnt/base >"$1" 2>&1 || exit 1
rm -rf /mnt/base/var/cache/apt/* /mnt/base/var/lib/apt/lists/*
exec tar --create --directory /mnt/base --one-file-system .
"""


def _import_base(client: Any) -> None:
    """Have Docker import a small Debian with Python."""
    log = KEPT / "debootstrap.log"
    with subprocess.Popen([*_APART, "sh", "-c", _BOOTSTRAP, "sh", str(log)], stdout=subprocess.PIPE) as made:
        client.api.import_image_from_stream(made.stdout, repository=f"{BASE}-unchecked", tag="latest")
    if made.returncode != 0:
        raise RuntimeError(f"There is no base for the image: {log.read_text()[-2000:]}")
    client.images.get(f"{BASE}-unchecked").tag(BASE)


def _make_wheels(directory: Path) -> None:
    """Make the wheels of this package and of all that it needs, in the versions that there are here."""
    here = {one.metadata["Name"]: one.version for one in distributions()}
    versions = KEPT / "versions.txt"
    versions.write_text("".join(f"{name}=={version}\n" for name, version in here.items() if name != IMAGE))
    made = ["--wheel-dir", str(directory), "--constraint", str(versions), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *made], check=True)


if __name__ == "__main__":
    with start_docker():
        print("Docker and the image are ready.")
