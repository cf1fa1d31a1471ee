"""Where tasks ran, as the scheduler knows it, be it in this process or in another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cloudpickle
from distributed import Client, Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_pools import pins

# A scheduler in another process need not find this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Whereabouts(SchedulerPlugin):
    """Notes for every task that reads an entry the pools of the worker that ran it.

    Says what it saw as a list of (pools that the task reads from, pools of the worker).
    """

    name = "whereabouts"

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.reads: dict[Any, set[str]] = {}
        self.seen: list[tuple[set[str], tuple[str, ...]]] = []

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *_: Any, **kwargs: Any) -> None:
        if finish == "processing":
            # While it is known what the task does: results in memory may lose that.
            task = self.scheduler.tasks[key]
            named = pins.pools_of_task(key, task.run_spec)
            if self.prefix and str(key).startswith(self.prefix):
                named = {"?"}
            if named:
                self.reads[key] = named
        elif start == "processing" and finish in ("memory", "erred") and key in self.reads:
            worker = self.scheduler.workers.get(kwargs.get("worker") or "")
            offered = tuple(sorted(n.removeprefix("pool-") for n in worker.resources)) if worker else ()
            self.seen.append((self.reads.pop(key), offered))


def _seen(dask_scheduler: Scheduler) -> list[tuple[set[str], tuple[str, ...]]]:
    return list(dask_scheduler.plugins[Whereabouts.name].seen)


@dataclass
class Seen:
    """What `Whereabouts` sees on the scheduler of a client."""

    client: Client

    @property
    def seen(self) -> list[tuple[set[str], tuple[str, ...]]]:
        return self.client.run_on_scheduler(_seen)


@contextmanager
def watch(client: Client) -> Iterator[Seen]:
    """Have the scheduler note where tasks run, inside the block."""
    client.register_plugin(Whereabouts(), name=Whereabouts.name)
    try:
        yield Seen(client)
    finally:
        client.unregister_scheduler_plugin(Whereabouts.name)
