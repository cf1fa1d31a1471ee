"""A plan: where the tasks of a graph will run and what will cross, in a form to be read.

`dask_pools.placement.summary` makes one of a placement. Knows neither how that came about nor how it is
drawn. What a plan holds is plain data, so that it travels from the scheduler, which alone knows where
persisted results are, to the user.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask.utils import format_bytes

from dask_pools.errors import TransferBudgetError

ANYWHERE = "(anywhere)"
"""Stands for tasks that no pool is chosen for. The name cannot be a pool's."""

GATHER = "gather the result"
"""Operation of the task that puts a result together for ``.compute()``."""


@dataclass(frozen=True)
class PoolShare:
    """What one pool does.

    Attributes
    ----------
    pool : str
        Or `ANYWHERE`.
    tasks : int
        Before Dask fuses chains of tasks.
    read : int
        Bytes of the chunks that are loaded there. Where a slice of a chunk is enough, less is read.
    held : int
        Bytes of results that are there already, persisted or scattered, and are used.
    to_client : int
        Bytes of the results that the client fetches from there.
    """

    pool: str
    tasks: int = 0
    read: int = 0
    held: int = 0
    to_client: int = 0


@dataclass(frozen=True)
class Step:
    """The tasks of one layer that run in one pool.

    Attributes
    ----------
    operation : str
        What they do: the name of the layer, without its token.
    variables : tuple of str
        What they work on: names of what was loaded for them.
    pool : str
        Or `ANYWHERE`.
    tasks, bytes : int
        How many, and the size of their results.
    kind : str
        ``"read"``, also where that is fused with what is done first; ``"held"`` (results that are there
        already), ``"gather"`` or ``"task"``.
    output : bool
        Whether the client gets results of theirs.
    would_cross : tuple of (str, int)
        For each pool that comes into question the bytes of what they read and of their own results that would
        cross were all of them there and everything else where it is; the fewest first. Empty for tasks that
        were not to be placed: what reads, what is there already, what a `pool` block pins.
    """

    operation: str
    variables: tuple[str, ...]
    pool: str
    tasks: int
    bytes: int
    kind: str
    output: bool
    would_cross: tuple[tuple[str, int], ...] = ()

    @property
    def label(self) -> str:
        """Operation and variables, in words."""
        return GATHER if self.kind == "gather" else _words(self.operation, self.variables)

    @property
    def reason(self) -> str:
        """Why they are where they are, in words."""
        if self.kind in ("read", "held"):
            return "the data are there" if self.kind == "read" else "held there already"
        if self.pool == ANYWHERE:
            return "nothing ties them to a pool"
        if not self.would_cross:
            return "pinned"
        here = dict(self.would_cross)[self.pool]
        others = [f"{format_bytes(n)} in {pool}" for pool, n in self.would_cross if pool != self.pool]
        if not others:
            return "all that they read and all that reads them is there"
        return f"{format_bytes(here)} would cross, {', '.join(others)}"


@dataclass(frozen=True)
class Edge:
    """Results of one step that another step reads.

    Attributes
    ----------
    source, target : int
        Positions in `Plan.steps`.
    bytes : int
        What crosses here; 0 inside a pool, and where another step of the same pool has fetched it already.
    results : int
        How many results these bytes are.
    """

    source: int
    target: int
    bytes: int
    results: int


@dataclass(frozen=True)
class Crossing:
    """Bytes of one operation's results that another pool reads.

    Attributes
    ----------
    source, target : str
        Pools.
    variables : tuple of str
    operation, reader : str
        What makes the results, and what reads them first.
    bytes, results : int
        How much, in how many results.
    """

    source: str
    target: str
    variables: tuple[str, ...]
    operation: str
    reader: str
    bytes: int
    results: int

    def __str__(self) -> str:
        return (
            f"{self.source} → {self.target} {format_bytes(self.bytes)}, "
            f"{_words(self.operation, self.variables)} for {self.reader}"
        )


@dataclass(frozen=True)
class Plan:
    """Where the tasks of a computation will run and what will cross; computing is still to be done.

    Attributes
    ----------
    pools : tuple of PoolShare
    steps : tuple of Step
    edges : tuple of Edge
    bound : float or None
        No placement can move fewer bytes; None where that was not sought, as for very large graphs.
    exact : bool
        Whether some placement moves as few as `bound`, which is known where there are two pools.
    at_most : int
        Bytes that cross if every worker of a pool fetches for itself what its tasks read, but for large
        results, which one task fetches for all of them.
    gathering : int
        Bytes that cross only because ``.compute()`` puts the result together on one worker.
    budget : int or None
        Bytes that may cross, by the setting ``pools.transfer-budget``.
    unknown : int
        Results among those that cross of whose size nothing is known; each counts as one byte.
    """

    pools: tuple[PoolShare, ...] = ()
    steps: tuple[Step, ...] = ()
    edges: tuple[Edge, ...] = ()
    bound: float | None = 0.0
    exact: bool = True
    at_most: int = 0
    gathering: int = 0
    budget: int | None = None
    unknown: int = 0

    @property
    def crossed(self) -> int:
        """Bytes that will go from one pool to another."""
        return sum(edge.bytes for edge in self.edges)

    @property
    def to_client(self) -> int:
        """Bytes that will go to the client."""
        return sum(share.to_client for share in self.pools)

    @property
    def tasks(self) -> int:
        """Number of tasks, before Dask fuses chains of them."""
        return sum(share.tasks for share in self.pools)

    @property
    def pairs(self) -> dict[tuple[str, str], int]:
        """Bytes for each pair of pools, from and to; without the client."""
        totals: Counter[tuple[str, str]] = Counter()
        for crossing in self.crossings:
            totals[crossing.source, crossing.target] += crossing.bytes
        return dict(sorted(totals.items()))

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """What crosses, the largest first."""
        found = [
            Crossing(
                source.pool,
                target.pool,
                source.variables,
                "held" if source.kind == "held" else source.operation,
                GATHER if target.kind == "gather" else target.operation,
                edge.bytes,
                edge.results,
            )
            for edge in self.edges
            if edge.results
            for source, target in [(self.steps[edge.source], self.steps[edge.target])]
        ]
        return tuple(sorted(found, key=lambda crossing: (-crossing.bytes, str(crossing))))

    def crosses(self, edge: Edge) -> bool:
        """Whether an edge leads from one pool to another."""
        source, target = self.steps[edge.source].pool, self.steps[edge.target].pool
        return source != target and ANYWHERE not in (source, target)

    def why(self, operation: str | None = None) -> str:
        """Say why tasks are where they are: what would cross if they were in another pool.

        Where bytes have prices (``costs`` of the data-centres file), the cheapest counts and not the fewest.

        Parameters
        ----------
        operation : str, optional
            Tell only of the steps of this operation, such as ``"sub"``.

        Returns
        -------
        str
            A table to print, a line for each step.

        Raises
        ------
        ValueError
            If there is no such operation; the message lists those there are.
        """
        steps = [step for step in self.steps if operation in (None, step.operation, step.label)]
        if not steps and operation is not None:
            known = sorted({step.label for step in self.steps})
            raise ValueError(f"No step of this plan is {operation!r}. There are: {', '.join(known)}.")
        rows = [(step.label, str(step.tasks), step.pool, step.reason) for step in steps]
        return "\n".join(_table(("of", "tasks", "in", "because"), rows, left=1, left_again=(2, 3)))

    @property
    def over_budget(self) -> bool:
        """Whether more will cross than may, or results of unknown size."""
        return self.budget is not None and (self.crossed > self.budget or self.unknown > 0)

    @property
    def advice(self) -> tuple[str, ...]:
        """What would move less, or is out of order."""
        found = []
        if self.gathering:
            found.append(
                f"{format_bytes(self.gathering)} cross only to put the result together on one worker. "
                "Fetched in parts they stay: x = x.persist(); client.gather(distributed.futures_of(x))."
            )
        if self.unknown:
            found.append(
                f"{self.unknown} of the results that cross are of unknown size (Python objects, or arrays "
                "inside Delayed) and count as 1 B each. Under a budget such a computation is refused."
            )
        if self.over_budget and not self.unknown:
            found.append(
                f"More crosses than the budget of {format_bytes(self.budget or 0)} (pools.transfer-budget) "
                "allows: computing it raises TransferBudgetError."
            )
        if any(share.pool == ANYWHERE for share in self.pools):
            loose = sum(share.tasks for share in self.pools if share.pool == ANYWHERE)
            found.append(
                f"{loose} tasks have nothing to do with any pool: they run anywhere, and what they move is "
                "not in this plan."
            )
        return tuple(found)

    def __str__(self) -> str:
        shares = [
            (share.pool, str(share.tasks), *map(_amount, (share.read, share.held, share.to_client)))
            for share in self.pools
        ]
        lines = _table(("pool", "tasks", "reads", "holds", "to client"), shares, left=1)
        lines.append("")
        if self.crossed or self.crossings:
            rows = [
                (c.source, c.target, _amount(c.bytes), str(c.results), _what(c), c.reader)
                for c in self.crossings[:_MOST_ROWS]
            ]
            lines += _table(("from", "to", "bytes", "results", "of", "for"), rows, left=2, left_again=(4, 5))
            if len(self.crossings) > _MOST_ROWS:
                rest = self.crossings[_MOST_ROWS:]
                lines.append(f"… and {len(rest)} smaller ones, {_amount(sum(c.bytes for c in rest))}.")
            lines.append("")
        return "\n".join([*lines, *self._summary(), *self.advice])

    def _summary(self) -> list[str]:
        lines = [
            f"Crossing between pools: {format_bytes(self.crossed)}{self.bound_in_words}. "
            f"To the client: {format_bytes(self.to_client)}."
        ]
        if self.at_most > self.crossed:
            lines.append(
                f"Up to {format_bytes(self.at_most)}, if each worker of a pool fetches itself what it reads."
            )
        return lines

    @property
    def bound_in_words(self) -> str:
        """How what will cross compares with `bound`, to stand behind it; may be empty."""
        if self.bound is None:
            return ""
        if self.crossed <= self.bound * 1.001 + 1:
            return " (no placement moves less)"
        if self.exact:
            return f" (the least possible: {format_bytes(round(self.bound))})"
        return f" (none can do with less than {format_bytes(round(self.bound))})"

    def _repr_html_(self) -> str:
        def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Iterable[int]) -> str:
            side = ["left" if column in set(text) else "right" for column in range(len(head))]

            def cells(tag: str, row: Sequence[str]) -> str:
                return "".join(
                    f'<{tag} style="text-align:{at}">{html.escape(cell)}</{tag}>'
                    for at, cell in zip(side, row, strict=True)
                )

            body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
            return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"

        parts = [
            table(
                ("pool", "tasks", "reads", "holds", "to client"),
                [
                    (s.pool, str(s.tasks), _amount(s.read), _amount(s.held), _amount(s.to_client))
                    for s in self.pools
                ],
                [0],
            )
        ]
        if crossings := self.crossings:
            parts.append(
                table(
                    ("from", "to", "bytes", "results", "of", "for"),
                    [
                        (c.source, c.target, _amount(c.bytes), str(c.results), _what(c), c.reader)
                        for c in crossings
                    ],
                    [0, 1, 4, 5],
                )
            )
        parts += [f"<p>{html.escape(line)}</p>" for line in (*self._summary(), *self.advice)]
        return "<div>" + "".join(parts) + "</div>"


_MOST_ROWS = 20


def _what(crossing: Crossing) -> str:
    return _words(crossing.operation, crossing.variables)


def _words(operation: str, variables: tuple[str, ...]) -> str:
    # What is loaded by other means than a catalogue is known by the name of its layer only.
    return operation if variables == (operation,) else f"{operation} {_listed(variables)}".strip()


def _amount(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes else "–"


def _listed(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return ", ".join(names)


def _table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int, left_again: tuple[int, ...] = ()
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < left or i in left_again else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def budget_error(plan: Plan) -> TransferBudgetError:
    """Error for a plan that moves more than its budget."""
    crossed = None if plan.unknown else plan.crossed
    return TransferBudgetError(crossed, plan.budget or 0, map(str, plan.crossings[:3]))
