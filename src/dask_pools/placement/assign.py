"""A pool for every task of a model. Pure: standard library only.

DESIGN.md beside this file says what is minimised, by which methods, and what is proven.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import combinations

from dask_pools.placement.contract import Kernel, Scale, contract, loosen
from dask_pools.placement.cut import INFINITE, BudgetExceededError, Network
from dask_pools.placement.model import FREE, Model, cost

MANY = 20
"""Consumers of a result that has more are not looked at again when one of them moves."""

STEPS = 400_000
STEPS_PER_TASK = 4
"""Arcs that all minimum cuts of one model together may look at."""


def assign(model: Model) -> list[int]:
    """Place each free task so that the fewest bytes cross.

    Among placements of equal cost, one that shares the work among the threads of the pools is preferred.

    Parameters
    ----------
    model : Model

    Returns
    -------
    list of int
        For each task its pool, or `FREE` if nothing ties it to a pin.
    """
    kernel = contract(model)
    labels, exact = _solve(kernel, model)
    pools = kernel.spread(labels)
    _refine(model, kernel, labels, pools, exact)
    if exact:
        return pools
    # Nothing is proven of a search; this much is promised.
    best, least = pools, cost(model, pools)
    for other in _simple(model, pools):
        if not _crosses(model, other) and (worth := cost(model, other)) < least:
            best, least = other, worth
    return best


def look_back(model: Model) -> list[int]:
    """Place each free task in the pool that holds most of its input bytes, one after the other.

    A task that reads nothing from any pool (it has no pinned ancestor) follows the consumer that reads most
    from it, by bytes; a task that is connected to no pin stays `FREE`.
    """
    pools = list(model.pinned)
    _complete(model, pools)
    return pools


def by_layer(model: Model) -> list[int]:
    """Place whole layers: the free tasks of each in the pool that holds most of what the layer reads."""
    pools = list(model.pinned)
    layers = model.layers or list(range(len(pools)))
    held: dict[int, dict[int, float]] = {}
    home: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for task, layer in enumerate(layers):
        members.setdefault(layer, []).append(task)
    # Tasks of layers may be interleaved, so a layer is taken when its first task comes, with what is known.
    for task, inputs in enumerate(model.inputs):
        layer = layers[task]
        if layer not in home:
            sums = held.setdefault(layer, {})
            seen = set()
            for member in members[layer]:
                for source in model.inputs[member]:
                    pool = pools[source] if pools[source] != FREE else home.get(layers[source], FREE)
                    if pool != FREE and layers[source] != layer and source not in seen:
                        seen.add(source)
                        sums[pool] = sums.get(pool, 0.0) + model.nbytes[source]
            if sums:
                home[layer] = min(sums, key=lambda pool: (-sums[pool], model.pools[pool]))
            elif inputs:
                home[layer] = FREE
        if pools[task] == FREE:
            pools[task] = home.get(layer, FREE)
    _complete(model, pools)
    return pools


def single(model: Model, pool: int, placed: Sequence[int]) -> list[int]:
    """Place in one pool whatever is free to be anywhere and is not `FREE` in `placed`."""
    return [
        pinned if pinned != FREE or other == FREE else pool
        for pinned, other in zip(model.pinned, placed, strict=True)
    ]


def lower_bound(model: Model) -> float:
    """Cost that no placement is below: with two pools, and for models that contract away, the least there is.

    For more, half the sum of the cuts that part each pool from all the others (Dahlhaus et al., SIAM J.
    Comput. 23, 1994), at the least price between any two pools.
    """
    kernel = contract(model)
    placed, exact = _solve(kernel, model)
    if exact:
        return cost(model, kernel.spread(placed))
    least = Scale(model).least
    cuts = 0.0
    for pool in range(len(model.pools)):
        two = Model(["this", "others"], model.inputs, model.nbytes, [])
        two.pinned = [FREE if pin == FREE else int(pin != pool) for pin in model.pinned]
        cuts += cost(two, assign(two))
    return least * cuts / 2


def _price(costs: list[list[float]] | None, source: int, target: int) -> float:
    if source == target:
        return 0.0
    return 1.0 if costs is None else costs[source][target]


def _complete(model: Model, pools: list[int]) -> None:
    """Place whatever is still free and tied to a pin, by inputs, else by consumers, however far away."""
    free = pools.count(FREE)
    while free:
        before = free
        _follow_inputs(model, pools)
        _follow_consumers(model, pools)
        free = pools.count(FREE)
        if free == before:
            break


def _follow_inputs(model: Model, pools: list[int]) -> None:
    """Place each free task in the pool that holds most of its input bytes."""
    nbytes = model.nbytes
    for task, inputs in enumerate(model.inputs):
        if pools[task] != FREE or not inputs:
            continue
        held: dict[int, float] = {}
        for source in inputs:
            if (pool := pools[source]) != FREE:
                held[pool] = held.get(pool, 0.0) + nbytes[source]
        if held:
            # Of pools that hold as much, the first by name, so that a graph is always placed alike.
            pools[task] = min(held, key=lambda pool: (-held[pool], model.pools[pool]))


def _follow_consumers(model: Model, pools: list[int]) -> None:
    """Place what is still free with the consumer that has the largest result."""
    wanted: dict[int, tuple[float, str, int]] = {}
    for task in range(len(pools) - 1, -1, -1):
        if pools[task] == FREE and task in wanted:
            pools[task] = wanted[task][2]
        if (pool := pools[task]) == FREE:
            continue
        for source in model.inputs[task]:
            if pools[source] == FREE:
                claim = (-model.nbytes[task], model.pools[pool], pool)
                if source not in wanted or claim < wanted[source]:
                    wanted[source] = claim


def _simple(model: Model, placed: Sequence[int]) -> Iterable[list[int]]:
    yield look_back(model)
    yield by_layer(model)
    for pool in range(len(model.pools)):
        yield single(model, pool, placed)


def _crosses(model: Model, pools: Sequence[int]) -> bool:
    """Whether a result crosses that must not."""
    return bool(model.stays) and any(
        source in model.stays and FREE not in (pools[source], pools[task]) and pools[source] != pools[task]
        for task, inputs in enumerate(model.inputs)
        for source in inputs
    )


def _solve(kernel: Kernel, model: Model) -> tuple[list[int], bool]:
    """Pools of the nodes of a kernel, and whether that is a proven minimum."""
    if not kernel.size:
        return [], kernel.told_apart
    labels, exact = _search(kernel, STEPS + STEPS_PER_TASK * len(model.inputs))
    return labels, exact and kernel.told_apart and kernel.pools == 2


def _refine(model: Model, kernel: Kernel, labels: list[int], pools: list[int], exact: bool) -> None:
    """Move single tasks, or chains of them, to where they cost less, or as much and have more threads."""
    moves = _Moves(kernel, labels)
    nodes = set(range(kernel.size))
    if exact:
        nodes = {node for node in nodes if any(moves.gain(node, pool) >= 0 for pool in moves.near(node))}
    if not nodes and not kernel.joined:
        return
    loose, work = loosen(model, kernel, pools, nodes)
    of_part = [FREE] * loose.size
    for part, pool in zip(loose.of, pools, strict=True):
        if 0 <= part < loose.size:
            of_part[part] = pool
    if not exact:
        _improve(loose, of_part)
    _balance(loose, of_part, work, model.threads)
    for task, part in enumerate(loose.of):
        if 0 <= part < loose.size:
            pools[task] = of_part[part]


def _search(kernel: Kernel, budget: float) -> tuple[list[int], bool]:
    """Pools of the nodes, found by minimum cuts between two pools at a time, and whether all were made.

    With two pools, that is the minimum. With more, pairs of pools exchange nodes until no pair gains
    (Boykov, Veksler and Zabih, IEEE PAMI 23, 2001), from each of several starts.
    """
    pools = kernel.pools
    if pools == 2:
        labels = [0] * kernel.size
        try:
            _exchange(kernel, labels, 0, 1, budget)
        except BudgetExceededError:
            labels = _nearest(kernel)
            _improve(kernel, labels)
            return labels, False
        return labels, True
    best: list[int] = []
    least = INFINITE
    starts = [_nearest(kernel), *([pool] * kernel.size for pool in range(pools))]
    exact = True
    for labels in starts:
        worth = _worth(kernel, labels)
        try:
            while True:
                for a, b in combinations(range(pools), 2):
                    budget = _exchange(kernel, labels, a, b, budget)
                before, worth = worth, _worth(kernel, labels)
                if not worth < before * (1 - 1e-9):
                    break
        except BudgetExceededError:
            exact = False
        _improve(kernel, labels)
        worth = _worth(kernel, labels)
        if worth < least:
            best, least = labels, worth
    return best, exact


def _nearest(kernel: Kernel) -> list[int]:
    """Start of a search: each node in the pool that most of its bytes touch."""
    pull = [[0.0] * kernel.pools for _ in range(kernel.size)]
    size = kernel.size
    for net in kernel.nets:
        members = (net.producer, *net.consumers)
        near = [node - size for node in members if node >= size]
        for node in members:
            if node < size:
                for pool in near:
                    pull[node][pool] += net.nbytes
    return [max(range(kernel.pools), key=of.__getitem__) for of in pull]


def _worth(kernel: Kernel, labels: list[int]) -> float:
    """Cost of the nets of a kernel."""
    where = [*labels, *range(kernel.pools)]
    return sum(
        net.nbytes * _price(kernel.costs, where[net.producer], target)
        for net in kernel.nets
        for target in {where[consumer] for consumer in net.consumers}
    )


def _exchange(kernel: Kernel, labels: list[int], a: int, b: int, budget: float) -> float:
    """Move nodes between the pools `a` and `b` at the least cost; returns what is left of the budget.

    The source's side of the cut is pool `a`. A result costs once for each pool that reads it, which takes a
    node of its own beside the producer (Lawler, Networks 3, 1973).
    """
    size = kernel.size
    where = [*labels, *range(kernel.pools)]
    movable = [node < size and pool in (a, b) for node, pool in enumerate(where)]
    network = Network(size)
    join, source, sink = network.join, network.source, network.sink
    # What it costs each node to be in `a` rather than in `b`.
    bias = [0.0] * size
    for net in kernel.nets:
        producer, nbytes = net.producer, net.nbytes
        free = [consumer for consumer in net.consumers if movable[consumer]]
        if not free and not movable[producer]:
            continue
        targets = {where[consumer] for consumer in net.consumers if not movable[consumer]}
        if movable[producer]:
            to_b, to_a = nbytes * _price(kernel.costs, a, b), nbytes * _price(kernel.costs, b, a)
            for target in targets:
                if target not in (a, b):
                    bias[producer] += nbytes * (
                        _price(kernel.costs, a, target) - _price(kernel.costs, b, target)
                    )
            if b in targets:
                bias[producer] += to_b
                to_b = 0.0
            if a in targets:
                bias[producer] -= to_a
                to_a = 0.0
            if len(free) == 1:
                if to_a or to_b:
                    join(producer, free[0], to_b, to_a)
                continue
            start = end = producer
        else:
            home = where[producer]
            to_b = 0.0 if b in targets else nbytes * _price(kernel.costs, home, b)
            to_a = 0.0 if a in targets else nbytes * _price(kernel.costs, home, a)
            if len(free) == 1:
                bias[free[0]] += to_a - to_b
                continue
            start, end = source, sink
        if not free:
            continue
        if to_b:
            relay = network.node()
            join(start, relay, to_b)
            for consumer in free:
                join(relay, consumer, INFINITE)
        if to_a:
            relay = network.node()
            join(relay, end, to_a)
            for consumer in free:
                join(consumer, relay, INFINITE)
    for node, amount in enumerate(bias):
        if amount > 0:
            join(node, sink, amount)
        elif amount < 0:
            join(source, node, -amount)
    sides, budget = network.cut(budget)
    for node in range(size):
        if movable[node]:
            labels[node] = a if sides[node] else b
    return budget


class _Moves:
    """What nodes gain by moving, kept up to date while they move (Fiduccia and Mattheyses, DAC 1982)."""

    def __init__(self, kernel: Kernel, labels: list[int]) -> None:
        self.kernel = kernel
        self.where = [*labels, *range(kernel.pools)]
        self.nets_of: list[list[int]] = [[] for _ in range(kernel.size)]
        self.readers: list[list[int]] = []
        for number, net in enumerate(kernel.nets):
            counts = [0] * kernel.pools
            for consumer in net.consumers:
                counts[self.where[consumer]] += 1
                if consumer < kernel.size:
                    self.nets_of[consumer].append(number)
            if net.producer < kernel.size:
                self.nets_of[net.producer].append(number)
            self.readers.append(counts)

    def near(self, node: int) -> set[int]:
        """Pools that a neighbour of a node is in."""
        found = {self.where[self.kernel.nets[number].producer] for number in self.nets_of[node]}
        for number in self.nets_of[node]:
            found.update(pool for pool, count in enumerate(self.readers[number]) if count)
        found.discard(self.where[node])
        return found

    def gain(self, node: int, pool: int) -> float:
        """Cost that a move would save."""
        gained = 0.0
        here, costs = self.where[node], self.kernel.costs
        for number in self.nets_of[node]:
            net, counts = self.kernel.nets[number], self.readers[number]
            if net.producer == node:
                for target, count in enumerate(counts):
                    if count:
                        gained += net.nbytes * (_price(costs, here, target) - _price(costs, pool, target))
            else:
                home = self.where[net.producer]
                if counts[here] == 1:
                    gained += net.nbytes * _price(costs, home, here)
                if not counts[pool]:
                    gained -= net.nbytes * _price(costs, home, pool)
        return gained

    def move(self, node: int, pool: int) -> None:
        """Move a node."""
        here = self.where[node]
        for number in self.nets_of[node]:
            if self.kernel.nets[number].producer != node:
                self.readers[number][here] -= 1
                self.readers[number][pool] += 1
        self.where[node] = pool


def _improve(kernel: Kernel, labels: list[int]) -> None:
    """Move single nodes while that lowers the cost: those at the edge of a pool, and their neighbours."""
    moves = _Moves(kernel, labels)
    edge: deque[int] = deque()
    waiting = [False] * kernel.size

    def ask(members: Iterable[int]) -> None:
        for node in members:
            if node < kernel.size and not waiting[node]:
                waiting[node] = True
                edge.append(node)

    for net, readers in zip(kernel.nets, moves.readers, strict=True):
        if sum(map(bool, readers)) > 1 or not readers[moves.where[net.producer]]:
            ask((net.producer, *net.consumers))
    left = 4 * kernel.size
    while edge and left:
        left -= 1
        node = edge.popleft()
        waiting[node] = False
        gain, pool = max(((moves.gain(node, pool), pool) for pool in moves.near(node)), default=(0.0, 0))
        if gain > 1e-6:
            moves.move(node, pool)
            for number in moves.nets_of[node]:
                net = kernel.nets[number]
                # Hubs are read by too many to ask each of them again.
                if len(net.consumers) < MANY:
                    ask((net.producer, *net.consumers))
    labels[:] = moves.where[: kernel.size]


def _balance(kernel: Kernel, labels: list[int], work: list[float], threads: list[int]) -> None:
    """Move nodes where that costs nothing and shares the work more evenly among the threads of the pools."""
    share = [max(count, 1) for count in threads] or [1] * kernel.pools
    moves = _Moves(kernel, labels)
    load = [amount / share[pool] for pool, amount in enumerate(work[kernel.size :])]
    for node, pool in enumerate(labels):
        load[pool] += work[node] / share[pool]
    for node in sorted(range(kernel.size), key=work.__getitem__, reverse=True):
        here, amount = moves.where[node], work[node]
        if not amount:
            continue
        for pool in sorted(moves.near(node), key=lambda pool: load[pool] + amount / share[pool]):
            if load[pool] + amount / share[pool] >= load[here]:
                break
            if moves.gain(node, pool) >= 0:
                moves.move(node, pool)
                load[here] -= amount / share[here]
                load[pool] += amount / share[pool]
                break
    labels[:] = moves.where[: kernel.size]
