"""Workers in Docker containers, one each, which see of their machine what is mounted and nothing else.

Docker removes a container when it ends, however that comes about, and a worker ends when it has lost its
scheduler. So nothing stays behind even if the process that made the cluster is killed outright. This module
knows nothing of how the image was made, but that there is a Python in it with this package.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import posixpath
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import dask
from pydantic import Field, field_validator

import dask_pools
from dask_pools import pins
from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.joining import (
    check_private,
    joined,
    last_lines,
    own_address,
    tls_options,
    worker_command,
)
from dask_pools.cluster.launchers.site import AtSite, SiteLauncher
from dask_pools.errors import MeshError
from dask_pools.workers import Listed, Workers

if TYPE_CHECKING:  # who only reads a data-centres file needs nothing that speaks SSH
    from dask_pools.sites.site import Site

__all__ = ["LABEL", "DockerLauncher", "DockerOptions", "DockerWorker", "Mount"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

SOCKET = "unix:///var/run/docker.sock"
LOOPBACK = "127.0.0.1"
HOST, BRIDGE = "host", "bridge"
"""Docker's names for the network of the machine itself, and for the usual one of its own."""

# Seconds. On a busy machine Docker takes some to start a container, and Python in it half a minute.
START_TIMEOUT = 120.0
CLOSE_TIMEOUT = 5
REMOVE_TIMEOUT = 30.0

# Bytes that a container may use besides its worker. The nanny is in there as well, and is to end a worker
# that uses too much before the system ends anything.
NANNY = 256 * 2**20

# Characters of what a container writes that are kept.
KEPT = 8000

LABEL = "dask-pools"
"""What the labels of every container begin with that a launcher of this project started."""


@dataclass(frozen=True)
class Mount:
    """A directory that containers see."""

    source: str
    """Its absolute path on the machine of Docker's daemon."""

    target: str
    """Its absolute path in the container."""

    writable: bool = False


@dataclass(frozen=True)
class DockerLauncher:
    """Start workers as Docker containers.

    Parameters
    ----------
    image : str
        It has to be there: none is pulled.
    mounts : tuple of Mount
    network : str
        Docker's network that they are in; ``host`` for that of the machine itself.
    user : str, optional
        Whose the processes in there are, as Docker has it (``USER`` or ``UID:GID``); those of this process's
        user, with all groups, if it is not given.
    python : str
        The Python interpreter in the image.
    options : tuple of str
        Further options of ``dask worker``.
    daemon : str, optional
        URL of the daemon's socket; that of ``DOCKER_HOST``, or else the usual one, if it is not given.
    host : str, optional
        Address that the workers listen on; by default the one that they reach the scheduler from.
    timeout : float
        Seconds within which a worker has to join.
    hand_over : callable, optional
        Called with the first process of each container that has started, as this process sees it; gives it
        `host` as its own address, on a mesh. Raises `MeshError`.
    tethered : bool
        Whether containers end with this process, however that ends. Otherwise they end when they have lost
        their scheduler, and `find` finds them until then.
    """

    image: str
    mounts: tuple[Mount, ...] = ()
    network: str = HOST
    user: str | None = None
    python: str = "python"
    options: tuple[str, ...] = ()
    daemon: str | None = None
    host: str | None = None
    timeout: float = START_TIMEOUT
    hand_over: Callable[[int], None] | None = None
    tethered: bool = False

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> DockerWorker:
        """Start a container; its worker has joined the scheduler when this returns.

        Raises
        ------
        MeshError
            If it cannot be put on the mesh.
        RuntimeError
            If Docker does not start it, or it ends before its worker has joined; with what was said.
        TimeoutError
            If the worker does not join in time.
        UnsupportedSettingError
            If the worker would have to reach the scheduler without encryption.
        """
        check_private(scheduler)
        if self.network != HOST and self.hand_over is None and not scheduler.startswith("tls://"):
            raise RuntimeError(
                f"containers in Docker's network {self.network!r} need a scheduler that speaks TLS, and this "
                f"is {scheduler}. Leave `network` out, and they are on the network of their machine"
            )
        starting = _in_thread(lambda: self._start(scheduler, name, shape))
        try:
            worker = await _result(starting)
        except asyncio.CancelledError:
            # Docker carries out what it was told: there may be a container in a moment.
            with suppress(RuntimeError):
                await (await _result(starting)).close()
            raise
        try:
            await joined(scheduler, name, self.timeout, worker.ended())
        except TimeoutError as error:
            said = last_lines(await worker.logs())
            await worker.close()
            raise TimeoutError(f"{error}, saying: {said}") from None
        except BaseException:
            await worker.close()
            raise
        return worker

    async def find(
        self, scheduler: str, name: str, shape: WorkerShape, handle: Mapping[str, Any]
    ) -> DockerWorker:
        """Find a container again.

        Raises
        ------
        LookupError
            If it is no more.
        """
        return await _result(_in_thread(lambda: self._find(handle["container"])))

    def _find(self, container_id: str) -> DockerWorker:
        from docker.errors import NotFound

        client = _connect(self.daemon)
        try:
            container = client.containers.get(container_id)
            return DockerWorker(client, container, container.attach(stream=True, logs=True))
        except NotFound:
            client.close()
            raise LookupError("its container is no more") from None

    def _start(self, scheduler: str, name: str, shape: WorkerShape) -> DockerWorker:
        from docker.errors import DockerException, ImageNotFound

        client = _connect(self.daemon)
        container = output = tether = None
        try:
            settings = self._settings(scheduler, name, shape, int(client.info()["NCPU"]))
            container = client.containers.create(self.image, **settings)
            # Before it starts, or the first that it says would be lost.
            output = container.attach(stream=True)
            if self.tethered:
                tether = container.attach_socket(params={"stdin": 1, "stream": 1})
            worker = DockerWorker(client, container, output, tether)
            container.start()
            if self.hand_over is not None:
                self.hand_over(_first_process(container.id))
            return worker
        except (DockerException, OSError, MeshError) as error:  # a connection that breaks is an OSError
            # Of a container that never ran Docker would keep the output open for ever.
            with suppress(DockerException, OSError):
                for opened in (output, tether):
                    if opened is not None:
                        opened.close()
                if container is not None:
                    container.remove(force=True)
            client.close()
            if isinstance(error, MeshError):
                raise
            if isinstance(error, ImageNotFound):
                raise RuntimeError(
                    f"Docker has no image {self.image!r} here. Build it as docs/launchers/docker.md says "
                    f"(docker build --tag {self.image} …), or fetch it: docker pull {self.image}"
                ) from None
            said = getattr(error, "explanation", None) or error
            raise RuntimeError(f"Docker starts no container of {self.image!r}, saying: {said}") from None

    def _settings(self, scheduler: str, name: str, shape: WorkerShape, processors: int) -> dict[str, Any]:
        """Arguments for Docker's SDK, with which a container is as the worker's shape says."""
        from docker.types import Mount as DockerMount

        tls = tls_options(scheduler)
        own = self.network == HOST or self.hand_over is not None
        command = worker_command(
            scheduler,
            name,
            shape,
            python=(self.python, "-P"),  # what lies in the pool's directory is data, not code
            options=(
                # In another network than the machine's there is nobody else to listen to.
                *(("--host", self.host or own_address(scheduler)) if own else ()),
                # Without a host Dask's status page would listen on all interfaces.
                *("--dashboard-address", f"{LOOPBACK}:0", "--no-dashboard"),
                *("--death-timeout", f"{self.timeout:g}"),
                # A worker that has joined is ready: its first task does not have to wait for imports.
                *("--preload", "dask_pools.propagate"),
                *(("--preload-nanny", "dask_pools.cluster.tether") if self.tethered else ()),
                *tls,
                *self.options,
            ),
        )
        # Certificate and key stay where they are, and are seen in there.
        files = tuple(Mount(path, path) for path in dict.fromkeys(tls[1::2]))
        settings: dict[str, Any] = {
            "entrypoint": command[:1],
            "command": command[1:],
            "name": f"{LABEL}-{name}-{uuid.uuid4().hex[:12]}",
            "labels": {
                LABEL: dask_pools.__version__,
                f"{LABEL}.pool": " ".join(pins.pools_of_resources(shape.resources)),
                f"{LABEL}.worker": name,
                f"{LABEL}.scheduler": scheduler,
            },
            "environment": {**_connections(), **shape.env},
            "mounts": [
                DockerMount(one.target, one.source, type="bind", read_only=not one.writable)
                for one in (*self.mounts, *files)
            ],
            "network": self.network,
            "auto_remove": True,
            # Docker closes it with the first connection to it, which is the launcher's.
            "stdin_open": self.tethered,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            # Docker refuses more than there are.
            "nano_cpus": min(shape.threads, processors) * 10**9,
        }
        if self.hand_over is not None:
            # Its worker may listen on its address before that is there, which takes a moment.
            settings["sysctls"] = {"net.ipv6.ip_nonlocal_bind": "1"}
        if shape.directory:
            settings["working_dir"] = shape.directory
        if shape.memory_limit:
            limit = shape.memory_limit + NANNY
            settings |= {"mem_limit": limit, "memswap_limit": limit}  # none of it on disk
        if self.user is not None:
            settings["user"] = self.user
        else:
            settings["user"] = f"{os.getuid()}:{os.getgid()}"
            settings["group_add"] = [str(group) for group in os.getgroups()]
        return settings


class DockerWorker:
    """A worker in a container.

    Parameters
    ----------
    client : docker.DockerClient
        For this worker alone.
    container : docker.models.containers.Container
        About to be started.
    output : docker.types.CancellableStream
        What it writes.
    tether : socket, optional
        Kept open for as long as the worker is wanted.
    """

    def __init__(self, client: Any, container: Any, output: Any, tether: Any = None) -> None:
        self._client = client
        self._container = container
        self._tether = tether
        self._said = ""
        self._hearing = _in_thread(lambda: self._hear(output))
        self._ending = _in_thread(lambda: container.wait(timeout=None, condition="removed"))

    @property
    def handle(self) -> dict[str, Any]:
        """What `DockerLauncher.find` finds it by."""
        return {"container": self._container.id}

    def _hear(self, output: Iterable[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for piece in output:
            self._said = (self._said + decoder.decode(piece))[-KEPT:]

    async def ended(self) -> str:
        """Wait until its container is no more, and say how it ended."""
        from docker.errors import DockerException

        try:
            status = (await _result(self._ending))["StatusCode"]
            how = f"its container ended with exit status {status}"
        except (DockerException, OSError) as error:
            how = f"Docker's daemon does not know how its container ended ({error})"
        await asyncio.wait([asyncio.wrap_future(self._hearing)], timeout=1)
        return f"{how}, saying: {last_lines(self._said)}"

    async def logs(self) -> str:
        """Get the last that nanny and worker wrote, at most 8,000 characters."""
        return self._said

    async def close(self) -> None:
        """Have the container stopped, and wait until Docker has removed it."""
        from docker.errors import DockerException

        try:
            async with asyncio.timeout(REMOVE_TIMEOUT):
                if problem := await _result(_in_thread(self._stop)):
                    logger.warning("Container %s may still be there: %s.", self._container.name, problem)
                    return
                with suppress(DockerException, OSError):  # how it ended is of no interest any more
                    await _result(self._ending)
        except TimeoutError:
            logger.warning(
                "Container %s is still there %g s after it was to stop: docker rm --force %s",
                *(self._container.name, REMOVE_TIMEOUT, self._container.name),
            )
        finally:
            if self._tether is not None:
                self._tether.close()
            self._client.close()

    def _stop(self) -> str | None:
        """Stop the container; what went wrong, if something did."""
        from docker.errors import DockerException, NotFound

        try:
            self._container.stop(timeout=CLOSE_TIMEOUT)
        except NotFound:
            return None
        except (DockerException, OSError) as error:
            # It may have ended just now, which Docker takes for a conflict.
            return None if getattr(error, "status_code", None) == 409 else str(error)
        return None


def _first_process(container: str) -> int:
    """Find the first process of a container: the lowest number, as this process sees it.

    The number that Docker says is that of its daemon's name space, which need not be this one.

    Raises
    ------
    MeshError
        If there is none.
    """
    found = []
    for groups in Path("/proc").glob("[0-9]*/cgroup"):
        with suppress(OSError):  # that process has ended
            if container in groups.read_text():
                found.append(int(groups.parent.name))
    if not found:
        raise MeshError(
            f"The processes of container {container[:12]} are not to be seen from here, so it cannot be "
            "given an interface on the mesh. Either it has ended already, or the user who logs in at this "
            "site is not root, and has a mesh in name spaces that Docker's daemon is not in. Log in as root, "
            "or have the workers started with `launcher: host`."
        )
    return min(found)


def _connections() -> dict[str, str]:
    """How Dask's connections are set here, as variables for a worker.

    Time-outs are above an outage where there are sites; and both ends of a connection have to name the same
    compression, or there is none.
    """
    times = dask.config.get("distributed.comm.timeouts")
    settings = {f"TIMEOUTS__{name.upper()}": time for name, time in times.items()}
    settings["COMPRESSION"] = dask.config.get("distributed.comm.compression")
    return {f"DASK_DISTRIBUTED__COMM__{name}": str(value) for name, value in settings.items()}


def _connect(daemon: str | None) -> Any:
    """Connect with Docker's daemon.

    Raises
    ------
    RuntimeError
        If it does not answer; says where it was looked for, and what to do.
    """
    import docker
    from docker.errors import DockerException

    url = daemon or os.environ.get("DOCKER_HOST") or SOCKET
    if not url.startswith("unix://"):
        # The SDK would take it, and Docker's own documentation says what follows from a port that is open.
        raise RuntimeError(
            f"Docker's daemon is named by DOCKER_HOST={url}, but only one on this machine is used: set "
            "`daemon: unix:///PATH` below `docker:`, or unset DOCKER_HOST"
        )
    try:
        return docker.DockerClient(base_url=url)
    except DockerException as error:
        path = url.removeprefix("unix://")
        if not os.path.exists(path):
            todo = "Start it (systemctl start docker), or name its socket: docker: {daemon: unix:///PATH}"
        elif not os.access(path, os.W_OK):
            todo = (
                "This user may not use it. Ask whoever runs this machine for a rootless daemon, or for "
                "membership of the group that the socket belongs to, which is as good as root's password"
            )
        else:
            todo = "Is it running? Try: docker info"
        raise RuntimeError(f"Docker's daemon does not answer at {url} ({_cause(error)}). {todo}") from None


def _cause(error: BaseException) -> str:
    """Say what is at the bottom of an error of the SDK, which puts several layers around it."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return str(getattr(error, "strerror", None) or error)


def _in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Do something that may take as long as a worker lives, in a thread that does not outlive the program.

    Those of an event loop's own pool are few.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="dask-pools-docker", daemon=True).start()
    return future


async def _result(future: Future[_Result]) -> _Result:
    """Wait for what a thread does, which goes on if this is cancelled."""
    return await asyncio.shield(asyncio.wrap_future(future))


# What a data-centres file may say


def _mount(text: str, *, writable: bool = False) -> Mount:
    """Read ``PATH`` or ``PATH_ON_THE_MACHINE:PATH_IN_THE_CONTAINER``.

    Raises
    ------
    ValueError
        If these are no absolute paths, or the second is the root.
    """
    source, colon, target = text.partition(":")
    target = target if colon else source
    for path in (source, target):
        if not path.startswith("/") or posixpath.normpath(path) != path.rstrip("/") or ":" in path:
            raise ValueError(
                f"{text!r} is no directory to mount; write an absolute path, or two as in "
                "/archive/2024:/data/eumetsat, the one in the container last"
            )
    return Mount(source.rstrip("/"), target.rstrip("/"), writable)


class DockerOptions(AtSite):
    """What ``docker:`` may say in a data-centres file.

    Attributes
    ----------
    image : str
        Of the containers; nothing is pulled.
    data : tuple of str
        Directories that containers see and cannot change: a path, or ``PATH_HERE:PATH_IN_THE_CONTAINER``.
    writable : tuple of str
        Directories that they can change.
    network : str or None
        Docker's network that they are in; None for the machine's own, but at a site on a mesh for Docker's
        usual one. In all but the machine's they have an interface of their own on the mesh.
    user : str or None
        Whose the processes in there are.
    python : str
        The Python interpreter in the image.
    options : tuple of str
        Further options of ``dask worker``.
    daemon : str or None
        URL of the daemon's socket, ``unix:///PATH``.
    """

    image: Annotated[str, Field(min_length=1)]
    data: Listed = ()
    writable: Listed = ()
    network: Annotated[str, Field(min_length=1)] | None = None
    user: str | None = None
    python: str = "python"
    options: Listed = ()
    daemon: str | None = None

    @field_validator("data", "writable")
    @classmethod
    def _mounted(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            _mount(path)
        return paths

    @field_validator("daemon")
    @classmethod
    def _of_this_machine(cls, daemon: str | None) -> str | None:
        if daemon is not None and not daemon.startswith("unix:///"):
            raise ValueError(
                f"{daemon!r} is not the socket of a daemon on this machine; write unix:///PATH. For workers "
                "on another machine make that the control host of a site"
            )
        return daemon

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """All directories that are mounted."""
        return (
            *(_mount(path) for path in self.data),
            *(_mount(path, writable=True) for path in self.writable),
        )

    def cannot(self, workers: Workers) -> dict[str, str]:
        """Tell what a container cannot have."""
        problems = {}
        targets = [one.target for one in self.mounts]
        for target in {one for one in targets if targets.count(one) > 1}:
            problems["docker.data"] = f"{target} is mounted twice; keep one, under data or writable"
        if workers.directory is not None and not workers.directory.startswith("/"):
            problems["directory"] = (
                f"{workers.directory!r} has to be an absolute path, as it is in the container"
            )
        return problems

    def launcher(self, pool: str, workers: Workers) -> DockerLauncher:
        """Make the launcher of a pool.

        Raises
        ------
        ImportError
            If Docker's SDK is not installed.
        """
        return self.of(timeout=workers.timeout or START_TIMEOUT)

    @property
    def here(self) -> bool:
        """Only those in no other network of Docker's are."""
        return self.network in (None, HOST)

    def at(self, site: Site) -> SiteLauncher:
        """Make the launcher of the pool at a site: its agent starts the containers, on the control host."""
        return SiteLauncher(site, "docker", options=self.model_dump(mode="json", exclude_unset=True))

    def of(
        self,
        *,
        host: str | None = None,
        timeout: float = START_TIMEOUT,
        hand_over: Callable[[int], None] | None = None,
        tethered: bool = False,
    ) -> DockerLauncher:
        """Make the launcher that does as these options say.

        Parameters
        ----------
        host : str, optional
        timeout : float
        hand_over : callable, optional
        tethered : bool
            As of `DockerLauncher`.

        Raises
        ------
        ImportError
            If Docker's SDK is not installed.
        """
        try:
            import_module("docker")
        except ImportError as error:
            raise ImportError(
                f"Workers in Docker containers take Docker's SDK where they are started: "
                f"pip install 'intake-pools[docker]' ({error})."
            ) from None
        network = self.network or (HOST if hand_over is None else BRIDGE)
        return DockerLauncher(
            self.image,
            self.mounts,
            network,
            self.user,
            self.python,
            self.options,
            self.daemon,
            host,
            timeout,
            None if network == HOST else hand_over,
            tethered,
        )
