"""Making sure that pools have workers before they are used: asking for some, waiting, or refusing at once.

The scheduler knows which pools have workers and who can bring up more (`dask_pools.scheduler`). This module
asks it on behalf of a user, asks the user where somebody has to agree, and puts the answers into words. It
starts nothing itself.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Client
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dask_pools import config, dask_internals, pins
from dask_pools.errors import MixedPoolsError, PoolUnavailableError

__all__ = ["ensure_workers", "ensure_workers_async", "ensure_workers_for"]

POLL = 0.2
"""Seconds between two looks at pools that are being waited for."""

LARGE = 20_000
"""Tasks of one layer that are looked at for pins before a graph is sent; the scheduler looks at all."""

Answers = dict[str, dict[str, Any]]


def ensure_workers(
    client: Client,
    *pools: str,
    timeout: float | str | None = None,
    provision: str | None = None,
) -> None:
    """Return when each of some pools has a worker, having asked for some where there are none.

    All are asked for at once, and there is a line for each while they are waited for.

    Parameters
    ----------
    client : distributed.Client
        Connected (`dask_pools.connect`). For one that is used asynchronously await `ensure_workers_async`.
    *pools : str
    timeout : float or str, optional
        Seconds to wait at most, or a time such as ``"2 min"``; if not given as long as the pool says, else
        ``pools.wait-for-workers``.
    provision : {"auto", "ask", "never"}, optional
        Whether to ask for workers, to ask the user first, or to refuse; if not given, as the setting
        ``pools.provision`` says, else the pool. What a pool says counts in any case if it is ``"never"``.

    Raises
    ------
    PoolUnavailableError
        At once if nobody can start workers for it or may do so, if the user does not agree, or if starting
        some has failed; else when the time is up.
    ValueError
        If a name cannot be that of a pool, or `timeout` or `provision` is something else.
    """
    request = _Request(client, pools, timeout, provision)
    # Before anything is shown: what cannot be had is refused at once.
    lacking = client.sync(request.answers)
    if request.to_ask(lacking):
        request.approved = _agrees(request.to_ask(lacking))
        lacking = client.sync(request.answers)
    if not lacking:
        return
    with _waiting(lacking) as show:
        while lacking:
            show(lacking, request.waited)
            time.sleep(POLL)
            lacking = client.sync(request.answers)
        show({}, request.waited)


async def ensure_workers_async(
    client: Client,
    *pools: str,
    timeout: float | str | None = None,
    provision: str | None = None,
) -> None:
    """`ensure_workers` for a client that is used asynchronously; it shows no progress, and asks nobody."""
    request = _Request(client, pools, timeout, provision)
    while lacking := await request.answers():
        if asked := request.to_ask(lacking):
            raise _refusal(next(iter(asked)), request.existing)
        await asyncio.sleep(POLL)


def ensure_workers_for(client: Client, expression: object) -> None:
    """Make sure, before a client sends a graph, that the pools of its pins have workers."""
    if not client.asynchronous and (pools := _pools_of(expression)):
        ensure_workers(client, *sorted(pools))


def _pools_of(expression: object) -> set[str]:
    """Pools that the pins of a graph name, as far as that can be told quickly."""
    pools: set[str] = set()
    for name, layer in dask_internals.layers_to_send(expression):
        if not dask_internals.is_symbolic(layer) and len(layer) > LARGE:
            continue
        try:
            found = pins.pools_of_layer(layer, name)
        except MixedPoolsError:
            continue  # the scheduler says so, to whoever computes it
        pools.update([found] if isinstance(found, str) else (found or {}).values())
    return pools


class _Request:
    """Workers that are asked for, for somebody who waits."""

    def __init__(
        self, client: Client, pools: Iterable[str], timeout: float | str | None, provision: str | None
    ) -> None:
        self.pools = [pins.check_name(pool) for pool in pools]
        self.provision = config.check_provision(provision) or config.provision()
        self.approved = False
        self.existing: list[str] = []
        self._client = client
        self._limit = None if timeout is None else config.in_seconds(timeout)
        self._start = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._start

    async def answers(self) -> Answers:
        """Ask, and give what is said of the pools that have no workers yet.

        Raises
        ------
        PoolUnavailableError
            If waiting longer for one of them is of no use, as the scheduler says.
        """
        answers: Answers = await self._client.scheduler.pools_request(
            pools=self.pools,
            waited=self.waited,
            patience=self._limit,
            default_patience=config.wait_for_workers(),
            provision=self.provision,
            approved=self.approved,
            user=_user(),
        )
        refused = {pool: answer["refused"] for pool, answer in answers.items() if answer["refused"]}
        if refused or self.to_ask(answers):
            self.existing = list((await self._client.scheduler.pools_status())["pools"])
        for pool, reason in refused.items():
            raise PoolUnavailableError(pool, self.existing, reason)
        return {pool: answer for pool, answer in answers.items() if not answer["ready"]}

    def to_ask(self, answers: Answers) -> Answers:
        """Those of the answers that say that somebody has to agree first."""
        asked = {pool: answer for pool, answer in answers.items() if answer["ask"]}
        if asked and (self.approved is False) and not _can_be_asked():
            raise _refusal(next(iter(asked)), self.existing)
        return asked


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may know no name for its user
        return ""


def _refusal(pool: str, existing: Iterable[str], why: str = "there is nobody to ask here") -> Exception:
    return PoolUnavailableError(
        pool,
        existing,
        f"It is brought up only when somebody agrees (provision: ask), and {why}. To agree in advance: "
        "dask.config.set({'pools.provision': 'auto'}).",
    )


def _can_be_asked() -> bool:
    """Whether there is a terminal, or a notebook, with somebody in front of it."""
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if hasattr(get_ipython(), "kernel"):
            return True
    return bool(sys.stdin and sys.stdin.isatty())


def _agrees(asked: Mapping[str, Mapping[str, Any]]) -> bool:
    """Ask whether workers of some pools are to be started.

    Raises
    ------
    PoolUnavailableError
        If not.
    """
    for pool, answer in asked.items():
        most = "" if answer["maximum"] is None else f", later {answer['maximum']} at most"
        workers = f"{answer['first']} worker{'' if answer['first'] == 1 else 's'}"
        try:
            said = input(f"Pool {pool!r} has no workers. Start {workers}{most}? [y/N] ")
        except (EOFError, NotImplementedError):  # the latter where a notebook is run without anybody
            raise _refusal(pool, ()) from None
        if said.strip().lower() not in ("y", "yes"):
            raise _refusal(pool, (), "you did not")
    return True


@contextmanager
def _waiting(lacking: Answers) -> Iterator[Callable[[Answers, float], None]]:
    """Show on stderr that pools are being waited for, a line for each.

    Gives a function to call with the answers for those that are still lacking and the seconds so far.
    """
    console = Console(stderr=True)
    texts = {
        pool: f"Waiting for workers of pool {pool!r}, at most {answer['patience']:g} s"
        for pool, answer in lacking.items()
    }
    if not (console.is_terminal or console.is_jupyter):
        for text in texts.values():
            print(text, file=sys.stderr)
        yield lambda answers, waited: None
        return
    columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        lines = {pool: progress.add_task(text, total=1) for pool, text in texts.items()}

        def show(answers: Answers, waited: float) -> None:
            for pool, line in lines.items():
                if pool in answers:
                    requested = answers[pool]["requested"]
                    progress.update(line, description=f"{texts[pool]}: {requested} requested")
                else:
                    progress.update(line, completed=1)

        yield show
