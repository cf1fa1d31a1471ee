"""Workers as jobs of a batch system, by the job classes of dask-jobqueue.

Slurm is shown to work, by tests with its real daemons. PBS, SGE, LSF, HTCondor and OAR are **experimental**:
they are made from the same code, and their job scripts are compared with what is expected, but nothing has
been submitted to a real system. Why a job ended is known of Slurm's only; of others the scheduler merely
notices that a worker left.

One job is one worker. The jobs of a pool are told apart by their ids, since names are not unique.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar
from weakref import WeakKeyDictionary

from distributed import Security
from pydantic import BeforeValidator, Field

from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.joining import check_private
from dask_pools.workers import Bytes, LauncherOptions, Listed, Workers

__all__ = [
    "HTCondorOptions",
    "JobLauncher",
    "JobWorker",
    "LSFOptions",
    "OAROptions",
    "PBSOptions",
    "SGEOptions",
    "SlurmOptions",
]

logger = logging.getLogger(__name__)

# Seconds between two looks at the queue, for all jobs together; while one of them is being stopped;
# and after which a job that was to stop is reported, having been told so several times. Batch systems are
# shared, and slow.
POLL = 15.0
POLL_STOPPING = 1.0
STOP_TIMEOUT = 60.0
STOP_ATTEMPTS = 4

# Seconds in which the worker of a job that runs has to join. A node that crashes while a job starts there may
# leave Slurm in the belief, for half an hour, that it runs.
JOINING = 300.0

# Bytes of a job's log that are shown.
SHOWN = 8000


@dataclass(frozen=True)
class _Batch:
    """One batch system."""

    name: str
    """What it is called in messages."""
    module: str
    """That of dask_jobqueue with its job class, and the name of that."""
    job_class: str
    longest_name: int | None = None
    """Characters that the name of a job may have."""


_SYSTEMS = {
    "slurm": _Batch("Slurm", "slurm", "SLURMJob"),
    "pbs": _Batch("PBS", "pbs", "PBSJob", 15),
    "sge": _Batch("SGE", "sge", "SGEJob"),
    "lsf": _Batch("LSF", "lsf", "LSFJob"),
    "htcondor": _Batch("HTCondor", "htcondor", "HTCondorJob"),
    "oar": _Batch("OAR", "oar", "OARJob"),
}


def _job_class(batch: _Batch) -> Any:
    """Import a job class, and let Ctrl-C mean what it did: dask-jobqueue makes it end the program at once."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return getattr(import_module(f"dask_jobqueue.{batch.module}"), batch.job_class)
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class JobLauncher:
    """Start workers as jobs of a batch system.

    Parameters
    ----------
    system : {"slurm", "pbs", "sge", "lsf", "htcondor", "oar"}
    job_class : type
        Of dask-jobqueue: what a job of that system is.
    options : mapping
        Arguments of that class, besides those that follow from the worker.
    worker_options : tuple of str
        Further options of ``dask worker``.
    """

    system: str
    job_class: Callable[..., Any]
    options: Mapping[str, Any]
    worker_options: tuple[str, ...] = ()

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> JobWorker:
        """Submit a job, and return when it is in the queue; its worker joins the scheduler when it runs.

        Raises
        ------
        RuntimeError
            If the batch system refuses the job; with what it says, word for word.
        UnsupportedSettingError
            If the worker would have to reach the scheduler without encryption.
        """
        check_private(scheduler)
        job = self.job(scheduler, name, shape)
        submitting = asyncio.ensure_future(self._submit(job))
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The job may have its place in the queue already: its id has to be known to take it out.
            with suppress(RuntimeError):
                await submitting
                await JobWorker(self, job).close()
            raise
        logger.info("Worker %s is job %s of %s.", name, job.job_id, _SYSTEMS[self.system].name)
        return JobWorker(self, job)

    async def find(
        self, scheduler: str, name: str, shape: WorkerShape, handle: Mapping[str, Any]
    ) -> JobWorker:
        """Find a job again; whether it has ended is known of Slurm's only.

        Raises
        ------
        LookupError
            If it has ended.
        """
        job = self.job(scheduler, name, shape)
        job.job_id = handle["job"]
        if self.system == "slurm" and (states := await _states({job.job_id})) is not None:
            state = states.get(job.job_id, _GONE)
            if state == _GONE or _OVER.match(state):
                raise LookupError(f"job {job.job_id} of Slurm ended: {state}")
        return JobWorker(self, job, Path(handle["submitted_in"]))

    def job(self, scheduler: str, name: str, shape: WorkerShape) -> Any:
        """Make the job of a worker, without submitting it.

        Parameters
        ----------
        scheduler : str
            Address of the scheduler.
        name : str
            Of the worker.
        shape : WorkerShape

        Returns
        -------
        dask_jobqueue.core.Job
        """
        options = dict(self.options)
        resources = " ".join(f"{resource}={amount}" for resource, amount in shape.resources.items())
        arguments = [*(("--resources", resources) if resources else ()), *self.worker_options]
        # dask-jobqueue puts the words into a shell script as they are.
        options["worker_extra_args"] = [shlex.quote(word) for word in arguments]
        before = list(options.get("job_script_prologue", ()))
        before += [f"export {variable}={shlex.quote(value)}" for variable, value in shape.env.items()]
        if shape.directory:
            before.append(f"cd {shlex.quote(shape.directory)} || exit 1")
        options["job_script_prologue"] = before
        options.setdefault("job_name", name[: _SYSTEMS[self.system].longest_name])
        if self.system == "slurm":
            # After the loss of a node Slurm would bring a job back that the cluster has replaced.
            options["job_extra_directives"] = ["--no-requeue", *options.get("job_extra_directives", ())]
        if scheduler.startswith("tls://"):
            # Files of certificate and key by Dask's settings: jobs have to see them where this process does.
            options.update(security=Security(), protocol="tls")
        return self.job_class(
            scheduler,
            name=name,
            cores=shape.threads,
            memory=f"{shape.memory_limit} B",
            processes=1,
            **options,
        )

    async def _submit(self, job: Any) -> None:
        try:
            await job.start()
        except FileNotFoundError as error:
            raise RuntimeError(
                f"there is no command {error.filename!r} here: make the cluster where jobs can be submitted"
            ) from None
        except RuntimeError as error:
            # dask-jobqueue's message ends with what the command wrote.
            said = str(error).rpartition("stderr:\n")[2].strip() or str(error).strip()
            raise RuntimeError(f"{_SYSTEMS[self.system].name} refuses the job, saying: {said}") from None


class JobWorker:
    """A worker that is a job.

    Attributes
    ----------
    job_id : str
    """

    def __init__(self, launcher: JobLauncher, job: Any, submitted_in: Path | None = None) -> None:
        self._launcher = launcher
        self._job = job
        self._submitted_in = submitted_in or Path.cwd()
        self.job_id: str = job.job_id

    @property
    def handle(self) -> dict[str, Any]:
        """What `JobLauncher.find` finds it by."""
        return {"job": self.job_id, "submitted_in": str(self._submitted_in)}

    async def ended(self) -> str:
        """Wait until the batch system says that the job is no more, and with what words; Slurm only."""
        if self._launcher.system != "slurm":
            await asyncio.Event().wait()
        state = await _queue().ended(self.job_id)
        why = f"job {self.job_id} of {_SYSTEMS[self._launcher.system].name} ended: {state}"
        said = [line for line in (await self._log() or "").splitlines() if line.strip()]
        return f"{why}; the last line of its log: {said[-1].strip()}" if said else why

    @property
    def overdue(self) -> str | None:
        """Why the worker should have joined by now; None while it may still come."""
        if (seconds := _queue().running_for(self.job_id)) <= JOINING:
            return None
        return f"its job {self.job_id} has been running for {seconds:.0f} s, and it has not joined"

    async def logs(self) -> str:
        """Get the last that the job wrote; where that is, if it cannot be read from here."""
        log = await self._log()
        if log is not None:
            return log
        states = await _states({self.job_id}) if self._launcher.system == "slurm" else None
        state = f", {states[self.job_id]}" if states and self.job_id in states else ""
        return f"Job {self.job_id}{state}: nothing to be read from here yet. It writes to {self._where()}."

    async def _log(self) -> str | None:
        found = [path for path in self._files() if path.is_file()]
        if not found:
            return None
        return "".join([await asyncio.to_thread(_end, path) for path in found])

    def _files(self) -> list[Path]:
        """Files that the job writes, as far as their names are known."""
        if self._launcher.system != "slurm":
            return []
        directory = self._job.log_directory
        if directory is None:
            return [self._submitted_in / f"slurm-{self.job_id}.out"]
        stem = self._submitted_in / directory / f"{self._job.job_name}-{self.job_id}"
        return [Path(f"{stem}.{kind}") for kind in ("out", "err")]

    def _where(self) -> str:
        if files := self._files():
            return " and ".join(map(str, files))
        return f"a file in {self._job.log_directory or self._submitted_in}"

    async def close(self) -> None:
        """Take the job out of the queue or end it; with Slurm, wait until it is gone."""
        for _ in range(STOP_ATTEMPTS):
            try:
                # Should the command fail, dask-jobqueue does not say so: the job may have ended already.
                await self._job.close()
            except FileNotFoundError as error:
                logger.warning("Job %s may still be running: no command %r.", self.job_id, error.filename)
                return
            if self._launcher.system != "slurm":
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT / STOP_ATTEMPTS):
                    await _queue().ended(self.job_id, stopping=True)
                    return
        logger.warning("Job %s of Slurm is still there a minute after scancel.", self.job_id)


def _end(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SHOWN))
        return file.read().decode(errors="replace")
    return ""


# Slurm's states of a job that will never run again. One that is completing has ended, but for its processes.
_OVER = re.compile(
    "BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|REVOKED|TIMEOUT"
)
_GONE = "it is not in the queue any more"


class _Queue:
    """Slurm's queue, as far as some jobs are concerned: looked at for all of them together."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[str], str] = {}
        self._stopping: set[asyncio.Future[str]] = set()
        self._running: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    def running_for(self, job: str) -> float:
        """Tell for how many seconds a job that somebody waits for has been seen running; 0 if it does not."""
        since = self._running.get(job)
        return 0.0 if since is None else time.monotonic() - since

    async def ended(self, job: str, *, stopping: bool = False) -> str:
        """Wait until a job has ended; its state and reason, in Slurm's words."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[future] = job
        if stopping:
            self._stopping.add(future)
            self._hurry.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            return await future
        finally:
            self._waiting.pop(future, None)
            self._stopping.discard(future)
            if not self._waiting and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        while self._waiting:
            self._hurry.clear()
            asked = dict(self._waiting)  # jobs may be added meanwhile
            if (states := await _states(set(asked.values()))) is not None:
                running = [job for job, state in states.items() if state.startswith("RUNNING")]
                self._running = {job: self._running.get(job, time.monotonic()) for job in running}
                for future, job in asked.items():
                    state = states.get(job, _GONE)
                    if not future.done() and (state == _GONE or _OVER.match(state)):
                        future.set_result(state)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), POLL_STOPPING if self._stopping else POLL)


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()


def _queue() -> _Queue:
    """Get the view of the queue that all pools of this event loop share."""
    return _queues.setdefault(asyncio.get_running_loop(), _Queue())


async def _states(jobs: set[str]) -> dict[str, str] | None:
    """Ask Slurm for the state and the reason of jobs; None if it does not answer."""
    command = [
        "squeue",
        "--noheader",
        "--states=all",
        "--format=%i|%T|%r",
        f"--jobs={','.join(sorted(jobs))}",
    ]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError:
        return None
    out, err = await process.communicate()
    if process.returncode != 0 and b"Invalid job id" not in err:
        logger.debug("Could not look at the queue: %s", err.decode(errors="replace").strip())
        return None
    found = {}
    for line in out.decode(errors="replace").splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        found[job] = f"{state} ({reason})" if reason not in ("", "None") else state
    return found


# What a data-centres file may say


def _walltime(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(
            f"{value} may have been meant as hours, minutes and seconds, which YAML takes for one number; "
            "write it in quotes, as in '10:00:00'"
        )
    return value


Walltime = Annotated[str, BeforeValidator(_walltime)]


class _JobOptions(LauncherOptions):
    """Options that the batch systems have in common; those that are not given are dask-jobqueue's settings.

    Attributes
    ----------
    python : str or None
        The Python interpreter where the jobs run.
    options : tuple of str
        Further options of ``dask worker``.
    interface : str or None
        Network interface of the workers.
    log_directory : str or None
        Where jobs write their logs.
    job_name : str or None
        Of all jobs; that of the worker if it is not given.
    job_script_prologue : tuple of str
        Lines of the job script before the worker's.
    job_directives_skip : tuple of str
        Directives for the batch system to leave out.
    shebang : str or None
        First line of the job script.
    """

    system: ClassVar[str]
    unless_said: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the job class that differ from dask-jobqueue's own."""

    python: str | None = None
    options: Listed = ()
    interface: str | None = None
    log_directory: str | None = None
    job_name: str | None = None
    job_script_prologue: Listed = ()
    job_directives_skip: Listed = ()
    shebang: str | None = None

    def cannot(self, workers: Workers) -> dict[str, str]:
        """Tell that a job needs a limit to its memory."""
        problems = {}
        if workers.memory is None:
            name = _SYSTEMS[self.system].name
            problems["launcher"] = f"a job of {name} asks for memory; say how much, as in memory: 16 GiB"
        return problems

    def launcher(self, pool: str, workers: Workers) -> JobLauncher:
        """Make the launcher of a pool.

        Raises
        ------
        ImportError
            If dask-jobqueue is not installed.
        """
        batch = _SYSTEMS[self.system]
        try:
            job_class = _job_class(batch)
        except ImportError as error:
            raise ImportError(
                f"The workers of {pool!r} are jobs of {batch.name}, which takes dask-jobqueue: "
                f"pip install 'intake-pools[jobqueue]' ({error})."
            ) from None
        given = self.model_dump(exclude={"options"}, exclude_unset=True)
        arguments = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in given.items()
            if value is not None
        }
        return JobLauncher(self.system, job_class, {**self.unless_said, **arguments}, self.options)


class _DirectiveOptions(_JobOptions):
    """Options of batch systems whose job scripts begin with directives.

    Attributes
    ----------
    job_extra_directives : tuple of str
        Directives to add.
    """

    job_extra_directives: Listed = ()


class SlurmOptions(_DirectiveOptions):
    """What ``slurm:`` may say in a data-centres file.

    Attributes
    ----------
    queue, account, walltime : str or None
        Partition, account and time limit of the jobs.
    job_cpu : int or None
        Processors to ask for, if not one for each thread.
    job_mem : str or None
        Memory to ask for, if not that of the worker.
    """

    system = "slurm"

    queue: str | None = None
    account: str | None = None
    walltime: Walltime | None = None
    job_cpu: int | None = None
    job_mem: str | None = None


class PBSOptions(_DirectiveOptions):
    """What ``pbs:`` may say in a data-centres file. Experimental: only the job scripts were tested."""

    system = "pbs"

    queue: str | None = None
    account: str | None = None
    walltime: Walltime | None = None
    resource_spec: str | None = None


class SGEOptions(_DirectiveOptions):
    """What ``sge:`` may say in a data-centres file. Experimental: only the job scripts were tested."""

    system = "sge"

    queue: str | None = None
    project: str | None = None
    walltime: Walltime | None = None
    resource_spec: str | None = None

    def cannot(self, workers: Workers) -> dict[str, str]:
        """Tell what each site has its own words for."""
        problems = super().cannot(workers)
        if self.resource_spec is None and not self.job_extra_directives:
            problems["launcher"] = (
                "how SGE is asked for memory and processors differs from site to site; say it as "
                "sge: {resource_spec: h_vmem=4G}, or under job_extra_directives"
            )
        return problems


class LSFOptions(_DirectiveOptions):
    """What ``lsf:`` may say in a data-centres file. Experimental: only the job scripts were tested."""

    system = "lsf"

    queue: str | None = None
    project: str | None = None
    walltime: Walltime | None = None
    ncpus: int | None = None
    mem: Bytes | None = None
    lsf_units: str | None = None
    use_stdin: bool | None = None


class HTCondorOptions(_JobOptions):
    """What ``htcondor:`` may say in a data-centres file. Experimental: only the job scripts were tested.

    Attributes
    ----------
    disk : str
        Disk space to ask for.
    job_extra_directives : dict of str to str
        Attributes of the submit file.
    """

    system = "htcondor"

    disk: str
    submit_command_extra: Listed = ()
    cancel_command_extra: Listed = ()
    job_extra_directives: dict[str, str] = Field(default_factory=dict)


class OAROptions(_DirectiveOptions):
    """What ``oar:`` may say in a data-centres file. Experimental: only the job scripts were tested."""

    system = "oar"
    unless_said: ClassVar[Mapping[str, Any]] = {"memory_per_core_property_name": "not_applicable"}

    queue: str | None = None
    project: str | None = None
    walltime: Walltime | None = None
    resource_spec: str | None = None
    memory_per_core_property_name: str | None = None
