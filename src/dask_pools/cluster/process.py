"""A process that is told apart from every other, also when its number has been given away again.

Numbers of processes are used again after they have ended; with the moment at which it began, counted from
the boot of the machine, a process is one and no other. Standard library only; Linux.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Machine", "Process"]


@dataclass(frozen=True)
class Machine:
    """Where numbers of processes mean something."""

    host: str
    boot: str
    """Identifier of its last start."""
    namespace: str
    """Name space of its processes: containers have their own."""

    @classmethod
    @cache
    def here(cls) -> Machine:
        """Get the one that this process runs on."""
        return cls(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespace=os.readlink("/proc/self/ns/pid"),
        )


@dataclass(frozen=True)
class Process:
    """One process."""

    pid: int
    started: int
    """Clock ticks between the start of the machine and its own."""
    machine: Machine

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Find the process of this machine that has this number now; None if there is none."""
        try:
            # The second field is the name of its program, with whatever in it.
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        # One that has ended and is only waited for is none any more (proc(5): state, starttime).
        return None if state in "ZX" else cls(pid, int(fields[18]), Machine.here())

    @classmethod
    def current(cls) -> Process:
        """Get the one that asks."""
        found = cls.of(os.getpid())
        assert found is not None
        return found

    @property
    def is_here(self) -> bool:
        """Whether it can be seen from here, were it alive."""
        here = Machine.here()
        return self.machine.host == here.host and (
            self.machine.boot != here.boot or self.machine.namespace == here.namespace
        )

    @property
    def lives(self) -> bool:
        """Whether it runs; to be asked of one that `is_here`."""
        return Process.of(self.pid) == self

    def end(self, patience: float, *, group: bool = False) -> bool:
        """Ask it to end and, after some seconds, end it; whether there was anything to end.

        Parameters
        ----------
        patience : float
            Seconds.
        group : bool
            Whether all of its group are meant, which it leads.
        """
        try:
            # Whatever happens to the number from here on, this stands for the process that has it now.
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.lives:
                return False
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                    # While the leader is there, its number is that of the group.
                    if group and self.lives:
                        os.killpg(self.pid, number)
                if _has_ended(handle, patience):
                    break
        finally:
            os.close(handle)
        return True


def _has_ended(handle: int, seconds: float) -> bool:
    """Wait until a process has ended; whether it has."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(1000 * left):
            return True
    return bool(poll.poll(0))
