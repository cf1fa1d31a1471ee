"""visualize_pools(): a picture of what `explain` tells.

One band for each pool, one box for each layer, from left to right in the order of the calculation; a layer
that is split between pools has a box in each. Knows plans, and neither graphs nor schedulers.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes
from distributed import Client

from dask_pools import pictures
from dask_pools.explanation import explain
from dask_pools.pictures import Picture
from dask_pools.placement.plan import GATHER, Edge, Plan, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["visualize_pools"]

_COLUMN, _ROW = 2.45, 0.9
"""Inches from box to box, across and down."""
_BOX = (1.85, 0.64)
"""Inches of a box."""
_MOST_COLUMNS = 8
"""From so many columns on, chains of boxes are told as one."""
_MARGIN = 1.6
"""Inches for what is said of a pool, left of its band."""


def visualize_pools(
    *collections: Any, filename: str | os.PathLike[str] | None = None, client: Client | None = None
) -> Picture:
    """Draw where ``dask.compute(*collections)`` would run, and what would cross; computes nothing.

    Parameters
    ----------
    *collections
        As for `explain`; or one `Plan`.
    filename : str or path, optional
        Where to save the picture; its ending says how: ``.svg``, ``.png`` or ``.pdf``.
    client : distributed.Client, optional
        The current one, if not given.

    Returns
    -------
    Picture
        Shows itself in a notebook.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    ValueError
        If `filename` has another ending.
    TypeError
        As `explain`.
    """
    if filename is not None:
        pictures.check_filename(filename)
    given = collections[0] if len(collections) == 1 else None
    plan = given if isinstance(given, Plan) else explain(*collections, client=client)
    picture = Picture(_draw(plan))
    if filename is not None:
        picture.save(filename)
    return picture


@dataclass
class _Layout:
    """Where everything goes: columns from the left, rows from the top of a band."""

    column: list[int]
    """For each step."""
    row: dict[tuple[int, ...], float]
    """For each step ``(step,)``, and each place ``(edge, column)`` where a long edge passes."""
    rows: dict[str, int]
    """For each pool how many rows its band has; pools from the top."""
    passes: dict[int, list[tuple[int, int]]]
    """For each edge that skips columns the places that it passes."""


def _arrange(plan: Plan) -> _Layout:
    """Put steps into columns and rows, so that few edges run through boxes.

    Columns by the longest way from a source; rows by the mean row of the neighbours, in sweeps to and fro,
    with places kept free for edges that skip columns (Sugiyama et al., IEEE Trans. SMC 11, 1981).
    """
    steps, edges = plan.steps, plan.edges
    column = [0] * len(steps)
    # Steps stand in topological order, except where like ones are told as one: edges back do not count.
    forward = [(n, edge) for n, edge in enumerate(edges) if edge.source < edge.target]
    for _, edge in sorted(forward, key=lambda one: one[1].target):
        column[edge.target] = max(column[edge.target], column[edge.source] + 1)
    # What is read is drawn beside what reads it first.
    first: dict[int, int] = {}
    for _, edge in forward:
        first[edge.source] = min(first.get(edge.source, 10**9), column[edge.target])
    entered = {edge.target for edge in edges}
    for step in range(len(steps)):
        if step not in entered and step in first:
            column[step] = first[step] - 1

    pools = [share.pool for share in plan.pools]
    members: dict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
    near: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    passes: dict[int, list[tuple[int, int]]] = {}
    for step, made in enumerate(steps):
        members[made.pool, column[step]].append((step,))
    for n, edge in forward:
        way: list[tuple[int, ...]] = [(edge.source,)]
        between = [(n, c) for c in range(column[edge.source] + 1, column[edge.target])]
        if between:
            passes[n] = between
            for place in between:
                members[steps[edge.target].pool, place[1]].append(place)
        way += [*between, (edge.target,)]
        for left, right in pairwise(way):
            near[left].append(right)
            near[right].append(left)
    row: dict[tuple[int, ...], float] = {}
    for places in members.values():
        row |= {place: float(i) for i, place in enumerate(places)}
    band = {pool: float(100 * n) for n, pool in enumerate(pools)}
    pool_of = {place: pool for (pool, _), places in members.items() for place in places}
    for sweep in range(6):
        for (pool, _), places in sorted(members.items(), key=lambda one: one[0][1], reverse=bool(sweep % 2)):
            wishes = {}
            for spot in places:
                beside = [band[pool_of[other]] + row[other] for other in near[spot]]
                wishes[spot] = sum(beside) / len(beside) if beside else band[pool] + row[spot]
            places.sort(key=wishes.__getitem__)
            row.update((place, float(i)) for i, place in enumerate(places))
    rows = {
        pool: max((len(places) for (of, _), places in members.items() if of == pool), default=1)
        for pool in pools
    }
    # Columns with fewer boxes than the band has rows stand in the middle.
    for (pool, _), places in members.items():
        shift = (rows[pool] - len(places)) / 2
        row |= {place: row[place] + shift for place in places}
    return _Layout(column, row, rows, passes)


def _shortened(plan: Plan) -> Plan:
    """Tell chains of steps inside a pool, of which each has one input and one reader, as one step."""
    inputs = Counter(edge.target for edge in plan.edges)
    readers = Counter(edge.source for edge in plan.edges)
    follows = {}
    for edge in plan.edges:
        source, target = plan.steps[edge.source], plan.steps[edge.target]
        if (
            (inputs[edge.target], readers[edge.source]) == (1, 1)
            and source.pool == target.pool
            and source.kind == target.kind == "task"
            and not source.output
        ):
            follows[edge.source] = edge.target
    number: dict[int, int] = {}
    steps: list[tuple[int, Step]] = []
    for first in sorted(set(range(len(plan.steps))) - set(follows.values())):
        chain = [first]
        while chain[-1] in follows:
            chain.append(follows[chain[-1]])
        number.update(dict.fromkeys(chain, len(steps)))
        last = plan.steps[chain[-1]]
        names = [plan.steps[step].operation for step in (chain if len(chain) < 3 else (chain[0], chain[-1]))]
        joint = " … " if len(chain) > 2 else " → "
        steps.append((chain[-1], replace(last, operation=joint.join(names))))
    # Back into topological order, by the last of each chain.
    order = sorted(range(len(steps)), key=lambda n: steps[n][0])
    position = {n: place for place, n in enumerate(order)}
    edges = [
        Edge(position[number[edge.source]], position[number[edge.target]], edge.bytes, edge.results)
        for edge in plan.edges
        if number[edge.source] != number[edge.target]
    ]
    return replace(plan, steps=tuple(steps[n][1] for n in order), edges=tuple(edges))


def _draw(plan: Plan) -> Any:
    from_top = 0.75
    layout = _arrange(plan)
    if max(layout.column, default=0) >= _MOST_COLUMNS:
        plan = _shortened(plan)
        layout = _arrange(plan)
    columns = max(layout.column, default=0) + 1
    width = _MARGIN + columns * _COLUMN + 1.6
    heights = {pool: rows * _ROW + 0.42 for pool, rows in layout.rows.items()}
    height = from_top + sum(heights.values()) + 0.12 * len(heights) + 0.2
    figure = pictures.new_figure(width, height)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    colours = pictures.colours_of(share.pool for share in plan.pools)

    tops: dict[str, float] = {}
    top = from_top
    for pool in layout.rows:
        tops[pool] = top
        top += heights[pool] + 0.12
    _title(axes, plan)
    _bands(axes, plan, tops, heights, width, colours)

    def middle(place: tuple[int, ...], pool: str, column: int) -> tuple[float, float]:
        x = _MARGIN + (column + 0.5) * _COLUMN
        return x, tops[pool] + 0.21 + (layout.row[place] + 0.5) * _ROW

    at = [middle((step,), made.pool, layout.column[step]) for step, made in enumerate(plan.steps)]
    labels: list[tuple[float, float, str]] = []
    for n, edge in enumerate(plan.edges):
        pool = plan.steps[edge.target].pool
        way = [
            at[edge.source],
            *(middle(place, pool, place[1]) for place in layout.passes.get(n, ())),
            at[edge.target],
        ]
        _edge(axes, plan, n, way, labels)
    for step, (x, y) in enumerate(at):
        _box(axes, plan, step, x, y, colours)
    _client(axes, plan, at, width, from_top, height)
    _place_labels(axes, labels)
    return figure


def _title(axes: Axes, plan: Plan) -> None:
    bound = plan.bound_in_words
    axes.text(
        0.2,
        0.3,
        f"{format_bytes(plan.crossed)} will cross between pools{bound}; "
        f"{format_bytes(plan.to_client)} will go to the client.",
        fontsize=12,
        weight="bold",
        color=pictures.INK,
        va="center",
    )


def _bands(
    axes: Axes,
    plan: Plan,
    tops: dict[str, float],
    heights: dict[str, float],
    width: float,
    colours: dict[str, str],
) -> None:
    from matplotlib.patches import FancyBboxPatch

    for share in plan.pools:
        top, colour = tops[share.pool], colours[share.pool]
        axes.add_patch(
            FancyBboxPatch(
                (0.15, top),
                width - 1.65,
                heights[share.pool],
                boxstyle="round,pad=0,rounding_size=0.1",
                facecolor=pictures.tint(colour, 0.12),
                edgecolor=pictures.tint(colour, 0.5),
                zorder=0,
            )
        )
        says = [f"{share.tasks} tasks"]
        says += [f"reads {format_bytes(share.read)}"] if share.read else []
        says += [f"holds {format_bytes(share.held)}"] if share.held else []
        y = top + heights[share.pool] / 2
        axes.text(0.3, y - 0.04, share.pool, fontsize=12, weight="bold", color=colour, va="bottom")
        axes.text(0.3, y + 0.04, "\n".join(says), fontsize=8.5, color=pictures.INK, va="top", linespacing=1.3)


def _box(axes: Axes, plan: Plan, step: int, x: float, y: float, colours: dict[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    made = plan.steps[step]
    colour = colours[made.pool]
    loads = made.kind in ("read", "held")
    axes.add_patch(
        FancyBboxPatch(
            (x - _BOX[0] / 2, y - _BOX[1] / 2),
            *_BOX,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour if loads else "white",
            edgecolor=pictures.INK if made.output else colour,
            linewidth=2.0 if made.output else 1.4,
            zorder=3,
        )
    )
    ink = "white" if loads else pictures.INK
    names = made.variables if made.variables != (made.operation,) else ()
    says = [
        (GATHER if made.kind == "gather" else made.operation, 8.5, "bold"),
        *([(", ".join(names), 7.5, "normal")] if names and made.kind != "gather" else []),
        (f"{made.tasks} × {format_bytes(made.bytes // max(made.tasks, 1))}", 7.5, "normal"),
    ]
    for line, (words, size, weight) in enumerate(says):
        axes.text(
            x,
            y + 0.18 * (line - (len(says) - 1) / 2),
            _cut(words, 21 if weight == "bold" else 30),
            fontsize=size,
            weight=weight,
            color=ink,
            ha="center",
            va="center",
            zorder=4,
        )


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


def _edge(
    axes: Axes, plan: Plan, n: int, way: list[tuple[float, float]], labels: list[tuple[float, float, str]]
) -> None:
    """Draw what one step reads from another; notes where the bytes of a crossing are to be written."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    edge = plan.edges[n]
    crosses = plan.crosses(edge)
    (x0, y0), (x1, y1) = way[0], way[-1]
    backward = x1 <= x0
    points = [(x0 + (0 if backward else _BOX[0] / 2), y0)]
    codes = [Path.MOVETO]
    stops = [*way[1:-1], (x1 - (0 if backward else _BOX[0] / 2 + 0.03), y1)]
    for x, y in stops:
        px, py = points[-1]
        bend = (x - px) / 2
        points += [(px + bend, py), (x - bend, y), (x, y)]
        codes += [Path.CURVE4] * 3
    heavy = crosses and edge.bytes > 0
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, codes),
            arrowstyle="-|>,head_length=4,head_width=1.8",
            color=pictures.CROSSING if crosses else pictures.FAINT,
            linewidth=_weight(edge.bytes, plan.crossed) if heavy else 1.0,
            linestyle="-" if heavy or not crosses else (0, (3, 2)),
            zorder=2 if crosses else 1,
            shrinkA=0,
            shrinkB=0,
        )
    )
    if heavy:
        # Half way down the last piece that goes from band to band.
        before = max(range(len(way) - 1), key=lambda i: abs(way[i + 1][1] - way[i][1]))
        (xa, ya), (xb, yb) = way[before], way[before + 1]
        labels.append(((xa + xb) / 2, (ya + yb) / 2, format_bytes(edge.bytes)))


def _weight(nbytes: int, total: int) -> float:
    """Width of a line: 1.4 for the least, 4 for all that crosses."""
    return 1.4 + 2.6 * math.sqrt(nbytes / total) if total else 1.4


def _place_labels(axes: Axes, labels: list[tuple[float, float, str]]) -> None:
    """Write labels, moved up or down where one would lie upon another."""
    placed: list[tuple[float, float]] = []
    for x, y, words in sorted(labels):
        step = 0
        moved = y
        while any(abs(x - ox) < 0.8 and abs(moved - oy) < 0.2 for ox, oy in placed):
            step += 1
            moved = y + 0.2 * ((step + 1) // 2) * (-1) ** step
        placed.append((x, moved))
        axes.text(
            x,
            moved,
            words,
            fontsize=8.5,
            weight="bold",
            color=pictures.CROSSING,
            ha="center",
            va="center",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
        )


def _client(
    axes: Axes, plan: Plan, at: list[tuple[float, float]], width: float, top: float, height: float
) -> None:
    """Draw the client right of all bands, and what goes there."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    x, y = width - 0.75, (top + height - 0.2) / 2
    axes.add_patch(
        FancyBboxPatch(
            (x - 0.5, y - 0.3),
            1.0,
            0.6,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=pictures.INK,
            edgecolor=pictures.INK,
            zorder=3,
        )
    )
    axes.text(x, y - 0.08, "client", fontsize=9.5, color="white", ha="center", va="center", zorder=4)
    total = format_bytes(plan.to_client)
    axes.text(x, y + 0.13, total, fontsize=8, color="white", ha="center", va="center", zorder=4)
    columns = max(x for x, _ in at) if at else 0
    for step, (sx, sy) in enumerate(at):
        if not plan.steps[step].output:
            continue
        if sx < columns:
            # A line from here would run through other boxes.
            axes.text(
                sx,
                sy + _BOX[1] / 2,
                " to the client ",
                fontsize=7,
                color="white",
                ha="center",
                va="center",
                zorder=5,
                bbox={"facecolor": pictures.INK, "edgecolor": "none", "pad": 1.5},
            )
        else:
            axes.add_patch(
                FancyArrowPatch(
                    (sx + _BOX[0] / 2, sy),
                    (x - 0.52, y),
                    arrowstyle="-|>,head_length=4,head_width=1.8",
                    color=pictures.INK,
                    linewidth=1.2,
                    zorder=2,
                    shrinkA=0,
                    shrinkB=0,
                )
            )
