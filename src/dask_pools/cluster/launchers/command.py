"""Workers by commands of the user's own: one that starts a worker, and one that stops it.

For whatever has no launcher: another machine over ssh, containers, ``kubectl``. The commands are templates,
filled word by word and run without a shell unless they begin with one. The start command may stay for as long
as the worker runs, or return at once. It knows nothing of what the commands do.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import shlex
import signal
import string
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationInfo, field_validator

from dask_pools.cluster.launchers import WorkerShape
from dask_pools.cluster.launchers.joining import (
    check_private,
    joined,
    last_lines,
    tls_options,
    worker_command,
)
from dask_pools.cluster.process import Process
from dask_pools.workers import LauncherOptions, Listed, Workers

__all__ = ["CommandLauncher", "CommandOptions", "CommandWorker"]

logger = logging.getLogger(__name__)

# Seconds. Starting may have to fetch an image first.
START_TIMEOUT = 300.0
STOP_TIMEOUT = 60.0
CLOSE_TIMEOUT = 5.0

# Characters of what the commands write that are kept.
KEPT = 8000

_PROCESS = TypeAdapter(Process)

_ALWAYS = ("name", "pool", "scheduler", "threads", "memory", "resources", "directory")
_PLACEHOLDERS = {"start": ("worker", *_ALWAYS), "stop": (*_ALWAYS, "id"), "logs": (*_ALWAYS, "id")}


def _words(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"{str(error).lower()} in {value!r}") from None
    return tuple(value) if isinstance(value, list) else value


Template = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""A command: a list of words, or one text that is split as a shell would."""


@dataclass(frozen=True)
class CommandLauncher:
    """Start workers by a command, and stop them by another.

    Parameters
    ----------
    pool : str
        The pool that they are of.
    start, stop : tuple of str
        Templates, word by word; `docs/launchers/command.md` has their placeholders.
    logs : tuple of str, optional
        Template of a command that prints what a worker wrote.
    python : str
        The Python interpreter where the workers run.
    options : tuple of str
        Further options of ``dask worker``.
    timeout : float
        Seconds within which a worker has to join.
    """

    pool: str
    start: tuple[str, ...]
    stop: tuple[str, ...]
    logs: tuple[str, ...] = ()
    python: str = "python"
    options: tuple[str, ...] = ()
    timeout: float = START_TIMEOUT

    async def launch(self, scheduler: str, name: str, shape: WorkerShape) -> CommandWorker:
        """Start a worker; it has joined the scheduler when this returns.

        Raises
        ------
        RuntimeError
            If the start command fails; with its exit status and the last that it wrote.
        TimeoutError
            If the worker does not join in time.
        UnsupportedSettingError
            If the worker would have to reach the scheduler without encryption.
        """
        check_private(scheduler)
        values = self._values(scheduler, name, shape)
        try:
            process = await asyncio.create_subprocess_exec(
                *fill(self.start, values),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # A process group to stop it by; and Ctrl-C in a terminal is not for it.
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeError(_not_run(self.start, error)) from None
        worker = CommandWorker(self, values, process)
        try:
            await joined(scheduler, name, self.timeout, worker.ended())
        except TimeoutError as error:
            worker.delivered = False
            said = last_lines(await worker.logs())
            await worker.close()
            raise TimeoutError(f"{error}, saying: {said}") from None
        except BaseException:
            worker.delivered = False
            await worker.close()
            raise
        return worker

    async def find(
        self, scheduler: str, name: str, shape: WorkerShape, handle: Mapping[str, Any]
    ) -> FoundWorker:
        """Find a worker again; whether it still runs, nobody but the scheduler knows."""
        start = handle["start"]
        values = {**self._values(scheduler, name, shape), "id": handle["id"]}
        return FoundWorker(self, values, _PROCESS.validate_python(start) if start else None)

    def _values(self, scheduler: str, name: str, shape: WorkerShape) -> dict[str, str | list[str]]:
        directory = shape.directory or ""
        command = worker_command(
            scheduler,
            name,
            shape,
            python=(self.python,),
            options=("--death-timeout", f"{self.timeout:g}", *tls_options(scheduler), *self.options),
        )
        # Whatever stands between here and the worker, these two are understood where it arrives.
        if shape.env:
            command = ["env", *(f"{variable}={value}" for variable, value in shape.env.items()), *command]
        if directory:
            command = ["sh", "-c", 'cd -- "$0" && exec "$@"', directory, *command]
        return {
            "worker": command,
            "name": name,
            "pool": self.pool,
            "scheduler": scheduler,
            "threads": str(shape.threads),
            "memory": str(shape.memory_limit or 0),
            "resources": " ".join(f"{resource}={amount}" for resource, amount in shape.resources.items()),
            "directory": directory,
        }


class FoundWorker:
    """A worker that a command started for another process, which has died."""

    def __init__(
        self, launcher: CommandLauncher, values: Mapping[str, str | list[str]], start: Process | None
    ) -> None:
        self._launcher = launcher
        self._values = values
        self._start = start

    @property
    def handle(self) -> dict[str, Any]:
        """What `CommandLauncher.find` finds it by."""
        return {"id": self._values["id"], "start": asdict(self._start) if self._start else None}

    async def ended(self) -> str:
        """Wait for ever: how its start command ends is told to the process that ran it."""
        await asyncio.Event().wait()
        return ""

    async def logs(self) -> str:
        """Get what the launcher's `logs` command prints; without one there is nobody left who knows."""
        if not self._launcher.logs:
            return "It was started by another process, which has died; command.logs is not set."
        status, text = await _run(fill(self._launcher.logs, self._values), self._launcher.logs)
        return text if status == 0 else _failed(self._launcher.logs, status, text)

    async def close(self) -> None:
        """Run the stop command, and end the start command if it still runs."""
        await _run_stop(self._launcher.stop, self._values, logging.WARNING)
        if self._start is not None:
            await asyncio.to_thread(self._start.end, CLOSE_TIMEOUT, group=True)


class CommandWorker:
    """A worker that a command started.

    Attributes
    ----------
    delivered : bool
        Whether it has joined the scheduler.
    """

    def __init__(
        self,
        launcher: CommandLauncher,
        values: Mapping[str, str | list[str]],
        process: asyncio.subprocess.Process,
    ) -> None:
        self.delivered = True
        self._launcher = launcher
        self._values = values
        self._process = process
        self._start = Process.of(process.pid)
        self._out = _Kept(process.stdout)
        self._err = _Kept(process.stderr)

    @property
    def handle(self) -> dict[str, Any]:
        """What `CommandLauncher.find` finds it by."""
        runs = self._start is not None and self._process.returncode is None
        return {"id": self._with_id()["id"], "start": asdict(self._start) if self._start and runs else None}

    async def ended(self) -> str:
        """Wait until the start command fails, and say how.

        One that ends well has either done its part, long before the worker ends, or was the worker, which has
        then left the scheduler in good order.
        """
        status = await self._process.wait()
        if status == 0:
            await asyncio.Event().wait()
        await asyncio.wait((self._err.reading, self._out.reading), timeout=1)
        return _failed(self._launcher.start, status, self._err.text or self._out.text)

    async def logs(self) -> str:
        """Get what the launcher's `logs` command prints; without one, what the start command wrote last."""
        if not self._launcher.logs:
            return self._out.text + self._err.text
        status, text = await _run(fill(self._launcher.logs, self._with_id()), self._launcher.logs)
        return text if status == 0 else _failed(self._launcher.logs, status, text)

    async def close(self) -> None:
        """Run the stop command, and end the start command if it still runs."""
        # Of a worker that never came there may have been nothing to stop.
        level = logging.WARNING if self.delivered else logging.INFO
        await _run_stop(self._launcher.stop, self._with_id(), level)
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is None:
                if number is not None:
                    with suppress(ProcessLookupError):
                        os.killpg(self._process.pid, number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), CLOSE_TIMEOUT)
        for kept in (self._out, self._err):
            kept.reading.cancel()

    def _with_id(self) -> dict[str, str | list[str]]:
        """Values for later commands; the start command may have printed what the worker is to be called."""
        lines = [line.strip() for line in self._out.text.splitlines() if line.strip()]
        return {**self._values, "id": lines[-1] if lines else ""}


class _Kept:
    """The last that comes from a pipe."""

    def __init__(self, pipe: asyncio.StreamReader | None) -> None:
        assert pipe is not None
        self.text = ""
        self.reading = asyncio.create_task(self._read(pipe))

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while chunk := await pipe.read(2**16):
            self.text = (self.text + decoder.decode(chunk))[-KEPT:]


async def _run_stop(template: Sequence[str], values: Mapping[str, str | list[str]], level: int) -> None:
    status, text = await _run(fill(template, values), template)
    if status != 0:
        what = _failed(template, status, text)
        logger.log(level, "Worker %s may still be running: %s.", values["name"], what)


async def _run(command: Sequence[str], template: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end; its exit status, and what it wrote."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return 127, _not_run(template, error)
    kept = _Kept(process.stdout)
    try:
        # Not until the pipe closes: something that it left running may keep that open.
        status = await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        await asyncio.wait((kept.reading,), timeout=1)
        return status, kept.text
    except TimeoutError:
        return 124, f"{kept.text}\nIt took longer than {STOP_TIMEOUT:g} s and was ended."
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        kept.reading.cancel()


def _failed(template: Sequence[str], status: int, text: str) -> str:
    # The template, not the command: values of the environment may be nobody's business.
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"`{_shown(template)}` ended with {how}, saying: {last_lines(text)}"


def _not_run(template: Sequence[str], error: OSError) -> str:
    return f"`{_shown(template)}` cannot be run here: {template[0]}: {error.strerror}"


def _shown(template: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) if {*word} & {*" \t\n'\""} else word for word in template)


def fill(template: Sequence[str], values: Mapping[str, str | list[str]]) -> list[str]:
    """Put values into a template.

    Parameters
    ----------
    template : sequence of str
        Words with placeholders: ``{name}``; quoted for a shell ``{name!q}``.
    values : mapping of str to str or list of str
        One that is a list becomes several words, or, if quoted for a shell, one text with all of them.

    Returns
    -------
    list of str
        Words of the command.
    """
    words: list[str] = []
    for word in template:
        if isinstance(several := values.get(word[1:-1]), list) and word[:1] + word[-1:] == "{}":
            words += several
            continue
        filled = ""
        for literal, name, _, conversion in string.Formatter().parse(word):
            filled += literal
            if name is not None:
                value = values[name]
                parts = [value] if isinstance(value, str) else value
                filled += shlex.join(parts) if conversion else " ".join(parts)
        words.append(filled)
    return words


def _placeholders(template: Sequence[str], known: Sequence[str]) -> set[str]:
    """Names of the placeholders of a template.

    Raises
    ------
    ValueError
        If it has others than `known`, or one is written wrongly.
    """
    found = set()
    allowed = ", ".join(f"{{{name}}}" for name in known)
    if not template or not template[0]:
        raise ValueError("it is empty; write a command")
    for word in template:
        try:
            parts = list(string.Formatter().parse(word))
        except ValueError as error:
            raise ValueError(f"{word!r}: {error}; a brace itself is written {{{{ or }}}}") from None
        for _, name, spec, conversion in parts:
            if name is None:
                continue
            if name not in known or spec or conversion not in (None, "q"):
                raise ValueError(
                    f"{word!r} has a placeholder that is not known here. Known: {allowed}, each also quoted "
                    f"for a shell, as in {{{known[0]}!q}}. A brace itself is written {{{{ or }}}}"
                )
            if name == "worker" and conversion is None and word != "{worker}":
                raise ValueError(
                    f"{word!r} has {{worker}}, which stands for several words, inside of one. Make it a word "
                    "of its own or, where a shell reads it, write {worker!q}"
                )
            found.add(name)
    return found


class CommandOptions(LauncherOptions):
    """What ``command:`` may say in a data-centres file.

    Attributes
    ----------
    start, stop, logs : tuple of str
        Templates, as of `CommandLauncher`.
    python : str
        The Python interpreter where the workers run.
    options : tuple of str
        Further options of ``dask worker``.
    """

    start: Template
    stop: Template
    logs: Template | None = None
    python: str = "python"
    options: Listed = ()

    @field_validator("start", "stop", "logs")
    @classmethod
    def _known(cls, template: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if template is not None:
            _placeholders(template, _PLACEHOLDERS[str(info.field_name)])
        return template

    def cannot(self, workers: Workers) -> dict[str, str]:
        """Tell what of the section the start command passes over."""
        used = _placeholders(self.start, _PLACEHOLDERS["start"])
        problems = {}
        if "directory" in used and workers.directory is None:
            problems["command.start"] = "it has {directory}, but the section has no directory"
        if "worker" in used:
            return problems
        if missing := [name for name in ("scheduler", "name", "resources") if name not in used]:
            lacking = ", ".join(f"{{{name}}}" for name in missing)
            problems["command.start"] = f"it needs {{worker}}, or else {lacking} as well"
        for key, name in (("threads", "threads"), ("memory", "memory"), ("directory", "directory")):
            if getattr(workers, key) != Workers.model_fields[key].default and name not in used:
                problems[key] = f"command.start passes over it: it has neither {{worker}} nor {{{name}}}"
        if workers.env:
            problems["env"] = "command.start passes over it: it has no {worker}"
        return problems

    def launcher(self, pool: str, workers: Workers) -> CommandLauncher:
        """Make the launcher of a pool."""
        return CommandLauncher(
            pool,
            self.start,
            self.stop,
            self.logs or (),
            self.python,
            self.options,
            workers.timeout or START_TIMEOUT,
        )
