"""Making a model small: tasks that some best placement keeps together, or in a certain pool, become one.

Pure: standard library only. DESIGN.md beside this file gives the reasons. A *net* is a result and the tasks
that read it; it costs its bytes once for each pool that it touches beyond the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

from dask_pools.placement.model import FREE, Model

TINY = 1e-6
"""Bytes of an empty result, so that even those keep their consumers beside them."""

SMALL = 150
"""Models with up to so many free tasks are taken as they are; of larger ones like tasks are joined."""

MAX_SIZES = 100
"""With more sizes than this among the tasks, sizes no longer tell them apart."""

MAX_ROUNDS = 40
MAX_REFINEMENTS = 6


@dataclass
class Net:
    """A result and who reads it; nodes are numbered, pools counted on after the last node."""

    nbytes: float
    producer: int
    consumers: set[int]
    """Without the producer."""


@dataclass
class Kernel:
    """What is left of a model: the nodes that more than one pool pulls at."""

    size: int
    """Number of nodes. Pool *p* is the number ``size + p``."""
    nets: list[Net]
    of: list[int]
    """For each task its node, ``size + p`` if it is settled in pool *p*, or `FREE`."""
    pools: int
    """Number of pools."""
    costs: list[list[float]] | None
    told_apart: bool = True
    """Whether some placement of least cost between two pools can be written with these nodes."""
    joined: set[int] = field(default_factory=set)
    """Tasks that are with others, or settled with them, although they could not be told to be alike."""

    def spread(self, labels: list[int]) -> list[int]:
        """Pools of all tasks, given those of the nodes."""
        table = [*labels, *range(self.pools), FREE]
        return [table[node] for node in self.of]


class Scale:
    """How much a byte can cost, for comparisons that hold for every pair of pools."""

    def __init__(self, model: Model) -> None:
        costs = [c for p, row in enumerate(model.costs or ()) for q, c in enumerate(row) if p != q]
        width = len(model.pools)
        self.least = min(costs, default=1.0)
        self.most = max(costs, default=1.0)
        # With unequal costs, a task that moves changes what its result costs from each pool that reads it.
        self.own = 1.0 if model.costs is None else self.most * max(width - 1, 1)


def contract(model: Model) -> Kernel:
    """Contract a model as far as that loses no best placement."""
    equal, scale = model.costs is None, Scale(model)
    tasks, pools = len(model.inputs), len(model.pools)
    rep = [task if pool == FREE else tasks + pool for task, pool in enumerate(model.pinned)]
    rep += range(tasks, tasks + pools)
    merged = _join_what_stays(model, rep)
    _sweep(model, rep, scale, merged)
    groups, size, told_apart = _group(model, rep, merged)
    joined = set() if told_apart else {task for task in range(tasks) if rep[task] == task} - merged
    del rep
    nets = _nets(model, groups)
    rep = list(range(size + pools))
    # Nets that cost the same whatever is decided: they only tell which nodes are tied to pools at all.
    fixed: list[Net] = []
    nets = _relabel(nets, fixed, rep, size, pools, equal)
    for _ in range(MAX_ROUNDS):
        moved = _merge_round(nets, rep, size, scale)
        nets = _relabel(nets, fixed, rep, size, pools, equal)
        if moved * 50 <= len(nets):
            break
    _settle_parts(nets, rep, size, equal)
    nets = _relabel(nets + fixed, None, rep, size, pools, equal)
    kernel = _kernel(model, nets, rep, size, groups)
    kernel.told_apart, kernel.joined = told_apart, joined
    return kernel


def _group(model: Model, rep: list[int], merged: set[int]) -> tuple[list[int], int, bool]:
    """Join free tasks that look alike, whose neighbours look alike, and theirs, and so on.

    Colour refinement, by sums of hashes; once against and once along the graph each round, so that a colour
    travels the whole graph in one.

    Returns
    -------
    groups : list of int
        For each task the number of its group; for settled ones `size` and its pool.
    size : int
        Number of groups.
    told_apart : bool
        Whether no more tasks could be told apart by their colours. Then joining the groups keeps the minimum
        cut of two pools: it is a linear program, and colour refinement keeps the optimum of those (Grohe,
        Kersting, Mladenov and Selman, ESA 2014).
    """
    tasks = len(model.inputs)
    roots = [root if root >= tasks else _find(rep, task) for task, root in enumerate(rep[:tasks])]
    free = [task for task, root in enumerate(roots) if root == task and task not in merged]
    if len(free) <= SMALL:
        colours, told_apart = list(range(tasks)), True
    else:
        colours, told_apart = _colours(model, roots, merged, max(len(free) // 10, 500))
    for task, root in enumerate(roots):
        if root != task:
            colours[task] = colours[root] if root < tasks else root
    numbers: dict[int, int] = {}
    groups = [
        -1 if root >= tasks else numbers.setdefault(colours[task], len(numbers))
        for task, root in enumerate(roots)
    ]
    size = len(numbers)
    shift = size - tasks
    groups = [group if group >= 0 else root + shift for group, root in zip(groups, roots, strict=True)]
    return groups, size, told_apart


class _Mix(dict[Any, int]):
    """A random number for each key that is asked for, always the same ones.

    Sets are told apart by the sums of their members' numbers; sums of Python's own hashes would be too often
    alike, since those of small numbers lie in a line.
    """

    def __init__(self) -> None:
        self._draw = Random(0).getrandbits

    def __missing__(self, key: Any) -> int:
        value = self[key] = self._draw(60)
        return value


def _colours(model: Model, roots: list[int], merged: set[int], most: int) -> tuple[list[int], bool]:
    """Colour each task; at most so many colours among the free ones, and whether that told all apart."""
    tasks, inputs_of, nbytes = len(roots), model.inputs, model.nbytes
    # A settled task, and one that was joined to others, looks like its pool or its set, whatever is near it.
    fixed = [root >= tasks or task in merged for task, root in enumerate(roots)]
    sizes: list[Any] = nbytes
    exact = len(set(sizes)) <= MAX_SIZES
    if not exact:
        # Sizes that all differ, as of frames or texts: tasks of a layer are then alike whatever they hold.
        sizes = model.layers or [round(math.log2(size + 1) / 2) for size in nbytes]
    mix = _Mix()
    colours = [mix[root, True] if fixed[task] else mix[sizes[task], False] for task, root in enumerate(roots)]
    free = [task for task in range(tasks) if not fixed[task]]
    count = len({colours[task] for task in free})
    backward = range(tasks - 1, -1, -1)
    for _ in range(MAX_REFINEMENTS):
        new = colours.copy()
        read_by = [0] * tasks
        for task in backward:
            colour = new[task]
            if not fixed[task]:
                new[task] = colour = mix[colour, read_by[task]]
            for source in inputs_of[task]:
                read_by[source] += colour
        net = [0] * tasks
        for task, inputs in enumerate(inputs_of):
            colour = new[task]
            if not fixed[task]:
                reads = 0
                for source in inputs:
                    reads += net[source]
                new[task] = colour = mix[colour, reads]
            net[task] = mix[colour, sizes[task], read_by[task]]
        found = len({new[task] for task in free})
        if found == count:
            return colours, exact
        if found > most:
            return colours, False
        colours, count = new, found
    return colours, False


def _nets(model: Model, groups: list[int]) -> list[Net]:
    """Nets of the groups: like results that like tasks read count as one, with their bytes added up."""
    inputs_of, tasks = model.inputs, len(groups)
    # Each pair of a result and a group that reads it counts once.
    read_by = [0] * tasks
    mix = _Mix()
    marks = [mix[group] for group in range(max(groups, default=0) + 1)]
    last = [-1] * tasks
    several: dict[int, set[int]] = {}
    for task, inputs in enumerate(inputs_of):
        group = groups[task]
        for source in inputs:
            if last[source] == group or groups[source] == group:
                continue
            if last[source] < 0:
                last[source] = group
                read_by[source] = marks[group]
            else:
                seen = several.get(source)
                if seen is None:
                    several[source] = {last[source], group}
                    read_by[source] += marks[group]
                elif group not in seen:
                    seen.add(group)
                    read_by[source] += marks[group]
    found: dict[tuple[int, int], Net] = {}
    for task, readers in enumerate(read_by):
        if last[task] < 0:
            continue
        like = (groups[task], readers)
        net = found.get(like)
        if net is None:
            found[like] = Net(model.nbytes[task] or TINY, groups[task], several.get(task) or {last[task]})
        else:
            net.nbytes += model.nbytes[task] or TINY
    return list(found.values())


def _find(rep: list[int], node: int) -> int:
    while rep[node] != node:
        rep[node] = node = rep[rep[node]]
    return node


def _join_what_stays(model: Model, rep: list[int]) -> set[int]:
    """Make each result that must not cross one with its consumers; returns the tasks that this touched."""
    merged: set[int] = set()
    if not model.stays:
        return merged
    tasks = len(model.inputs)
    for task, inputs in enumerate(model.inputs):
        for source in inputs:
            if source in model.stays:
                a, b = _find(rep, source), _find(rep, task)
                if a != b and not (a >= tasks and b >= tasks):  # two pins cannot become one
                    rep[min(a, b)] = max(a, b)
                    merged.update((source, task, a, b))
    return merged


def _sweep(model: Model, rep: list[int], scale: Scale, merged: set[int]) -> None:
    """Settle tasks whose inputs, or whose consumers, outweigh all else: once forth and once back."""
    inputs_of, tasks = model.inputs, len(model.inputs)
    weights = [nbytes if nbytes > 0 else TINY for nbytes in model.nbytes]
    readers = [0] * tasks
    for inputs in inputs_of:
        for source in inputs:
            readers[source] += 1
    least, most, own = scale.least, scale.most, scale.own
    for task, inputs in enumerate(inputs_of):
        if rep[task] != task or not inputs or task in merged:
            continue
        total = 0.0
        if len(inputs) == 1:
            (source,) = inputs
            if readers[source] == 1 and (pool := rep[source]) >= tasks:
                gain = weights[source] * least
                if gain > (weights[task] * own if readers[task] else 0.0):
                    rep[task] = pool
            continue
        held: dict[int, float] = {}
        for source in inputs:
            weight = weights[source]
            total += weight
            if readers[source] == 1 and (pool := rep[source]) >= tasks:
                held[pool] = held.get(pool, 0.0) + weight
        if held:
            pool = max(held, key=held.__getitem__)
            most_held = held[pool]
            others = (total - most_held) * most + (weights[task] * own if readers[task] else 0.0)
            # Strictly: of two pools that are as good, which one to take is decided when all is known.
            if most_held * least > others:
                rep[task] = pool
    unread, several = -2, -3
    wanted = [unread] * tasks
    for task in range(tasks - 1, -1, -1):
        pool = rep[task]
        inputs = inputs_of[task]
        if pool == task and wanted[task] >= 0 and task not in merged:
            read = 0.0
            for source in inputs:
                read += weights[source]
            if weights[task] * least > read * most:
                rep[task] = pool = wanted[task]
        claim = pool if pool >= tasks else several
        for source in inputs:
            if wanted[source] != claim:
                wanted[source] = claim if wanted[source] == unread else several


def _merge_round(nets: list[Net], rep: list[int], tasks: int, scale: Scale) -> int:
    """Join nodes to the neighbour that outweighs all else they touch; returns how many were joined.

    The test is that of Padberg and Rinaldi (Math. Programming 47, 1990) for edges; here only a net of two
    nodes counts for the one side, and every net for the other.
    """
    total: dict[int, float] = {}
    pairs: dict[tuple[int, int], float] = {}
    most, own = scale.most, scale.own
    for net in nets:
        producer, nbytes = net.producer, net.nbytes
        if producer < tasks:
            total[producer] = total.get(producer, 0.0) + nbytes * own
        for reader in net.consumers:
            if reader < tasks:
                total[reader] = total.get(reader, 0.0) + nbytes * most
        if len(net.consumers) == 1:
            (reader,) = net.consumers
            pair = (producer, reader) if producer < reader else (reader, producer)
            pairs[pair] = pairs.get(pair, 0.0) + nbytes
    grown: set[int] = set()
    moved = 0
    for (a, b), nbytes in pairs.items():
        for node, other in ((a, b), (b, a)):
            if node >= tasks or rep[node] != node or node in grown:
                continue
            rest = total[node] - nbytes * most
            gain = nbytes * scale.least
            # Strictly: which of two equal neighbours comes first depends on the order of the tasks, and a
            # graph is to be placed alike whenever it is sent. The cut decides without that.
            if gain > rest:
                rep[node] = other
                grown.add(_find(rep, other))
                moved += 1
                break
    return moved


def _relabel(
    nets: list[Net], fixed: list[Net] | None, rep: list[int], tasks: int, pools: int, equal: bool
) -> list[Net]:
    """Nets after nodes were joined; those that cost the same wherever free nodes go are moved to `fixed`."""
    live = []
    for net in nets:
        producer = _find(rep, net.producer)
        consumers = {_find(rep, reader) for reader in net.consumers}
        consumers.discard(producer)
        if not consumers or (producer >= tasks and min(consumers) >= tasks):
            continue
        net.producer, net.consumers = producer, consumers
        if fixed is not None and max(consumers) >= tasks:
            touched = sum(reader >= tasks for reader in consumers) + (producer >= tasks)
            if touched == pools and (equal or producer >= tasks):
                fixed.append(net)
                continue
        live.append(net)
    return live


class _Parts:
    """Nodes that are connected, as sets that grow together."""

    def __init__(self) -> None:
        self.above: dict[int, int] = {}

    def find(self, node: int) -> int:
        """Return the node that stands for the part of `node`: the highest number in it."""
        above = self.above
        root = above.setdefault(node, node)
        while above[root] != root:
            above[root] = root = above[above[root]]
        return root

    def join(self, a: int, b: int) -> None:
        """Make the parts of two nodes one."""
        a, b = self.find(a), self.find(b)
        self.above[min(a, b)] = max(a, b)


def _settle_parts(nets: list[Net], rep: list[int], tasks: int, equal: bool) -> None:
    """Settle each connected part of the free nodes that only one pool touches."""
    parts = _Parts()
    for net in nets:
        members = (net.producer, *net.consumers)
        for node in members:
            parts.find(node)
        if max(members) >= tasks and (equal or net.producer >= tasks):
            # Who reads the same settled result need not be together for its sake: each may be beside it.
            continue
        free = [node for node in members if node < tasks]
        for node in free[1:]:
            parts.join(free[0], node)
    touching: dict[int, set[int]] = {}
    for net in nets:
        members = (net.producer, *net.consumers)
        if settled := [node for node in members if node >= tasks]:
            for node in members:
                if node < tasks:
                    touching.setdefault(parts.find(node), set()).update(settled)
    for node in list(parts.above):
        near = touching.get(parts.find(node))
        if near is not None and len(near) == 1:
            (rep[node],) = near


def _kernel(model: Model, nets: list[Net], rep: list[int], size: int, groups: list[int]) -> Kernel:
    """Write down what is left, its nodes numbered anew."""
    pools = len(model.pools)
    parts = _Parts()
    for net in nets:
        for reader in net.consumers:
            parts.join(net.producer, reader)
    # Pools have the highest numbers, so they stand for the parts that they touch; other parts stay free.
    nodes = [node for node in parts.above if node < size and parts.find(node) >= size]
    numbers = {node: number for number, node in enumerate(nodes)}
    numbers.update((size + pool, len(nodes) + pool) for pool in range(pools))
    number_of = [numbers.get(_find(rep, group), FREE) for group in range(size + pools)]
    kept: dict[tuple[int, frozenset[int]], Net] = {}
    for net in nets:
        if parts.find(net.producer) < size:
            continue
        producer, consumers = numbers[net.producer], {numbers[reader] for reader in net.consumers}
        like = (producer, frozenset(consumers))
        if like in kept:
            kept[like].nbytes += net.nbytes
        else:
            kept[like] = Net(net.nbytes, producer, consumers)
    of = [number_of[group] for group in groups]
    return Kernel(len(nodes), list(kept.values()), of, pools, model.costs)


def loosen(model: Model, kernel: Kernel, pools: list[int], nodes: set[int]) -> tuple[Kernel, list[float]]:
    """Take some nodes of a kernel apart into the connected parts of the graph that they stand for.

    Parameters
    ----------
    model : Model
    kernel : Kernel
    pools : list of int
        For each task its pool.
    nodes : set of int
        The nodes to take apart; all other tasks count as settled, but those in `kernel.joined`.

    Returns
    -------
    Kernel
    list of float
        For each of its nodes, and then each pool, the bytes that its tasks read and write.
    """
    tasks = len(model.inputs)
    loose = [node in nodes for node in kernel.of]
    for task in kernel.joined:
        loose[task] = pools[task] != FREE
    parts = _Parts()
    for task, inputs in enumerate(model.inputs):
        if loose[task]:
            parts.find(task)
            for source in inputs:
                if loose[source] and kernel.of[source] == kernel.of[task] < kernel.size:
                    parts.join(source, task)
    numbers: dict[int, int] = {}
    for task in list(parts.above):
        numbers.setdefault(parts.find(task), len(numbers))
    size = len(numbers)
    of = [
        numbers[parts.find(task)] if loose[task] else FREE if pools[task] == FREE else size + pools[task]
        for task in range(tasks)
    ]
    work = [0.0] * (size + kernel.pools)
    found: dict[int, Net] = {}
    nbytes = model.nbytes
    for task, inputs in enumerate(model.inputs):
        reader = of[task]
        if reader == FREE:
            continue
        amount = nbytes[task]
        for source in inputs:
            amount += nbytes[source]
            producer = of[source]
            if producer != reader and producer != FREE:
                if (net := found.get(source)) is None:
                    found[source] = Net(nbytes[source] or TINY, producer, {reader})
                else:
                    net.consumers.add(reader)
        work[reader] += amount
    nets = [net for net in found.values() if net.producer < size or min(net.consumers) < size]
    return Kernel(size, nets, of, kernel.pools, kernel.costs), work
