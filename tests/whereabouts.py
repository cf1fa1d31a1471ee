"""Where tasks ran, as the scheduler knows it."""

from __future__ import annotations

from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_pools import pins


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
