"""What is being done at each site while a cluster comes up or goes: on a terminal, side by side.

Elsewhere it is a line for each step. It knows names and words, and nothing of clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

__all__ = ["Progress"]

# Times a second that a terminal shows what is new.
REFRESH = 8


class Progress:
    """Show what is being done, while `showing`.

    Parameters
    ----------
    console : Console
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._showing = False
        self._steps: dict[str, str] = {}

    def step(self, pool: str, step: str) -> None:
        """Note what is being done for a pool now. From any thread."""
        if not self._showing or self._steps.get(pool) == step:
            return
        self._steps[pool] = step
        if not self._console.is_terminal:
            self._console.print(f"{pool}: {step}", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self, what: str) -> Iterator[None]:
        """Show it, below what all of it is for."""
        spinner = Spinner("dots", what)

        def shown() -> RenderableType:
            table = Table.grid(padding=(0, 2))
            for pool, step in list(self._steps.items()):
                # Of an error the first line is enough: all of it comes later.
                table.add_row(f"  {pool}", Text(step.partition("\n")[0], overflow="ellipsis", no_wrap=True))
            return Group(spinner, table)

        self._steps, self._showing = {}, True
        try:
            if self._console.is_terminal:
                with Live(
                    get_renderable=shown, console=self._console, transient=True, refresh_per_second=REFRESH
                ):
                    yield
            else:
                yield
        finally:
            self._showing = False
