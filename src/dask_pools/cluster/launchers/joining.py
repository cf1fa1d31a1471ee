"""Waiting for a worker that was started to join its scheduler; and the command that workers are started by.

For launchers to use. It knows the scheduler's address and nothing of how the worker was started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress

from distributed import Security
from distributed.core import rpc

from dask_pools.cluster.launchers import WorkerShape

__all__ = ["joined", "worker_command"]

# Seconds between two looks at who has joined: soon at first, and rarely for those that wait in a queue.
POLL, POLL_AT_MOST = 0.05, 2.0


def worker_command(
    scheduler: str,
    name: str,
    shape: WorkerShape,
    *,
    python: Sequence[str] = ("python",),
    options: Sequence[str] = (),
) -> list[str]:
    """Command that starts a worker under a nanny, word by word.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler.
    name : str
        What the worker is to call itself.
    shape : WorkerShape
        Its directory and environment are for whoever runs the command.
    python : sequence of str
        The interpreter where the worker runs, with options.
    options : sequence of str
        Further options of ``dask worker``.
    """
    resources = " ".join(f"{resource}={amount}" for resource, amount in shape.resources.items())
    return [
        *python,
        "-m",
        "distributed.cli.dask_worker",
        scheduler,
        *("--name", name),
        *("--nthreads", str(shape.threads)),
        *("--memory-limit", str(shape.memory_limit or 0)),
        *(("--resources", resources) if resources else ()),
        *options,
    ]


async def joined(scheduler: str, name: str, timeout: float | None, ended: Awaitable[str]) -> None:
    """Wait until a worker has joined the scheduler.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler.
    name : str
        Of the worker.
    timeout : float or None
        Seconds to wait at most; None for no limit.
    ended : awaitable of str
        Completes if the worker will not come, saying why; cancelled when it has come.

    Raises
    ------
    RuntimeError
        If it will not come.
    TimeoutError
        If it takes too long.
    """
    joining = asyncio.ensure_future(_joined(scheduler, name))
    ending = asyncio.ensure_future(ended)
    try:
        await asyncio.wait({joining, ending}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if joining.done():
            return joining.result()
        if ending.done():
            raise RuntimeError(ending.result())
        raise TimeoutError(f"it did not join the scheduler within {timeout:g} s")
    finally:
        for task in (joining, ending):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _joined(scheduler: str, name: str) -> None:
    wait = POLL
    # With Dask's own settings of TLS, where there are some.
    async with rpc(scheduler, connection_args=Security().get_connection_args("worker")) as remote:
        while not any(
            worker["name"] == name for worker in (await remote.identity(n_workers=-1))["workers"].values()
        ):
            await asyncio.sleep(wait)
            wait = min(1.1 * wait, POLL_AT_MOST)
