"""A real Slurm on one machine: one node, and a partition for each data centre.

All of its daemons run in one process name space with a ``/run`` of their own, so they end, with whatever jobs
there are, when the one process that keeps it does. They listen at one address only, of the loopback
interface unless another is said, at ports of their own. It knows nothing of Dask.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["FORBIDDEN", "QUOTA", "ROOT", "Slurm", "start_slurm"]

FORBIDDEN = "Slurm's daemons and their name space need root"

# Seconds.
START_TIMEOUT = 60.0

_CONF = """\
ClusterName=lab
SlurmctldHost={host}({address})
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
# What is asked for beyond the limits of a partition is refused, not left waiting.
EnforcePartLimits=ALL
JobSubmitPlugins=lua
SchedulerParameters=batch_sched_delay=0
NodeName=lab NodeHostname={host} NodeAddr={address} CPUs=16 RealMemory=16000
"""

ROOT = Path("/srv")
"""Where jobs have a file system in memory that nobody else sees."""

QUOTA = "Quota of account 'spent': 120.0 of 120.0 node hours used. More: helpdesk@example.org"
"""What a centre says to those who have used up what they had."""

_JOB_SUBMIT = f"""\
function slurm_job_submit(job, partitions, user)
    if job.account == "spent" then
        slurm.log_user("{QUOTA}")
        return slurm.ERROR
    end
    return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
"""

_APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]

# Each in the foreground: what they are started by waits for all. The node has a process name space of its
# own, so that it and its jobs can end at one moment; a node that has crashed starts again.
_KEEP = """
at=$1 root=$2
shift 2
mount -t tmpfs tmpfs /run && mkdir -p /run/munge && mount -t tmpfs tmpfs "$root"
munged --foreground --force --num-threads 2 --socket "$at/munge.socket" --key-file "$at/munge.key" \
    --pid-file /run/munge/munged.pid --log-file "$at/munge.log" --seed-file "$at/munge.seed" 2>/dev/null &
while ! munge --socket "$at/munge.socket" --no-input >/dev/null 2>&1; do sleep 0.05; done
slurmctld -D -c -f "$at/slurm.conf" >"$at/slurmctld.out" 2>&1 &
while :; do "$@" sh -c 'slurmd -D -f "$0" & wait' "$at/slurm.conf" >>"$at/slurmd.out" 2>&1; sleep 0.2; done &
exec cat
"""


@dataclass(frozen=True)
class Slurm:
    """A batch system that runs."""

    directory: Path
    """Of its files."""
    keeper: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        """What its commands need in their environment."""
        return {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run one of its commands, and return what that prints."""
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Ids of the jobs in one of these states."""
        return self.run("squeue", "--noheader", "--format=%i", f"--states={','.join(states)}").split()

    def crash_node(self) -> None:
        """End the node's daemon and whatever jobs run there, all at one moment, as a loss of power does."""
        inside = psutil.Process(self.keeper.pid).children(recursive=True)
        [node] = [process for process in inside if _is_called(process, "unshare")]
        # The kernel ends a process name space with its first process, which is gone when all others are.
        [first] = node.children()
        first.kill()
        first.wait(60)

    def from_outside(self, path: str | Path) -> Path:
        """Where the test can reach what jobs have at an absolute path."""
        return Path(f"/proc/{self.keeper.pid}/root{path}")

    def logs(self) -> str:
        """Get what its daemons wrote."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))


def _is_called(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.NoSuchProcess):  # jobs come and go
        return bool(process.name() == name)
    return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def start_slurm(directory: Path, partitions: Iterable[str], address: str = "127.0.0.1") -> Iterator[Slurm]:
    """Start it; its node can take jobs when this yields.

    Parameters
    ----------
    directory : Path
        Empty, and such that others may not write to it.
    partitions : iterable of str
        Each a line of ``slurm.conf`` without what all have in common.
    address : str, optional
        That of this host's name, on which the daemons listen.
    """
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        raise RuntimeError(f"No {', '.join(missing)} here: apt-get install slurm-wlm munge")
    controller, daemon = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    conf = _CONF.format(host=host, address=address, directory=directory, controller=controller, daemon=daemon)
    conf += "".join(f"PartitionName={one} Nodes=lab\n" for one in partitions)
    (directory / "slurm.conf").write_text(conf)
    (directory / "job_submit.lua").write_text(_JOB_SUBMIT)
    key = directory / "munge.key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for name in ("state", "spool"):
        (directory / name).mkdir()
    with subprocess.Popen(
        [*_APART, "sh", "-c", _KEEP, "sh", str(directory), str(ROOT), *_APART],
        stdin=subprocess.PIPE,
        # Ctrl-C is for the test run, which ends it in order.
        start_new_session=True,
    ) as keeper:
        slurm = Slurm(directory, keeper)
        try:
            _wait_for_node(slurm)
            yield slurm
        finally:
            keeper.kill()


def _wait_for_node(slurm: Slurm) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    said = ""
    while time.monotonic() < deadline:
        try:
            said = slurm.run("sinfo", "--noheader", "--format=%T").strip()
        except RuntimeError as error:
            said = str(error)
        if said in ("idle", "mixed"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Slurm did not start: {said}\n{slurm.logs()}")
