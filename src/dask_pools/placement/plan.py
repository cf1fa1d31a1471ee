"""A plan: where the tasks of a graph will run and what will cross, in a form to be read.

Made of a placement (`dask_pools.placement.lower.Placed`), which says the same task by task. Knows neither how
the placement came about nor how it is drawn. What a plan holds is plain data, so that it travels from the
scheduler, which alone knows where persisted results are, to the user.
"""

from __future__ import annotations

import html
import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask.typing import Key
from dask.utils import format_bytes, key_split

from dask_pools import pins
from dask_pools.dask_internals import is_future, is_gathering, is_symbolic
from dask_pools.errors import TransferBudgetError
from dask_pools.placement.assign import assign
from dask_pools.placement.lower import FETCHED_ONCE, Layers, Placed
from dask_pools.placement.model import FREE, Model

ANYWHERE = "(anywhere)"
"""Stands for tasks that no pool is chosen for. The name cannot be a pool's."""

GATHER = "gather the result"
"""Operation of the task that puts a result together for ``.compute()``."""

MOST_LAYERS = 60
"""Above so many layers, like ones (of the same operation, variables and pool) are told as one."""

MOST_TASKS_FOR_BOUND = 300_000
"""Above so many tasks the least that any placement can move is not sought: it would take minutes."""


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


def summarise(
    placed: Placed,
    layers: Layers,
    source: Mapping[str, Any],
    workers: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Plan:
    """Tell a placement in a form to be read.

    Parameters
    ----------
    placed : Placed
    layers : Layers
        What the placement was made from.
    source : mapping of str to layer
        The layers as they came, with their annotations.
    workers : mapping of str to int, optional
        How many workers each pool has; by default 1.
    budget : int, optional
        Bytes that may cross.
    """
    model = placed.model
    pools = [*model.pools, ANYWHERE]  # FREE, which is -1, is the last of them
    held = _held(placed, source)
    steps, step_of = _steps(placed, pools, _variables(placed, layers, held), held)
    choices = would_cross(placed, steps, step_of, _pinned(placed, source))
    steps = [replace(step, would_cross=choice) for step, choice in zip(steps, choices, strict=True)]
    edges, at_most = _edges(placed, pools, step_of, workers or {})
    read = _bytes_read(placed, layers, source, {placed.keys[task] for task in held})
    shares = {pool: PoolShare(pool) for pool in model.pools}
    for step in steps:
        share = shares.get(step.pool, PoolShare(step.pool))
        if step.kind == "held":
            shares[step.pool] = replace(share, held=share.held + step.bytes)
        else:
            shares[step.pool] = replace(share, tasks=share.tasks + step.tasks)
    for task in placed.outputs:
        pool = pools[placed.pools[task]]
        shares[pool] = replace(
            shares[pool], to_client=shares[pool].to_client + round(_nbytes_fetched(placed, task))
        )
    for pool, nbytes in read.items():
        shares[pool] = replace(shares.get(pool, PoolShare(pool)), read=nbytes)
    crossed = sum(edge.bytes for edge in edges)
    bound, exact = (0.0, True) if not crossed else lower_bound(model)
    return Plan(
        tuple(share for _, share in sorted(shares.items()) if share != PoolShare(share.pool)),
        tuple(steps),
        tuple(edges),
        bound,
        exact,
        at_most,
        crossed - _crossed_ungathered(placed) if crossed else 0,
        budget,
        placed.crossing()[1],
    )


def _crossed_ungathered(placed: Placed) -> int:
    """Bytes that would cross if the parts of results stayed where they are."""
    model = placed.model
    gathers = [is_gathering(layer) for layer in placed.layers]
    inputs = [[] if gather else list(of) for gather, of in zip(gathers, model.inputs, strict=True)]
    apart = replace(model, inputs=inputs)
    return replace(placed, model=apart, pools=assign(apart)).crossing()[0]


def _held(placed: Placed, source: Mapping[str, Any]) -> frozenset[int]:
    """Tasks that are no tasks, but results that the scheduler has already."""
    futures = {
        key
        for layer in source.values()
        if not is_symbolic(layer)
        for key, value in layer.items()
        if is_future(value)
    }
    return frozenset(
        task for task, key in enumerate(placed.keys) if key in futures or not placed.layers[task]
    )


def _name(key: Key) -> str:
    return str(key[0] if isinstance(key, tuple) and key else key)


def _variables(placed: Placed, layers: Layers, held: Container[int]) -> list[frozenset[str]]:
    """For each task the names of what was loaded for it."""
    of_layer = _variables_of_layers(layers)
    nothing: frozenset[str] = frozenset()
    own = {task: label for task, key in enumerate(placed.keys) if (label := pins.label_of_name(_name(key)))}
    # Loading that Dask fused into other layers can be seen there no more.
    fused = nothing.union(*of_layer.values()).difference(own.values())
    symbolic = {name for name, layer in layers.graph.layers.items() if is_symbolic(layer)}
    found: list[frozenset[str]] = []
    for task, key in enumerate(placed.keys):
        name = placed.layers[task]
        inputs = {found[source] for source in placed.model.inputs[task]}
        if task in own:
            found.append(frozenset([own[task]]))
        elif task in held:
            found.append(frozenset([key_split(key)]))
        elif not inputs:
            found.append(of_layer.get(name, nothing))
        else:
            found.append(nothing.union(*inputs, of_layer[name] & fused if name in symbolic else nothing))
    return found


def _variables_of_layers(layers: Layers) -> dict[str, frozenset[str]]:
    """For each layer the names of what was loaded for it."""
    graph = layers.graph
    nothing: frozenset[str] = frozenset()
    found: dict[str, frozenset[str]] = {}
    for name in graph._toposort_layers():
        if own := pins.label_of_name(name):
            found[name] = frozenset([own])
            continue
        sources = graph.dependencies[name]
        found[name] = nothing.union(*(found.get(source, nothing) for source in sources))
        if not sources and layers.pools.get(name):
            found[name] = frozenset([key_split(name)])
    return found


def _steps(
    placed: Placed, pools: Sequence[str], variables: Sequence[frozenset[str]], held: Container[int]
) -> tuple[list[Step], list[int]]:
    """Tasks by layer and pool; and for each task the number of its step."""
    names = [
        f"held {key_split(key)}" if task in held else placed.layers[task]
        for task, key in enumerate(placed.keys)
    ]
    many = len(set(names)) > MOST_LAYERS
    numbers: dict[tuple[Any, ...], int] = {}
    step_of: list[int] = []
    tasks: list[int] = []
    nbytes: list[float] = []
    about: list[tuple[str, tuple[str, ...], str, str]] = []
    outputs: set[int] = set()
    wanted = set(placed.outputs)
    for task, name in enumerate(names):
        operation = "held" if task in held else _operation(name)
        kind = "held" if task in held else "gather" if is_gathering(name) else "task"
        pool = placed.pools[task]
        label = tuple(sorted(variables[task]))
        if kind == "task" and label and not placed.model.inputs[task]:
            # By itself, or fused with what is done first, of which the layer then has the name.
            kind, operation = "read", "read" if pins.label_of_name(name) else operation
        identity = (kind, operation, label, pool) if many else (name, label, pool)
        number = numbers.setdefault(identity, len(numbers))
        if number == len(about):
            about.append((operation, label, pools[pool], kind))
            tasks.append(0)
            nbytes.append(0.0)
        step_of.append(number)
        tasks[number] += 1
        nbytes[number] += _nbytes_fetched(placed, task)
        if task in wanted:
            outputs.add(number)
    steps = [
        Step(operation, label, pool, tasks[n], round(nbytes[n]), kind, n in outputs)
        for n, (operation, label, pool, kind) in enumerate(about)
    ]
    return steps, step_of


def _pinned(placed: Placed, source: Mapping[str, Any]) -> frozenset[str]:
    """Layers that a user has pinned, in whole or in part."""
    names = source.keys() & set(placed.layers)
    return frozenset(name for name in names if pins.pools_of_layer(source[name], name))


def would_cross(
    placed: Placed, steps: Sequence[Step], step_of: Sequence[int], pinned: Container[str]
) -> list[tuple[tuple[str, int], ...]]:
    """For each step what its results and what it reads would make cross, by the pool it might be in.

    All tasks of a step are in one pool, so what crosses can be told of steps instead of tasks.

    Parameters
    ----------
    placed : Placed
    steps : sequence of Step
    step_of : sequence of int
        For each task its step.
    pinned : container of str
        Layers of which nothing is told.
    """
    model = placed.model
    fixed = {step for step, layer in zip(step_of, placed.layers, strict=True) if layer in pinned}
    fixed.update(n for n, step in enumerate(steps) if step.kind in ("read", "held") or step.pool == ANYWHERE)
    readers: list[set[int]] = [set() for _ in model.inputs]
    for task, inputs in enumerate(model.inputs):
        for result in inputs:
            readers[result].add(step_of[task])
    nets: defaultdict[tuple[int, frozenset[int]], float] = defaultdict(float)
    for result, of_result in enumerate(readers):
        if of_result - {step_of[result]}:
            nets[step_of[result], frozenset(of_result)] += model.nbytes[result]
    near: list[list[tuple[int, frozenset[int], float]]] = [[] for _ in steps]
    for (home, of_net), nbytes in nets.items():
        for step in {home, *of_net} - fixed:
            near[step].append((home, of_net, nbytes))
    where = [step.pool for step in steps]

    def crossing(step: int, pool: str) -> float:
        def at(other: int) -> str:
            return pool if other == step else where[other]

        return sum(
            nbytes * len({at(reader) for reader in of_net} - {at(home), ANYWHERE})
            for home, of_net, nbytes in near[step]
            if at(home) != ANYWHERE
        )

    found: list[tuple[tuple[str, int], ...]] = []
    for step in range(len(steps)):
        beside = {where[other] for home, of_net, _ in near[step] for other in (home, *of_net)}
        pools = set() if step in fixed else {where[step], *beside} - {ANYWHERE}
        choice = [(pool, round(crossing(step, pool))) for pool in pools]
        found.append(tuple(sorted(choice, key=lambda one: (one[1], one[0]))))
    return found


def _operation(layer: str) -> str:
    """Name of a layer without its token."""
    name = str(key_split(layer))
    return name.split("@")[0] if "@" in name else name


def _edges(
    placed: Placed, pools: Sequence[str], step_of: Sequence[int], workers: Mapping[str, int]
) -> tuple[list[Edge], int]:
    """Find what steps read from each other, and how much crosses if every worker fetches for itself."""
    model = placed.model
    readers: list[dict[int, list[int]]] = [{} for _ in model.inputs]
    plain: set[tuple[int, int]] = set()
    for task, inputs in enumerate(model.inputs):
        pool = placed.pools[task]
        for source in inputs:
            if step_of[source] != step_of[task]:
                plain.add((step_of[source], step_of[task]))
            if pool != FREE and placed.pools[source] not in (FREE, pool):
                readers[source].setdefault(pool, []).append(task)
    nbytes: defaultdict[tuple[int, int], float] = defaultdict(float)
    results: Counter[tuple[int, int]] = Counter()
    at_most = 0.0
    for source, by_pool in enumerate(readers):
        for pool, tasks in by_pool.items():
            # The first that reads it fetches it for its pool.
            edge = (step_of[source], step_of[tasks[0]])
            nbytes[edge] += model.nbytes[source]
            results[edge] += 1
            # What is large is fetched once for all workers of the pool.
            several = 1 if model.nbytes[source] >= FETCHED_ONCE else workers.get(pools[pool], 1)
            at_most += model.nbytes[source] * max(1, min(several, len(tasks)))
    edges = [
        Edge(source, target, round(nbytes.get((source, target), 0.0)), results.get((source, target), 0))
        for source, target in sorted(plain | nbytes.keys())
    ]
    return edges, round(at_most)


def _nbytes_fetched(placed: Placed, task: int) -> float:
    """Bytes of a result as the client gets it; one that is put together is as large as its parts."""
    if is_gathering(placed.layers[task]) and placed.model.inputs[task]:
        return sum(placed.model.nbytes[source] for source in placed.model.inputs[task])
    return placed.model.nbytes[task]


def _bytes_read(
    placed: Placed, layers: Layers, source: Mapping[str, Any], held: Container[Key]
) -> dict[str, int]:
    """Bytes of the chunks that are loaded in each pool."""
    totals: defaultdict[str, float] = defaultdict(float)
    loads: dict[str, dict[Key, str] | str | None] = {}
    # Loading tasks that Dask has fused with others are no tasks of the placement any more.
    for layer in layers.graph.cull({placed.keys[task] for task in placed.outputs}).layers.values():
        for key in layer.get_output_keys():
            # Layers that are culled get new names, keys do not.
            name = _name(key)
            if name not in loads:
                inputs = layers.graph.dependencies.get(name, ())
                loads[name] = (
                    pins.pools_of_layer(source[name], name)
                    if name in source and name in layers.sizes and layers.sizes.keys().isdisjoint(inputs)
                    else None
                )
            found = loads[name]
            if found is None or isinstance(key, str):
                continue
            pool = found if isinstance(found, str) else found.get(key)
            chunks, itemsize = layers.sizes[name]
            if pool and key not in held and len(key) == len(chunks) + 1:
                totals[pool] += itemsize * math.prod(
                    along[i] for along, i in zip(chunks, key[1:], strict=True)
                )
    return {pool: round(nbytes) for pool, nbytes in totals.items()}


def lower_bound(model: Model) -> tuple[float | None, bool]:
    """Bytes that must cross in any placement of a model that keeps its pins.

    For two pools this is the least that is possible, a minimum cut; for more it is half the sum, over the
    pools, of the least that must cross between that pool and all others: whatever crosses leaves one pool and
    enters another (the bound of the isolating cuts of Dahlhaus et al., SIAM J. Comput. 23, 1994).

    Returns
    -------
    bytes : float or None
        None if the model has more than `MOST_TASKS_FOR_BOUND` tasks.
    exact : bool
        Whether a placement exists that moves no more.
    """
    used = sorted(set(model.pinned) - {FREE})
    if len(used) < 2:
        return 0.0, True
    if len(model.inputs) > MOST_TASKS_FOR_BOUND:
        return None, False
    if len(used) == 2:
        return _least_cut(model, used[0]), True
    return sum(_least_cut(model, pool) for pool in used) / 2, False


def _least_cut(model: Model, pool: int) -> float:
    """Least bytes that cross between `pool` and all others taken as one.

    A result that several tasks of the other side read crosses once. Each task therefore has two nodes beside
    its own: one that its readers are on if any is outside, and one that they are on if any is inside.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    tasks = len(model.inputs)
    fanned = np.zeros(tasks, bool)
    counts = np.fromiter(map(len, model.inputs), np.int64, tasks)
    reads = np.fromiter((s for inputs in model.inputs for s in inputs), np.int64, int(counts.sum()))
    readers = np.repeat(np.arange(tasks), counts)
    fanned[reads] = True
    nbytes = np.asarray(model.nbytes, float)
    total = nbytes[fanned].sum()
    if not total:
        return 0.0
    # SciPy takes 32-bit integers: rounding down keeps the bound a bound.
    endless = 2**31 - 1
    scale = min(1.0, (endless // 4) / total)
    capacity = np.floor(nbytes * scale).astype(np.int64)
    start, end = 3 * tasks, 3 * tasks + 1
    own = np.arange(tasks)
    outside, inside = own + tasks, own + 2 * tasks
    pinned = np.asarray(model.pinned)
    here, there = own[pinned == pool], own[(pinned != pool) & (pinned != FREE)]
    senders = own[fanned]
    tails = [senders, outside[reads], readers, inside[senders], np.full(len(here), start), there]
    heads = [outside[senders], readers, inside[reads], senders, here, np.full(len(there), end)]
    limits = [
        capacity[senders],
        np.full(len(reads), endless),
        np.full(len(reads), endless),
        capacity[senders],
        np.full(len(here), endless),
        np.full(len(there), endless),
    ]
    graph = csr_matrix(
        (np.concatenate(limits).astype(np.int32), (np.concatenate(tails), np.concatenate(heads))),
        shape=(3 * tasks + 2,) * 2,
    )
    return float(int(maximum_flow(graph, start, end).flow_value) / scale)


def budget_error(plan: Plan) -> TransferBudgetError:
    """Error for a plan that moves more than its budget."""
    crossed = None if plan.unknown else plan.crossed
    return TransferBudgetError(crossed, plan.budget or 0, map(str, plan.crossings[:3]))
