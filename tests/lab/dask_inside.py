"""Dask in the lab: functions for hands that start schedulers and workers on a host and compute on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed import Client, wait

# In a hand: what it has started.
_processes: list[subprocess.Popen[bytes]] = []


def start_scheduler(address: str) -> str:
    """Start a scheduler that listens on an address; where it is reached."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "scheduler.json")
        host = ["--host", _bracketed(address), "--port", "0"]
        _start("dask_scheduler", *host, "--no-dashboard", "--scheduler-file", str(file))
        for _ in range(600):
            if file.exists() and (text := file.read_text()):
                return str(json.loads(text)["address"])
            time.sleep(0.1)
    raise TimeoutError("The scheduler did not start.")


def start_worker(scheduler: str, address: str, name: str) -> None:
    """Start a worker that listens on an address."""
    options = ["--host", _bracketed(address), "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    options += ["--name", name]
    _start("dask_worker", scheduler, *options, "--local-directory", tempfile.gettempdir())


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _start(command: str, *arguments: str) -> None:
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", f"distributed.cli.{command}", *arguments],
        stdin=subprocess.DEVNULL,
    )
    _processes.append(process)


def stop() -> None:
    """End what this hand has started."""
    while _processes:
        process = _processes.pop()
        process.kill()
        process.wait()


def where(scheduler: str, workers: int) -> dict[str, int]:
    """User identifiers of the workers, by name, when so many are there."""
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=60)
        names = {
            address: one["name"] for address, one in client.scheduler_info(n_workers=-1)["workers"].items()
        }
        return {str(names[address]): uid for address, uid in client.run(os.getuid).items()}


def transfer(scheduler: str, source: str, target: str, nbytes: int) -> float:
    """Seconds until a result of one worker is on another."""
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        made = client.submit(os.urandom, nbytes, workers=[source], pure=False)
        wait(made)
        start = time.monotonic()
        wait(client.submit(len, made, workers=[target], pure=False))
        return time.monotonic() - start
